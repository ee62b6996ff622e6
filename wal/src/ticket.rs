//! What an appender holds until its batch is durable.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::commit::Sequence;
use crate::error::WalError;
use crate::fs::Fs;
use crate::log::{Log, State};
use crate::position::{Durable, Position};
use crate::sync::{MutexGuard, lock};

/// How soon a waiting thread tries again when there was no space; doubles up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

type Guard<'a, F> = MutexGuard<'a, State<<F as Fs>::File>>;

/// The receipt of one appended batch. Dropping it changes nothing for the batch.
#[must_use = "a batch is not safe before its ticket resolves"]
pub struct Ticket<F: Fs> {
    log: Arc<Log<F>>,
    range: Range<Position>,
    sequence: Sequence,
}

impl<F: Fs> std::fmt::Debug for Ticket<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("range", &self.range)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl<F: Fs> Ticket<F> {
    pub(crate) fn new(log: Arc<Log<F>>, range: Range<Position>, sequence: Sequence) -> Self {
        Self { log, range, sequence }
    }

    /// The positions of the batch's records.
    #[must_use]
    pub fn range(&self) -> Range<Position> {
        self.range.clone()
    }

    /// `None` while the batch is on its way. Tickets resolve in the order of the appends; after a
    /// failed write or sync all of them fail.
    #[must_use]
    pub fn poll(&self) -> Option<Result<Durable, WalError>> {
        let state = lock(&self.log.state);
        if let Err(error) = state.check() {
            return Some(Err(error));
        }
        if self.log.is_resolved(&state, self.sequence) {
            return Some(Ok(self.log.durable(&state)));
        }
        drop(state);
        // This caller does not write it.
        self.log.work.notify_one();
        None
    }

    /// Waits until the batch is durable; writes it on this thread unless others do. Without space
    /// it waits on and tries again.
    ///
    /// # Errors
    /// The log was poisoned: end the process, the batch is to be taken from its source again.
    pub fn wait(&self) -> Result<Durable, WalError> {
        let mut retry = RETRY_FIRST;
        self.log.wait_for(self.sequence, |state, _| {
            let waited = self.log.tickets.wait_timeout(state, retry);
            retry = (retry * 2).min(RETRY_AT_MOST);
            Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
        })
    }
}

impl<F: Fs> Drop for Ticket<F> {
    fn drop(&mut self) {
        let state = lock(&self.log.state);
        let pending = state.commit.sequence_durable() < self.sequence && state.can_lead();
        drop(state);
        if pending {
            self.log.work.notify_one();
        }
    }
}

impl<F: Fs> Log<F> {
    /// Leads, or waits for those who do, until this batch is resolved. `no_space` decides what
    /// happens when the disk is full: it waits with the lock it is given, or gives up.
    pub fn wait_for<'a>(
        &'a self,
        sequence: Sequence,
        mut no_space: impl FnMut(Guard<'a, F>, WalError) -> Result<Guard<'a, F>, WalError>,
    ) -> Result<Durable, WalError> {
        let mut state = lock(&self.state);
        state.waiters += 1;
        let outcome = loop {
            if let Err(error) = state.check() {
                break Err(error);
            }
            if self.is_resolved(&state, sequence) {
                break Ok(self.durable(&state));
            }
            if !state.can_lead() {
                state = self.tickets.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let led = self.lead();
            state = lock(&self.state);
            match led {
                Ok(_) => {}
                Err(error @ WalError::NoSpace { .. }) => match no_space(state, error) {
                    Ok(back) => state = back,
                    Err(error) => {
                        state = lock(&self.state);
                        break Err(error);
                    }
                },
                Err(error) => break Err(error),
            }
        };
        state.waiters -= 1;
        let left_over = state.waiters == 0 && state.can_lead();
        drop(state);
        if left_over {
            self.work.notify_one();
        }
        outcome
    }
}
