//! What the process says about itself: health, state, backlog. Computed when asked; reads, never steers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;
use storage::cassandra::verdicts::CODES;
use storage::{Read, Store};
use wal::DiskFs;

use crate::breaker::BreakerState;
use crate::clock::wall_ms;
use crate::config::DeadLettersConfig;
use crate::control::OnHold;
use crate::dead_letters::{ClerkCounts, DeadLetters};
use crate::definitions::{DefinitionStatus, Definitions};
use crate::deliver::DeliverCounts;
use crate::delivery::LettersBlocked;
use crate::gather::{GatherCounts, Kind};
use crate::intake::IntakeCounts;
use crate::kafka::group::GroupState;
use crate::kafka::ledger::LedgerSnapshot;
use crate::kafka::letters::LettersTopicState;
use crate::kafka_gap::{GapKind, KafkaGap};
use crate::kafka_trouble::Trouble;
use crate::log_reader::LogGap;
use crate::offset_ranges::OffsetRange;
use crate::peek::{self, Oldest};
use crate::pipeline::{PipelineView, WriterCounts};
use crate::rates::{Progress, Rates, float, whole};
use crate::redelivery::RedeliveryCounts;
use crate::sync::lock;

/// A thread that did not turn for so long is stuck; a callback of the consumer may wait 30 s for brokers and disk.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// The health check waits no longer for the store.
const HEALTH_WAIT: Duration = Duration::from_secs(3);

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Opening logs and stores.
    Starting,
    /// Consuming.
    Running,
    /// Stopping.
    Draining,
}

/// One reason for a state that is not `ok`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Reason {
    /// Stable code.
    pub code: String,
    /// What is the matter.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// `/api/v1/status`.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Status {
    /// `ok`, `degraded`, `failing` or `draining`.
    pub state: &'static str,
    /// Why it is not `ok`.
    pub reasons: Vec<Reason>,
    /// Stable name of this persister.
    pub instance: String,
    /// Version of the program.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The guarantee, in words.
    pub guarantee: &'static str,
    /// Which series the store has the description of.
    pub definitions: DefinitionStatus,
    /// One entry per pipeline.
    pub pipelines: BTreeMap<&'static str, PipelineStatus>,
}

/// What one pipeline is doing.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct PipelineStatus {
    /// What its topic carries.
    pub kind: Kind,
    /// Topic.
    pub topic: String,
    /// Consumer group.
    pub group_id: String,
    /// A broker answers.
    pub kafka_connected: bool,
    /// The consumer group as this member sees it.
    pub group: GroupState,
    /// Consumption is paused because the log is full.
    pub paused: bool,
    /// What a person wants to be paused.
    pub held: OnHold,
    /// First stage.
    pub intake: IntakeCounts,
    /// What decoding and grouping noticed.
    pub gathered: GatherCounts,
    /// Second stage.
    pub delivered: DeliverCounts,
    /// What was delivered again because nodes of the store may have lost it.
    pub redelivered: RedeliveryCounts,
    /// Whether the store is asked at all.
    pub breaker: Option<BreakerState>,
    /// Last error of the store, while it lasts.
    pub store_error: Option<String>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Current limit of requests in flight.
    pub in_flight_limit: usize,
    /// Dead letters since the start, by reason code.
    pub dead_lettered: BTreeMap<String, u64>,
    /// Partitions that stopped at a gap and wait for a person.
    pub stopped: Vec<KafkaGap>,
    /// Stretches of the log that could not be read.
    pub log_gaps: Vec<LogGap>,
    /// What Kafka is told about this instance's deliveries, and what it owes.
    pub ledger: LedgerSnapshot,
    /// The log's own work.
    pub log: LogActivity,
    /// Per writer thread.
    #[serde(skip)]
    pub writers: Vec<WriterCounts>,
}

/// What a log did since it was opened.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct LogActivity {
    /// Segment files with records.
    pub segments: usize,
    /// Reclaimed files that wait to be used again.
    pub spare_segments: usize,
    /// A file stands ready for the next change of segment.
    pub next_prepared: bool,
    /// Bytes of its files that records lie in.
    pub used_bytes: u64,
    /// Bytes given to the disk, headers, marks and prepared files included.
    pub bytes_written: u64,
    /// Uncompressed bytes of the records among them.
    pub payload_bytes_written: u64,
    /// Writes that were made durable, each with everything that had queued.
    pub groups: u64,
    /// How long the oldest write in flight has been on its way.
    pub write_in_flight_seconds: Option<f64>,
    /// From append to durable.
    #[serde(skip)]
    pub append_latency: wal::Latency,
    /// Writes of groups.
    #[serde(skip)]
    pub write_latency: wal::Latency,
    /// Syncs of groups.
    #[serde(skip)]
    pub sync_latency: wal::Latency,
}

impl LogActivity {
    fn of(log: &wal::WalStatus) -> Self {
        Self {
            segments: log.segments,
            spare_segments: log.spare_segments,
            next_prepared: log.next_prepared,
            used_bytes: log.used_bytes,
            bytes_written: log.bytes_written,
            payload_bytes_written: log.payload_bytes_written,
            groups: log.groups,
            write_in_flight_seconds: log.in_flight_for.map(|age| age.as_secs_f64()),
            append_latency: log.append_latency.clone(),
            write_latency: log.write_latency.clone(),
            sync_latency: log.sync_latency.clone(),
        }
    }
}

/// `/api/v1/backlog`.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Backlog {
    /// All pipelines together.
    pub total: TotalBacklog,
    /// One entry per pipeline.
    pub pipelines: BTreeMap<&'static str, PipelineBacklog>,
    /// Dead letters kept, repetitions included.
    pub dead_letters: u64,
    /// Their log.
    pub dead_letter_log: LettersBacklog,
}

/// What waits in all pipelines.
#[derive(Debug, Clone, Copy, Default, Serialize, schemars::JsonSchema)]
pub struct TotalBacklog {
    /// Durable records that are not delivered.
    pub records: u64,
    /// Their bytes on disk, estimated.
    pub bytes: u64,
    /// For how long the oldest waits, in seconds, as the wall clock tells.
    pub oldest_waits_s: Option<f64>,
    /// Records appended per second.
    pub in_per_s: f64,
    /// Records delivered per second.
    pub out_per_s: f64,
}

/// The dead letters' log.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct LettersBacklog {
    /// For how long the oldest has been one, as the wall clock tells.
    pub oldest_age_s: Option<u64>,
    /// Bytes of its files that letters lie in.
    pub used_bytes: u64,
    /// Most bytes it may take.
    pub capacity_bytes: u64,
    /// Letters dropped by order since the start, repetitions included.
    pub dropped: u64,
    /// Letters tried again by order since the start, repetitions included.
    pub retried: u64,
    /// Letters that the brokers acknowledged for the topic of dead letters since the start, repetitions included.
    pub forwarded: u64,
}

/// What waits in one pipeline.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct PipelineBacklog {
    /// Topic.
    pub topic: String,
    /// Durable records that are not delivered.
    pub records: u64,
    /// Their bytes on disk, estimated.
    pub bytes: u64,
    /// Bytes of all files of the log.
    pub allocated_bytes: u64,
    /// Most bytes it may take.
    pub capacity_bytes: u64,
    /// Used part of the capacity, 0 to 1.
    pub fill: f64,
    /// Position after the last record appended.
    pub appended: u64,
    /// Everything before it is durable.
    pub durable: u64,
    /// Everything before it is in the store or the dead letters.
    pub delivered: u64,
    /// Everything before it has left the disk.
    pub reclaimed: u64,
    /// Records appended per second, over about the last ten seconds.
    pub in_per_s: f64,
    /// Records delivered per second, over about the last ten seconds.
    pub out_per_s: f64,
    /// Seconds until the log is so full that consumption pauses, at these rates; absent while the backlog does not grow.
    pub seconds_to_full: Option<f64>,
    /// Seconds until the backlog is gone at these rates; absent while it does not shrink.
    pub seconds_to_drained: Option<f64>,
    /// The record that waits for longest, as looked at within the last second.
    pub oldest: Option<Oldest>,
    /// For how long it waits, in seconds, as the wall clock tells.
    pub oldest_waits_s: Option<f64>,
    /// Consumption is paused, for whatever reason.
    pub paused: bool,
    /// Why: `log full`, `by order`.
    pub paused_why: Option<&'static str>,
    /// One entry per assigned partition.
    pub partitions: BTreeMap<i32, PartitionBacklog>,
}

/// One partition; every value is a next offset.
#[derive(Debug, Clone, Copy, Serialize, schemars::JsonSchema)]
pub struct PartitionBacklog {
    /// Next offset to take from Kafka.
    pub consumed: Option<i64>,
    /// Everything before it is durable here.
    pub durable: Option<i64>,
    /// What Kafka confirmed for the group.
    pub committed: Option<i64>,
    /// Everything before it is in the store or the dead letters.
    pub delivered: Option<i64>,
    /// Messages in Kafka that are not consumed, as the brokers told last.
    pub lag: Option<i64>,
    /// Nothing is taken from it.
    pub paused: bool,
    /// Why: `log full`, `by order`, or the code of a gap that a person has to accept.
    pub paused_why: Option<&'static str>,
}

/// One line of a health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Check {
    /// Whether it is as it should be.
    pub healthy: bool,
    /// Why not, or a word to say that it is.
    pub message: String,
}

/// What is sampled once a second.
#[derive(Debug, Clone, Default)]
struct Sampled {
    rates: Rates,
    progress: Progress,
    oldest: Option<Oldest>,
}

/// What can be said of the dead letters.
pub struct LettersView {
    /// The letters.
    pub letters: DeadLetters<DiskFs>,
    /// What was done with them by order.
    pub counts: Arc<ClerkCounts>,
    /// What their topic says, if they have one.
    pub topic: Option<Arc<LettersTopicState>>,
    /// When somebody should look.
    pub config: Mutex<DeadLettersConfig>,
}

impl LettersView {
    fn backlog(&self) -> LettersBacklog {
        let log = self.letters.wal().status();
        LettersBacklog {
            oldest_age_s: self.oldest_age().map(|age| age.as_secs()),
            used_bytes: log.used_bytes,
            capacity_bytes: log.max_bytes,
            dropped: self.counts.dropped(),
            retried: self.counts.retried(),
            forwarded: self.topic.as_ref().map_or(0, |topic| topic.forwarded()),
        }
    }

    fn oldest_age(&self) -> Option<Duration> {
        let age_ms = wall_ms().saturating_sub(self.letters.oldest_since_ms()?);
        Some(Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)))
    }

    fn reasons(&self, reasons: &mut Vec<Reason>) {
        const HINT: &str = "`dead-letters list` says why they cannot be stored; mend the cause and `dead-letters retry`, \
                            or `dead-letters drop`";
        let trouble = self.topic.as_ref().and_then(|topic| topic.trouble());
        if let Some(why) = trouble.filter(|_| self.letters.count() > 0) {
            reasons.push(reason(
                "DEAD_LETTERS_TOPIC",
                format!("dead letters do not get to their topic: {why}"),
                "they stay in their log and are sent when the brokers take them; check that dead_letters.topic exists, that we may write to it, and its max.message.bytes",
            ));
        }
        let Some(age) = self.oldest_age() else { return };
        let whole = humantime::format_duration(Duration::from_secs(age.as_secs()));
        let DeadLettersConfig { warn_after, age_max, .. } = *lock(&self.config);
        if let Some(limit) = age_max.filter(|limit| age > *limit) {
            let limit = humantime::format_duration(limit);
            reasons.push(reason(
                "DEAD_LETTERS_OLD",
                format!("the oldest dead letter is {whole} old, more than dead_letters.age_max ({limit}): no others are kept, delivery waits at the next one"),
                HINT,
            ));
        } else if warn_after.is_some_and(|limit| age > limit) {
            reasons.push(reason(
                "DEAD_LETTERS_OLD",
                format!("the oldest dead letter is {whole} old"),
                HINT,
            ));
        }
    }
}

/// Reads everything that can be said.
pub struct Inspect {
    started: Instant,
    instance: String,
    phase: AtomicU8,
    pipelines: Vec<Arc<PipelineView>>,
    store: Arc<dyn Store>,
    read: Option<Arc<dyn Read>>,
    dead_letters: LettersView,
    definitions: Definitions,
    last_shutdown: Option<serde_json::Value>,
    sampled: Mutex<BTreeMap<&'static str, Sampled>>,
}

impl Inspect {
    /// An inspection of these pipelines. `read` is there for embedded stores.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is something else to look at")]
    pub fn new(
        started: Instant,
        instance: String,
        pipelines: Vec<Arc<PipelineView>>,
        store: Arc<dyn Store>,
        read: Option<Arc<dyn Read>>,
        dead_letters: LettersView,
        definitions: Definitions,
        last_shutdown: Option<serde_json::Value>,
    ) -> Self {
        Self {
            started,
            instance,
            phase: AtomicU8::new(0),
            pipelines,
            store,
            read,
            dead_letters,
            definitions,
            last_shutdown,
            sampled: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether everything is opened and consumption has begun.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.phase() != Phase::Starting
    }

    /// How this program ended the last time, as it wrote then.
    #[must_use]
    pub fn last_shutdown(&self) -> Option<serde_json::Value> {
        self.last_shutdown.clone()
    }

    /// From now on dead letters are told when they are so old.
    pub fn warn_after(&self, age: Option<Duration>) {
        lock(&self.dead_letters.config).warn_after = age;
    }

    /// Monotonic time, as the logs count it.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Says where the process is.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Where the process is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Running,
            _ => Phase::Draining,
        }
    }

    /// The read side of an embedded store.
    #[must_use]
    pub fn read(&self) -> Option<&Arc<dyn Read>> {
        self.read.as_ref()
    }

    /// The dead letters.
    #[must_use]
    pub fn dead_letters(&self) -> &DeadLetters<DiskFs> {
        &self.dead_letters.letters
    }

    /// The pipelines.
    #[must_use]
    pub fn pipelines(&self) -> &[Arc<PipelineView>] {
        &self.pipelines
    }

    /// Takes a sample for the rates, and looks for the oldest record; called once a second. Reads files.
    pub fn sample(&self) {
        for view in &self.pipelines {
            let status = view.wal.status();
            let proved = status.durable.get().saturating_sub(status.backlog_records);
            let deliver = view.deliver();
            let rows = float(deliver.gathered.rows.max(1));
            let written =
                float(deliver.counts.rows_written) * float(deliver.gathered.records) / rows;
            let oldest = peek::oldest(&view.wal).unwrap_or_else(|error| {
                tracing::debug!(pipeline = view.name, %error, "look for the oldest record");
                None
            });
            let now = self.started.elapsed();
            let mut sampled = lock(&self.sampled);
            let sampled = sampled.entry(view.name).or_default();
            sampled.progress.sample(proved, whole(written));
            let done = proved.saturating_add(sampled.progress.written_of(status.backlog_records));
            sampled.rates.sample(now, status.appended.get(), done);
            sampled.oldest = oldest;
        }
    }

    /// What waits.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        let sampled = lock(&self.sampled).clone();
        let now_ms = wall_ms();
        let mut total = TotalBacklog::default();
        let mut pipelines = BTreeMap::new();
        for view in &self.pipelines {
            let sampled = sampled.get(view.name).cloned().unwrap_or_default();
            let backlog = pipeline_backlog(view, &sampled, now_ms);
            total.records = total.records.saturating_add(backlog.records);
            total.bytes = total.bytes.saturating_add(backlog.bytes);
            total.in_per_s += backlog.in_per_s;
            total.out_per_s += backlog.out_per_s;
            total.oldest_waits_s = [total.oldest_waits_s, backlog.oldest_waits_s]
                .into_iter()
                .flatten()
                .reduce(f64::max);
            pipelines.insert(view.name, backlog);
        }
        Backlog {
            total,
            pipelines,
            dead_letters: self.dead_letters.letters.count(),
            dead_letter_log: self.dead_letters.backlog(),
        }
    }

    /// What the process is doing and what is the matter.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut reasons = Vec::new();
        let mut failing = false;
        let mut pipelines = BTreeMap::new();
        for view in &self.pipelines {
            let (status, counted) = self.pipeline_status(view, &mut reasons);
            failing |= counted;
            pipelines.insert(view.name, status);
        }
        self.dead_letters.reasons(&mut reasons);
        if let Some(stalled) = self.stalled() {
            failing = true;
            reasons.push(reason(
                "STALLED",
                stalled,
                "the process is stuck: restart it; nothing is lost by that",
            ));
        }
        let state = match (self.phase(), failing, reasons.is_empty()) {
            (Phase::Draining, ..) => "draining",
            (_, true, _) => "failing",
            (_, false, true) => "ok",
            (_, false, false) => "degraded",
        };
        Status {
            state,
            reasons,
            instance: self.instance.clone(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            guarantee: crate::GUARANTEE,
            definitions: self.definitions.status(),
            pipelines,
        }
    }

    /// The pipeline's part of the status, and whether it is failing.
    fn pipeline_status(
        &self,
        view: &PipelineView,
        reasons: &mut Vec<Reason>,
    ) -> (PipelineStatus, bool) {
        let ingest = view.ingest.snapshot();
        let deliver = view.deliver();
        let log = view.wal.status();
        let name = view.name;
        let mut failing = false;
        if let Some(cause) = &log.poisoned {
            failing = true;
            reasons.push(reason(
                "WAL_FAILED",
                format!("{name}: {cause}"),
                "check the disk; the process ends by itself and goes on after a restart",
            ));
        }
        if let Some(trouble) = &ingest.trouble {
            reasons.push(reason(
                trouble.code,
                format!("{name}: {}", trouble.message),
                trouble.hint,
            ));
        } else if !ingest.connected {
            let why = ingest
                .last_error
                .clone()
                .unwrap_or_else(|| "no broker has answered yet".to_owned());
            reasons.push(reason(
                "KAFKA_UNREACHABLE",
                format!("{name}: {why}"),
                "check kafka.bootstrap_servers and the network; consumption goes on by itself",
            ));
        }
        if ingest.paused {
            reasons.push(reason(
                "WAL_FULL",
                format!("{name}: the log is {:.0} % full", log.fill() * 100.0),
                "consumption is paused and goes on when the store has taken some of the backlog; a larger wal.*_bytes_max absorbs longer outages",
            ));
        }
        let held = view.held();
        for (is_held, stage) in [(held.intake, "consumption"), (held.delivery, "delivery")] {
            if is_held {
                reasons.push(reason(
                    "PAUSED_BY_ORDER",
                    format!("{name}: {stage} is paused because a person wants it so"),
                    "`control resume` ends it; a restart does not",
                ));
            }
        }
        if matches!(deliver.breaker, Some(BreakerState::Open | BreakerState::HalfOpen)) {
            let why = deliver
                .last_error
                .clone()
                .map_or(String::new(), |(code, detail)| format!("{code}: {detail}"));
            reasons.push(reason(
                "STORE_UNAVAILABLE",
                format!("{name}: {why}"),
                &format!(
                    "rows stay in the log; delivery goes on by itself when the store takes them. {}",
                    next_step(deliver.last_error.as_ref().map_or("", |(code, _)| code))
                ),
            ));
        } else if let Some((requests, code, detail)) = &deliver.stuck {
            reasons.push(reason(
                "STORE_FAILS_ON_SOME",
                format!("{name}: {requests} requests fail always: {code}: {detail}"),
                &format!(
                    "other rows are written; these stay in the log and are tried again. {}",
                    next_step(code)
                ),
            ));
        }
        if deliver.dead_letters_blocked == Some(LettersBlocked::Full) {
            reasons.push(reason(
                "DEAD_LETTERS_FULL",
                format!("{name}: dead letters have no room, delivery waits"),
                "`dead-letters retry` or `dead-letters drop` makes room, and delivery goes on by itself; or make room on the disk, or raise wal.dead_letters_bytes_max and start again; their messages and those behind them wait in the log",
            ));
        }
        if deliver.expired_held {
            reasons.push(reason(
                "EXPIRED_HELD",
                format!("{name}: what waits is older than the retention by this machine's clock"),
                "correct the clock, then delivery goes on by itself; if it is right and these rows are to be dropped: expired_backlog: drop",
            ));
        }
        for gap in &ingest.stopped {
            failing = true;
            reasons.push(reason(
                gap.kind.code(),
                format!("{}; the partition is not consumed", gap.message(&view.topic)),
                "find out why; `offsets accept` goes on with what Kafka has",
            ));
        }
        if !deliver.gaps.is_empty() {
            reasons.push(reason(
                "WAL_CORRUPT",
                format!("{name}: {} stretches of the log could not be read", deliver.gaps.len()),
                "check the disk; what was there is fetched from Kafka again, see the log lines",
            ));
        }
        let ledger = view.ledger();
        ledger_reasons(view, &ledger, reasons);
        let status = PipelineStatus {
            kind: view.kind,
            topic: view.topic.clone(),
            group_id: view.group_id.clone(),
            kafka_connected: ingest.connected,
            group: ingest.group,
            paused: ingest.paused,
            held,
            intake: ingest.counts,
            gathered: deliver.gathered,
            delivered: deliver.counts,
            redelivered: view.redelivery.counts(),
            breaker: deliver.breaker,
            store_error: deliver.last_error.map(|(code, detail)| format!("{code}: {detail}")),
            in_flight: deliver.in_flight,
            in_flight_limit: deliver.in_flight_limit,
            dead_lettered: deliver.dead_lettered,
            stopped: ingest.stopped,
            log_gaps: deliver.gaps,
            ledger,
            log: LogActivity::of(&log),
            writers: deliver.writers,
        };
        (status, failing)
    }

    /// The health check: asks the store, and says for each part whether it works now.
    pub async fn health(&self) -> BTreeMap<&'static str, Check> {
        let mut checks = BTreeMap::new();
        let store = match tokio::time::timeout(HEALTH_WAIT, self.store.health()).await {
            Ok(Ok(())) => Check { healthy: true, message: "takes rows".to_owned() },
            Ok(Err(error)) => Check { healthy: false, message: error.to_string() },
            Err(_) => Check {
                healthy: false,
                message: format!("no answer within {} s", HEALTH_WAIT.as_secs()),
            },
        };
        checks.insert("store", store);
        let mut unreachable = Vec::new();
        let mut log_problems = Vec::new();
        for view in &self.pipelines {
            let ingest = view.ingest.snapshot();
            if let Some(trouble) = ingest.trouble {
                let Trouble { code, message, hint, .. } = trouble;
                unreachable.push(format!("{}: {code}: {message}; {hint}", view.name));
            } else if !ingest.connected {
                let why =
                    ingest.last_error.unwrap_or_else(|| "no broker has answered yet".to_owned());
                unreachable.push(format!("{}: {why}", view.name));
            }
            let log = view.wal.status();
            if let Some(cause) = log.poisoned {
                log_problems.push(format!("{}: {cause}", view.name));
            } else if log.out_of_space || ingest.paused {
                log_problems.push(format!("{}: full", view.name));
            }
        }
        if let Some(topic) = &self.dead_letters.topic {
            let waiting = topic.trouble().filter(|_| self.dead_letters.letters.count() > 0);
            let waiting = waiting.map(|why| format!("letters wait for their topic: {why}"));
            checks.insert("dead_letters", check(waiting.into_iter().collect(), "at their topic"));
        }
        checks.insert("kafka", check(unreachable, "connected"));
        checks.insert("wal", check(log_problems, "has room"));
        checks
    }

    /// A thread that did not turn for a minute, if there is one.
    #[must_use]
    pub fn stalled(&self) -> Option<String> {
        if self.phase() != Phase::Running {
            return None;
        }
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let limit_ms = u64::try_from(STALLED_AFTER.as_millis()).unwrap_or(u64::MAX);
        self.pipelines.iter().find_map(|view| {
            let heartbeats =
                [("ingest", view.ingest.heartbeat_ms()), ("deliver", view.deliver_heartbeat_ms())];
            heartbeats.into_iter().find(|(_, at_ms)| now_ms.saturating_sub(*at_ms) > limit_ms).map(
                |(thread, at_ms)| {
                    format!(
                        "{}-{thread} did nothing for {} s",
                        view.name,
                        now_ms.saturating_sub(at_ms) / 1000
                    )
                },
            )
        })
    }

    /// Why the process is not ready for work, if it is not. A database outage is no reason: the log absorbs it. Brokers
    /// that are away are none either; brokers or a group that refuse us, or that we refuse, are one: only an operator ends that.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        match self.phase() {
            Phase::Starting => return Some("starting".to_owned()),
            Phase::Draining => return Some("draining".to_owned()),
            Phase::Running => {}
        }
        self.pipelines.iter().find_map(|view| {
            let name = view.name;
            let log = view.wal.status();
            let ingest = view.ingest.snapshot();
            match (log.poisoned, log.out_of_space, ingest.trouble) {
                (Some(cause), _, _) => Some(format!("{name}: {cause}")),
                (None, true, _) => Some(format!("{name}: disk full")),
                (None, false, Some(trouble)) if !ingest.connected || trouble.is_of_group() => {
                    Some(format!("{name}: {}: {}; {}", trouble.code, trouble.message, trouble.hint))
                }
                (None, false, _) => None,
            }
        })
    }
}

fn pipeline_backlog(view: &PipelineView, sampled: &Sampled, now_ms: i64) -> PipelineBacklog {
    let status = view.wal.status();
    let ingest = view.ingest.snapshot();
    let held = view.held();
    let delivered = view.delivered_offsets();
    let Sampled { rates, progress, oldest } = sampled;
    let left = status.backlog_records.saturating_sub(progress.written_of(status.backlog_records));
    // It was delivered since it was looked for.
    let oldest = oldest.filter(|oldest| oldest.position >= status.delivered.get());
    let in_log = status.appended.get().saturating_sub(status.reclaimed.get());
    let record_bytes = float(status.used_bytes) / float(in_log.max(1));
    let room = float(status.max_bytes) * wal::WalStatus::HIGH_MARK - float(status.used_bytes);
    let paused_why = match (ingest.paused, held.intake) {
        (true, _) => Some("log full"),
        (false, true) => Some("by order"),
        (false, false) => None,
    };
    let partitions = ingest.partitions.iter().map(|(partition, progress)| {
        let gap = ingest.stopped.iter().find(|gap| gap.partition == *partition);
        let paused_why = gap.map(|gap| gap.kind.code()).or(paused_why);
        let partition_backlog = PartitionBacklog {
            consumed: progress.consumed,
            durable: progress.durable,
            committed: progress.committed,
            delivered: delivered.get(partition).copied(),
            lag: ingest.lag.get(partition).copied(),
            paused: paused_why.is_some(),
            paused_why,
        };
        (*partition, partition_backlog)
    });
    PipelineBacklog {
        topic: view.topic.clone(),
        records: status.backlog_records,
        bytes: status.backlog_bytes,
        allocated_bytes: status.allocated_bytes,
        capacity_bytes: status.max_bytes,
        fill: status.fill(),
        appended: status.appended.get(),
        durable: status.durable.get(),
        delivered: status.delivered.get(),
        reclaimed: status.reclaimed.get(),
        in_per_s: rates.in_per_s(),
        out_per_s: rates.out_per_s(),
        seconds_to_full: rates.seconds_to_full(room, record_bytes),
        seconds_to_drained: rates.seconds_to_drained(left),
        oldest,
        oldest_waits_s: oldest.map(|oldest| {
            let waits_ms = now_ms.saturating_sub(oldest.received_ms);
            float(u64::try_from(waits_ms).unwrap_or(0)) / 1000.0
        }),
        paused: paused_why.is_some(),
        paused_why,
        partitions: partitions.collect(),
    }
}

/// Another instance that owes something and was not heard of for so long is silent: it says something once an hour.
const SILENT_AFTER_S: u64 = 2 * 60 * 60;

fn ledger_reasons(view: &PipelineView, ledger: &LedgerSnapshot, reasons: &mut Vec<Reason>) {
    let name = view.name;
    let count = |ranges: &[OffsetRange]| ranges.iter().map(OffsetRange::offsets).sum::<u64>();
    if let Some(why) = &ledger.off {
        reasons.push(reason(
            "LEDGER_OFF",
            format!("{name}: {}: {why}", ledger.group_id),
            "grant Read on this group: without it a lost disk is not noticed; it is tried again every \
             kafka.ledger_retry",
        ));
    } else if let Some(why) = &ledger.last_error {
        reasons.push(reason(
            "LEDGER",
            format!("{name}: {why}"),
            "tried again; until it works no offset is committed, and the log keeps what was taken",
        ));
    }
    if !ledger.owed.is_empty() {
        reasons.push(reason(
            "ACKED_DATA_MISSING",
            format!("{name}: {} offsets are owed", count(&ledger.owed)),
            "they are being fetched from Kafka again; `offsets show` lists them",
        ));
    }
    if !ledger.lost.is_empty() {
        reasons.push(reason(
            "MESSAGES_LOST",
            format!("{name}: {} owed offsets are not in Kafka any more", count(&ledger.lost)),
            "the ranges are in this status under `ledger.lost`; take note with `offsets acknowledge`",
        ));
    }
    for gap in &ledger.gaps {
        let hint = match gap.kind {
            GapKind::Retention => {
                "Kafka's retention was shorter than an outage of this program: these messages are lost; take note with \
                 `offsets acknowledge`"
            }
            GapKind::Truncated | GapKind::Recreated => {
                "what was consumed is kept, and consumption goes on with what Kafka has; take note with `offsets acknowledge`"
            }
        };
        reasons.push(reason(gap.kind.code(), gap.message(&view.topic), hint));
    }
    let near = ledger.retention.iter().filter(|(_, left)| left.is_near);
    if let Some((partition, left)) = near.min_by_key(|(_, left)| left.seconds) {
        reasons.push(reason(
            "KAFKA_RETENTION_NEAR",
            format!(
                "{}/{partition}: Kafka removes messages that were not consumed in {}",
                view.topic,
                humantime::format_duration(Duration::from_secs(left.seconds))
            ),
            "make room in the log (the store has to take its backlog, or raise wal.*_bytes_max), or raise the topic's retention",
        ));
    }
    for other in &ledger.others {
        if other.owed_offsets > 0 && other.silent_for_s > SILENT_AFTER_S {
            reasons.push(reason(
                "LEDGER_SILENT",
                format!(
                    "{name}: instance {} owes {} offsets and was not heard of for {}",
                    other.instance,
                    other.owed_offsets,
                    humantime::format_duration(Duration::from_secs(other.silent_for_s))
                ),
                "start it again; if it will never come back: `offsets rewind --instance NAME` on any other",
            ));
        }
    }
}

fn check(problems: Vec<String>, fine: &str) -> Check {
    if problems.is_empty() {
        Check { healthy: true, message: fine.to_owned() }
    } else {
        Check { healthy: false, message: problems.join("; ") }
    }
}

fn reason(code: &str, message: String, hint: &str) -> Reason {
    Reason { code: code.to_owned(), message, hint: hint.to_owned() }
}

/// What a person does about an error of the database; nothing for other codes.
fn next_step(code: &str) -> &'static str {
    CODES.iter().find(|known| known.name == code).map_or("", |known| known.next)
}
