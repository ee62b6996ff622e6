//! Deliberate bugs that the audit must catch. This module exists only with the feature `mutants`.

/// True when this process was told to commit offsets before the log has the messages.
#[must_use]
pub fn commit_before_durable() -> bool {
    std::env::var_os("MONASCA_PERSISTER_MUTANT").is_some_and(|name| name == "commit-before-durable")
}
