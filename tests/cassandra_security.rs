//! TLS, certificates and passwords between the real program and a real Cassandra: what is set up right works, what is
//! not is named, nothing falls back to plain text, and what is mended goes on without a restart.
//!
//! One node serves everything and is started three times: with a good certificate, with one that has expired, and asking
//! for client certificates.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::tls::{Certificates, STORE_PASSWORD};
use harness::{Cassandra, Kafka, Process, http};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const TOPIC: &str = "metrics";
const MESSAGES: u64 = 100;
/// No password may be seen anywhere, so each holds this word.
const CANARY: &str = "canary";
const PASSWORD: &str = "canary-of-the-role";
const WRONG_PASSWORD: &str = "canary-of-nobody";
/// Generous: the machine may be busy.
const WAIT: Duration = Duration::from_secs(90);

struct Site {
    kafka: Kafka,
    cassandra: Cassandra,
    certificates: Certificates,
    /// The node's key store, as it is named in its configuration.
    store: PathBuf,
    dir: TempDir,
}

fn encryption(store: &Path, trust: Option<&Path>) -> String {
    let trust = trust.map_or(String::new(), |trust| {
        format!(
            ", require_client_auth: true, truststore: {}, truststore_password: {STORE_PASSWORD}",
            trust.display()
        )
    });
    format!(
        "{{enabled: true, optional: false, keystore: {}, keystore_password: {STORE_PASSWORD}, store_type: PKCS12{trust}}}",
        store.display()
    )
}

impl Site {
    fn start() -> Self {
        let certificates = Certificates::new().unwrap();
        // Made for a name: `localhost` is right, and 127.0.0.1 is another host.
        let good = certificates.signed("node", "localhost").unwrap();
        certificates.expired("node-expired", "localhost").unwrap();
        certificates.signed("client", "client.invalid").unwrap();
        certificates.expired("client-expired", "client.invalid").unwrap();
        let dir = TempDir::with_prefix("persister-").unwrap();
        let store = dir.path().join("node.p12");
        std::fs::copy(good, &store).unwrap();
        // Without encryption, whose tests are elsewhere; a user with every right, and one without any.
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let kafka = Kafka::builder()
            .listener("USERS", "SASL_PLAINTEXT")
            .property("listener.name.users.sasl.enabled.mechanisms", "SCRAM-SHA-512")
            .property("listener.name.users.scram-sha-512.sasl.jaas.config", scram)
            .scram_user("SCRAM-SHA-512", "persister", PASSWORD)
            .scram_user("SCRAM-SHA-512", "boss", PASSWORD)
            .property(
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            )
            .property("super.users", "User:ANONYMOUS;User:boss")
            .start()
            .unwrap();
        kafka.create_topic(TOPIC, 2).unwrap();
        let cassandra = Cassandra::builder()
            .setting("client_encryption_options", &encryption(&store, None))
            .setting("authenticator", "PasswordAuthenticator")
            .setting("authorizer", "CassandraAuthorizer")
            .argument("-Dcassandra.superuser_setup_delay_ms=0")
            .start()
            .unwrap();
        Self { kafka, cassandra, certificates, store, dir }
    }

    fn file(&self, name: &str) -> String {
        text(&self.certificates.ca().with_file_name(name))
    }

    /// A file of its own for `name`, that can be replaced.
    fn copy(&self, from: &str, name: &str) -> String {
        let to = self.dir.path().join(name);
        replace(Path::new(&self.file(from)), &to);
        text(&to)
    }

    fn secret(&self, name: &str, content: &str) -> String {
        text(&self.certificates.secret(name, content).unwrap())
    }

    fn restart(&mut self, store: &str, trust: Option<&Path>) {
        self.cassandra.stop();
        std::fs::copy(self.file(store), &self.store).unwrap();
        self.cassandra.set("client_encryption_options", &encryption(&self.store, trust)).unwrap();
        self.cassandra.restart().unwrap();
    }

    /// Settings of a persister that trusts this node's certificates.
    fn trusting(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let (ca, password) = (self.file("ca.pem"), self.file("password"));
        let mut settings = vec![
            own("PROTOCOL", "tls"),
            own("TLS__CA_FILE", &ca),
            own("USER", "persister"),
            own("PASSWORD_FILE", &password),
        ];
        settings.retain(|(key, _)| !more.iter().any(|(other, _)| other == key));
        settings.extend(more.iter().map(|(key, value)| own(key, value)));
        settings
    }

    fn environment(&self, name: &str, cassandra: &[(String, String)]) -> Vec<(String, String)> {
        let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
        let mut environment = vec![
            set("DATA_DIR", &text(&self.dir.path().join(name))),
            set("INSTANCE", name),
            set("KAFKA__BOOTSTRAP_SERVERS", &self.kafka.bootstrap()),
            set("METRICS__TOPIC", TOPIC),
            set("METRICS__GROUP_ID", name),
            set("METRICS__FRESHNESS", "100ms"),
            set("ALARMS__ENABLED", "false"),
            // What cannot be delivered is not waited for.
            set("SHUTDOWN__MODE", "persist"),
        ];
        let at = format!("localhost:{}", self.cassandra.port());
        let mut cassandra = cassandra.to_vec();
        if !cassandra.iter().any(|(key, _)| key == "CONTACT_POINTS") {
            cassandra.push(own("CONTACT_POINTS", &at));
        }
        environment.extend(
            cassandra.iter().map(|(key, value)| set(&format!("STORE__CASSANDRA__{key}"), value)),
        );
        environment
    }

    /// Runs a command to its end: exit code and everything it printed.
    fn command(
        &self,
        arguments: &[&str],
        cassandra: &[(String, String)],
        more: &[(&str, &str)],
    ) -> (Option<i32>, String) {
        let more = more.iter().map(|(key, value)| (format!("MONASCA_PERSISTER__{key}"), value));
        let output = Command::new(PROGRAM)
            .args(arguments)
            .envs(self.environment("command", cassandra))
            .envs(more)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(!said.contains(CANARY), "{arguments:?} shows a secret:\n{said}");
        (output.status.code(), said)
    }

    fn send(&self) {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", self.kafka.bootstrap()).create().unwrap();
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

    /// A session of the superuser; its certificate of the node is nobody's business here.
    async fn superuser(&self) -> Session {
        let deadline = Instant::now() + WAIT;
        loop {
            let mut context = SslConnector::builder(SslMethod::tls_client()).unwrap();
            context.set_verify(SslVerifyMode::NONE);
            let session = SessionBuilder::new()
                .known_node(format!("127.0.0.1:{}", self.cassandra.port()))
                .user("cassandra", "cassandra")
                .tls_context(Some(context))
                .build()
                .await;
            match session {
                Ok(session) => return session,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

fn own(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// As whoever renews a certificate does: the old content or the new one, and never a half.
fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).unwrap();
    std::fs::rename(beside, to).unwrap();
}

struct Persister {
    name: String,
    process: Process,
    url: String,
}

impl Persister {
    fn start(site: &Site, name: &str, cassandra: &[(String, String)]) -> Self {
        let port = harness::free_port().unwrap();
        let mut builder = ProcessBuilder::new(PROGRAM, site.dir.path().join(format!("{name}.log")))
            .args(["run"])
            .env("MONASCA_PERSISTER__HTTP__BIND", format!("127.0.0.1:{port}"));
        for (key, value) in site.environment(name, cassandra) {
            builder = builder.env(&key, &value);
        }
        let process = builder.start().unwrap();
        Self { name: name.to_owned(), process, url: format!("http://127.0.0.1:{port}") }
    }

    fn get(&self, path: &str) -> String {
        let answer = http::get(&format!("{}{path}", self.url));
        answer.map_or_else(|error| error.to_string(), |(_, body)| body)
    }

    /// Waits until the body of `path` contains all of `what`.
    fn wait_for(&self, path: &str, what: &[&str]) -> String {
        let deadline = Instant::now() + WAIT;
        loop {
            let body = self.get(path);
            if what.iter().all(|what| body.contains(what)) {
                return body;
            }
            assert!(
                Instant::now() < deadline,
                "{}: {path} does not say {what:?}: {body}\n{}",
                self.name,
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Health check, status and log say code and way out.
    fn says(&self, site: &Site, code: &str, way_out: &str) {
        let node = site.cassandra.port().to_string();
        let health = self.wait_for("/healthcheck", &[code, way_out, &node]);
        self.wait_for("/api/v1/status", &["STORE_UNAVAILABLE", code, way_out, &node]);
        let log = self.process.log();
        assert!(log.contains(code) && log.contains(way_out), "{}:\n{log}", self.name);
        eprintln!("{}: {health}", self.name);
    }

    fn delivers(&self, rows: u64) {
        self.wait_for("/api/v1/status", &[&format!(r#""rows_written":{rows}"#), r#""state":"ok""#]);
        eprintln!("{}: {rows} rows", self.name);
    }

    fn ends(mut self) {
        let ended = self.process.wait(Duration::from_secs(60));
        let code = ended.and_then(|status| status.code());
        assert_eq!(code, Some(0), "{}:\n{}", self.name, self.process.log_tail());
        assert!(!self.process.log().contains(CANARY), "{} shows a secret", self.name);
    }
}

fn stop(persisters: Vec<Persister>) {
    for persister in &persisters {
        persister.process.terminate();
    }
    persisters.into_iter().for_each(Persister::ends);
}

/// A port that answers as a node without TLS does, and remembers everything that it was sent.
fn plain_node() -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let remembered = Arc::clone(&sent);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut bytes = vec![0; 4096];
            let length = stream.read(&mut bytes).unwrap_or(0);
            bytes.truncate(length);
            remembered.lock().unwrap().push(bytes);
            // ERROR, protocol error: what a node says to a version of the protocol that it does not know.
            let error = b"\x84\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x0a\x00\x02no";
            drop(stream.write_all(error));
        }
    });
    (port, sent)
}

/// The role, with what it may do.
async fn grant(session: &Session, statements: &[&str]) {
    for statement in statements {
        session.query_unpaged(*statement, ()).await.unwrap();
    }
}

/// What the node says of the persister's connections: encrypted, and compressed with.
async fn connections(session: &Session) -> Vec<(bool, String)> {
    let rows = session
        .query_unpaged("SELECT username, ssl_enabled, client_options FROM system_views.clients", ())
        .await
        .unwrap()
        .into_rows_result()
        .unwrap();
    type Row = (Option<String>, Option<bool>, Option<std::collections::HashMap<String, String>>);
    rows.rows::<Row>()
        .unwrap()
        .map(Result::unwrap)
        .filter(|(user, ..)| user.as_deref() == Some("persister"))
        .map(|(_, encrypted, options)| {
            let compression = options.unwrap_or_default().remove("COMPRESSION");
            (encrypted == Some(true), compression.unwrap_or_default())
        })
        .collect()
}

#[test]
fn connections_to_cassandra_are_safe_or_named_and_go_on_when_they_are_mended() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut site = Site::start();
    let (password, wrong) = (site.secret("password", PASSWORD), format!("{WRONG_PASSWORD}\n"));
    let rotated = site.secret("rotated", &wrong);
    let superuser = site.secret("superuser", "cassandra");
    let session = runtime.block_on(site.superuser());

    // The tables, over TLS, by a role that may create them; and a role that may not yet write.
    let as_superuser = [("USER", "cassandra"), ("PASSWORD_FILE", superuser.as_str())];
    let (code, said) = site.command(&["schema", "apply"], &site.trusting(&as_superuser), &[]);
    assert_eq!(code, Some(0), "{said}");
    let role = format!("CREATE ROLE persister WITH LOGIN = true AND PASSWORD = '{PASSWORD}'");
    runtime.block_on(grant(&session, &[&role]));
    site.send();
    looked_at(&site, &runtime, &session);

    // A good one, and everything that can be wrong without touching the node.
    let at_address = format!("127.0.0.1:{}", site.cassandra.port());
    let unknown_ca = site.copy("other-ca.pem", "their-ca.pem");
    let (plain_port, sent) = plain_node();
    let plain = format!("localhost:{plain_port}");
    let good = Persister::start(&site, "good", &site.trusting(&[("COMPRESSION", "lz4")]));
    let by_address =
        Persister::start(&site, "by-address", &site.trusting(&[("CONTACT_POINTS", &at_address)]));
    let other_ca =
        Persister::start(&site, "other-ca", &site.trusting(&[("TLS__CA_FILE", &unknown_ca)]));
    let password_wrong =
        Persister::start(&site, "password-wrong", &site.trusting(&[("PASSWORD_FILE", &rotated)]));
    let plaintext = Persister::start(
        &site,
        "plaintext",
        &[own("USER", "persister"), own("PASSWORD_FILE", &password)],
    );
    let to_plaintext =
        Persister::start(&site, "to-plaintext", &site.trusting(&[("CONTACT_POINTS", &plain)]));
    good.delivers(MESSAGES);
    // What is in the table now tells one scheme of ids from another.
    let check = ["check-config", "--connect"];
    let (code, said) =
        site.command(&check, &site.trusting(&[]), &[("METRIC_ID_SCHEME", "sha1-nul")]);
    assert!(code == Some(78) && said.contains("set metric_id_scheme to sha256"), "{said}");
    let (code, said) = site.command(&check, &site.trusting(&[]), &[]);
    assert!(code == Some(0) && said.contains("as in 20 series of the table"), "{said}");
    by_address.says(&site, "DB_TLS", "made for another host");
    other_ca.says(&site, "DB_TLS", "is not signed by");
    password_wrong.says(&site, "DB_AUTH", "check store.cassandra.user");
    plaintext.says(&site, "DB_", "set store.cassandra.protocol to tls");
    to_plaintext.wait_for("/healthcheck", &["DB_TLS", "does not answer in TLS", &plain]);

    // The node's own word for it: each connection is encrypted, and the one that was told to is compressed.
    let deadline = Instant::now() + WAIT;
    loop {
        let connected = runtime.block_on(connections(&session));
        assert!(connected.iter().all(|(encrypted, _)| *encrypted), "{connected:?}");
        // The node may not have noticed yet that a command has ended.
        if !connected.is_empty() && connected.iter().all(|(_, with)| with == "lz4") {
            break;
        }
        assert!(Instant::now() < deadline, "{connected:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let all_sent = std::mem::take(&mut *sent.lock().unwrap());
    let is_tls = |bytes: &Vec<u8>| bytes.first().is_none_or(|first| *first == 0x16);
    assert!(!all_sent.is_empty() && all_sent.iter().all(is_tls), "sent in plain text");

    // Mended: the right CA, the right password.
    replace(Path::new(&site.file("ca.pem")), Path::new(&unknown_ca));
    replace(Path::new(&password), Path::new(&rotated));
    other_ca.delivers(MESSAGES);
    password_wrong.delivers(MESSAGES);
    assert!(runtime.block_on(connections(&session)).iter().any(|(_, with)| with.is_empty()));
    // Renewed while all is well: taken without waiting for trouble.
    let renewed = site.dir.path().join("renewed.pem");
    let ca = std::fs::read_to_string(site.file("ca.pem")).unwrap();
    std::fs::write(&renewed, format!("{ca}\n")).unwrap();
    replace(&renewed, Path::new(&unknown_ca));
    let deadline = Instant::now() + WAIT;
    while other_ca.process.log().matches("connected to Cassandra").count() < 2 {
        assert!(Instant::now() < deadline, "{}", other_ca.process.log_tail());
        std::thread::sleep(Duration::from_millis(200));
    }
    stop(vec![by_address, other_ca, password_wrong, plaintext, to_plaintext]);
    drop(session);

    // The node's certificate runs out while a persister is connected.
    site.restart("node-expired.p12", None);
    site.send();
    good.says(&site, "DB_TLS", "it has expired");

    // Renewed, and asking for client certificates from now on.
    let trust = site.certificates.trust_store();
    site.restart("node.p12", Some(&trust));
    good.says(&site, "DB_TLS", "asks for a client certificate");
    client_certificates(&site);
    good.process.terminate();
    good.ends();
}

/// `check-config --connect` says what is missing and what to type; doing that is enough; and nothing is changed.
fn looked_at(site: &Site, runtime: &tokio::runtime::Runtime, session: &Session) {
    let settings = site.trusting(&[]);
    let check =
        |more: &[(&str, &str)]| site.command(&["check-config", "--connect"], &settings, more);
    let is_said = |(code, said): (Option<i32>, String), expected: i32, parts: &[&str]| {
        assert_eq!(code, Some(expected), "{said}");
        parts.iter().for_each(|part| assert!(said.contains(part), "no `{part}` in\n{said}"));
        said
    };

    let lacking = is_said(
        check(&[]),
        77,
        &[
            "topic metrics has 2 partitions",
            "ok           kafka: Read on topic metrics",
            "ok           kafka: Read on group command\n",
            "ok           kafka: Read on group command.delivered.command\n",
            "answers, in TLSv1.3",
            "1 of 1 nodes connected",
            "has every table and column",
            r#"FORBIDDEN    cassandra: "persister" lacks MODIFY on monasca.measurements"#,
            "metric_id_scheme sha256: series cannot be read",
        ],
    );
    eprintln!("{lacking}");
    let grants: Vec<String> = lacking
        .lines()
        .filter_map(|line| line.split_once("GRANT ").map(|(_, rest)| format!("GRANT {rest}")))
        .collect();
    assert_eq!(grants.len(), 7, "six tables to write, and one to read: {grants:?}");
    let statements: Vec<&str> = grants.iter().map(String::as_str).collect();
    runtime.block_on(grant(session, &statements));
    // The node remembers for two seconds what a role may not do.
    let deadline = Instant::now() + WAIT;
    while !check(&[]).1.contains("no series yet") && Instant::now() < deadline {}
    let held = is_said(check(&[]), 0, &["no series yet", "has SELECT on monasca.metrics"]);
    assert!(!held.contains("lacks") && !held.contains("not checked"), "{held}");

    is_said(
        check(&[("METRICS__TOPIC", "nowhere")]),
        78,
        &["topic nowhere is not there", "--create --topic nowhere"],
    );
    is_said(
        check(&[("STORE__CASSANDRA__KEYSPACE", "other")]),
        78,
        &["table other.measurements is missing", "schema apply", "CREATE KEYSPACE"],
    );
    is_said(
        check(&[("STORE__CASSANDRA__LOCAL_DATA_CENTER", "nowhere")]),
        78,
        &["data centre `nowhere` has no node", "to one of: datacenter1"],
    );
    is_said(
        check(&[("STORE__CASSANDRA__CONTACT_POINTS", "localhost:1")]),
        69,
        &["no answer    cassandra: localhost:1", "Connection refused"],
    );
    is_said(check(&[("KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")]), 69, &["no broker answers"]);

    let password = site.file("password");
    let user = |name| {
        check(&[
            ("KAFKA__BOOTSTRAP_SERVERS", site.kafka.listener("USERS").unwrap()),
            ("KAFKA__SECURITY__SASL__MECHANISM", "scram-sha-512"),
            ("KAFKA__SECURITY__SASL__USERNAME", name),
            ("KAFKA__SECURITY__SASL__PASSWORD_FILE", &password),
        ])
    };
    let forbidden = is_said(
        user("persister"),
        77,
        &[
            "FORBIDDEN    kafka: topic metrics may not be seen",
            "--allow-principal 'User:persister' --operation Read --topic 'metrics'",
            "FORBIDDEN    kafka: group command may not be used",
            "--operation Read --group 'command.delivered.' --resource-pattern-type prefixed",
        ],
    );
    eprintln!("{forbidden}");
    is_said(user("boss"), 0, &["known by SCRAM-SHA-512", "Read on topic metrics"]);
    is_said(user("nobody"), 77, &["KAFKA_AUTH"]);

    // Neither the group nor the topic that was asked for is there now.
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", site.kafka.bootstrap()).create().unwrap();
    let groups = client.fetch_group_list(None, Duration::from_secs(10)).unwrap();
    assert!(groups.groups().iter().all(|group| !group.name().starts_with("command")));
    let topics = client.fetch_metadata(None, Duration::from_secs(10)).unwrap();
    assert!(topics.topics().iter().all(|topic| topic.name() != "nowhere"));
}

fn client_certificates(site: &Site) {
    let store_password = site.secret("store-password", STORE_PASSWORD);
    let renewed = site.copy("client-expired.p12", "our-client.p12");
    let with_store = |store: &str| {
        site.trusting(&[
            ("TLS__KEYSTORE_FILE", store),
            ("TLS__KEYSTORE_PASSWORD_FILE", &store_password),
        ])
    };
    let expired = Persister::start(site, "client-expired", &with_store(&renewed));
    let mut fine = vec![Persister::start(site, "key-store", &with_store(&site.file("client.p12")))];
    match site.certificates.pem("client").unwrap() {
        Some((certificate, key)) => fine.push(Persister::start(
            site,
            "pem",
            &site.trusting(&[
                ("TLS__CERTIFICATE_FILE", &text(&certificate)),
                ("TLS__KEY_FILE", &text(&key)),
                ("TLS__KEY_PASSWORD_FILE", &store_password),
            ]),
        )),
        None => eprintln!("skipped: client certificates in PEM, because openssl is not installed"),
    }
    for persister in &fine {
        persister.delivers(2 * MESSAGES);
    }
    expired.says(site, "DB_TLS", "store.cassandra.tls.certificate_file or keystore_file");
    replace(Path::new(&site.file("client.p12")), Path::new(&renewed));
    expired.delivers(2 * MESSAGES);
    fine.push(expired);
    stop(fine);
}
