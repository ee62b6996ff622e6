//! Alarm transitions before metrics: an alarm that waits for a backlog of metrics is news that comes too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What pipelines of alarms claim, and those of metrics respect. A claim holds while rows of alarms are on their way or
/// may leave; what waits for a store that does not take it claims nothing.
#[derive(Debug, Clone, Default)]
pub struct Precedence {
    claims: Arc<AtomicUsize>,
}

/// The claim of one pipeline.
#[derive(Debug)]
pub struct Claim {
    claims: Arc<AtomicUsize>,
    is_made: bool,
}

impl Precedence {
    /// A claim that is not made yet.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim { claims: Arc::clone(&self.claims), is_made: false }
    }

    /// Whether somebody claims it now.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        self.claims.load(Ordering::Relaxed) > 0
    }
}

impl Claim {
    /// Makes the claim, or gives it up.
    pub fn set(&mut self, claimed: bool) {
        match (self.is_made, claimed) {
            (false, true) => self.claims.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.claims.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.is_made = claimed;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_lasts_as_long_as_anybody_claims_it() {
        let precedence = Precedence::default();
        let (mut one, mut other) = (precedence.claim(), precedence.claim());
        assert!(!precedence.is_claimed());
        one.set(true);
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(precedence.is_claimed());
        drop(other);
        assert!(!precedence.is_claimed());
    }
}
