//! The ledger against a real Kafka: a thread that commits it, and fetches again what is owed.
//!
//! It has a client of its own, with the ledger's group and without membership: what it reads and commits never moves
//! the position of the group that consumes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use wal::{DiskFs, WalError};

use super::{CALLBACK_WAIT, envelope, identity, lock};
use crate::clock::wall_ms;
use crate::config::KafkaConfig;
use crate::keeper::{Keeper, KeeperCounts, LedgerCommit, Written};
use crate::ledger::{self, Entry, Finding};
use crate::offset_ranges::OffsetRange;
use crate::offsets::Testimony;
use crate::orders::{Order, Orders};

/// How long the thread waits for something to do.
const TURN: Duration = Duration::from_millis(100);
/// How long it fetches before it looks around again.
const FETCH_TIME: Duration = Duration::from_millis(200);
const FETCH_BYTES: usize = 1 << 20;
/// How often the ledgers of other instances are looked at.
const OTHERS_INTERVAL: Duration = Duration::from_secs(60);
/// How often one that could not be read at start is tried again.
const OPEN_RETRY: Duration = Duration::from_secs(2);

/// What the ledger has to say to whoever consumes.
#[derive(Debug, Clone, Copy)]
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
}

enum Request {
    Testify(Vec<Testimony>),
    Settle(Vec<Testimony>, Sender<Vec<LedgerNews>>),
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
    /// What is missing in the log since the start, as the ledger told.
    pub missing_at_start: Vec<OffsetRange>,
    /// Counts since the start.
    #[serde(flatten)]
    pub counts: KeeperCounts,
    /// Other instances of the group.
    pub others: Vec<OtherLedger>,
    /// The last thing that did not work.
    pub last_error: Option<String>,
}

/// The ledger of another instance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OtherLedger {
    /// Its name.
    pub instance: String,
    /// Messages it took and did not deliver.
    pub owed_offsets: u64,
    /// When it was last heard of, milliseconds since the epoch.
    pub heard_ms: i64,
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
    let mut config = super::connection(kafka)?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        .set("queued.max.messages.kbytes", "8192")
        .set("fetch.message.max.bytes", "1048576");
    Ok(config.create_with_context(Context)?)
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
    Ok(read(&client(kafka, &ledger::group_of(group, instance))?, topic)?)
}

/// Names of all instances that keep a ledger for `group`.
///
/// # Errors
/// No broker answers, or groups may not be listed.
pub(crate) fn instances(kafka: &KafkaConfig, group: &str) -> anyhow::Result<Vec<String>> {
    let client = client(kafka, &format!("{group}.delivered"))?;
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

    fn is_to_be_taken_over(&self, other: &OtherLedger, now_ms: i64) -> bool {
        let Some(takeover_after) = self.kafka.takeover_after else { return false };
        let after_ms = i64::try_from(takeover_after.as_millis()).unwrap_or(i64::MAX);
        other.owed_offsets > 0 && now_ms.saturating_sub(other.heard_ms) > after_ms
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
        let driver = Driver {
            client,
            at: keeper,
            handle: handle.clone(),
            incoming,
            stop: Arc::clone(&stop),
            fetching: None,
            is_off: false,
            said_error: None,
            next_open: Duration::ZERO,
            next_commit: Duration::ZERO,
            next_others: Duration::from_secs(5),
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
    said_error: Option<String>,
    next_open: Duration,
    next_commit: Duration,
    next_others: Duration,
}

impl Driver {
    fn now(&self) -> Duration {
        self.at.started.elapsed()
    }

    fn run(mut self) -> Result<(), WalError> {
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
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
            if self.now() >= self.next_others {
                self.next_others = self.now() + self.at.others_interval();
                self.look_at_others()?;
            }
        }
    }

    /// Says once what does not work, and again when it is something else.
    fn failed(&mut self, what: &str, error: &impl std::fmt::Display) {
        let text = format!("{what}: {error}");
        if self.said_error.as_ref() != Some(&text) {
            tracing::warn!(code = "LEDGER", topic = self.at.topic, "{text}; tried again");
        }
        lock(&self.handle.snapshot).last_error = Some(text.clone());
        self.said_error = Some(text);
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
        let native = self.client.client();
        let cluster = native.fetch_cluster_id(CALLBACK_WAIT).unwrap_or_default();
        let topic_id =
            identity::topic_id(native, &self.at.topic, CALLBACK_WAIT).unwrap_or_default();
        match self.at.keeper.opened(&cluster, &topic_id, &ledger) {
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
                    cluster,
                    topic_id,
                    "ledger read"
                );
                lock(&self.handle.snapshot).missing_at_start = ranges;
                Ok(())
            }
            Err(WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
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
                self.said_error = None;
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
        taken
    }

    fn publish(&self) {
        let offsets = self.at.keeper.log_offsets();
        let mut snapshot = lock(&self.handle.snapshot);
        snapshot.open = self.at.keeper.is_open();
        snapshot.owed = offsets.owed.iter().collect();
        snapshot.lost = offsets.lost.iter().collect();
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
        let bounds = self.client.fetch_watermarks(&self.at.topic, partition, CALLBACK_WAIT);
        let (low, high) = match bounds {
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
        if !self.at.keeper.is_open() {
            return Ok(());
        }
        for (file, order) in self.at.orders.pending() {
            let done = match &order {
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
        let taken = client(&self.at.kafka, &group)
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
        for instance in names.into_iter().filter(|name| *name != self.at.instance) {
            let Ok(ledger) = read_of(&self.at.kafka, &self.at.topic, &self.at.group, &instance)
            else {
                continue;
            };
            let owed = ledger.iter().filter_map(|(partition, written)| {
                ledger::owed(*partition, written.delivered, &written.entry)
            });
            let other = OtherLedger {
                instance,
                owed_offsets: owed.map(|range| range.offsets()).sum(),
                heard_ms: ledger.values().map(|written| written.entry.at_ms).max().unwrap_or(0),
            };
            if self.at.is_to_be_taken_over(&other, wall_ms()) {
                silent.push(other.instance.clone());
            }
            others.push(other);
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
