//! The whole service: what is started, in which order, and how it stops.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;
use storage::Store;
use tokio_util::sync::CancellationToken;
use wal::{DiskFs, NoCarry, Wal, WalConfig};

use crate::clock::wall_ms;
use crate::config::{Config, Loaded, ShownConfig, ShutdownConfig, ShutdownMode, StoreKind};
use crate::control::Control;
use crate::dead_letters::{
    Clerk, ClerkParts, DeadLetters, LetterLimits, LetterOrders, RetryTarget,
};
use crate::definitions::{DefinitionThread, Definitions};
use crate::http;
use crate::inspect::{Inspect, LettersView, Phase};
use crate::instance;
use crate::kafka::letters::{LettersTopic, LettersTopicParts};
use crate::log_level::LogLevel;
use crate::pace::Pace;
use crate::pipeline::{self, Pipeline, PipelineEnd, PipelineView, Surroundings};
use crate::precedence::Precedence;
use crate::redelivery::RedeliveryThread;
use crate::store::{self, OpenStore};
use crate::sync::lock;

/// How the last run ended, in the data directory.
const LAST_SHUTDOWN: &str = "last_shutdown.json";

/// Ends a running service. Clones end the same one.
#[derive(Debug, Clone)]
pub struct StopHandle(Sender<()>);

impl StopHandle {
    /// The first call begins to stop, the second one skips the drain.
    pub fn stop(&self) {
        // A full channel means that both were said already.
        let _said = self.0.try_send(());
    }
}

/// The other end of a [`StopHandle`].
#[derive(Debug)]
pub struct StopSignal(Receiver<()>);

/// Asks for the configuration to be read again, and reads it.
pub struct Reload {
    /// Somebody wants it.
    pub wanted: Receiver<()>,
    /// Reads it.
    pub load: Box<dyn Fn() -> anyhow::Result<Loaded>>,
}

impl Reload {
    /// Nobody ever wants it.
    #[must_use]
    pub fn never() -> Self {
        Self {
            wanted: crossbeam_channel::never(),
            load: Box::new(|| anyhow::bail!("there is no file")),
        }
    }
}

/// A handle and the signal it gives.
#[must_use]
pub fn stop_channel() -> (StopHandle, StopSignal) {
    let (handle, signal) = crossbeam_channel::bounded(2);
    (StopHandle(handle), StopSignal(signal))
}

/// How the service ended; also written to `last_shutdown.json` in the data directory.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Summary {
    /// When it ended, milliseconds since the epoch.
    pub ended_ms: i64,
    /// Seconds it ran.
    pub uptime_s: u64,
    /// Whether everything stopped as it should.
    pub clean: bool,
    /// One entry per pipeline.
    pub pipelines: Vec<PipelineEnd>,
    /// Dead letters kept, repetitions included.
    pub dead_letters: u64,
}

impl Summary {
    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        use std::fmt::Write as _;
        let mut line = String::from("stopped:");
        for end in &self.pipelines {
            // Writing to a String does not fail.
            let _infallible = write!(
                line,
                " {}: {} rows delivered, {} records kept in the log;",
                end.name, end.rows_written, end.kept_records
            );
        }
        let _infallible = write!(line, " {} dead letters", self.dead_letters);
        line
    }
}

/// What is running, told once everything is.
#[derive(Debug, Clone)]
pub struct Running {
    /// Where HTTP answers.
    pub http: std::net::SocketAddr,
}

/// Runs until `stop` is given or something fails that only a restart repairs. `running` is called once. With `adopt` a
/// data directory of another instance becomes this one's.
///
/// # Errors
/// What could not be started, or what failed; [`crate::exit`] turns it into an exit code.
pub fn run(
    loaded: &Loaded,
    adopt: bool,
    log_level: LogLevel,
    stop: &StopSignal,
    reload: Reload,
    running: impl FnOnce(&Running),
) -> anyhow::Result<Summary> {
    let started = Instant::now();
    let config = &loaded.config;
    for warning in config.kafka.security.warnings() {
        tracing::warn!(code = "KAFKA_INSECURE", "{warning}");
    }
    if config.store.kind == StoreKind::Cassandra {
        for warning in config.store.cassandra.warnings() {
            tracing::warn!(code = "DB_INSECURE", "{warning}");
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("async")
        .enable_all()
        .build()
        .context("start async runtime")?;
    // Dropped only after a clean stop: threads that still wait on it when the service fails must not panic before the
    // process has ended with its exit code.
    let runtime = std::mem::ManuallyDrop::new(runtime);
    let guard = http::Guard::new(&config.http)?;
    let bound = runtime.block_on(http::Bound::to(&config.http))?;
    let address = bound.address;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("create data_dir {}", config.data_dir.display()))?;
    let instance = instance::resolve(config, adopt)?;
    tracing::info!(instance, "this instance");
    let dead_letters = open_dead_letters(config, started)?;
    let OpenStore { store, read } = store::open(config, runtime.handle())?;
    let definitions =
        Definitions::new(config, Arc::clone(&store), runtime.handle().clone(), started);
    let definition_thread = definitions.spawn()?;
    let control = Arc::new(Control::of(&config.data_dir));
    let last_shutdown = std::fs::read(config.data_dir.join(LAST_SHUTDOWN))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let (fatal, failed) = crossbeam_channel::bounded(1);
    let surroundings = Surroundings {
        store: Arc::clone(&store),
        dead_letters: dead_letters.clone(),
        definitions: definitions.clone(),
        runtime: runtime.handle().clone(),
        started,
        instance,
        fatal,
        control: Arc::clone(&control),
        precedence: Precedence::default(),
        pace: config
            .store
            .max_write_bytes_per_second
            .map(|rate| Arc::new(Mutex::new(Pace::new(rate.as_u64())))),
    };
    let mut pipelines = Vec::new();
    for spec in config.pipelines().filter(|spec| spec.pipeline.enabled) {
        pipelines.push(
            Pipeline::start(&spec, config, &surroundings)
                .with_context(|| format!("start pipeline {}", spec.name))?,
        );
    }
    let views: Vec<_> = pipelines.iter().map(Pipeline::view).collect();
    // What a flush has made durable cannot be lost by a node.
    let redelivery = if store.needs_flush() {
        None
    } else {
        let pipelines = views.iter().map(|view| Arc::clone(&view.redelivery)).collect();
        Some(RedeliveryThread::spawn(
            config,
            &store,
            &definitions,
            pipelines,
            runtime.handle(),
            started,
        )?)
    };
    let target =
        |view: &Arc<PipelineView>| RetryTarget { topic: view.topic.clone(), wal: view.wal.clone() };
    let clerk = Clerk::spawn(ClerkParts {
        letters: dead_letters.clone(),
        dir: dead_letters_dir(config),
        orders: LetterOrders::of(&config.data_dir),
        targets: views.iter().map(target).collect(),
        retention: config.retention,
        started,
        fatal: surroundings.fatal.clone(),
    })
    .context("start thread of the dead letters")?;
    let letters_topic = match &config.dead_letters.topic {
        None => None,
        Some(topic) => Some(
            LettersTopic::spawn(LettersTopicParts {
                kafka: config.kafka.clone(),
                topic: topic.clone(),
                letters: dead_letters.clone(),
                instance: surroundings.instance.clone(),
                started,
                fatal: surroundings.fatal.clone(),
            })
            .context("start sending dead letters")?,
        ),
    };
    let inspect = Arc::new(Inspect::new(
        started,
        surroundings.instance.clone(),
        views,
        Arc::clone(&store),
        read,
        LettersView {
            letters: dead_letters.clone(),
            counts: clerk.counts(),
            topic: letters_topic.as_ref().map(LettersTopic::state),
            config: Mutex::new(config.dead_letters.clone()),
        },
        definitions,
        last_shutdown,
    ));
    let shown = Arc::new(Mutex::new(ShownConfig::of(loaded)));
    let site = http::SiteParts {
        inspect: Arc::clone(&inspect),
        control,
        log_level: log_level.clone(),
        letter_orders: LetterOrders::of(&config.data_dir),
        data_dir: config.data_dir.clone(),
        config: Arc::clone(&shown),
        guard,
    };
    let http_stop = CancellationToken::new();
    let http_server = runtime.spawn(http::serve(bound, site, http_stop.clone()));
    let sampler = {
        let inspect = Arc::clone(&inspect);
        runtime.spawn(async move {
            let mut second = tokio::time::interval(Duration::from_secs(1));
            loop {
                second.tick().await;
                let inspect = Arc::clone(&inspect);
                // It reads files; a panic in it would have ended the process.
                drop(tokio::task::spawn_blocking(move || inspect.sample()).await);
            }
        })
    };
    inspect.enter(Phase::Running);
    tracing::info!(http = %address, guarantee = crate::GUARANTEE, "running");
    running(&Running { http: address });

    let live =
        Live { log_level, inspect: Arc::clone(&inspect), pace: surroundings.pace.clone(), shown };
    let mut shutdown = config.shutdown.clone();
    let failure = loop {
        crossbeam_channel::select! {
            recv(stop.0) -> _ => break None,
            recv(failed) -> error => break error.ok(),
            recv(reload.wanted) -> _ => live.take(&(reload.load)(), &mut shutdown),
        }
    };
    if let Some(error) = failure {
        // Nothing more can be promised: end at once, a restart goes on where the log ends.
        tracing::error!(code = "FATAL", error = format!("{error:#}"), "the service cannot go on");
        return Err(error);
    }

    inspect.enter(Phase::Draining);
    clerk.stop();
    if let Some(letters_topic) = letters_topic {
        letters_topic.stop();
    }
    if let Some(redelivery) = redelivery {
        redelivery.stop();
    }
    let places = Places { store: store.as_ref(), dead_letters: &dead_letters };
    let ended = shut_down(
        config,
        &shutdown,
        stop,
        (pipelines, definition_thread),
        &runtime,
        places,
        started,
    )?;
    sampler.abort();
    http_stop.cancel();
    let server =
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), http_server).await });
    if server.is_err() {
        tracing::debug!("HTTP connections were still open at the end");
    }
    std::mem::ManuallyDrop::into_inner(runtime).shutdown_timeout(Duration::from_secs(2));
    Ok(ended)
}

/// What a reload changes.
struct Live {
    log_level: LogLevel,
    inspect: Arc<Inspect>,
    pace: Option<Arc<Mutex<Pace>>>,
    shown: Arc<Mutex<ShownConfig>>,
}

impl Live {
    /// Takes over what can change while the program runs, and says what needs a restart. One that cannot be used changes
    /// nothing.
    fn take(&self, loaded: &anyhow::Result<Loaded>, shutdown: &mut ShutdownConfig) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!(
                    code = "CONFIG_RELOAD",
                    error = format!("{error:#}"),
                    "the new configuration cannot be used: the old one stays"
                );
                return;
            }
        };
        let new = ShownConfig::of(loaded);
        let mut shown = lock(&self.shown);
        let changed: Vec<String> = new
            .values
            .iter()
            .filter(|(key, new)| shown.values.get(*key).is_none_or(|old| old.value != new.value))
            .map(|(key, _)| key.clone())
            .collect();
        let (mut taken, mut needs_restart) = (Vec::new(), Vec::new());
        for key in changed {
            let is_taken = match key.as_str() {
                "logging.level" => match self.log_level.set(&loaded.config.logging.level) {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::error!(code = "CONFIG_RELOAD", %error, "the old level stays");
                        continue;
                    }
                },
                "shutdown.mode" | "shutdown.drain_timeout" => {
                    shutdown.clone_from(&loaded.config.shutdown);
                    true
                }
                "dead_letters.warn_after" => {
                    self.inspect.warn_after(loaded.config.dead_letters.warn_after);
                    true
                }
                "store.max_write_bytes_per_second" => {
                    match (&self.pace, loaded.config.store.max_write_bytes_per_second) {
                        (Some(pace), Some(rate)) => {
                            lock(pace).change(rate.as_u64());
                            true
                        }
                        // Between a limit and none.
                        _ => false,
                    }
                }
                _ => false,
            };
            if is_taken {
                if let Some(value) = new.values.get(&key) {
                    shown.values.insert(key.clone(), value.clone());
                }
                taken.push(key);
            } else {
                needs_restart.push(key);
            }
        }
        tracing::info!(code = "CONFIG_RELOAD", ?taken, ?needs_restart, "configuration read again");
    }
}

/// Where everything goes, closed after what writes to it.
struct Places<'a> {
    store: &'a dyn Store,
    dead_letters: &'a DeadLetters<DiskFs>,
}

fn shut_down(
    config: &Config,
    shutdown: &ShutdownConfig,
    stop: &StopSignal,
    (pipelines, definitions): (Vec<Pipeline>, DefinitionThread),
    runtime: &tokio::runtime::Runtime,
    Places { store, dead_letters }: Places<'_>,
    started: Instant,
) -> anyhow::Result<Summary> {
    tracing::info!(mode = ?shutdown.mode, "stopping");
    let drain_until = match shutdown.mode {
        ShutdownMode::Drain => Instant::now() + shutdown.drain_timeout,
        ShutdownMode::Persist => Instant::now(),
    };
    for pipeline in &pipelines {
        pipeline.stop_ingest();
    }
    // A second signal skips the drain; what is in the log stays there.
    let hurry = std::cell::Cell::new(false);
    let keep_draining = || {
        if stop.0.try_recv().is_ok() {
            tracing::warn!("second signal: the backlog stays in the log");
            hurry.set(true);
        }
        !hurry.get() && Instant::now() < drain_until
    };
    let mut ends = Vec::new();
    let mut clean = true;
    for pipeline in pipelines {
        match pipeline.finish(keep_draining) {
            Ok(end) => ends.push(end),
            Err(error) => {
                clean = false;
                tracing::error!(code = "SHUTDOWN", error = format!("{error:#}"), "stop pipeline");
            }
        }
    }
    definitions.stop();
    if let Err(error) = runtime.block_on(store.close()) {
        tracing::warn!(
            code = error.code,
            detail = error.detail,
            "close store; the log keeps what it did not confirm"
        );
    }
    let dead = dead_letters.count();
    if let Err(error) = dead_letters.wal().close(started.elapsed()) {
        clean = false;
        tracing::error!(code = "SHUTDOWN", %error, "close dead letters");
    }
    let summary = Summary {
        ended_ms: wall_ms(),
        uptime_s: started.elapsed().as_secs(),
        clean,
        pipelines: ends,
        dead_letters: dead,
    };
    let path = config.data_dir.join(LAST_SHUTDOWN);
    let text = serde_json::to_string_pretty(&summary).context("write shutdown summary")?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    tracing::info!("{}", summary.line());
    Ok(summary)
}

/// Directory of the dead letters below the data directory.
#[must_use]
pub fn dead_letters_dir(config: &Config) -> std::path::PathBuf {
    config.data_dir.join("dead-letters")
}

/// Opens the log of the dead letters, and says what it found.
pub(crate) fn open_dead_letters(
    config: &Config,
    started: Instant,
) -> anyhow::Result<DeadLetters<DiskFs>> {
    const SEGMENT_BYTES: u64 = 4 << 20;
    let dir = dead_letters_dir(config);
    let max_bytes = config.wal.dead_letters_bytes_max.as_u64();
    let wal_config = WalConfig {
        segment_bytes: SEGMENT_BYTES,
        max_bytes,
        min_free_bytes: config.wal.min_free_bytes.as_u64(),
        // Nobody can lose what was dropped.
        hold_back: Duration::ZERO,
        ..pipeline::log_limits(max_bytes)
    };
    let fs = DiskFs::open(&dir).with_context(|| format!("open directory {}", dir.display()))?;
    let (wal, report) = Wal::open(fs, wal_config, Box::new(NoCarry), started.elapsed())
        .with_context(|| format!("open dead letters {}", dir.display()))?;
    for gap in &report.gaps {
        tracing::error!(
            code = "WAL_CORRUPT",
            from = gap.range.start.get(),
            to = gap.range.end.get(),
            recovery_row = ?gap.row,
            "dead letters are damaged"
        );
    }
    Ok(DeadLetters::new(wal).with_limits(LetterLimits {
        age_max: config.dead_letters.age_max,
        headroom_bytes: SEGMENT_BYTES,
        now_ms: wall_ms,
    }))
}
