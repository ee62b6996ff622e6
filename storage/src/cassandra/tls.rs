//! TLS to the nodes: who they must be and who we are. Files are read again for each session.
//!
//! The driver has OpenSSL compare a node's certificate with the address that it connects to, because addresses are all
//! that nodes tell of each other. A certificate made for a name is taken as well where that name is one of the contact
//! points: it is signed by the same authority, for a name that was given to us as one of this cluster's.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use openssl::error::ErrorStack;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509Ref, X509StoreContextRef, X509VerifyResult};

use super::secret::Secret;
use super::verdicts;
use crate::certificate::{EXPIRED, HOST_NAME, IP_ADDRESS, NOT_YET_VALID, describe};
use crate::error::{StoreError, Verdict};

/// TLS is not agreed on: certificates, names, or one side does not speak it.
pub(super) const CODE: &str = verdicts::TLS.name;

/// How much of a node's certificate is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// Its authority, its time and for whom it was made.
    #[default]
    Everything,
    /// Not for whom it was made.
    NotTheName,
    /// Nothing: anybody can pretend to be a node.
    Nothing,
}

/// Certificates, in PEM files or a PKCS#12 key store.
#[derive(Debug, Clone, Default)]
pub struct CassandraTls {
    /// Certificates that a node's must be signed by; `None`: those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its chain, for nodes that ask for one.
    pub certificate_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// The private key's password.
    pub key_password: Option<Secret>,
    /// Certificate and private key in one PKCS#12 file.
    pub keystore_file: Option<PathBuf>,
    /// The key store's password.
    pub keystore_password: Option<Secret>,
    /// How much is verified.
    pub verify: Verify,
}

/// Why a certificate was refused: the check in words, and what the certificate says of itself.
pub(super) type Refusal = Arc<Mutex<Option<String>>>;

impl CassandraTls {
    /// Files whose content decides about connections.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca_file, &self.certificate_file, &self.key_file, &self.keystore_file]
            .into_iter()
            .filter_map(|file| file.as_deref())
    }

    /// A context for connections to nodes whose certificates hold their address or one of `names`. It needs the address
    /// to be set on each connection, as the driver does. What it refuses is written to `refusal`.
    ///
    /// # Errors
    /// A file cannot be read, or does not hold what it should.
    pub(super) fn context(
        &self,
        names: Vec<String>,
        refusal: Refusal,
    ) -> Result<SslConnectorBuilder, StoreError> {
        let odd = |error: ErrorStack| wrong("", format!("OpenSSL: {error}"));
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(odd)?;
        builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(odd)?;
        if let Some(path) = &self.ca_file {
            // These certificates, and not the system's beside them.
            builder.set_cert_store(X509StoreBuilder::new().map_err(odd)?.build());
            read("ca_file", path)?;
            builder.set_ca_file(path).map_err(|_| holds_no("ca_file", path, "certificate"))?;
        }
        self.identify(&mut builder)?;
        let verify = self.verify;
        if verify == Verify::Nothing {
            builder.set_verify(SslVerifyMode::NONE);
        } else {
            builder.set_verify_callback(SslVerifyMode::PEER, move |fine, context| {
                fine || is_taken(context, verify, &names) || {
                    let mut refused = refusal.lock().unwrap_or_else(PoisonError::into_inner);
                    *refused = Some(reason(context, &names));
                    false
                }
            });
        }
        Ok(builder)
    }

    /// Our certificate and key.
    fn identify(&self, builder: &mut SslConnectorBuilder) -> Result<(), StoreError> {
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            read("certificate_file", certificate)?;
            // The path is given to OpenSSL as text.
            if certificate.to_str().is_none_or(|path| path.contains('\0')) {
                return Err(holds_no("certificate_file", certificate, "path that is text"));
            }
            builder
                .set_certificate_chain_file(certificate)
                .map_err(|_| holds_no("certificate_file", certificate, "certificate in PEM"))?;
            let pem = read("key_file", key)?;
            let password = self.key_password.as_ref().map(Secret::get).transpose()?;
            // Without an answer of ours OpenSSL would ask at the terminal.
            let given = password.unwrap_or_default();
            let parsed = PKey::private_key_from_pem_callback(&pem, |room| {
                let length = given.len();
                room.get_mut(..length).map_or(Ok(0), |room| {
                    room.copy_from_slice(given.as_bytes());
                    Ok(length)
                })
            });
            let what = "private key in PEM that key_password_file or key_password_env opens";
            let parsed = parsed.map_err(|_| holds_no("key_file", key, what))?;
            builder
                .set_private_key(&parsed)
                .and_then(|()| builder.check_private_key())
                .map_err(|_| holds_no("key_file", key, "key of certificate_file"))?;
        }
        if let Some(path) = &self.keystore_file {
            let password = self.keystore_password.as_ref().map(Secret::get).transpose()?;
            let what =
                "PKCS#12 key store that keystore_password_file or keystore_password_env opens";
            let unusable = || holds_no("keystore_file", path, what);
            let store = Pkcs12::from_der(&read("keystore_file", path)?)
                .and_then(|store| store.parse2(&password.unwrap_or_default()))
                .map_err(|_| unusable())?;
            let (Some(certificate), Some(key)) = (store.cert, store.pkey) else {
                return Err(holds_no("keystore_file", path, "certificate with its private key"));
            };
            builder
                .set_certificate(&certificate)
                .and_then(|()| builder.set_private_key(&key))
                .and_then(|()| builder.check_private_key())
                .map_err(|_| unusable())?;
            for above in store.ca.into_iter().flatten() {
                builder.add_extra_chain_cert(above).map_err(|_| unusable())?;
            }
        }
        Ok(())
    }
}

fn wrong(key: &str, what: String) -> StoreError {
    StoreError::new(Verdict::Wait, CODE, format!("store.cassandra.tls{key}: {what}"))
}

fn holds_no(key: &str, path: &Path, what: &str) -> StoreError {
    wrong(&format!(".{key}"), format!("{} holds no {what}", path.display()))
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, StoreError> {
    let unreadable = |error| wrong(&format!(".{key}"), format!("{}: {error}", path.display()));
    std::fs::read(path).map_err(unreadable)
}

/// The names among `contact_points`; addresses need none.
pub(super) fn names_of(contact_points: &[String]) -> Vec<String> {
    let host = |point: &String| point.rsplit_once(':').map(|(host, _)| host.to_owned());
    let is_name = |host: &String| {
        host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_err()
    };
    contact_points.iter().filter_map(host).filter(is_name).collect()
}

/// A failed check that is none: the certificate was made for a name that we take, or names do not matter.
fn is_taken(context: &mut X509StoreContextRef, verify: Verify, names: &[String]) -> bool {
    if !matches!(context.error().as_raw(), HOST_NAME | IP_ADDRESS) {
        return false;
    }
    let is_ours = verify == Verify::NotTheName
        || context.current_cert().is_some_and(|certificate| is_made_for(certificate, names));
    if is_ours {
        context.set_error(X509VerifyResult::OK);
    }
    is_ours
}

fn is_made_for(certificate: &X509Ref, names: &[String]) -> bool {
    let alternatives = certificate.subject_alt_names();
    let mut made_for = alternatives.iter().flatten().filter_map(|name| name.dnsname());
    made_for.any(|made_for| names.iter().any(|name| matches_name(made_for, name)))
}

/// Whether a name in a certificate stands for `host`: the same name, or one whose first part is `*` and whose others are
/// the same and at least two.
fn matches_name(made_for: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.');
    match made_for.strip_prefix("*.") {
        None => !made_for.is_empty() && made_for.eq_ignore_ascii_case(host),
        Some(parent) => {
            let rest = host.split_once('.').filter(|(first, _)| !first.is_empty());
            parent.contains('.') && rest.is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent))
        }
    }
}

/// The check that fails, what the certificate says of itself, and what to do.
fn reason(context: &X509StoreContextRef, names: &[String]) -> String {
    let error = context.error();
    let said = context.current_cert().map(describe).unwrap_or_default();
    let names = names.join(" ");
    let way_out = match error.as_raw() {
        EXPIRED => "it has expired: renew it, or set this machine's clock".to_owned(),
        NOT_YET_VALID => "it is not valid yet: check this machine's clock".to_owned(),
        HOST_NAME | IP_ADDRESS if names.is_empty() => {
            "it is made for another host: it must hold the node's address among its alternative names".to_owned()
        }
        HOST_NAME | IP_ADDRESS => format!(
            "it is made for another host: it must hold, among its alternative names, the node's address or one of the names in store.cassandra.contact_points ({names})"
        ),
        _ => "it is not signed by a certificate in store.cassandra.tls.ca_file, or without one, by any that the system trusts".to_owned(),
    };
    format!("its certificate is refused: {}{said}: {way_out}", error.error_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_part_of_a_name_and_never_for_a_whole_domain() {
        for (made_for, host, fits) in [
            ("node1.db.example", "node1.db.example", true),
            ("NODE1.db.example", "node1.DB.example.", true),
            ("*.db.example", "node1.db.example", true),
            ("*.db.example", "a.node1.db.example", false),
            ("*.db.example", "db.example", false),
            ("*.db.example", ".db.example", false),
            ("*.example", "node1.example", false),
            ("*", "localhost", false),
            ("node*.db.example", "node1.db.example", false),
            ("", "", false),
        ] {
            assert_eq!(matches_name(made_for, host), fits, "{made_for} for {host}");
        }
    }

    #[test]
    fn only_names_are_compared_as_names() {
        let points = ["db.example:9042", "10.0.0.1:9042", "[::1]:9042"].map(str::to_owned);
        assert_eq!(names_of(&points), ["db.example"]);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_key() {
        let tls = CassandraTls { ca_file: Some("/no/such/ca.pem".into()), ..Default::default() };
        let error = tls.context(Vec::new(), Refusal::default()).err().unwrap();
        assert_eq!((error.verdict, error.code), (Verdict::Wait, CODE));
        assert!(error.detail.starts_with("store.cassandra.tls.ca_file: /no/such/ca.pem: "));
    }
}
