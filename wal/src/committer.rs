//! A background thread that leads for callers who do not wait for their tickets.
//!
//! It stands back while threads wait in `Ticket::wait`, because they lead without a hand-over, and
//! it puts a mark behind the last group once the log has been idle for a second.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::WalError;
use crate::fs::Fs;
use crate::leader::Sync;
use crate::log::{Log, Wal, lock};

const IDLE_BEFORE_MARK: Duration = Duration::from_secs(1);
const RETRY_WITHOUT_SPACE: Duration = Duration::from_millis(100);

/// The thread. Dropping it stops it as [`stop`](Committer::stop) does.
#[derive(Debug)]
pub struct Committer {
    stop: Arc<AtomicBool>,
    wake: Box<dyn Wake>,
    thread: Option<JoinHandle<()>>,
}

trait Wake: Send + std::marker::Sync + std::fmt::Debug {
    fn wake(&self);
}

impl<F: Fs> Wake for Wal<F> {
    fn wake(&self) {
        // With the lock held, so that the thread is either before its check or in its sleep.
        let state = lock(&self.log.state);
        self.log.work.notify_all();
        drop(state);
    }
}

impl Committer {
    /// Starts the thread. It ends by itself when the log is poisoned; every ticket says so.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn<F: Fs>(wal: Wal<F>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let wake = Box::new(wal.clone());
        let thread = std::thread::Builder::new()
            .name("wal-committer".into())
            .spawn(move || run(&wal.log, &seen))?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }

    /// Commits what is queued, then ends the thread and waits for it.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in there has poisoned the log, which tells everybody.
            thread.join().ok();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.join();
    }
}

fn run<F: Fs>(log: &Log<F>, stop: &AtomicBool) {
    loop {
        let mut state = lock(&log.state);
        if state.poison.is_some() {
            return;
        }
        let stopping = stop.load(Ordering::SeqCst);
        let queued = state.commit.queued_frames() > 0;
        if stopping && !queued {
            return;
        }
        let mine = queued && state.writer.is_some() && (state.waiters == 0 || stopping);
        let starved = state.commit.starved();
        if !mine || (starved && !stopping) {
            let pause = if starved { RETRY_WITHOUT_SPACE } else { IDLE_BEFORE_MARK };
            (state, _) =
                log.work.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
            let idle = state.commit.idle() && log.idle_for(&state) >= IDLE_BEFORE_MARK;
            let retry = state.commit.starved() && state.writer.is_some();
            drop(state);
            if idle {
                // An error has poisoned the log; the next round sees it.
                log.mark(Sync::No).ok();
            } else if retry {
                log.lead().ok();
            }
            continue;
        }
        drop(state);
        #[cfg(feature = "mutants")]
        if log.config.mutant == crate::mutants::Mutant::AckBeforeSync && !stopping {
            std::thread::sleep(Duration::from_millis(500));
        }
        match log.lead() {
            Ok(_) => {}
            // Stopping cannot wait for space: what is queued was never acknowledged.
            Err(WalError::NoSpace { .. }) if stopping => return,
            Err(_) => {}
        }
    }
}
