//! Memory is bounded whatever comes: many partitions, messages that shrink to a hundredth on their way, a store that is
//! away. docs/memory.md has the sums. `MONASCA_PERSISTER_PROGRAM` measures another build, `MEMORY_MESSAGES` a larger
//! backlog.

use std::time::Duration;

use harness::Kafka;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use crate::load;
use crate::persister::{Persister, Site};

const MIB: u64 = 1 << 20;
/// What a release build keeps to with the defaults.
const BUDGET: u64 = 96 * MIB;
/// A debug build is larger by itself.
const BUDGET_OF_DEBUG: u64 = 128 * MIB;

/// What is sent.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// Shrinks to less than a fiftieth.
    Repetitive,
    /// Does not shrink.
    Noise,
}

fn message(number: usize, shape: Shape) -> Vec<u8> {
    let time_ms = crate::persister::now_ms() - 600_000;
    let (series, text) = match shape {
        Shape::Repetitive => (number % 10, "a".repeat(200)),
        Shape::Noise => (number % 5_000, load::noise(number, 200)),
    };
    format!(
        r#"{{"metric":{{"name":"metric","dimensions":{{"hostname":"host-{series}"}},"timestamp":{time_ms},"value":1,"value_meta":{{"text":"{text}"}}}},"meta":{{"tenantId":"tenant","region":"region"}},"creation_time":1}}"#
    )
    .into_bytes()
}

/// Fills the topic before anybody consumes.
fn fill(kafka: &Kafka, topic: &str, partitions: i32, messages: usize, shape: Shape, codec: &str) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("compression.type", codec)
        .set("linger.ms", "100")
        .set("queue.buffering.max.messages", "100000")
        .create()
        .unwrap();
    for number in 0..messages {
        // Stretches of a partition, so that batches are as large as they get.
        let partition =
            i32::try_from(number / 2_000 % usize::try_from(partitions).unwrap()).unwrap();
        let payload = message(number, shape);
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(&payload);
        while let Err((_, back)) = producer.send(record) {
            std::thread::sleep(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(120)).unwrap();
}

#[test]
fn memory_is_bounded_whatever_the_number_of_partitions_and_the_compression() {
    let messages: usize =
        std::env::var("MEMORY_MESSAGES").map_or(60_000, |messages| messages.parse().unwrap());
    let is_release = std::env::var_os("MONASCA_PERSISTER_PROGRAM").is_some();
    let budget = if is_release { BUDGET } else { BUDGET_OF_DEBUG };
    let kafka = Kafka::start().unwrap();
    let mut cassandra = harness::Cassandra::start().unwrap();
    let cases: &[(i32, Shape, &str)] = if is_release {
        &[
            (1, Shape::Noise, "none"),
            (1, Shape::Repetitive, "zstd"),
            (64, Shape::Noise, "none"),
            (64, Shape::Repetitive, "zstd"),
            (64, Shape::Repetitive, "lz4"),
            (64, Shape::Repetitive, "gzip"),
        ]
    } else {
        &[(64, Shape::Repetitive, "zstd"), (64, Shape::Noise, "none")]
    };
    let mut wrong = Vec::new();
    for (partitions, shape, codec) in cases {
        let site = Site::prepare(&kafka, &cassandra, *partitions);
        fill(&kafka, &site.metrics_topic, *partitions, messages, *shape, codec);
        for store in ["down", "up"] {
            if store == "down" {
                cassandra.kill();
            } else {
                cassandra.restart().unwrap();
            }
            // Each has all of it to take.
            let persister = Persister::start(
                &site,
                store,
                &[
                    ("MONASCA_PERSISTER__METRICS__GROUP_ID", store),
                    ("MONASCA_PERSISTER__SHUTDOWN__MODE", "persist"),
                ],
            );
            persister.wait_taken(messages as u64, Duration::from_secs(240));
            if store == "up" {
                persister.wait_delivered(Duration::from_secs(240)).unwrap();
            } else {
                std::thread::sleep(Duration::from_secs(3));
            }
            let peak = persister.memory_peak();
            let shape = if *shape == Shape::Noise { "noise" } else { "repetitive" };
            let case = format!("{partitions} partitions, {shape}, {codec}, store {store}");
            eprintln!("{case}: {:.1} MiB at most", peak as f64 / MIB as f64);
            if peak > budget {
                wrong.push((case, peak / MIB));
            }
            persister.stop().unwrap();
        }
    }
    assert!(wrong.is_empty(), "more than {} MiB: {wrong:?}", budget / MIB);
}
