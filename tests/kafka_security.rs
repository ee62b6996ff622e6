//! TLS and SASL between the real program and a real Kafka: what is set up right works, and what is not is named.
//!
//! One broker with a listener for each case serves all tests, and they may run side by side.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::tls::{Certificates, STORE_PASSWORD};
use harness::{Kafka, Process, http};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const TOPIC: &str = "metrics";
const MESSAGES: u64 = 200;
/// No password may be seen anywhere, so each holds this word.
const CANARY: &str = "canary";
const PASSWORD: &str = "canary-of-the-user";
const WRONG_PASSWORD: &str = "canary-of-nobody";
/// How long a broken persister is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// Most lines that it may log in this time, those of start and stop included.
const LINES_MAX: usize = 15;

/// A broker, its certificates and 200 messages.
struct Site {
    kafka: Kafka,
    certificates: Certificates,
    dir: TempDir,
}

/// The broker that all tests running now share.
fn site() -> Arc<Site> {
    static SHARED: Mutex<Weak<Site>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(site) = shared.upgrade() {
        return site;
    }
    let site = Arc::new(Site::start());
    *shared = Arc::downgrade(&site);
    site
}

impl Site {
    fn start() -> Self {
        let certificates = Certificates::new().unwrap();
        let broker = certificates.signed("broker", "localhost").unwrap();
        let elsewhere = certificates.signed("elsewhere", "elsewhere.invalid").unwrap();
        let expired = certificates.expired("expired", "localhost").unwrap();
        certificates.signed("client", "client.invalid").unwrap();
        let mut builder = Kafka::builder();
        for (name, protocol, store) in [
            ("TLS", "SSL", &broker),
            ("MUTUAL", "SSL", &broker),
            ("ELSEWHERE", "SSL", &elsewhere),
            ("EXPIRED", "SSL", &expired),
            ("USERS", "SASL_SSL", &broker),
            ("ONE_MECHANISM", "SASL_SSL", &broker),
        ] {
            let property = |rest: &str| format!("listener.name.{}.{rest}", name.to_lowercase());
            builder = builder
                .listener(name, protocol)
                .property(&property("ssl.keystore.type"), "PKCS12")
                .property(&property("ssl.keystore.location"), &store.to_string_lossy())
                .property(&property("ssl.keystore.password"), STORE_PASSWORD)
                .property(&property("ssl.key.password"), STORE_PASSWORD);
        }
        let trust = certificates.trust_store();
        let plain = format!(
            r#"org.apache.kafka.common.security.plain.PlainLoginModule required user_persister="{PASSWORD}";"#
        );
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let users = "listener.name.users";
        let kafka = builder
            .property("listener.name.mutual.ssl.client.auth", "required")
            .property("listener.name.mutual.ssl.truststore.type", "PKCS12")
            .property("listener.name.mutual.ssl.truststore.location", &trust.to_string_lossy())
            .property("listener.name.mutual.ssl.truststore.password", STORE_PASSWORD)
            .property(
                &format!("{users}.sasl.enabled.mechanisms"),
                "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            )
            .property(&format!("{users}.plain.sasl.jaas.config"), &plain)
            .property(&format!("{users}.scram-sha-256.sasl.jaas.config"), scram)
            .property(&format!("{users}.scram-sha-512.sasl.jaas.config"), scram)
            .property("listener.name.one_mechanism.sasl.enabled.mechanisms", "SCRAM-SHA-512")
            .property("listener.name.one_mechanism.scram-sha-512.sasl.jaas.config", scram)
            .scram_user("SCRAM-SHA-256", "persister", PASSWORD)
            .scram_user("SCRAM-SHA-512", "persister", PASSWORD)
            .start()
            .unwrap();
        kafka.create_topic(TOPIC, 2).unwrap();
        send(&kafka.bootstrap());
        certificates.secret("password", &format!("{PASSWORD}\n")).unwrap();
        certificates.secret("wrong-password", WRONG_PASSWORD).unwrap();
        certificates.secret("store-password", STORE_PASSWORD).unwrap();
        Self { kafka, certificates, dir: TempDir::with_prefix("persister-").unwrap() }
    }

    fn secret(&self, name: &str) -> String {
        text(&self.certificates.ca().with_file_name(name))
    }

    /// Settings of a client that trusts this broker's certificates.
    fn trusting(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let ca = text(&self.certificates.ca());
        let mut settings = vec![own("PROTOCOL", "tls"), own("TLS__CA_FILE", &ca)];
        settings.extend(more.iter().map(|(key, value)| own(key, value)));
        settings
    }

    fn user(&self, mechanism: &str, password: &str) -> Vec<(String, String)> {
        let password = self.secret(password);
        self.trusting(&[
            ("SASL__MECHANISM", mechanism),
            ("SASL__USERNAME", "persister"),
            ("SASL__PASSWORD_FILE", &password),
        ])
    }

    fn at(&self, listener: &str) -> String {
        self.kafka.listener(listener).map_or_else(|| self.kafka.bootstrap(), str::to_owned)
    }
}

fn own(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn send(bootstrap: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    let now_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    for number in 0..MESSAGES {
        let payload = format!(
            r#"{{"metric":{{"name":"m{number}","dimensions":{{}},"timestamp":{now_ms},"value":1.5}},"meta":{{"tenantId":"t","region":"r"}},"creation_time":1}}"#
        );
        let record = BaseRecord::<(), _>::to(TOPIC).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// A persister with the embedded store, and what it was given.
struct Persister {
    name: String,
    process: Process,
    url: String,
    begun: Instant,
    environment: Vec<(String, String)>,
}

impl Persister {
    fn start(site: &Site, name: &str, listener: &str, security: &[(String, String)]) -> Self {
        let port = harness::free_port().unwrap();
        let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
        let mut environment = vec![
            set("DATA_DIR", &text(&site.dir.path().join(name))),
            set("KAFKA__BOOTSTRAP_SERVERS", &site.at(listener)),
            // The listeners have one address, and `localhost` may have two.
            set("KAFKA__PROPERTIES__BROKER_ADDRESS_FAMILY", "v4"),
            set("METRICS__TOPIC", TOPIC),
            set("METRICS__GROUP_ID", name),
            set("ALARMS__ENABLED", "false"),
            set("STORE__KIND", "sled"),
            set("HTTP__BIND", &format!("127.0.0.1:{port}")),
        ];
        environment.extend(
            security.iter().map(|(key, value)| set(&format!("KAFKA__SECURITY__{key}"), value)),
        );
        let mut builder =
            ProcessBuilder::new(PROGRAM, site.dir.path().join(format!("{name}.log"))).args(["run"]);
        for (key, value) in &environment {
            builder = builder.env(key, value);
        }
        let process = builder.start().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        Self { name: name.to_owned(), process, url, begun: Instant::now(), environment }
    }

    fn get(&self, path: &str) -> (u16, String) {
        http::get(&format!("{}{path}", self.url)).unwrap_or_else(|error| (0, error.to_string()))
    }

    /// Waits until the body of `path` contains `what`.
    fn wait_for(&self, path: &str, what: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let (_, body) = self.get(path);
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

    /// Nothing that it says, anywhere, holds a password.
    fn shows_no_secret(&self) {
        let mut said = self.process.log();
        for path in ["/healthcheck", "/readyz", "/metrics", "/api/v1/status", "/api/v1/backlog"] {
            said.push_str(&self.get(path).1);
        }
        let printed = Command::new(PROGRAM)
            .args(["config", "print"])
            .envs(self.environment.iter().cloned())
            .output()
            .unwrap();
        assert!(printed.status.success());
        said.push_str(&everything(&printed));
        assert!(!said.contains(CANARY), "{} shows a secret:\n{said}", self.name);
    }

    /// Waits until it ended, after a stop signal.
    fn ended(mut self) {
        let ended = self.process.wait(Duration::from_secs(40));
        assert_eq!(
            ended.and_then(|status| status.code()),
            Some(0),
            "{}:\n{}",
            self.name,
            self.process.log_tail()
        );
        assert!(!self.process.log().contains(CANARY), "{} shows a secret", self.name);
    }
}

/// All at once, because leaving a group takes its time.
fn stop(persisters: Vec<Persister>) {
    for persister in &persisters {
        persister.process.terminate();
    }
    persisters.into_iter().for_each(Persister::ended);
}

fn everything(output: &Output) -> String {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn messages_arrive_over_tls_with_client_certificates_and_with_every_mechanism() {
    let site = site();
    let (client, store_password) = (site.secret("client.p12"), site.secret("store-password"));
    let mut cases = vec![
        ("tls", "TLS", site.trusting(&[])),
        (
            "key-store",
            "MUTUAL",
            site.trusting(&[
                ("TLS__KEYSTORE_FILE", &client),
                ("TLS__KEYSTORE_PASSWORD_FILE", &store_password),
            ]),
        ),
        ("plain", "USERS", site.user("plain", "password")),
        ("scram-256", "USERS", site.user("scram-sha-256", "password")),
        ("scram-512", "USERS", site.user("scram-sha-512", "password")),
        (
            "other-name",
            "ELSEWHERE",
            site.trusting(&[("TLS__INSECURE_SKIP_HOSTNAME_VERIFICATION", "true")]),
        ),
    ];
    match site.certificates.pem("client").unwrap() {
        Some((certificate, key)) => cases.push((
            "pem",
            "MUTUAL",
            site.trusting(&[
                ("TLS__CERTIFICATE_FILE", &text(&certificate)),
                ("TLS__KEY_FILE", &text(&key)),
                ("TLS__KEY_PASSWORD_FILE", &store_password),
            ]),
        )),
        None => eprintln!("skipped: client certificates in PEM, because openssl is not installed"),
    }
    let persisters: Vec<Persister> = cases
        .iter()
        .map(|(name, listener, security)| Persister::start(&site, name, listener, security))
        .collect();
    for persister in &persisters {
        let delivered = format!(r#""rows_written":{MESSAGES}"#);
        persister.wait_for("/api/v1/status", &delivered, Duration::from_secs(60));
        let status =
            persister.wait_for("/api/v1/status", r#""state":"ok""#, Duration::from_secs(10));
        assert!(status.contains(r#""kafka_connected":true"#), "{status}");
        assert_eq!(persister.get("/readyz").0, 200);
        let is_said = persister.process.log().contains("KAFKA_INSECURE");
        assert_eq!(is_said, persister.name == "other-name", "{}", persister.name);
        persister.shows_no_secret();
        eprintln!("{}: {MESSAGES} messages delivered", persister.name);
    }
    stop(persisters);
}

#[test]
fn every_refused_connection_is_named_with_its_code_said_once_and_shows_no_secret() {
    let site = site();
    let other_ca = text(&site.certificates.other_ca());
    let cases = [
        (
            "wrong-ca",
            "TLS",
            vec![own("PROTOCOL", "tls"), own("TLS__CA_FILE", &other_ca)],
            "KAFKA_TLS",
            "is not signed by",
        ),
        ("wrong-name", "ELSEWHERE", site.trusting(&[]), "KAFKA_TLS", "made for another name"),
        ("expired", "EXPIRED", site.trusting(&[]), "KAFKA_TLS", "has expired"),
        ("no-client-certificate", "MUTUAL", site.trusting(&[]), "KAFKA_TLS", "client certificate"),
        ("wrong-plain", "USERS", site.user("plain", "wrong-password"), "KAFKA_AUTH", "password"),
        (
            "wrong-scram-256",
            "USERS",
            site.user("scram-sha-256", "wrong-password"),
            "KAFKA_AUTH",
            "password",
        ),
        (
            "wrong-scram-512",
            "USERS",
            site.user("scram-sha-512", "wrong-password"),
            "KAFKA_AUTH",
            "password",
        ),
        ("plaintext-to-tls", "TLS", Vec::new(), "KAFKA_TLS", "kafka.security.protocol"),
        ("no-user", "USERS", site.trusting(&[]), "KAFKA_AUTH", "kafka.security.sasl"),
        (
            "mechanism",
            "ONE_MECHANISM",
            site.user("plain", "password"),
            "KAFKA_AUTH",
            "does not offer this mechanism",
        ),
        ("tls-to-plaintext", "", site.trusting(&[]), "KAFKA_TLS", "not answer in TLS"),
    ];
    let persisters: Vec<Persister> = cases
        .iter()
        .map(|(name, listener, security, ..)| Persister::start(&site, name, listener, security))
        .collect();
    for (persister, (.., code, hint)) in persisters.iter().zip(&cases) {
        let health = persister.wait_for("/healthcheck", code, Duration::from_secs(30));
        assert!(health.contains(hint), "{}: {health}", persister.name);
        assert_eq!(persister.get("/healthcheck").0, 500, "{}", persister.name);
    }
    for (persister, (.., code, hint)) in persisters.iter().zip(cases) {
        let (name, begun) = (persister.name.clone(), persister.begun);
        if let Some(rest) = WATCHED.checked_sub(begun.elapsed()) {
            std::thread::sleep(rest);
        }
        let (ready, why) = persister.get("/readyz");
        assert!(ready == 503 && why.contains(code), "{name}: {ready} {why}");
        let (_, status) = persister.get("/api/v1/status");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let reason = &status["reasons"][0];
        assert_eq!(reason["code"], code, "{name}: {status}");
        assert!(reason["hint"].as_str().unwrap().contains(hint), "{name}: {reason}");
        assert_eq!(status["pipelines"]["metrics"]["intake"]["messages"], 0, "{name}");
        let log = persister.process.log();
        let (said, lines) = (log.matches(code).count(), log.lines().count());
        assert!(said == 1, "{name}: said {said} times:\n{log}");
        assert!(lines <= LINES_MAX, "{name}: {lines} lines:\n{log}");
        eprintln!("{name}: {code} said {said} times, {lines} lines: {}", reason["message"]);
        persister.shows_no_secret();
    }
    stop(persisters);
}

fn check_config_and_run(settings: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let dir = TempDir::new().unwrap();
    let output =
        Command::new(PROGRAM)
            .args(arguments)
            .env("MONASCA_PERSISTER__DATA_DIR", dir.path())
            .env("MONASCA_PERSISTER__STORE__KIND", "sled")
            .env("MONASCA_PERSISTER__HTTP__BIND", "127.0.0.1:0")
            .envs(settings.iter().map(|(key, value)| {
                (format!("MONASCA_PERSISTER__KAFKA__{key}"), (*value).to_owned())
            }))
            .output()
            .unwrap();
    (output.status.code(), everything(&output))
}

#[test]
fn a_password_that_others_can_read_ends_the_program_with_77_and_the_command_to_type() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, PASSWORD).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = check_config_and_run(
        &[
            ("SECURITY__SASL__MECHANISM", "scram-sha-512"),
            ("SECURITY__SASL__USERNAME", "persister"),
            ("SECURITY__SASL__PASSWORD_FILE", &text(&path)),
        ],
        &["run"],
    );
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains(&format!("chmod 600 {}", path.display())), "{said}");
    assert!(!said.contains(CANARY), "{said}");
}

#[test]
fn what_is_not_safe_or_not_built_in_ends_the_program_with_78_and_names_the_key() {
    for (settings, key) in [
        (
            vec![
                ("SECURITY__SASL__MECHANISM", "plain"),
                ("SECURITY__SASL__USERNAME", "persister"),
                ("SECURITY__SASL__PASSWORD_ENV", "PASSWORD"),
            ],
            "kafka.security.sasl.mechanism: plain without TLS",
        ),
        (vec![("SECURITY__SASL__MECHANISM", "gssapi")], "not part of this program"),
        (vec![("PROPERTIES__SASL_PASSWORD", PASSWORD)], "kafka.security.sasl.password_file"),
        (vec![("SECURITY__SASL__PASSWORD", PASSWORD)], "did you mean `password_"),
        (vec![("SECURITY__TLS__CA_FILE", "/ca.pem")], "kafka.security.tls: is given"),
    ] {
        let (code, said) = check_config_and_run(&settings, &["check-config"]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(key), "{said}");
        assert!(!said.contains(CANARY), "{said}");
    }
}
