//! When the store may have lost what it confirmed, or what was set aside is wanted again: nothing that is under way
//! counts any more.

use std::time::Duration;

use storage::{StoreError, Verdict};

use super::{Deliver, Effect};
use crate::breaker::BreakerState;

impl Deliver {
    /// Forgets all gathers. A row of theirs that was confirmed may be lost, so none of them acknowledges anything: their
    /// records are gathered again, and those that were set aside.
    pub(super) fn start_over(&mut self, effects: &mut Vec<Effect>) {
        let units = std::mem::take(&mut self.units).into_keys();
        effects.extend(units.map(|unit| Effect::Forget { unit, written: false }));
        self.guard.all_ended();
        self.aside.start_over();
        self.lanes.clear();
        self.line.clear();
        self.waiting.clear();
        self.resting.clear();
        self.blocked = 0;
        self.gathers.clear();
        self.written_unflushed.clear();
        self.flushing = None;
        self.outstanding_rows = 0;
        // Their answers come all the same.
        self.abandoned = self.in_flight;
    }

    /// The answer about a unit that was forgotten: it says nothing of any row, but something of the store.
    pub(super) fn abandoned_done(
        &mut self,
        outcome: Result<(), StoreError>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if self.abandoned == 0 {
            return;
        }
        self.abandoned = self.abandoned.saturating_sub(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        let Err(error) = outcome else {
            self.store_answers(effects);
            return;
        };
        match error.verdict {
            Verdict::Retry | Verdict::Wait => {
                if self.breaker.failed(error.verdict == Verdict::Wait, now) {
                    effects.push(Effect::Breaker(BreakerState::Open));
                }
                self.last_error = Some(error);
            }
            Verdict::Split | Verdict::Reject => self.store_answers(effects),
        }
    }
}
