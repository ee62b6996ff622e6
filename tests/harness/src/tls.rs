//! Certificates for one test, made with the JDK's `keytool`, which is there wherever the services run.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::HarnessError;

/// Password of every key store here.
pub const STORE_PASSWORD: &str = "canary-of-key-stores";

/// A small certificate authority, another one that signed nothing, and who was signed.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// Makes the authorities.
    ///
    /// # Errors
    /// `keytool` is missing or refuses.
    pub fn new() -> Result<Self, HarnessError> {
        let dir = TempDir::with_prefix("tls-").map_err(HarnessError::io("create directory"))?;
        let certificates = Self { dir };
        for authority in ["ca", "other-ca"] {
            certificates.key_pair(authority, &["-ext", "bc:c", "-ext", "KU=keyCertSign"])?;
            let pem = certificates.text(&format!("{authority}.pem"));
            certificates.in_store(authority, &["-exportcert", "-rfc", "-file", &pem])?;
        }
        let (trust, pem) = (certificates.text("trust.p12"), certificates.text("ca.pem"));
        keytool(&["-importcert", "-noprompt", "-alias", "ca", "-file", &pem, "-keystore", &trust])?;
        Ok(certificates)
    }

    /// Certificate of the authority that signs, for `ca_file`.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Certificate of an authority that signed nothing here.
    #[must_use]
    pub fn other_ca(&self) -> PathBuf {
        self.path("other-ca.pem")
    }

    /// PKCS#12 with the authority's certificate, for a broker that verifies its clients.
    #[must_use]
    pub fn trust_store(&self) -> PathBuf {
        self.path("trust.p12")
    }

    /// A PKCS#12 key store with a signed certificate for `host`, readable by its owner only.
    ///
    /// # Errors
    /// `keytool` refuses.
    pub fn signed(&self, alias: &str, host: &str) -> Result<PathBuf, HarnessError> {
        self.sign(alias, host, &["-validity", "30"])
    }

    /// As [`Certificates::signed`], but valid last week.
    ///
    /// # Errors
    /// `keytool` refuses.
    pub fn expired(&self, alias: &str, host: &str) -> Result<PathBuf, HarnessError> {
        self.sign(alias, host, &["-startdate", "-10d", "-validity", "5"])
    }

    fn sign(&self, alias: &str, host: &str, valid: &[&str]) -> Result<PathBuf, HarnessError> {
        self.key_pair(alias, &[])?;
        let (request, signed) =
            (self.text(&format!("{alias}.csr")), self.text(&format!("{alias}.pem")));
        self.in_store(alias, &["-certreq", "-file", &request])?;
        let san = format!("SAN=dns:{host}");
        let mut arguments =
            vec!["-gencert", "-rfc", "-ext", &san, "-infile", &request, "-outfile", &signed];
        arguments.extend(valid);
        self.in_store("ca", &arguments)?;
        // A reply is taken only with the chain above it.
        let (store, ca) = (self.text(&format!("{alias}.p12")), self.text("ca.pem"));
        keytool(&["-importcert", "-noprompt", "-alias", "ca", "-file", &ca, "-keystore", &store])?;
        self.in_store(alias, &["-importcert", "-noprompt", "-file", &signed])?;
        let store = PathBuf::from(store);
        only_for_owner(&store)?;
        Ok(store)
    }

    /// Certificate and private key of a key store in PEM, the key with [`STORE_PASSWORD`]; `None` where the `openssl`
    /// command is not installed, because `keytool` cannot export a key.
    ///
    /// # Errors
    /// `openssl` refuses.
    pub fn pem(&self, alias: &str) -> Result<Option<(PathBuf, PathBuf)>, HarnessError> {
        let (certificate, key) = (self.path(&format!("{alias}.pem")), self.path("key.pem"));
        let password = format!("pass:{STORE_PASSWORD}");
        let output = Command::new("openssl")
            .args(["pkcs12", "-nocerts", "-passin", &password, "-passout", &password, "-in"])
            .arg(self.path(&format!("{alias}.p12")))
            .arg("-out")
            .arg(&key)
            .output();
        match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HarnessError::io("run openssl")(error)),
            Ok(output) if !output.status.success() => Err(HarnessError::Missing(format!(
                "openssl pkcs12: {}",
                String::from_utf8_lossy(&output.stderr)
            ))),
            Ok(_) => {
                only_for_owner(&key)?;
                Ok(Some((certificate, key)))
            }
        }
    }

    /// A file that only its owner can read.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn secret(&self, name: &str, content: &str) -> Result<PathBuf, HarnessError> {
        let path = self.path(name);
        std::fs::write(&path, content).map_err(HarnessError::io("write a secret"))?;
        only_for_owner(&path)?;
        Ok(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn key_pair(&self, alias: &str, extensions: &[&str]) -> Result<(), HarnessError> {
        let name = format!("CN={alias}");
        let mut arguments = vec![
            "-genkeypair",
            "-keyalg",
            "EC",
            "-groupname",
            "secp256r1",
            "-validity",
            "30",
            "-dname",
            &name,
        ];
        arguments.extend(extensions);
        self.in_store(alias, &arguments)
    }

    fn in_store(&self, alias: &str, arguments: &[&str]) -> Result<(), HarnessError> {
        let store = self.text(&format!("{alias}.p12"));
        keytool(&[arguments, &["-alias", alias, "-keystore", &store]].concat())
    }
}

fn only_for_owner(path: &Path) -> Result<(), HarnessError> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(HarnessError::io("set permissions"))
}

fn keytool(arguments: &[&str]) -> Result<(), HarnessError> {
    let output = Command::new("keytool")
        .args(arguments)
        .args(["-storetype", "PKCS12", "-storepass", STORE_PASSWORD])
        .output()
        .map_err(HarnessError::io("run keytool, a part of Java"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(HarnessError::Missing(format!(
        "keytool {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )))
}
