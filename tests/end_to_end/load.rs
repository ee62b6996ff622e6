//! What is sent: metrics, alarm transitions and 1 % poison, with a ledger of every message that Kafka took.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::Kafka;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};

use crate::persister::Site;

/// How much is sent.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub metrics: usize,
    pub series: usize,
    pub alarms: usize,
    pub per_s: u64,
    /// Times begin so many milliseconds later: another plan's rows are other rows.
    pub later_ms: i64,
}

/// What must become of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    Measurement { name: String, host: String, time_ms: i64, value: f64, value_meta: String },
    Transition { alarm_id: String, time_ms: i64, new_state: String, reason: String },
    DeadLetter,
}

/// A message that Kafka took.
#[derive(Debug, Clone)]
pub struct Sent {
    pub payload: Vec<u8>,
    pub timestamp_ms: i64,
    pub expected: Expected,
}

/// Every message by topic, partition and offset.
pub type Ledger = BTreeMap<(String, i32, i64), Sent>;

/// Number of a message in the plan, and where Kafka put it.
type Taken = (usize, String, i32, i64);

#[derive(Clone, Default)]
struct Recorder {
    taken: Arc<Mutex<Vec<Taken>>>,
    failed: Arc<Mutex<Vec<String>>>,
}

impl ClientContext for Recorder {}

impl ProducerContext for Recorder {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        match result {
            Ok(message) => self.taken.lock().unwrap().push((
                sequence,
                message.topic().to_owned(),
                message.partition(),
                message.offset(),
            )),
            Err((error, _)) => self.failed.lock().unwrap().push(error.to_string()),
        }
    }
}

/// A running producer.
pub struct Load {
    thread: JoinHandle<Ledger>,
}

impl Load {
    /// Metrics go to four partitions by turns, transitions anywhere.
    pub fn start(kafka: &Kafka, site: &Site, plan: Plan) -> Self {
        Self::start_with(kafka, site, plan, |is_metric, sequence| {
            is_metric.then(|| i32::try_from(sequence % 4).unwrap())
        })
    }

    /// Everything goes to these partitions by turns.
    pub fn start_on(kafka: &Kafka, site: &Site, plan: Plan, partitions: Range<i32>) -> Self {
        Self::start_with(kafka, site, plan, move |_, sequence| {
            partitions.clone().nth(sequence % partitions.len())
        })
    }

    fn start_with(
        kafka: &Kafka,
        site: &Site,
        plan: Plan,
        partition: impl Fn(bool, usize) -> Option<i32> + Send + 'static,
    ) -> Self {
        let messages = messages(plan, crate::persister::now_ms());
        Self::send(kafka, site, messages, plan.per_s, partition)
    }

    /// Sends these messages.
    pub fn of(kafka: &Kafka, site: &Site, messages: Vec<Sent>, per_s: u64) -> Self {
        Self::send(kafka, site, messages, per_s, |is_metric, sequence| {
            is_metric.then(|| i32::try_from(sequence % 4).unwrap())
        })
    }

    fn send(
        kafka: &Kafka,
        site: &Site,
        messages: Vec<Sent>,
        per_s: u64,
        partition: impl Fn(bool, usize) -> Option<i32> + Send + 'static,
    ) -> Self {
        let recorder = Recorder::default();
        let producer: ThreadedProducer<Recorder> = ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            // Each message once, in order, however often Kafka is killed.
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "0")
            .set("compression.type", "lz4")
            .set("linger.ms", "20")
            .set("log_level", "0")
            .create_with_context(recorder.clone())
            .unwrap();
        let (metrics_topic, alarms_topic) = (site.metrics_topic.clone(), site.alarms_topic.clone());
        let thread = std::thread::spawn(move || {
            let begun = Instant::now();
            for (sequence, sent) in messages.iter().enumerate() {
                let due = Duration::from_micros(1_000_000 * sequence as u64 / per_s);
                if let Some(ahead) = due.checked_sub(begun.elapsed()) {
                    std::thread::sleep(ahead);
                }
                let topic = if matches!(sent.expected, Expected::Transition { .. }) {
                    &alarms_topic
                } else {
                    &metrics_topic
                };
                let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, sequence)
                    .payload(&sent.payload)
                    .timestamp(sent.timestamp_ms);
                if let Some(partition) = partition(topic == &metrics_topic, sequence) {
                    record = record.partition(partition);
                }
                loop {
                    match producer.send(record) {
                        Ok(()) => break,
                        Err((_, back)) => {
                            // The producer's queue is full while Kafka is away.
                            std::thread::sleep(Duration::from_millis(50));
                            record = back;
                        }
                    }
                }
            }
            producer.flush(Duration::from_secs(120)).unwrap();
            assert!(
                recorder.failed.lock().unwrap().is_empty(),
                "{:?}",
                recorder.failed.lock().unwrap()
            );
            let taken = recorder.taken.lock().unwrap();
            assert_eq!(taken.len(), messages.len(), "every message is accounted for");
            taken
                .iter()
                .map(|(sequence, topic, partition, offset)| {
                    ((topic.clone(), *partition, *offset), messages[*sequence].clone())
                })
                .collect()
        });
        Self { thread }
    }

    /// Waits until everything is sent and acknowledged.
    pub fn finish(self) -> Ledger {
        self.thread.join().unwrap()
    }
}

/// Text that no compression makes much shorter, another for each seed.
pub fn noise(seed: usize, bytes: usize) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let mut dice = crate::Dice::from(seed as u64);
    (0..bytes).map(|_| char::from(LETTERS[usize::try_from(dice.below(64)).unwrap()])).collect()
}

/// Alarm transitions with a long reason each: they fill a log.
pub fn long_transitions(messages: usize, bytes: usize) -> Vec<Sent> {
    let begin_ms = crate::persister::now_ms() - 1_000_000;
    let sent = |number| {
        let time_ms = begin_ms + i64::try_from(number).unwrap();
        transition(number, time_ms, &noise(number, bytes))
    };
    (0..messages).map(sent).collect()
}

/// Poison with so many bytes in each message, and a metric behind each.
pub fn long_poison(messages: usize, bytes: usize) -> Vec<Sent> {
    let begin_ms = crate::persister::now_ms() - 1_000_000;
    let plan = Plan { metrics: messages, series: 50, alarms: 0, per_s: 1, later_ms: 0 };
    (0..messages)
        .flat_map(|number| {
            let timestamp_ms = begin_ms + i64::try_from(number).unwrap();
            let payload = noise(number, bytes).into_bytes();
            let poison = Sent { payload, timestamp_ms, expected: Expected::DeadLetter };
            [poison, metric(plan, number, timestamp_ms)]
        })
        .collect()
}

/// Metrics that are so many bytes long each; with the good reason that JSON allows for space behind it.
pub fn long_metrics(messages: usize, bytes: usize) -> Vec<Sent> {
    let begin_ms = crate::persister::now_ms() - 1_000_000;
    let plan = Plan { metrics: messages, series: 50, alarms: 0, per_s: 1, later_ms: 0 };
    let sent = |number| {
        let mut sent = metric(plan, number, begin_ms + i64::try_from(number).unwrap());
        sent.payload.resize(bytes, b' ');
        sent
    };
    (0..messages).map(sent).collect()
}

fn messages(plan: Plan, now_ms: i64) -> Vec<Sent> {
    let mut messages = Vec::new();
    let every = (plan.metrics / plan.alarms.max(1)).max(1);
    for number in 0..plan.metrics {
        let timestamp_ms =
            now_ms - 1_000_000 + plan.later_ms + i64::try_from(messages.len()).unwrap();
        messages.push(if number % 100 == 7 {
            poison(number, timestamp_ms)
        } else {
            metric(plan, number, timestamp_ms)
        });
        if number % every == 0 && number / every < plan.alarms {
            let timestamp_ms =
                now_ms - 1_000_000 + plan.later_ms + i64::try_from(messages.len()).unwrap();
            let reason = format!("reason {}", number / every);
            messages.push(transition(number / every, timestamp_ms, &reason));
        }
    }
    messages
}

fn metric(plan: Plan, number: usize, timestamp_ms: i64) -> Sent {
    let series = number % plan.series;
    let (name, host) = (format!("metric.{}", series % 50), format!("host-{series}"));
    // Each time of a series once, so that each message is a row of its own.
    let time_ms = timestamp_ms - 5;
    let value = f64::from(u32::try_from(number).unwrap()) * 0.37;
    let value_meta =
        if number.is_multiple_of(9) { format!(r#"{{"n":"{number}"}}"#) } else { String::new() };
    let meta = if value_meta.is_empty() { "null" } else { &value_meta };
    let payload = format!(
        r#"{{"metric":{{"name":"{name}","dimensions":{{"hostname":"{host}","service":"monitoring"}},"timestamp":{time_ms},"value":{value},"value_meta":{meta}}},"meta":{{"tenantId":"tenant","region":"region"}},"creation_time":1}}"#
    )
    .into_bytes();
    Sent {
        payload,
        timestamp_ms,
        expected: Expected::Measurement { name, host, time_ms, value, value_meta },
    }
}

fn transition(number: usize, timestamp_ms: i64, reason: &str) -> Sent {
    let (alarm_id, new_state) =
        (format!("alarm-{}", number % 40), ["OK", "ALARM", "UNDETERMINED"][number % 3]);
    let payload = format!(
        r#"{{"alarm-transitioned":{{"tenantId":"tenant","alarmId":"{alarm_id}","metrics":[],"oldState":"OK","newState":"{new_state}","stateChangeReason":"{reason}","subAlarms":[],"timestamp":{timestamp_ms}}}}}"#
    )
    .into_bytes();
    let expected = Expected::Transition {
        alarm_id,
        time_ms: timestamp_ms,
        new_state: new_state.to_owned(),
        reason: reason.to_owned(),
    };
    Sent { payload, timestamp_ms, expected }
}

/// Six kinds of messages that can never be stored.
fn poison(number: usize, timestamp_ms: i64) -> Sent {
    let payload = match number / 100 % 6 {
        0 => format!("garbage {number}").into_bytes(),
        1 => format!(r#"{{"metric":{{"name":"m","timestamp":{number},"value":"#).into_bytes(),
        2 => [b"\xff\xfe ".as_slice(), number.to_string().as_bytes()].concat(),
        3 => format!(r#"{{"metric":{{"name":"m","timestamp":{number},"value":"NaN"}}}}"#).into_bytes(),
        4 => format!(r#"{{"metric":{{"timestamp":{number},"value":1}}}}"#).into_bytes(),
        // A tenant longer than any key of Cassandra's: well-formed, and refused by the database itself.
        _ => format!(
            r#"{{"metric":{{"name":"m","timestamp":{number},"value":1}},"meta":{{"tenantId":"{}","region":"r"}}}}"#,
            "t".repeat(66_000)
        )
        .into_bytes(),
    };
    Sent { payload, timestamp_ms, expected: Expected::DeadLetter }
}
