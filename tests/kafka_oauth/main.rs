//! SASL OAUTHBEARER between the real program, a real Kafka that verifies tokens, and an OAuth server that gives them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod endpoint;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::tls::{Certificates, STORE_PASSWORD};
use harness::{Kafka, Process, http};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use tempfile::TempDir;

use endpoint::{AUDIENCE, CLIENT, Endpoint, ISSUER, LIVES_S, SCOPE, SECRET};

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const TOPIC: &str = "alarms";
const GROUP: &str = "1_alarms";
const MESSAGES: usize = 100;
/// Every secret holds this word, and nothing else does.
const CANARY: &str = "canary";
/// How every token of ours begins.
const TOKEN_BEGIN: &str = "eyJ";
/// How long a refused persister is watched, and most lines that it may log in this time.
const WATCHED: Duration = Duration::from_secs(12);
const LINES_MAX: usize = 20;

struct Site {
    kafka: Kafka,
    certificates: Certificates,
    endpoint: Endpoint,
    dir: TempDir,
}

impl Site {
    fn start() -> Self {
        let certificates = Certificates::new().unwrap();
        let store = certificates.signed("broker", "localhost").unwrap();
        let endpoint = Endpoint::start(&store, STORE_PASSWORD);
        certificates.secret("client-secret", &format!("{SECRET}\n")).unwrap();
        certificates.secret("wrong-secret", "canary-of-nobody").unwrap();
        let keys = certificates.secret("keys.json", &endpoint.key_set()).unwrap();
        let keys = format!("file://{}", text(&keys));
        let users = "listener.name.users";
        let validator =
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler";
        let module =
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;";
        let kafka = Kafka::builder()
            .system_property("org.apache.kafka.sasl.oauthbearer.allowed.urls", &keys)
            .listener("USERS", "SASL_SSL")
            .property(&format!("{users}.ssl.keystore.type"), "PKCS12")
            .property(&format!("{users}.ssl.keystore.location"), &text(&store))
            .property(&format!("{users}.ssl.keystore.password"), STORE_PASSWORD)
            .property(&format!("{users}.ssl.key.password"), STORE_PASSWORD)
            .property(&format!("{users}.sasl.enabled.mechanisms"), "OAUTHBEARER")
            .property(&format!("{users}.oauthbearer.sasl.jaas.config"), module)
            .property(&format!("{users}.oauthbearer.sasl.server.callback.handler.class"), validator)
            // A connection lives as long as its token, unless the client shows a new one.
            .property(&format!("{users}.oauthbearer.connections.max.reauth.ms"), "600000")
            .property("sasl.oauthbearer.jwks.endpoint.url", &keys)
            .property("sasl.oauthbearer.expected.audience", AUDIENCE)
            .property("sasl.oauthbearer.expected.issuer", ISSUER)
            .start()
            .unwrap();
        kafka.create_topic(TOPIC, 2).unwrap();
        Self { kafka, certificates, endpoint, dir: TempDir::with_prefix("persister-").unwrap() }
    }

    fn secret(&self, name: &str) -> String {
        text(&self.certificates.ca().with_file_name(name))
    }

    fn persister(&self, name: &str, oauth: &[(&str, &str)]) -> Persister {
        let port = harness::free_port().unwrap();
        let ca = text(&self.certificates.ca());
        let mut environment: Vec<(String, String)> = Vec::new();
        let mut set = |key: &str, value: &str| {
            let key = format!("MONASCA_PERSISTER__{key}");
            environment.retain(|(old, _)| *old != key);
            environment.push((key, value.to_owned()));
        };
        for (key, value) in [
            ("DATA_DIR", text(&self.dir.path().join(name)).as_str()),
            ("KAFKA__BOOTSTRAP_SERVERS", self.kafka.listener("USERS").unwrap()),
            ("KAFKA__PROPERTIES__BROKER_ADDRESS_FAMILY", "v4"),
            ("METRICS__ENABLED", "false"),
            ("ALARMS__TOPIC", TOPIC),
            ("ALARMS__GROUP_ID", GROUP),
            ("STORE__KIND", "sled"),
            ("HTTP__BIND", &format!("127.0.0.1:{port}")),
            ("INSTANCE", name),
            ("KAFKA__SECURITY__PROTOCOL", "tls"),
            ("KAFKA__SECURITY__TLS__CA_FILE", &ca),
            ("KAFKA__SECURITY__SASL__MECHANISM", "oauthbearer"),
        ] {
            set(key, value);
        }
        for (key, value) in [
            ("TOKEN_URL", self.endpoint.url("token").as_str()),
            ("CLIENT_ID", CLIENT),
            ("CLIENT_SECRET_FILE", &self.secret("client-secret")),
            ("SCOPE", SCOPE),
            ("CA_FILE", &ca),
        ]
        .into_iter()
        .chain(oauth.iter().copied())
        {
            set(&format!("KAFKA__SECURITY__SASL__OAUTHBEARER__{key}"), value);
        }
        // Away from what this machine is set to; a proxy would be told the secret.
        environment.push(("https_proxy".to_owned(), "http://127.0.0.1:9".to_owned()));
        let log = self.dir.path().join(format!("{name}.log"));
        let mut builder = ProcessBuilder::new(PROGRAM, log).args(["run"]);
        for (key, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
            builder = builder.env(key, value);
        }
        let process = builder.start().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        Persister { name: name.to_owned(), process, url, begun: Instant::now(), environment }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn send(bootstrap: &str, alarm: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    for number in 0..MESSAGES {
        let payload = format!(
            r#"{{"alarm-transitioned":{{"tenantId":"t","alarmId":"{alarm}-{number}","metrics":[],"oldState":"OK","newState":"ALARM","stateChangeReason":"","subAlarms":[],"timestamp":{now_ms}}}}}"#
        );
        let record = BaseRecord::<(), _>::to(TOPIC).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

struct Persister {
    name: String,
    process: Process,
    url: String,
    begun: Instant,
    environment: Vec<(String, String)>,
}

impl Persister {
    fn get(&self, path: &str) -> String {
        http::get(&format!("{}{path}", self.url)).map_or_else(|why| why.to_string(), |(_, it)| it)
    }

    fn wait_for(&self, path: &str, what: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let body = self.get(path);
            if body.contains(what) {
                return body;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {path} does not say {what}: {body}\n{}",
                self.name,
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until its first reason to be unwell has this code, this in its hint and this in its message. A server that
    /// is slow at first is another reason than the one in question.
    fn wait_for_reason(&self, code: &str, hint: &str, what: &str) -> (Value, Value) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let status: Value =
                serde_json::from_str(&self.get("/api/v1/status")).unwrap_or_default();
            let reason = &status["reasons"][0];
            let has =
                |key: &str, text: &str| reason[key].as_str().is_some_and(|it| it.contains(text));
            if has("code", code) && has("hint", hint) && has("message", what) {
                return (reason.clone(), status);
            }
            let (name, tail) = (&self.name, self.process.log_tail());
            assert!(
                Instant::now() < deadline,
                "{name}: not {code}, {hint}, {what}: {status}\n{tail}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn command(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .envs(self.environment.iter().filter(|(_, value)| !value.is_empty()).cloned())
            .output()
            .unwrap();
        (output.status.success(), everything(&output))
    }

    /// Nothing that it says, anywhere, holds the secret or a token.
    fn shows_no_secret(&self) {
        let mut said = self.process.log();
        for path in ["/healthcheck", "/readyz", "/metrics", "/api/v1/status", "/api/v1/backlog"] {
            said.push_str(&self.get(path));
        }
        let (printed, config) = self.command(&["config", "print"]);
        assert!(printed, "{config}");
        said.push_str(&config);
        for secret in [CANARY, TOKEN_BEGIN] {
            assert!(!said.contains(secret), "{} shows {secret}:\n{said}", self.name);
        }
    }

    fn stop(mut self) {
        self.process.terminate();
        let ended = self.process.wait(Duration::from_secs(60));
        assert_eq!(ended.and_then(|status| status.code()), Some(0), "{}", self.process.log_tail());
    }
}

fn everything(output: &Output) -> String {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn tokens_are_fetched_and_renewed_and_every_other_one_is_refused_with_its_reason() {
    let site = Site::start();
    send(&site.kafka.bootstrap(), "before");
    let renewed = tokens_are_renewed_while_messages_arrive(&site);
    every_way_to_fail_is_named(&site);
    renewed.stop();
}

/// Longer than several tokens live, so that consumer and ledger must show the brokers new ones.
fn tokens_are_renewed_while_messages_arrive(site: &Site) -> Persister {
    let persister = site.persister("renewed", &[]);
    let delivered = |rows: usize| format!(r#""rows_written":{rows}"#);
    persister.wait_for("/api/v1/status", &delivered(MESSAGES), Duration::from_secs(60));
    let lives = Duration::from_secs(u64::try_from(LIVES_S).unwrap());
    std::thread::sleep(lives * 3 / 2);
    let given = site.endpoint.given();
    // Consumer and ledger with two tokens each, at the least.
    assert!(given >= 4, "{given} tokens only");
    send(&site.kafka.bootstrap(), "after");
    persister.wait_for("/api/v1/status", &delivered(2 * MESSAGES), Duration::from_secs(60));
    persister.wait_for("/api/v1/status", r#""state":"ok""#, Duration::from_secs(30));
    // Committed by the group, which the ledger had to say first: both clients are let in.
    let deadline = Instant::now() + Duration::from_secs(60);
    while site.kafka.committed(GROUP, TOPIC).unwrap() != site.kafka.end_offsets(TOPIC).unwrap() {
        assert!(Instant::now() < deadline, "not committed:\n{}", persister.process.log_tail());
        std::thread::sleep(Duration::from_millis(200));
    }
    let (shown, ledgers) = persister.command(&["offsets", "show", "--json"]);
    assert!(shown && ledgers.contains("renewed"), "{ledgers}");
    let said = persister.process.log();
    assert!(!said.contains("KAFKA_TOKEN") && !said.contains("KAFKA_AUTH"), "{said}");
    persister.shows_no_secret();
    eprintln!("renewed: {} messages delivered, {given} tokens given", 2 * MESSAGES);
    persister
}

fn every_way_to_fail_is_named(site: &Site) {
    let at = |path: &str| site.endpoint.url(path);
    let (nobody, other_ca) = (harness::free_port().unwrap(), text(&site.certificates.other_ca()));
    let wrong = site.secret("wrong-secret");
    // Name, what is set differently, the code, a word of the hint and one of the message.
    let cases = [
        (
            "unreachable",
            ("TOKEN_URL", format!("https://localhost:{nobody}/token")),
            ("KAFKA_TOKEN", "can reach it", "does not answer"),
        ),
        ("untrusted", ("CA_FILE", other_ca), ("KAFKA_TOKEN", "oauthbearer.ca_file", "no TLS")),
        (
            "other-name",
            ("TOKEN_URL", at("token").replace("localhost", "127.0.0.1")),
            ("KAFKA_TOKEN", "made for the host name", "no TLS"),
        ),
        (
            "wrong-secret",
            ("CLIENT_SECRET_FILE", wrong),
            ("KAFKA_TOKEN", "client_secret_file", "401 invalid_client"),
        ),
        (
            "wrong-scope",
            ("SCOPE", "other".to_owned()),
            ("KAFKA_TOKEN", "scope", "400 invalid_request"),
        ),
        ("page", ("TOKEN_URL", at("page")), ("KAFKA_TOKEN", "token endpoint", "not JSON")),
        ("moved", ("TOKEN_URL", at("moved")), ("KAFKA_TOKEN", "token endpoint", "302")),
        ("broken", ("TOKEN_URL", at("broken")), ("KAFKA_TOKEN", "server's log", "500")),
        ("ended", ("TOKEN_URL", at("ended")), ("KAFKA_TOKEN", "token endpoint", "ended already")),
        ("forged", ("TOKEN_URL", at("forged")), ("KAFKA_AUTH", "issuer", "invalid_token")),
        (
            "for-others",
            ("TOKEN_URL", site.endpoint.plain_url("for-others")),
            ("KAFKA_AUTH", "issuer", "invalid_token"),
        ),
    ];
    let persisters: Vec<Persister> = cases
        .iter()
        .map(|(name, (key, value), _)| site.persister(name, &[(key, value.as_str())]))
        .collect();
    for (persister, (name, _, (code, hint, what))) in persisters.iter().zip(&cases) {
        let (reason, status) = persister.wait_for_reason(code, hint, what);
        let message = reason["message"].as_str().unwrap();
        let health = persister.get("/healthcheck");
        assert!(health.contains(code) && health.contains(hint), "{name}: {health}");
        assert!(persister.get("/readyz").contains(code), "{name}: {}", persister.get("/readyz"));
        if let Some(rest) = WATCHED.checked_sub(persister.begun.elapsed()) {
            std::thread::sleep(rest);
        }
        assert_eq!(status["pipelines"]["alarms"]["intake"]["messages"], 0, "{name}");
        let log = persister.process.log();
        assert!(log.contains(code) && log.lines().count() <= LINES_MAX, "{name}:\n{log}");
        // The command line says it as well, and does not wait for ever.
        let (shown, said) = persister.command(&["offsets", "show"]);
        assert!(!shown && !said.contains(CANARY), "{name}: {said}");
        persister.shows_no_secret();
        eprintln!("{name}: {code}: {message}; {}", said.lines().last().unwrap_or_default());
    }
    for persister in persisters {
        persister.stop();
    }
}

#[test]
fn what_would_give_the_secret_away_ends_the_program_with_78_and_names_the_key() {
    let complete = [
        ("PROTOCOL", "tls"),
        ("SASL__MECHANISM", "oauthbearer"),
        ("SASL__OAUTHBEARER__TOKEN_URL", "https://idp.example/token"),
        ("SASL__OAUTHBEARER__CLIENT_ID", CLIENT),
        ("SASL__OAUTHBEARER__CLIENT_SECRET_ENV", "CLIENT_SECRET"),
    ];
    let oauth = "kafka.security.sasl.oauthbearer";
    for (key, value, expected) in [
        ("PROTOCOL", "tls", None),
        (
            "PROTOCOL",
            "plaintext",
            Some("kafka.security.sasl.mechanism: oauthbearer without TLS".to_owned()),
        ),
        (
            "SASL__OAUTHBEARER__TOKEN_URL",
            "http://idp.example/token",
            Some(format!("{oauth}.token_url: without TLS")),
        ),
        (
            "SASL__OAUTHBEARER__TOKEN_URL",
            "https://user:canary@idp.example/token",
            Some(format!("{oauth}.token_url: must not hold")),
        ),
        ("SASL__OAUTHBEARER__CLIENT_ID", "", Some(format!("{oauth}.client_id"))),
        (
            "SASL__OAUTHBEARER__CLIENT_SECRET_FILE",
            "/run/secret",
            Some("keep one of the two".to_owned()),
        ),
        ("SASL__USERNAME", "persister", Some("kafka.security.sasl.username".to_owned())),
        ("SASL__MECHANISM", "scram-sha-512", Some("is of no use".to_owned())),
    ] {
        let mut command = Command::new(PROGRAM);
        command.arg("check-config").env("MONASCA_PERSISTER__STORE__KIND", "sled");
        for (set, as_usual) in complete.iter().chain([&(key, value)]) {
            let as_usual = if *set == key { value } else { as_usual };
            command.env(format!("MONASCA_PERSISTER__KAFKA__SECURITY__{set}"), as_usual);
        }
        let output = command.output().unwrap();
        let said = everything(&output);
        assert_eq!(output.status.code(), Some(if expected.is_some() { 78 } else { 0 }), "{said}");
        assert!(said.contains(&expected.unwrap_or_default()), "{said}");
        assert!(!said.contains(CANARY), "{said}");
    }
}
