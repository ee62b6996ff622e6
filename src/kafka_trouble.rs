//! Why a connection to the brokers cannot be had, when the reason is TLS or SASL: what librdkafka says in its many
//! ways becomes a code and a hint what to check. Plain functions of text; knows no client and no clock.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// TLS is not agreed on: certificates, names, or one side does not speak it.
pub const TLS: &str = "KAFKA_TLS";
/// The brokers do not believe who we are.
pub const AUTH: &str = "KAFKA_AUTH";
/// The members of the group share its partitions in another way.
pub const GROUP_PROTOCOL: &str = "KAFKA_GROUP_PROTOCOL";
/// The group refuses us for another reason.
pub const GROUP: &str = "KAFKA_GROUP";
/// There is no token to show the brokers.
pub const TOKEN: &str = "KAFKA_TOKEN";

/// How often one trouble is said while it lasts.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Troubles remembered; beyond that the oldest are forgotten and may be said again.
const SAID_MAX: usize = 64;

/// What kind of error the client library calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Of TLS.
    Ssl,
    /// Of SASL.
    Authentication,
    /// Any other: the text decides.
    Other,
}

/// A connection, or a membership in the group, that only an operator can repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// [`TLS`], [`AUTH`], [`TOKEN`], [`GROUP_PROTOCOL`] or [`GROUP`].
    pub code: &'static str,
    /// What the client library said, without what differs from attempt to attempt.
    pub message: String,
    /// What to check.
    pub hint: &'static str,
    /// A listener hung up without a word, as one does that was addressed in the wrong way, but also a proxy in front of
    /// nobody. Believed only of a client that never was connected.
    #[serde(skip)]
    pub suspected: bool,
}

impl Trouble {
    /// The brokers answer, and the group refuses us.
    #[must_use]
    pub fn is_of_group(&self) -> bool {
        matches!(self.code, GROUP_PROTOCOL | GROUP)
    }
}

/// Texts, in small letters, what they mean, and what to check. The first that matches counts.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "not valid in current sasl state",
        AUTH,
        "the brokers want a new token within a second of the last: tokens must live longer, half a minute at the least",
    ),
    (
        "mechanism handshake failed",
        AUTH,
        "the listener does not offer this mechanism: compare kafka.security.sasl.mechanism with those that it supports",
    ),
    (
        "invalid_token",
        AUTH,
        "the brokers refuse the token: its issuer, audience, scope and key must be those that they expect (sasl.oauthbearer.expected.issuer, .audience, .jwks.endpoint.url), and their clocks must agree",
    ),
    (
        "sasl authentication error",
        AUTH,
        "check kafka.security.sasl: username, password, and that the brokers know this user for this mechanism",
    ),
    (
        "certificate verify failed",
        TLS,
        "the broker's certificate is refused: it must be signed by a certificate in kafka.security.tls.ca_file, be made for the host name in kafka.bootstrap_servers and in the brokers' advertised.listeners, and be valid today (check this machine's clock as well)",
    ),
    (
        "wrong version number",
        TLS,
        "the port does not answer in TLS: use the port of a TLS listener in kafka.bootstrap_servers",
    ),
    (
        "packet length too long",
        TLS,
        "the port does not answer in TLS: use the port of a TLS listener in kafka.bootstrap_servers",
    ),
    // 0x15 0x03 0x03, the begin of a TLS alert, read as the length of an answer.
    (
        "invalid response size 35251",
        TLS,
        "the port expects TLS: set kafka.security.protocol to tls, or use the port of another listener",
    ),
    (
        "certificate required",
        TLS,
        "the broker asks for a client certificate: set kafka.security.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "alert bad certificate",
        TLS,
        "the broker asks for a client certificate, or refuses ours: set kafka.security.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "alert unknown ca",
        TLS,
        "the broker does not know who signed our certificate: the CA of kafka.security.tls.certificate_file must be in its trust store",
    ),
    (
        "alert certificate unknown",
        TLS,
        "the broker refuses our certificate: its CA must be in the broker's trust store",
    ),
    (
        "alert certificate expired",
        TLS,
        "our certificate has expired: renew kafka.security.tls.certificate_file or keystore_file",
    ),
    (
        "protocol version",
        TLS,
        "broker and client have no version of TLS in common: the broker must offer TLS 1.2 or 1.3",
    ),
    (
        "handshake failure",
        TLS,
        "broker and client have nothing in common: check the broker's ssl.enabled.protocols and ssl.cipher.suites, and whether it asks for a client certificate",
    ),
    (
        "client ssl authentication might be required",
        TLS,
        "the broker asks for a client certificate: set kafka.security.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "ssl handshake failed",
        TLS,
        "check kafka.security.tls and the port in kafka.bootstrap_servers; the broker's log says more",
    ),
];

const USE_TLS: &str = "the listener hangs up at the first request, as one does that expects TLS: set kafka.security.protocol to tls, or use the port of another listener in kafka.bootstrap_servers";
const NO_TLS: &str = "the listener hangs up during the handshake: the port does not answer in TLS; use the port of a TLS listener in kafka.bootstrap_servers";
const USE_SASL: &str = "the listener hangs up at once, as one does that expects a user: set kafka.security.sasl, or use the port of another listener in kafka.bootstrap_servers";

/// What a listener means that hangs up: it depends on how far we were, and on how we spoke.
fn hung_up(text: &str) -> Option<(&'static str, &'static str)> {
    if !text.contains("disconnected") {
        return None;
    }
    let (in_tls, as_user) = (text.contains("ssl://"), text.contains("sasl_"));
    if text.contains("ssl handshake failed") {
        Some((TLS, NO_TLS))
    } else if text.contains("in state apiversion_query") && !in_tls {
        Some((TLS, USE_TLS))
    } else if text.contains("in state up") && !as_user {
        Some((AUTH, USE_SASL))
    } else {
        None
    }
}

/// What is the matter, if it is TLS or SASL.
#[must_use]
pub fn classify(class: Class, text: &str) -> Option<Trouble> {
    let small = text.to_lowercase();
    // Nobody refused anything: the connection broke.
    if small.contains("mechanism handshake failed: local:") {
        return None;
    }
    let known = KNOWN
        .iter()
        .find(|(pattern, ..)| small.contains(pattern))
        .map(|(_, code, hint)| (*code, *hint));
    let hung_up = hung_up(&small);
    let (code, hint) = match (hung_up.or(known), class) {
        (Some(known), _) => known,
        (None, Class::Authentication) => (
            AUTH,
            "check kafka.security.sasl and the rights of its user; the broker's log says more",
        ),
        (None, Class::Ssl) => (TLS, "check kafka.security.tls; the broker's log says more"),
        (None, Class::Other) => return None,
    };
    let message = without_what_changes(text).to_owned();
    Some(Trouble { code, message, hint, suspected: hung_up.is_some() })
}

/// Cuts ` (after 12ms in state CONNECT, 3 identical error(s) suppressed)`, the thread that log lines begin with, and
/// advice that names librdkafka's properties instead of our keys.
fn without_what_changes(text: &str) -> &str {
    let text = text.rfind(" (after ").and_then(|at| text.get(..at)).unwrap_or(text);
    let text = text.split(", verify that ssl.").next().unwrap_or(text);
    match text.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, rest)) => rest,
        None => text,
    }
}

/// Decides whether a trouble is said again: each once a minute, however often a client tries.
#[derive(Debug, Default)]
pub struct SaidTroubles {
    /// By broker and hint: the client library has several texts for one reason.
    last: BTreeMap<(String, &'static str), (Duration, Trouble)>,
}

impl SaidTroubles {
    /// The trouble as `explain` makes it, and whether it is new or was said a minute ago; it counts as said then. What
    /// was said just now is not explained again.
    pub fn take(
        &mut self,
        trouble: Trouble,
        now: Duration,
        explain: impl FnOnce(Trouble) -> Trouble,
    ) -> (Trouble, bool) {
        self.last.retain(|_, (said, _)| now.saturating_sub(*said) < SAID_EVERY);
        let broker = trouble.message.split(": ").next().unwrap_or_default();
        let key = (broker.to_owned(), trouble.hint);
        if let Some((_, explained)) = self.last.get(&key) {
            return (explained.clone(), false);
        }
        if self.last.len() >= SAID_MAX {
            let oldest =
                self.last.iter().min_by_key(|(_, (said, _))| *said).map(|(key, _)| key.clone());
            oldest.map(|key| self.last.remove(&key));
        }
        let explained = explain(trouble);
        self.last.insert(key, (now, explained.clone()));
        (explained, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_failing_has_its_code_and_its_hint() {
        for (class, text, code, hint) in [
            (
                Class::Ssl,
                "ssl://kafka:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified (after 8ms in state SSL_HANDSHAKE)",
                TLS,
                "ca_file",
            ),
            (
                Class::Other,
                "ssl://kafka:9092/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (after 1ms in state SSL_HANDSHAKE)",
                TLS,
                "does not answer in TLS",
            ),
            (
                Class::Other,
                "kafka:9093/bootstrap: Receive failed: Invalid response size 352518912 (0..100000000): increase receive.message.max.bytes",
                TLS,
                "expects TLS",
            ),
            (
                Class::Other,
                "kafka:9093/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 145ms in state APIVERSION_QUERY)",
                TLS,
                "expects TLS",
            ),
            (
                Class::Other,
                "ssl://kafka:9094/bootstrap: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42",
                TLS,
                "client certificate",
            ),
            (
                Class::Other,
                "ssl://kafka:9094/bootstrap: Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116",
                TLS,
                "client certificate",
            ),
            (
                Class::Authentication,
                "sasl_ssl://kafka:9095/bootstrap: SASL authentication error: Authentication failed during authentication due to invalid credentials with SASL mechanism SCRAM-SHA-256",
                AUTH,
                "password",
            ),
            (
                Class::Authentication,
                "sasl_ssl://kafka:9095/bootstrap: SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: SCRAM-SHA-512",
                AUTH,
                "sasl.mechanism",
            ),
            (
                Class::Authentication,
                r#"sasl_ssl://kafka:9095/bootstrap: SASL authentication error: {"status":"invalid_token"}"#,
                AUTH,
                "refuse the token",
            ),
            (
                Class::Other,
                "ssl://kafka:9095/bootstrap: Disconnected: connection closed by peer (after 2ms in state UP)",
                AUTH,
                "kafka.security.sasl",
            ),
            (Class::Ssl, "something new", TLS, "kafka.security.tls"),
            (Class::Authentication, "something new", AUTH, "kafka.security.sasl"),
        ] {
            let found = classify(class, text).unwrap();
            assert_eq!(found.code, code, "{text}");
            assert!(found.hint.contains(hint), "{text}: {}", found.hint);
        }
    }

    #[test]
    fn an_outage_is_no_trouble_of_this_kind() {
        for text in [
            "kafka:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
            "1/1 brokers are down",
            "sasl_ssl://kafka:9092/1: Disconnected (after 65000ms in state UP)",
            "ssl://kafka:9092/1: Disconnected (after 5ms in state APIVERSION_QUERY)",
            "kafka:9092/bootstrap: Failed to resolve 'kafka:9092': Name or service not known",
            "sasl_ssl://kafka:9092/1: SASL OAUTHBEARER mechanism handshake failed: Local: Broker transport failure",
        ] {
            assert_eq!(classify(Class::Other, text), None, "{text}");
        }
    }

    #[test]
    fn a_listener_that_hangs_up_is_only_suspected() {
        for (text, suspected) in [
            ("kafka:9093/1: Disconnected (after 3ms in state APIVERSION_QUERY)", true),
            (
                "ssl://kafka:9092/1: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
                true,
            ),
            ("kafka:9095/1: Disconnected (after 2ms in state UP)", true),
            ("ssl://kafka:9092/1: SSL handshake failed: wrong version number", false),
        ] {
            let found = classify(Class::Other, text).unwrap();
            assert_eq!(found.suspected, suspected, "{text}");
        }
    }

    #[test]
    fn a_log_line_and_the_error_of_the_same_reason_are_one_trouble() {
        let text = "ssl://kafka:9093/1: SSL handshake failed: x";
        let line = format!("[thrd:ssl://kafka:9093/1]: {text} (after 3ms in state CONNECT)");
        let found = [text, &line].map(|text| classify(Class::Ssl, text).unwrap());
        assert_eq!(found[0], found[1]);
    }

    #[test]
    fn a_trouble_is_said_once_a_minute_whatever_its_timing() {
        let mut said = SaidTroubles::default();
        let at = |after_ms: u32| {
            let text = format!("SSL handshake failed: x (after {after_ms}ms in state CONNECT)");
            classify(Class::Ssl, &text).unwrap()
        };
        assert!(said.take(at(1), Duration::from_secs(1), |trouble| trouble).1);
        assert!(!said.take(at(7), Duration::from_secs(2), |trouble| trouble).1);
        assert!(!said.take(at(9), Duration::from_secs(60), |trouble| trouble).1);
        assert!(said.take(at(3), Duration::from_secs(61), |trouble| trouble).1);
        let other = classify(Class::Ssl, "other:9093/bootstrap: SSL handshake failed: x").unwrap();
        assert!(said.take(other, Duration::from_secs(62), |trouble| trouble).1);
    }

    #[test]
    fn memory_for_what_was_said_is_bounded() {
        let mut said = SaidTroubles::default();
        for number in 0..1000 {
            let trouble = classify(Class::Ssl, &format!("broker-{number}: text")).unwrap();
            assert!(said.take(trouble, Duration::from_millis(number), |trouble| trouble).1);
        }
        assert_eq!(said.last.len(), SAID_MAX);
    }
}
