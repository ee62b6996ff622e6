//! The second stage, from the log into Cassandra, beside the bare driver on the same node with the same rows.
//!
//! *Draining.* Every round fills a log from Kafka while Cassandra is away, then measures, in turn and never two at a
//! time: the program emptying that log; the bare driver in batches as full as the program's own were; the bare driver
//! with one statement per row. The program writes the definitions of all series besides, which the bare driver does not.
//!
//! *Live.* First one message of each series, until all are delivered: the definitions of thousands of new series at once
//! are the work of a first start. Then messages are offered at a fixed rate for some seconds; the program keeps up if no
//! more waits than what comes in three seconds. The processor time counts from the fifth second on. Kafka shares its core with Cassandra then, and
//! the sender the client's, which the bare driver has for itself.
//!
//! Discarded passes warm the servers, and each step waits until they are idle.
//!
//! `BENCH_MESSAGES` (2,000,000), `BENCH_SINGLE` (200,000 rows one by one), `BENCH_RATE` (20,000 messages per second),
//! `BENCH_SECONDS` (20 per rate), `BENCH_ROUNDS` (5), `BENCH_DIR` (the log's directory; default: the system's temporary
//! one, which must not be memory). With two cores or more the servers are pinned to one and the client to another, the
//! same way for all engines, unless `BENCH_PIN=0`. The table is also written to `bench/drain.json` in Cargo's target
//! directory, with the targets, kept or missed. Two things it cannot say: how it scales over more nodes or cores, and
//! what another disk does.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a benchmark prints, and fails by panicking; its numbers are small"
)]

mod common;
#[path = "common/database.rs"]
mod database;
#[path = "common/program.rs"]
mod program;

use std::path::Path;
use std::time::{Duration, Instant};

use harness::Kafka;
use harness::process::ProcessBuilder;
use serde_json::{Value, json};

use common::{
    Figures, Line, Moment, SERIES, STEP_WAIT, Traffic, client_cpu, consume, settle, variable,
};
use database::{BATCH_ROWS_MAX, Database, insert};
use program::{Persister, TOPIC, drain, fill};

const PARTITIONS: usize = 4;
/// Definitions are written, and the servers have settled in.
const WARM: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);

/// Everything that the steps run against.
struct Bench<'a> {
    dir: &'a Path,
    kafka: &'a Kafka,
    database: &'a Database,
}

impl Bench<'_> {
    /// Offers `rate` messages a second. Returns what the program did after the first seconds, and whether it kept up.
    fn live(&self, rate: usize, seconds: usize) -> (Figures, bool) {
        let topic = harness::unique("live");
        self.kafka.create_topic(&topic, PARTITIONS as i32).unwrap();
        // Whole ticks: the message of each series beforehand is a row that is written again.
        let traffic = Traffic::until_now((rate * seconds).next_multiple_of(SERIES));
        self.database.with_keyspace(traffic, |keyspace| {
            let contact_point = self.database.node.contact_point();
            let persister =
                Persister::start(self.dir, &topic, self.kafka, &topic, &contact_point, keyspace);
            Traffic { messages: SERIES, ..traffic }.produce(
                &self.kafka.bootstrap(),
                &topic,
                PARTITIONS,
            );
            self.wait_delivered(&persister, SERIES);
            let begun = Instant::now();
            let sender = ProcessBuilder::new(
                std::env::current_exe().unwrap(),
                self.dir.join(&topic).with_extension("sender"),
            )
            .env("BENCH_ROLE", "offer")
            .env("BENCH_SERVER", self.kafka.bootstrap())
            .env("BENCH_TOPIC", &topic)
            .env("BENCH_MESSAGES", traffic.messages.to_string())
            .env("BENCH_NEWEST_MS", traffic.newest_ms.to_string())
            .env("BENCH_RATE", rate.to_string())
            .cpu(client_cpu());
            let mut sender = sender.start().unwrap();
            std::thread::sleep(WARM);
            let warm = Moment::now(persister.pid(), self.database.pid());
            let before = persister.delivered();
            let mut waiting_most = 0;
            while begun.elapsed() < Duration::from_secs(seconds as u64) {
                std::thread::sleep(LOOK);
                // What Kafka has and the program did not take waits too.
                let offered = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
                let offered = offered.min(traffic.messages);
                let rows = persister.delivered().0 as usize - SERIES;
                waiting_most = waiting_most.max(offered.saturating_sub(rows));
            }
            let after = persister.delivered();
            let mut figures = warm.until_now((after.0 - before.0) as usize);
            figures.rows_per_request = Some((after.0 - before.0) / (after.1 - before.1));
            let ended = sender.wait(STEP_WAIT);
            assert!(ended.is_some_and(|status| status.success()), "{}", sender.log());
            self.wait_delivered(&persister, SERIES + traffic.messages);
            persister.stop();
            eprintln!(
                "  live at {rate}/s: {:.0}/s stored, at most {waiting_most} waited",
                figures.records_per_s
            );
            (figures, waiting_most <= 3 * rate)
        })
    }

    fn wait_delivered(&self, persister: &Persister, rows: usize) {
        let deadline = Instant::now() + STEP_WAIT;
        while (persister.delivered().0 as usize) < rows {
            assert!(Instant::now() < deadline, "the rest is not delivered");
            std::thread::sleep(LOOK);
        }
    }

    /// Resident memory of a program that has nothing to do.
    fn idle_mib(&self) -> f64 {
        let topic = harness::unique("idle");
        self.kafka.create_topic(&topic, PARTITIONS as i32).unwrap();
        self.database.with_keyspace(Traffic::until_now(0), |keyspace| {
            let contact_point = self.database.node.contact_point();
            let persister =
                Persister::start(self.dir, &topic, self.kafka, &topic, &contact_point, keyspace);
            std::thread::sleep(Duration::from_secs(10));
            let figures = Moment::now(persister.pid(), self.database.pid()).until_now(1);
            persister.stop();
            figures.rss_mib
        })
    }
}

/// Role `offer`: a sender that keeps to a rate.
fn offer() {
    let traffic = Traffic {
        messages: variable("BENCH_MESSAGES").unwrap(),
        newest_ms: variable("BENCH_NEWEST_MS").unwrap(),
    };
    let (bootstrap, topic): (String, String) =
        (variable("BENCH_SERVER").unwrap(), variable("BENCH_TOPIC").unwrap());
    traffic.produce_at(variable("BENCH_RATE"), &bootstrap, &topic, PARTITIONS);
}

fn measure() {
    let messages = variable("BENCH_MESSAGES").unwrap_or(2_000_000);
    let single = variable("BENCH_SINGLE").unwrap_or(200_000);
    let rate: usize = variable("BENCH_RATE").unwrap_or(20_000);
    let seconds: usize = variable("BENCH_SECONDS").unwrap_or(20);
    let rounds: usize = variable("BENCH_ROUNDS").unwrap_or(5);
    assert!(
        messages >= 2 * SERIES && single >= SERIES && seconds > 5 && rounds > 0,
        "at least {} messages, {SERIES} single rows, 6 seconds, a round",
        2 * SERIES
    );
    let dir = common::directory();
    let dir = dir.path();
    let (traffic, few) = (Traffic::until_now(messages), Traffic::until_now(single));

    let mut builder = Kafka::builder();
    if client_cpu().is_some() {
        builder = builder.cpu(1);
    }
    let kafka = builder.start().unwrap();
    let database = Database::start();
    kafka.create_topic(TOPIC, PARTITIONS as i32).unwrap();
    let message_bytes = traffic.produce(&kafka.bootstrap(), TOPIC, PARTITIONS);
    let kafka_pid = kafka.pid().unwrap();
    println!(
        "{messages} messages of {message_bytes:.0} bytes, {SERIES} series, {PARTITIONS} partitions, lz4; {}",
        if client_cpu().is_some() {
            "servers on one core, client on another"
        } else {
            "servers and client share all cores"
        }
    );
    // Warms the servers' compilers; nothing of it counts.
    database.insert(dir, traffic, BATCH_ROWS_MAX);
    database.insert(dir, few, 1);
    let bench = Bench { dir, kafka: &kafka, database: &database };
    let idle_mib = bench.idle_mib();

    bench.live(rate / 4, 2 * WARM.as_secs() as usize);

    let mut steps: [Vec<Figures>; 7] = Default::default();
    let mut matched = None;
    let mut highest = Vec::new();
    let mut kept_up = true;
    for round in 0..rounds {
        let name = format!("round_{round}");
        eprintln!("round {} of {rounds}", round + 1);
        settle(kafka_pid);
        steps[0].push(fill(dir, &name, &kafka, messages));
        // Whoever comes second meets another Cassandra: they take turns.
        if round % 2 == 1 {
            steps[3].push(database.insert(dir, few, 1));
        }
        let [whole, second_half] = drain(dir, &name, &kafka, &database, traffic);
        steps[1].push(whole);
        steps[6].push(second_half);
        let rows = *matched.get_or_insert_with(|| {
            (whole.rows_per_request.unwrap().round() as usize).clamp(1, BATCH_ROWS_MAX)
        });
        steps[2].push(database.insert(dir, traffic, rows));
        if round % 2 == 0 {
            steps[3].push(database.insert(dir, few, 1));
        }
        std::fs::remove_dir_all(dir.join(&name)).unwrap();
        let rate_of = |step: usize| steps[step].last().map_or(0.0, |step| step.records_per_s);
        eprintln!(
            "  drained {:.0}/s (second half {:.0}); bare driver {:.0}/s in batches, {:.0}/s single",
            rate_of(1),
            rate_of(6),
            rate_of(2),
            rate_of(3)
        );

        let (figures, in_time) = bench.live(rate, seconds);
        steps[4].push(figures);
        kept_up &= in_time;
        // From half as much again as single rows reach, upwards.
        let alone = steps[3].last().unwrap().records_per_s;
        let mut best = None;
        for factor in [1.5, 2.0, 2.5, 3.0] {
            let (figures, in_time) = bench.live((alone * factor) as usize, seconds);
            if !in_time {
                break;
            }
            best = Some((figures, factor));
        }
        highest.push(best.map_or(0.0, |(_, factor)| factor));
        steps[5].push(best.map_or(figures, |(figures, _)| figures));
    }

    let names = [
        ("Kafka to log", "monasca-persister".to_owned()),
        ("log to Cassandra", "monasca-persister".to_owned()),
        ("to Cassandra", format!("bare driver, batches of {}", matched.unwrap_or(0))),
        ("to Cassandra", "bare driver, single rows".to_owned()),
        ("live", format!("monasca-persister, {rate}/s")),
        ("live, highest", "monasca-persister".to_owned()),
        ("log to Cassandra, second half", "monasca-persister".to_owned()),
    ];
    let lines: Vec<Line> = names
        .into_iter()
        .zip(steps)
        .map(|((shape, engine), figures)| Line { shape: shape.to_owned(), engine, figures })
        .collect();
    highest.sort_by(f64::total_cmp);
    report(&lines, kept_up, highest[highest.len() / 2], idle_mib);
}

fn report(lines: &[Line], kept_up: bool, highest: f64, idle_mib: f64) {
    common::print(lines);
    let ratio = |of: usize, to: usize| {
        let of_each = lines[of].figures.iter().zip(&lines[to].figures);
        let mut ratios: Vec<f64> =
            of_each.map(|(of, to)| of.records_per_s / to.records_per_s).collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let cpu = |line: usize| lines[line].median(|figures| figures.cpu_s_per_million);
    let server = |line: usize| lines[line].median(|figures| figures.server_cpu_s_per_million);
    let peak = lines
        .iter()
        .filter(|line| line.engine.starts_with("monasca"))
        .map(|line| line.spread(|figures| figures.rss_mib_peak)[2])
        .fold(0.0, f64::max);
    let at_least = |name: &str, want: f64, got: f64| json!({"name": name, "want": format!(">= {want}"), "got": got, "ok": got >= want});
    let at_most = |name: &str, want: f64, got: f64| json!({"name": name, "want": format!("<= {want}"), "got": got, "ok": got <= want});
    let targets: [Value; 10] = [
        at_least("draining, of the bare driver with the same batches", 0.95, ratio(1, 2)),
        at_least("draining, times the bare driver with single rows", 3.0, ratio(1, 3)),
        at_least("live: rounds kept up with at the offered rate", 1.0, f64::from(kept_up)),
        at_least("live: highest rate, times single rows", 1.5, highest),
        at_most("CPU-s per million, Kafka to log to Cassandra, draining", 5.0, cpu(0) + cpu(1)),
        at_most("CPU-s per million, Kafka to log to Cassandra, live", 8.0, cpu(4)),
        at_most("CPU-s of Cassandra per million, draining", 12.0, server(1)),
        at_most("CPU-s of Cassandra per million, live", 40.0, server(4)),
        at_most("peak resident MiB", 128.0, peak),
        at_most("resident MiB, idle", 40.0, idle_mib),
    ];
    println!("\n{:<58} {:>8} {:>8}", "target", "want", "got");
    for target in &targets {
        println!(
            "{:<58} {:>8} {:>8.2}   {}",
            target["name"].as_str().unwrap(),
            target["want"].as_str().unwrap(),
            target["got"].as_f64().unwrap(),
            if target["ok"] == true { "ok" } else { "MISSED" },
        );
    }
    common::write("drain", lines, &targets);
}

fn main() {
    let figures = match std::env::var("BENCH_ROLE").as_deref() {
        Ok("insert") => insert(),
        Ok("consume") => consume(),
        Ok("offer") => return offer(),
        // `cargo test --benches` only asks whether it builds.
        _ if !std::env::args().any(|argument| argument == "--bench") => return,
        _ => return measure(),
    };
    println!("{}", serde_json::to_string(&figures).unwrap());
}
