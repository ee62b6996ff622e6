//! How long until Kafka's retention reaches the first message that we have not consumed. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

/// A forecast from the movement of Kafka's oldest offset looks back so far.
const LOOK_BACK: Duration = Duration::from_secs(10 * 60);

/// What is known of one partition that is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// Next offset to consume.
    pub next: i64,
    /// Timestamp of the last message consumed, or of the next one: milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// Kafka's oldest offset.
    pub low: i64,
}

/// Watches the partitions of a topic.
#[derive(Debug, Default)]
pub struct RetentionForecast {
    /// How long Kafka keeps messages; `None`: for ever, or unknown.
    pub retention: Option<Duration>,
    oldest: BTreeMap<i32, Vec<(Duration, i64)>>,
}

impl RetentionForecast {
    /// How long until Kafka removes the next message of the partition: by its age, and by how fast the oldest offset has
    /// moved lately, which covers a retention by size. `None`: it does not, as far as can be seen.
    pub fn left(
        &mut self,
        partition: i32,
        behind: Behind,
        now: Duration,
        now_ms: i64,
    ) -> Option<Duration> {
        let by_age = self.retention.zip(behind.timestamp_ms).map(|(retention, timestamp_ms)| {
            let age_ms = u64::try_from(now_ms.saturating_sub(timestamp_ms)).unwrap_or(0);
            retention.saturating_sub(Duration::from_millis(age_ms))
        });
        let seen = self.oldest.entry(partition).or_default();
        seen.retain(|(at, _)| now.saturating_sub(*at) <= LOOK_BACK);
        let by_movement = seen.first().and_then(|(at, low)| {
            let moved = u32::try_from(behind.low.saturating_sub(*low)).ok().filter(|n| *n > 0)?;
            let ahead = u32::try_from(behind.next.saturating_sub(behind.low)).unwrap_or(0);
            Some(now.saturating_sub(*at).mul_f64(f64::from(ahead) / f64::from(moved)))
        });
        seen.push((now, behind.low));
        match (by_age, by_movement) {
            (Some(age), Some(movement)) => Some(age.min(movement)),
            (one, other) => one.or(other),
        }
    }

    /// The partition is not ours, or not behind.
    pub fn forget(&mut self, partition: i32) {
        self.oldest.remove(&partition);
    }

    /// Whether so little is left that somebody should look: a quarter of the retention, or an hour when it is unknown.
    #[must_use]
    pub fn is_near(&self, left: Duration) -> bool {
        left < self.retention.map_or(Duration::from_secs(3600), |retention| retention / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn behind(next: i64, low: i64, timestamp_ms: Option<i64>) -> Behind {
        Behind { next, timestamp_ms, low }
    }

    #[test]
    fn a_message_goes_when_its_age_reaches_the_retention() {
        let mut forecast =
            RetentionForecast { retention: Some(4 * HOUR), ..RetentionForecast::default() };
        let left = forecast.left(0, behind(10, 0, Some(0)), HOUR, 3_600_000);
        assert_eq!(left, Some(3 * HOUR));
        assert!(!forecast.is_near(3 * HOUR) && forecast.is_near(HOUR - HOUR / 60));
        let late = forecast.left(0, behind(10, 0, Some(0)), 9 * HOUR, 9 * 3_600_000);
        assert_eq!(late, Some(Duration::ZERO));
        assert_eq!(forecast.left(1, behind(10, 0, None), HOUR, 3_600_000), None);
    }

    #[test]
    fn a_retention_by_size_is_seen_by_how_fast_the_oldest_offset_moves() {
        let second = Duration::from_secs(1);
        let mut forecast = RetentionForecast::default();
        assert_eq!(forecast.left(0, behind(1000, 0, Some(0)), second, 0), None);
        assert_eq!(forecast.left(0, behind(1000, 0, Some(0)), 2 * second, 0), None);
        // 100 offsets in 10 seconds, 900 to go.
        let left = forecast.left(0, behind(1000, 100, Some(0)), 11 * second, 0);
        assert_eq!(left, Some(90 * second));
        assert!(forecast.is_near(90 * second));
        forecast.forget(0);
        assert_eq!(forecast.left(0, behind(1000, 100, Some(0)), 12 * second, 0), None);
    }
}
