//! The consumer and its rebalances: the only file that names rdkafka, apart from the demo's broker.
//!
//! One thread polls and does everything; the callbacks run inside its polls. A rebalance is an event whose effects
//! the callback carries out to the end without polling: newly assigned partitions start where the machine says,
//! revoked ones are settled (durable, then committed) before they are given away, lost ones are only forgotten.

pub(crate) mod group;
mod identity;
pub mod ledger;
mod token;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use wal::DiskFs;

use crate::clock::wall_ms;
use crate::config::{KafkaConfig, KafkaTls, PipelineConfig};
use crate::envelope::{Envelope, TimestampType};
use crate::ingest::{Effect, Event, InitialOffset, Start};
use crate::intake::{Intake, IntakeCounts, IntakeError};
use crate::kafka_gap::KafkaGap;
use crate::kafka_trouble::{self, Class, SaidTroubles, Trouble};
use crate::offsets::{Committable, PartitionProgress};
use crate::said::Said;
use crate::secrets::SecretError;
use crate::{kafka_certificate, kafka_connection};
use group::{Deadline, GroupState, MemberError};
use ledger::{LedgerHandle, LedgerNews};
use token::Tokens;

/// How long one poll waits for a first message.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// A turn of the loop ends after so many messages, bytes or so much time, whichever comes first.
const TURN_MESSAGES_MAX: usize = 4096;
const TURN_BYTES_MAX: usize = 1 << 20;
const TURN_TIME_MAX: Duration = Duration::from_millis(5);
/// How long one question to the brokers waits outside of a rebalance; those have a [`Deadline`] for all their waits.
const CALLBACK_WAIT: Duration = Duration::from_secs(5);
/// How often the committed offsets are asked for in the time of one rebalance.
const COMMITTED_TRIES: u32 = 3;

/// What follows a gap, for people.
const GOES_ON: &str = "consumption goes on with what Kafka has";

/// A commit without an answer is counted as lost after this time: the client library answers each, at the latest when
/// its own timeouts are over.
const COMMIT_LOST_AFTER: Duration = Duration::from_secs(300);
/// How often partitions whose position was refused are looked at.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

/// No more is polled while so many bytes wait for the disk, or at most for so long.
const QUEUED_BYTES_MAX: u64 = 8 << 20;
const LOG_WAIT: Duration = Duration::from_secs(1);

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
    /// Partitions that stopped at a gap and wait for a person.
    pub stopped: Vec<KafkaGap>,
    /// Messages not yet consumed, per partition, as the brokers told last.
    pub lag: BTreeMap<i32, i64>,
    /// The group, as the client library tells once a second.
    pub group: GroupState,
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

/// Whose consumer it is.
#[derive(Debug, Clone)]
struct Membership {
    group: String,
    /// A named member keeps its partitions while it is away, for as long as a session lasts.
    name: Option<String>,
    /// How long each half of a rebalance may take.
    rebalance_time: Duration,
    /// A group without any offset begins with the next message.
    begins_at_end: bool,
}

struct Context {
    topic: String,
    membership: Membership,
    /// The topic had so many partitions when we were first given some.
    partitions_at_first: OnceLock<usize>,
    intake: Mutex<Intake<DiskFs>>,
    shared: Arc<IngestShared>,
    started: Instant,
    /// A callback found that the log failed; the loop ends with it.
    failed: Mutex<Option<IntakeError>>,
    /// Everything was settled already: the revocation that follows has nothing to commit.
    leaving: AtomicBool,
    ledger: LedgerHandle,
    /// What the ledger said in a rebalance and the next turn has to hear.
    news: Mutex<Vec<LedgerNews>>,
    /// Partitions whose consumption is to begin somewhere else.
    begin: Mutex<BTreeMap<i32, Start>>,
    /// Kafka refused the position of some partition, the client library does not say of which; looked at then.
    refused: Mutex<Option<Duration>>,
    /// Where partitions without any known offset began.
    beginnings: Mutex<BTreeMap<i32, Start>>,
    /// Since when a commit is on its way. Two of them may overtake each other, because the client library sends one
    /// again that was refused: then the lower offset would stay.
    committing: Mutex<Option<Duration>>,
    /// What fails again and again is not said each time.
    repeated: Mutex<Said>,
    tokens: Mutex<Tokens>,
    said: Mutex<SaidTroubles>,
    /// What was said and is over has its end said, too. The first connection ends a silence.
    said_unreachable: AtomicBool,
    said_full: AtomicBool,
    /// A stop was asked for: callbacks wait for nobody any more.
    stop: Arc<AtomicBool>,
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
        self.say("connect to Kafka", trouble, explain);
        true
    }

    /// Keeps a trouble for the status, and says it once a minute while it lasts.
    fn say(&self, what: &str, trouble: Trouble, explain: impl FnOnce(Trouble) -> Trouble) {
        let (trouble, is_due) = lock(&self.said).take(trouble, self.now(), explain);
        if is_due {
            let Trouble { code, message, hint, .. } = &trouble;
            tracing::warn!(code, topic = self.topic, hint, "{what}: {message}");
        }
        self.troubled_ms.store(milliseconds(self.now()), Ordering::Relaxed);
        let mut snapshot = lock(&self.shared.snapshot);
        snapshot.last_error = Some(trouble.message.clone());
        snapshot.trouble = Some(trouble);
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.membership.rebalance_time)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let deadline = self.deadline();
        // Whatever the group had against us is over.
        lock(&self.shared.snapshot).trouble.take_if(|trouble| trouble.is_of_group());
        let committed = self.committed(consumer, partitions, deadline);
        let at_first = self.partitions_at_first(consumer, deadline);
        let topic = identity::of_topic(consumer.client(), &self.topic, deadline.left());
        let mut effects = Vec::new();
        let mut start_at = TopicPartitionList::new();
        {
            let mut intake = lock(&self.intake);
            if let Err(error) = intake.topic_is(topic, wall_ms(), self.now(), &mut effects) {
                *lock(&self.failed) = Some(error);
                return;
            }
            for element in partitions.elements() {
                let partition = element.partition();
                let committed = match committed.get(&partition) {
                    Some(committed) => *committed,
                    // What the log knows was committed, or could have been: nothing lower is.
                    None => intake.machine().log_next(partition),
                };
                let event = Event::Assigned { partition, committed };
                intake.on(event, self.now(), &mut effects);
            }
        }
        let mut pause = Vec::new();
        let mut hold = Vec::new();
        let mut starts = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Begin { partition, start }
                    if partitions.find_partition(&self.topic, partition).is_none() =>
                {
                    lock(&self.begin).insert(partition, start);
                }
                Effect::Begin { partition, start } => {
                    let is_new = usize::try_from(partition).is_ok_and(|number| number >= at_first);
                    let start = match start {
                        // Somebody may have committed an offset, or messages may have come before we did.
                        Start::End if is_new || !committed.contains_key(&partition) => {
                            Start::Beginning
                        }
                        start => start,
                    };
                    lock(&self.beginnings).insert(partition, start);
                    let offset = offset_of(start);
                    if let Err(error) =
                        start_at.add_partition_offset(&self.topic, partition, offset)
                    {
                        tracing::error!(code = "KAFKA_ASSIGN", partition, %error, "set start offset");
                    }
                    starts.insert(partition, start);
                }
                Effect::Pause(partitions) => pause.extend(partitions),
                Effect::Hold(gap) => hold.push(gap),
                Effect::Rewind { partition, next } => self.rewind(partition, next),
                Effect::Note(gap) => self.say_gap(&gap, GOES_ON),
                Effect::AwaitDurable(_)
                | Effect::Testify(_)
                | Effect::Commit(_)
                | Effect::Resume(_)
                | Effect::NoteTopic => {}
            }
        }
        tracing::info!(topic = self.topic, ?starts, "partitions assigned");
        if let Err(error) = consumer.incremental_assign(&start_at) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "assign partitions");
        }
        self.pause(consumer, &pause);
        hold.iter().for_each(|gap| self.hold(consumer, gap));
    }

    fn rewind(&self, partition: i32, next: Option<i64>) {
        let end = lock(&self.intake).log_end();
        self.ledger.rewind(partition, next, end);
    }

    /// Fetches nothing of a partition before a person has accepted the gap.
    fn hold(&self, consumer: &BaseConsumer<Self>, gap: &KafkaGap) {
        self.say_gap(gap, "the partition stops until `offsets accept`");
        if let Err(error) = consumer.pause(&self.list(&[gap.partition])) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "stop a partition at a gap");
        }
    }

    fn say_gap(&self, gap: &KafkaGap, then: &str) {
        tracing::error!(
            code = gap.kind.code(),
            topic = self.topic,
            partition = gap.partition,
            from = gap.from,
            to = gap.to,
            "{}; {then}",
            gap.message(&self.topic)
        );
    }

    /// Gives partitions up. The client library remembers that one was paused, and would go on with that when it comes
    /// back.
    fn unassign(consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> KafkaResult<()> {
        consumer.resume(partitions)?;
        consumer.incremental_unassign(partitions)
    }

    /// Begins to consume a partition of ours somewhere else; false: to be tried again.
    fn begin(&self, consumer: &BaseConsumer<Self>, partition: i32, start: Start) -> bool {
        // Not a seek: the client library refuses it where it has given up to fetch.
        let begun = Self::unassign(consumer, &self.list(&[partition])).and_then(|()| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&self.topic, partition, offset_of(start))?;
            consumer.incremental_assign(&list)
        });
        if let Err(error) = begun {
            tracing::warn!(code = "KAFKA_ASSIGN", partition, %error, "consume from another offset; tried again");
            return false;
        }
        tracing::info!(topic = self.topic, partition, start = ?start, "consumption goes on");
        let mut intake = lock(&self.intake);
        intake.on(Event::Begun { partition }, self.now(), &mut Vec::new());
        let is_paused = intake.machine().is_paused();
        drop(intake);
        if is_paused && let Err(error) = consumer.pause(&self.list(&[partition])) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "pause partitions");
        }
        true
    }

    /// Committed offsets of the group for each partition of which they are known. A broker that does not answer in time
    /// means: unknown, so the log decides.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
        deadline: Deadline,
    ) -> BTreeMap<i32, Option<i64>> {
        let mut known = BTreeMap::new();
        if partitions.count() == 0 {
            return known;
        }
        for tries_left in (1..=COMMITTED_TRIES).rev() {
            let asked = Deadline::after(deadline.left() / tries_left);
            match consumer.committed_offsets(partitions.clone(), asked.left()) {
                Ok(committed) => {
                    for element in committed.elements() {
                        match (element.error(), element.offset()) {
                            (Ok(()), Offset::Offset(next)) => {
                                known.insert(element.partition(), Some(next));
                            }
                            (Ok(()), _) => {
                                known.insert(element.partition(), None);
                            }
                            (Err(error), _) => self.committed_unknown(&error),
                        }
                    }
                    if known.len() == partitions.count() {
                        return known;
                    }
                }
                Err(error) => self.committed_unknown(&error),
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // An error that came at once may be over a moment later.
            std::thread::sleep(asked.left().min(Duration::from_millis(200)));
        }
        // Starting from the log or from the beginning repeats messages at worst; rewrites are harmless.
        tracing::error!(
            code = "KAFKA_COMMITTED_UNKNOWN",
            topic = self.topic,
            partitions = partitions.count().saturating_sub(known.len()),
            "committed offsets are not known in time: the log's own decide, or else the oldest messages"
        );
        known
    }

    fn committed_unknown(&self, error: &KafkaError) {
        if self.is_due("KAFKA_COMMITTED_UNKNOWN", &error.to_string()) {
            tracing::warn!(
                code = "KAFKA_COMMITTED_UNKNOWN",
                topic = self.topic,
                %error,
                "read committed offsets; tried again"
            );
        }
    }

    /// Whether this is to be said, or was just now.
    fn is_due(&self, code: &'static str, text: &str) -> bool {
        lock(&self.repeated).is_due(code, text, self.now())
    }

    /// Waits while the disk is behind, so that what is polled does not pile up in memory; not for so long that the group
    /// misses us.
    fn await_log(&self) {
        let begun = Instant::now();
        while lock(&self.intake).queued_bytes() > QUEUED_BYTES_MAX
            && begun.elapsed() < LOG_WAIT
            && !self.stop.load(Ordering::Relaxed)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Partitions that the topic had when we were first given some: what comes later begins with its oldest message.
    fn partitions_at_first(&self, consumer: &BaseConsumer<Self>, deadline: Deadline) -> usize {
        if !self.membership.begins_at_end {
            return usize::MAX;
        }
        *self.partitions_at_first.get_or_init(|| {
            let metadata = consumer.fetch_metadata(Some(&self.topic), deadline.left());
            metadata.map_or(0, |metadata| {
                let topics = metadata.topics().iter();
                topics.map(|topic| topic.partitions().len()).max().unwrap_or(0)
            })
        })
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let numbers: Vec<i32> =
            partitions.elements().iter().map(|element| element.partition()).collect();
        let deadline = self.deadline();
        let lost = consumer.assignment_lost();
        if !lost && !self.leaving.load(Ordering::Relaxed) {
            match self.settle(&numbers, deadline) {
                Ok(offsets) => self.commit_within(consumer, &offsets, deadline),
                Err(error) => *lock(&self.failed) = Some(error),
            }
        }
        {
            let mut intake = lock(&self.intake);
            for partition in &numbers {
                lock(&self.begin).remove(partition);
                intake.on(Event::Gone { partition: *partition }, self.now(), &mut Vec::new());
            }
        }
        tracing::info!(topic = self.topic, partitions = ?numbers, lost, "partitions given up");
        if let Err(error) = Self::unassign(consumer, partitions) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "give up partitions");
        }
    }

    /// Makes everything of these partitions durable and known to the ledger, as far as the time allows; returns what may
    /// be committed. What is not durable in time is consumed again by whoever gets the partition.
    fn settle(
        &self,
        partitions: &[i32],
        deadline: Deadline,
    ) -> Result<Vec<Committable>, IntakeError> {
        let (awaited, wal) = {
            let mut intake = lock(&self.intake);
            (intake.begin_to_settle(partitions, self.now())?, intake.wal().clone())
        };
        if let Some(end) = awaited
            && !group::wait_durable(&wal, end, deadline)?
        {
            tracing::warn!(
                code = "REVOKED_UNSETTLED",
                topic = self.topic,
                ?partitions,
                "the log is not durable in time: what is missing is consumed again by another member"
            );
        }
        let testimony = lock(&self.intake).settled(partitions, self.now());
        // Whatever was confirmed before counts as well.
        let mut news = self.ledger.news();
        if !testimony.is_empty() {
            news.extend(self.ledger.settle(testimony, deadline.left()));
        }
        let mut intake = lock(&self.intake);
        for item in news {
            match event_of(item) {
                Ok(event) => intake.on(event, self.now(), &mut Vec::new()),
                Err(later) => lock(&self.news).push(later),
            }
        }
        Ok(intake.committable_of(partitions))
    }

    /// The offsets as the client library takes them. The log has proved them durable; nothing else has this type.
    fn offsets(&self, offsets: &[Committable]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for offset in offsets {
            let next = Offset::Offset(offset.next());
            if let Err(error) = list.add_partition_offset(&self.topic, offset.partition(), next) {
                tracing::error!(code = "KAFKA_COMMIT", partition = offset.partition(), %error, "set offset");
            }
        }
        list
    }

    /// Has the offsets committed, unless the last commit has not been answered: then what is due now is due again later.
    /// The callback tells how it went.
    fn commit(&self, consumer: &BaseConsumer<Self>, offsets: &[Committable]) {
        let since = *lock(&self.committing);
        let is_under_way =
            since.is_some_and(|since| self.now().saturating_sub(since) < COMMIT_LOST_AFTER);
        if offsets.is_empty() || is_under_way {
            return;
        }
        match identity::commit(consumer.client(), &self.offsets(offsets)) {
            Ok(()) => *lock(&self.committing) = Some(self.now()),
            Err(error) => self.commit_failed(&error),
        }
    }

    fn commit_failed(&self, error: &KafkaError) {
        let text = format!("KAFKA_COMMIT: {error}");
        if self.is_due("KAFKA_COMMIT", &text) {
            tracing::warn!(
                code = "KAFKA_COMMIT",
                topic = self.topic,
                %error,
                "commit offsets; tried again later"
            );
        }
        lock(&self.shared.snapshot).last_error = Some(text);
    }

    /// Commits offsets, and waits for that without polling.
    fn commit_within(
        &self,
        consumer: &BaseConsumer<Self>,
        offsets: &[Committable],
        deadline: Deadline,
    ) {
        if offsets.is_empty() {
            return;
        }
        let list = self.offsets(offsets);
        match identity::commit_within(consumer.client(), &list, deadline.left()) {
            Ok(()) => self.confirmed(&list),
            Err(error) => tracing::warn!(
                code = "KAFKA_COMMIT",
                topic = self.topic,
                %error,
                "commit offsets of partitions that are given up: what is missing is consumed again by another member"
            ),
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
        if self.is_due("WAL_FULL", "") {
            self.said_full.store(true, Ordering::Relaxed);
            tracing::warn!(
                code = "WAL_FULL",
                topic = self.topic,
                "log is filling up: consumption paused"
            );
        }
        if let Err(error) = consumer.pause(&self.list(partitions)) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "pause partitions");
        }
    }

    fn resume(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        if self.said_full.swap(false, Ordering::Relaxed) {
            tracing::info!(topic = self.topic, "log has room: consumption resumed");
        }
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
                lock(&self.shared.snapshot).trouble.take_if(|trouble| !trouble.is_of_group());
                // The end of what was said is said; of what was not, neither.
                if self.said_unreachable.swap(false, Ordering::Relaxed) {
                    tracing::info!(topic = self.topic, "connected to Kafka");
                }
            } else if self.is_due("KAFKA_UNREACHABLE", "") {
                self.said_unreachable.store(true, Ordering::Relaxed);
                tracing::warn!(code = "KAFKA_UNREACHABLE", topic = self.topic, "no broker answers");
            }
        }
        let troubled_ms = self.troubled_ms.load(Ordering::Relaxed);
        if milliseconds(self.now()).saturating_sub(troubled_ms) > TROUBLE_LASTS_MS {
            lock(&self.shared.snapshot).trouble = None;
        }
        if let Some(group) = &statistics.cgrp {
            lock(&self.shared.snapshot).group.update(group);
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
        *lock(&self.committing) = None;
        match result {
            Ok(()) => self.confirmed(offsets),
            Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => self.commit_failed(&error),
        }
    }
}

/// What the polling thread works with.
pub struct IngestParts {
    /// Name of the member; `None` for one that the group names.
    pub member: Option<String>,
    /// The log's side.
    pub intake: Intake<DiskFs>,
    /// What others may know.
    pub shared: Arc<IngestShared>,
    /// The ledger's side.
    pub ledger: LedgerHandle,
    /// True ends it.
    pub stop: Arc<AtomicBool>,
    /// Zero of monotonic time.
    pub started: Instant,
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
        parts: IngestParts,
    ) -> anyhow::Result<Self> {
        let IngestParts { member, intake, shared, ledger, stop, started } = parts;
        lock(&shared.snapshot).group.member.clone_from(&member);
        let config = client_config(kafka, pipeline, member.as_deref())?;
        let context = Context {
            topic: pipeline.topic.clone(),
            membership: Membership {
                group: pipeline.group_id.clone(),
                name: member,
                rebalance_time: group::rebalance_time(kafka.session_timeout),
                begins_at_end: kafka.initial_offset == InitialOffset::Latest,
            },
            partitions_at_first: OnceLock::new(),
            intake: Mutex::new(intake),
            shared,
            started,
            failed: Mutex::new(None),
            leaving: AtomicBool::new(false),
            ledger,
            news: Mutex::default(),
            begin: Mutex::default(),
            refused: Mutex::new(None),
            beginnings: Mutex::default(),
            committing: Mutex::new(None),
            repeated: Mutex::default(),
            tokens: Mutex::new(Tokens::new(kafka)),
            said: Mutex::new(SaidTroubles::default()),
            said_unreachable: AtomicBool::new(true),
            said_full: AtomicBool::new(false),
            stop,
            tls: kafka.security.tls.clone(),
            was_connected: AtomicBool::new(false),
            troubled_ms: AtomicU64::new(0),
        };
        let consumer: BaseConsumer<Context> = config.create_with_context(context)?;
        consumer.subscribe(&[&pipeline.topic])?;
        Ok(Self { consumer })
    }

    /// Polls until told to stop, then makes everything durable, commits, and leaves.
    ///
    /// # Errors
    /// [`IntakeError`]: the log failed or a message cannot be kept; offsets behind it were not committed.
    /// [`MemberError`]: the consumer is of no use any more.
    pub fn run(self) -> anyhow::Result<IngestEnd> {
        let context = Arc::clone(self.consumer.context());
        let end = self.poll_until_stopped(&context).and_then(|()| Ok(self.leave(&context)?));
        // After a failure nothing may be committed any more.
        context.leaving.store(true, Ordering::Relaxed);
        self.close();
        end
    }

    fn poll_until_stopped(&self, context: &Context) -> anyhow::Result<()> {
        let mut effects = Vec::new();
        while !context.stop.load(Ordering::Relaxed) {
            context.await_log();
            self.turn(context, &mut effects)?;
            if let Some((code, reason)) = self.consumer.client().fatal_error() {
                let Membership { group, name, .. } = &context.membership;
                let error = MemberError::of(code, reason, group, name.as_deref().unwrap_or(""));
                tracing::error!(
                    code = error.code(),
                    topic = context.topic,
                    hint = error.hint(),
                    "{error}"
                );
                return Err(error.into());
            }
        }
        Ok(())
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
        self.keep_token(context);
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
        self.look_for_gaps(context, effects)?;
        {
            let mut intake = lock(&context.intake);
            let mut news = std::mem::take(&mut *lock(&context.news));
            news.extend(context.ledger.news());
            for item in news {
                match event_of(item) {
                    Ok(event) => intake.on(event, context.now(), effects),
                    Err(LedgerNews::Topic(topic)) => {
                        intake.topic_is(topic, wall_ms(), context.now(), effects)?
                    }
                    Err(_) => intake.part(Event::Accept, context.now(), effects)?,
                }
            }
            intake.append(context.now(), effects)?;
            intake.tick(context.now(), effects);
        }
        for effect in effects.drain(..) {
            match effect {
                Effect::Commit(offsets) => context.commit(&self.consumer, &offsets),
                Effect::Testify(testimony) => context.ledger.testify(testimony),
                Effect::Pause(partitions) => context.pause(&self.consumer, &partitions),
                Effect::Resume(partitions) => context.resume(&self.consumer, &partitions),
                Effect::Begin { partition, start } => {
                    lock(&context.begin).insert(partition, start);
                }
                Effect::Hold(gap) => context.hold(&self.consumer, &gap),
                Effect::Note(gap) => context.say_gap(&gap, GOES_ON),
                Effect::Rewind { partition, next } => context.rewind(partition, next),
                // Only rebalances ask for the first; the intake has carried out the second.
                Effect::AwaitDurable(_) | Effect::NoteTopic => {}
            }
        }
        lock(&context.begin)
            .retain(|partition, start| !context.begin(&self.consumer, *partition, *start));
        publish(context);
        Ok(())
    }

    /// Fetches a token when it is time for one.
    fn keep_token(&self, context: &Context) {
        match lock(&context.tokens).keep(self.consumer.client(), context.now()) {
            Ok(false) => {}
            Ok(true) => {
                let mut snapshot = lock(&context.shared.snapshot);
                snapshot.trouble.take_if(|trouble| trouble.code == kafka_trouble::TOKEN);
            }
            Err(error) => context.say("get a token", error.trouble(), |trouble| trouble),
        }
    }

    fn leave(&self, context: &Context) -> Result<IngestEnd, IntakeError> {
        let partitions: Vec<i32> = {
            let intake = lock(&context.intake);
            intake.machine().progress().map(|(partition, _)| partition).collect()
        };
        let settled_by = context.membership.rebalance_time.min(CALLBACK_WAIT);
        context.settle(&partitions, Deadline::after(settled_by))?;
        // Confirmed by polling, which serves what else the client library has to say.
        let deadline = Instant::now() + CALLBACK_WAIT;
        while Instant::now() < deadline {
            let offsets = lock(&context.intake).machine().committable();
            if offsets.is_empty() {
                break;
            }
            context.commit(&self.consumer, &offsets);
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
        if context.membership.name.is_some() {
            // Its partitions wait for it to return; an unsubscription would give them to others at once.
            return Ok(end);
        }
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
            if context.is_due("KAFKA_REFUSED", "") {
                tracing::warn!(
                    code = "KAFKA_REFUSED",
                    topic = context.topic,
                    "Kafka refused the position of a partition: comparing it with what there is"
                );
            }
            lock(&context.refused).get_or_insert(context.now());
            return;
        }
        let group = &context.membership.group;
        if let Some(trouble) = code.and_then(|code| group::refusal(code, group)) {
            context.say("join the group", trouble, |trouble| trouble);
            return;
        }
        match code {
            // `poll_until_stopped` says it.
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                tracing::debug!(%error, "poll");
            }
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
                if context.is_due("KAFKA_POLL", &error.to_string()) {
                    tracing::warn!(code = "KAFKA_POLL", topic = context.topic, %error, "poll");
                }
            }
        }
    }

    /// Compares partitions whose position Kafka refused, and those whose history it has replaced, with what there is,
    /// and has the machine decide.
    fn look_for_gaps(
        &self,
        context: &Context,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        let diverged = lock(&context.intake).take_diverged();
        for partition in diverged {
            match self.bounds(context, partition) {
                Some((low, _)) => {
                    let event = Event::Diverged { partition, low, at_ms: wall_ms() };
                    lock(&context.intake).part(event, context.now(), effects)?;
                }
                None => lock(&context.intake).diverged(partition),
            }
        }
        let due = *lock(&context.refused);
        if due.is_none_or(|due| context.now() < due) {
            return Ok(());
        }
        // One that was created again may look as if it was truncated.
        let topic = identity::of_topic(self.consumer.client(), &context.topic, CALLBACK_WAIT);
        let assigned: Vec<(i32, Option<i64>)> = {
            let mut intake = lock(&context.intake);
            intake.topic_is(topic, wall_ms(), context.now(), effects)?;
            let consumed =
                |(partition, progress): (i32, PartitionProgress)| (partition, progress.consumed);
            intake.machine().progress().map(consumed).collect()
        };
        let mut is_over = true;
        for (partition, consumed) in assigned {
            match (self.bounds(context, partition), consumed) {
                (Some((low, high)), Some(_)) => {
                    let event = Event::Bounds { partition, low, high, at_ms: wall_ms() };
                    lock(&context.intake).part(event, context.now(), effects)?;
                }
                (Some(_), None) => {
                    let beginning = lock(&context.beginnings).get(&partition).copied();
                    let start = beginning.unwrap_or(Start::Beginning);
                    effects.push(Effect::Begin { partition, start });
                }
                (None, _) => is_over = false,
            }
        }
        *lock(&context.refused) = (!is_over).then(|| context.now() + REFUSED_INTERVAL);
        Ok(())
    }

    /// The ends of a partition, if the brokers tell them now.
    fn bounds(&self, context: &Context, partition: i32) -> Option<(i64, i64)> {
        match bounds(&self.consumer, &context.topic, partition) {
            Ok(bounds) => Some(bounds),
            Err(error) => {
                if context.is_due("KAFKA_REFUSED", &error.to_string()) {
                    tracing::warn!(
                        code = "KAFKA_REFUSED",
                        topic = context.topic,
                        partition,
                        %error,
                        "Kafka refused the position and does not say why; asked again"
                    );
                }
                None
            }
        }
    }
}

/// The oldest offset that a partition has, and the one behind its newest message. Asked one by one: the client library's
/// own question for both takes an error in one answer for an empty partition, and so for a gap.
fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> KafkaResult<(i64, i64)> {
    let ask = |which: Offset| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(topic, partition, which)?;
        let answered = consumer.offsets_for_times(asked, CALLBACK_WAIT)?;
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                return Ok(offset);
            }
        }
        Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset))
    };
    Ok((ask(Offset::Beginning)?, ask(Offset::End)?))
}

fn offset_of(start: Start) -> Offset {
    match start {
        Start::At(offset) => Offset::Offset(offset),
        Start::Beginning => Offset::Beginning,
        Start::End => Offset::End,
    }
}

/// What is news for the machine as it is; the rest needs the intake.
fn event_of(news: LedgerNews) -> Result<Event, LedgerNews> {
    match news {
        LedgerNews::Witnessed { partition, next } => Ok(Event::Witnessed { partition, next }),
        LedgerNews::Off => Ok(Event::NoLedger),
        LedgerNews::Rewound { partition } => Ok(Event::LedgerRewound { partition }),
        LedgerNews::Delivered { partition, next } => Ok(Event::Delivered { partition, next }),
        later @ (LedgerNews::Topic(_) | LedgerNews::Accept) => Err(later),
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
        received_ms: wall_ms(),
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
    snapshot.stopped.clear();
    snapshot.stopped.extend(intake.machine().stopped());
    context.shared.heartbeat_ms.store(milliseconds(context.now()), Ordering::Relaxed);
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Most bytes of one fetch, as they travel; a batch that is longer comes alone.
const FETCH_BYTES: &str = "262144";

/// How any client of ours reaches the brokers. What an operator may tune comes first; what the guarantee needs cannot be
/// overridden and is set behind it.
fn connection(kafka: &KafkaConfig) -> Result<ClientConfig, SecretError> {
    let mut config = ClientConfig::new();
    config
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        // Memory: what a fetch brings is counted as it travels, and unpacks to many times that; messages that wait cost
        // 300 bytes each besides. A line of 10 kB/s carries a fetch before it times out. docs/memory.md has the sums.
        .set("message.max.bytes", FETCH_BYTES)
        .set("fetch.max.bytes", FETCH_BYTES)
        .set("fetch.message.max.bytes", FETCH_BYTES)
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "10000")
        // A connection that died without a word is given up after so long; an answer takes no longer.
        .set("socket.timeout.ms", "30000")
        .set("socket.connection.setup.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("reconnect.backoff.ms", "200")
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
    member: Option<&str>,
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
    if !kafka.properties.contains_key("max.poll.interval.ms") {
        let interval = group::poll_interval(kafka.session_timeout);
        config.set("max.poll.interval.ms", interval.as_millis().to_string());
    }
    if let Some(member) = member {
        config.set("group.instance.id", member);
    }
    Ok(config)
}
