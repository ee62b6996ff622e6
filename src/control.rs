//! What a person has told the pipelines to leave alone for now. It outlives a restart, because a machine that comes back
//! by itself at night must not undo what somebody decided in the evening.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::sync::lock;
use crate::whole_file;

/// Which stages of a pipeline are to pause.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(deny_unknown_fields, default)]
pub struct OnHold {
    /// Nothing is taken from Kafka.
    pub intake: bool,
    /// Nothing is sent to the store.
    pub delivery: bool,
}

/// A stage of a pipeline.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// From Kafka to the log.
    Intake,
    /// From the log to the store.
    Delivery,
}

/// What is to pause, by pipeline, in `control.json` of the data directory.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    held: Mutex<BTreeMap<String, OnHold>>,
}

impl Control {
    /// What was decided before. A file that cannot be read is said and taken for none: work goes on.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        let path = data_dir.join("control.json");
        let held = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let held = held.unwrap_or_else(|error| {
            tracing::error!(
                code = "CONTROL",
                file = %path.display(),
                error,
                "what is to pause cannot be read: nothing pauses"
            );
            BTreeMap::new()
        });
        Self { path, held: Mutex::new(held) }
    }

    /// What is to pause in this pipeline.
    #[must_use]
    pub fn held(&self, pipeline: &str) -> OnHold {
        lock(&self.held).get(pipeline).copied().unwrap_or_default()
    }

    /// Decides anew about a pipeline, durably before it returns.
    ///
    /// # Errors
    /// The data directory cannot be written: nothing was decided.
    pub fn decide(&self, pipeline: &str, held: OnHold) -> std::io::Result<()> {
        let mut all = lock(&self.held);
        let mut new = all.clone();
        if held == OnHold::default() {
            new.remove(pipeline);
        } else {
            new.insert(pipeline.to_owned(), held);
        }
        whole_file::write(&self.path, &serde_json::to_vec(&new)?)?;
        *all = new;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let held = OnHold { intake: true, delivery: false };
        Control::of(dir.path()).decide("metrics", held).unwrap();
        let again = Control::of(dir.path());
        assert_eq!((again.held("metrics"), again.held("alarms")), (held, OnHold::default()));
        again.decide("metrics", OnHold::default()).unwrap();
        assert_eq!(Control::of(dir.path()).held("metrics"), OnHold::default());
    }

    #[test]
    fn a_file_that_nobody_can_read_pauses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("control.json"), "{").unwrap();
        assert_eq!(Control::of(dir.path()).held("metrics"), OnHold::default());
    }
}
