//! `monasca-persister dead-letters` on a directory, and beside the program that runs on it: what it says is so, what
//! is tried again arrives, and what is dropped is gone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Kafka, Process, http};
use monasca_persister::dead_letters::{DeadLetter, DeadLetters};
use monasca_persister::envelope::{Envelope, TimestampType};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use wal::{DiskFs, NoCarry, Wal, WalConfig};

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
/// A message that is well-formed, and one byte too long for the first configuration.
const LONG: i64 = 10;
/// A message that no configuration makes any better.
const GARBAGE: [u8; 3] = [0xff, 0x00, 0x01];

fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

fn long_message() -> Vec<u8> {
    let meta = "x".repeat(1024);
    format!(
        r#"{{"metric":{{"name":"cpu","dimensions":{{"hostname":"h","filler":"{meta}"}},"timestamp":{},"value":1.5}},"meta":{{"tenantId":"t","region":"r"}},"creation_time":1}}"#,
        now_ms()
    )
    .into_bytes()
}

fn letter(offset: i64, code: &str, payload: &[u8]) -> DeadLetter {
    let message = Envelope {
        topic: "metrics",
        partition: 3,
        offset,
        leader_epoch: -1,
        timestamp_ms: now_ms(),
        timestamp_type: TimestampType::Created,
        received_ms: now_ms(),
        key: Some(b"key"),
        payload: Some(payload),
    };
    DeadLetter::of(&message, 0, code, "for a test")
}

/// A data directory with these letters.
fn data_dir(letters: &[DeadLetter]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fs = DiskFs::open(dir.path().join("dead-letters")).unwrap();
    let config = WalConfig { segment_bytes: 4 << 20, min_free_bytes: 0, ..WalConfig::default() };
    let (wal, _) = Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO).unwrap();
    let log = DeadLetters::new(wal);
    log.keep(letters).unwrap();
    log.wal().close(Duration::ZERO).unwrap();
    dir
}

fn environment(dir: &Path) -> Vec<(String, String)> {
    let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
    vec![
        set("DATA_DIR", dir.to_str().unwrap()),
        set("INSTANCE", "one"),
        // Nobody answers there, and nobody needs to.
        set("KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"),
        set("STORE__KIND", "sled"),
        set("WAL__MIN_FREE_BYTES", "0"),
        set("WAL__DEAD_LETTERS_BYTES_MAX", "16 MiB"),
    ]
}

fn run(dir: &Path, args: &[&str]) -> Output {
    std::process::Command::new(PROGRAM)
        .arg("dead-letters")
        .args(args)
        .envs(environment(dir))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Offsets of the letters there are.
fn listed(dir: &Path, args: &[&str]) -> Vec<i64> {
    let args = [&["list", "--json"], args].concat();
    let lines = text(&run(dir, &args));
    let offset = |line: &str| {
        let letter: Value = serde_json::from_str(line).unwrap();
        letter["offset"].as_i64().unwrap()
    };
    lines.lines().map(offset).collect()
}

fn act(dir: &Path, args: &[&str]) -> Value {
    let args = [args, &["--json"]].concat();
    serde_json::from_str(&text(&run(dir, &args))).unwrap()
}

struct Persister {
    process: Process,
    url: String,
}

impl Persister {
    fn start(dir: &Path, message_bytes_max: &str) -> Self {
        Self::start_with(dir, &[("METRICS__MESSAGE_BYTES_MAX", message_bytes_max)])
    }

    fn start_with(dir: &Path, settings: &[(&str, &str)]) -> Self {
        let port = harness::free_port().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let mut builder = ProcessBuilder::new(PROGRAM, dir.join("persister.log"))
            .args(["run"])
            .env("MONASCA_PERSISTER__HTTP__BIND", format!("127.0.0.1:{port}"))
            .env("MONASCA_PERSISTER__METRICS__FRESHNESS", "10ms");
        for (key, value) in environment(dir) {
            builder = builder.env(key, value);
        }
        for (key, value) in settings {
            builder = builder.env(format!("MONASCA_PERSISTER__{key}"), *value);
        }
        let process = builder.start().unwrap();
        assert!(
            http::wait_ok(&format!("{url}/ping"), Duration::from_secs(60)),
            "{}",
            process.log_tail()
        );
        Self { process, url }
    }

    fn json(&self, path: &str) -> Value {
        let (status, body) = http::get(&format!("{}{path}", self.url)).unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = http::get(&format!("{}/metrics", self.url)).unwrap();
        let value = text.lines().find_map(|line| {
            let rest = line.strip_prefix("monasca_persister_")?.strip_prefix(name)?;
            rest.strip_prefix("{}").unwrap_or(rest).strip_prefix(' ')
        });
        value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "not {what}:\n{}", self.process.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pipeline(&self) -> Value {
        self.json("/api/v1/status")["pipelines"]["metrics"].clone()
    }

    fn stop(mut self) {
        self.process.terminate();
        let ended = self.process.wait(Duration::from_secs(60)).and_then(|status| status.code());
        assert_eq!(ended, Some(0), "{}", self.process.log_tail());
    }
}

#[test]
fn letters_are_listed_shown_and_exported_with_all_their_bytes() {
    let long = long_message();
    let letters = [
        letter(LONG, "MESSAGE_TOO_LARGE", &long),
        letter(11, "NOT_JSON", &GARBAGE),
        letter(12, "NOT_JSON", b"{"),
        letter(11, "NOT_JSON", &GARBAGE),
    ];
    // The repetition is the same in all that counts.
    let letters = [&letters[..3], &[letters[1].clone()]].concat();
    let dir = data_dir(&letters);
    let dir = dir.path();
    assert_eq!(listed(dir, &[]), [10, 11, 12]);
    assert_eq!(listed(dir, &["--code", "NOT_JSON"]), [11, 12]);
    assert_eq!(listed(dir, &["--code", "NOT_JSON", "--limit", "1"]), [11]);
    assert_eq!(listed(dir, &["--offset", "11..", "--partition", "3"]), [11, 12]);
    assert_eq!(listed(dir, &["--offset", "..11", "--topic", "metrics"]), [10]);
    assert_eq!(listed(dir, &["--topic", "other"]), [0_i64; 0]);
    assert_eq!(listed(dir, &["--older-than", "1h"]), [0_i64; 0]);

    let table = text(&run(dir, &["list"]));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("metrics/3/11") && table.contains("NOT_JSON"), "{table}");
    let shown = text(&run(dir, &["show", "1"]));
    assert!(shown.contains("0xff0001") && shown.contains("for a test"), "{shown}");
    assert_eq!(run(dir, &["show", "1", "--raw"]).stdout, GARBAGE);
    assert_eq!(run(dir, &["show", "0", "--raw"]).stdout, long);
    assert_eq!(run(dir, &["show", "9"]).status.code(), Some(64));

    let file = dir.join("letters.jsonl");
    let to = file.to_str().unwrap();
    assert!(text(&run(dir, &["export", "--to", to])).starts_with("3 dead letters"));
    let exported = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> =
        exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[1]["payload_base64"], &lines[1]["key"]), (&json!("/wAB"), &json!("key")));
    assert_eq!(lines.len(), 3);
    assert_ne!(run(dir, &["export", "--to", to]).status.code(), Some(0), "written over");
}

#[test]
fn letters_are_dropped_from_a_directory_only_when_that_is_certain() {
    let letters: Vec<_> = (0..20).map(|offset| letter(offset, "NOT_JSON", b"{")).collect();
    let dir = data_dir(&letters);
    let dir = dir.path();
    for unclear in [&["drop"][..], &["drop", "--all", "--topic", "metrics"], &["drop", "3"]] {
        assert_eq!(run(dir, unclear).status.code(), Some(64), "{unclear:?}");
    }
    assert_eq!(listed(dir, &[]).len(), 20);
    assert_eq!(act(dir, &["drop", "3", "5", "--yes"])["removed"], 2);
    assert_eq!(act(dir, &["drop", "--offset", "10..", "--yes"])["removed"], 10);
    assert_eq!(listed(dir, &[]), [0, 1, 2, 4, 6, 7, 8, 9]);
    assert_eq!(act(dir, &["drop", "3", "--yes"])["removed"], 0);
    assert_eq!(act(dir, &["drop", "--all", "--yes"])["removed"], 8);
    assert!(text(&run(dir, &["list"])).contains("no dead letters"));
}

#[test]
fn what_was_too_long_is_stored_when_it_is_allowed_and_what_fails_again_is_a_letter_again() {
    let dir = data_dir(&[
        letter(LONG, "MESSAGE_TOO_LARGE", &long_message()),
        letter(11, "NOT_JSON", &GARBAGE),
    ]);
    let dir = dir.path();
    // Nobody runs on it: the messages wait in the log.
    let outcome = act(dir, &["retry", "--all"]);
    assert_eq!((&outcome["removed"], &outcome["left"]), (&json!(2), &json!({})));
    assert_eq!(listed(dir, &[]), [0_i64; 0]);

    let persister = Persister::start(dir, "1 KiB");
    persister.wait("letters again", |one| one.json("/api/v1/backlog")["dead_letters"] == 2);
    assert_eq!(listed(dir, &[]), [LONG, 11]);
    assert_eq!(listed(dir, &["--url", &persister.url, "--code", "MESSAGE_TOO_LARGE"]), [LONG]);
    // While it runs, it does the work: both fail again.
    assert_eq!(act(dir, &["retry", "--all"])["removed"], 2);
    persister.wait("letters again", |one| one.json("/api/v1/backlog")["dead_letters"] == 2);
    assert_eq!(persister.pipeline()["delivered"]["rows_written"], 0);
    persister.stop();

    let persister = Persister::start(dir, "1 MiB");
    let long = ["retry", "--code", "MESSAGE_TOO_LARGE"];
    assert_eq!(act(dir, &long)["removed"], 1);
    persister
        .wait("stored", |one| one.pipeline()["delivered"]["rows_written"].as_u64().unwrap() > 0);
    persister
        .wait("at rest", |one| one.json("/api/v1/backlog")["pipelines"]["metrics"]["records"] == 0);
    assert_eq!(listed(dir, &[]), [11]);
    assert_eq!(act(dir, &["drop", "--all", "--yes"])["removed"], 1);
    assert_eq!(listed(dir, &[]), [0_i64; 0]);
    assert_eq!(listed(dir, &["--url", &persister.url]), [0_i64; 0]);
    let counted = ["dead_letters", "dead_letters_dropped_total", "dead_letters_retried_total"];
    let counted = counted.map(|name| persister.metric(name).to_string());
    assert_eq!(counted, ["0", "1", "1"]);
    persister.stop();
}

/// What is said in a header of a letter in its topic.
fn header(message: &OwnedMessage, name: &str) -> String {
    let headers = message.headers().unwrap();
    let found = headers.iter().find(|header| header.key == format!("dead-letter.{name}"));
    String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
}

/// Letters in a topic by partition and offset of their messages, once there are so many of them.
fn consume(kafka: &Kafka, topic: &str, letters: usize) -> BTreeMap<(String, String), OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "reader")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[topic]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut found = BTreeMap::new();
    while found.len() < letters && Instant::now() < deadline {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            let message = message.detach();
            found.insert((header(&message, "partition"), header(&message, "offset")), message);
        }
    }
    found
}

#[test]
fn letters_leave_the_log_only_when_their_topic_has_them() {
    const WAITING: usize = 1500;
    let mut kafka = Kafka::start().unwrap();
    kafka.create_topic("metrics", 1).unwrap();
    kafka.create_topic("dead", 1).unwrap();
    let bootstrap = kafka.bootstrap();
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &bootstrap).create().unwrap();
    producer.send(BaseRecord::to("metrics").key(b"first").payload(&GARBAGE[..])).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
    // Some that lie there already, while no broker answers.
    let waiting: Vec<_> = (0..i64::try_from(WAITING).unwrap())
        .map(|offset| letter(offset, "MESSAGE_TOO_LARGE", &vec![b'x'; 4096]))
        .collect();
    let dir = data_dir(&waiting);
    let dir = dir.path();
    kafka.kill();
    let settings =
        [("KAFKA__BOOTSTRAP_SERVERS", bootstrap.as_str()), ("DEAD_LETTERS__TOPIC", "dead")];
    let persister = Persister::start_with(dir, &settings);
    persister.wait("told", |one| {
        let status = one.json("/api/v1/status");
        let reasons = status["reasons"].as_array().unwrap();
        reasons.iter().any(|reason| reason["code"] == "DEAD_LETTERS_TOPIC")
    });
    assert_eq!(listed(dir, &[]).len(), WAITING);
    let forwarded = |one: &Persister| {
        usize::try_from(
            one.json("/api/v1/backlog")["dead_letter_log"]["forwarded"].as_u64().unwrap(),
        )
        .unwrap()
    };
    kafka.restart().unwrap();
    persister.wait("begun", |one| forwarded(one) > 0);
    kafka.kill();
    kafka.restart().unwrap();
    persister.wait("sent", |one| {
        one.json("/api/v1/backlog")["dead_letters"] == 0 && forwarded(one) > WAITING
    });
    assert_eq!(listed(dir, &[]), [0_i64; 0]);
    assert_eq!(
        persister.metric("dead_letters_forwarded_total").to_string(),
        (WAITING + 1).to_string()
    );
    persister.stop();

    let sent = consume(&kafka, "dead", WAITING + 1);
    assert_eq!(sent.len(), WAITING + 1);
    let told = |message: &OwnedMessage| {
        ["topic", "element", "code", "instance"].map(|name| header(message, name))
    };
    let first = &sent[&("0".to_owned(), "0".to_owned())];
    assert_eq!((first.key(), first.payload()), (Some(&b"first"[..]), Some(&GARBAGE[..])));
    assert_eq!(told(first), ["metrics", "0", "NOT_UTF8", "one"]);
    let last = &sent[&("3".to_owned(), (WAITING - 1).to_string())];
    assert_eq!((last.key(), last.payload().map(<[u8]>::len)), (Some(&b"key"[..]), Some(4096)));
    assert_eq!(told(last), ["metrics", "0", "MESSAGE_TOO_LARGE", "one"]);
}
