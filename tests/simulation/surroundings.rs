//! What all instances share: time, chance, Kafka and the store.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::dice::Dice;
use crate::kafka::Kafka;
use crate::mutants::Bug;
use crate::store::Store;
use crate::tally::Tally;

/// Zero of the wall clock of every run.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// The world outside of the instances.
pub struct Surroundings {
    pub dice: Dice,
    pub bug: Bug,
    pub now: Duration,
    pub kafka: Kafka,
    pub store: Store,
    pub store_up: bool,
    /// The instances may keep ledgers. Where they may not, no disk may be lost: nobody would notice.
    pub ledger: bool,
    /// Something happened after which a lost disk would be most awkward.
    pub is_delicate: bool,
    /// Messages that were dead letters on disks that are lost.
    pub buried: BTreeSet<(i32, i64)>,
    pub tally: Tally,
    /// A single run tells what happens in it.
    pub is_loud: bool,
}

impl Surroundings {
    pub fn now_ms(&self) -> i64 {
        EPOCH_MS + i64::try_from(self.now.as_millis()).unwrap()
    }

    /// Tells what happens, when somebody wants to know.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_loud {
            eprintln!("{:>7} ms  {}", self.now.as_millis(), what());
        }
    }

    /// The oldest offset that Kafka has.
    pub fn low_offset(&self, partition: i32) -> i64 {
        let partitions = &self.kafka.topic.partitions;
        usize::try_from(partition).ok().and_then(|p| partitions.get(p)).map_or(0, |p| p.low)
    }
}
