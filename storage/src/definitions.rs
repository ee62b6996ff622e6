//! A bounded memory of the definitions that were written, so that each is written once per refresh and not with every
//! measurement. Knows no clock; forgetting costs a rewrite, never a row.
//!
//! When it is full, the half that was written longest ago is forgotten: those come up for their refresh first anyway.

use std::collections::HashMap;
use std::time::Duration;

use crate::metric_id::MetricId;

/// Whether a definition has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Write it, with this creation time.
    Write {
        /// Milliseconds since the epoch.
        created_at_ms: i64,
    },
    /// It was written recently.
    No,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    created_at_ms: i64,
    written_at_ms: i64,
}

/// A clock is set back by less than this all the time.
const CLOCK_STEP_MS: i64 = 60 * 60 * 1000;

/// The memory.
#[derive(Debug)]
pub struct DefinitionMemory {
    capacity: usize,
    refresh_ms: i64,
    entries: HashMap<MetricId, Entry>,
}

impl DefinitionMemory {
    /// Remembers up to `capacity` definitions and asks for each again after `refresh`.
    #[must_use]
    pub fn new(capacity: usize, refresh: Duration) -> Self {
        let refresh_ms = i64::try_from(refresh.as_millis()).unwrap_or(i64::MAX);
        Self { capacity: capacity.max(1), refresh_ms, entries: HashMap::new() }
    }

    /// Whether the definition of `id` has to be written at `now_ms`.
    #[must_use]
    pub fn need(&self, id: &MetricId, now_ms: i64) -> Need {
        match self.entries.get(id) {
            None => Need::Write { created_at_ms: now_ms },
            // Written in the future: the clock was wrong then. Whatever that did to its time to live, it is due.
            Some(entry)
                if now_ms.saturating_sub(entry.written_at_ms) >= self.due_after_ms(id)
                    || entry.written_at_ms > now_ms.saturating_add(CLOCK_STEP_MS) =>
            {
                Need::Write { created_at_ms: entry.created_at_ms }
            }
            Some(_) => Need::No,
        }
    }

    /// The store has confirmed the definition. Call it only then: a failed write must be tried again.
    pub fn written(&mut self, id: &MetricId, created_at_ms: i64, now_ms: i64) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(id) {
            self.forget_older_half();
        }
        self.entries.insert(*id, Entry { created_at_ms, written_at_ms: now_ms });
    }

    /// Forgets what was written at or after `since_ms`: a store that lost its last writes gets it again.
    pub fn forget_since(&mut self, since_ms: i64) {
        self.entries.retain(|_, entry| entry.written_at_ms < since_ms);
    }

    /// Definitions remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The refresh interval, shortened by up to a quarter depending on the id, so that series that appeared together
    /// are not refreshed together.
    fn due_after_ms(&self, id: &MetricId) -> i64 {
        let spread = i64::from(id.as_bytes().first().copied().unwrap_or(0));
        self.refresh_ms.saturating_sub((self.refresh_ms / 1024).saturating_mul(spread))
    }

    fn forget_older_half(&mut self) {
        let mut times: Vec<i64> = self.entries.values().map(|entry| entry.written_at_ms).collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.entries.retain(|_, entry| entry.written_at_ms > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric_id::{IdScheme, metric_id};

    fn id(number: u32) -> MetricId {
        metric_id(IdScheme::Sha256, "", "", &number.to_string(), std::iter::empty())
    }

    #[test]
    fn a_definition_written_by_a_clock_that_was_ahead_is_needed_again() {
        const DAY_MS: i64 = 24 * 60 * 60 * 1000;
        let mut memory = DefinitionMemory::new(10, Duration::from_secs(24 * 60 * 60));
        memory.written(&id(1), 0, 2 * DAY_MS);
        assert_eq!(memory.need(&id(1), 2 * DAY_MS - 1000), Need::No, "a small step back");
        assert_eq!(memory.need(&id(1), DAY_MS), Need::Write { created_at_ms: 0 });
    }

    #[test]
    fn a_definition_is_needed_until_it_is_written_and_again_after_the_refresh() {
        let mut memory = DefinitionMemory::new(10, Duration::from_millis(1024));
        assert_eq!(memory.need(&id(1), 5), Need::Write { created_at_ms: 5 });
        assert_eq!(
            memory.need(&id(1), 6),
            Need::Write { created_at_ms: 6 },
            "not remembered before success"
        );
        memory.written(&id(1), 6, 7);
        assert_eq!(memory.need(&id(1), 8), Need::No);
        assert_eq!(
            memory.need(&id(1), 7 + 1024),
            Need::Write { created_at_ms: 6 },
            "creation time is kept"
        );
    }

    #[test]
    fn a_full_memory_forgets_what_was_written_longest_ago() {
        let mut memory = DefinitionMemory::new(100, Duration::from_secs(1000));
        for number in 0..101 {
            memory.written(&id(number), 0, i64::from(number));
        }
        assert!(memory.len() <= 100);
        assert_eq!(memory.need(&id(100), 101), Need::No);
        assert!(matches!(memory.need(&id(0), 101), Need::Write { .. }));
    }

    #[test]
    fn what_a_store_may_have_lost_is_forgotten() {
        let mut memory = DefinitionMemory::new(10, Duration::from_secs(1000));
        memory.written(&id(1), 0, 10);
        memory.written(&id(2), 0, 20);
        memory.forget_since(20);
        assert_eq!(memory.need(&id(1), 21), Need::No);
        assert!(matches!(memory.need(&id(2), 21), Need::Write { .. }));
    }
}
