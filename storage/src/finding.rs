//! What a look at a service found, one line each.

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Fine,
    /// Cannot be asked without changing something, or is not ours to ask.
    Unchecked,
    /// Nobody answers.
    Away,
    /// Something is not as the configuration says, or is not there.
    Wrong,
    /// A right is missing.
    Forbidden,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it means.
    pub grade: Grade,
    /// What was found.
    pub what: String,
    /// What to type or to set.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn fine(what: impl Into<String>) -> Self {
        Self { grade: Grade::Fine, what: what.into(), remedy: None }
    }

    /// Something else, and what to do.
    pub fn new(grade: Grade, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        Self { grade, what: what.into(), remedy }
    }
}
