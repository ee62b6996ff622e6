//! The consumer's thread. This file and those below it are the only ones that name rdkafka, apart from the demo's broker.
//!
//! One thread polls and does everything; the callbacks run inside its polls. A rebalance is an event whose effects
//! the callback carries out to the end without polling: newly assigned partitions start where the machine says,
//! revoked ones are settled (durable, then committed) before they are given away, lost ones are only forgotten.

mod commits;
mod gaps;
pub(crate) mod group;
mod identity;
pub mod inspection;
pub mod ledger;
pub mod letters;
mod properties;
mod rebalance;
mod snapshot;
mod token;

pub use properties::client_config;
pub use snapshot::{IngestShared, IngestSnapshot};

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use wal::DiskFs;

use crate::clock::wall_ms;
use crate::config::{KafkaConfig, KafkaTls, PipelineConfig};
use crate::envelope::{Envelope, TimestampType};
use crate::ingest::{Effect, Event, InitialOffset, Start};
use crate::intake::{Intake, IntakeError};
use crate::kafka_certificate;
use crate::kafka_trouble::{self, Class, SaidTroubles, Trouble};
use crate::offsets::PartitionProgress;
use crate::said::Said;
use crate::sync::lock;
use gaps::GOES_ON;
use group::{Deadline, MemberError};
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

/// No more is polled while so many bytes wait for the disk, or at most for so long.
const QUEUED_BYTES_MAX: u64 = 8 << 20;
const LOG_WAIT: Duration = Duration::from_secs(1);

/// So often within this time the group may say that our name belongs to another member.
const FENCED_MOST: usize = 3;
const FENCED_WITHIN: Duration = Duration::from_secs(120);

/// A trouble is over when nothing was heard of it for so long: the client library repeats it every 30 s.
const TROUBLE_LASTS_MS: u64 = 90_000;

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
    /// The brokers do not tell the topic's id.
    is_topic_untold: AtomicBool,
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

    fn now(&self) -> Duration {
        self.started.elapsed()
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

    fn list(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(&self.topic, *partition);
        }
        list
    }

    fn pause(&self, consumer: &KafkaConsumer, partitions: &[i32]) {
        if partitions.is_empty() {
            return;
        }
        if self.shared.is_held() {
            tracing::info!(topic = self.topic, "consumption paused by order");
        } else if self.is_due("WAL_FULL", "") {
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

    fn resume(&self, consumer: &KafkaConsumer, partitions: &[i32]) {
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

/// What the client library calls.
impl Context {
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

impl Context {
    fn rebalance(
        &self,
        consumer: &KafkaConsumer,
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

/// A context that outlives the client it was made for: one that is fenced is of no use, and another takes its place.
struct Callbacks {
    context: Arc<Context>,
    /// Its client was replaced: what it still has to say is about nobody any more.
    is_retired: AtomicBool,
}

/// The client that consumes.
type KafkaConsumer = BaseConsumer<Callbacks>;

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if !self.is_retired.load(Ordering::Relaxed) {
            self.context.log(level, facility, message);
        }
    }

    fn stats(&self, statistics: Statistics) {
        if !self.is_retired.load(Ordering::Relaxed) {
            self.context.stats(statistics);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if !self.is_retired.load(Ordering::Relaxed) {
            self.context.error(error, reason);
        }
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &KafkaConsumer,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if !self.is_retired.load(Ordering::Relaxed) {
            self.context.rebalance(consumer, event, partitions);
        } else if let Err(error) = consumer.incremental_unassign(partitions) {
            tracing::debug!(%error, "give up partitions of a client that was replaced");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if !self.is_retired.load(Ordering::Relaxed) {
            self.context.commit_callback(result, offsets);
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
    consumer: KafkaConsumer,
    context: Arc<Context>,
    kafka: KafkaConfig,
    pipeline: PipelineConfig,
    /// When the group said lately that our name belongs to another member.
    fenced: VecDeque<Instant>,
}

fn consumer(
    kafka: &KafkaConfig,
    pipeline: &PipelineConfig,
    context: &Arc<Context>,
) -> anyhow::Result<KafkaConsumer> {
    let config = client_config(kafka, pipeline, context.membership.name.as_deref())?;
    let callbacks = Callbacks { context: Arc::clone(context), is_retired: AtomicBool::new(false) };
    let consumer: KafkaConsumer = config.create_with_context(callbacks)?;
    consumer.subscribe(&[&pipeline.topic])?;
    Ok(consumer)
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
        let context = Arc::new(Context {
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
            is_topic_untold: AtomicBool::new(false),
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
        });
        Ok(Self {
            consumer: consumer(kafka, pipeline, &context)?,
            context,
            kafka: kafka.clone(),
            pipeline: pipeline.clone(),
            fenced: VecDeque::new(),
        })
    }

    /// Joins anew after the group said that our name belongs to another member. That may be ourselves: the answer to a
    /// request to join that was lost on a bad network names a member that we never heard of. False when it was said too
    /// often: then it is another process.
    fn join_again(&mut self) -> anyhow::Result<bool> {
        let now = Instant::now();
        self.fenced.retain(|at| now.saturating_duration_since(*at) < FENCED_WITHIN);
        if self.fenced.len() >= FENCED_MOST {
            return Ok(false);
        }
        self.fenced.push_back(now);
        let context = Arc::clone(&self.context);
        let partitions: Vec<i32> = {
            let intake = lock(&context.intake);
            intake.machine().progress().map(|(partition, _)| partition).collect()
        };
        tracing::warn!(
            code = "KAFKA_FENCED",
            topic = context.topic,
            ?partitions,
            "the group knows another member of our name, perhaps from before the network failed: joining anew"
        );
        {
            let mut intake = lock(&context.intake);
            for partition in partitions {
                lock(&context.begin).remove(&partition);
                intake.on(Event::Gone { partition }, context.now(), &mut Vec::new());
            }
        }
        *lock(&context.committing) = None;
        *lock(&context.refused) = None;
        *lock(&context.tokens) = Tokens::new(&self.kafka);
        self.consumer.context().is_retired.store(true, Ordering::Relaxed);
        let new = consumer(&self.kafka, &self.pipeline, &context)?;
        let old = std::mem::replace(&mut self.consumer, new);
        // It may not let itself be closed.
        std::thread::Builder::new().name("kafka-close".to_owned()).spawn(move || drop(old))?;
        Ok(true)
    }

    /// Polls until told to stop, then makes everything durable, commits, and leaves.
    ///
    /// # Errors
    /// [`IntakeError`]: the log failed or a message cannot be kept; offsets behind it were not committed.
    /// `MemberError`: the consumer is of no use any more.
    pub fn run(mut self) -> anyhow::Result<IngestEnd> {
        let context = Arc::clone(&self.context);
        let end = self.poll_until_stopped(&context).and_then(|()| Ok(self.leave(&context)?));
        // After a failure nothing may be committed any more.
        context.leaving.store(true, Ordering::Relaxed);
        self.close();
        end
    }

    fn poll_until_stopped(&mut self, context: &Context) -> anyhow::Result<()> {
        let mut effects = Vec::new();
        while !context.stop.load(Ordering::Relaxed) {
            context.await_log();
            self.turn(context, &mut effects)?;
            if let Some((code, reason)) = self.consumer.client().fatal_error() {
                if code == RDKafkaErrorCode::FencedInstanceId && self.join_again()? {
                    continue;
                }
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
            intake.on(Event::Hold(context.shared.is_held()), context.now(), effects);
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
                Effect::GoneBack { partition, next } => context.ledger.gone_back(partition, next),
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
}

/// What is news for the machine as it is; the rest needs the intake.
fn event_of(news: LedgerNews) -> Result<Event, LedgerNews> {
    match news {
        LedgerNews::Witnessed { partition, next } => Ok(Event::Witnessed { partition, next }),
        LedgerNews::Off => Ok(Event::LedgerKept(false)),
        LedgerNews::On => Ok(Event::LedgerKept(true)),
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
    snapshot.paused = intake.machine().is_full();
    snapshot.stopped.clear();
    snapshot.stopped.extend(intake.machine().stopped());
    context.shared.heartbeat_ms.store(milliseconds(context.now()), Ordering::Relaxed);
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
