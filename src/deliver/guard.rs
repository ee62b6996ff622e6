//! Whose fault it is when the store does not say. Pure.
//!
//! A row that the store refuses may be the only one, or the first of all of them because a column has another type now.
//! A row on which the store fails again and again may be at fault, or the store. What becomes of other rows tells them
//! apart: few refused among many taken are their own fault, and anything else stops delivery, so that no flood of dead
//! letters empties the log.

use std::collections::BTreeSet;

use storage::{StoreError, Verdict};

use super::{Deliver, UnitId};

/// So many rows may be refused whatever becomes of others.
const FEW: u64 = 10;
/// Of a hundred rows so many may be refused.
const PER_CENT: u64 = 3;
/// Rows by which the share is judged, about: half of the count is forgotten with every so many.
const WINDOW: u64 = 20_000;
/// After so many failures, with successes of others between them, rows that failed together are tried apart.
const APART_AFTER: u32 = 3;
/// After so many, they are told of.
const STUCK_AFTER: u32 = 10;

/// Rows taken, and rows given up although it is not sure that they are at fault.
#[derive(Debug, Default)]
pub(super) struct Guard {
    taken: u64,
    refused: u64,
    /// Units that have failed often while others succeeded, and the last answer to one of them.
    stuck: BTreeSet<UnitId>,
    stuck_by: Option<StoreError>,
}

impl Guard {
    pub(super) fn took(&mut self, rows: u64) {
        self.taken = self.taken.saturating_add(rows);
        self.forget();
    }

    /// A row is given up.
    pub(super) fn refused(&mut self, error: &StoreError) {
        if !error.is_sure {
            self.refused = self.refused.saturating_add(1);
            self.forget();
        }
    }

    /// A unit is no more.
    pub(super) fn ended(&mut self, unit: UnitId) {
        self.stuck.remove(&unit);
    }

    /// All units are no more.
    pub(super) fn all_ended(&mut self) {
        self.stuck.clear();
    }

    fn forget(&mut self) {
        if self.taken.saturating_add(self.refused) > WINDOW {
            self.taken /= 2;
            self.refused /= 2;
        }
    }

    /// Whether one more may be given up.
    fn may_refuse(&self) -> bool {
        let refused = self.refused.saturating_add(1);
        let all = self.taken.saturating_add(refused);
        refused <= FEW || refused.saturating_mul(100) <= all.saturating_mul(PER_CENT)
    }
}

/// How often a unit was to be sent again, each time after a success of another one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Suspicion {
    times: u32,
    /// Among them answers that may be its own fault.
    unsure: u32,
    requests_ok: u64,
}

impl Deliver {
    /// What an answer comes to when the store does not say whom it is about.
    pub(super) fn judge(&mut self, unit: UnitId, error: StoreError) -> StoreError {
        let Some(state) = self.units.get_mut(&unit) else { return error };
        let ok = self.counts.requests_ok;
        let is_sent_again = matches!(error.verdict, Verdict::Retry | Verdict::Wait);
        if is_sent_again && ok > state.suspicion.requests_ok {
            let times = state.suspicion.times.saturating_add(1);
            let unsure = state.suspicion.unsure.saturating_add(u32::from(!error.is_sure));
            state.suspicion = Suspicion { times, unsure, requests_ok: ok };
            if times >= STUCK_AFTER {
                self.guard.stuck.insert(unit);
                self.guard.stuck_by = Some(error.clone());
            }
        }
        if error.is_sure {
            return error;
        }
        match error.verdict {
            Verdict::Reject if !self.guard.may_refuse() => StoreError::new(
                Verdict::Wait,
                "DB_REJECTS_MANY",
                format!("too many rows would be dead letters, the last for: {error}"),
            ),
            Verdict::Retry => {
                let times = state.suspicion.unsure;
                if state.rows > 1 && times >= APART_AFTER {
                    StoreError { verdict: Verdict::Split, ..error }
                } else if times >= self.config.suspect_attempts && self.guard.may_refuse() {
                    StoreError { verdict: Verdict::Reject, ..error }
                } else {
                    error
                }
            }
            Verdict::Split | Verdict::Wait | Verdict::Reject => error,
        }
    }

    /// Requests that have failed often while others succeeded, and the last answer to one of them.
    #[must_use]
    pub fn stuck(&self) -> Option<(usize, &StoreError)> {
        let requests = self.guard.stuck.len();
        self.guard.stuck_by.as_ref().filter(|_| requests > 0).map(|error| (requests, error))
    }
}
