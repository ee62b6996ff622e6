//! What all instances share: time, chance, Kafka and the store.

use std::collections::BTreeSet;
use std::time::Duration;

use monasca_persister::offset_ranges::OffsetRange;

use crate::dice::Dice;
use crate::kafka::Kafka;
use crate::process::Settings;
use crate::store::Store;
use crate::tally::Tally;

/// Zero of the wall clock of every run.
pub const EPOCH_MS: i64 = 1_700_000_000_000;

/// The world outside of the instances.
pub struct Surroundings {
    pub dice: Dice,
    pub settings: Settings,
    pub now: Duration,
    pub kafka: Kafka,
    pub store: Store,
    /// Something happened after which a lost disk would be most awkward.
    pub is_delicate: bool,
    /// Messages that were dead letters on disks that are lost, or messages of deleted topics that were in the log there:
    /// nobody could give them again.
    pub buried: BTreeSet<i64>,
    /// Messages of which somebody was told that they are lost, by their timestamps.
    pub reported: BTreeSet<i64>,
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

    /// Offsets are reported as lost, and must be: Kafka does not have them.
    pub fn report(&mut self, topic: &str, lost: OffsetRange) {
        self.tell(|| format!("reported as lost: {topic} {lost:?}"));
        if self.kafka.topic.id == topic {
            let found = (lost.from..lost.to)
                .find(|offset| self.kafka.topic.message(lost.partition, *offset).is_some());
            assert!(found.is_none(), "R1: {lost:?} is reported as lost, and Kafka has {found:?}");
        }
        self.tally.reported_lost += lost.offsets();
        self.forget(topic, lost);
    }

    /// Nobody need find these messages again.
    fn forget(&mut self, topic: &str, lost: OffsetRange) {
        let OffsetRange { partition, from, to } = lost;
        for offset in from..to {
            for of in self.kafka.topics().filter(|of| of.id == topic) {
                let gone = of.gone(partition, offset);
                // All of a deleted topic is gone.
                let last = of.message(partition, offset).filter(|_| of.id != self.kafka.topic.id);
                self.reported.extend(gone.chain(last).map(|message| message.timestamp_ms));
            }
        }
    }

    /// Retention took everything before `low`, and consumption goes on there from `next`. If the partition had lost its end
    /// before, what was written in place of messages that had been taken is gone with the only thing that told of it.
    pub fn goes_on_behind_retention(&mut self, partition: i32, next: i64) {
        let in_kafka = &self.kafka.topic.partitions[usize::try_from(partition).unwrap()];
        let lost_end = in_kafka.torn.iter().map(|torn| torn.offset).min().unwrap_or(next);
        if lost_end < next {
            let id = self.kafka.topic.id.clone();
            self.forget(&id, OffsetRange { partition, from: lost_end, to: next });
        }
    }

    /// Consumption begins with Kafka's oldest message, because nothing is known of what was consumed before: nobody can
    /// notice what retention took in between.
    pub fn begins_at_oldest(&mut self, partition: i32) -> i64 {
        let low = self.low_offset(partition);
        let from = self.kafka.topic.claims.get(&partition).copied().unwrap_or(0);
        if from < low {
            self.tally.retention_unseen += 1;
            let id = self.kafka.topic.id.clone();
            self.forget(&id, OffsetRange { partition, from, to: low });
        }
        low
    }

    /// The oldest offset that Kafka has.
    pub fn low_offset(&self, partition: i32) -> i64 {
        let partitions = &self.kafka.topic.partitions;
        usize::try_from(partition).ok().and_then(|p| partitions.get(p)).map_or(0, |p| p.low)
    }
}
