//! When to stop asking the store, and when to ask again. Pure.
//!
//! Closed: requests flow. Open: none do, until a probe is due. Half-open: one probe is on its way and decides.

use std::time::Duration;

/// Numbers that the breaker decides by.
#[derive(Debug, Clone, Copy)]
pub struct BreakerConfig {
    /// Failures in a row, without any success between them, that open it.
    pub failures_max: u32,
    /// Time from opening to the first probe; doubles with each failed one.
    pub probe_first: Duration,
    /// Longest time between two probes.
    pub probe_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_max: 5,
            probe_first: Duration::from_millis(500),
            probe_max: Duration::from_secs(15),
        }
    }
}

/// Where the breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Requests flow.
    Closed,
    /// No requests until the next probe.
    Open,
    /// One probe is on its way.
    HalfOpen,
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    failures: u32,
    probe_after: Duration,
    probe_at: Duration,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: BreakerState::Closed,
            failures: 0,
            probe_after: config.probe_first,
            probe_at: Duration::ZERO,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// When the next probe may go, while it is open.
    #[must_use]
    pub fn probe_at(&self) -> Option<Duration> {
        (self.state == BreakerState::Open).then_some(self.probe_at)
    }

    /// Whether a request may go now; while open, the first one that may is the probe.
    pub fn admit(&mut self, now: Duration) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open if now >= self.probe_at => {
                self.state = BreakerState::HalfOpen;
                true
            }
            BreakerState::Open | BreakerState::HalfOpen => false,
        }
    }

    /// A request succeeded. Returns true when that closed the breaker.
    pub fn succeeded(&mut self) -> bool {
        let closed_now = self.state != BreakerState::Closed;
        self.state = BreakerState::Closed;
        self.failures = 0;
        self.probe_after = self.config.probe_first;
        closed_now
    }

    /// A request failed for a reason that is the store's and not the row's. Returns true when that opened the breaker.
    pub fn failed(&mut self, at_once: bool, now: Duration) -> bool {
        match self.state {
            BreakerState::Closed => {
                self.failures = self.failures.saturating_add(1);
                if at_once || self.failures >= self.config.failures_max {
                    self.state = BreakerState::Open;
                    self.probe_after = self.config.probe_first;
                    self.probe_at = now.saturating_add(self.probe_after);
                    return true;
                }
            }
            BreakerState::HalfOpen => {
                self.state = BreakerState::Open;
                self.probe_after = self.probe_after.saturating_mul(2).min(self.config.probe_max);
                self.probe_at = now.saturating_add(self.probe_after);
            }
            // Answers to requests that were on their way when it opened.
            BreakerState::Open => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened() -> Breaker {
        let mut breaker = Breaker::new(BreakerConfig {
            failures_max: 2,
            probe_first: SECOND,
            probe_max: 4 * SECOND,
        });
        assert!(!breaker.failed(false, Duration::ZERO));
        assert!(breaker.failed(false, Duration::ZERO));
        breaker
    }

    #[test]
    fn an_open_breaker_lets_one_probe_through_when_it_is_due() {
        let mut breaker = opened();
        assert!(!breaker.admit(SECOND / 2));
        assert!(breaker.admit(SECOND));
        assert!(!breaker.admit(SECOND), "one probe at a time");
        assert!(breaker.succeeded());
        assert!(breaker.admit(SECOND));
    }

    #[test]
    fn failed_probes_grow_rarer_up_to_the_limit() {
        let mut breaker = opened();
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..4 {
            let at = breaker.probe_at().unwrap();
            waits.push((at - now).as_secs());
            now = at;
            assert!(breaker.admit(now));
            breaker.failed(false, now);
        }
        assert_eq!(waits, [1, 2, 4, 4]);
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let mut breaker =
            Breaker::new(BreakerConfig { failures_max: 2, ..BreakerConfig::default() });
        assert!(!breaker.failed(false, Duration::ZERO));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(false, Duration::ZERO));
    }

    #[test]
    fn a_failure_that_needs_a_person_opens_at_once() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        assert!(breaker.failed(true, Duration::ZERO));
    }
}
