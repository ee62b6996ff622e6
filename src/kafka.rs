//! The consumer and its rebalances: the only file that names rdkafka, apart from the demo's broker.
//!
//! One thread polls and does everything; the callbacks run inside its polls. A rebalance is an event whose effects
//! the callback carries out to the end without polling: newly assigned partitions start where the machine says,
//! revoked ones are settled (durable, then committed) before they are given away, lost ones are only forgotten.

mod identity;
pub mod ledger;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use wal::DiskFs;

use crate::config::{KafkaConfig, KafkaTls, PipelineConfig};
use crate::envelope::{Envelope, TimestampType};
use crate::ingest::{Effect, Event, Start};
use crate::intake::{Intake, IntakeCounts, IntakeError};
use crate::kafka_trouble::{self, Class, SaidTroubles, Trouble};
use crate::offsets::{Committable, PartitionProgress};
use crate::secrets::SecretError;
use crate::{kafka_certificate, kafka_connection};
use ledger::{LedgerHandle, LedgerNews};

/// How long one poll waits for a first message.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// A turn of the loop ends after so many messages, bytes or so much time, whichever comes first.
const TURN_MESSAGES_MAX: usize = 4096;
const TURN_BYTES_MAX: usize = 1 << 20;
const TURN_TIME_MAX: Duration = Duration::from_millis(5);
/// How long a callback waits for an answer of the brokers; well below the session timeout.
const CALLBACK_WAIT: Duration = Duration::from_secs(5);

/// A trouble is over when nothing was heard of it for so long: the client library repeats it every 30 s.
const TROUBLE_LASTS_MS: u64 = 90_000;

/// What others may know about the first stage; refreshed once per turn.
#[derive(Debug, Clone, Default)]
pub struct IngestSnapshot {
    /// Progress of each assigned partition.
    pub partitions: BTreeMap<i32, PartitionProgress>,
    /// Counts since the start.
    pub counts: IntakeCounts,
    /// True while consumption is paused because the log is full.
    pub paused: bool,
    /// A broker answers.
    pub connected: bool,
    /// Last error of the client library, for people.
    pub last_error: Option<String>,
    /// TLS or SASL keeps a connection from being made, as far as is known.
    pub trouble: Option<Trouble>,
    /// Messages that Kafka no longer had when we wanted them: ranges of offsets per partition.
    pub gaps: Vec<KafkaGap>,
    /// Messages not yet consumed, per partition, as the brokers told last.
    pub lag: BTreeMap<i32, i64>,
}

/// A range of offsets that Kafka no longer has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KafkaGap {
    /// Partition.
    pub partition: i32,
    /// First offset missing.
    pub from: i64,
    /// First offset that is there again.
    pub to: i64,
}

/// State that the polling thread and its callbacks share, and a snapshot for everybody else.
pub struct IngestShared {
    snapshot: Mutex<IngestSnapshot>,
    /// Milliseconds since the start of the process at the last turn: the thread's sign of life.
    heartbeat_ms: AtomicU64,
    connected: AtomicBool,
}

impl IngestShared {
    /// State before the first poll.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            snapshot: Mutex::new(IngestSnapshot::default()),
            heartbeat_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
        })
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> IngestSnapshot {
        let mut snapshot = lock(&self.snapshot).clone();
        snapshot.connected = self.connected.load(Ordering::Relaxed);
        snapshot
    }

    /// Milliseconds since the start of the process at the last turn.
    #[must_use]
    pub fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Relaxed)
    }
}

/// A lock whose holder cannot have left half-done work: a panic in a core task ends the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Context {
    topic: String,
    intake: Mutex<Intake<DiskFs>>,
    shared: Arc<IngestShared>,
    started: Instant,
    /// A callback found that the log failed; the loop ends with it.
    failed: Mutex<Option<IntakeError>>,
    /// Everything was settled already: the revocation that follows has nothing to commit.
    leaving: AtomicBool,
    ledger: LedgerHandle,
    said: Mutex<SaidTroubles>,
    /// To ask a broker why its certificate is refused.
    tls: KafkaTls,
    /// Some broker has answered once: what is configured is not wrong.
    was_connected: AtomicBool,
    /// When the last trouble was heard of.
    troubled_ms: AtomicU64,
}

impl Context {
    /// Keeps and says what only an operator can repair; false when it is something else.
    fn trouble(&self, class: Class, text: &str) -> bool {
        let Some(trouble) = kafka_trouble::classify(class, text) else { return false };
        if trouble.suspected && self.was_connected.load(Ordering::Relaxed) {
            return false;
        }
        let explain = |trouble| kafka_certificate::explain(trouble, &self.tls);
        let (trouble, is_due) = lock(&self.said).take(trouble, self.now(), explain);
        if is_due {
            let Trouble { code, message, hint, .. } = &trouble;
            tracing::warn!(code, topic = self.topic, hint, "connect to Kafka: {message}");
        }
        self.troubled_ms.store(milliseconds(self.now()), Ordering::Relaxed);
        let mut snapshot = lock(&self.shared.snapshot);
        snapshot.last_error = Some(trouble.message.clone());
        snapshot.trouble = Some(trouble);
        true
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let committed = self.committed(consumer, partitions);
        let mut effects = Vec::new();
        let mut start_at = TopicPartitionList::new();
        {
            let mut intake = lock(&self.intake);
            for element in partitions.elements() {
                let partition = element.partition();
                let event =
                    Event::Assigned { partition, committed: committed.get(&partition).copied() };
                intake.on(event, self.now(), &mut effects);
            }
        }
        let mut pause = Vec::new();
        for effect in effects {
            match effect {
                Effect::Begin { partition, start } => {
                    let offset = match start {
                        Start::At(offset) => Offset::Offset(offset),
                        Start::Beginning => Offset::Beginning,
                        Start::End => Offset::End,
                    };
                    if let Err(error) =
                        start_at.add_partition_offset(&self.topic, partition, offset)
                    {
                        tracing::error!(code = "KAFKA_ASSIGN", partition, %error, "set start offset");
                    }
                    tracing::info!(topic = self.topic, partition, start = ?start, "partition assigned");
                }
                Effect::Pause(partitions) => pause.extend(partitions),
                Effect::AwaitDurable(_)
                | Effect::Testify(_)
                | Effect::Commit(_)
                | Effect::Resume(_) => {}
            }
        }
        if let Err(error) = consumer.incremental_assign(&start_at) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "assign partitions");
        }
        self.pause(consumer, &pause);
    }

    /// Committed offsets of the group. A broker that does not answer in time means: unknown, so the log decides.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> BTreeMap<i32, i64> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match consumer.committed_offsets(partitions.clone(), CALLBACK_WAIT) {
                Ok(committed) => {
                    return committed
                        .elements()
                        .iter()
                        .filter_map(|element| match element.offset() {
                            Offset::Offset(offset) => Some((element.partition(), offset)),
                            _ => None,
                        })
                        .collect();
                }
                Err(error) if attempts < 3 => {
                    tracing::warn!(code = "KAFKA_COMMITTED_UNKNOWN", %error, attempts, "read committed offsets");
                }
                Err(error) => {
                    // Starting from the log or from the beginning repeats messages at worst; rewrites are harmless.
                    tracing::error!(code = "KAFKA_COMMITTED_UNKNOWN", %error, "read committed offsets");
                    return BTreeMap::new();
                }
            }
        }
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let numbers: Vec<i32> =
            partitions.elements().iter().map(|element| element.partition()).collect();
        let lost = consumer.assignment_lost();
        if !lost && !self.leaving.load(Ordering::Relaxed) {
            match self.settle(&numbers) {
                Ok(offsets) => self.commit(consumer, &offsets, CommitMode::Sync),
                Err(error) => *lock(&self.failed) = Some(error),
            }
        }
        {
            let mut intake = lock(&self.intake);
            for partition in &numbers {
                intake.on(Event::Gone { partition: *partition }, self.now(), &mut Vec::new());
            }
        }
        tracing::info!(topic = self.topic, partitions = ?numbers, lost, "partitions given up");
        if let Err(error) = consumer.incremental_unassign(partitions) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "give up partitions");
        }
    }

    /// Makes everything of these partitions durable and known to the ledger; returns what may be committed.
    fn settle(&self, partitions: &[i32]) -> Result<Vec<Committable>, IntakeError> {
        let testimony = lock(&self.intake).settle(partitions, self.now())?;
        // Whatever was confirmed before counts as well.
        let mut news = self.ledger.news();
        if !testimony.is_empty() {
            news.extend(self.ledger.settle(testimony, CALLBACK_WAIT));
        }
        let mut intake = lock(&self.intake);
        for item in news {
            intake.on(event_of(item), self.now(), &mut Vec::new());
        }
        Ok(intake.committable_of(partitions))
    }

    /// Commits offsets that the log has proved durable; nothing else has this type.
    fn commit(&self, consumer: &BaseConsumer<Self>, offsets: &[Committable], mode: CommitMode) {
        if offsets.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for offset in offsets {
            let next = Offset::Offset(offset.next());
            if let Err(error) = list.add_partition_offset(&self.topic, offset.partition(), next) {
                tracing::error!(code = "KAFKA_COMMIT", partition = offset.partition(), %error, "set offset");
            }
        }
        match consumer.commit(&list, mode) {
            Ok(()) if matches!(mode, CommitMode::Sync) => self.confirmed(&list),
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(code = "KAFKA_COMMIT", %error, "commit offsets; tried again later")
            }
        }
    }

    fn confirmed(&self, offsets: &TopicPartitionList) {
        let mut intake = lock(&self.intake);
        for element in offsets.elements() {
            if let (Offset::Offset(next), Ok(())) = (element.offset(), element.error()) {
                let event = Event::Committed { partition: element.partition(), next };
                intake.on(event, self.now(), &mut Vec::new());
            }
        }
    }

    fn list(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        list
    }

    fn pause(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        tracing::warn!(
            code = "WAL_FULL",
            topic = self.topic,
            "log is filling up: consumption paused"
        );
        if let Err(error) = consumer.pause(&self.list(partitions)) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "pause partitions");
        }
    }

    fn resume(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        tracing::info!(topic = self.topic, "log has room: consumption resumed");
        if let Err(error) = consumer.resume(&self.list(partitions)) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "resume partitions");
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A listener that hangs up is no error to the client library; why it did may stand in the text.
        if facility == "FAIL" && self.trouble(Class::Other, message) {
            return;
        }
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::debug!(target: "librdkafka", facility, message, "error")
            }
            RDKafkaLogLevel::Warning => {
                tracing::debug!(target: "librdkafka", facility, message, "warning")
            }
            _ => tracing::trace!(target: "librdkafka", facility, message),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let up =
            statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        let was_up = self.shared.connected.swap(up, Ordering::Relaxed);
        if up != was_up {
            if up {
                self.was_connected.store(true, Ordering::Relaxed);
                lock(&self.shared.snapshot).trouble = None;
                tracing::info!(topic = self.topic, "connected to Kafka");
            } else {
                tracing::warn!(code = "KAFKA_UNREACHABLE", topic = self.topic, "no broker answers");
            }
        }
        let troubled_ms = self.troubled_ms.load(Ordering::Relaxed);
        if milliseconds(self.now()).saturating_sub(troubled_ms) > TROUBLE_LASTS_MS {
            lock(&self.shared.snapshot).trouble = None;
        }
        if let Some(topic) = statistics.topics.get(&self.topic) {
            lock(&self.shared.snapshot).lag = topic
                .partitions
                .values()
                .filter(|partition| {
                    partition.desired && partition.partition >= 0 && partition.consumer_lag >= 0
                })
                .map(|partition| (partition.partition, partition.consumer_lag))
                .collect();
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The client reconnects by itself; `stats` says once when nobody answers, the snapshot keeps why.
        tracing::debug!(target: "librdkafka", %error, reason);
        let code = error.rdkafka_error_code();
        let class = match code {
            Some(RDKafkaErrorCode::SSL) => Class::Ssl,
            Some(RDKafkaErrorCode::Authentication) => Class::Authentication,
            _ => Class::Other,
        };
        // That all brokers are down follows every reason, and is none.
        if !self.trouble(class, reason) && code != Some(RDKafkaErrorCode::AllBrokersDown) {
            lock(&self.shared.snapshot).last_error = Some(format!("{error}: {reason}"));
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assign(consumer, partitions)
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                self.revoke(consumer, partitions)
            }
            other => {
                tracing::error!(code = "KAFKA_REBALANCE", error = ?other, "rebalance failed");
                self.revoke(consumer, partitions);
            }
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        match result {
            Ok(()) => self.confirmed(offsets),
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => {
                tracing::warn!(code = "KAFKA_COMMIT", %error, "commit offsets; tried again later")
            }
        }
    }
}

/// The polling thread's consumer.
pub struct Ingestion {
    consumer: BaseConsumer<Context>,
}

/// How the first stage ended.
#[derive(Debug)]
pub struct IngestEnd {
    /// Last progress of each partition that was ours.
    pub partitions: BTreeMap<i32, PartitionProgress>,
}

impl Ingestion {
    /// Subscribes; nothing is fetched before [`Ingestion::run`].
    ///
    /// # Errors
    /// A secret cannot be read, or librdkafka refuses a property; the message names it.
    pub fn new(
        kafka: &KafkaConfig,
        pipeline: &PipelineConfig,
        intake: Intake<DiskFs>,
        shared: Arc<IngestShared>,
        ledger: LedgerHandle,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let context = Context {
            topic: pipeline.topic.clone(),
            intake: Mutex::new(intake),
            shared,
            started,
            failed: Mutex::new(None),
            leaving: AtomicBool::new(false),
            ledger,
            said: Mutex::new(SaidTroubles::default()),
            tls: kafka.security.tls.clone(),
            was_connected: AtomicBool::new(false),
            troubled_ms: AtomicU64::new(0),
        };
        let consumer: BaseConsumer<Context> =
            client_config(kafka, pipeline)?.create_with_context(context)?;
        consumer.subscribe(&[&pipeline.topic])?;
        Ok(Self { consumer })
    }

    /// Polls until `stop`, then makes everything durable, commits, and leaves the group.
    ///
    /// # Errors
    /// [`IntakeError`]: the log failed or a message cannot be kept; offsets behind it were not committed.
    pub fn run(self, stop: &AtomicBool) -> Result<IngestEnd, IntakeError> {
        let context = Arc::clone(self.consumer.context());
        let mut effects = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.turn(&context, &mut effects)?;
        }
        let end = self.leave(&context)?;
        self.close();
        Ok(end)
    }

    /// Closes the consumer on a thread of its own: with no broker that may take longer than a stop should.
    fn close(self) {
        let (closed, waiting) = crossbeam_channel::bounded::<()>(1);
        let spawned = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || {
            drop(self);
            drop(closed);
        });
        if spawned.is_err()
            || waiting.recv_timeout(CALLBACK_WAIT).is_err_and(|error| error.is_timeout())
        {
            tracing::warn!(
                code = "KAFKA_CLOSE",
                "the consumer does not close in time; the process ends without it"
            );
        }
    }

    /// One turn: wait for a message, take what else is there, hand it to the log, do what the machine says.
    fn turn(&self, context: &Context, effects: &mut Vec<Effect>) -> Result<(), IntakeError> {
        let mut wait = POLL_WAIT;
        let mut messages = 0_usize;
        let mut bytes = 0_usize;
        let mut begun = None;
        while let Some(polled) = self.consumer.poll(wait) {
            wait = Duration::ZERO;
            let begun = *begun.get_or_insert_with(Instant::now);
            match polled {
                Ok(message) => {
                    messages = messages.saturating_add(1);
                    bytes = bytes.saturating_add(message.payload_len());
                    take(context, &message, effects)?;
                }
                Err(error) => self.poll_failed(context, &error),
            }
            if messages >= TURN_MESSAGES_MAX
                || bytes >= TURN_BYTES_MAX
                || begun.elapsed() >= TURN_TIME_MAX
            {
                break;
            }
        }
        if let Some(error) = lock(&context.failed).take() {
            return Err(error);
        }
        {
            let mut intake = lock(&context.intake);
            for news in context.ledger.news() {
                intake.on(event_of(news), context.now(), effects);
            }
            intake.append(context.now(), effects)?;
            intake.tick(context.now(), effects);
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::Commit(offsets) => {
                    context.commit(&self.consumer, &offsets, CommitMode::Async)
                }
                Effect::Testify(testimony) => context.ledger.testify(testimony),
                Effect::Pause(partitions) => context.pause(&self.consumer, &partitions),
                Effect::Resume(partitions) => context.resume(&self.consumer, &partitions),
                // Only rebalances ask for these, and carry them out themselves.
                Effect::Begin { .. } | Effect::AwaitDurable(_) => {}
            }
        }
        publish(context);
        Ok(())
    }

    fn leave(&self, context: &Context) -> Result<IngestEnd, IntakeError> {
        let partitions: Vec<i32> = {
            let intake = lock(&context.intake);
            intake.machine().progress().map(|(partition, _)| partition).collect()
        };
        let offsets = context.settle(&partitions)?;
        // Confirmed by polling, so that a broker that is away costs a bounded time and not the client's patience.
        context.commit(&self.consumer, &offsets, CommitMode::Async);
        let deadline = Instant::now() + CALLBACK_WAIT;
        while Instant::now() < deadline && !lock(&context.intake).machine().committable().is_empty()
        {
            if let Some(Err(error)) = self.consumer.poll(POLL_WAIT) {
                tracing::debug!(%error, "poll for the last commit");
            }
        }
        let open = lock(&context.intake).machine().committable().len();
        if open > 0 {
            tracing::warn!(
                code = "KAFKA_COMMIT",
                topic = context.topic,
                partitions = open,
                "the last offsets could not be committed; the log knows them and goes on behind them"
            );
        }
        context.leaving.store(true, Ordering::Relaxed);
        publish(context);
        let end = IngestEnd { partitions: context.shared.snapshot().partitions };
        // The revocation that follows has nothing left to do but to say goodbye; it is served by polls.
        self.consumer.unsubscribe();
        let deadline = Instant::now() + CALLBACK_WAIT;
        while Instant::now() < deadline
            && lock(&context.intake).machine().progress().next().is_some()
        {
            if let Some(Err(error)) = self.consumer.poll(POLL_WAIT) {
                tracing::debug!(%error, "poll while leaving the group");
            }
        }
        Ok(end)
    }

    fn poll_failed(&self, context: &Context, error: &KafkaError) {
        let code = match error {
            KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code) => {
                Some(*code)
            }
            _ => None,
        };
        if code == Some(RDKafkaErrorCode::AutoOffsetReset) {
            self.find_gaps(context);
            return;
        }
        match code {
            // `error` has said or kept it; the client reconnects by itself.
            Some(
                RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut,
            ) => tracing::debug!(%error, "poll"),
            _ => {
                lock(&context.shared.snapshot).last_error = Some(error.to_string());
                tracing::warn!(code = "KAFKA_POLL", topic = context.topic, %error, "poll");
            }
        }
    }

    /// Kafka does not have the next offset of some partition: finds which, says what is missing, and goes on at the
    /// oldest message that is there. An offset beyond the end means another topic of the same name: that stops.
    fn find_gaps(&self, context: &Context) {
        let progress: Vec<(i32, PartitionProgress)> =
            lock(&context.intake).machine().progress().collect();
        for (partition, progress) in progress {
            let Some(next) = progress.consumed else { continue };
            let Ok((low, high)) =
                self.consumer.fetch_watermarks(&context.topic, partition, CALLBACK_WAIT)
            else {
                continue;
            };
            if next < low {
                tracing::error!(
                    code = "KAFKA_GAP",
                    topic = context.topic,
                    partition,
                    from = next,
                    to = low,
                    "Kafka removed messages before they were consumed"
                );
                lock(&context.shared.snapshot).gaps.push(KafkaGap {
                    partition,
                    from: next,
                    to: low,
                });
                if let Err(error) = self.consumer.seek(
                    &context.topic,
                    partition,
                    Offset::Offset(low),
                    CALLBACK_WAIT,
                ) {
                    tracing::error!(code = "KAFKA_SEEK", partition, %error, "go on after the gap");
                }
            } else if next > high {
                tracing::error!(
                    code = "KAFKA_TRUNCATED",
                    topic = context.topic,
                    partition,
                    next,
                    high,
                    "the partition ends before the next offset: it was truncated or created again; it stays stopped"
                );
                lock(&context.shared.snapshot).last_error = Some(format!(
                    "KAFKA_TRUNCATED: {}/{partition} ends at {high}, the next offset is {next}",
                    context.topic
                ));
            }
        }
    }
}

fn event_of(news: LedgerNews) -> Event {
    match news {
        LedgerNews::Witnessed { partition, next } => Event::Witnessed { partition, next },
        LedgerNews::Off => Event::NoLedger,
    }
}

fn take(
    context: &Context,
    message: &BorrowedMessage<'_>,
    effects: &mut Vec<Effect>,
) -> Result<(), IntakeError> {
    lock(&context.intake).take(&envelope(&context.topic, message), context.now(), effects)
}

/// A message as a record of the log.
fn envelope<'a>(topic: &'a str, message: &'a BorrowedMessage<'_>) -> Envelope<'a> {
    let (timestamp_ms, timestamp_type) = match message.timestamp() {
        Timestamp::NotAvailable => (0, TimestampType::Absent),
        Timestamp::CreateTime(ms) if ms < 0 => (0, TimestampType::Absent),
        Timestamp::CreateTime(ms) => (ms, TimestampType::Created),
        Timestamp::LogAppendTime(ms) => (ms, TimestampType::Appended),
    };
    Envelope {
        topic,
        partition: message.partition(),
        offset: message.offset(),
        leader_epoch: identity::leader_epoch(message),
        timestamp_ms,
        timestamp_type,
        received_ms: crate::clock::wall_ms(),
        key: message.key(),
        payload: message.payload(),
    }
}

fn publish(context: &Context) {
    let intake = lock(&context.intake);
    let mut snapshot = lock(&context.shared.snapshot);
    snapshot.partitions.clear();
    snapshot.partitions.extend(intake.machine().progress());
    snapshot.counts = intake.counts();
    snapshot.paused = intake.machine().is_paused();
    context.shared.heartbeat_ms.store(milliseconds(context.now()), Ordering::Relaxed);
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How any client of ours reaches the brokers. What an operator may tune comes first; what the guarantee needs cannot be
/// overridden and is set behind it.
fn connection(kafka: &KafkaConfig) -> Result<ClientConfig, SecretError> {
    let mut config = ClientConfig::new();
    config
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.max.messages.kbytes", "32768")
        .set("socket.keepalive.enable", "true")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("reconnect.backoff.max.ms", "5000")
        .set("check.crcs", "true");
    for (property, value) in &kafka.properties {
        config.set(property, value);
    }
    for (property, value) in kafka_connection::properties(kafka)?.iter() {
        config.set(property, value);
    }
    // Informational, because a listener that hangs up is not more than that to the client library.
    config.set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

/// What the consumer of a pipeline is made with.
///
/// # Errors
/// A secret cannot be read.
pub fn client_config(
    kafka: &KafkaConfig,
    pipeline: &PipelineConfig,
) -> Result<ClientConfig, SecretError> {
    let mut config = connection(kafka)?;
    config
        .set("group.id", &pipeline.group_id)
        .set("session.timeout.ms", kafka.session_timeout.as_millis().to_string())
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "false")
        .set("statistics.interval.ms", "1000");
    if !kafka.group_instance_id.is_empty() {
        // Two pipelines of one process are two members of two groups; the name may be the same.
        config.set("group.instance.id", &kafka.group_instance_id);
    }
    Ok(config)
}
