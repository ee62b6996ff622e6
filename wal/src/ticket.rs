//! What an appender holds until its batch is durable.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::commit::Sequence;
use crate::error::WalError;
use crate::fs::Fs;
use crate::log::{Log, lock};
use crate::position::{Durable, Position};

/// How soon a waiting thread tries again when there was no space; doubles up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

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
        self.log.is_resolved(&state, self.sequence).then(|| Ok(self.log.durable(&state)))
    }

    /// Waits until the batch is durable; leads if nobody does. Without space it waits on and tries
    /// again.
    ///
    /// # Errors
    /// The log was poisoned: end the process, the batch is to be taken from its source again.
    pub fn wait(&self) -> Result<Durable, WalError> {
        let mut state = lock(&self.log.state);
        let mut retry = RETRY_FIRST;
        state.waiters += 1;
        let outcome = loop {
            if let Err(error) = state.check() {
                break Err(error);
            }
            if self.log.is_resolved(&state, self.sequence) {
                break Ok(self.log.durable(&state));
            }
            if state.writer.is_none() {
                state = self.log.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            let led = self.log.lead();
            state = lock(&self.log.state);
            match led {
                Ok(_) => {}
                Err(WalError::NoSpace { .. }) => {
                    (state, _) = self
                        .log
                        .changed
                        .wait_timeout(state, retry)
                        .unwrap_or_else(PoisonError::into_inner);
                    retry = (retry * 2).min(RETRY_AT_MOST);
                }
                Err(error) => break Err(error),
            }
        };
        state.waiters -= 1;
        let left_over = state.waiters == 0 && state.commit.queued_frames() > 0;
        drop(state);
        if left_over {
            self.log.work.notify_one();
        }
        outcome
    }
}
