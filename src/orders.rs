//! What a person asks of a running persister, as files in its data directory: written by the command line, carried out
//! within a second, or at the next start. Whoever may write there may ask.

use std::path::{Path, PathBuf};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Fetch what another instance owes.
    Rewind {
        /// Its name.
        instance: String,
    },
    /// Take note of what is lost, and of gaps.
    Acknowledge,
    /// Go on with partitions that stopped at a gap.
    Accept,
}

/// The orders for one pipeline.
#[derive(Debug, Clone)]
pub struct Orders {
    dir: PathBuf,
    prefix: String,
}

impl Orders {
    /// Orders for a pipeline of the persister whose data directory it is.
    #[must_use]
    pub fn of(data_dir: &Path, pipeline: &str) -> Self {
        Self { dir: data_dir.join("orders"), prefix: format!("{pipeline}.") }
    }

    /// Gives an order. Giving it again changes nothing.
    ///
    /// # Errors
    /// The data directory cannot be written.
    pub fn give(&self, order: &Order) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.dir)?;
        let name = match order {
            Order::Rewind { instance } => format!("{}rewind.{instance}", self.prefix),
            Order::Acknowledge => format!("{}acknowledge", self.prefix),
            Order::Accept => format!("{}accept", self.prefix),
        };
        std::fs::File::create(self.dir.join(name))?.sync_all()
    }

    /// Orders that were not carried out, with their files.
    #[must_use]
    pub fn pending(&self) -> Vec<(PathBuf, Order)> {
        let Ok(entries) = self.dir.read_dir() else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?.strip_prefix(&self.prefix)?.to_owned();
                let order = match name.strip_prefix("rewind.") {
                    Some(instance) => Order::Rewind { instance: instance.to_owned() },
                    None if name == "acknowledge" => Order::Acknowledge,
                    None if name == "accept" => Order::Accept,
                    None => return None,
                };
                Some((path, order))
            })
            .collect()
    }

    /// An order was carried out.
    pub fn done(&self, file: &Path) {
        if let Err(error) = std::fs::remove_file(file) {
            tracing::warn!(code = "ORDER", file = %file.display(), %error, "remove an order that was carried out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_waits_for_its_pipeline_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Orders::of(dir.path(), "metrics");
        let alarms = Orders::of(dir.path(), "alarms");
        assert!(metrics.pending().is_empty());
        let order = Order::Rewind { instance: "edge.7".to_owned() };
        metrics.give(&order).unwrap();
        metrics.give(&order).unwrap();
        alarms.give(&Order::Acknowledge).unwrap();
        std::fs::write(dir.path().join("orders/metrics.unknown"), "").unwrap();
        let pending = metrics.pending();
        assert_eq!(pending.len(), 1);
        assert_eq!(pending[0].1, order);
        assert_eq!(alarms.pending()[0].1, Order::Acknowledge);
        metrics.done(&pending[0].0);
        assert!(metrics.pending().is_empty());
    }
}
