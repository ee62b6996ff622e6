//! The ledger against a real Kafka: a thread that commits it, and fetches again what is owed.
//!
//! It has a client of its own, with the ledger's group and without membership: what it reads and commits never moves
//! the position of the group that consumes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use wal::{DiskFs, Position, WalError};

use super::gaps::bounds;
use super::properties::connection;
use super::token::Tokens;
use super::{CALLBACK_WAIT, IngestShared, envelope, identity, lock};
use crate::clock::wall_ms;
use crate::config::KafkaConfig;
use crate::ingest::CommitAfter;
use crate::kafka_gap::KafkaGap;
use crate::keeper::{Keeper, KeeperCounts, LedgerCommit, Written};
use crate::ledger::{self, Entry, Finding};
use crate::offset_ranges::OffsetRange;
use crate::offsets::Testimony;
use crate::orders::{Order, Orders};
use crate::retention::{Behind, RetentionForecast};
use crate::said::Said;
use crate::silence::Silences;
use crate::topic_identity::TopicIdentity;

/// How long the thread waits for something to do.
const TURN: Duration = Duration::from_millis(100);
/// How long it fetches before it looks around again.
const FETCH_TIME: Duration = Duration::from_millis(200);
const FETCH_BYTES: usize = 1 << 20;
/// How often the ledgers of other instances are looked at.
const OTHERS_INTERVAL: Duration = Duration::from_secs(60);
/// How often Kafka is asked which topic it has by our name.
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is forecast when Kafka removes what was not consumed, and how often the topic's retention is asked for.
const RETENTION_INTERVAL: Duration = Duration::from_secs(15);
const RETENTION_ASK_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How often one that could not be read at start is tried again.
const OPEN_RETRY: Duration = Duration::from_secs(2);

/// What the ledger has to say to whoever consumes.
#[derive(Debug, Clone)]
pub(crate) enum LedgerNews {
    /// Kafka has the entry.
    Witnessed {
        /// The partition.
        partition: i32,
        /// Everything before it may be committed.
        next: i64,
    },
    /// The ledger cannot be kept.
    Off,
    /// It knows that consumption of the partition began anew.
    Rewound {
        /// The partition.
        partition: i32,
    },
    /// Everything of the partition before `next` is delivered.
    Delivered {
        /// The partition.
        partition: i32,
        /// Next offset.
        next: i64,
    },
    /// Kafka has this topic now.
    Topic(TopicIdentity),
    /// A person accepts the gaps at which partitions stopped.
    Accept,
}

enum Request {
    Testify(Vec<Testimony>),
    Settle(Vec<Testimony>, Sender<Vec<LedgerNews>>),
    Rewind { partition: i32, next: Option<i64>, end: Position },
}

/// What others may know.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct LedgerSnapshot {
    /// The group that holds it.
    pub group_id: String,
    /// It was read after the start; before that nothing is committed.
    pub open: bool,
    /// Why it is not kept, if it is not.
    pub off: Option<String>,
    /// What this instance fetches again.
    pub owed: Vec<OffsetRange>,
    /// What was owed and Kafka does not have any more, until a person takes note of it.
    pub lost: Vec<OffsetRange>,
    /// Where Kafka's history and ours parted, until a person takes note of it.
    pub gaps: Vec<KafkaGap>,
    /// What is missing in the log since the start, as the ledger told.
    pub missing_at_start: Vec<OffsetRange>,
    /// How long until Kafka's retention reaches the first message not consumed, for partitions that are behind.
    pub retention: BTreeMap<i32, RetentionLeft>,
    /// Counts since the start.
    #[serde(flatten)]
    pub counts: KeeperCounts,
    /// Other instances of the group.
    pub others: Vec<OtherLedger>,
    /// The last thing that did not work.
    pub last_error: Option<String>,
}

/// How long until Kafka's retention reaches a partition's first message that is not consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct RetentionLeft {
    /// Seconds.
    pub seconds: u64,
    /// So little that somebody should look.
    pub is_near: bool,
}

/// The ledger of another instance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OtherLedger {
    /// Its name.
    pub instance: String,
    /// Messages it took and did not deliver.
    pub owed_offsets: u64,
    /// When it says that it said something last, milliseconds since the epoch by its own clock. Nothing is decided by it.
    pub heard_ms: i64,
    /// For how long nothing new was heard of it, by our own clock, since this process began to listen.
    pub silent_for_s: u64,
}

/// The consuming thread's end.
#[derive(Clone)]
pub struct LedgerHandle {
    requests: Sender<Request>,
    news: Arc<Mutex<Vec<LedgerNews>>>,
    snapshot: Arc<Mutex<LedgerSnapshot>>,
}

impl LedgerHandle {
    /// Has the ledger say this soon.
    pub(crate) fn testify(&self, testimony: Vec<Testimony>) {
        // The thread ends after this one; until then a request that is lost is repeated.
        drop(self.requests.send(Request::Testify(testimony)));
    }

    /// Has the ledger say this at once; nothing in return when that takes too long.
    pub(crate) fn settle(&self, testimony: Vec<Testimony>, wait: Duration) -> Vec<LedgerNews> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        if self.requests.send(Request::Settle(testimony, answer)).is_err() {
            return Vec::new();
        }
        answered.recv_timeout(wait).unwrap_or_default()
    }

    /// Tells it that consumption of a partition begins anew, at `next` or at Kafka's oldest message; everything before
    /// `end` in the log was taken before.
    pub fn rewind(&self, partition: i32, next: Option<i64>, end: Position) {
        drop(self.requests.send(Request::Rewind { partition, next, end }));
    }

    /// What it has said since the last call.
    pub(crate) fn news(&self) -> Vec<LedgerNews> {
        std::mem::take(&mut lock(&self.news))
    }

    /// What others may know.
    pub fn snapshot(&self) -> LedgerSnapshot {
        lock(&self.snapshot).clone()
    }
}

/// Messages for the log only: the client's own chatter goes where the consumer's goes.
struct Context;

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, message, "ledger");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "ledger");
    }
}

impl ConsumerContext for Context {}

fn client(kafka: &KafkaConfig, group: &str) -> anyhow::Result<BaseConsumer<Context>> {
    let mut config = connection(kafka)?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        // It never joins; but the library compares this with a max.poll.interval.ms that is set for all clients.
        .set("session.timeout.ms", kafka.session_timeout.as_millis().to_string())
        // One turn takes no more; see `connection`.
        .set("queued.max.messages.kbytes", "1024")
        .set("queued.min.messages", "2000");
    Ok(config.create_with_context(Context)?)
}

/// A client for a few questions: its token lasts for them.
fn client_with_token(kafka: &KafkaConfig, group: &str) -> anyhow::Result<BaseConsumer<Context>> {
    let client = client(kafka, group)?;
    Tokens::new(kafka).keep(client.client(), Duration::ZERO)?;
    Ok(client)
}

fn partitions_of(client: &BaseConsumer<Context>, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(topic), CALLBACK_WAIT)?;
    let topics = metadata.topics().iter().filter(|found| found.name() == topic);
    Ok(topics
        .flat_map(|topic| topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect())
}

/// The ledger that the client's group holds.
fn read(client: &BaseConsumer<Context>, topic: &str) -> KafkaResult<BTreeMap<i32, Written>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions_of(client, topic)? {
        asked.add_partition(topic, partition);
    }
    if asked.count() == 0 {
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition));
    }
    let committed = client.committed_offsets(asked, CALLBACK_WAIT)?;
    let mut ledger = BTreeMap::new();
    for element in committed.elements() {
        element.error()?;
        if let (Offset::Offset(delivered), Some(entry)) =
            (element.offset(), Entry::decode(element.metadata()))
        {
            ledger.insert(element.partition(), Written { delivered, entry });
        }
    }
    Ok(ledger)
}

/// The ledger of an instance, for people and for taking over.
///
/// # Errors
/// No broker answers, or the group may not be read.
pub(crate) fn read_of(
    kafka: &KafkaConfig,
    topic: &str,
    group: &str,
    instance: &str,
) -> anyhow::Result<BTreeMap<i32, Written>> {
    Ok(read(&client_with_token(kafka, &ledger::group_of(group, instance))?, topic)?)
}

/// Names of all instances that keep a ledger for `group`.
///
/// # Errors
/// No broker answers, or groups may not be listed.
pub(crate) fn instances(kafka: &KafkaConfig, group: &str) -> anyhow::Result<Vec<String>> {
    let client = client_with_token(kafka, &format!("{group}.delivered"))?;
    let groups = client.fetch_group_list(None, CALLBACK_WAIT)?;
    let mut names: Vec<String> = groups
        .groups()
        .iter()
        .filter_map(|found| ledger::instance_of(group, found.name()).map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

fn commit(
    client: &BaseConsumer<Context>,
    topic: &str,
    commits: &[LedgerCommit],
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(topic, commit.partition);
        element.set_offset(Offset::Offset(commit.delivered))?;
        element.set_metadata(commit.entry.encode());
    }
    client.commit(&list, CommitMode::Sync)
}

fn news_of(confirmed: Vec<(i32, i64)>) -> Vec<LedgerNews> {
    let witnessed = |(partition, next)| LedgerNews::Witnessed { partition, next };
    confirmed.into_iter().map(witnessed).collect()
}

/// How long Kafka keeps the topic's messages, by age; `None`: for ever.
fn retention_of(at: &LedgerKeeper) -> anyhow::Result<Option<Duration>> {
    let admin: AdminClient<Context> = connection(&at.kafka)?.create_with_context(Context)?;
    let options = AdminOptions::new().request_timeout(Some(CALLBACK_WAIT));
    let topic = [ResourceSpecifier::Topic(&at.topic)];
    let answered = at.runtime.block_on(admin.describe_configs(&topic, &options))?;
    let Some(Ok(config)) = answered.into_iter().next() else {
        anyhow::bail!("the brokers do not say");
    };
    let value = |name| config.get(name).and_then(|entry| entry.value.as_deref());
    let is_deleted = value("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
    let millis = value("retention.ms").and_then(|text| text.parse::<u64>().ok());
    Ok(millis.filter(|_| is_deleted).map(Duration::from_millis))
}

/// Whether trying again is pointless until somebody grants a right.
fn is_forbidden(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::OffsetMetadataTooLarge)
    )
}

/// Everything the thread needs.
pub struct LedgerKeeper {
    /// The brokers.
    pub kafka: KafkaConfig,
    /// Topic of the pipeline.
    pub topic: String,
    /// Group that consumes it.
    pub group: String,
    /// Name that the ledger goes by.
    pub instance: String,
    /// Decides what is said.
    pub keeper: Keeper<DiskFs>,
    /// What a person wishes.
    pub orders: Orders,
    /// What the consuming thread says of its progress.
    pub ingest: Arc<IngestShared>,
    /// Carries questions to the brokers that the client library answers asynchronously.
    pub runtime: tokio::runtime::Handle,
    /// Zero of monotonic time.
    pub started: Instant,
}

impl LedgerKeeper {
    /// How often an instance says something, if it is to be taken over after such a time of silence.
    #[must_use]
    pub fn heartbeat(takeover_after: Duration) -> Duration {
        takeover_after / 3
    }

    fn others_interval(&self) -> Duration {
        let takeover_after = self.kafka.takeover_after.unwrap_or(OTHERS_INTERVAL);
        OTHERS_INTERVAL.min(Self::heartbeat(takeover_after)).max(Duration::from_secs(1))
    }

    fn is_to_be_taken_over(&self, owed_offsets: u64, silent_for: Duration) -> bool {
        owed_offsets > 0 && self.kafka.takeover_after.is_some_and(|after| silent_for > after)
    }
}

/// The thread and its end.
pub struct LedgerThread {
    thread: std::thread::JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl LedgerThread {
    /// Starts the thread. `failed` is told when the log fails under it.
    ///
    /// # Errors
    /// A secret cannot be read, librdkafka refuses a property, or the system has no thread to give.
    pub fn spawn(
        name: String,
        keeper: LedgerKeeper,
        failed: impl FnOnce(WalError) + Send + 'static,
    ) -> anyhow::Result<(Self, LedgerHandle)> {
        let group = ledger::group_of(&keeper.group, &keeper.instance);
        let client = client(&keeper.kafka, &group)?;
        let tokens = Tokens::new(&keeper.kafka);
        let (requests, incoming) = crossbeam_channel::unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let handle = LedgerHandle {
            requests,
            news: Arc::default(),
            snapshot: Arc::new(Mutex::new(LedgerSnapshot {
                group_id: group,
                ..LedgerSnapshot::default()
            })),
        };
        let silences = Silences::new(keeper.others_interval().saturating_mul(2));
        let driver = Driver {
            client,
            at: keeper,
            silences,
            handle: handle.clone(),
            incoming,
            stop: Arc::clone(&stop),
            fetching: None,
            is_off: false,
            said: Said::default(),
            next_open: Duration::ZERO,
            next_commit: Duration::ZERO,
            next_others: Duration::from_secs(5),
            next_topic: TOPIC_INTERVAL,
            forecast: RetentionForecast::default(),
            next_forecast: RETENTION_INTERVAL,
            next_retention: Duration::ZERO,
            tokens,
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = driver.run() {
                failed(error);
            }
        })?;
        Ok((Self { thread, stop }, handle))
    }

    /// Has it say the last word, and waits for that as long as a stop may take.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + CALLBACK_WAIT;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !self.thread.is_finished() {
            tracing::warn!(
                code = "LEDGER_BEHIND",
                "Kafka did not take the ledger's last entry in time: the next start goes on with the one before"
            );
        } else if self.thread.join().is_err() {
            tracing::error!(code = "PANIC", "the ledger's thread panicked");
        }
    }
}

struct Driver {
    client: BaseConsumer<Context>,
    at: LedgerKeeper,
    handle: LedgerHandle,
    incoming: Receiver<Request>,
    stop: Arc<AtomicBool>,
    /// Partition that is being fetched again, and its next offset.
    fetching: Option<(i32, i64)>,
    is_off: bool,
    said: Said,
    silences: Silences<BTreeMap<i32, Written>>,
    next_open: Duration,
    next_commit: Duration,
    next_others: Duration,
    next_topic: Duration,
    forecast: RetentionForecast,
    next_forecast: Duration,
    /// When the topic's retention is asked for again.
    next_retention: Duration,
    tokens: Tokens,
}

impl Driver {
    fn now(&self) -> Duration {
        self.at.started.elapsed()
    }

    fn run(mut self) -> Result<(), WalError> {
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let now = self.now();
            if let Err(error) = self.tokens.keep(self.client.client(), now) {
                self.failed("get a token", &error);
            }
            self.open_when_due()?;
            match self.incoming.recv_timeout(if stopping { Duration::ZERO } else { TURN }) {
                Ok(request) => self.answer(request),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            while let Ok(request) = self.incoming.try_recv() {
                self.answer(request);
            }
            if self.now() >= self.next_commit || stopping {
                self.next_commit = self.now() + self.at.kafka.commit_interval;
                self.commit_due();
                if !stopping {
                    self.carry_out_orders()?;
                }
                self.publish();
            }
            if stopping {
                return Ok(());
            }
            self.fetch()?;
            if self.now() >= self.next_topic {
                self.next_topic = self.now() + TOPIC_INTERVAL;
                self.look_at_topic();
            }
            if self.now() >= self.next_forecast {
                self.next_forecast = self.now() + RETENTION_INTERVAL;
                self.look_at_retention();
            }
            if self.now() >= self.next_others {
                self.next_others = self.now() + self.at.others_interval();
                self.look_at_others()?;
            }
        }
    }

    /// Says what does not work, once a minute.
    fn failed(&mut self, what: &'static str, error: &impl std::fmt::Display) {
        let text = format!("{what}: {error}");
        if self.said.is_due("LEDGER", &text, self.now()) {
            tracing::warn!(code = "LEDGER", topic = self.at.topic, "{text}; tried again");
        }
        lock(&self.handle.snapshot).last_error = Some(text);
    }

    fn off(&mut self, error: &KafkaError) {
        self.is_off = true;
        let group = ledger::group_of(&self.at.group, &self.at.instance);
        tracing::error!(
            code = "LEDGER_OFF",
            group,
            %error,
            "the ledger cannot be kept: a lost disk would not be noticed. Grant Read on groups that begin with the \
             group's name and `.delivered.`"
        );
        lock(&self.handle.snapshot).off = Some(error.to_string());
        lock(&self.handle.news).push(LedgerNews::Off);
    }

    fn open_when_due(&mut self) -> Result<(), WalError> {
        if self.at.keeper.is_open() || self.is_off || self.now() < self.next_open {
            return Ok(());
        }
        self.next_open = self.now() + OPEN_RETRY;
        let ledger = match read(&self.client, &self.at.topic) {
            Ok(ledger) => ledger,
            Err(error) if is_forbidden(&error) => {
                self.off(&error);
                return Ok(());
            }
            Err(error) => {
                self.failed("read the ledger", &error);
                return Ok(());
            }
        };
        let topic = identity::of_topic(self.client.client(), &self.at.topic, CALLBACK_WAIT);
        match self.at.keeper.opened(&topic, &ledger) {
            Ok(missing) => {
                let mut ranges = Vec::new();
                for found in missing {
                    let OffsetRange { partition, from, to } = found.range;
                    if found.finding == Finding::TopicRecreated {
                        tracing::error!(
                            code = "KAFKA_RECREATED",
                            topic = self.at.topic,
                            partition,
                            from,
                            to,
                            "the ledger is about another topic of this name: what it owes cannot be fetched"
                        );
                        continue;
                    }
                    tracing::error!(
                        code = "ACKED_DATA_MISSING",
                        topic = self.at.topic,
                        partition,
                        from,
                        to,
                        finding = ?found.finding,
                        "the log does not have what the ledger says: fetched again from Kafka"
                    );
                    ranges.push(found.range);
                }
                tracing::info!(
                    topic = self.at.topic,
                    instance = self.at.instance,
                    cluster = topic.cluster,
                    topic_id = topic.topic,
                    "ledger read"
                );
                lock(&self.handle.news).push(LedgerNews::Topic(topic));
                lock(&self.handle.snapshot).missing_at_start = ranges;
                Ok(())
            }
            Err(WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A topic that is deleted and created again while it is consumed goes unnoticed by the client library.
    fn look_at_topic(&mut self) {
        let topic = identity::of_topic(self.client.client(), &self.at.topic, CALLBACK_WAIT);
        if !topic.topic.is_empty() {
            self.at.keeper.topic_is(&topic);
            lock(&self.handle.news).push(LedgerNews::Topic(topic));
        }
    }

    /// Forecasts when Kafka removes what was not consumed, for partitions that are behind.
    fn look_at_retention(&mut self) {
        let snapshot = self.at.ingest.snapshot();
        let has_caught_up = |partition: &i32| snapshot.lag.get(partition) == Some(&0);
        let (others, behind): (Vec<i32>, Vec<i32>) =
            snapshot.partitions.keys().partition(|partition| has_caught_up(partition));
        others.iter().for_each(|partition| self.forecast.forget(*partition));
        if !behind.is_empty() && self.now() >= self.next_retention {
            match retention_of(&self.at) {
                Ok(retention) => {
                    self.forecast.retention = retention;
                    self.next_retention = self.now() + RETENTION_ASK_INTERVAL;
                }
                Err(error) => {
                    tracing::debug!(topic = self.at.topic, %error, "ask for the topic's retention")
                }
            }
        }
        let mut left = BTreeMap::new();
        for partition in behind {
            let Some(progress) = snapshot.partitions.get(&partition) else { continue };
            let Ok((low, high)) = bounds(&self.client, &self.at.topic, partition) else { break };
            let next = progress.consumed.unwrap_or(low);
            if next >= high {
                self.forecast.forget(partition);
                continue;
            }
            let timestamp_ms = progress.timestamp_ms.or_else(|| self.timestamp_at(partition, next));
            let behind = Behind { next, timestamp_ms, low };
            if let Some(forecast) = self.forecast.left(partition, behind, self.now(), wall_ms()) {
                let is_near = self.forecast.is_near(forecast);
                left.insert(partition, RetentionLeft { seconds: forecast.as_secs(), is_near });
            }
        }
        lock(&self.handle.snapshot).retention = left;
    }

    /// Timestamp of a message that nobody has consumed yet: of a partition from which nothing was taken since the start.
    fn timestamp_at(&mut self, partition: i32, offset: i64) -> Option<i64> {
        if self.fetching.is_some() {
            return None;
        }
        self.assign(Some((partition, offset)));
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut found = None;
        while found.is_none() && Instant::now() < deadline {
            if let Some(Ok(message)) = self.client.poll(TURN)
                && message.partition() == partition
                && message.offset() >= offset
            {
                found = Some(message.timestamp().to_millis());
            }
        }
        self.assign(None);
        found.flatten()
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Rewind { partition, next, end } => {
                self.at.keeper.rewind(partition, next, end);
                lock(&self.handle.news).push(LedgerNews::Rewound { partition });
            }
            Request::Testify(testimony) => {
                let said = self.at.keeper.testify(&testimony);
                lock(&self.handle.news).extend(news_of(said));
            }
            Request::Settle(testimony, answer) => {
                let mut news = news_of(self.at.keeper.testify(&testimony));
                news.extend(self.commit_now().unwrap_or_default());
                // Nobody listens when it took too long.
                drop(answer.send(news));
            }
        }
    }

    /// Commits what is due; `None` if Kafka did not take it.
    fn commit_now(&mut self) -> Option<Vec<LedgerNews>> {
        let now = self.now();
        let commits = self.at.keeper.due(now, wall_ms());
        if commits.is_empty() || self.is_off {
            return Some(Vec::new());
        }
        match commit(&self.client, &self.at.topic, &commits) {
            Ok(()) => {
                lock(&self.handle.snapshot).last_error = None;
                Some(news_of(self.at.keeper.confirmed(&commits, now)))
            }
            Err(error) if is_forbidden(&error) => {
                self.off(&error);
                Some(Vec::new())
            }
            Err(error) => {
                self.failed("commit the ledger", &error);
                None
            }
        }
    }

    /// False if Kafka did not take what is due.
    fn commit_due(&mut self) -> bool {
        let news = self.commit_now();
        let taken = news.is_some();
        lock(&self.handle.news).extend(news.unwrap_or_default());
        if self.at.kafka.commit_after == CommitAfter::Delivery {
            let delivered = self.at.keeper.delivered().into_iter();
            let news = delivered.map(|(partition, next)| LedgerNews::Delivered { partition, next });
            lock(&self.handle.news).extend(news);
        }
        taken
    }

    fn publish(&self) {
        let offsets = self.at.keeper.log_offsets();
        let mut snapshot = lock(&self.handle.snapshot);
        snapshot.open = self.at.keeper.is_open();
        snapshot.owed = offsets.owed.iter().collect();
        snapshot.lost = offsets.lost.iter().collect();
        snapshot.gaps = offsets.gaps;
        snapshot.counts = self.at.keeper.counts();
    }

    /// Fetches some of what is owed.
    fn fetch(&mut self) -> Result<(), WalError> {
        let Some(owed) = self.at.keeper.next_owed() else {
            if self.fetching.take().is_some() {
                self.assign(None);
            }
            return Ok(());
        };
        if self.fetching != Some((owed.partition, owed.from)) && !self.begin(owed)? {
            return Ok(());
        }
        let outcome = self.poll(owed);
        match outcome {
            // No room: what was not settled is fetched again when there is some.
            Err(WalError::NoSpace { .. }) => {
                self.fetching = None;
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn assign(&mut self, at: Option<(i32, i64)>) {
        let mut list = TopicPartitionList::new();
        if let Some((partition, offset)) = at {
            drop(list.add_partition_offset(&self.at.topic, partition, Offset::Offset(offset)));
        }
        if let Err(error) = self.client.assign(&list) {
            self.failed("assign what is owed", &error);
        }
    }

    /// False when there is nothing to poll for now.
    fn begin(&mut self, owed: OffsetRange) -> Result<bool, WalError> {
        self.fetching = None;
        let OffsetRange { partition, from, to } = owed;
        let (low, high) = match bounds(&self.client, &self.at.topic, partition) {
            Ok(bounds) => bounds,
            Err(error) => {
                self.failed("ask for the ends of what is owed", &error);
                return Ok(false);
            }
        };
        for (from, to) in [(from, to.min(low)), (from.max(high), to)] {
            if from < to {
                tracing::error!(
                    code = "KAFKA_GAP",
                    topic = self.at.topic,
                    partition,
                    from,
                    to,
                    "owed messages are not in Kafka any more: they are lost"
                );
                let lost = OffsetRange { partition, from, to };
                match self.at.keeper.lose(lost) {
                    Ok(()) | Err(WalError::NoSpace { .. }) => {}
                    Err(error) => return Err(error),
                }
                return Ok(false);
            }
        }
        tracing::info!(topic = self.at.topic, partition, from, to, "fetching again what is owed");
        self.assign(Some((partition, from)));
        self.fetching = Some((partition, from));
        Ok(true)
    }

    fn poll(&mut self, owed: OffsetRange) -> Result<(), WalError> {
        let (partition, to) = (owed.partition, owed.to);
        let mut next = owed.from;
        let begun = Instant::now();
        let mut bytes = 0_usize;
        while next < to && bytes < FETCH_BYTES && begun.elapsed() < FETCH_TIME {
            match self.client.poll(TURN) {
                None => break,
                Some(Ok(message)) => {
                    // What the client had fetched before it was told to go elsewhere.
                    if message.partition() != partition || message.offset() < next {
                        continue;
                    }
                    if message.offset() >= to {
                        next = to;
                        break;
                    }
                    bytes = bytes.saturating_add(message.payload_len());
                    self.at.keeper.take(next, &envelope(&self.at.topic, &message))?;
                    next = message.offset().saturating_add(1);
                }
                Some(Err(KafkaError::PartitionEOF(at))) if at == partition => next = to,
                Some(Err(error)) => {
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
                        // Retention was faster: ask for the ends again.
                        self.fetching = None;
                    }
                    self.failed("fetch what is owed", &error);
                    break;
                }
            }
        }
        if next > owed.from {
            self.at.keeper.fetched_to(partition, owed.from, next)?;
            if self.fetching.is_some() {
                self.fetching = Some((partition, next));
            }
            if next >= to {
                tracing::info!(
                    code = "REPAIRED",
                    topic = self.at.topic,
                    partition,
                    through = to,
                    "everything owed up to here is in the log again"
                );
            }
        }
        Ok(())
    }

    fn carry_out_orders(&mut self) -> Result<(), WalError> {
        for (file, order) in self.at.orders.pending() {
            if order != Order::Accept && !self.at.keeper.is_open() {
                continue;
            }
            let done = match &order {
                Order::Accept => {
                    tracing::info!(
                        topic = self.at.topic,
                        "gaps accepted: stopped partitions go on"
                    );
                    lock(&self.handle.news).push(LedgerNews::Accept);
                    Ok(true)
                }
                Order::Acknowledge => self.at.keeper.acknowledge().map(|()| {
                    tracing::info!(topic = self.at.topic, "lost messages acknowledged");
                    true
                }),
                Order::Rewind { instance } => self.take_over(instance),
            };
            match done {
                Ok(true) => self.at.orders.done(&file),
                // It waits until there is room for a note.
                Ok(false) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Owes what another instance owes; its ledger says so. False when Kafka does not answer.
    fn take_over(&mut self, instance: &str) -> Result<bool, WalError> {
        let group = ledger::group_of(&self.at.group, instance);
        let taken = client_with_token(&self.at.kafka, &group)
            .and_then(|client| Ok((read(&client, &self.at.topic)?, client)));
        let (ledger, client) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.failed("read the ledger to take over", &error);
                return Ok(false);
            }
        };
        let mut owed = Vec::new();
        for (partition, written) in &ledger {
            let Some(range) = ledger::owed(*partition, written.delivered, &written.entry) else {
                continue;
            };
            if self.at.keeper.is_of_our_topic(&written.entry) {
                owed.push(range);
            } else {
                tracing::error!(
                    code = "KAFKA_RECREATED",
                    topic = self.at.topic,
                    from_instance = instance,
                    partition,
                    from = range.from,
                    to = range.to,
                    "this instance's ledger is about another topic of this name: what it owes cannot be fetched"
                );
            }
        }
        for range in &owed {
            tracing::warn!(
                code = "LEDGER_TAKEN_OVER",
                topic = self.at.topic,
                from_instance = instance,
                partition = range.partition,
                from = range.from,
                to = range.to,
                replay = range.offsets(),
                "fetching what another instance owes"
            );
        }
        self.at.keeper.take_over(owed)?;
        // A disk that is lost now must not take the debt with it: our ledger has it before theirs is written over.
        if !self.commit_due() {
            return Ok(false);
        }
        let commits: Vec<LedgerCommit> = ledger
            .into_iter()
            .map(|(partition, written)| LedgerCommit {
                partition,
                delivered: written.entry.next,
                entry: Entry { taken_over_by: self.at.instance.clone(), ..written.entry },
            })
            .collect();
        if !commits.is_empty()
            && let Err(error) = commit(&client, &self.at.topic, &commits)
        {
            self.failed("note in the ledger that it was taken over", &error);
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads the other instances' ledgers, and takes over from one that was silent for too long.
    fn look_at_others(&mut self) -> Result<(), WalError> {
        let names = match instances(&self.at.kafka, &self.at.group) {
            Ok(names) => names,
            Err(error) => {
                tracing::debug!(%error, "list the ledgers of other instances");
                return Ok(());
            }
        };
        let mut others = Vec::new();
        let mut silent = Vec::new();
        let names: BTreeSet<String> =
            names.into_iter().filter(|name| *name != self.at.instance).collect();
        self.silences.keep(&names);
        for instance in names {
            let Ok(ledger) = read_of(&self.at.kafka, &self.at.topic, &self.at.group, &instance)
            else {
                continue;
            };
            let owed = ledger.iter().filter_map(|(partition, written)| {
                ledger::owed(*partition, written.delivered, &written.entry)
            });
            let owed_offsets = owed.map(|range| range.offsets()).sum();
            let heard_ms = ledger.values().map(|written| written.entry.at_ms).max().unwrap_or(0);
            let now = self.now();
            let silent_for = self.silences.look(&instance, ledger, now);
            if self.at.is_to_be_taken_over(owed_offsets, silent_for) {
                silent.push(instance.clone());
            }
            let silent_for_s = silent_for.as_secs();
            others.push(OtherLedger { instance, owed_offsets, heard_ms, silent_for_s });
        }
        lock(&self.handle.snapshot).others = others;
        for instance in silent {
            if !self.at.keeper.is_open() {
                break;
            }
            match self.take_over(&instance) {
                // Looked at again in a minute.
                Ok(_) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
