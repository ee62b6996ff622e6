//! How long things took, as counts per bucket: cheap enough for every write, and what a Prometheus
//! histogram needs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds; the last bucket has none.
pub const BUCKET_MICROS: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 5_000_000, 30_000_000,
];

/// Counts that any thread may add to.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    buckets: [AtomicU64; BUCKET_MICROS.len() + 1],
    sum_micros: AtomicU64,
    last_micros: AtomicU64,
}

/// What the log measures.
#[derive(Debug, Default)]
pub(crate) struct Timings {
    /// From the append to durable.
    pub append: Timing,
    /// The write of a group.
    pub write: Timing,
    /// The sync of a group.
    pub sync: Timing,
}

impl Timing {
    pub fn note(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BUCKET_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
        self.last_micros.store(micros, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> Latency {
        let mut counts = [0; BUCKET_MICROS.len() + 1];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        Latency {
            counts,
            sum: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)),
            last: Duration::from_micros(self.last_micros.load(Ordering::Relaxed)),
        }
    }
}

/// A snapshot of one latency since the log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// How many fell between two bounds of [`BUCKET_MICROS`], the upper one included; the last
    /// entry has what is above all bounds.
    pub counts: [u64; BUCKET_MICROS.len() + 1],
    /// All of them together.
    pub sum: Duration,
    /// The latest one.
    pub last: Duration,
}

impl Latency {
    /// How many were measured.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// An upper bound for the given share of them (0.99 for the 99th percentile), as far as the
    /// buckets tell; `None` without measurements or beyond the last bound.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let total = self.count();
        let wanted = (total as f64 * share.clamp(0.0, 1.0)).ceil().max(1.0);
        let mut seen = 0;
        for (count, bound) in self.counts.iter().zip(BUCKET_MICROS) {
            seen += count;
            if total > 0 && seen as f64 >= wanted {
                return Some(Duration::from_micros(bound));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds_from_above() {
        let timing = Timing::default();
        assert_eq!(timing.snapshot().quantile(0.5), None);
        for micros in [10, 11, 30, 400, 2_000_000, 60_000_000] {
            timing.note(Duration::from_micros(micros));
        }
        let snapshot = timing.snapshot();
        assert_eq!(snapshot.count(), 6);
        assert_eq!(snapshot.quantile(0.0), Some(Duration::from_micros(10)));
        assert_eq!(snapshot.quantile(0.5), Some(Duration::from_micros(50)));
        assert_eq!(snapshot.quantile(0.8), Some(Duration::from_secs(5)));
        assert_eq!(snapshot.quantile(1.0), None, "beyond the last bound");
        assert_eq!(snapshot.last, Duration::from_secs(60));
    }
}
