//! What others may know of the first stage; refreshed once per turn.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::group::GroupState;
use super::lock;
use crate::intake::IntakeCounts;
use crate::kafka_gap::KafkaGap;
use crate::kafka_trouble::Trouble;
use crate::offsets::PartitionProgress;

/// What others may know about the first stage; refreshed once per turn.
#[derive(Debug, Clone, Default)]
pub struct IngestSnapshot {
    /// Progress of each assigned partition.
    pub partitions: BTreeMap<i32, PartitionProgress>,
    /// Counts since the start.
    pub counts: IntakeCounts,
    /// True while consumption is paused because the log is full.
    pub paused: bool,
    /// A broker answers.
    pub connected: bool,
    /// Last error of the client library, for people.
    pub last_error: Option<String>,
    /// TLS or SASL keeps a connection from being made, as far as is known.
    pub trouble: Option<Trouble>,
    /// Partitions that stopped at a gap and wait for a person.
    pub stopped: Vec<KafkaGap>,
    /// Messages not yet consumed, per partition, as the brokers told last.
    pub lag: BTreeMap<i32, i64>,
    /// The group, as the client library tells once a second.
    pub group: GroupState,
}

/// State that the polling thread and its callbacks share, and a snapshot for everybody else.
pub struct IngestShared {
    pub(super) snapshot: Mutex<IngestSnapshot>,
    /// Milliseconds since the start of the process at the last turn: the thread's sign of life.
    pub(super) heartbeat_ms: AtomicU64,
    pub(super) connected: AtomicBool,
    held: AtomicBool,
}

impl IngestShared {
    /// State before the first poll.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            snapshot: Mutex::new(IngestSnapshot::default()),
            heartbeat_ms: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            held: AtomicBool::new(false),
        })
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> IngestSnapshot {
        let mut snapshot = lock(&self.snapshot).clone();
        snapshot.connected = self.connected.load(Ordering::Relaxed);
        snapshot
    }

    /// Has consumption pause, or go on, with the next turn. Polling goes on either way: the group does not notice.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether a person wants consumption to pause.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Milliseconds since the start of the process at the last turn.
    #[must_use]
    pub fn heartbeat_ms(&self) -> u64 {
        self.heartbeat_ms.load(Ordering::Relaxed)
    }
}
