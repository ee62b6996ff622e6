//! Delivers the last hold-back again when a node of the store restarted or is away: it may have lost what it confirmed.
//!
//! A thread asks the nodes which lives they are in ([`crate::lives`]). After a loss, in this order: every pipeline stops to
//! acknowledge, and forgets what is under way; the definitions that were confirmed since the nodes were last seen, less
//! the hold-back, are forgotten; every pipeline takes the acks of the hold-back back, durably, and reads on from there;
//! and only then the lives are written down for the next start. A crash in between finds the same loss again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use storage::{NodeLife, Store};
use tokio_util::sync::CancellationToken;

use crate::clock::wall_ms;
use crate::config::Config;
use crate::definitions::Definitions;
use crate::lives::{Lives, Loss, unknown};
use crate::sync::lock;
use crate::whole_file;

/// How often the nodes are asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// A round takes no longer.
const ASK_WAIT: Duration = Duration::from_secs(4);
/// A thread that waits looks so often.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// A stop waits no longer for a redelivery that has begun.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Nothing is to be done.
const IDLE: u8 = 0;
/// The deliver thread is to stop acknowledging.
const WANTED: u8 = 1;
/// It has.
const STOPPED: u8 = 2;
/// The reader is to take the acks back.
const RELEASED: u8 = 3;

/// What was delivered again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct RedeliveryCounts {
    /// How often.
    pub times: u64,
    /// Records of the log that were.
    pub records: u64,
}

/// What one pipeline's threads and ours tell each other.
#[derive(Debug, Default)]
pub struct Redelivery {
    stage: AtomicU8,
    times: AtomicU64,
    records: AtomicU64,
    /// `None`: nobody watches, and nothing need be.
    watched_until: Mutex<Option<Duration>>,
}

impl Redelivery {
    /// The clock of the log's hold-back: it stands still while nobody knows whether the store keeps what it confirmed.
    /// `now` is monotonic time since the process started.
    #[must_use]
    pub fn hold_back_clock(&self, now: Duration) -> Duration {
        lock(&self.watched_until).map_or(now, |watched| watched.min(now))
    }

    fn watched(&self, until: Duration) {
        *lock(&self.watched_until) = Some(until);
    }

    fn want(&self) {
        self.stage.store(WANTED, Ordering::Release);
    }

    fn release(&self) {
        self.stage.store(RELEASED, Ordering::Release);
    }

    fn is_at(&self, stage: u8) -> bool {
        self.stage.load(Ordering::Acquire) == stage
    }

    /// Whether the deliver thread is to forget what is under way; then it says [`Redelivery::stopped`].
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.is_at(WANTED)
    }

    /// Nothing that was gathered so far will be acknowledged.
    pub fn stopped(&self) {
        self.stage.store(STOPPED, Ordering::Release);
    }

    /// Whether the reader is to begin anew; then it says [`Redelivery::begun`].
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.is_at(RELEASED)
    }

    /// So many records are not delivered any more, durably.
    pub fn begun(&self, records: u64) {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records, Ordering::Relaxed);
        self.stage.store(IDLE, Ordering::Release);
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> RedeliveryCounts {
        RedeliveryCounts {
            times: self.times.load(Ordering::Relaxed),
            records: self.records.load(Ordering::Relaxed),
        }
    }
}

/// The running thread.
pub struct RedeliveryThread {
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

struct Watch {
    store: Arc<dyn Store>,
    definitions: Definitions,
    pipelines: Vec<Arc<Redelivery>>,
    runtime: tokio::runtime::Handle,
    path: PathBuf,
    hold_back: Duration,
    /// Zero of monotonic time, and what the wall clock said then.
    started: Instant,
    started_ms: i64,
    stop: CancellationToken,
}

impl RedeliveryThread {
    /// Starts it. `started` is zero of the pipelines' monotonic time.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn spawn(
        config: &Config,
        store: &Arc<dyn Store>,
        definitions: &Definitions,
        pipelines: Vec<Arc<Redelivery>>,
        runtime: &tokio::runtime::Handle,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        pipelines.iter().for_each(|pipeline| pipeline.watched(started.elapsed()));
        let up_ms = i64::try_from(started.elapsed().as_millis()).unwrap_or(i64::MAX);
        let watch = Watch {
            store: Arc::clone(store),
            definitions: definitions.clone(),
            pipelines,
            runtime: runtime.clone(),
            path: config.data_dir.join("store-lives.json"),
            hold_back: config.wal.hold_back,
            started,
            started_ms: wall_ms().saturating_sub(up_ms),
            stop: stop.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("store-lives".to_owned())
            .spawn(move || watch.run())
            .context("start thread store-lives")?;
        Ok(Self { stop, thread })
    }

    /// Ends it. A redelivery that has begun is finished first; call it while the pipelines still run.
    pub fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!(code = "PANIC", "the thread that watches the store's nodes panicked");
        }
    }
}

impl Watch {
    fn run(&self) {
        let before = self.read();
        let mut lives = Lives::new(before.clone().unwrap_or_default(), self.hold_back, self.now());
        // Until the nodes are known the next start must know that they are not: this process may confirm rows and end.
        let mut written = before.unwrap_or_else(|| {
            self.keep(&unknown());
            unknown()
        });
        loop {
            let asked = self.now();
            let Some(answers) = self.ask() else { return };
            if let Some(loss) = lives.on(&answers, asked, self.now())
                && !self.deliver_again(&loss)
            {
                return;
            }
            if let Some(until) = lives.watched_until(asked) {
                self.pipelines.iter().for_each(|pipeline| pipeline.watched(until));
            }
            if let Some(present) = lives.present()
                && !present.is_empty()
                && present != written
                && self.keep(&present)
            {
                written = present;
            }
            let stopped = self.runtime.block_on(async {
                tokio::time::timeout(ASK_INTERVAL, self.stop.cancelled()).await.is_ok()
            });
            if stopped {
                return;
            }
        }
    }

    /// `None`: it is to stop.
    fn ask(&self) -> Option<Vec<NodeLife>> {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => None,
                answers = tokio::time::timeout(ASK_WAIT, self.store.lives()) => {
                    Some(answers.unwrap_or_default())
                }
            }
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// False: it could not be finished, the program is stopping; the next start finds the same loss.
    fn deliver_again(&self, loss: &Loss) -> bool {
        let Loss { restarted, away, seen } = loss;
        tracing::warn!(
            code = "DB_NODE_LOST_ROWS",
            ?restarted,
            ?away,
            hold_back = ?self.hold_back,
            "nodes of the store restarted or do not answer: they may have lost what they confirmed last; what was \
             delivered within the hold-back goes out again"
        );
        self.pipelines.iter().for_each(|pipeline| pipeline.want());
        if !self.wait_for(STOPPED) {
            return false;
        }
        self.forget_definitions(*seen);
        self.pipelines.iter().for_each(|pipeline| pipeline.release());
        self.wait_for(IDLE)
    }

    fn forget_definitions(&self, seen: Option<Duration>) {
        let Some(seen) = seen else {
            // What an earlier process kept of definitions was older than the hold-back when it still watched the nodes.
            lock(&self.definitions.memory()).forget_since(self.started_ms);
            return;
        };
        let ago = self.now().saturating_sub(seen).saturating_add(self.hold_back);
        let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        if let Err(error) = self.definitions.forget_since(wall_ms().saturating_sub(ago_ms)) {
            tracing::error!(
                code = "DEFINITIONS_NOT_FORGOTTEN",
                %error,
                "which definitions the store may have lost could not be written down: remove the directory `definitions` \
                 before the next start, or some series may lack their description for up to store.definition_refresh"
            );
        }
    }

    /// Waits until every pipeline is at `stage`.
    fn wait_for(&self, stage: u8) -> bool {
        let mut stopping: Option<Instant> = None;
        while !self.pipelines.iter().all(|pipeline| pipeline.is_at(stage)) {
            if self.stop.is_cancelled()
                && stopping.get_or_insert_with(Instant::now).elapsed() > STOP_WAIT
            {
                return false;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        true
    }

    /// The lives that were dealt with before the start; `None`: this is the first one.
    fn read(&self) -> Option<BTreeMap<String, i64>> {
        let path = &self.path;
        let not_known = |error: &dyn std::fmt::Display| {
            tracing::warn!(
                code = "STORE_LIVES_NOT_KEPT",
                %error,
                path = %path.display(),
                "which nodes the store had cannot be read: what was delivered last goes out again"
            );
            unknown()
        };
        match std::fs::read(path) {
            Ok(bytes) => {
                Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| not_known(&error)))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(not_known(&error)),
        }
    }

    /// False: it could not be written.
    fn keep(&self, lives: &BTreeMap<String, i64>) -> bool {
        let written = self.write(lives);
        if let Err(error) = &written {
            tracing::warn!(
                code = "STORE_LIVES_NOT_KEPT",
                error = format!("{error:#}"),
                "which nodes the store has is not kept: after a restart of this program what they lost \
                 meanwhile may not be noticed; tried again"
            );
        }
        written.is_ok()
    }

    fn write(&self, lives: &BTreeMap<String, i64>) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(lives).context("encode lives")?;
        whole_file::write(&self.path, &text)
            .with_context(|| format!("write {}", self.path.display()))
    }
}
