//! How many requests may be in flight to whom. Pure.
//!
//! A lane's limit doubles per round until it was cut once or reached half of what is allowed, then grows by one per
//! round; it is cut once per round at most, by answers to requests that were sent after the last cut. One that fails and
//! fails rests longer and longer, so that replicas that are away are asked now and then, not with all that waits for them.

use std::collections::VecDeque;
use std::time::Duration;

use super::UnitId;

/// A lane rests after so many failures in a row: each of its requests would find out the same.
const RESTS_AFTER: u32 = 3;

/// Requests that fail, and are slow, together: those to one set of replicas. Each lane has a limit of its own, so that
/// replicas that are away or slow do not hold up the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Everything that goes to one set of replicas; `None`: nobody knows to which.
    Replicas(Option<u64>),
    /// Definitions: each touches many partitions.
    Definitions,
}

/// What is sent and may be sent in a lane.
#[derive(Debug)]
pub(super) struct LaneState {
    pub(super) ready: VecDeque<UnitId>,
    pub(super) in_flight: usize,
    pub(super) limit: f64,
    /// Below this the limit doubles per round.
    pub(super) doubles_to: f64,
    pub(super) last_cut: Duration,
    /// Stands in the line of lanes that may send.
    pub(super) in_line: bool,
    /// Its answers have said since then that the store is away, or busy.
    pub(super) fails_since: Option<Duration>,
    /// How often in a row.
    pub(super) failures: u32,
    /// Nothing is sent before: it has failed too often in a row.
    pub(super) rests_until: Option<Duration>,
}

impl LaneState {
    pub(super) fn new(in_flight_max: usize) -> Self {
        Self {
            ready: VecDeque::new(),
            in_flight: 0,
            limit: 8.0,
            doubles_to: count_as_f64(in_flight_max) / 2.0,
            last_cut: Duration::ZERO,
            in_line: false,
            fails_since: None,
            failures: 0,
            rests_until: None,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.ready.is_empty()
    }

    /// It said that the store is away, or busy. Returns how many times to double the rest it needs, if it needs one.
    pub(super) fn failed(&mut self, now: Duration) -> Option<u32> {
        self.fails_since.get_or_insert(now);
        self.failures = self.failures.saturating_add(1);
        self.failures.checked_sub(RESTS_AFTER)
    }

    /// It answered.
    pub(super) fn answered(&mut self) {
        self.fails_since = None;
        self.failures = 0;
        self.rests_until = None;
    }

    pub(super) fn grow(&mut self, in_flight_max: usize) {
        let more = if self.limit < self.doubles_to { 1.0 } else { 1.0 / self.limit };
        self.limit = (self.limit + more).min(count_as_f64(in_flight_max)).max(1.0);
    }

    /// Cuts the limit to `part` of it, unless it was cut since the request was sent that gives the reason.
    pub(super) fn cut(&mut self, part: f64, sent: Duration, now: Duration) {
        if sent < self.last_cut {
            return;
        }
        self.last_cut = now;
        self.limit = (self.limit * part).max(1.0);
        self.doubles_to = self.limit;
    }

    /// After an outage.
    pub(super) fn start_slowly(&mut self, in_flight_max: usize) {
        self.limit = 1.0;
        self.rests_until = None;
        self.doubles_to = count_as_f64(in_flight_max) / 2.0;
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and the in-flight maximum"
)]
pub(super) fn whole(limit: f64) -> usize {
    limit as usize
}

pub(super) fn count_as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
