//! The measure of consuming: the client library by itself.

use std::time::{Duration, Instant};

use monasca_persister::config::{KafkaConfig, PipelineConfig};
use monasca_persister::kafka;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{Figures, Moment, STEP_WAIT, variable};

/// Role `consume`: librdkafka with the program's own settings, and nothing else, not even statistics.
pub fn consume() -> Figures {
    let (bootstrap, messages): (String, usize) =
        (variable("BENCH_SERVER").unwrap(), variable("BENCH_MESSAGES").unwrap());
    let server = variable("BENCH_SERVER_PID").unwrap();
    let kafka = KafkaConfig { bootstrap_servers: vec![bootstrap], ..KafkaConfig::default() };
    let pipeline =
        PipelineConfig { group_id: harness::unique("bare"), ..PipelineConfig::default() };
    let consumer: BaseConsumer = kafka::client_config(&kafka, &pipeline, None)
        .unwrap()
        .set("auto.offset.reset", "earliest")
        .set("statistics.interval.ms", "0")
        .create()
        .unwrap();
    consumer.subscribe(&[&variable::<String>("BENCH_TOPIC").unwrap()]).unwrap();
    let mut begun = None;
    // As the program polls: waits for a first message, then takes what is there.
    let mut wait = Duration::ZERO;
    let (mut count, mut bytes) = (0, 0);
    let deadline = Instant::now() + STEP_WAIT;
    while count < messages {
        assert!(Instant::now() < deadline, "only {count} messages arrived");
        let Some(message) = consumer.poll(wait) else {
            wait = Duration::from_millis(100);
            continue;
        };
        wait = Duration::ZERO;
        begun.get_or_insert_with(|| Moment::now(std::process::id(), server));
        bytes += message.unwrap().payload_len();
        count += 1;
    }
    assert!(std::hint::black_box(bytes) > 0, "messages have bytes");
    begun.unwrap().until_now(messages)
}
