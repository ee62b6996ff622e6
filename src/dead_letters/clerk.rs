//! The thread that keeps the dead letters: carries out orders, gives space back, and says what is damaged.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::Sender;
use wal::{DiskFs, Position, WalError};

use super::{
    DeadLetterError, DeadLetters, LetterOrder, LetterOrders, Outcome, RetryTarget, Verb, retry,
};
use crate::clock::wall_ms;

/// How often it looks for something to do.
const TURN: Duration = Duration::from_secs(1);
/// Portions moved in one turn when space is made.
const MOVES_MAX: usize = 16;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct ClerkCounts {
    dropped: AtomicU64,
    retried: AtomicU64,
}

impl ClerkCounts {
    /// Letters dropped by order, repetitions included.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Letters tried again by order, repetitions included.
    #[must_use]
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }
}

/// What it works with.
pub struct ClerkParts {
    /// The letters.
    pub letters: DeadLetters<DiskFs>,
    /// Their directory.
    pub dir: PathBuf,
    /// Where orders are.
    pub orders: LetterOrders,
    /// Pipelines that can try messages again.
    pub targets: Vec<RetryTarget<DiskFs>>,
    /// How long the store keeps rows.
    pub retention: Duration,
    /// Zero of monotonic time.
    pub started: Instant,
    /// Takes the first reason to end the process.
    pub fatal: Sender<anyhow::Error>,
}

/// The running thread.
pub struct Clerk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    counts: Arc<ClerkCounts>,
}

impl Clerk {
    /// Starts it.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn spawn(parts: ClerkParts) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::<ClerkCounts>::default();
        let body = {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            move || {
                let fatal = parts.fatal.clone();
                let turns = || -> anyhow::Result<()> {
                    recall(&parts)?;
                    while !stop.load(Ordering::Relaxed) {
                        turn(&parts, &counts)?;
                        // Until the next turn, or until it is to stop.
                        std::thread::park_timeout(TURN);
                    }
                    Ok(())
                };
                if let Err(error) = turns() {
                    // The channel takes the first reason; a later one changes nothing.
                    drop(fatal.try_send(error.context("keep dead letters")));
                }
            }
        };
        let thread = std::thread::Builder::new().name("dead-letters".to_owned()).spawn(body)?;
        Ok(Self { stop, thread, counts })
    }

    /// What it did.
    #[must_use]
    pub fn counts(&self) -> Arc<ClerkCounts> {
        Arc::clone(&self.counts)
    }

    /// Ends it, after the order that it is carrying out.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!(code = "PANIC", "the thread of the dead letters panicked");
        }
    }
}

/// What the log's acks may have forgotten at the last crash, its notes know.
fn recall(parts: &ClerkParts) -> anyhow::Result<()> {
    let dir = parts.dir.display();
    let fs = DiskFs::open_existing(&parts.dir).with_context(|| format!("open {dir}"))?;
    parts.letters.recall(&fs).with_context(|| format!("read notes in {dir}"))
}

fn turn(parts: &ClerkParts, counts: &ClerkCounts) -> anyhow::Result<()> {
    for (name, order) in parts.orders.pending() {
        let outcome = match order {
            Ok(order) => carry_out(parts, counts, &order)?,
            Err(why) => {
                tracing::error!(code = "ORDER", name, why, "an order cannot be read");
                let why = format!("the order cannot be read: {why}");
                Some(Outcome { stopped: Some(why), ..Outcome::default() })
            }
        };
        let Some(outcome) = outcome else { continue };
        if let Err(error) = parts.orders.done(&name, &outcome) {
            tracing::warn!(code = "ORDER", name, %error, "note that an order was carried out");
        }
    }
    for _ in 0..MOVES_MAX {
        let moved = parts.letters.make_room()?;
        parts.letters.checkpoint(parts.started.elapsed())?;
        if moved == 0 {
            break;
        }
        tracing::info!(
            letters = moved,
            "moved dead letters, so that the space between them can go"
        );
    }
    if let Some(positions) = parts.letters.pass_damage()? {
        tracing::error!(
            code = "WAL_CORRUPT",
            from = positions.start.get(),
            to = positions.end.get(),
            dir = %parts.dir.display(),
            "dead letters at these positions are lost: their log is damaged"
        );
    }
    Ok(())
}

/// `None`: not now, the process is stopping.
fn carry_out(
    parts: &ClerkParts,
    counts: &ClerkCounts,
    order: &LetterOrder,
) -> anyhow::Result<Option<Outcome>> {
    let LetterOrder { verb, filter, end } = order;
    let (end, now) = (Position::new(*end), parts.started.elapsed());
    let done = match verb {
        Verb::Drop => parts
            .letters
            .drop_letters(filter, end, now)
            .map(|removed| Outcome { removed, ..Outcome::default() }),
        Verb::Retry => {
            let ClerkParts { letters, targets, retention, .. } = parts;
            retry(letters, targets, filter, end, *retention, now, wall_ms())
        }
    };
    let outcome = match done {
        Ok(outcome) => outcome,
        Err(DeadLetterError::Wal(WalError::Closed)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let count = match verb {
        Verb::Drop => &counts.dropped,
        Verb::Retry => &counts.retried,
    };
    count.fetch_add(outcome.removed, Ordering::Relaxed);
    tracing::info!(?verb, ?filter, ?outcome, "dead letters: order carried out");
    Ok(Some(outcome))
}
