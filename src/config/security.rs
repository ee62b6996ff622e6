//! Who the brokers must be and who we are: TLS and SASL to Kafka. Secrets are named here, never held: a file or a
//! variable, read when a client is made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::kafka_token;

/// TLS and SASL to the brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSecurity {
    /// Plaintext is the default because that is what an older persister spoke; it is never fallen back to.
    pub protocol: KafkaProtocol,
    /// Used when `protocol` is `tls`.
    pub tls: KafkaTls,
    /// Used when it names a mechanism.
    pub sasl: KafkaSasl,
}

/// Whether connections are encrypted, to the brokers or to Cassandra.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum KafkaProtocol {
    /// Readable by everybody on the way.
    #[default]
    Plaintext,
    /// Encrypted, with the other side's certificate and name verified.
    Tls,
}

/// Certificates, in PEM files or a PKCS#12 key store: those for the brokers, or in Cassandra's section those for its nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaTls {
    /// Certificates that the other side's must be signed by; absent: those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its chain, for those that ask for one. Together with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// File that holds the private key's password.
    pub key_password_file: Option<PathBuf>,
    /// Variable that holds the private key's password.
    pub key_password_env: Option<String>,
    /// Certificate and private key in one PKCS#12 file, instead of `certificate_file` and `key_file`.
    pub keystore_file: Option<PathBuf>,
    /// File that holds the key store's password.
    pub keystore_password_file: Option<PathBuf>,
    /// Variable that holds the key store's password.
    pub keystore_password_env: Option<String>,
    /// Takes a certificate that was made for another host name. Said at every start.
    pub insecure_skip_hostname_verification: bool,
    /// Takes any certificate from anybody. Said at every start.
    pub insecure_skip_verification: bool,
}

/// User and password, or where to get tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSasl {
    /// How we prove who we are; absent: not by SASL.
    pub mechanism: Option<SaslMechanism>,
    /// User.
    pub username: String,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Variable that holds the password.
    pub password_env: Option<String>,
    /// Used when `mechanism` is `oauthbearer`.
    pub oauthbearer: KafkaOauth,
}

/// An OAuth server that gives tokens for our own credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaOauth {
    /// Its token endpoint.
    pub token_url: String,
    /// Our name there.
    pub client_id: String,
    /// File that holds the client secret.
    pub client_secret_file: Option<PathBuf>,
    /// Variable that holds the client secret.
    pub client_secret_env: Option<String>,
    /// What the token is to be good for, in the server's words; empty: what the server thinks.
    pub scope: String,
    /// SASL extensions that the brokers want beside the token, for example a cluster's name.
    pub extensions: BTreeMap<String, String>,
    /// Certificates that the endpoint's must be signed by; absent: those the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// A way of proving who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[schemars(with = "String", extend("enum" = ["plain", "scram-sha-256", "scram-sha-512", "oauthbearer"]))]
pub enum SaslMechanism {
    /// The password itself is sent: only over TLS.
    Plain,
    /// The password stays here.
    ScramSha256,
    /// The password stays here.
    ScramSha512,
    /// A token from an OAuth server is sent: only over TLS.
    OauthBearer,
}

impl SaslMechanism {
    const ALL: [(&'static str, Self); 4] = [
        ("plain", Self::Plain),
        ("scram-sha-256", Self::ScramSha256),
        ("scram-sha-512", Self::ScramSha512),
        ("oauthbearer", Self::OauthBearer),
    ];

    /// Its name among Kafka's.
    #[must_use]
    pub fn kafka_name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::OauthBearer => "OAUTHBEARER",
        }
    }
}

impl From<SaslMechanism> for String {
    fn from(mechanism: SaslMechanism) -> Self {
        mechanism.kafka_name().to_lowercase()
    }
}

impl TryFrom<String> for SaslMechanism {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(known, _)| *known == name.to_lowercase());
        known.map(|(_, mechanism)| *mechanism).ok_or_else(|| {
            let names = Self::ALL.map(|(known, _)| known).join(", ");
            format!(
                "SASL mechanism `{name}` is none of {names}; GSSAPI (Kerberos) is not part of this program"
            )
        })
    }
}

impl KafkaSecurity {
    /// Calls `wrong` with the key, below `kafka.security`, and what is wrong with it.
    pub(super) fn problems(&self, mut wrong: impl FnMut(&str, String)) {
        let Self { protocol, tls, sasl } = self;
        tls.problems(*protocol, "kafka.security.protocol", &mut wrong);
        for (key, owner, owned, file, variable) in [
            (
                "sasl.password",
                "a mechanism that has a password",
                sasl.mechanism.is_some_and(|found| found != SaslMechanism::OauthBearer),
                &sasl.password_file,
                &sasl.password_env,
            ),
            (
                "sasl.oauthbearer.client_secret",
                "mechanism oauthbearer",
                sasl.mechanism == Some(SaslMechanism::OauthBearer),
                &sasl.oauthbearer.client_secret_file,
                &sasl.oauthbearer.client_secret_env,
            ),
        ] {
            one_place(key, owner, owned, file.as_ref(), variable.as_ref(), &mut wrong);
        }
        match sasl.mechanism {
            None | Some(SaslMechanism::OauthBearer) if !sasl.username.is_empty() => {
                wrong(
                    "sasl.username",
                    "is of no use without a mechanism that has a password".to_owned(),
                );
            }
            None => {}
            Some(SaslMechanism::OauthBearer) => {
                if *protocol == KafkaProtocol::Plaintext {
                    wrong(
                        "sasl.mechanism",
                        "oauthbearer without TLS sends the token in the clear: set kafka.security.protocol to tls"
                            .to_owned(),
                    );
                }
                sasl.oauthbearer.problems(&mut wrong);
            }
            Some(mechanism) => {
                if sasl.username.is_empty() {
                    wrong("sasl.username", "is needed by the mechanism".to_owned());
                }
                if sasl.password_file.is_none() && sasl.password_env.is_none() {
                    wrong(
                        "sasl.password_file",
                        "the mechanism needs a password: give password_file or password_env"
                            .to_owned(),
                    );
                }
                if mechanism == SaslMechanism::Plain && *protocol == KafkaProtocol::Plaintext {
                    wrong(
                        "sasl.mechanism",
                        "plain without TLS sends the password in the clear: set kafka.security.protocol to tls, or use scram-sha-512"
                            .to_owned(),
                    );
                }
            }
        }
    }

    /// What an operator should know at every start, because it is allowed and yet not safe.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.tls.insecure_skip_verification {
            warnings.push(
                "kafka.security.tls.insecure_skip_verification: anybody can pretend to be a broker",
            );
        } else if self.tls.insecure_skip_hostname_verification {
            warnings.push(
                "kafka.security.tls.insecure_skip_hostname_verification: anybody with a certificate of this CA can pretend to be a broker",
            );
        }
        if self.protocol == KafkaProtocol::Plaintext && self.sasl.mechanism.is_some() {
            warnings.push(
                "kafka.security.protocol is plaintext: the password is not sent, but messages can be read and changed on their way",
            );
        }
        warnings
    }
}

impl KafkaTls {
    /// Calls `wrong` with the key, from `tls` on, and what is wrong with it; `switch` is the key that decides about TLS.
    pub(super) fn problems(
        &self,
        protocol: KafkaProtocol,
        switch: &str,
        mut wrong: impl FnMut(&str, String),
    ) {
        if protocol == KafkaProtocol::Plaintext && *self != Self::default() {
            wrong(
                "tls",
                format!(
                    "is given, but {switch} is plaintext: nothing would be encrypted; set it to tls"
                ),
            );
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            wrong("tls.key_file", "certificate_file and key_file belong together".to_owned());
        }
        if self.keystore_file.is_some() && self.certificate_file.is_some() {
            wrong(
                "tls.keystore_file",
                "is given beside certificate_file: keep one of the two".to_owned(),
            );
        }
        one_place(
            "tls.key_password",
            "key_file",
            self.key_file.is_some(),
            self.key_password_file.as_ref(),
            self.key_password_env.as_ref(),
            &mut wrong,
        );
        one_place(
            "tls.keystore_password",
            "keystore_file",
            self.keystore_file.is_some(),
            self.keystore_password_file.as_ref(),
            self.keystore_password_env.as_ref(),
            &mut wrong,
        );
    }
}

/// A secret has one place at most, and something that it belongs to.
pub(super) fn one_place(
    key: &str,
    owner: &str,
    owned: bool,
    file: Option<&PathBuf>,
    variable: Option<&String>,
    wrong: &mut impl FnMut(&str, String),
) {
    if file.is_some() && variable.is_some() {
        wrong(&format!("{key}_env"), format!("is given beside {key}_file: keep one of the two"));
    }
    if (file.is_some() || variable.is_some()) && !owned {
        wrong(&format!("{key}_file"), format!("is of no use without {owner}"));
    }
    if variable.is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
        wrong(&format!("{key}_env"), "is not the name of a variable".to_owned());
    }
}

impl KafkaOauth {
    fn problems(&self, wrong: &mut impl FnMut(&str, String)) {
        if let Some(problem) = kafka_token::problem_of_url(&self.token_url) {
            wrong("sasl.oauthbearer.token_url", problem.to_owned());
        }
        if self.client_id.is_empty() {
            wrong("sasl.oauthbearer.client_id", "is needed by the mechanism".to_owned());
        }
        if self.client_secret_file.is_none() && self.client_secret_env.is_none() {
            wrong(
                "sasl.oauthbearer.client_secret_file",
                "the mechanism needs a secret: give client_secret_file or client_secret_env"
                    .to_owned(),
            );
        }
        for (name, value) in &self.extensions {
            if let Some(problem) = kafka_token::problem_of_extension(name, value) {
                wrong(&format!("sasl.oauthbearer.extensions.{name}"), problem.to_owned());
            }
        }
    }
}

/// What to use instead of a librdkafka property that belongs to this section; `None` when it does not.
pub(super) fn instead_of_property(property: &str) -> Option<String> {
    let key = match property {
        "security.protocol" => "protocol, and kafka.security.sasl.mechanism",
        "ssl.ca.location" | "ssl.ca.pem" | "ssl.truststore.location" => "tls.ca_file",
        "ssl.certificate.location" | "ssl.certificate.pem" => "tls.certificate_file",
        "ssl.key.location" | "ssl.key.pem" => "tls.key_file",
        "ssl.key.password" => "tls.key_password_file or key_password_env",
        "ssl.keystore.location" => "tls.keystore_file",
        "ssl.keystore.password" => "tls.keystore_password_file or keystore_password_env",
        "ssl.endpoint.identification.algorithm" => "tls.insecure_skip_hostname_verification",
        "enable.ssl.certificate.verification" => "tls.insecure_skip_verification",
        "sasl.mechanism" | "sasl.mechanisms" => "sasl.mechanism",
        "sasl.username" => "sasl.username",
        "sasl.password" => "sasl.password_file or password_env",
        _ if property.starts_with("sasl.oauthbearer.") => "sasl.oauthbearer",
        _ if ["ssl.", "ssl_", "sasl.", "enable.sasl.", "enable.ssl."]
            .iter()
            .any(|prefix| property.starts_with(prefix)) =>
        {
            return Some(
                "kafka.security decides about TLS and SASL and has no key for it".to_owned(),
            );
        }
        _ => return None,
    };
    Some(format!("use kafka.security.{key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn problems(change: impl FnOnce(&mut KafkaSecurity)) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config.kafka.security);
        config.problems().iter().map(ToString::to_string).collect()
    }

    fn with_password(mechanism: SaslMechanism) -> KafkaSasl {
        KafkaSasl {
            mechanism: Some(mechanism),
            username: "persister".to_owned(),
            password_file: Some("/run/password".into()),
            password_env: None,
            oauthbearer: KafkaOauth::default(),
        }
    }

    #[test]
    fn plain_is_refused_without_tls_and_taken_with_it() {
        let refused = problems(|security| security.sasl = with_password(SaslMechanism::Plain));
        assert!(refused.join("").starts_with("kafka.security.sasl.mechanism: plain without TLS"));
        let taken = problems(|security| {
            security.protocol = KafkaProtocol::Tls;
            security.sasl = with_password(SaslMechanism::Plain);
        });
        assert_eq!(taken, Vec::<String>::new());
    }

    #[test]
    fn certificates_beside_plaintext_are_refused_because_nothing_would_be_encrypted() {
        let refused = problems(|security| security.tls.ca_file = Some("/ca.pem".into()));
        assert!(refused.join("").starts_with("kafka.security.tls: is given"), "{refused:?}");
    }

    #[test]
    fn a_mechanism_needs_a_user_and_exactly_one_place_of_the_password() {
        let none = problems(|security| security.sasl.mechanism = Some(SaslMechanism::ScramSha256));
        assert!(none.iter().any(|problem| problem.contains("sasl.username")), "{none:?}");
        assert!(none.iter().any(|problem| problem.contains("password_file or password_env")));
        let both = problems(|security| {
            security.sasl = with_password(SaslMechanism::ScramSha512);
            security.sasl.password_env = Some("PASSWORD".to_owned());
        });
        assert!(both.join("").contains("keep one of the two"), "{both:?}");
    }

    #[test]
    fn what_is_of_no_use_is_refused() {
        let user = problems(|security| security.sasl.username = "persister".to_owned());
        assert!(user.join("").contains("kafka.security.sasl.username"), "{user:?}");
        let half = problems(|security| {
            security.protocol = KafkaProtocol::Tls;
            security.tls.certificate_file = Some("/certificate.pem".into());
            security.tls.keystore_password_file = Some("/password".into());
        });
        assert!(half.iter().any(|problem| problem.contains("belong together")), "{half:?}");
        assert!(half.iter().any(|problem| problem.contains("keystore_password_file")), "{half:?}");
    }

    #[test]
    fn properties_that_this_section_owns_are_refused_with_the_key_to_use() {
        for (property, key) in [
            ("security.protocol", "kafka.security.protocol"),
            ("ssl.ca.location", "kafka.security.tls.ca_file"),
            ("sasl.password", "kafka.security.sasl.password_file"),
            ("ssl.endpoint.identification.algorithm", "insecure_skip_hostname_verification"),
            ("enable.ssl.certificate.verification", "insecure_skip_verification"),
            ("sasl.oauthbearer.method", "kafka.security.sasl.oauthbearer"),
            ("sasl.kerberos.keytab", "has no key for it"),
        ] {
            let mut config = Config::default();
            config.kafka.properties.insert(property.to_owned(), "x".to_owned());
            let problems = config.problems();
            assert_eq!(problems.len(), 1, "{property}: {problems:?}");
            assert_eq!(problems[0].key, format!("kafka.properties.{property}"));
            assert!(problems[0].problem.contains(key), "{problems:?}");
        }
    }

    #[test]
    fn a_mechanism_that_is_not_built_in_is_refused_in_words() {
        let error = SaslMechanism::try_from("GSSAPI".to_owned()).unwrap_err();
        assert!(error.contains("plain, scram-sha-256, scram-sha-512, oauthbearer"), "{error}");
        assert!(error.contains("not part of this program"), "{error}");
    }
}
