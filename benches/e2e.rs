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
#[path = "common/database.rs"]
mod database;
#[path = "common/program.rs"]
mod program;

use harness::Kafka;

use common::{Figures, Line, SERIES, Traffic, child, client_cpu, consume, settle, variable};
use database::{BATCH_ROWS_MAX, Database, insert};
use program::{TOPIC, drain, fill};

const PARTITIONS: usize = 4;

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
