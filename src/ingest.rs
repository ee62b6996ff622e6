//! Decisions of the first stage, Kafka to log, as a machine: no I/O, no clock, no threads.
//!
//! [`Ingest`] is told what happened and answers what to do; payloads never pass through it. It decides where a
//! partition starts, which messages are taken, when offsets are committed, and when consumption pauses because the
//! log is filling up. `kafka.rs` carries its effects out against a real consumer, the simulator against a model.

use std::time::Duration;

use wal::{Durable, Position};

use crate::offset_note::NextOffsets;
use crate::offsets::{Committable, Intake, Offsets, PartitionProgress, Testimony};

/// Where a group without any committed offset and without any record in the log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialOffset {
    /// With the oldest message that Kafka still has.
    #[default]
    Earliest,
    /// With the next message that arrives.
    Latest,
}

/// Numbers that the machine decides by.
#[derive(Debug, Clone, Copy)]
pub struct IngestConfig {
    /// Shortest time between two commits of offsets.
    pub commit_interval: Duration,
    /// Fill of the log, 0 to 1, at which consumption pauses.
    pub high_mark: f64,
    /// Fill of the log, 0 to 1, at which it resumes.
    pub low_mark: f64,
    /// Applies to the very first start only.
    pub initial_offset: InitialOffset,
    /// The ledger says it before an offset is committed.
    pub ledger: bool,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(1),
            high_mark: 0.8,
            low_mark: 0.7,
            initial_offset: InitialOffset::Earliest,
            ledger: true,
        }
    }
}

/// Where to begin consuming a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At this offset.
    At(i64),
    /// At the oldest message that Kafka still has.
    Beginning,
    /// At the next message that arrives.
    End,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// The group gave us a partition; `committed` is what Kafka holds for it.
    Assigned {
        /// The partition.
        partition: i32,
        /// Committed next offset, if any.
        committed: Option<i64>,
    },
    /// The group is about to give a partition to somebody else: everything taken from it was handed to the log.
    Revoking {
        /// The partition.
        partition: i32,
    },
    /// The partition is not ours any more. `Lost` ones may belong to somebody else already.
    Gone {
        /// The partition.
        partition: i32,
    },
    /// Everything taken so far lies before `end` in the log.
    Appended {
        /// End of the appended range.
        end: Position,
    },
    /// The log proved durability.
    Durable(Durable),
    /// How full the log is, 0 to 1.
    LogFill(f64),
    /// The log refused a batch because it is full.
    LogFull,
    /// Kafka confirmed an offset.
    Committed {
        /// The partition.
        partition: i32,
        /// Confirmed next offset.
        next: i64,
    },
    /// The ledger says that everything of the partition before `next` is in our log.
    Witnessed {
        /// The partition.
        partition: i32,
        /// Next offset.
        next: i64,
    },
    /// The ledger cannot be kept: offsets are committed without it.
    NoLedger,
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Begin consuming a partition there.
    Begin {
        /// The partition.
        partition: i32,
        /// Where.
        start: Start,
    },
    /// Make everything before this position durable, then report it with [`Event::Durable`].
    AwaitDurable(Position),
    /// Have the ledger say this, then report it with [`Event::Witnessed`]: only then is it committed.
    Testify(Vec<Testimony>),
    /// Commit these offsets and report the outcome.
    Commit(Vec<Committable>),
    /// Stop fetching these partitions; go on polling.
    Pause(Vec<i32>),
    /// Fetch these partitions again.
    Resume(Vec<i32>),
}

/// The machine.
#[derive(Debug)]
pub struct Ingest {
    config: IngestConfig,
    offsets: Offsets,
    /// Next offsets that the log knew of when it was opened, and since.
    log_next: NextOffsets,
    /// End of everything appended.
    log_end: Position,
    first_start: bool,
    paused: bool,
    last_commit: Option<Duration>,
    /// The ledger has said something new since the last commit.
    witnessed: bool,
}

impl Ingest {
    /// A machine for a log whose carry said `log_next` and which ended at `log_end` when it was opened.
    #[must_use]
    pub fn new(config: IngestConfig, log_next: NextOffsets, log_end: Position) -> Self {
        let first_start = log_next.is_empty();
        let mut offsets = Offsets::default();
        offsets.need_witness(config.ledger);
        Self {
            config,
            offsets,
            log_next,
            log_end,
            first_start,
            paused: false,
            last_commit: None,
            witnessed: false,
        }
    }

    /// Decides about the message at `offset`; a taken one must be part of the next append.
    pub fn take(&mut self, partition: i32, offset: i64) -> Intake {
        self.offsets.take(partition, offset)
    }

    /// The annotation of the next append: next offsets of all partitions with messages in it.
    pub fn annotation(&self, into: &mut NextOffsets) {
        into.clear();
        for (partition, next) in self.offsets.taken() {
            into.set(partition, next);
        }
    }

    /// Applies `event` at monotonic time `now` and appends what to do to `effects`.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match event {
            Event::Assigned { partition, committed } => {
                self.assigned(partition, committed, effects)
            }
            Event::Revoking { partition } => {
                if let Some(position) = self.offsets.awaited(partition) {
                    effects.push(Effect::AwaitDurable(position));
                }
            }
            Event::Gone { partition } => self.offsets.forget(partition),
            Event::Appended { end } => {
                let taken: Vec<(i32, i64)> = self.offsets.taken().collect();
                for (partition, next) in taken {
                    self.log_next.set(partition, next);
                }
                self.offsets.appended(end);
                self.log_end = end;
            }
            Event::Durable(proof) => self.offsets.durable(proof),
            Event::LogFill(fill) => self.log_fill(fill, effects),
            Event::LogFull => self.pause(effects),
            Event::Committed { partition, next } => self.offsets.committed(partition, next),
            Event::Witnessed { partition, next } => {
                self.offsets.witnessed(partition, next);
                self.witnessed = true;
            }
            Event::NoLedger => self.offsets.need_witness(false),
            Event::Tick => self.commit_when_due(now, effects),
        }
    }

    /// Offsets of one partition that may be committed right now: for the synchronous commit of a revoked partition.
    #[must_use]
    pub fn committable_of(&self, partition: i32) -> Vec<Committable> {
        self.offsets.committable(|candidate| candidate == partition)
    }

    /// Everything that may be committed right now: for the last commit before leaving the group.
    #[must_use]
    pub fn committable(&self) -> Vec<Committable> {
        self.offsets.committable(|_| true)
    }

    /// Next offset of a partition as the log knows it.
    #[must_use]
    pub fn log_next(&self, partition: i32) -> Option<i64> {
        self.log_next.get(partition)
    }

    /// True while consumption is paused because the log is full.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Progress of every assigned partition.
    pub fn progress(&self) -> impl Iterator<Item = (i32, PartitionProgress)> + '_ {
        self.offsets.progress()
    }

    /// The deliberate bug of the audit; see [`Offsets::mutant_commit_before_durable`].
    #[cfg(feature = "mutants")]
    pub fn mutant_commit_before_durable(&mut self) {
        self.offsets.mutant_commit_before_durable();
    }

    fn assigned(&mut self, partition: i32, committed: Option<i64>, effects: &mut Vec<Effect>) {
        // The log may know more than Kafka: a crash after the sync and before the commit. It may also know less:
        // another member consumed the partition in between.
        let known = match (committed, self.log_next.get(partition)) {
            (Some(committed), Some(log_next)) => Some(committed.max(log_next)),
            (one, other) => one.or(other),
        };
        let start = match known {
            Some(offset) => Start::At(offset),
            None if self.first_start && self.config.initial_offset == InitialOffset::Latest => {
                Start::End
            }
            None => Start::Beginning,
        };
        self.offsets.assign(partition, known, committed, self.log_end);
        effects.push(Effect::Begin { partition, start });
        if self.paused {
            // Newly assigned partitions arrive unpaused.
            effects.push(Effect::Pause(vec![partition]));
        }
    }

    fn log_fill(&mut self, fill: f64, effects: &mut Vec<Effect>) {
        if !self.paused && fill >= self.config.high_mark {
            self.pause(effects);
        } else if self.paused && fill <= self.config.low_mark {
            self.paused = false;
            effects.push(Effect::Resume(self.offsets.assigned().collect()));
        }
    }

    fn pause(&mut self, effects: &mut Vec<Effect>) {
        if !self.paused {
            self.paused = true;
            effects.push(Effect::Pause(self.offsets.assigned().collect()));
        }
    }

    /// What the ledger must say before everything durable of these partitions may be committed.
    #[must_use]
    pub fn testimony_of(&self, partitions: &[i32]) -> Vec<Testimony> {
        self.offsets.testimony(|partition| partitions.contains(&partition))
    }

    fn commit_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let due = self
            .last_commit
            .is_none_or(|last| now.saturating_sub(last) >= self.config.commit_interval);
        if due {
            let testimony = self.offsets.testimony(|_| true);
            if !testimony.is_empty() {
                self.last_commit = Some(now);
                effects.push(Effect::Testify(testimony));
            }
        }
        // What the ledger has just confirmed need not wait for the next interval.
        if due || std::mem::take(&mut self.witnessed) {
            let offsets = self.offsets.committable(|_| true);
            if !offsets.is_empty() {
                self.last_commit = Some(now);
                effects.push(Effect::Commit(offsets));
            }
        }
    }
}
