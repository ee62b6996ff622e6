//! Two sets of defaults, for a small machine at the edge and for a large one. A file or the environment wins over them.

use clap::ValueEnum;
use serde_json::{Value, json};

/// For what kind of machine the defaults are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Little memory and disk, a slow link.
    Edge,
    /// Many series, a long outage to absorb.
    Server,
}

impl Profile {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Server => "server",
        }
    }

    /// What is other than the defaults.
    pub(super) fn values(self) -> Value {
        match self {
            Self::Edge => json!({
                "metrics": {"writers": 1, "in_flight_per_writer": 8, "gather_rows_max": 100_000},
                "wal": {
                    "metrics_bytes_max": "2 GiB",
                    "alarms_bytes_max": "128 MiB",
                    "dead_letters_bytes_max": "256 MiB",
                },
                "store": {
                    "definitions_max": 200_000,
                    "cassandra": {"compression": "lz4"},
                    "sled": {"cache": "16 MiB", "bytes_max": "1 GiB"},
                },
            }),
            Self::Server => json!({
                "metrics": {"writers": 4},
                "wal": {"metrics_bytes_max": "50 GiB", "alarms_bytes_max": "2 GiB", "dead_letters_bytes_max": "4 GiB"},
                "store": {"definitions_max": 10_000_000},
            }),
        }
    }
}
