//! How any client of ours reaches the brokers: addresses, name, TLS and SASL, as librdkafka's properties.
//!
//! What is not said here is not left to librdkafka's defaults: the protocol, the verification of certificates and
//! host names and the mechanism are always set. Secrets are read on every call.

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::{KafkaConfig, KafkaProtocol, SaslMechanism};
use crate::secrets::{self, SecretError};

/// Properties for one client. Their debug form does not show secrets.
#[derive(Debug)]
pub struct ConnectionProperties {
    plain: Vec<(&'static str, String)>,
    secret: Vec<(&'static str, SecretString)>,
}

impl ConnectionProperties {
    /// Names and values, secrets included: for librdkafka only.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let plain = self.plain.iter().map(|(name, value)| (*name, value.as_str()));
        plain.chain(self.secret.iter().map(|(name, value)| (*name, value.expose_secret())))
    }
}

/// Reads the secrets and says how to connect.
///
/// # Errors
/// A secret or a certificate cannot be read; nothing was connected to.
pub fn properties(kafka: &KafkaConfig) -> Result<ConnectionProperties, SecretError> {
    let security = &kafka.security;
    let (tls, sasl) = (&security.tls, &security.sasl);
    let encrypted = security.protocol == KafkaProtocol::Tls;
    let protocol = match (encrypted, sasl.mechanism.is_some()) {
        (false, false) => "PLAINTEXT",
        (true, false) => "SSL",
        (false, true) => "SASL_PLAINTEXT",
        (true, true) => "SASL_SSL",
    };
    let mut plain = vec![
        ("bootstrap.servers", kafka.bootstrap_servers.join(",")),
        ("client.id", kafka.client_id.clone()),
        ("security.protocol", protocol.to_owned()),
        // Always set: the default is Kerberos, which is not built in and fails when a client is made.
        ("sasl.mechanisms", sasl.mechanism.map_or("PLAIN", |found| found.kafka_name()).to_owned()),
    ];
    let mut secret = Vec::new();
    if encrypted {
        let verify = !tls.insecure_skip_verification;
        let verify_name = verify && !tls.insecure_skip_hostname_verification;
        plain.push(("enable.ssl.certificate.verification", verify.to_string()));
        plain.push((
            "ssl.endpoint.identification.algorithm",
            if verify_name { "https" } else { "none" }.to_owned(),
        ));
        // A file that is missing here is named with our key and not with librdkafka's.
        let files = [
            ("ssl.ca.location", "ca_file", &tls.ca_file, Readable::ByAnybody),
            (
                "ssl.certificate.location",
                "certificate_file",
                &tls.certificate_file,
                Readable::ByAnybody,
            ),
            ("ssl.key.location", "key_file", &tls.key_file, Readable::ByOwner),
            ("ssl.keystore.location", "keystore_file", &tls.keystore_file, Readable::ByOwner),
        ];
        for (property, key, file, readable) in files {
            let Some(path) = file else { continue };
            let key = format!("kafka.security.tls.{key}");
            match readable {
                Readable::ByAnybody => secrets::check_readable(&key, path)?,
                Readable::ByOwner => secrets::check_private(&key, path)?,
            }
            let path = path.to_str().ok_or_else(|| SecretError::Unusable {
                key,
                place: path.display().to_string(),
                what: "a path that is not UTF-8 text",
            })?;
            plain.push((property, path.to_owned()));
        }
        let passwords = [
            (
                "ssl.key.password",
                "kafka.security.tls.key_password",
                &tls.key_password_file,
                &tls.key_password_env,
            ),
            (
                "ssl.keystore.password",
                "kafka.security.tls.keystore_password",
                &tls.keystore_password_file,
                &tls.keystore_password_env,
            ),
        ];
        for (property, key, file, variable) in passwords {
            let found = secrets::read(key, file.as_deref(), variable.as_deref())?;
            secret.extend(found.map(|password| (property, password)));
        }
    }
    // A token is said to the client when there is one; see kafka/token.rs.
    if sasl.mechanism.is_some_and(|found| found != SaslMechanism::OauthBearer) {
        plain.push(("sasl.username", sasl.username.clone()));
        let found = secrets::read(
            "kafka.security.sasl.password",
            sasl.password_file.as_deref(),
            sasl.password_env.as_deref(),
        )?;
        secret.extend(found.map(|password| ("sasl.password", password)));
    }
    Ok(ConnectionProperties { plain, secret })
}

/// Who may read a file.
enum Readable {
    /// It holds nothing that others must not know.
    ByAnybody,
    /// It holds a private key.
    ByOwner,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;
    use crate::config::KafkaSecurity;

    fn as_map(kafka: &KafkaConfig) -> BTreeMap<&'static str, String> {
        properties(kafka).unwrap().iter().map(|(name, value)| (name, value.to_owned())).collect()
    }

    fn secret_file(dir: &tempfile::TempDir, name: &str, mode: u32) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, "canary\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_defaults_say_plaintext_and_a_mechanism() {
        let found = as_map(&KafkaConfig::default());
        assert_eq!(found["security.protocol"], "PLAINTEXT");
        assert_eq!(found["sasl.mechanisms"], "PLAIN");
    }

    #[test]
    fn tls_verifies_certificate_and_host_name_unless_told_otherwise() {
        let mut kafka = KafkaConfig::default();
        kafka.security.protocol = KafkaProtocol::Tls;
        let found = as_map(&kafka);
        assert_eq!(found["security.protocol"], "SSL");
        assert_eq!(found["enable.ssl.certificate.verification"], "true");
        assert_eq!(found["ssl.endpoint.identification.algorithm"], "https");
        kafka.security.tls.insecure_skip_hostname_verification = true;
        let found = as_map(&kafka);
        assert_eq!(found["enable.ssl.certificate.verification"], "true");
        assert_eq!(found["ssl.endpoint.identification.algorithm"], "none");
        kafka.security.tls.insecure_skip_verification = true;
        assert_eq!(as_map(&kafka)["enable.ssl.certificate.verification"], "false");
    }

    #[test]
    fn secrets_are_read_again_every_time_and_do_not_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = secret_file(&dir, "password", 0o600);
        let mut security =
            KafkaSecurity { protocol: KafkaProtocol::Tls, ..KafkaSecurity::default() };
        security.sasl.mechanism = Some(SaslMechanism::ScramSha512);
        security.sasl.username = "persister".to_owned();
        security.sasl.password_file = Some(path.clone());
        let kafka = KafkaConfig { security, ..KafkaConfig::default() };
        let found = as_map(&kafka);
        assert_eq!(found["security.protocol"], "SASL_SSL");
        assert_eq!(found["sasl.mechanisms"], "SCRAM-SHA-512");
        assert_eq!(found["sasl.password"], "canary");
        assert!(!format!("{:?}", properties(&kafka).unwrap()).contains("canary"));
        std::fs::write(&path, "changed").unwrap();
        assert_eq!(as_map(&kafka)["sasl.password"], "changed");
    }

    #[test]
    fn a_private_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut kafka = KafkaConfig::default();
        kafka.security.protocol = KafkaProtocol::Tls;
        kafka.security.tls.certificate_file = Some(secret_file(&dir, "certificate", 0o644));
        kafka.security.tls.key_file = Some(secret_file(&dir, "key", 0o640));
        let error = properties(&kafka).unwrap_err();
        assert!(error.to_string().contains("kafka.security.tls.key_file"), "{error}");
    }

    #[test]
    fn a_missing_certificate_is_named_with_its_key() {
        let mut kafka = KafkaConfig::default();
        kafka.security.protocol = KafkaProtocol::Tls;
        kafka.security.tls.ca_file = Some("/no/such/ca.pem".into());
        let error = properties(&kafka).unwrap_err().to_string();
        assert!(error.starts_with("kafka.security.tls.ca_file: cannot read /no/such/ca.pem"));
    }
}
