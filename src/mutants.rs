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

/// How far this process's wall clock is off, from the environment.
pub fn clock_error_ms() -> i64 {
    static ERROR_MS: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *ERROR_MS.get_or_init(|| {
        let text = std::env::var("MONASCA_PERSISTER_CLOCK_ERROR_MS");
        text.ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    })
}
