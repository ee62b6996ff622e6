//! Whose fault it is when the store does not say. Pure.
//!
//! A row that the store refuses may be the only one, or the first of all of them because a column has another type now.
//! A row on which the store fails again and again may be at fault, or the store. What becomes of other rows tells them
//! apart: few refused among many taken are their own fault, and anything else stops delivery, so that no flood of dead
//! letters empties the log.

use std::time::Duration;

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
/// Requests that failed so often are told of.
const STUCK_ATTEMPTS: u32 = 10;

/// Rows taken, and rows given up although it is not sure that they are at fault.
#[derive(Debug, Default)]
pub(super) struct Guard {
    taken: u64,
    refused: u64,
    /// The last answer to a request that has failed often.
    stuck: Option<StoreError>,
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

/// How often a unit failed in a way that may be its own, each time after a success of another one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Suspicion {
    times: u32,
    requests_ok: u64,
}

impl Deliver {
    /// What an answer comes to when the store does not say whom it is about.
    pub(super) fn judge(&mut self, unit: UnitId, error: StoreError) -> StoreError {
        let Some(state) = self.units.get_mut(&unit) else { return error };
        if state.attempts.saturating_add(1) >= STUCK_ATTEMPTS {
            self.guard.stuck = Some(error.clone());
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
                if self.counts.requests_ok > state.suspicion.requests_ok {
                    let times = state.suspicion.times.saturating_add(1);
                    state.suspicion = Suspicion { times, requests_ok: self.counts.requests_ok };
                }
                let times = state.suspicion.times;
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

    /// Requests that have failed often and wait for another attempt, and the last answer to one of them.
    #[must_use]
    pub fn stuck(&self) -> Option<(usize, &StoreError)> {
        let error = self.guard.stuck.as_ref()?;
        let often = |(_, unit): &&(Duration, UnitId)| {
            self.units.get(unit).is_some_and(|state| state.attempts >= STUCK_ATTEMPTS)
        };
        let requests = self.waiting.iter().filter(often).count();
        (requests > 0).then_some((requests, error))
    }
}
