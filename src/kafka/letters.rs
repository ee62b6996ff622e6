//! Dead letters on their way to a topic of their own: a thread that produces each and removes it from the log only after
//! the brokers have acknowledged it, all of its replicas. While they do not, it waits, bounded by the log.
//!
//! A crash between the acknowledgement and the note of it produces a letter twice; its headers are the same.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::Sender;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use wal::{DiskFs, Position, WalError};

use super::properties::connection;
use super::token::Tokens;
use crate::config::KafkaConfig;
use crate::dead_letters::{DeadLetter, DeadLetterError, DeadLetters};
use crate::said::Said;
use crate::sync::lock;

/// How long it waits for new letters, and after the brokers refused some.
const TURN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Letters and bytes on their way at once.
const PORTION_LETTERS: usize = 500;
const PORTION_BYTES: usize = 1 << 20;

/// What others may know.
#[derive(Debug, Default)]
pub struct LettersTopicState {
    forwarded: AtomicU64,
    trouble: Mutex<Option<String>>,
}

impl LettersTopicState {
    /// Letters that the brokers acknowledged since the start, repetitions included.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Why letters do not get there, while they do not.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }
}

/// What the brokers said of each letter of a portion, by its place in it.
#[derive(Default)]
struct Reports {
    said: Mutex<Vec<(usize, Result<(), RDKafkaErrorCode>)>>,
}

struct Context {
    reports: Arc<Reports>,
    state: Arc<LettersTopicState>,
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, message, "dead letters");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "dead letters");
        *lock(&self.state.trouble) = Some(reason.to_owned());
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, place: usize) {
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)),
        };
        lock(&self.reports.said).push((place, outcome));
    }
}

/// What it works with.
pub struct LettersTopicParts {
    /// How the brokers are reached.
    pub kafka: KafkaConfig,
    /// The topic.
    pub topic: String,
    /// The letters.
    pub letters: DeadLetters<DiskFs>,
    /// Who sends them.
    pub instance: String,
    /// Zero of monotonic time.
    pub started: Instant,
    /// Takes the first reason to end the process.
    pub fatal: Sender<anyhow::Error>,
}

/// The running thread.
pub struct LettersTopic {
    stop: Arc<AtomicBool>,
    state: Arc<LettersTopicState>,
    thread: JoinHandle<()>,
}

impl LettersTopic {
    /// Starts it; the brokers need not be there.
    ///
    /// # Errors
    /// A property of Kafka is refused, or the operating system has no thread left.
    pub fn spawn(parts: LettersTopicParts) -> anyhow::Result<Self> {
        let (stop, state) = (Arc::new(AtomicBool::new(false)), Arc::<LettersTopicState>::default());
        let reports = Arc::<Reports>::default();
        let producer = producer(&parts.kafka, &reports, &state)?;
        let tokens = Tokens::new(&parts.kafka);
        let fatal = parts.fatal.clone();
        let mut forwarder = Forwarder {
            parts,
            producer,
            reports,
            tokens,
            refused: BTreeSet::new(),
            said: Said::default(),
            stop: Arc::clone(&stop),
            state: Arc::clone(&state),
        };
        let thread = std::thread::Builder::new()
            .name("letters-topic".to_owned())
            .spawn(move || {
                if let Err(error) = forwarder.run() {
                    // The channel takes the first reason; a later one changes nothing.
                    drop(fatal.try_send(error.context("send dead letters")));
                }
            })
            .context("start thread")?;
        Ok(Self { stop, state, thread })
    }

    /// What it says of itself.
    #[must_use]
    pub fn state(&self) -> Arc<LettersTopicState> {
        Arc::clone(&self.state)
    }

    /// Ends it. What was not acknowledged stays in the log.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!(code = "PANIC", "the thread of the dead letters' topic panicked");
        }
    }
}

fn producer(
    kafka: &KafkaConfig,
    reports: &Arc<Reports>,
    state: &Arc<LettersTopicState>,
) -> anyhow::Result<BaseProducer<Context>> {
    let mut config = connection(kafka)?;
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        // The brokers decide what is too long for the topic.
        .set("message.max.bytes", "100000000")
        .set("message.timeout.ms", "30000")
        .set("linger.ms", "5");
    let context = Context { reports: Arc::clone(reports), state: Arc::clone(state) };
    config.create_with_context(context).context("create Kafka producer for dead letters")
}

struct Forwarder {
    parts: LettersTopicParts,
    producer: BaseProducer<Context>,
    reports: Arc<Reports>,
    tokens: Tokens,
    /// Letters that the topic will never take: they stay in the log.
    refused: BTreeSet<Position>,
    said: Said,
    stop: Arc<AtomicBool>,
    state: Arc<LettersTopicState>,
}

impl Forwarder {
    fn run(&mut self) -> anyhow::Result<()> {
        let mut backoff = TURN;
        while !self.stop.load(Ordering::Relaxed) {
            self.keep_tokens();
            let portion = match self.portion() {
                Ok(portion) => portion,
                Err(DeadLetterError::Wal(WalError::Closed)) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if portion.is_empty() {
                self.producer.poll(Duration::ZERO);
                std::thread::park_timeout(TURN);
                continue;
            }
            if self.send(&portion)? {
                backoff = TURN;
            } else {
                std::thread::park_timeout(backoff);
                backoff = backoff.saturating_mul(2).min(BACKOFF_MAX);
                if self.producer.client().fatal_error().is_some() {
                    self.producer = producer(&self.parts.kafka, &self.reports, &self.state)?;
                    self.tokens = Tokens::new(&self.parts.kafka);
                }
            }
        }
        Ok(())
    }

    fn keep_tokens(&mut self) {
        let now = self.parts.started.elapsed();
        if let Err(error) = self.tokens.keep(self.producer.client(), now) {
            self.trouble(error.to_string());
        }
    }

    /// The oldest letters.
    fn portion(&self) -> Result<Vec<(Position, DeadLetter)>, DeadLetterError> {
        let (mut portion, mut bytes) = (Vec::new(), 0_usize);
        self.parts.letters.walk(Position::ZERO, |position, letter| {
            if !self.refused.contains(&position) {
                bytes = bytes.saturating_add(letter.bytes());
                portion.push((position, letter));
            }
            if bytes < PORTION_BYTES && portion.len() < PORTION_LETTERS {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(portion)
    }

    /// Sends them, waits for what the brokers say, and removes what they have. True: they have all that they will take.
    fn send(&mut self, portion: &[(Position, DeadLetter)]) -> anyhow::Result<bool> {
        lock(&self.reports.said).clear();
        let (mut sent, mut all_well) = (0_usize, true);
        for (place, (position, letter)) in portion.iter().enumerate() {
            match self.send_one(place, letter) {
                Ok(()) => sent = sent.saturating_add(1),
                Err(code) => {
                    all_well &= self.failed(*position, code);
                    if code != RDKafkaErrorCode::MessageSizeTooLarge {
                        break;
                    }
                }
            }
        }
        // Each is reported at the latest when its time is over.
        let mut acknowledged = Vec::new();
        let mut reported = 0_usize;
        while reported < sent && !self.stop.load(Ordering::Relaxed) {
            self.keep_tokens();
            self.producer.poll(Duration::from_millis(100));
            let said = std::mem::take(&mut *lock(&self.reports.said));
            for (place, outcome) in said {
                reported = reported.saturating_add(1);
                let Some((position, _)) = portion.get(place) else { continue };
                match outcome {
                    Ok(()) => acknowledged.push(*position),
                    Err(code) => all_well &= self.failed(*position, code),
                }
            }
        }
        acknowledged.sort_unstable();
        let removed = match self.parts.letters.remove(&acknowledged, self.parts.started.elapsed()) {
            Ok(removed) => removed,
            Err(DeadLetterError::Wal(WalError::Closed)) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        self.state.forwarded.fetch_add(removed, Ordering::Relaxed);
        if all_well && self.refused.is_empty() {
            *lock(&self.state.trouble) = None;
        }
        Ok(all_well)
    }

    fn send_one(&self, place: usize, letter: &DeadLetter) -> Result<(), RDKafkaErrorCode> {
        let mut record = BaseRecord::with_opaque_to(&self.parts.topic, place)
            .headers(headers(letter, &self.parts.instance));
        if let Some(key) = &letter.key {
            record = record.key(key.as_slice());
        }
        if let Some(payload) = &letter.payload {
            record = record.payload(payload.as_slice());
        }
        self.producer
            .send(record)
            .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))
    }

    /// True when it will never be otherwise.
    fn failed(&mut self, position: Position, code: RDKafkaErrorCode) -> bool {
        let topic = &self.parts.topic;
        if code == RDKafkaErrorCode::MessageSizeTooLarge {
            self.trouble(format!(
                "{topic}: the dead letter at position {position} is longer than the topic allows; it stays here"
            ));
            self.refused.insert(position);
            return true;
        }
        self.trouble(format!("{topic}: {code}"));
        false
    }

    fn trouble(&mut self, what: String) {
        if self.said.is_due("DEAD_LETTERS_TOPIC", &what, self.parts.started.elapsed()) {
            tracing::warn!(code = "DEAD_LETTERS_TOPIC", what, "dead letters stay in their log");
        }
        *lock(&self.state.trouble) = Some(what);
    }
}

/// What there is to say of a letter beside its key and its bytes.
fn headers(letter: &DeadLetter, instance: &str) -> OwnedHeaders {
    let number = |value: Option<i64>| value.map(|value| value.to_string());
    let cut_from = letter.cut_from.map(|bytes| bytes.to_string());
    let fields = [
        ("topic", Some(letter.topic.clone())),
        ("partition", Some(letter.partition.to_string())),
        ("offset", Some(letter.offset.to_string())),
        ("element", Some(letter.element.to_string())),
        ("code", Some(letter.code.clone())),
        ("detail", Some(letter.detail.clone())),
        ("timestamp-ms", number(letter.timestamp_ms)),
        ("received-ms", Some(letter.received_ms.to_string())),
        ("since-ms", number(letter.since_ms)),
        ("cut-from", cut_from),
        ("instance", Some(instance.to_owned())),
    ];
    fields.into_iter().fold(OwnedHeaders::new(), |headers, (name, value)| match value {
        None => headers,
        Some(value) => headers
            .insert(Header { key: &format!("dead-letter.{name}"), value: Some(value.as_bytes()) }),
    })
}
