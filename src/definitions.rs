//! Which series the store has the description of: one memory for all pipelines, kept across restarts.
//!
//! A thread asks the store what it is, loads what the last process left about that very store, and from then on keeps
//! what is settled. The reasons for what may be kept when are in [`storage::definitions`]. Nothing here can stop the
//! program or lose a row: without the cache definitions are written again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use storage::Store;
use storage::definitions::{
    CacheError, DefinitionCache, DefinitionCounts, DefinitionMemory, Opened,
};

use crate::clock::wall_ms;
use crate::config::Config;
use crate::sync::lock;

/// How often what is settled is kept, and the store asked whether it is still the same.
const TURN_INTERVAL: Duration = Duration::from_secs(10);
/// How often a store that does not say what it is is asked again.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// The same when nobody waits any more.
const ASK_LATER_INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const ASK_WAIT: Duration = Duration::from_secs(2);
/// Delivery waits so long at the start for what was remembered; then it writes definitions again.
const READY_WAIT: Duration = Duration::from_secs(5);
/// Entries kept at a time.
const SETTLED_MOST: usize = 100_000;
/// A thread that waits looks so often whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Directory of the cache below the data directory.
#[must_use]
pub fn cache_dir(config: &Config) -> PathBuf {
    config.data_dir.join("definitions")
}

/// What is known of definitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct DefinitionStatus {
    /// Series remembered as written.
    pub remembered: usize,
    /// Bytes of memory that takes.
    pub memory_bytes: usize,
    /// Definitions that the store confirmed since the start.
    pub written: u64,
    /// Definitions remembered from before the start.
    pub loaded: u64,
    /// Definitions forgotten because the memory was full.
    pub forgotten: u64,
    /// Entries kept for the next start, superseded ones included.
    pub kept: usize,
}

/// The cache, as far as there is one.
enum Kept {
    /// The store has not said yet what it is.
    Unopened,
    Open(DefinitionCache),
    /// It could not be used.
    Off,
}

struct Inner {
    dir: PathBuf,
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Handle,
    memory: Arc<Mutex<DefinitionMemory>>,
    /// Held while anything goes from the memory to the disk or back.
    kept: Mutex<Kept>,
    /// Entries in it; nobody who only asks waits for a disk.
    kept_entries: AtomicUsize,
    /// Of the store, when it was last asked.
    identity: Mutex<Option<String>>,
    refresh: Duration,
    hold_back: Duration,
    entries_max: usize,
    started: Instant,
    ready: AtomicBool,
    stop: AtomicBool,
}

/// The memory and what keeps it. Clones are the same one.
#[derive(Clone)]
pub struct Definitions(Arc<Inner>);

/// The thread that keeps the memory.
pub struct DefinitionThread {
    definitions: Definitions,
    thread: JoinHandle<()>,
}

impl Definitions {
    /// An empty memory for `store`. `started` is the zero of monotonic time.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        runtime: tokio::runtime::Handle,
        started: Instant,
    ) -> Self {
        let (capacity, refresh) = (config.store.definitions_max, config.store.definition_refresh);
        Self(Arc::new(Inner {
            dir: cache_dir(config),
            // A flush of an embedded store leaves nothing to wait for.
            hold_back: if store.needs_flush() { Duration::ZERO } else { config.wal.hold_back },
            store,
            runtime,
            memory: Arc::new(Mutex::new(DefinitionMemory::new(capacity, refresh))),
            kept: Mutex::new(Kept::Unopened),
            kept_entries: AtomicUsize::new(0),
            identity: Mutex::new(None),
            refresh,
            // With room for what is superseded within one refresh.
            entries_max: capacity.saturating_mul(2),
            started,
            ready: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }))
    }

    /// Starts the thread that keeps the memory.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn spawn(&self) -> anyhow::Result<DefinitionThread> {
        let definitions = self.clone();
        let thread = std::thread::Builder::new()
            .name("definitions".to_owned())
            .spawn(move || definitions.run())
            .context("start thread definitions")?;
        Ok(DefinitionThread { definitions: self.clone(), thread })
    }

    /// The memory itself.
    #[must_use]
    pub fn memory(&self) -> Arc<Mutex<DefinitionMemory>> {
        Arc::clone(&self.0.memory)
    }

    /// Waits for what was remembered before the start, a few seconds at most, and not while `give_up` says so.
    pub fn wait_ready(&self, give_up: impl Fn() -> bool) {
        let begun = Instant::now();
        while !self.0.ready.load(Ordering::Acquire) && begun.elapsed() < READY_WAIT && !give_up() {
            std::thread::sleep(STOP_INTERVAL);
        }
    }

    /// Forgets what the store confirmed at or after `since_ms`, because it may have lost that: on disk first, durably,
    /// then in memory. Call it before anything counts as delivered again.
    ///
    /// # Errors
    /// The disk keeps what it has: after a restart some series might not be described for up to one refresh.
    pub fn forget_since(&self, since_ms: i64) -> Result<(), CacheError> {
        let mut kept = lock(&self.0.kept);
        match std::mem::replace(&mut *kept, Kept::Off) {
            Kept::Open(mut cache) => match cache.forget_since(since_ms) {
                Ok(()) => *kept = Kept::Open(cache),
                Err(error) => {
                    self.say_off(&error);
                    cache.discard()?;
                }
            },
            other => {
                *kept = other;
                DefinitionCache::forget_unopened(&self.0.dir)?;
            }
        }
        self.count(&kept);
        lock(&self.0.memory).forget_since(since_ms);
        Ok(())
    }

    /// What is known of it.
    #[must_use]
    pub fn status(&self) -> DefinitionStatus {
        let memory = lock(&self.0.memory);
        let DefinitionCounts { written, loaded, forgotten } = memory.counts();
        DefinitionStatus {
            remembered: memory.len(),
            memory_bytes: memory.bytes(),
            written,
            loaded,
            forgotten,
            kept: self.0.kept_entries.load(Ordering::Relaxed),
        }
    }

    fn run(&self) {
        loop {
            let stopping = self.0.stop.load(Ordering::Acquire);
            self.turn();
            if stopping {
                return;
            }
            let interval = if self.0.ready.load(Ordering::Acquire) {
                TURN_INTERVAL
            } else if self.0.started.elapsed() < READY_WAIT {
                ASK_INTERVAL
            } else {
                ASK_LATER_INTERVAL
            };
            let begun = Instant::now();
            while begun.elapsed() < interval && !self.0.stop.load(Ordering::Acquire) {
                std::thread::sleep(STOP_INTERVAL);
            }
        }
    }

    /// What the thread does each time: asks the store what it is, loads what belongs to it, and keeps what is settled.
    pub fn turn(&self) {
        let asked = self.0.store.identity();
        let answer = self.0.runtime.block_on(async { tokio::time::timeout(ASK_WAIT, asked).await });
        // Without an answer nothing is known of what was settled in which tables: later.
        let Ok(Ok(identity)) = answer else { return };
        let mut known = lock(&self.0.identity);
        if known.as_ref() != Some(&identity) {
            if known.is_some() {
                tracing::warn!(
                    code = "DEFINITIONS_STORE_CHANGED",
                    "the store has other tables than before: every series is described anew"
                );
                lock(&self.0.memory).forget_all();
            }
            self.open(&identity);
            *known = Some(identity);
            self.0.ready.store(true, Ordering::Release);
        }
        drop(known);
        self.keep();
        self.count(&lock(&self.0.kept));
    }

    fn count(&self, kept: &Kept) {
        let entries = match kept {
            Kept::Open(cache) => cache.len(),
            Kept::Unopened | Kept::Off => 0,
        };
        self.0.kept_entries.store(entries, Ordering::Relaxed);
    }

    fn open(&self, identity: &str) {
        let mut kept = lock(&self.0.kept);
        // The old one is closed before its directory is opened again.
        *kept = Kept::Off;
        let dir = &self.0.dir;
        let begun = Instant::now();
        match DefinitionCache::open(dir, identity) {
            Ok(Opened { cache, entries, foreign, set_aside }) => {
                if let Some(aside) = set_aside {
                    tracing::warn!(
                        code = "DEFINITIONS_SET_ASIDE",
                        why = aside.why,
                        path = %aside.path.display(),
                        "the memory of definitions could not be used: they are written again, nothing is lost. What was \
                         there is kept for a look, and may be removed"
                    );
                }
                if foreign {
                    tracing::warn!(
                        code = "DEFINITIONS_FOREIGN",
                        dir = %dir.display(),
                        "the memory of definitions was of another cluster or of tables that are gone: it is dropped, \
                         definitions are written again. Nothing to do if that was meant"
                    );
                }
                let definitions = entries.len();
                lock(&self.0.memory).load(entries);
                tracing::info!(
                    definitions,
                    took = ?begun.elapsed(),
                    "definitions remembered from before"
                );
                *kept = Kept::Open(cache);
            }
            Err(error) => self.say_off(&error),
        }
    }

    /// Keeps what is settled.
    fn keep(&self) {
        let mut kept = lock(&self.0.kept);
        loop {
            let now = self.0.started.elapsed();
            let settled = lock(&self.0.memory).take_settled(now, self.0.hold_back, SETTLED_MOST);
            let more = settled.len() == SETTLED_MOST;
            let Kept::Open(cache) = &mut *kept else { return };
            let refresh_s = i64::try_from(self.0.refresh.as_secs()).unwrap_or(i64::MAX);
            let due_s = wall_ms().div_euclid(1000).saturating_sub(refresh_s);
            if let Err(error) = cache.turn(&settled, due_s, self.0.entries_max) {
                self.say_off(&error);
                if let Kept::Open(cache) = std::mem::replace(&mut *kept, Kept::Off)
                    && let Err(error) = cache.discard()
                {
                    tracing::warn!(
                        code = "DEFINITIONS_NOT_KEPT",
                        %error,
                        dir = %self.0.dir.display(),
                        "set the memory of definitions aside; what it says is still true"
                    );
                }
            }
            if !more {
                return;
            }
        }
    }

    fn say_off(&self, error: &CacheError) {
        tracing::warn!(
            code = "DEFINITIONS_NOT_KEPT",
            %error,
            dir = %self.0.dir.display(),
            "definitions are not remembered across the next restart: they are written again then, nothing is lost. Look \
             at the directory and at the space on its disk; the next start tries again"
        );
    }
}

impl DefinitionThread {
    /// Keeps what is settled, once more, and ends. The store must still answer.
    pub fn stop(self) {
        self.definitions.0.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!(code = "PANIC", "the thread that keeps definitions panicked");
        }
    }
}
