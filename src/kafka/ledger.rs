//! The ledger against a real Kafka: a thread that commits it, and fetches again what is owed.
//!
//! It has a client of its own, with the ledger's group and without membership: what it reads and commits never moves
//! the position of the group that consumes.

mod client;
mod forecast;
mod others;
mod owed;

pub(crate) use client::{instances, read_of};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use wal::{DiskFs, Position, WalError};

use client::{Context, client, commit, is_forbidden, read};
use forecast::RETENTION_INTERVAL;

use super::token::Tokens;
use super::{CALLBACK_WAIT, IngestShared, identity, lock};
use crate::clock::wall_ms;
use crate::config::KafkaConfig;
use crate::ingest::CommitAfter;
use crate::kafka_gap::KafkaGap;
use crate::keeper::{Keeper, KeeperCounts, Written};
use crate::ledger::{self, Finding};
use crate::offset_ranges::OffsetRange;
use crate::offsets::Testimony;
use crate::orders::Orders;
use crate::retention::RetentionForecast;
use crate::said::Said;
use crate::silence::Silences;
use crate::topic_identity::TopicIdentity;

/// How long the thread waits for something to do.
const TURN: Duration = Duration::from_millis(100);
/// How often the ledgers of other instances are looked at.
const OTHERS_INTERVAL: Duration = Duration::from_secs(60);
/// How often Kafka is asked which topic it has by our name.
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
/// How often while it does not say.
const TOPIC_UNTOLD_INTERVAL: Duration = Duration::from_secs(60);
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
    /// It can be kept again.
    On,
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
    GoneBack { partition: i32, next: i64 },
}

/// What others may know.
#[derive(Debug, Clone, Default, serde::Serialize, schemars::JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct RetentionLeft {
    /// Seconds.
    pub seconds: u64,
    /// So little that somebody should look.
    pub is_near: bool,
}

/// The ledger of another instance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
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

    /// Tells it that the group's offset of a partition has gone back to where consumption began anew.
    pub(crate) fn gone_back(&self, partition: i32, next: i64) {
        drop(self.requests.send(Request::GoneBack { partition, next }));
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

fn news_of(confirmed: Vec<(i32, i64)>) -> Vec<LedgerNews> {
    let witnessed = |(partition, next)| LedgerNews::Witnessed { partition, next };
    confirmed.into_iter().map(witnessed).collect()
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
            off_until: None,
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
    /// It may not be kept: when that is tried again.
    off_until: Option<Duration>,
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
        let was_off = self.off_until.replace(self.now() + self.at.kafka.ledger_retry).is_some();
        if was_off {
            return;
        }
        let group = ledger::group_of(&self.at.group, &self.at.instance);
        tracing::error!(
            code = "LEDGER_OFF",
            group,
            %error,
            "the ledger cannot be kept: a lost disk would not be noticed. Grant Read on groups that begin with the \
             group's name and `.delivered.`; it is tried again"
        );
        lock(&self.handle.snapshot).off = Some(error.to_string());
        lock(&self.handle.news).push(LedgerNews::Off);
    }

    /// Kafka has taken or told something of it.
    fn on(&mut self) {
        if self.off_until.take().is_some() {
            tracing::info!(topic = self.at.topic, "the ledger is kept again");
            lock(&self.handle.snapshot).off = None;
            lock(&self.handle.news).push(LedgerNews::On);
        }
    }

    /// It may not be kept, and it is too early to try again.
    fn is_off(&self) -> bool {
        self.off_until.is_some_and(|until| self.now() < until)
    }

    fn open_when_due(&mut self) -> Result<(), WalError> {
        if self.at.keeper.is_open() || self.is_off() || self.now() < self.next_open {
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
        self.on();
        let topic = identity::of_topic(self.client.client(), &self.at.topic, identity::TOPIC_WAIT);
        match self.at.keeper.opened(&topic, &ledger) {
            Ok(_) if !self.at.keeper.is_open() => {
                lock(&self.handle.news).push(LedgerNews::Topic(topic));
                let why = "it is about the topic that Kafka has, and the log about one before it: read once the log has \
                           gone on with the topic";
                self.failed("read the ledger", &why);
                Ok(())
            }
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
        let topic = identity::of_topic(self.client.client(), &self.at.topic, identity::TOPIC_WAIT);
        if topic.topic.is_empty() {
            // Commits of the ledger wait meanwhile.
            self.next_topic = self.now() + TOPIC_UNTOLD_INTERVAL;
            return;
        }
        self.at.keeper.topic_is(&topic);
        lock(&self.handle.news).push(LedgerNews::Topic(topic));
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Rewind { partition, next, end } => {
                self.at.keeper.rewind(partition, next, end);
                lock(&self.handle.news).push(LedgerNews::Rewound { partition });
            }
            Request::GoneBack { partition, next } => {
                self.at.keeper.gone_back(partition, next);
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
        if commits.is_empty() || self.is_off() {
            return Some(Vec::new());
        }
        match commit(&self.client, &self.at.topic, &commits) {
            Ok(()) => {
                self.on();
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
}
