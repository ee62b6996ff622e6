//! What a store answers when it did not write, named by what the caller does next.

/// What to do about rows that were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The outcome is unknown or the store is busy or away: send the same rows again later, for ever.
    Retry,
    /// Too much in one request: send halves, down to single rows.
    Split,
    /// Nothing gets through until a person repairs something: keep everything, probe slowly, say so.
    Wait,
    /// This row can never be stored: dead letter. Given for several rows it means: split to find the one.
    Reject,
}

impl Verdict {
    /// Its name in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Split => "split",
            Self::Wait => "wait",
            Self::Reject => "reject",
        }
    }
}

/// Why rows were not written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct StoreError {
    /// What the caller does next.
    pub verdict: Verdict,
    /// Stable code for logs, metrics and documentation, for example `DB_TIMEOUT`.
    pub code: &'static str,
    /// What the store said, for people.
    pub detail: String,
    /// False: it does not tell whether it is about these rows or about all, so that a rejection may be all rows' and a
    /// retry these rows' alone. The caller judges by what becomes of other rows.
    pub is_sure: bool,
}

impl StoreError {
    /// An error with its verdict and code.
    pub fn new(verdict: Verdict, code: &'static str, detail: impl Into<String>) -> Self {
        Self { verdict, code, detail: detail.into(), is_sure: true }
    }

    /// The same, but it does not tell whom it is about.
    #[must_use]
    pub fn unsure(self) -> Self {
        Self { is_sure: false, ..self }
    }
}
