//! Alarm transitions before metrics: an alarm that waits for a backlog of metrics is news that comes too late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What pipelines of alarms claim, and those of metrics respect. A claim holds while rows of alarms are on their way or
/// may leave; what waits for a store that does not take it claims nothing.
#[derive(Debug, Clone, Default)]
pub struct Precedence {
    claims: Arc<std::sync::Mutex<Vec<Arc<AtomicBool>>>>,
}

/// The claim of one pipeline.
#[derive(Debug)]
pub struct Claim(Arc<AtomicBool>);

impl Precedence {
    /// A claim that is not made yet.
    #[must_use]
    pub fn claim(&self) -> Claim {
        let claim = Arc::new(AtomicBool::new(false));
        crate::sync::lock(&self.claims).push(Arc::clone(&claim));
        Claim(claim)
    }

    /// Whether somebody claims it now.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        crate::sync::lock(&self.claims).iter().any(|claim| claim.load(Ordering::Relaxed))
    }
}

impl Claim {
    /// Makes the claim, or gives it up.
    pub fn set(&self, claimed: bool) {
        self.0.store(claimed, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.set(false);
    }
}
