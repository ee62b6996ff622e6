//! Leading step by step, for tests that let groups in flight come back in any order and crash in
//! between. The same parts, in the same order, as when a thread leads.

use std::sync::Arc;

use crate::error::WalError;
use crate::fs::Fs;
use crate::leader::{Begun, Flight};
use crate::log::{Log, Wal};
use crate::segment::Fault;

/// A group that was begun: write it, sync it, land it.
pub struct GroupInFlight<F: Fs> {
    log: Arc<Log<F>>,
    flight: Flight<F::File>,
    outcome: Result<(), Fault>,
}

impl<F: Fs> std::fmt::Debug for GroupInFlight<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupInFlight").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl<F: Fs> Wal<F> {
    /// Begins a group, if there is one to begin.
    ///
    /// # Errors
    /// As [`commit`](Wal::commit): beginning may change the segment.
    pub fn begin_group(&self) -> Result<Option<GroupInFlight<F>>, WalError> {
        Ok(match self.log.begin()? {
            Begun::Flight(flight) => {
                Some(GroupInFlight { log: Arc::clone(&self.log), flight, outcome: Ok(()) })
            }
            Begun::Idle | Begun::Busy => None,
        })
    }
}

impl<F: Fs> GroupInFlight<F> {
    /// Writes it.
    pub fn write(&mut self) {
        self.outcome = self.log.write(&self.flight);
    }

    /// Syncs its file, if it was written.
    pub fn sync(&mut self) {
        if self.outcome.is_ok() {
            self.outcome = self.log.sync(&self.flight);
        }
    }

    /// Reports what came of it.
    ///
    /// # Errors
    /// As [`commit`](Wal::commit).
    pub fn land(self) -> Result<(), WalError> {
        self.log.land(self.flight, self.outcome)
    }
}
