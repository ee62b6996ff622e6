//! One pipeline: its log, its threads, and the order in which they start and stop.
//!
//! ```text
//! thread `X-ingest`  ─ append → [ log, thread `wal-committer` ] ═ files ═ thread `X-reader` ─ gathers →
//! thread `X-deliver` ⇄ threads `X-writer-N` → store
//! ```
//! Stages share no lock across I/O; a full channel is the back-pressure. Stopping follows the stream: stop polling,
//! make durable, commit, leave the group; then drain as far as the time allows; then checkpoint and close the log.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use storage::Store;
use tokio_util::sync::CancellationToken;
use wal::{Committer, DiskFs, Position, Wal, WalConfig, WalError};

use crate::aside::Aside;
use crate::batch_limit::BatchLimit;
use crate::breaker::BreakerState;
use crate::clock::wall_ms;
use crate::config::{Config, PipelineSpec};
use crate::control::{Control, OnHold};
use crate::dead_letters::DeadLetters;
use crate::definitions::Definitions;
use crate::deliver::{DeliverConfig, DeliverCounts};
use crate::delivered::DeliveredOffsets;
use crate::delivery::{Delivery, Held, LettersBlocked};
use crate::gather::{GatherConfig, GatherCounts, Gathered, Kind};
use crate::ingest::IngestConfig;
use crate::instance;
use crate::intake::Intake;
use crate::kafka::ledger::{LedgerHandle, LedgerKeeper, LedgerSnapshot, LedgerThread};
use crate::kafka::{IngestEnd, IngestParts, IngestShared, Ingestion};
use crate::keeper::{self, IDLE_INTERVAL, Keeper};
use crate::log_reader::{LogGap, LogReader, LookAhead};
use crate::offset_note::{LogOffsets, OffsetCarry};
use crate::offset_trail;
use crate::offsets::PartitionProgress;
use crate::orders::Orders;
use crate::pace::Pace;
use crate::precedence::{Claim, Precedence};
use crate::redelivery::Redelivery;
use crate::said::Said;
use crate::sync::lock;
use crate::writers::{Answer, Writers};

/// How often a delivery that a person paused looks whether it may go on.
const HELD_LOOK: Duration = Duration::from_millis(100);
/// How often the log is checkpointed and reclaimed.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How often a busy second stage tells what it does.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);
/// While rows are gathered, what becomes durable is looked at so often: each look costs as much as many rows.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// The next gather is taken over when what is held of those before takes no more than this: enough to keep the store
/// busy until the next one is grouped.
const HELD_BYTES_MAX: usize = 8 << 20;
/// A record of the log holds a message of any length that the configuration allows.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// What others may know about the second stage.
#[derive(Debug, Clone, Default)]
pub struct DeliverSnapshot {
    /// Counts of requests and rows.
    pub counts: DeliverCounts,
    /// What decoding and grouping noticed.
    pub gathered: GatherCounts,
    /// Dead letters by reason code since the start.
    pub dead_lettered: BTreeMap<String, u64>,
    /// Why dead letters wait, if they do.
    pub dead_letters_blocked: Option<LettersBlocked>,
    /// Where the breaker stands.
    pub breaker: Option<BreakerState>,
    /// Last error of the store: code and detail.
    pub last_error: Option<(String, String)>,
    /// Requests that fail always while others succeed, and the last answer to one: code and detail.
    pub stuck: Option<(usize, String, String)>,
    /// Requests in flight and their current limit.
    pub in_flight: usize,
    /// Current limit of requests in flight.
    pub in_flight_limit: usize,
    /// Rows held in memory.
    pub outstanding_rows: usize,
    /// For each writer thread: rows written and requests answered with success.
    pub writers: Vec<WriterCounts>,
    /// Stretches of the log that could not be read.
    pub gaps: Vec<LogGap>,
    /// Delivery waits, because what comes next is older than the retention by this machine's clock.
    pub expired_held: bool,
}

/// What one writer thread did.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriterCounts {
    /// Rows written.
    pub rows: u64,
    /// Requests answered with success.
    pub requests: u64,
}

/// What the HTTP side reads of a pipeline; it steers nothing.
pub struct PipelineView {
    /// Its name; `metrics` and `alarms` unless there are more.
    pub name: &'static str,
    /// What the pipeline carries.
    pub kind: Kind,
    /// Its topic.
    pub topic: String,
    /// Its consumer group.
    pub group_id: String,
    /// Its log.
    pub wal: Wal<DiskFs>,
    /// The first stage.
    pub ingest: Arc<IngestShared>,
    /// What is delivered again when the store may have lost rows.
    pub redelivery: Arc<Redelivery>,
    ledger: LedgerHandle,
    delivered: Arc<Mutex<DeliveredOffsets>>,
    deliver: Mutex<DeliverSnapshot>,
    deliver_heartbeat_ms: AtomicU64,
    delivery_held: AtomicBool,
}

impl PipelineView {
    /// What the ledger says.
    #[must_use]
    pub fn ledger(&self) -> LedgerSnapshot {
        self.ledger.snapshot()
    }

    /// Has one stage or both pause, or go on. What is under way is finished.
    pub fn hold(&self, held: OnHold) {
        self.ingest.hold(held.intake);
        self.delivery_held.store(held.delivery, Ordering::Relaxed);
    }

    /// What a person wants to be paused.
    #[must_use]
    pub fn held(&self) -> OnHold {
        OnHold {
            intake: self.ingest.is_held(),
            delivery: self.delivery_held.load(Ordering::Relaxed),
        }
    }

    /// For each partition known, the offset before which everything is delivered.
    #[must_use]
    pub fn delivered_offsets(&self) -> BTreeMap<i32, i64> {
        lock(&self.delivered).tell().clone()
    }

    /// What is known of the second stage.
    #[must_use]
    pub fn deliver(&self) -> DeliverSnapshot {
        lock(&self.deliver).clone()
    }

    /// Milliseconds since the start of the process when the second stage last turned.
    #[must_use]
    pub fn deliver_heartbeat_ms(&self) -> u64 {
        self.deliver_heartbeat_ms.load(Ordering::Relaxed)
    }
}

/// How a pipeline ended.
#[derive(Debug, Clone, serde::Serialize, schemars::JsonSchema)]
pub struct PipelineEnd {
    /// Its name.
    pub name: &'static str,
    /// What it carried.
    pub kind: Kind,
    /// Rows written since the start.
    pub rows_written: u64,
    /// Records that stay in the log.
    pub kept_records: u64,
    /// Next offset per partition as committed last.
    pub committed: BTreeMap<i32, i64>,
}

/// What all pipelines of a process share.
pub struct Surroundings {
    /// Where rows go.
    pub store: Arc<dyn Store>,
    /// Where messages go that can never be stored.
    pub dead_letters: DeadLetters<DiskFs>,
    /// Which series the store has the description of.
    pub definitions: Definitions,
    /// Carries the store's driver.
    pub runtime: tokio::runtime::Handle,
    /// Zero of monotonic time.
    pub started: Instant,
    /// Stable name of this persister, and of its ledger.
    pub instance: String,
    /// Takes the first reason to end the process.
    pub fatal: Sender<anyhow::Error>,
    /// What a person wants to be paused.
    pub control: Arc<Control>,
    /// Lets alarms go before metrics.
    pub precedence: Precedence,
    /// How fast bytes may leave for the store.
    pub pace: Option<Arc<Mutex<Pace>>>,
}

/// A running pipeline.
pub struct Pipeline {
    view: Arc<PipelineView>,
    started: Instant,
    stop_ingest: Arc<AtomicBool>,
    closing: Arc<AtomicBool>,
    give_up: CancellationToken,
    ingest: JoinHandle<Option<IngestEnd>>,
    reader: JoinHandle<()>,
    deliver: JoinHandle<()>,
    ledger: LedgerThread,
    committer: Committer,
}

impl Pipeline {
    /// Opens the log and starts the threads.
    ///
    /// # Errors
    /// The log cannot be opened ([`WalError`] inside tells why) or a property of Kafka is refused.
    pub fn start(
        spec: &PipelineSpec<'_>,
        config: &Config,
        surroundings: &Surroundings,
    ) -> anyhow::Result<Self> {
        let PipelineSpec { kind, pipeline, .. } = *spec;
        // As long as the process, like the pipeline.
        let name: &'static str = spec.name.to_owned().leak();
        let started = surroundings.started;
        let wal = open_log(spec, config, started)?;
        let memory = surroundings.definitions.memory();
        let log_offsets = LogOffsets::decode(&wal.carry()).context("read offsets of the log")?;
        let delivered = Arc::new(Mutex::new(DeliveredOffsets::new(
            &log_offsets.next,
            wal.delivered(),
            wal.durable().through(),
        )));
        let ingest_shared = IngestShared::new();
        let ledger_keeper = LedgerKeeper {
            kafka: config.kafka.clone(),
            topic: pipeline.topic.clone(),
            group: pipeline.group_id.clone(),
            instance: surroundings.instance.clone(),
            keeper: Keeper::new(wal.clone(), Arc::clone(&delivered), log_offsets.next)
                .heard_of_every(
                    config.kafka.takeover_after.map_or(IDLE_INTERVAL, LedgerKeeper::heartbeat),
                ),
            orders: Orders::of(&config.data_dir, name),
            ingest: Arc::clone(&ingest_shared),
            runtime: surroundings.runtime.clone(),
            started,
        };
        let (ledger, ledger_handle) = {
            let fatal = surroundings.fatal.clone();
            LedgerThread::spawn(format!("{name}-ledger"), ledger_keeper, move |error| {
                drop(fatal.try_send(anyhow::Error::new(error).context("ledger")));
            })
            .context("start ledger thread")?
        };

        let view = Arc::new(PipelineView {
            name,
            kind,
            topic: pipeline.topic.clone(),
            group_id: pipeline.group_id.clone(),
            wal: wal.clone(),
            ingest: Arc::clone(&ingest_shared),
            redelivery: Arc::default(),
            ledger: ledger_handle.clone(),
            delivered: Arc::clone(&delivered),
            deliver: Mutex::new(DeliverSnapshot {
                writers: vec![WriterCounts::default(); pipeline.writers],
                ..DeliverSnapshot::default()
            }),
            deliver_heartbeat_ms: AtomicU64::new(0),
            delivery_held: AtomicBool::new(false),
        });
        view.hold(surroundings.control.held(name));

        let ingest_config = IngestConfig {
            commit_interval: config.kafka.commit_interval,
            initial_offset: config.kafka.initial_offset,
            commit_after: config.kafka.commit_after,
            gaps: config.kafka.gaps,
            #[cfg(feature = "mutants")]
            ledger: crate::mutants::of_the_log() == wal::Mutant::None,
            ..IngestConfig::default()
        };
        let intake = Intake::new(ingest_config, wal.clone()).context("read offsets of the log")?;
        let stop_ingest = Arc::new(AtomicBool::new(false));
        let parts = IngestParts {
            member: instance::member_name(config, &surroundings.instance, name),
            intake,
            shared: ingest_shared,
            ledger: ledger_handle.clone(),
            stop: Arc::clone(&stop_ingest),
            started,
        };
        let ingestion =
            Ingestion::new(&config.kafka, pipeline, parts).context("create Kafka consumer")?;
        let committer = Committer::spawn(wal.clone()).context("start committer thread")?;

        let closing = Arc::new(AtomicBool::new(false));
        let give_up = CancellationToken::new();

        let ingest = {
            let fatal = surroundings.fatal.clone();
            spawn(format!("{name}-ingest"), move || match ingestion.run() {
                Ok(end) => Some(end),
                Err(error) => {
                    // The channel takes the first reason; a later one changes nothing.
                    drop(fatal.try_send(error.context("ingest")));
                    None
                }
            })?
        };

        // Handed over, not queued: one gather is being delivered, one collected, and no third takes memory.
        let (gathers, incoming) = crossbeam_channel::bounded(0);
        let aside = Arc::new(Mutex::new(Aside::default()));
        let batch_limit = Arc::new(BatchLimit::default());
        let reader = {
            let gather_config = GatherConfig {
                kind,
                scheme: config.metric_id_scheme,
                retention: config.retention,
                definition_refresh: config.store.definition_refresh,
                batch_rows_max: pipeline.batch_rows_max,
                batch_bytes_max: bytes(pipeline.batch_bytes_max),
                message_bytes_max: bytes(pipeline.message_bytes_max),
            };
            let look_ahead =
                LookAhead { rows_max: pipeline.gather_rows_max, freshness: pipeline.freshness };
            let store = Arc::clone(&surroundings.store);
            let log_reader = LogReader::new(
                wal.clone(),
                gather_config,
                look_ahead,
                Arc::clone(&memory),
                Arc::clone(&delivered),
            )
            .with_aside(Arc::clone(&aside))
            .with_batch_limit(Arc::clone(&batch_limit))
            .with_expired(config.expired_backlog)
            .with_replicas(Arc::new(move |series| store.replicas(series)));
            let damage =
                Damage { dir: log_dir(&config.data_dir, name), delivered: Arc::clone(&delivered) };
            let (closing, give_up) = (Arc::clone(&closing), give_up.clone());
            let (view, fatal) = (Arc::clone(&view), surroundings.fatal.clone());
            let definitions = surroundings.definitions.clone();
            spawn(format!("{name}-reader"), move || {
                if kind == Kind::Metrics {
                    definitions
                        .wait_ready(|| give_up.is_cancelled() || closing.load(Ordering::Relaxed));
                }
                if let Err(error) =
                    read_log(log_reader, &damage, &view, &gathers, &closing, &give_up, started)
                {
                    drop(fatal.try_send(error.context("read log")));
                }
            })?
        };

        let (answers, answered) = crossbeam_channel::unbounded();
        let writers = Writers::start(
            name,
            pipeline.writers,
            &surroundings.store,
            &surroundings.runtime,
            &answers,
            &give_up,
        )
        .context("start writer threads")?;
        let deliver_config = DeliverConfig {
            in_flight_max: pipeline.writers.saturating_mul(pipeline.in_flight_per_writer),
            needs_flush: surroundings.store.needs_flush(),
            seed: wal.status().incarnation.get(),
            ..DeliverConfig::default()
        };
        let stage = DeliverStage {
            delivery: Delivery::new(
                deliver_config,
                wal.clone(),
                surroundings.dead_letters.clone(),
                memory,
            )
            .with_aside(aside, delivered)
            .with_batch_limit(batch_limit)
            .with_pace(surroundings.pace.clone()),
            turn: match kind {
                Kind::Alarms => Turn::First(surroundings.precedence.claim()),
                Kind::Metrics => Turn::AfterOthers(surroundings.precedence.clone()),
            },
            wal,
            writers,
            answered,
            gathers: incoming,
            beginning: 0,
            store: Arc::clone(&surroundings.store),
            runtime: surroundings.runtime.clone(),
            view: Arc::clone(&view),
            give_up: give_up.clone(),
            started,
            rows_held_max: pipeline.gather_rows_max,
        };
        let deliver = {
            let fatal = surroundings.fatal.clone();
            spawn(format!("{name}-deliver"), move || {
                if let Err(error) = stage.run() {
                    drop(fatal.try_send(error.context("deliver")));
                }
            })?
        };
        Ok(Self {
            view,
            started,
            stop_ingest,
            closing,
            give_up,
            ingest,
            reader,
            deliver,
            ledger,
            committer,
        })
    }

    /// What the HTTP side reads.
    #[must_use]
    pub fn view(&self) -> Arc<PipelineView> {
        Arc::clone(&self.view)
    }

    /// First half of stopping: consumption ends, everything taken is durable and committed, the group is left.
    pub fn stop_ingest(&self) {
        self.stop_ingest.store(true, Ordering::Relaxed);
    }

    /// Second half: delivers what is in the log for as long as `keep_draining` says, then closes the log.
    ///
    /// # Errors
    /// The log could not be closed properly; what it promised holds all the same.
    pub fn finish(self, keep_draining: impl Fn() -> bool) -> anyhow::Result<PipelineEnd> {
        let ended = self.ingest.join().unwrap_or(None);
        self.closing.store(true, Ordering::Relaxed);
        while !self.deliver.is_finished() && keep_draining() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.give_up.cancel();
        for thread in [self.reader, self.deliver] {
            if thread.join().is_err() {
                tracing::error!(code = "PANIC", "a thread of the pipeline panicked");
            }
        }
        self.ledger.stop();
        self.committer.stop();
        let wal = self.view.wal.clone();
        let closed = wal.close(self.view.redelivery.hold_back_clock(self.started.elapsed()));
        let committed = ended
            .map(|end| end.partitions)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(partition, progress): (i32, PartitionProgress)| {
                Some((partition, progress.committed?))
            })
            .collect();
        let end = PipelineEnd {
            name: self.view.name,
            kind: self.view.kind,
            rows_written: self.view.deliver().counts.rows_written,
            kept_records: wal.status().backlog_records,
            committed,
        };
        closed.context("close log")?;
        Ok(end)
    }
}

/// Where a pipeline's log lies.
pub(crate) fn log_dir(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("wal").join(name)
}

/// Opens the log of a pipeline, and says what it found.
pub(crate) fn open_log(
    spec: &PipelineSpec<'_>,
    config: &Config,
    started: Instant,
) -> anyhow::Result<Wal<DiskFs>> {
    let name = spec.name;
    let dir = log_dir(&config.data_dir, name);
    let wal_config = log_config(spec, config);
    let fs = DiskFs::open(&dir).with_context(|| format!("open log directory {}", dir.display()))?;
    let (wal, report) = Wal::open(fs, wal_config, Box::<OffsetCarry>::default(), started.elapsed())
        .with_context(|| format!("open log {}", dir.display()))?;
    tracing::info!(pipeline = name, dir = %dir.display(), report = ?report, "log opened");
    for gap in &report.gaps {
        tracing::error!(
            code = "WAL_CORRUPT",
            pipeline = name,
            from = gap.range.start.get(),
            to = gap.range.end.get(),
            recovery_row = ?gap.row,
            "acknowledged records are damaged"
        );
    }
    Ok(wal)
}

/// How the log of a pipeline is set up.
#[must_use]
pub fn log_config(spec: &PipelineSpec<'_>, config: &Config) -> WalConfig {
    const MIB: u64 = 1 << 20;
    let PipelineSpec { kind, log_bytes_max: max_bytes, .. } = *spec;
    let segment_bytes = match kind {
        Kind::Metrics => 64 * MIB,
        Kind::Alarms => 4 * MIB,
    };
    WalConfig {
        segment_bytes,
        max_bytes,
        hold_back: config.wal.hold_back,
        min_free_bytes: config.wal.min_free_bytes.as_u64(),
        #[cfg(feature = "mutants")]
        mutant: crate::mutants::of_the_log(),
        ..log_limits(max_bytes)
    }
}

/// Limits on records and queue that fit a log of `max_bytes`.
pub(crate) fn log_limits(max_bytes: u64) -> WalConfig {
    let record_max =
        RECORD_BYTES_MAX.min(usize::try_from(max_bytes / 2).unwrap_or(RECORD_BYTES_MAX));
    let defaults = WalConfig::default();
    WalConfig {
        max_record_bytes: record_max,
        queue_bytes_max: defaults.queue_bytes_max.max(record_max),
        ..defaults
    }
}

fn bytes(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.clone())
        .spawn(body)
        .with_context(|| format!("start thread {name}"))
}

/// Body of the reader thread: ends when closing and everything durable was passed on, or when told to give up.
fn read_log(
    mut log_reader: LogReader<DiskFs>,
    damage: &Damage,
    view: &PipelineView,
    gathers: &Sender<Reading>,
    closing: &AtomicBool,
    give_up: &CancellationToken,
    started: Instant,
) -> anyhow::Result<()> {
    let mut held = false;
    let mut beginning = 0_u64;
    while !give_up.is_cancelled() {
        if view.redelivery.is_released() {
            let records =
                log_reader.start_over(view.redelivery.hold_back_clock(started.elapsed()))?;
            beginning = beginning.saturating_add(1);
            tracing::info!(pipeline = view.name, records, "delivered again from the log");
            view.redelivery.begun(records);
        }
        if log_reader.come_back_if_wanted() {
            beginning = beginning.saturating_add(1);
            tracing::info!(
                pipeline = view.name,
                "replicas that were away answer again: what was set aside for them is delivered"
            );
        }
        // Read before pulling: what was appended before closing is durable by then.
        let hurry = closing.load(Ordering::Relaxed);
        if view.held().delivery {
            if hurry {
                return Ok(());
            }
            std::thread::sleep(HELD_LOOK);
            continue;
        }
        let gathered = log_reader.pull(hurry, started.elapsed(), wall_ms())?;
        let gaps = log_reader.take_gaps();
        for gap in &gaps {
            tracing::error!(
                code = "WAL_CORRUPT",
                pipeline = view.name,
                ?gap,
                "records of the log are lost"
            );
        }
        if !gaps.is_empty() {
            lock(&view.deliver).gaps.extend(gaps);
        }
        if let (None, Some(positions)) = (&gathered, log_reader.missing()) {
            if damage.owe(view, &positions)? {
                log_reader.owed();
            } else {
                // The log has no room to note what it owes; nothing behind is read before that is noted.
                std::thread::sleep(Duration::from_millis(500));
            }
            continue;
        }
        if log_reader.is_held() != held {
            held = log_reader.is_held();
            say_held(view, held);
        }
        let Some(gathered) = gathered else {
            if hurry {
                return Ok(());
            }
            if held {
                std::thread::sleep(Duration::from_millis(500));
                continue;
            }
            let wait = log_reader.due().map_or(Duration::from_millis(200), |due| {
                due.saturating_sub(started.elapsed())
                    .clamp(Duration::from_millis(1), Duration::from_millis(200))
            });
            if log_reader.due().is_some() {
                std::thread::sleep(wait.min(LOOK_INTERVAL));
            }
            view.wal.wait_durable(log_reader.next(), wait.saturating_sub(LOOK_INTERVAL));
            continue;
        };
        let mut reading = Reading { beginning, gathered: Box::new(gathered) };
        loop {
            match gathers.send_timeout(reading, Duration::from_millis(100)) {
                Ok(()) => break,
                Err(crossbeam_channel::SendTimeoutError::Timeout(back))
                    if !give_up.is_cancelled() =>
                {
                    reading = back
                }
                Err(_) => return Ok(()),
            }
        }
    }
    Ok(())
}

fn say_held(view: &PipelineView, held: bool) {
    let pipeline = view.name;
    lock(&view.deliver).expired_held = held;
    if held {
        tracing::error!(
            code = "EXPIRED_HELD",
            pipeline,
            "what waits in the log is older than the retention by this machine's clock: delivery waits until the clock \
             is right. If it is, and these rows are to be dropped: expired_backlog: drop"
        );
    } else {
        tracing::info!(pipeline, "what waits in the log is not too old any more: delivery goes on");
    }
}

/// What is done about positions of the log that cannot be read.
struct Damage {
    dir: PathBuf,
    delivered: Arc<Mutex<DeliveredOffsets>>,
}

impl Damage {
    /// Notes durably which Kafka offsets cover positions that are missing, so that they are fetched again. False: no room.
    fn owe(&self, view: &PipelineView, positions: &Range<Position>) -> anyhow::Result<bool> {
        let dir = self.dir.display();
        let fs = DiskFs::open_existing(&self.dir).with_context(|| format!("open {dir}"))?;
        let known = LogOffsets::decode(&view.wal.carry()).context("read offsets of the log")?.next;
        let (told, holds_moved) = {
            let mut delivered = lock(&self.delivered);
            (delivered.tell().clone(), delivered.holds_moved())
        };
        let owed = offset_trail::cover(&fs, positions, &known, &told, holds_moved)
            .with_context(|| format!("look for what is missing in {dir}"))?;
        for range in &owed {
            tracing::error!(
                code = "WAL_CORRUPT",
                pipeline = view.name,
                partition = range.partition,
                from = range.from,
                to = range.to,
                "these offsets cover what the log lost: fetched again from Kafka"
            );
        }
        match keeper::owe(&view.wal, owed) {
            Ok(()) => Ok(true),
            Err(WalError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// A gather, and how often the reader has begun anew before it.
struct Reading {
    beginning: u64,
    gathered: Box<Gathered>,
}

/// Whose requests go first.
enum Turn {
    First(Claim),
    AfterOthers(Precedence),
}

/// The thread between the log and the writers.
struct DeliverStage {
    delivery: Delivery<DiskFs>,
    turn: Turn,
    wal: Wal<DiskFs>,
    writers: Writers,
    answered: Receiver<Answer>,
    gathers: Receiver<Reading>,
    /// Gathers of an earlier beginning are taken for unread.
    beginning: u64,
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Handle,
    view: Arc<PipelineView>,
    give_up: CancellationToken,
    started: Instant,
    rows_held_max: usize,
}

impl DeliverStage {
    /// Ends when the reader is done and everything is delivered, or when told to give up.
    fn run(mut self) -> anyhow::Result<()> {
        let mut last_checkpoint = Duration::ZERO;
        let mut more_to_come = true;
        let mut said_blocked = None;
        let mut publish_at = Duration::ZERO;
        let mut told = ToldOfStore::default();
        let mut writer_counts = self.view.deliver().writers;
        while (more_to_come || !self.delivery.is_idle()) && !self.give_up.is_cancelled() {
            let now = self.started.elapsed();
            if self.view.redelivery.is_wanted() {
                self.delivery.start_over(now)?;
                self.beginning = self.beginning.saturating_add(1);
                self.view.redelivery.stopped();
            }
            if self.delivery.take_come_back() {
                self.delivery.come_back(now)?;
                self.beginning = self.beginning.saturating_add(1);
            }
            match &mut self.turn {
                Turn::First(claim) => claim.set(self.delivery.machine().is_sending()),
                Turn::AfterOthers(precedence) => {
                    self.delivery.give_way(precedence.is_claimed());
                }
            }
            // A store that flushes works here; the next answers wait meanwhile, and so does the log.
            if self.delivery.take_flush() {
                let flushed = self.runtime.block_on(self.store.flush());
                if let Err(error) = &flushed {
                    tracing::warn!(
                        code = error.code,
                        detail = error.detail,
                        "flush the store; tried again"
                    );
                }
                self.delivery.flushed(flushed.is_ok(), self.started.elapsed())?;
            }
            for (unit, rows) in self.delivery.take_requests() {
                self.writers.send(unit, rows);
            }
            self.tell_of_store(&mut told, now);
            if now.saturating_sub(last_checkpoint) >= CHECKPOINT_INTERVAL {
                last_checkpoint = now;
                self.wal
                    .checkpoint(self.view.redelivery.hold_back_clock(now))
                    .context("checkpoint log")?;
                self.clear_the_way(&mut told, now)?;
            }
            if self.delivery.is_idle() || now >= publish_at {
                publish_at = now.saturating_add(PUBLISH_INTERVAL);
                self.publish(&writer_counts);
            }

            // Dead letters without room hold up what follows them, as a full log does: it waits in the main log.
            let blocked = self.delivery.dead_letters_blocked();
            if blocked != said_blocked {
                said_blocked = blocked;
                self.say_blocked(blocked);
            }
            let room = more_to_come
                && blocked.is_none()
                && self.delivery.machine().outstanding_rows() < self.rows_held_max
                && self.delivery.held_bytes() < HELD_BYTES_MAX;
            let wait = self
                .delivery
                .machine()
                .next_deadline()
                .map_or(Duration::from_millis(100), |due| {
                    due.saturating_sub(self.started.elapsed())
                })
                .min(Duration::from_millis(100));
            match self.wait(room, wait) {
                Woken::Answer(answer) => {
                    self.answer(answer, &mut writer_counts)?;
                    // What else is there, without waiting.
                    while let Ok(answer) = self.answered.try_recv() {
                        self.answer(answer, &mut writer_counts)?;
                    }
                }
                Woken::Gather(Reading { beginning, gathered }) => {
                    if beginning == self.beginning {
                        self.delivery.gathered(*gathered, self.started.elapsed())?;
                    }
                }
                Woken::ReaderDone => more_to_come = false,
                Woken::Time => self.delivery.tick(self.started.elapsed())?,
            }
        }
        self.publish(&writer_counts);
        self.writers.stop();
        Ok(())
    }

    /// Records that cannot be delivered for long must keep neither the memory of others nor the space of all after them.
    fn clear_the_way(&mut self, told: &mut ToldOfStore, now: Duration) -> anyhow::Result<()> {
        let pipeline = self.view.name;
        let most = Held { rows: self.rows_held_max, bytes: HELD_BYTES_MAX };
        let cleared = self.delivery.clear_the_way(most, now).context("move stuck records")?;
        told.rows_set_aside = told.rows_set_aside.saturating_add(cleared.rows_set_aside);
        if cleared.rows_set_aside > 0 && told.said.is_due("STORE_PARTLY_AWAY", "aside", now) {
            tracing::warn!(
                code = "STORE_PARTLY_AWAY",
                pipeline,
                rows = std::mem::take(&mut told.rows_set_aside),
                "replicas have been away for long, and their rows fill the memory: put behind all others in the log"
            );
        }
        if cleared.records_moved > 0 {
            let records = cleared.records_moved;
            tracing::info!(pipeline, records, "moved stuck records to the head of the log");
        }
        Ok(())
    }

    fn answer(&mut self, answer: Answer, counts: &mut [WriterCounts]) -> anyhow::Result<()> {
        self.writers.answered(&answer);
        if let (Ok(()), Some(count)) = (&answer.outcome, counts.get_mut(answer.writer)) {
            count.rows = count.rows.saturating_add(u64::try_from(answer.rows).unwrap_or(u64::MAX));
            count.requests = count.requests.saturating_add(1);
        }
        self.delivery.done(answer.unit, answer.outcome, self.started.elapsed())?;
        Ok(())
    }

    fn wait(&self, room: bool, wait: Duration) -> Woken {
        if room {
            crossbeam_channel::select! {
                recv(self.answered) -> answer => answer.map_or(Woken::Time, Woken::Answer),
                recv(self.gathers) -> gathered => gathered.map_or(Woken::ReaderDone, Woken::Gather),
                default(wait) => Woken::Time,
            }
        } else {
            match self.answered.recv_timeout(wait) {
                Ok(answer) => Woken::Answer(answer),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Woken::Time,
            }
        }
    }

    /// Says that the store takes no rows, that it takes them again, and that some of them fail always. A store that
    /// comes and goes is told of once a minute.
    fn tell_of_store(&mut self, told: &mut ToldOfStore, now: Duration) {
        let machine = self.delivery.machine();
        let pipeline = self.view.name;
        let is_open = machine.breaker() != BreakerState::Closed;
        if !is_open && told.open.take().is_some() {
            tracing::info!(pipeline, "store takes rows again");
        }
        if let (true, Some(error)) = (is_open, machine.last_error())
            && told.open != Some(error.code)
            && told.said.is_due(error.code, "open", now)
        {
            told.open = Some(error.code);
            tracing::warn!(
                code = error.code,
                pipeline,
                detail = error.detail,
                "store does not take rows: they stay in the log until it does"
            );
        }
        let stuck = machine.stuck();
        if let (false, Some((requests, error))) = (is_open, stuck)
            && told.stuck != Some(error.code)
            && told.said.is_due(error.code, "stuck", now)
        {
            told.stuck = Some(error.code);
            tracing::warn!(
                code = error.code,
                pipeline,
                requests,
                detail = error.detail,
                "store takes rows, but always fails on some: these stay in the log and are tried again"
            );
        }
        if stuck.is_none() {
            told.stuck = None;
        }
    }

    fn say_blocked(&self, blocked: Option<LettersBlocked>) {
        let pipeline = self.view.name;
        match blocked {
            Some(LettersBlocked::Full) => tracing::error!(
                code = "DEAD_LETTERS_FULL",
                pipeline,
                "dead letters have no room: delivery waits, and nothing is skipped. Have some tried again or drop some \
                 (`dead-letters retry`, `dead-letters drop`), make room on the disk, or raise wal.dead_letters_bytes_max \
                 and start again"
            ),
            Some(LettersBlocked::Old) => tracing::error!(
                code = "DEAD_LETTERS_OLD",
                pipeline,
                "the oldest dead letter is older than dead_letters.age_max: delivery waits, and nothing is skipped. Have \
                 it tried again or drop it (`dead-letters retry`, `dead-letters drop`)"
            ),
            None => tracing::info!(pipeline, "dead letters are kept again: delivery goes on"),
        }
    }

    fn publish(&self, writer_counts: &[WriterCounts]) {
        let machine = self.delivery.machine();
        let mut snapshot = lock(&self.view.deliver);
        snapshot.counts = machine.counts();
        snapshot.gathered = self.delivery.gathered_counts();
        snapshot.dead_lettered.clone_from(self.delivery.dead_lettered());
        snapshot.dead_letters_blocked = self.delivery.dead_letters_blocked();
        snapshot.breaker = Some(machine.breaker());
        snapshot.last_error =
            machine.last_error().map(|error| (error.code.to_owned(), error.detail.clone()));
        snapshot.stuck = machine
            .stuck()
            .map(|(requests, error)| (requests, error.code.to_owned(), error.detail.clone()));
        snapshot.in_flight = machine.in_flight();
        snapshot.in_flight_limit = machine.in_flight_limit();
        snapshot.outstanding_rows = machine.outstanding_rows();
        snapshot.writers.clear();
        snapshot.writers.extend_from_slice(writer_counts);
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.view.deliver_heartbeat_ms.store(now_ms, Ordering::Relaxed);
    }
}

/// What the log says of the store.
#[derive(Debug, Default)]
struct ToldOfStore {
    said: Said,
    /// That it takes no rows, and why.
    open: Option<&'static str>,
    /// That it fails on some.
    stuck: Option<&'static str>,
    /// Rows set aside that were not told of.
    rows_set_aside: u64,
}

/// What ended a wait of the deliver thread.
enum Woken {
    Answer(Answer),
    Gather(Reading),
    ReaderDone,
    Time,
}
