//! A bounded memory of the definitions that were written, so that each is written once per refresh and not with every
//! measurement. Knows no clock; forgetting costs a rewrite, never a row.
//!
//! It is never more certain than the truth, because a definition that is missing in the store and remembered here would
//! be missing until its next refresh:
//!
//! - Something is remembered only after the store confirmed it. When the memory is full, the half that was written
//!   longest ago is forgotten: those come up for their refresh first anyway.
//! - What survives a restart ([`DefinitionCache`]) is less: a store may confirm a row before it is safe there.
//!   Cassandra acknowledges before it syncs its commit log, so after a power cut it may lack what it confirmed in the
//!   last seconds, while a cache on another machine, or in a luckier file, still claims it. Therefore a definition goes
//!   into the cache only when its confirmation is older than the hold-back, the same time for which delivered records
//!   stay in the log; an embedded store's needs a flush that began after it, and nothing more. What is younger lives in
//!   memory only and ends with the process: the next one writes it again.
//! - A store that lost its last writes while the process lives is what [`DefinitionMemory::forget_since`] is for, in the
//!   cache first.
//! - Times: a definition is due by the time it was stamped with, because its time to live may count from there. It is
//!   forgotten by the time it was confirmed, which may be an outage later. Both are kept. One that was confirmed more
//!   than [`LATE_MAX`] after its stamp is not remembered at all.
//! - Creation times are whole seconds here, and only what the memory knows: a store keeps the earliest that it has.
//!
//! A series is known by the first 80 bits of its id, a cryptographic digest. Among n series the chance that any two
//! share them is about n^2 / 2^81: 4e-13 for a million, 4e-11 for ten million. The price would be the description of
//! one series, as long as the other one lives. An id that somebody makes collide on purpose is of the same tenant, whose
//! name is part of what is hashed.

mod cache;
mod table;

use std::collections::VecDeque;
use std::time::Duration;

pub use cache::{CacheError, DefinitionCache, Opened};
pub use table::Entry;
use table::Table;

use crate::metric_id::MetricId;

/// Whether a definition has to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Write it, with this creation time.
    Write {
        /// Milliseconds since the epoch, whole seconds.
        created_at_ms: i64,
    },
    /// It was written recently.
    No,
}

/// A definition that was confirmed later after its stamp is not remembered: it is written anew.
pub const LATE_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// A clock is set back by less than this all the time.
const CLOCK_STEP_S: i64 = 60 * 60;

/// What the memory did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefinitionCounts {
    /// Definitions that the store confirmed.
    pub written: u64,
    /// Definitions remembered from an earlier process.
    pub loaded: u64,
    /// Definitions forgotten because the memory was full.
    pub forgotten: u64,
}

/// Safe in the store since `confirmed`, by a monotonic clock.
#[derive(Debug)]
struct Young {
    confirmed: Duration,
    entry: Entry,
}

/// The memory.
#[derive(Debug)]
pub struct DefinitionMemory {
    capacity: usize,
    refresh_s: i64,
    late_max: Duration,
    table: Table,
    /// Confirmed, and not yet handed to the cache; in the order of confirmation.
    young: VecDeque<Young>,
    counts: DefinitionCounts,
}

impl DefinitionMemory {
    /// Remembers up to `capacity` definitions and asks for each again after `refresh`. Memory is taken as it is used.
    #[must_use]
    pub fn new(capacity: usize, refresh: Duration) -> Self {
        let refresh_s = i64::try_from(refresh.as_secs()).unwrap_or(i64::MAX);
        Self {
            capacity: capacity.max(1),
            refresh_s,
            late_max: LATE_MAX.min(refresh / 4),
            table: Table::default(),
            young: VecDeque::new(),
            counts: DefinitionCounts::default(),
        }
    }

    /// Whether the definition of `id` has to be written at `now_ms`.
    #[must_use]
    pub fn need(&self, id: &MetricId, now_ms: i64) -> Need {
        let now_s = now_ms.div_euclid(1000);
        match self.table.get(&table::key(id)) {
            None => Need::Write { created_at_ms: now_s.saturating_mul(1000) },
            // Written in the future: the clock was wrong then. Whatever that did to its time to live, it is due.
            Some(entry)
                if now_s.saturating_sub(i64::from(entry.written_s)) >= self.due_after_s(id)
                    || i64::from(entry.written_s) > now_s.saturating_add(CLOCK_STEP_S) =>
            {
                Need::Write { created_at_ms: i64::from(entry.created_s).saturating_mul(1000) }
            }
            Some(_) => Need::No,
        }
    }

    /// The store has confirmed the definition that was stamped with `written_at_ms`, `late` after that. Call it only then:
    /// a failed write must be tried again.
    pub fn written(
        &mut self,
        id: &MetricId,
        created_at_ms: i64,
        written_at_ms: i64,
        late: Duration,
    ) {
        self.counts.written = self.counts.written.saturating_add(1);
        let times = (seconds(created_at_ms), seconds(written_at_ms), u16::try_from(late.as_secs()));
        // A clock before 1970 or after 2106 is not worth remembering by.
        let (Some(created_s), Some(written_s), Ok(late_s)) = times else { return };
        if late > self.late_max {
            return;
        }
        let entry = Entry { key: table::key(id), late_s, written_s, created_s };
        self.remember(entry);
    }

    /// What the store confirmed of `id` would survive a crash of it from `confirmed` on, as far as it says; the cache may
    /// have it when its hold-back is over.
    pub fn safe(&mut self, id: &MetricId, confirmed: Duration) {
        if let Some(entry) = self.table.get(&table::key(id)) {
            if self.young.len() >= self.capacity {
                self.young.pop_front();
            }
            self.young.push_back(Young { confirmed, entry });
        }
    }

    /// What was safe `hold_back` ago, at most `most` of it, each once: for the cache.
    pub fn take_settled(&mut self, now: Duration, hold_back: Duration, most: usize) -> Vec<Entry> {
        let mut settled = Vec::new();
        while settled.len() < most
            && self
                .young
                .front()
                .is_some_and(|young| now.saturating_sub(young.confirmed) >= hold_back)
        {
            if let Some(Young { entry, .. }) = self.young.pop_front()
                // Forgotten meanwhile, or written again: then it is not this one that counts.
                && self.table.get(&entry.key) == Some(entry)
            {
                settled.push(entry);
            }
        }
        if self.young.is_empty() {
            self.young = VecDeque::new();
        }
        settled
    }

    /// Remembers what an earlier process left in the cache; what is known already and newer stays.
    pub fn load(&mut self, mut entries: Vec<Entry>) {
        // In the order in which they will lie, a million take a fraction of the time.
        entries.sort_unstable_by_key(|entry| (entry.key, entry.written_s));
        for entry in entries {
            if self.table.get(&entry.key).is_none_or(|known| known.written_s < entry.written_s) {
                self.counts.loaded = self.counts.loaded.saturating_add(1);
                self.remember(entry);
            }
        }
    }

    /// Forgets what was confirmed at or after `since_ms`, and everything that is not in the cache yet: a store that lost
    /// its last writes gets it again.
    pub fn forget_since(&mut self, since_ms: i64) {
        let since_s = since_ms.div_euclid(1000);
        for Young { entry, .. } in std::mem::take(&mut self.young) {
            self.table.remove(&entry.key);
        }
        self.table.retain(|entry| entry.confirmed_s() < since_s);
    }

    /// Forgets everything: it is another store, or the tables are new.
    pub fn forget_all(&mut self) {
        self.table = Table::default();
        self.young = VecDeque::new();
    }

    /// Definitions remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let young = self.young.capacity().saturating_mul(size_of::<Young>());
        self.table.bytes().saturating_add(young)
    }

    /// What it did.
    #[must_use]
    pub fn counts(&self) -> DefinitionCounts {
        self.counts
    }

    fn remember(&mut self, entry: Entry) {
        self.table.insert(entry);
        if self.table.len() > self.capacity {
            self.forget_older_half();
        }
    }

    /// The refresh interval, shortened by up to a quarter depending on the id, so that series that appeared together
    /// are not refreshed together.
    fn due_after_s(&self, id: &MetricId) -> i64 {
        let spread = i64::from(id.as_bytes().first().copied().unwrap_or(0));
        self.refresh_s.saturating_sub(self.refresh_s.saturating_mul(spread) / 1024)
    }

    fn forget_older_half(&mut self) {
        let mut times: Vec<u32> = self.table.iter().map(|entry| entry.written_s).collect();
        let half = times.len() / 2;
        let (older, median, _) = times.select_nth_unstable(half);
        let median = *median;
        // Of one and the same second any may go, but no more than the half.
        let mut spare = half.saturating_sub(older.iter().filter(|time| **time < median).count());
        self.table.retain(|entry| {
            let keep = entry.written_s > median || (entry.written_s == median && spare == 0);
            if entry.written_s == median {
                spare = spare.saturating_sub(1);
            }
            keep
        });
        self.counts.forgotten =
            self.counts.forgotten.saturating_add(u64::try_from(half).unwrap_or(u64::MAX));
    }
}

/// Whole seconds since 1970, if they fit.
fn seconds(time_ms: i64) -> Option<u32> {
    u32::try_from(time_ms.div_euclid(1000)).ok()
}

#[cfg(test)]
mod tests;
