//! The first stage, from Kafka into the log, beside the bare client library on the same server.
//!
//! Every round measures, in turn and never two at a time, for a topic of few and one of many partitions: librdkafka
//! that only consumes, with the program's own settings and polled as the program does; and the threads that the program
//! has for its first stage (consumer, ledger, log with its committers), with every record synced and every offset
//! committed, into a log without compression and into one with the default, LZ4. Nothing is delivered, so the log
//! grows all the time, and its new files are filled with zeros beside it. Each run is a process of its own: its memory
//! and its processor time are nobody else's. A rate counts from the first record seen to the last one that is durable;
//! joining the group is left out.
//!
//! Discarded passes warm the server. What is committed to Kafka in the end is compared with what was sent.
//!
//! `BENCH_MESSAGES` (2,000,000 per topic), `BENCH_ROUNDS` (5), `BENCH_DIR` (the log's directory; default: the system's
//! temporary one, which must not be memory). With two cores or more the server is pinned to one and the client to
//! another, the same way for all engines, unless `BENCH_PIN=0`. The table is also written to `bench/ingest.json` in
//! Cargo's target directory, with the targets, kept or missed.
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

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    Figures, Line, Moment, SERIES, STEP_WAIT, Traffic, child, client_cpu, consume, settle, variable,
};
use harness::Kafka;
use monasca_persister::config::{Config, PipelineConfig};
use monasca_persister::delivered::DeliveredOffsets;
use monasca_persister::gather::Kind;
use monasca_persister::ingest::IngestConfig;
use monasca_persister::intake::Intake;
use monasca_persister::kafka::ledger::{LedgerKeeper, LedgerThread};
use monasca_persister::kafka::{IngestParts, IngestShared, Ingestion};
use monasca_persister::keeper::Keeper;
use monasca_persister::offset_note::{LogOffsets, OffsetCarry};
use monasca_persister::orders::Orders;
use monasca_persister::pipeline;
use serde_json::{Value, json};
use wal::{Committer, Compression, DiskFs, Wal, WalConfig};

/// The program's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TOPICS: [(&str, usize); 2] = [("few", 4), ("many", 64)];
/// How often a run looks how far it is.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Consume,
    Plain,
    Lz4,
}

impl Engine {
    const ALL: [Self; 3] = [Self::Consume, Self::Plain, Self::Lz4];

    fn role(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Plain => "plain",
            Self::Lz4 => "lz4",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Consume => "librdkafka, consume only",
            Self::Plain => "Kafka to log, plain",
            Self::Lz4 => "Kafka to log, lz4",
        }
    }
}

/// Roles `plain` and `lz4`: the program's first stage, put together as the program does.
fn ingest(compression: Compression) -> Figures {
    let messages: usize = variable("BENCH_MESSAGES").unwrap();
    let server = variable("BENCH_SERVER_PID").unwrap();
    let mut config = Config { data_dir: variable("BENCH_LOG").unwrap(), ..Config::default() };
    config.kafka.bootstrap_servers = vec![variable("BENCH_SERVER").unwrap()];
    let pipeline = PipelineConfig {
        topic: variable("BENCH_TOPIC").unwrap(),
        group_id: variable("BENCH_GROUP").unwrap(),
        ..config.metrics.clone()
    };
    let started = Instant::now();
    let spec = config.pipelines().find(|spec| spec.kind == Kind::Metrics).unwrap();
    let wal_config = WalConfig { compression, ..pipeline::log_config(&spec, &config) };
    let disk = DiskFs::open(&config.data_dir).unwrap();
    let carry = Box::<OffsetCarry>::default();
    let (wal, _) = Wal::open(disk, wal_config, carry, started.elapsed()).unwrap();
    let log_next = LogOffsets::decode(&wal.carry()).unwrap().next;
    let delivered = DeliveredOffsets::new(&log_next, wal.delivered(), wal.durable().through());
    let shared = IngestShared::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let keeper = LedgerKeeper {
        kafka: config.kafka.clone(),
        topic: pipeline.topic.clone(),
        group: pipeline.group_id.clone(),
        instance: "bench".to_owned(),
        keeper: Keeper::new(wal.clone(), Arc::new(Mutex::new(delivered)), log_next),
        orders: Orders::of(&config.data_dir, spec.name),
        ingest: Arc::clone(&shared),
        runtime: runtime.handle().clone(),
        started,
    };
    let (ledger, ledger_handle) =
        LedgerThread::spawn("ledger".to_owned(), keeper, |error| panic!("ledger: {error}"))
            .unwrap();
    let intake = Intake::new(
        IngestConfig { commit_interval: config.kafka.commit_interval, ..IngestConfig::default() },
        wal.clone(),
    )
    .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let parts = IngestParts {
        member: None,
        intake,
        shared: Arc::clone(&shared),
        ledger: ledger_handle,
        stop: Arc::clone(&stop),
        started,
    };
    let stage = Ingestion::new(&config.kafka, &pipeline, parts).unwrap();
    let committer = Committer::spawn(wal.clone()).unwrap();
    let thread = std::thread::spawn(move || stage.run().unwrap());

    let deadline = Instant::now() + STEP_WAIT;
    let mut begun = None;
    loop {
        let seen = shared.snapshot();
        let taken = seen.counts.messages as usize;
        if begun.is_none() && taken > 0 {
            begun = Some((taken, Moment::now(std::process::id(), server)));
        }
        let durable: i64 = seen.partitions.values().filter_map(|partition| partition.durable).sum();
        if durable as usize >= messages {
            break;
        }
        assert!(!thread.is_finished() && Instant::now() < deadline, "stays at {durable}: {seen:?}");
        std::thread::sleep(LOOK);
    }
    let (first, begun) = begun.unwrap();
    assert!(first < messages, "all was taken before the first look: use more messages");
    let mut figures = begun.until_now(messages - first);
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    ledger.stop();
    committer.stop();
    let status = wal.status();
    assert_eq!(status.backlog_records as usize, messages, "records in the log");
    figures.disk_bytes_per_payload_byte =
        Some(status.used_bytes as f64 / shared.snapshot().counts.payload_bytes as f64);
    wal.close(started.elapsed()).unwrap();
    figures
}

/// One server, and everything that runs against it.
struct Bench<'a> {
    dir: &'a Path,
    kafka: &'a Kafka,
    messages: usize,
}

impl Bench<'_> {
    fn run(&self, engine: Engine, topic: &str) -> Figures {
        let server = self.kafka.pid().unwrap();
        let group = harness::unique("first_stage");
        let log: PathBuf = self.dir.join(&group);
        let environment = [
            ("BENCH_SERVER", self.kafka.bootstrap()),
            ("BENCH_SERVER_PID", server.to_string()),
            ("BENCH_TOPIC", topic.to_owned()),
            ("BENCH_GROUP", group.clone()),
            ("BENCH_LOG", log.to_string_lossy().into_owned()),
            ("BENCH_MESSAGES", self.messages.to_string()),
        ];
        settle(server);
        let figures = child(self.dir, engine.role(), &environment);
        if engine != Engine::Consume {
            let committed = self.kafka.committed(&group, topic).unwrap();
            let committed: i64 = committed.values().sum();
            assert_eq!(committed as usize, self.messages, "offsets committed by {group}");
            std::fs::remove_dir_all(&log).unwrap();
        }
        figures
    }
}

/// The middle of a ratio of two lines' figures, each round against itself.
fn ratio(of: &Line, to: &Line, figure: impl Fn(&Figures) -> f64) -> f64 {
    let mut ratios: Vec<f64> =
        of.figures.iter().zip(&to.figures).map(|(of, to)| figure(of) / figure(to)).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn targets(lines: &[Line]) -> Vec<Value> {
    let at_least = |name: String, want: f64, got: f64| json!({"name": name, "want": format!(">= {want}"), "got": got, "ok": got >= want});
    let at_most = |name: String, want: f64, got: f64| json!({"name": name, "want": format!("<= {want}"), "got": got, "ok": got <= want});
    let mut targets = Vec::new();
    for of_a_topic in lines.chunks(Engine::ALL.len()) {
        let [consume, plain, lz4] = of_a_topic else { continue };
        let shape = &consume.shape;
        let cpu = |line| ratio(line, consume, |figures| figures.cpu_s_per_million);
        let rate = ratio(plain, consume, |figures| figures.records_per_s);
        let peak = |line: &Line| line.spread(|figures| figures.rss_mib_peak)[2];
        targets.extend([
            at_least(format!("{shape}, plain: messages/s, of consume only"), 0.8, rate),
            at_most(format!("{shape}, plain: CPU per message, of consume only"), 1.6, cpu(plain)),
            at_most(format!("{shape}, lz4: CPU per message, of consume only"), 2.0, cpu(lz4)),
            at_most(format!("{shape}: peak resident MiB"), 96.0, peak(plain).max(peak(lz4))),
        ]);
    }
    targets
}

fn measure() {
    let messages = variable("BENCH_MESSAGES").unwrap_or(2_000_000);
    let rounds: usize = variable("BENCH_ROUNDS").unwrap_or(5);
    assert!(messages >= 10 * SERIES && rounds > 0, "at least {} messages, a round", 10 * SERIES);
    let dir = common::directory();
    let mut builder = Kafka::builder();
    if client_cpu().is_some() {
        builder = builder.cpu(1);
    }
    let kafka = builder.start().unwrap();
    let traffic = Traffic::until_now(messages);
    let mut message_bytes = 0.0;
    for (topic, partitions) in TOPICS {
        kafka.create_topic(topic, partitions as i32).unwrap();
        message_bytes = traffic.produce(&kafka.bootstrap(), topic, partitions);
    }
    println!(
        "{messages} messages of {message_bytes:.0} bytes per topic, lz4 on the wire; {}",
        if client_cpu().is_some() {
            "server on one core, client on another"
        } else {
            "server and client share all cores"
        }
    );
    let bench = Bench { dir: dir.path(), kafka: &kafka, messages };
    let mut lines: Vec<Line> = TOPICS
        .iter()
        .flat_map(|(_, partitions)| {
            Engine::ALL.map(|engine| Line {
                shape: format!("{partitions} partitions"),
                engine: engine.name().to_owned(),
                figures: Vec::new(),
            })
        })
        .collect();
    // Warms the broker's page cache and its compiler; nothing of it counts.
    for (topic, _) in TOPICS {
        bench.run(Engine::Consume, topic);
        bench.run(Engine::Plain, topic);
    }
    for round in 0..rounds {
        for (of_a_topic, (topic, _)) in lines.chunks_mut(Engine::ALL.len()).zip(TOPICS) {
            // Nobody comes first always.
            for turn in 0..Engine::ALL.len() {
                let number = (round + turn) % Engine::ALL.len();
                of_a_topic[number].figures.push(bench.run(Engine::ALL[number], topic));
            }
        }
    }
    common::print(&lines);
    let targets = targets(&lines);
    println!("\n{:<58} {:>8} {:>8}", "target", "want", "got");
    for target in &targets {
        let verdict = if target["ok"] == true { "ok" } else { "MISSED" };
        println!(
            "{:<58} {:>8} {:>8.2}   {verdict}",
            target["name"].as_str().unwrap(),
            target["want"].as_str().unwrap(),
            target["got"].as_f64().unwrap(),
        );
    }
    common::write("ingest", &lines, &targets);
}

fn main() {
    let figures = match std::env::var("BENCH_ROLE").as_deref() {
        Ok("consume") => consume(),
        Ok("plain") => ingest(Compression::None),
        Ok("lz4") => ingest(Compression::Lz4),
        // `cargo test --benches` only asks whether it builds.
        _ if !std::env::args().any(|argument| argument == "--bench") => return,
        _ => return measure(),
    };
    println!("{}", serde_json::to_string(&figures).unwrap());
}
