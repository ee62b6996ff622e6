//! How fast a pipeline fills and drains, and what follows from that. Pure: the clock is an argument.

use std::collections::VecDeque;
use std::time::Duration;

/// Rates look back so far.
const WINDOW: Duration = Duration::from_secs(10);
/// Slower than this is standing still: a forecast would be about years.
const STANDING_PER_S: f64 = 0.01;

/// What was counted at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    appended: u64,
    delivered: u64,
}

/// How much is delivered, between the moments at which that is proved: a record counts as delivered when everything it
/// was gathered with is, which with a long backlog may take minutes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    proved: u64,
    written: u64,
    partly: u64,
}

impl Progress {
    /// `proved` records are delivered, and rows of `written` records were written since the start.
    pub fn sample(&mut self, proved: u64, written: u64) {
        if proved != self.proved {
            (self.proved, self.written) = (proved, written);
        }
        self.partly = written.saturating_sub(self.written);
    }

    /// Records whose rows are written, of `backlog` that are not proved to be.
    #[must_use]
    pub fn written_of(&self, backlog: u64) -> u64 {
        // One at least is left while anything waits.
        self.partly.min(backlog.saturating_sub(1))
    }
}

/// Samples of the last seconds.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    samples: VecDeque<Sample>,
}

impl Rates {
    /// Records appended and delivered until `at`.
    pub fn sample(&mut self, at: Duration, appended: u64, delivered: u64) {
        self.samples.push_back(Sample { at, appended, delivered });
        // The oldest one that is a window old stays: it is the other end.
        while self.samples.get(1).is_some_and(|second| at.saturating_sub(second.at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Records appended per second.
    #[must_use]
    pub fn in_per_s(&self) -> f64 {
        self.per_s(|sample| sample.appended)
    }

    /// Records delivered per second.
    #[must_use]
    pub fn out_per_s(&self) -> f64 {
        self.per_s(|sample| sample.delivered)
    }

    /// What moves in lumps, as large requests do, is measured from lump to lump; one that is overdue makes it slower.
    fn per_s(&self, count: impl Fn(&Sample) -> u64) -> f64 {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        let moved = || pairs.clone().filter(|(before, after)| count(after) != count(before));
        let (Some(now), Some((before, first)), Some((_, last))) =
            (self.samples.back(), moved().next(), moved().last())
        else {
            return 0.0;
        };
        let lumps = moved().count().saturating_sub(1);
        // One alone says how much, not how often.
        let (from, seconds) = if lumps == 0 {
            let oldest = self.samples.front().unwrap_or(before);
            (before, now.at.saturating_sub(oldest.at))
        } else {
            let between = last.at.saturating_sub(first.at);
            let overdue = now.at.saturating_sub(last.at);
            (first, between.max((between + overdue).saturating_sub(between / narrow(lumps))))
        };
        let seconds = seconds.as_secs_f64();
        if seconds > 0.0 { float(count(last).saturating_sub(count(from))) / seconds } else { 0.0 }
    }

    /// Seconds until `room_bytes` are taken, when a record takes `record_bytes`; `None` while the backlog does not grow.
    #[must_use]
    pub fn seconds_to_full(&self, room_bytes: f64, record_bytes: f64) -> Option<f64> {
        let growth = self.in_per_s() - self.out_per_s();
        (growth > STANDING_PER_S && record_bytes > 0.0)
            .then(|| (room_bytes / (growth * record_bytes)).max(0.0))
    }

    /// Seconds until `records` are delivered; `None` while the backlog does not shrink.
    #[must_use]
    pub fn seconds_to_drained(&self, records: u64) -> Option<f64> {
        let shrinking = self.out_per_s() - self.in_per_s();
        if records == 0 {
            return Some(0.0);
        }
        (shrinking > STANDING_PER_S).then(|| float(records) / shrinking)
    }
}

/// For rates and fills: beyond 2^53 the error does not matter.
#[expect(clippy::cast_precision_loss, reason = "a rate needs no exact count")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// Back to a count.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count again, clamped"
)]
pub(crate) fn whole(count: f64) -> u64 {
    count.max(0.0) as u64
}

fn narrow(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(in_per_s: u64, out_per_s: u64) -> Rates {
        let mut rates = Rates::default();
        for second in 0..30 {
            rates.sample(Duration::from_secs(second), second * in_per_s, second * out_per_s);
        }
        rates
    }

    #[test]
    fn a_steady_rate_is_told_exactly_and_forecasts_follow_from_it() {
        let rates = steady(100, 40);
        assert_eq!((rates.in_per_s(), rates.out_per_s()), (100.0, 40.0));
        // 60 records a second of 50 bytes into 30,000 bytes.
        assert_eq!(rates.seconds_to_full(30_000.0, 50.0), Some(10.0));
        assert_eq!(rates.seconds_to_drained(600), None);
        let rates = steady(40, 100);
        assert_eq!(rates.seconds_to_drained(600), Some(10.0));
        assert_eq!(rates.seconds_to_full(30_000.0, 50.0), None);
    }

    #[test]
    fn what_is_written_counts_before_it_is_proved_and_not_twice() {
        let mut progress = Progress::default();
        progress.sample(100, 0);
        assert_eq!(progress.written_of(50), 0);
        progress.sample(100, 30);
        assert_eq!((progress.written_of(50), progress.written_of(10)), (30, 9));
        progress.sample(140, 45);
        assert_eq!(progress.written_of(10), 0);
        progress.sample(140, 47);
        assert_eq!((progress.written_of(10), progress.written_of(0)), (2, 0));
    }

    #[test]
    fn a_rate_that_changed_is_forgotten_after_the_window() {
        let mut rates = steady(1000, 0);
        for second in 30..41 {
            rates.sample(Duration::from_secs(second), 29_000, 0);
        }
        assert_eq!(rates.in_per_s(), 0.0);
    }

    #[test]
    fn what_moves_in_lumps_has_the_rate_of_its_lumps_until_one_is_overdue() {
        // 400 every 4 seconds, after a long time of nothing.
        let delivered = |second: u64| second.saturating_sub(20) / 4 * 400;
        let mut rates = Rates::default();
        for second in 0..=40 {
            rates.sample(Duration::from_secs(second), 0, delivered(second));
            if second >= 28 {
                assert_eq!(rates.out_per_s(), 100.0, "after {second} s");
            }
        }
        let mut told = rates.out_per_s();
        for second in 45..52 {
            rates.sample(Duration::from_secs(second), 0, delivered(40));
            assert!(rates.out_per_s() <= told, "after {second} s: {}", rates.out_per_s());
            told = rates.out_per_s();
            if told == 0.0 {
                return;
            }
        }
        panic!("{told} a second, and nothing has moved for {WINDOW:?}");
    }

    #[test]
    fn nothing_is_foretold_of_what_stands_still() {
        let rates = steady(0, 0);
        assert_eq!((rates.seconds_to_full(1.0, 1.0), rates.seconds_to_drained(5)), (None, None));
        assert_eq!(rates.seconds_to_drained(0), Some(0.0));
        assert_eq!(Rates::default().in_per_s(), 0.0);
    }
}
