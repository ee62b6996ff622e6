//! Background threads: they write for callers who do not wait for their tickets, and prepare the
//! next segment.
//!
//! They stand back while threads wait in `Ticket::wait`, because those write without a hand-over,
//! and they put a mark behind the last group once the log has been idle for a second.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::commit::GROUP_BYTES_MAX;
use crate::config::SyncPolicy;
use crate::error::WalError;
use crate::fs::Fs;
use crate::log::{Log, Wal};
use crate::prepare::Preparation;
use crate::segment::IN_FLIGHT_MAX;
use crate::sync::{AtomicBool, Builder, JoinHandle, lock};

const IDLE_BEFORE_MARK: Duration = Duration::from_secs(1);
/// How soon a frame is found whose ticket is neither waited for nor dropped.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Looks that find nothing before a committer wants to be told of the next append.
const LOOKS_BEFORE_DOZING: u32 = 50;
const RETRY_WITHOUT_SPACE: Duration = Duration::from_millis(100);

/// The threads. Dropping it stops them as [`stop`](Committer::stop) does.
#[derive(Debug)]
pub struct Committer {
    stop: Arc<AtomicBool>,
    wake: Box<dyn Wake>,
    threads: Vec<JoinHandle<()>>,
}

trait Wake: Send + std::marker::Sync + std::fmt::Debug {
    fn wake(&self);
}

impl<F: Fs> Wake for Wal<F> {
    fn wake(&self) {
        // With the lock held, so that a thread is either before its check or in its sleep.
        let state = lock(&self.log.state);
        self.log.work.notify_all();
        self.log.idle.notify_all();
        drop(state);
    }
}

impl Committer {
    /// Starts the threads. They end by themselves when the log is poisoned; every ticket says so.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn spawn<F: Fs>(wal: Wal<F>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Box::new(wal.clone());
        // From here on dropping it stops what was started.
        let mut committer = Self { stop: Arc::clone(&stop), wake, threads: Vec::new() };
        for _ in 0..IN_FLIGHT_MAX {
            let (wal, stop) = (wal.clone(), Arc::clone(&stop));
            let thread = Builder::new()
                .name("wal-committer".into())
                .spawn(move || commit(&wal.log, &stop))?;
            committer.threads.push(thread);
        }
        let thread =
            Builder::new().name("wal-preparer".into()).spawn(move || prepare(&wal.log, &stop))?;
        committer.threads.push(thread);
        Ok(committer)
    }

    /// Commits what is queued, then ends the threads and waits for them.
    pub fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.wake();
        for thread in self.threads.drain(..) {
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

fn commit<F: Fs>(log: &Log<F>, stop: &AtomicBool) {
    let mut looks = 0;
    loop {
        let mut state = lock(&log.state);
        if state.poison.is_some() {
            return;
        }
        let stopping = stop.load(Ordering::SeqCst);
        if stopping && state.commit.waiting_frames() == 0 {
            return;
        }
        let starved = state.commit.starved();
        let early = match log.config.sync_policy {
            SyncPolicy::Interval(interval)
                if !stopping && state.commit.queued_bytes() < GROUP_BYTES_MAX =>
            {
                interval.checked_sub(log.idle_for(&state)).filter(|left| !left.is_zero())
            }
            SyncPolicy::Interval(_) | SyncPolicy::EachGroup => None,
        };
        let mine = state.can_lead() && (state.waiters == 0 || stopping) && early.is_none();
        if mine && (!starved || stopping) {
            drop(state);
            looks = 0;
            mutant_pause(log, stopping);
            match log.lead() {
                // Stopping cannot wait for space: what is queued was never acknowledged.
                Err(WalError::NoSpace { .. }) if stopping => return,
                Ok(_) | Err(_) => {}
            }
            continue;
        }
        let pause = if starved {
            RETRY_WITHOUT_SPACE
        } else if let (Some(early), true) = (early, state.can_lead()) {
            early
        } else if stopping || looks < LOOKS_BEFORE_DOZING {
            looks += 1;
            LOOK_AGAIN
        } else {
            state.dozing = true;
            IDLE_BEFORE_MARK
        };
        (state, _) = log.work.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
        if state.commit.waiting_frames() > 0 {
            looks = 0;
        }
        let idle = state.commit.idle() && log.idle_for(&state) >= IDLE_BEFORE_MARK;
        let retry = state.commit.starved() && state.can_lead();
        drop(state);
        // An error has poisoned the log, or there is no space still; the next round sees it.
        if idle {
            log.mark().ok();
        } else if retry {
            log.lead().ok();
        }
    }
}

fn prepare<F: Fs>(log: &Log<F>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let pause = match log.prepare() {
            Ok(Preparation::Done | Preparation::NotNeeded) => IDLE_BEFORE_MARK,
            Ok(Preparation::NoRoom) | Err(WalError::NoSpace { .. }) => RETRY_WITHOUT_SPACE,
            Err(_) => return,
        };
        let state = lock(&log.state);
        if state.poison.is_some() || stop.load(Ordering::SeqCst) {
            return;
        }
        drop(log.idle.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner));
    }
}

/// One of the deliberate bugs needs time to show.
#[cfg(feature = "mutants")]
fn mutant_pause<F: Fs>(log: &Log<F>, stopping: bool) {
    if log.config.mutant == crate::mutants::Mutant::AckBeforeSync && !stopping {
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[cfg(not(feature = "mutants"))]
fn mutant_pause<F: Fs>(_log: &Log<F>, _stopping: bool) {}
