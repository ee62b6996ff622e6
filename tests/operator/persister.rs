//! The program under test, a broker for all tests, and a client that sends what tests want.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use harness::process::ProcessBuilder;
use harness::{Kafka, Process, http};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef-operator";

pub fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(|| Kafka::start().unwrap())
}

pub fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// A metric of this tenant, as an agent sends it; no two have the same time.
pub fn metric(tenant: &str, name: &str, value: usize) -> String {
    static TIME: OnceLock<AtomicI64> = OnceLock::new();
    let time = TIME.get_or_init(|| AtomicI64::new(now_ms() - 3_600_000));
    let time = time.fetch_add(1, Ordering::Relaxed);
    format!(
        r#"{{"metric":{{"name":"{name}","dimensions":{{"hostname":"h{}"}},"timestamp":{time},"value":{value}}},"meta":{{"tenantId":"{tenant}","region":"r"}},"creation_time":1}}"#,
        value % 7
    )
}

pub fn produce(topic: &str, messages: impl IntoIterator<Item = String>) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka().bootstrap())
        .set("linger.ms", "5")
        .create()
        .unwrap();
    for message in messages {
        let mut record: BaseRecord<'_, (), String> = BaseRecord::to(topic).payload(&message);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

pub struct Persister {
    pub process: Process,
    pub url: String,
    pub address: String,
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends `request` and reads until the connection ends.
pub fn exchange(address: &str, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    drop(stream.write_all(request.as_bytes()));
    let mut bytes = Vec::new();
    // Who sends more than is read may have its connection reset behind the answer.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(!bytes.is_empty(), "{error}");
    }
    answer(&bytes)
}

pub fn answer(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

impl Persister {
    /// Runs on `dir` with an embedded store and the topics `metrics-NAME` and `alarms-NAME`.
    pub fn start(dir: &Path, name: &str, settings: &[(&str, &str)]) -> Self {
        let port = harness::free_port().unwrap();
        Self::start_at(dir, name, port, settings)
    }

    pub fn start_at(dir: &Path, name: &str, port: u16, settings: &[(&str, &str)]) -> Self {
        let address = format!("127.0.0.1:{port}");
        let url = format!("http://{address}");
        let token = dir.join("token");
        std::fs::write(&token, TOKEN).unwrap();
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let mut builder = ProcessBuilder::new(PROGRAM, dir.join("persister.log")).args(["run"]);
        let common = [
            ("DATA_DIR", dir.join("data").to_str().unwrap().to_owned()),
            ("INSTANCE", "one".to_owned()),
            ("KAFKA__BOOTSTRAP_SERVERS", kafka().bootstrap()),
            ("STORE__KIND", "sled".to_owned()),
            ("METRICS__TOPIC", format!("metrics-{name}")),
            ("METRICS__GROUP_ID", format!("group-metrics-{name}")),
            ("METRICS__FRESHNESS", "10ms".to_owned()),
            ("ALARMS__TOPIC", format!("alarms-{name}")),
            ("ALARMS__GROUP_ID", format!("group-alarms-{name}")),
            ("WAL__MIN_FREE_BYTES", "0".to_owned()),
            ("HTTP__BIND", address.clone()),
            ("HTTP__TOKEN_FILE", token.to_str().unwrap().to_owned()),
        ];
        for (key, value) in common {
            builder = builder.env(format!("MONASCA_PERSISTER__{key}"), value);
        }
        for (key, value) in settings {
            let prefix =
                if *key == "CONFIG" { "MONASCA_PERSISTER_" } else { "MONASCA_PERSISTER__" };
            builder = builder.env(format!("{prefix}{key}"), *value);
        }
        let process = builder.start().unwrap();
        let is_up = http::wait_ok(&format!("{url}/startupz"), Duration::from_secs(60));
        assert!(is_up, "{}", process.log_tail());
        Self { process, url, address }
    }

    pub fn get(&self, path: &str) -> Answer {
        exchange(&self.address, &format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address))
    }

    pub fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    pub fn post_with(&self, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        exchange(
            &self.address,
            &format!(
                "POST {path} HTTP/1.0\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
            ),
        )
    }

    /// An order with the token; its outcome.
    pub fn order(&self, path: &str, body: &Value) -> Value {
        let headers =
            format!("Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n");
        let answer = self.post_with(path, &headers, &body.to_string());
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    pub fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        // Looks are counted, not time: the whole machine may have been asleep.
        for _ in 0..1800 {
            if done(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not {what}:\n{}", self.process.log_tail());
    }

    /// What waits in the metrics pipeline.
    pub fn waiting(&self) -> Value {
        self.json("/api/v1/backlog")["pipelines"]["metrics"].clone()
    }

    pub fn rows_written(&self) -> u64 {
        let status = self.json("/api/v1/status");
        status["pipelines"]["metrics"]["delivered"]["rows_written"].as_u64().unwrap()
    }

    pub fn codes(&self) -> Vec<String> {
        let status = self.json("/api/v1/status");
        let code = |reason: &Value| reason["code"].as_str().unwrap().to_owned();
        status["reasons"].as_array().unwrap().iter().map(code).collect()
    }

    pub fn stop(mut self) {
        self.process.terminate();
        let ended = self.process.wait(Duration::from_secs(60)).and_then(|status| status.code());
        assert_eq!(ended, Some(0), "{}", self.process.log_tail());
    }
}

/// The topics of a test, and how many partitions its metrics have.
pub fn topics(name: &str, partitions: i32) {
    kafka().create_topic(&format!("metrics-{name}"), partitions).unwrap();
    kafka().create_topic(&format!("alarms-{name}"), 1).unwrap();
}

/// Nothing to say.
pub fn nothing() -> Value {
    json!({})
}
