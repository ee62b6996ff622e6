//! Deliberate bugs that the audit must catch. This module exists only with the feature `mutants`.

/// The log's bug, when this process was told to have it: it calls batches durable before they are, so that their
/// offsets are committed too early. Such a process keeps no ledger: the next start would notice by it, and fetch again
/// what was lost.
#[must_use]
pub fn of_the_log() -> wal::Mutant {
    match std::env::var_os("MONASCA_PERSISTER_MUTANT") {
        Some(name) if name == "commit-before-durable" => wal::Mutant::AckBeforeSync,
        _ => wal::Mutant::None,
    }
}
