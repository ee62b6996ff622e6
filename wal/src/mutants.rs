//! Deliberate bugs, so that the tests can prove that they would notice one.
//!
//! The module exists only with the feature `mutants`; a release build has no such code.

/// The bug a log shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// No bug.
    #[default]
    None,
    /// Tickets and `durable()` resolve as soon as the batch is queued, while the committer writes
    /// only every 500 ms.
    AckBeforeSync,
}
