//! The whole way from Kafka through the log into Cassandra, beside what bare clients reach on the same servers.
//!
//! Every round measures, in turn and never two at a time: librdkafka that only consumes; the program from Kafka into
//! its log while Cassandra is away; the same program emptying that log into Cassandra; the bare driver writing the
//! same rows, in batches as full as can be and in batches as full as the program's were. A rate counts from the first
//! record seen to the last, so that starting, joining a group and connecting are left out. The first half of a drain
//! also writes the definitions of all series, which the bare driver does not do; the second half is shown by itself.
//! A discarded pass warms the servers, and each step waits until they are idle.
//!
//! `BENCH_MESSAGES` (1,000,000), `BENCH_ROUNDS` (5), `BENCH_DIR` (the log's directory; default: the system's temporary
//! one, which must not be memory). With two cores or more the servers are pinned to one and the client to another, the
//! same way for all engines, unless `BENCH_PIN=0`. The table is also written to `bench/e2e.json` in Cargo's target
//! directory. Two things it cannot say: how it scales over more nodes or cores, and what another disk does.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a benchmark prints, and fails by panicking; its numbers are small"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Cassandra, Kafka, Process, http};
use monasca_persister::decode;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::CqlTimestamp;
use serde_json::Value;
use storage::IdScheme;
use storage::cassandra::{CassandraConfig, schema};

use common::{
    Figures, Line, Moment, SERIES, STEP_WAIT, Traffic, child, client_cpu, consume, settle, variable,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const TOPIC: &str = "metrics";
const PARTITIONS: usize = 4;
const BATCH_ROWS_MAX: usize = 100;
const IN_FLIGHT: usize = 64;
const RETENTION_S: i32 = 45 * 24 * 60 * 60;
const REPLICATION: &str = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
/// Often enough for a run of a second, seldom enough to cost nothing.
const POLL: Duration = Duration::from_millis(20);

/// Role `insert`: the bare driver, unlogged batches of one series' rows, a fixed number of them in flight.
fn insert() -> Figures {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let traffic = Traffic {
        messages: variable("BENCH_MESSAGES").unwrap(),
        newest_ms: variable("BENCH_NEWEST_MS").unwrap(),
    };
    let batch_rows = variable::<usize>("BENCH_BATCH_ROWS").unwrap();
    let keyspace: String = variable("BENCH_KEYSPACE").unwrap();
    let server = variable("BENCH_SERVER_PID").unwrap();
    let ids: Arc<Vec<Vec<u8>>> =
        Arc::new((0..SERIES).map(|series| id_of(traffic, series)).collect());
    runtime.block_on(async {
        let session = Arc::new(connect(&variable::<String>("BENCH_SERVER").unwrap()).await);
        let statement = session
            .prepare(format!(
                "INSERT INTO {keyspace}.measurements (metric_id, time_stamp, value, value_meta) \
                 VALUES (?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?"
            ))
            .await
            .unwrap();
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Moment::now(std::process::id(), server);
        let tasks: Vec<_> = (0..IN_FLIGHT)
            .map(|_| {
                let (session, statement) = (Arc::clone(&session), statement.clone());
                let (next, ids) = (Arc::clone(&next), Arc::clone(&ids));
                tokio::spawn(async move {
                    let mut requests = 0;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let (series, first) = (number % SERIES, number / SERIES * batch_rows);
                        if first >= rows_of(traffic, 0) {
                            return requests;
                        }
                        let last = (first + batch_rows).min(rows_of(traffic, series));
                        let rows: Vec<_> = (first..last)
                            .map(|tick| {
                                let time_ms = traffic.time_ms(series, tick);
                                let (id, time) = (ids[series].as_slice(), CqlTimestamp(time_ms));
                                let value = Traffic::value(series, tick);
                                (id, time, value, "", time_ms * 1000, RETENTION_S)
                            })
                            .collect();
                        if rows.is_empty() {
                            continue;
                        }
                        let mut batch = Batch::new(BatchType::Unlogged);
                        for _ in &rows {
                            batch.append_statement(statement.clone());
                        }
                        session.batch(&batch, &rows).await.unwrap();
                        requests += 1;
                    }
                })
            })
            .collect();
        let mut requests = 0;
        for task in tasks {
            requests += task.await.unwrap();
        }
        let mut figures = begun.until_now(traffic.messages);
        figures.rows_per_request = Some(traffic.messages as f64 / f64::from(requests));
        figures
    })
}

fn rows_of(traffic: Traffic, series: usize) -> usize {
    traffic.messages / SERIES + usize::from(series < traffic.messages % SERIES)
}

/// The series' id, by the program's own reading of one of its messages.
fn id_of(traffic: Traffic, series: usize) -> Vec<u8> {
    let mut id = Vec::new();
    decode::metrics(traffic.message(series, 0).as_bytes(), |_, metric| {
        id = metric.unwrap().id(IdScheme::default()).as_bytes().to_vec();
    });
    id
}

async fn connect(contact_point: &str) -> Session {
    SessionBuilder::new().known_node(contact_point).tcp_nodelay(true).build().await.unwrap()
}

/// Keyspaces of Cassandra, one per step.
struct Database {
    node: Cassandra,
    runtime: tokio::runtime::Runtime,
    session: Session,
}

impl Database {
    fn start() -> Self {
        // A dropped keyspace is gone, not kept as a snapshot.
        let mut builder = Cassandra::builder().setting("auto_snapshot", "false");
        if client_cpu().is_some() {
            builder = builder.cpu(1);
        }
        let node = builder.start().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let session = runtime.block_on(connect(&node.contact_point()));
        Self { node, runtime, session }
    }

    fn pid(&self) -> u32 {
        self.node.pid().unwrap()
    }

    /// Runs `step` with a fresh keyspace, counts what it left for one series, and drops the keyspace.
    fn with_keyspace<T>(&self, traffic: Traffic, step: impl FnOnce(&str) -> T) -> T {
        let keyspace = harness::unique("bench");
        let config = CassandraConfig {
            contact_points: vec![self.node.contact_point()],
            keyspace: keyspace.clone(),
            consistency: "ONE".to_owned(),
            ..CassandraConfig::default()
        };
        self.runtime.block_on(schema::apply(&config, REPLICATION)).unwrap();
        settle(self.pid());
        let result = step(&keyspace);
        let series = SERIES / 3;
        let found: i64 = self.runtime.block_on(async {
            let count = format!("SELECT COUNT(*) FROM {keyspace}.measurements WHERE metric_id = ?");
            let rows = self.session.query_unpaged(count, (id_of(traffic, series),)).await.unwrap();
            let (found,) = rows.into_rows_result().unwrap().single_row::<(i64,)>().unwrap();
            let drop = format!("DROP KEYSPACE {keyspace}");
            self.session.query_unpaged(drop, ()).await.unwrap();
            found
        });
        assert_eq!(found, rows_of(traffic, series) as i64, "rows of one series");
        result
    }

    fn insert(&self, dir: &Path, traffic: Traffic, batch_rows: usize) -> Figures {
        self.with_keyspace(traffic, |keyspace| {
            let environment = [
                ("BENCH_SERVER", self.node.contact_point()),
                ("BENCH_SERVER_PID", self.pid().to_string()),
                ("BENCH_KEYSPACE", keyspace.to_owned()),
                ("BENCH_MESSAGES", traffic.messages.to_string()),
                ("BENCH_NEWEST_MS", traffic.newest_ms.to_string()),
                ("BENCH_BATCH_ROWS", batch_rows.to_string()),
            ];
            child(dir, "insert", &environment)
        })
    }
}

/// The program, running.
struct Persister {
    process: Process,
    url: String,
}

impl Persister {
    /// `round` names its consumer group and its data directory, so that the next start goes on where this one ends.
    fn start(dir: &Path, round: &str, kafka: &Kafka, contact_point: &str, keyspace: &str) -> Self {
        let port = harness::free_port().unwrap();
        let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
        let environment = [
            set("DATA_DIR", &dir.join(round).to_string_lossy()),
            set("HTTP__BIND", &format!("127.0.0.1:{port}")),
            set("KAFKA__BOOTSTRAP_SERVERS", &kafka.bootstrap()),
            set("METRICS__TOPIC", TOPIC),
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

    fn pid(&self) -> u32 {
        self.process.pid().unwrap()
    }

    fn ask(&self, path: &str) -> Value {
        let (_, body) = http::get(&format!("{}{path}", self.url)).unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// Polls the backlog until `done` of one of its counts; returns that count.
    fn wait(&self, count: &str, done: impl Fn(usize) -> bool) -> usize {
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
    fn delivered(&self) -> (f64, f64) {
        let status = self.ask("/api/v1/status");
        let counts = &status["pipelines"]["metrics"]["delivered"];
        (counts["rows_written"].as_f64().unwrap(), counts["requests_ok"].as_f64().unwrap())
    }

    fn stop(mut self) {
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
fn fill(dir: &Path, round: &str, kafka: &Kafka, messages: usize) -> Figures {
    let nobody = format!("127.0.0.1:{}", harness::free_port().unwrap());
    let persister = Persister::start(dir, round, kafka, &nobody, "absent");
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
fn drain(
    dir: &Path,
    round: &str,
    kafka: &Kafka,
    database: &Database,
    traffic: Traffic,
) -> [Figures; 2] {
    database.with_keyspace(traffic, |keyspace| {
        let contact_point = database.node.contact_point();
        let persister = Persister::start(dir, round, kafka, &contact_point, keyspace);
        let first = persister.wait("records", |records| records < traffic.messages);
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

fn measure() {
    let messages = variable("BENCH_MESSAGES").unwrap_or(1_000_000);
    let rounds: usize = variable("BENCH_ROUNDS").unwrap_or(5);
    assert!(messages >= 2 * SERIES && rounds > 0, "at least {} messages and a round", 2 * SERIES);
    let dir = common::directory();
    let dir = dir.path();
    let traffic = Traffic::until_now(messages);

    let mut builder = Kafka::builder();
    if client_cpu().is_some() {
        builder = builder.cpu(1);
    }
    let kafka = builder.start().unwrap();
    let database = Database::start();
    kafka.create_topic(TOPIC, PARTITIONS as i32).unwrap();
    let message_bytes = traffic.produce(&kafka.bootstrap(), TOPIC, PARTITIONS);
    let kafka_pid = kafka.pid().unwrap();
    let consume = || {
        let environment = [
            ("BENCH_SERVER", kafka.bootstrap()),
            ("BENCH_SERVER_PID", kafka_pid.to_string()),
            ("BENCH_TOPIC", TOPIC.to_owned()),
            ("BENCH_MESSAGES", messages.to_string()),
        ];
        settle(kafka_pid);
        child(dir, "consume", &environment)
    };
    println!(
        "{messages} messages of {message_bytes:.0} bytes, {SERIES} series, {PARTITIONS} partitions, lz4; {}",
        if client_cpu().is_some() {
            "servers on one core, client on another"
        } else {
            "servers and client share all cores"
        }
    );
    // Warms the broker's page cache and the servers' compilers; nothing of it counts.
    consume();
    database.insert(dir, traffic, BATCH_ROWS_MAX);

    let mut steps: [Vec<Figures>; 6] = Default::default();
    let mut matched = None;
    for round in 0..rounds {
        let name = format!("round_{round}");
        steps[0].push(consume());
        settle(kafka_pid);
        steps[1].push(fill(dir, &name, &kafka, messages));
        let full = |steps: &mut [Vec<Figures>; 6]| {
            steps[4].push(database.insert(dir, traffic, BATCH_ROWS_MAX));
        };
        // Whoever comes second meets another Cassandra: they take turns.
        if round % 2 == 1 {
            full(&mut steps);
        }
        let [whole, second_half] = drain(dir, &name, &kafka, &database, traffic);
        steps[2].push(whole);
        steps[3].push(second_half);
        if round % 2 == 0 {
            full(&mut steps);
        }
        let rows = *matched.get_or_insert_with(|| {
            (second_half.rows_per_request.unwrap().round() as usize).clamp(1, BATCH_ROWS_MAX)
        });
        steps[5].push(database.insert(dir, traffic, rows));
        std::fs::remove_dir_all(dir.join(&name)).unwrap();
    }

    let names = [
        ("from Kafka", "librdkafka, consume only".to_owned()),
        ("Kafka to log", "monasca-persister".to_owned()),
        ("log to Cassandra", "monasca-persister".to_owned()),
        ("… second half", "monasca-persister".to_owned()),
        ("to Cassandra", format!("bare driver, batches of {BATCH_ROWS_MAX}")),
        ("to Cassandra", format!("bare driver, batches of {}", matched.unwrap_or(0))),
    ];
    let lines: Vec<Line> = names
        .into_iter()
        .zip(steps)
        .map(|((shape, engine), figures)| Line { shape: shape.to_owned(), engine, figures })
        .collect();
    report(&lines);
}

fn report(lines: &[Line]) {
    common::print(lines);
    let rate = |line: usize| lines[line].median(|figures| figures.records_per_s);
    println!("Kafka to log / librdkafka: {:.2}", rate(1) / rate(0));
    println!("log to Cassandra / bare driver, full batches: {:.2}", rate(2) / rate(4));
    println!("second half / bare driver, batches as full as its own: {:.2}", rate(3) / rate(5));
    common::write("e2e", lines, &[]);
}

fn main() {
    let figures = match std::env::var("BENCH_ROLE").as_deref() {
        Ok("consume") => consume(),
        Ok("insert") => insert(),
        // `cargo test --benches` only asks whether it builds.
        _ if !std::env::args().any(|argument| argument == "--bench") => return,
        _ => return measure(),
    };
    println!("{}", serde_json::to_string(&figures).unwrap());
}
