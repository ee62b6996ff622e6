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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Cassandra, Kafka, Process, http};
use monasca_persister::decode;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::CqlTimestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use storage::IdScheme;
use storage::cassandra::{CassandraConfig, schema};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const TOPIC: &str = "metrics";
const PARTITIONS: usize = 4;
const SERIES: usize = 10_000;
/// Each series sends one value in this time.
const PERIOD_MS: i64 = 10_000;
const BATCH_ROWS_MAX: usize = 100;
const IN_FLIGHT: usize = 64;
const RETENTION_S: i32 = 45 * 24 * 60 * 60;
const REPLICATION: &str = "{'class': 'SimpleStrategy', 'replication_factor': 1}";
/// Often enough for a run of a second, seldom enough to cost nothing.
const POLL: Duration = Duration::from_millis(20);
const STEP_WAIT: Duration = Duration::from_secs(600);

/// What a process used since it began.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu_s: f64,
    rss_mib: f64,
    rss_mib_peak: f64,
}

fn usage(pid: u32) -> Usage {
    /// Linux counts a process' time in hundredths of a second on every machine that it shows them on.
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    };
    Usage { cpu_s: ticks / TICKS_PER_S, rss_mib: mib("VmRSS:"), rss_mib_peak: mib("VmHWM:") }
}

/// What was measured between two moments.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Figures {
    records_per_s: f64,
    cpu_s_per_million: f64,
    server_cpu_s_per_million: f64,
    rss_mib: f64,
    rss_mib_peak: f64,
    rows_per_request: Option<f64>,
}

/// A moment of a client and the server it talks to.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    pids: (u32, u32),
    client: Usage,
    server: Usage,
}

impl Moment {
    fn now(client: u32, server: u32) -> Self {
        Self {
            at: Instant::now(),
            pids: (client, server),
            client: usage(client),
            server: usage(server),
        }
    }

    fn until_now(&self, records: usize) -> Figures {
        let end = Self::now(self.pids.0, self.pids.1);
        let millions = records as f64 / 1e6;
        Figures {
            records_per_s: records as f64 / (end.at - self.at).as_secs_f64(),
            cpu_s_per_million: (end.client.cpu_s - self.client.cpu_s) / millions,
            server_cpu_s_per_million: (end.server.cpu_s - self.server.cpu_s) / millions,
            rss_mib: end.client.rss_mib,
            rss_mib_peak: end.client.rss_mib_peak,
            rows_per_request: None,
        }
    }
}

/// Waits until a server does nothing worth mentioning: compactions and flushes of the step before.
fn settle(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = usage(pid).cpu_s;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_secs(1));
        let now = usage(pid).cpu_s;
        if now - before < 0.1 {
            return;
        }
        before = now;
    }
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}=`{text}` cannot be used")))
}

/// Where the client runs when servers and client have a core of their own.
fn client_cpu() -> Option<usize> {
    let cores = std::thread::available_parallelism().unwrap().get();
    (cores >= 2 && variable("BENCH_PIN") != Some(0)).then_some(0)
}

/// Everything that is sent; the same to every engine.
#[derive(Clone, Copy)]
struct Traffic {
    messages: usize,
    newest_ms: i64,
}

impl Traffic {
    fn rows_of(self, series: usize) -> usize {
        self.messages / SERIES + usize::from(series < self.messages % SERIES)
    }

    fn time_ms(self, series: usize, tick: usize) -> i64 {
        let ticks = self.messages.div_ceil(SERIES);
        self.newest_ms - PERIOD_MS * (ticks - tick) as i64 + series as i64 % PERIOD_MS
    }

    fn value(series: usize, tick: usize) -> f64 {
        let mixed = ((series * 7919 + tick) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 44) as f64 / 10_000.0
    }

    /// As agents send them: four dimensions, about 316 bytes.
    fn message(self, series: usize, tick: usize) -> String {
        let (metric, host) = (series % 50, series / 50);
        let (time_ms, value) = (self.time_ms(series, tick), Self::value(series, tick));
        format!(
            r#"{{"metric":{{"name":"cpu.idle_perc_{metric:02}","dimensions":{{"hostname":"compute-{host:04}.region-one.example","service":"monitoring","component":"hypervisor","zone":"nova-az-{}"}},"timestamp":{time_ms},"value":{value},"value_meta":{{}}}},"meta":{{"tenantId":"0123456789abcdef0123456789abcdef","region":"RegionOne"}},"creation_time":{}}}"#,
            host % 4,
            time_ms / 1000
        )
    }

    /// The series' id, by the program's own reading of one of its messages.
    fn id(self, series: usize) -> Vec<u8> {
        let mut id = Vec::new();
        decode::metrics(self.message(series, 0).as_bytes(), |_, metric| {
            id = metric.unwrap().id(IdScheme::default()).as_bytes().to_vec();
        });
        id
    }

    /// Fills the topic; returns the mean length of a message.
    fn produce(self, bootstrap: &str) -> f64 {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "20")
            .create()
            .unwrap();
        let mut bytes = 0;
        for number in 0..self.messages {
            let series = number % SERIES;
            let message = self.message(series, number / SERIES);
            bytes += message.len();
            let mut record = BaseRecord::<(), str>::to(TOPIC)
                .partition((series % PARTITIONS) as i32)
                .payload(&message);
            while let Err((error, back)) = producer.send(record) {
                assert_eq!(
                    error,
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull),
                    "produce"
                );
                producer.poll(Duration::from_millis(50));
                record = back;
            }
        }
        producer.flush(STEP_WAIT).unwrap();
        bytes as f64 / self.messages as f64
    }
}

/// A bare client is this program again, with a role: its memory and CPU are then its own, and so is its core.
fn child(dir: &Path, role: &str, environment: &[(&str, String)]) -> Figures {
    let log = dir.join(harness::unique(role));
    let mut builder =
        ProcessBuilder::new(std::env::current_exe().unwrap(), &log).env("BENCH_ROLE", role);
    for (name, value) in environment {
        builder = builder.env(*name, value);
    }
    let mut process = builder.cpu(client_cpu()).start().unwrap();
    let ended = process.wait(STEP_WAIT);
    let text = process.log();
    assert!(ended.is_some_and(|status| status.success()), "{role}: {ended:?}\n{text}");
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// Role `consume`: librdkafka with the program's own fetch settings, and nothing else.
fn consume() -> Figures {
    let (bootstrap, messages): (String, usize) =
        (variable("BENCH_SERVER").unwrap(), variable("BENCH_MESSAGES").unwrap());
    let server = variable("BENCH_SERVER_PID").unwrap();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.max.messages.kbytes", "32768")
        .set("check.crcs", "true")
        .set("bootstrap.servers", bootstrap)
        .set("group.id", harness::unique("bare"))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[TOPIC]).unwrap();
    let mut begun = None;
    let (mut count, mut bytes) = (0, 0);
    let deadline = Instant::now() + STEP_WAIT;
    while count < messages {
        assert!(Instant::now() < deadline, "only {count} messages arrived");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        begun.get_or_insert_with(|| Moment::now(std::process::id(), server));
        bytes += message.unwrap().payload_len();
        count += 1;
    }
    assert!(std::hint::black_box(bytes) > 0, "messages have bytes");
    begun.unwrap().until_now(messages)
}

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
    let ids: Arc<Vec<Vec<u8>>> = Arc::new((0..SERIES).map(|series| traffic.id(series)).collect());
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
                        if first >= traffic.rows_of(0) {
                            return requests;
                        }
                        let last = (first + batch_rows).min(traffic.rows_of(series));
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
            let rows = self.session.query_unpaged(count, (traffic.id(series),)).await.unwrap();
            let (found,) = rows.into_rows_result().unwrap().single_row::<(i64,)>().unwrap();
            let drop = format!("DROP KEYSPACE {keyspace}");
            self.session.query_unpaged(drop, ()).await.unwrap();
            found
        });
        assert_eq!(found, traffic.rows_of(series) as i64, "rows of one series");
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

/// One line of the table: an engine doing one thing, once per round.
struct Line {
    shape: &'static str,
    engine: String,
    figures: Vec<Figures>,
}

impl Line {
    /// Smallest, middle and largest of a figure.
    fn spread(&self, figure: impl Fn(&Figures) -> f64) -> [f64; 3] {
        let mut values: Vec<f64> = self.figures.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        [values[0], values[values.len() / 2], values[values.len() - 1]]
    }

    fn median(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        self.spread(figure)[1]
    }

    fn rows_per_request(&self) -> Option<f64> {
        self.figures[0].rows_per_request?;
        Some(self.median(|figures| figures.rows_per_request.unwrap_or_default()))
    }

    fn print(&self) {
        let [min, median, max] = self.spread(|figures| figures.records_per_s);
        println!(
            "{:<18} {:<30} {median:>9.0} {:>22} {:>7.2} {:>7.2} {:>6.0} {:>6.0} {:>6}",
            self.shape,
            self.engine,
            format!("({min:.0} .. {max:.0})"),
            self.median(|figures| figures.cpu_s_per_million),
            self.median(|figures| figures.server_cpu_s_per_million),
            self.median(|figures| figures.rss_mib),
            self.spread(|figures| figures.rss_mib_peak)[2],
            self.rows_per_request().map_or_else(String::new, |rows| format!("{rows:.1}")),
        );
    }

    fn json(&self) -> Value {
        let [min, median, max] = self.spread(|figures| figures.records_per_s);
        json!({
            "shape": self.shape,
            "engine": self.engine,
            "records_per_s": {
                "median": median, "min": min, "max": max, "runs": self.figures.len(),
            },
            "cpu_s_per_million": self.median(|figures| figures.cpu_s_per_million),
            "server_cpu_s_per_million": self.median(|figures| figures.server_cpu_s_per_million),
            "rss_mib": self.median(|figures| figures.rss_mib),
            "rss_mib_peak": self.spread(|figures| figures.rss_mib_peak)[2],
            "rows_per_request": self.rows_per_request(),
        })
    }
}

fn measure() {
    let messages = variable("BENCH_MESSAGES").unwrap_or(1_000_000);
    let rounds: usize = variable("BENCH_ROUNDS").unwrap_or(5);
    assert!(messages >= 2 * SERIES && rounds > 0, "at least {} messages and a round", 2 * SERIES);
    let parent = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = TempDir::with_prefix_in("bench-", parent).unwrap();
    let dir = dir.path();
    let newest_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let traffic = Traffic { messages, newest_ms };

    let mut builder = Kafka::builder();
    if client_cpu().is_some() {
        builder = builder.cpu(1);
    }
    let kafka = builder.start().unwrap();
    let database = Database::start();
    kafka.create_topic(TOPIC, PARTITIONS as i32).unwrap();
    let message_bytes = traffic.produce(&kafka.bootstrap());
    let kafka_pid = kafka.pid().unwrap();
    let consume = || {
        let environment = [
            ("BENCH_SERVER", kafka.bootstrap()),
            ("BENCH_SERVER_PID", kafka_pid.to_string()),
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
        .map(|((shape, engine), figures)| Line { shape, engine, figures })
        .collect();
    report(&lines);
}

fn report(lines: &[Line]) {
    println!(
        "{:<18} {:<30} {:>9} {:>22} {:>7} {:>7} {:>6} {:>6} {:>6}",
        "", "", "records/s", "(min .. max)", "CPU", "server", "MiB", "peak", "rows"
    );
    lines.iter().for_each(Line::print);
    println!("CPU: seconds per million records, client's and server's. rows: per request.");
    let rate = |line: usize| lines[line].median(|figures| figures.records_per_s);
    println!("Kafka to log / librdkafka: {:.2}", rate(1) / rate(0));
    println!("log to Cassandra / bare driver, full batches: {:.2}", rate(2) / rate(4));
    println!("second half / bare driver, batches as full as its own: {:.2}", rate(3) / rate(5));

    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let file = target.join("bench").join("e2e.json");
    let rows: Vec<Value> = lines.iter().map(Line::json).collect();
    let text = serde_json::to_string_pretty(&json!({"name": "e2e", "rows": rows, "targets": []}));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text.unwrap()).unwrap();
    println!("written to {}", file.display());
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
