//! The program, from Kafka into its log and from its log into Cassandra.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Kafka, Process, http};
use serde_json::Value;

use crate::common::{Figures, Moment, STEP_WAIT, Traffic, client_cpu};
use crate::database::Database;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
pub const TOPIC: &str = "metrics";
/// Often enough for a run of a second, seldom enough to cost nothing.
const POLL: Duration = Duration::from_millis(20);

/// The program, running.
pub struct Persister {
    process: Process,
    url: String,
}

impl Persister {
    /// `round` names its consumer group and its data directory, so that the next start goes on where this one ends.
    pub fn start(
        dir: &Path,
        round: &str,
        kafka: &Kafka,
        topic: &str,
        contact_point: &str,
        keyspace: &str,
    ) -> Self {
        let port = harness::free_port().unwrap();
        let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
        let environment = [
            set("DATA_DIR", &dir.join(round).to_string_lossy()),
            set("HTTP__BIND", &format!("127.0.0.1:{port}")),
            set("KAFKA__BOOTSTRAP_SERVERS", &kafka.bootstrap()),
            set("METRICS__TOPIC", topic),
            set("METRICS__GROUP_ID", round),
            set("ALARMS__ENABLED", "false"),
            set("STORE__CASSANDRA__CONTACT_POINTS", contact_point),
            set("STORE__CASSANDRA__KEYSPACE", keyspace),
            set("STORE__CASSANDRA__CONSISTENCY", "ONE"),
            set("SHUTDOWN__MODE", "persist"),
            set("LOGGING__LEVEL", "warn"),
        ];
        let mut builder = ProcessBuilder::new(PROGRAM, dir.join(format!("{round}.log")))
            .args(["run"])
            .cpu(client_cpu());
        for (name, value) in environment {
            builder = builder.env(name, value);
        }
        let process = builder.start().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        assert!(
            http::wait_ok(&format!("{url}/readyz"), Duration::from_secs(30)),
            "the persister is not ready after 30 s:\n{}",
            process.log_tail()
        );
        Self { process, url }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid().unwrap()
    }

    pub fn ask(&self, path: &str) -> Value {
        let (_, body) = http::get(&format!("{}{path}", self.url)).unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// Polls the backlog until `done` of one of its counts; returns that count.
    pub fn wait(&self, count: &str, done: impl Fn(usize) -> bool) -> usize {
        let deadline = Instant::now() + STEP_WAIT;
        loop {
            let backlog = self.ask("/api/v1/backlog");
            assert_eq!(backlog["dead_letters"], 0, "every message is good");
            let value = backlog["pipelines"]["metrics"][count].as_u64().unwrap() as usize;
            if done(value) {
                return value;
            }
            assert!(
                Instant::now() < deadline,
                "{count} stays at {value}: {}\n{}",
                self.ask("/api/v1/status"),
                self.process.log_tail()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Rows written and requests for them since the start.
    pub fn delivered(&self) -> (f64, f64) {
        let status = self.ask("/api/v1/status");
        let counts = &status["pipelines"]["metrics"]["delivered"];
        (counts["rows_written"].as_f64().unwrap(), counts["requests_ok"].as_f64().unwrap())
    }

    pub fn stop(mut self) {
        self.process.terminate();
        let ended = self.process.wait(Duration::from_secs(60));
        assert_eq!(
            ended.and_then(|status| status.code()),
            Some(0),
            "the persister's end:\n{}",
            self.process.log_tail()
        );
    }
}

/// From Kafka into the log. Cassandra is not there, so all of it stays; what the second stage takes up before it
/// notices is decoded and part of the CPU time.
pub fn fill(dir: &Path, round: &str, kafka: &Kafka, messages: usize) -> Figures {
    let nobody = format!("127.0.0.1:{}", harness::free_port().unwrap());
    let persister = Persister::start(dir, round, kafka, TOPIC, &nobody, "absent");
    let first = persister.wait("durable", |durable| durable > 0);
    let begun = Moment::now(persister.pid(), kafka.pid().unwrap());
    assert!(first < messages, "all was durable before the first look: use more messages");
    let last = persister.wait("durable", |durable| durable >= messages);
    let figures = begun.until_now(last - first);
    persister.wait("records", |records| records == messages);
    persister.stop();
    figures
}

/// The whole backlog into Cassandra, and the second half of it by itself.
pub fn drain(
    dir: &Path,
    round: &str,
    kafka: &Kafka,
    database: &Database,
    traffic: Traffic,
) -> [Figures; 2] {
    database.with_keyspace(traffic, |keyspace| {
        let contact_point = database.node.contact_point();
        let persister = Persister::start(dir, round, kafka, TOPIC, &contact_point, keyspace);
        // What is delivered is acknowledged in large parts: only rows tell when it begins.
        while persister.delivered() == (0.0, 0.0) {
            std::thread::sleep(POLL);
        }
        let first = traffic.messages - persister.delivered().0 as usize;
        let begun = Moment::now(persister.pid(), database.pid());
        let middle = persister.wait("records", |records| records <= traffic.messages / 2);
        let halfway = Moment::now(persister.pid(), database.pid());
        let before = persister.delivered();
        assert!(middle > 0, "all was delivered between two looks: use more messages");
        persister.wait("records", |records| records == 0);
        let mut figures = [begun.until_now(first), halfway.until_now(middle)];
        let after = persister.delivered();
        figures[0].rows_per_request = Some(after.0 / after.1);
        figures[1].rows_per_request = Some((after.0 - before.0) / (after.1 - before.1));
        persister.stop();
        figures
    })
}
