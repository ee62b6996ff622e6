//! How records arrive: how many threads, how many records at a time, and who waits.

use crate::corpus::RECORD_BYTES;

/// Bytes that a pipelining producer lets queue up before it waits for the oldest batch: half of what
/// the log takes by default, all of which the persister uses.
pub const AHEAD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Of these, the log writes so many together.
const GROUP_BYTES_MAX: usize = 1024 * 1024;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// As printed, and as passed to the child processes.
    pub name: &'static str,
    /// Producers.
    pub threads: usize,
    /// Records that a producer commits at once.
    pub batch: usize,
    /// Whether a producer goes on while earlier batches are on their way.
    pub pipelined: bool,
}

/// All of them, in the order of the table.
pub const SHAPES: [Shape; 6] = [
    Shape { name: "1 x 1", threads: 1, batch: 1, pipelined: false },
    Shape { name: "1 x 100", threads: 1, batch: 100, pipelined: false },
    Shape { name: "1 x 1,000", threads: 1, batch: 1000, pipelined: false },
    Shape { name: "1 x 2,560", threads: 1, batch: 2560, pipelined: false },
    Shape { name: "8 x 100", threads: 8, batch: 100, pipelined: false },
    Shape { name: "1 x 1,000, pipelined", threads: 1, batch: 1000, pipelined: true },
];

impl Shape {
    /// The shape of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Shape> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// The most records that are appended and not yet durable at any moment.
    #[must_use]
    pub fn outstanding_max(&self) -> usize {
        if self.pipelined {
            // A batch is appended while no more than the bound is outstanding.
            (AHEAD_BYTES_MAX / RECORD_BYTES / self.batch + 1) * self.batch
        } else {
            self.threads * self.batch
        }
    }

    /// What an engine is given.
    #[must_use]
    pub fn load(&self) -> Load {
        Load { threads: self.threads, batch: self.batch }
    }

    /// What the raw file is given with so many writes in flight: one thread waiting for its batch
    /// gets a second one of the same kind beside it; where several batches are outstanding anyway,
    /// the same bytes are outstanding here, in that many writes, each at most as long as the log's.
    #[must_use]
    pub fn raw_load(&self, in_flight: usize) -> Load {
        let batch = if self.threads == 1 && !self.pipelined {
            self.batch
        } else {
            (self.outstanding_max() / in_flight).min(GROUP_BYTES_MAX / RECORD_BYTES)
        };
        Load { threads: in_flight, batch }
    }
}

/// Threads, and records in each of their commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Threads that commit.
    pub threads: usize,
    /// Records per commit.
    pub batch: usize,
}
