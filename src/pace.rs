//! How fast bytes may leave for the store, all pipelines together: for links that others need too. Pure.

use std::time::Duration;

/// What may be sent at once after a pause: so much as the rate allows in this time.
const BURST: Duration = Duration::from_millis(250);

/// A bucket of bytes that fills at a steady rate. A request may be larger than what is in it; those after it wait for
/// that much longer.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: f64,
    /// Below zero: sent ahead of time.
    room: f64,
    filled_at: Duration,
}

impl Pace {
    /// A full bucket.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        let bytes_per_second = as_f64(bytes_per_second).max(1.0);
        Self {
            bytes_per_second,
            room: bytes_per_second * BURST.as_secs_f64(),
            filled_at: Duration::ZERO,
        }
    }

    /// When the next request may leave; not after `now` means: now. Who gives way to others leaves half a burst to them.
    pub fn next_at(&mut self, now: Duration, gives_way: bool) -> Duration {
        let since = now.saturating_sub(self.filled_at).as_secs_f64();
        self.filled_at = self.filled_at.max(now);
        let most = self.bytes_per_second * BURST.as_secs_f64();
        self.room = self.bytes_per_second.mul_add(since, self.room).min(most);
        let left = if gives_way { most / 2.0 } else { 0.0 };
        if self.room > left {
            return now;
        }
        let wait = Duration::from_secs_f64((left - self.room) / self.bytes_per_second);
        now.saturating_add(wait.max(Duration::from_millis(1)))
    }

    /// Another rate from now on.
    pub fn change(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = as_f64(bytes_per_second).max(1.0);
    }

    /// A request of so many bytes leaves.
    pub fn take(&mut self, bytes: usize) {
        self.room -= as_f64(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_rate_counts_from_the_next_request_on() {
        let mut pace = Pace::new(1000);
        send(&mut pace, 100, Duration::ZERO, 10);
        pace.change(5000);
        let sent = send(&mut pace, 100, Duration::from_secs(10), 10);
        assert!((45_000..55_000).contains(&sent), "{sent}");
    }

    /// Sends requests of `bytes` as fast as it may for `seconds`; returns the bytes sent.
    fn send(pace: &mut Pace, bytes: usize, from: Duration, seconds: u64) -> usize {
        let (mut now, mut sent) = (from, 0);
        let end = from + Duration::from_secs(seconds);
        while now < end {
            let at = pace.next_at(now, false);
            if at > now {
                now = at;
                continue;
            }
            pace.take(bytes);
            sent += bytes;
        }
        sent
    }

    #[test]
    fn the_rate_holds_for_small_and_for_large_requests() {
        for bytes in [100, 5_000, 60_000, 300_000] {
            let sent = send(&mut Pace::new(100_000), bytes, Duration::ZERO, 60);
            let most = 6_000_000 + 25_000 + bytes;
            assert!((5_900_000..=most).contains(&sent), "{sent} of {bytes} bytes each");
        }
    }

    #[test]
    fn a_pause_saves_up_no_more_than_a_burst() {
        let mut pace = Pace::new(100_000);
        send(&mut pace, 1_000, Duration::ZERO, 10);
        let sent = send(&mut pace, 1_000, Duration::from_secs(1_000), 1);
        assert!(sent <= 126_000, "{sent}");
    }

    #[test]
    fn who_gives_way_sends_only_what_the_others_leave() {
        let mut pace = Pace::new(100_000);
        let (mut now, mut first, mut second) = (Duration::ZERO, 0, 0);
        while now < Duration::from_secs(60) {
            // The others want half of the rate in the first half of the time, and all of it in the second.
            let wants = if now < Duration::from_secs(30) { 500 } else { 2_000 };
            if pace.next_at(now, false) <= now {
                pace.take(wants);
                first += wants;
            }
            if pace.next_at(now, true) <= now {
                pace.take(1_000);
                second += 1_000;
            }
            now += Duration::from_millis(10);
        }
        assert!((4_450_000..=4_550_000).contains(&first), "{first}");
        assert!((1_450_000..=1_550_000).contains(&second), "{second}");
    }
}
