//! What a person wants done with dead letters while the persister runs, as files in its data directory: the command line
//! writes an order, the persister carries it out within a second or at its next start, and leaves the outcome beside it.
//! Whoever may write there may order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LetterFilter, Outcome};
use crate::whole_file;

/// What to do with letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Remove them for good.
    Drop,
    /// Have their messages delivered anew.
    Retry,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
pub struct LetterOrder {
    /// What.
    pub verb: Verb,
    /// With which letters.
    pub filter: LetterFilter,
    /// Only those before this position: whoever gave the order has seen no others.
    pub end: u64,
}

/// Orders of one data directory.
#[derive(Debug, Clone)]
pub struct LetterOrders {
    dir: PathBuf,
}

const ORDER: &str = ".order.json";
const OUTCOME: &str = ".outcome.json";
/// An outcome that nobody fetched goes after this time.
const OUTCOME_KEPT: Duration = Duration::from_secs(60 * 60);

impl LetterOrders {
    /// Orders for the persister whose data directory it is.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("orders").join("dead-letters") }
    }

    /// Gives an order and returns its name.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub fn give(&self, order: &LetterOrder) -> std::io::Result<String> {
        std::fs::create_dir_all(&self.dir)?;
        let ms = crate::clock::wall_ms();
        let name = format!("{ms}-{}", std::process::id());
        let path = self.dir.join(format!("{name}{ORDER}"));
        whole_file::write(&path, &serde_json::to_vec(order)?)?;
        Ok(name)
    }

    /// Orders that were not carried out, oldest first; one that cannot be read comes with the reason.
    #[must_use]
    pub fn pending(&self) -> Vec<(String, Result<LetterOrder, String>)> {
        let mut names: Vec<String> = self.names(ORDER).collect();
        names.sort();
        let read = |name: String| {
            let read = std::fs::read(self.dir.join(format!("{name}{ORDER}")));
            let order = read.map_err(|error| error.to_string()).and_then(|bytes| {
                serde_json::from_slice(&bytes).map_err(|error| error.to_string())
            });
            (name, order)
        };
        names.into_iter().map(read).collect()
    }

    /// An order was carried out.
    ///
    /// # Errors
    /// The data directory cannot be written: the order stays, and carrying it out again changes nothing.
    pub fn done(&self, name: &str, outcome: &Outcome) -> std::io::Result<()> {
        let path = self.dir.join(format!("{name}{OUTCOME}"));
        whole_file::write(&path, &serde_json::to_vec(outcome)?)?;
        std::fs::remove_file(self.dir.join(format!("{name}{ORDER}")))?;
        for name in self.names(OUTCOME) {
            let path = self.dir.join(format!("{name}{OUTCOME}"));
            let age = path.metadata().and_then(|data| data.modified()).map(|time| time.elapsed());
            if matches!(age, Ok(Ok(age)) if age > OUTCOME_KEPT) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Takes an order's outcome, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn outcome(&self, name: &str) -> std::io::Result<Option<Outcome>> {
        let path = self.dir.join(format!("{name}{OUTCOME}"));
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let outcome = serde_json::from_slice(&bytes)?;
        std::fs::remove_file(path)?;
        Ok(Some(outcome))
    }

    fn names(&self, suffix: &'static str) -> impl Iterator<Item = String> {
        let entries = self.dir.read_dir().into_iter().flatten();
        entries.filter_map(move |entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(suffix).map(str::to_owned)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_waits_until_it_is_done_and_its_outcome_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let orders = LetterOrders::of(dir.path());
        assert!(orders.pending().is_empty());
        let filter = LetterFilter { codes: vec!["NOT_JSON".to_owned()], ..Default::default() };
        let order = LetterOrder { verb: Verb::Drop, filter, end: 7 };
        let name = orders.give(&order).unwrap();
        assert_eq!(orders.pending(), [(name.clone(), Ok(order))]);
        assert_eq!(orders.outcome(&name).unwrap(), None);
        let outcome = Outcome { removed: 3, ..Outcome::default() };
        orders.done(&name, &outcome).unwrap();
        assert!(orders.pending().is_empty());
        assert_eq!(orders.outcome(&name).unwrap(), Some(outcome));
        assert_eq!(orders.outcome(&name).unwrap(), None);
    }

    #[test]
    fn an_order_that_nobody_can_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let orders = LetterOrders::of(dir.path());
        let path = dir.path().join("orders/dead-letters");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("1.order.json"), r#"{"verb":"eat"}"#).unwrap();
        std::fs::write(path.join("2.order.json.new"), "half").unwrap();
        let pending = orders.pending();
        assert_eq!(pending.len(), 1);
        assert!(pending[0].1.as_ref().unwrap_err().contains("eat"));
    }
}
