//! The largest request that the store takes, as far as it has said so.
//!
//! Its settings decide that, and nobody tells them: a request that was too large is sent in halves, and no later one is
//! made as large. Forgotten by a restart.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests are made no smaller than this for being too large.
const LEAST_BYTES: usize = 1 << 10;

/// The limit, shared by who makes requests and who hears the answers.
#[derive(Debug)]
pub struct BatchLimit {
    bytes: AtomicUsize,
}

impl Default for BatchLimit {
    fn default() -> Self {
        Self { bytes: AtomicUsize::new(usize::MAX) }
    }
}

impl BatchLimit {
    /// A request of about so many bytes was too large.
    pub fn too_large(&self, bytes: usize) {
        self.bytes.fetch_min((bytes / 2).max(LEAST_BYTES), Ordering::Relaxed);
    }

    /// Most bytes in a request from now on.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_only_shrinks_and_not_below_what_a_row_may_need() {
        let limit = BatchLimit::default();
        assert_eq!(limit.bytes_max(), usize::MAX);
        limit.too_large(60_000);
        limit.too_large(100_000);
        assert_eq!(limit.bytes_max(), 30_000);
        limit.too_large(10);
        assert_eq!(limit.bytes_max(), LEAST_BYTES);
    }
}
