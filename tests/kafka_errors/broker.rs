//! A broker that answers with errors, and everything a test sends to it and asks it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

pub const TOPIC: &str = "alarm-state-transitions";
pub const GROUP: &str = "1_alarm-state-transitions";
pub const PARTITIONS: i32 = 2;
const WAIT: Duration = Duration::from_secs(10);

/// Counts the requests that the broker gets, from what it says about them.
#[derive(Debug, Default)]
struct Requests {
    by_name: Mutex<BTreeMap<String, u64>>,
}

impl ClientContext for Requests {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, message: &str) {
        let name =
            message.split_once(": Received ").and_then(|(_, rest)| rest.split_once("Request"));
        if let Some((name, _)) = name {
            *self.by_name.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        }
    }

    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ProducerContext for Requests {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "the broker did not take a message: {result:?}");
    }
}

/// One broker with one topic. It lives in a producer, so that it can be listened to.
pub struct Broker {
    producer: ThreadedProducer<Requests>,
    bootstrap: String,
    /// Next offset of each partition.
    ends: BTreeMap<i32, i64>,
    reader: BaseConsumer,
}

impl Broker {
    pub fn start() -> Self {
        let producer: ThreadedProducer<Requests> = ClientConfig::new()
            .set("test.mock.num.brokers", "1")
            .set("debug", "mock")
            // What it knows of the topic stays, whatever error is injected.
            .set("topic.metadata.refresh.interval.ms", "-1")
            .set("metadata.max.age.ms", "86400000")
            .set_log_level(RDKafkaLogLevel::Debug)
            .create_with_context(Requests::default())
            .unwrap();
        let bootstrap = {
            let mock = producer.client().mock_cluster().unwrap();
            mock.create_topic(TOPIC, PARTITIONS, 1).unwrap();
            mock.bootstrap_servers()
        };
        let reader = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("group.id", GROUP)
            .set("log_level", "0")
            .create()
            .unwrap();
        let ends = (0..PARTITIONS).map(|partition| (partition, 0)).collect();
        Self { producer, bootstrap, ends, reader }
    }

    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    fn mock(&self) -> MockCluster<'_, impl ProducerContext> {
        self.producer.client().mock_cluster().unwrap()
    }

    /// Answers the next `count` requests of this kind with `error`.
    pub fn inject(&self, key: RDKafkaApiKey, error: RDKafkaRespErr, count: usize) {
        self.mock().request_errors(key, &vec![error; count]);
    }

    /// Answers requests of this kind properly from now on.
    pub fn repair(&self, key: RDKafkaApiKey) {
        self.mock().clear_request_errors(key);
    }

    /// Says this of the topic to whoever asks, from now on.
    pub fn topic_error(&self, error: RDKafkaRespErr) {
        self.mock().topic_error(TOPIC, error).unwrap();
    }

    /// Requests of a name that it got so far.
    pub fn requests(&self, name: &str) -> u64 {
        self.producer.context().by_name.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// Sends messages and waits until the broker has them.
    pub fn send(&mut self, payloads: &[String]) {
        for (payload, partition) in payloads.iter().zip((0..PARTITIONS).cycle()) {
            let record = BaseRecord::<(), _>::to(TOPIC).partition(partition).payload(payload);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
            *self.ends.get_mut(&partition).unwrap() += 1;
        }
        self.producer.flush(WAIT).unwrap();
    }

    /// Next offset of each partition.
    pub fn ends(&self) -> &BTreeMap<i32, i64> {
        &self.ends
    }

    /// Commits offsets for the group, which must have no members.
    pub fn commit(&self, offsets: &[(i32, i64)]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(TOPIC, *partition, Offset::Offset(*offset))?;
        }
        self.reader.commit(&list, CommitMode::Sync)
    }

    /// What the group has committed.
    pub fn committed(&self) -> BTreeMap<i32, i64> {
        let mut asked = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            asked.add_partition(TOPIC, partition);
        }
        let committed = self.reader.committed_offsets(asked, WAIT).unwrap();
        committed
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            })
            .collect()
    }
}
