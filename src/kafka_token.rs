//! Tokens for SASL OAUTHBEARER: asked for at an OAuth server with our own credentials, and said to the brokers by a
//! client of ours. One that ends is replaced before it does.
//!
//! Neither the secret nor a token is ever part of a message.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use openssl::base64;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};

use crate::config::KafkaOauth;
use crate::kafka_trouble::{TOKEN, Trouble};
use crate::secrets::{self, SecretError};

/// How long the server may take. The thread that asks does nothing else meanwhile.
const WAIT: Duration = Duration::from_secs(5);
/// A refusal is followed by another attempt after this time.
pub const RETRY: Duration = Duration::from_secs(10);
/// A longer answer is no token.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// A token.
pub struct Token {
    /// For the brokers only.
    pub text: SecretString,
    /// Whom it is about, for the client library's log.
    pub principal: String,
    /// When it ends, milliseconds since the epoch.
    pub expires_ms: i64,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The client secret or the certificates cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Something that should be text is not what it should be.
    #[error("{key}: {what}")]
    Unusable {
        /// The key.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// No answer.
    #[error("token endpoint {at} does not answer: {what}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// What the client says.
        what: String,
    },
    /// The endpoint's certificate is refused, or it does not speak TLS.
    #[error("token endpoint {at}: no TLS: {what}")]
    Tls {
        /// Host and port.
        at: String,
        /// What the client says.
        what: String,
    },
    /// An answer that is no token.
    #[error("token endpoint {at} refuses: HTTP {status}{error}")]
    Refused {
        /// Host and port.
        at: String,
        /// The status.
        status: u16,
        /// OAuth's name of the error, behind a space.
        error: String,
    },
    /// What the endpoint calls a token is none.
    #[error("token endpoint {at} answers with something that is no token: {what}")]
    Malformed {
        /// Host and port.
        at: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The client library does not take it.
    #[error("the Kafka client does not take the token: {0}")]
    NotTaken(String),
}

impl TokenError {
    /// For the status and the log.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        let hint = match self {
            Self::Secret(_) | Self::Unusable { .. } => {
                "check the files and values of kafka.security.sasl.oauthbearer"
            }
            Self::Unreachable { .. } => {
                "check kafka.security.sasl.oauthbearer.token_url, and that this machine can reach it"
            }
            Self::Tls { .. } => {
                "the token endpoint's certificate must be signed by a certificate in kafka.security.sasl.oauthbearer.ca_file, or without one, by any that the system trusts, and be made for the host name in token_url"
            }
            Self::Refused { status: 400 | 401 | 403, .. } => {
                "check kafka.security.sasl.oauthbearer: client_id, client_secret_file and scope, and that the client may use the grant client_credentials"
            }
            Self::Refused { .. } => {
                "the token endpoint does not do its work: check kafka.security.sasl.oauthbearer.token_url and the server's log"
            }
            Self::Malformed { .. } | Self::NotTaken(_) => {
                "kafka.security.sasl.oauthbearer.token_url must be the token endpoint of an OAuth server that issues tokens with an end"
            }
        };
        Trouble { code: TOKEN, message: self.to_string(), hint, suspected: false }
    }
}

/// What is wrong with an address for tokens, if anything.
#[must_use]
pub fn problem_of_url(url: &str) -> Option<&'static str> {
    let Ok(uri) = url.parse::<Uri>() else { return Some("is no URL") };
    let Some(authority) = uri.authority() else { return Some("is no URL with a host") };
    if authority.as_str().contains('@') {
        return Some("must not hold a user or a password");
    }
    match uri.scheme_str() {
        Some("https") => None,
        Some("http") if is_loopback(authority.host()) => None,
        Some("http") => Some(
            "without TLS anybody on the way could read the secret: https is needed, unless the host is this machine's loopback",
        ),
        _ => Some("must begin with https://"),
    }
}

/// What is wrong with a SASL extension, if anything: RFC 7628.
#[must_use]
pub fn problem_of_extension(name: &str, value: &str) -> Option<&'static str> {
    if name.is_empty() || !name.chars().all(|character| character.is_ascii_alphabetic()) {
        return Some("is no name of an extension: it is made of letters");
    }
    if name == "auth" {
        return Some("is where the token itself goes");
    }
    let is_fine = |character: char| matches!(character, ' '..='~' | '\t' | '\r' | '\n');
    (!value.chars().all(is_fine)).then_some("has a value that is not printable text")
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<SecretString>,
    token_type: Option<String>,
    expires_in: Option<f64>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    sub: Option<String>,
}

/// Asks for a token. The secret and the certificates are read on every call.
///
/// # Errors
/// [`TokenError`].
pub fn fetch(oauth: &KafkaOauth, now_ms: i64) -> Result<Token, TokenError> {
    let secret = secrets::read(
        "kafka.security.sasl.oauthbearer.client_secret",
        oauth.client_secret_file.as_deref(),
        oauth.client_secret_env.as_deref(),
    )?
    .unwrap_or_default();
    let at = oauth
        .token_url
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.authority().map(ToString::to_string))
        .unwrap_or_default();
    let mut form = vec![("grant_type", "client_credentials")];
    if !oauth.scope.is_empty() {
        form.push(("scope", oauth.scope.as_str()));
    }
    let credentials =
        format!("{}:{}", form_encoded(&oauth.client_id), form_encoded(secret.expose_secret()));
    let credentials =
        SecretString::from(format!("Basic {}", base64::encode_block(credentials.as_bytes())));
    let asked = agent(oauth)?
        .post(&oauth.token_url)
        .header("authorization", credentials.expose_secret())
        .header("accept", "application/json")
        .send_form(form);
    let mut response = asked.map_err(|error| failed(&at, &error))?;
    let status = response.status().as_u16();
    let body = response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_string()
        .map_err(|error| failed(&at, &error))?;
    let body = SecretString::from(body);
    token_in(oauth, at, status, &body, now_ms)
}

fn agent(oauth: &KafkaOauth) -> Result<ureq::Agent, TokenError> {
    let roots = match &oauth.ca_file {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let key = "kafka.security.sasl.oauthbearer.ca_file";
            secrets::check_readable(key, path)?;
            let unusable = |what: String| TokenError::Unusable { key, what };
            let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
            let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(unusable(format!("{} holds no certificate", path.display())));
            }
            RootCerts::Specific(Arc::new(certificates))
        }
    };
    // A proxy would be told the secret where the endpoint is on this machine, and a redirect may lead anywhere.
    Ok(ureq::Agent::config_builder()
        .timeout_global(Some(WAIT))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .tls_config(TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(roots).build())
        .build()
        .into())
}

fn failed(at: &str, error: &ureq::Error) -> TokenError {
    let (at, what) = (at.to_owned(), error.to_string());
    match error {
        ureq::Error::Tls(_) | ureq::Error::NativeTls(_) => TokenError::Tls { at, what },
        _ => TokenError::Unreachable { at, what },
    }
}

fn token_in(
    oauth: &KafkaOauth,
    at: String,
    status: u16,
    body: &SecretString,
    now_ms: i64,
) -> Result<Token, TokenError> {
    // The error of a failed conversion may quote the answer; it ends here.
    let answer = serde_json::from_str::<Answer>(body.expose_secret()).ok();
    if status != 200 {
        let error = answer
            .and_then(|answer| answer.error)
            .filter(|error| error.len() <= 64 && error.chars().all(is_of_a_name))
            .map_or(String::new(), |error| format!(" {error}"));
        return Err(TokenError::Refused { at, status, error });
    }
    let malformed = |what| Err(TokenError::Malformed { at, what });
    let Some(answer) = answer else { return malformed("it is not JSON") };
    let Some(text) = answer.access_token else { return malformed("it has no access_token") };
    if answer.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return malformed("its token_type is not Bearer");
    }
    if text.expose_secret().is_empty() || !text.expose_secret().chars().all(is_of_a_token) {
        return malformed("its access_token has characters that no token has");
    }
    // An opaque token tells nothing of itself; then the answer says how long it lives.
    let claims = claims(text.expose_secret());
    let lives_ms = answer.expires_in.map(|seconds| now_ms.saturating_add(milliseconds(seconds)));
    let told_ms = claims.as_ref().and_then(|claims| claims.exp).map(milliseconds);
    let Some(expires_ms) = told_ms.or(lives_ms) else {
        return malformed("neither it nor its access_token says when it ends");
    };
    if expires_ms <= now_ms {
        return malformed(
            "its access_token has ended already (check this machine's clock as well)",
        );
    }
    let subject = claims.and_then(|claims| claims.sub).filter(|sub| !sub.contains('\0'));
    let principal = subject.unwrap_or_else(|| oauth.client_id.clone());
    Ok(Token { text, principal, expires_ms })
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_lowercase() || character == '_'
}

/// RFC 6750: what a bearer token is made of.
fn is_of_a_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~+/=".contains(character)
}

/// What a JSON web token says of itself. Nobody here verifies it: the brokers do.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let mut standard = payload.replace('-', "+").replace('_', "/");
    while standard.len() % 4 != 0 {
        standard.push('=');
    }
    serde_json::from_slice(&base64::decode_block(&standard).ok()?).ok()
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

/// RFC 6749, appendix B: how a client's name and secret are written in the header.
fn form_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn outcome(status: u16, body: &str) -> Result<Token, TokenError> {
        let oauth = KafkaOauth { client_id: "persister".to_owned(), ..KafkaOauth::default() };
        token_in(&oauth, "idp".to_owned(), status, &SecretString::from(body), NOW_MS)
    }

    fn web_token(claims: &str) -> String {
        let part = |text: &str| {
            let encoded = base64::encode_block(text.as_bytes());
            encoded.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned()
        };
        format!("{}.{}.signature", part("{}"), part(claims))
    }

    #[test]
    fn a_web_token_says_itself_when_it_ends_and_whom_it_is_about() {
        let token = web_token(r#"{"exp":1700000060,"sub":"somebody"}"#);
        let body = format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":5}}"#);
        let token = outcome(200, &body).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((token.expires_ms, token.principal.as_str()), (NOW_MS + 60_000, "somebody"));
    }

    #[test]
    fn of_an_opaque_token_the_answer_says_it() {
        let token = outcome(200, r#"{"access_token":"opaque","expires_in":30}"#);
        let token = token.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((token.expires_ms, token.principal.as_str()), (NOW_MS + 30_000, "persister"));
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        for (status, body, what) in [
            (200, "<html>canary</html>", "not JSON"),
            (200, r#"{"other":"canary"}"#, "no access_token"),
            (200, r#"{"access_token":"canary","token_type":"mac","expires_in":9}"#, "not Bearer"),
            (200, r#"{"access_token":"canary canary","expires_in":9}"#, "characters"),
            (200, r#"{"access_token":"","expires_in":9}"#, "characters"),
            (200, r#"{"access_token":"canary"}"#, "when it ends"),
            (200, r#"{"access_token":"canary","expires_in":-1}"#, "ended already"),
            (
                401,
                r#"{"error":"invalid_client","error_description":"canary"}"#,
                "401 invalid_client",
            ),
            (400, r#"{"error":"canary Canary"}"#, "HTTP 400"),
            (500, "canary", "HTTP 500"),
        ] {
            let error = outcome(status, body).err().map(|error| error.trouble()).unwrap();
            assert!(error.message.contains(what), "{body}: {}", error.message);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn only_https_or_this_machine_is_told_the_secret() {
        for url in [
            "https://idp.example/token",
            "https://10.0.0.1:8443/token?version=1",
            "http://localhost:8080/token",
            "http://127.0.0.1/token",
            "http://[::1]:8080/token",
        ] {
            assert_eq!(problem_of_url(url), None, "{url}");
        }
        for url in [
            "http://idp.example/token",
            "http://10.0.0.1/token",
            "http://localhost.example/token",
            "http://127.0.0.1@idp.example/token",
            "https://user:password@idp.example/token",
            "ftp://localhost/token",
            "idp.example/token",
            "/token",
            "",
        ] {
            assert!(problem_of_url(url).is_some(), "{url}");
        }
    }

    #[test]
    fn extensions_are_words_with_text() {
        assert_eq!(problem_of_extension("logicalCluster", "lkc-1"), None);
        for (name, value) in [("auth", "x"), ("", "x"), ("a b", "x"), ("a", "\u{1}")] {
            assert!(problem_of_extension(name, value).is_some(), "{name}={value}");
        }
    }

    #[test]
    fn credentials_are_encoded_as_in_a_form() {
        assert_eq!(form_encoded("a:b c%"), "a%3Ab+c%25");
        assert_eq!(form_encoded("plain-._*"), "plain-._*");
    }
}
