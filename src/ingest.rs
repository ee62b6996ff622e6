//! Decisions of the first stage, Kafka to log, as a machine: no I/O, no clock, no threads.
//!
//! [`Ingest`] is told what happened and answers what to do; payloads never pass through it. It decides where a
//! partition starts, which messages are taken, when offsets are committed, and when consumption pauses because the
//! log is filling up. `kafka.rs` carries its effects out against a real consumer, the simulator against a model.

use std::collections::BTreeMap;
use std::time::Duration;

use wal::{Durable, Position};

use crate::kafka_gap::{GapKind, GapPolicies, GapPolicy, KafkaGap};
use crate::offset_note::{LogOffsets, NextOffsets, OffsetNote};
use crate::offsets::{
    Committable, Coordinates, GroupOffset, Intake, Offsets, Overlap, PartitionProgress, Testimony,
};

/// So long after another topic of the name was found, the group's offsets are not believed: a member that had not
/// noticed yet may have committed offsets of the old one. Longer than it takes any member to notice or to be given up.
const DISTRUST_COMMITTED: Duration = Duration::from_secs(10 * 60);

/// Where a group without any committed offset and without any record in the log begins.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    schemars::JsonSchema,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum InitialOffset {
    /// With the oldest message that Kafka still has.
    #[default]
    Earliest,
    /// With the next message that arrives.
    Latest,
}

/// What must have happened to a message before its offset is committed.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    schemars::JsonSchema,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CommitAfter {
    /// It is durable in the log.
    #[default]
    Wal,
    /// It is delivered too.
    Delivery,
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
    /// When an offset may be committed.
    pub commit_after: CommitAfter,
    /// What is done where Kafka's history and ours part.
    pub gaps: GapPolicies,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_secs(1),
            high_mark: 0.8,
            low_mark: 0.7,
            initial_offset: InitialOffset::Earliest,
            ledger: true,
            commit_after: CommitAfter::Wal,
            gaps: GapPolicies::default(),
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
        /// The group's offset, if it has one.
        committed: Option<GroupOffset>,
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
    /// A person wants consumption to pause, or to go on.
    Hold(bool),
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
    /// Whether the ledger can be kept; while it cannot, offsets are committed without it.
    LedgerKept(bool),
    /// The ledger knows that consumption of the partition began anew.
    LedgerRewound {
        /// The partition.
        partition: i32,
    },
    /// Everything of the partition before `next` is delivered.
    Delivered {
        /// The partition.
        partition: i32,
        /// Next offset.
        next: i64,
    },
    /// Kafka refused to send what was asked for, of some partition; of this one it has the messages from `low` to `high`.
    Bounds {
        /// The partition.
        partition: i32,
        /// Its oldest offset.
        low: i64,
        /// The offset after its last.
        high: i64,
        /// Wall clock, milliseconds since the epoch.
        at_ms: i64,
    },
    /// Kafka's messages from an offset on are not those that we took.
    Diverged {
        /// The partition.
        partition: i32,
        /// The offset: its oldest one where it is not known better.
        from: i64,
        /// Wall clock, milliseconds since the epoch.
        at_ms: i64,
    },
    /// The topic is another one than the log's, though of the same name.
    Recreated {
        /// Wall clock, milliseconds since the epoch.
        at_ms: i64,
    },
    /// A person wants partitions that stopped to go on with what Kafka has.
    Accept,
    /// Consumption of a partition has begun where [`Effect::Begin`] wanted it.
    Begun {
        /// The partition.
        partition: i32,
    },
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
    /// Fetch nothing of a partition, because of a gap, until [`Event::Accept`].
    Hold(KafkaGap),
    /// Note in the log, before anything that is appended later, that consumption goes on behind this gap.
    Note(KafkaGap),
    /// Note in the log, before anything that is appended later, that the topic is another one.
    NoteTopic,
    /// Tell the ledger that consumption of a partition begins anew, at this offset or at Kafka's oldest message, and
    /// report it with [`Event::LedgerRewound`].
    Rewind {
        /// The partition.
        partition: i32,
        /// Where.
        next: Option<i64>,
    },
    /// Tell the ledger that the group's offset of a partition has gone back to where consumption began anew, and report
    /// it with [`Event::LedgerRewound`].
    GoneBack {
        /// The partition.
        partition: i32,
        /// Everything of its new history before this offset is in the log.
        next: i64,
    },
}

/// The machine.
#[derive(Debug)]
pub struct Ingest {
    config: IngestConfig,
    offsets: Offsets,
    /// Next offsets that the log knew of when it was opened, and since.
    log_next: NextOffsets,
    /// Leader epochs of the last messages before them.
    log_epochs: BTreeMap<i32, i32>,
    /// End of everything appended.
    log_end: Position,
    first_start: bool,
    paused: bool,
    /// A person wants nothing consumed for now.
    held: bool,
    last_commit: Option<Duration>,
    /// The ledger has said something new since the last commit.
    witnessed: bool,
    /// Partitions that wait for a person, and why.
    stopped: BTreeMap<i32, KafkaGap>,
    /// The topic is another one than the log's, and nobody has accepted that.
    recreated_ms: Option<i64>,
    distrust_committed_until: Duration,
}

impl Ingest {
    /// A machine for a log whose carry said `log` and which ended at `log_end` when it was opened.
    #[must_use]
    pub fn new(config: IngestConfig, log: &LogOffsets, log_end: Position) -> Self {
        let mut offsets = Offsets::default();
        offsets.need_witness(config.ledger);
        offsets.need_delivery(config.commit_after == CommitAfter::Delivery);
        Self {
            config,
            offsets,
            log_next: log.next.clone(),
            log_epochs: log.epochs.clone(),
            log_end,
            first_start: log.next.is_empty(),
            paused: false,
            held: false,
            last_commit: None,
            witnessed: false,
            stopped: BTreeMap::new(),
            recreated_ms: None,
            distrust_committed_until: Duration::ZERO,
        }
    }

    /// Decides about a message; a taken one must be part of the next append.
    pub fn take(&mut self, message: Coordinates) -> Intake {
        self.offsets.take(message)
    }

    /// The annotation of the next append: next offsets and leader epochs of all partitions with messages in it.
    pub fn annotation(&self, into: &mut OffsetNote) {
        into.next.clear();
        into.epochs.clear();
        for (partition, next) in self.offsets.taken() {
            into.next.set(partition, next);
        }
        into.epochs.extend(self.offsets.taken_epochs());
    }

    /// Applies `event` at monotonic time `now` and appends what to do to `effects`.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match event {
            Event::Assigned { partition, committed } => {
                self.assigned(partition, committed, now, effects)
            }
            Event::Revoking { partition } => {
                if let Some(position) = self.offsets.awaited(partition) {
                    effects.push(Effect::AwaitDurable(position));
                }
            }
            Event::Gone { partition } => {
                self.stopped.remove(&partition);
                self.offsets.forget(partition);
            }
            Event::Appended { end } => {
                for (partition, next) in self.offsets.taken() {
                    self.log_next.set(partition, next);
                }
                self.log_epochs.extend(self.offsets.taken_epochs());
                self.offsets.appended(end);
                self.log_end = end;
            }
            Event::Durable(proof) => self.offsets.durable(proof),
            Event::LogFill(fill) => self.log_fill(fill, effects),
            Event::LogFull => self.pause(effects),
            Event::Hold(held) => self.hold_all(held, effects),
            Event::Committed { partition, next } => self.offsets.committed(partition, next),
            Event::Witnessed { partition, next } => {
                self.offsets.witnessed(partition, next);
                self.witnessed = true;
            }
            Event::LedgerKept(kept) => self.offsets.need_witness(kept),
            Event::LedgerRewound { partition } => self.offsets.ledger_rewound(partition),
            Event::Delivered { partition, next } => self.offsets.delivered(partition, next),
            Event::Bounds { partition, low, high, at_ms } => {
                self.bounds(partition, low, high, at_ms, effects);
            }
            Event::Diverged { partition, from, at_ms } => {
                // If it went meanwhile, whoever has it now compares for itself.
                if let Some(to) = self.consumed(partition) {
                    let kind = GapKind::Truncated;
                    self.found(KafkaGap { kind, partition, from, to, at_ms }, effects);
                }
            }
            Event::Recreated { at_ms } => self.recreated(at_ms, now, effects),
            Event::Accept => self.accept(now, effects),
            // One that stopped meanwhile waits for a person, wherever it has begun.
            Event::Begun { partition } if self.stopped.contains_key(&partition) => {}
            Event::Begun { partition } => self.offsets.begun(partition),
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

    /// True while consumption is paused, because the log is full or because a person wants it so.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused || self.held
    }

    /// True while consumption is paused because the log is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
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

    fn assigned(
        &mut self,
        partition: i32,
        committed: Option<GroupOffset>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let committed = committed
            .filter(|committed| committed.is_of_our_topic || now >= self.distrust_committed_until);
        // The log may know more than Kafka: a crash after the sync and before the commit. It may also know less:
        // another member consumed the partition in between.
        let in_log = self.log_next.get(partition).map(|next| GroupOffset {
            leader_epoch: self.log_epochs.get(&partition).copied().unwrap_or(-1),
            ..GroupOffset::unknown(next)
        });
        let known = in_log.into_iter().chain(committed).max_by_key(|known| {
            // Of two that are as far the one that can be compared.
            (known.next, known.leader_epoch)
        });
        // The last message that was consumed is asked for again: if Kafka has another one there, what lies before was
        // replaced while nobody looked.
        let overlap =
            known.filter(|known| known.next > 0 && known.leader_epoch >= 0).map(|known| Overlap {
                offset: known.next.saturating_sub(1),
                leader_epoch: known.leader_epoch,
                is_end: false,
            });
        let (known, committed) = (known.map(|known| known.next), committed.map(|known| known.next));
        let start = match (known, overlap) {
            (_, Some(overlap)) => Start::At(overlap.offset),
            (Some(offset), None) => Start::At(offset),
            (None, None)
                if self.first_start && self.config.initial_offset == InitialOffset::Latest =>
            {
                Start::End
            }
            (None, None) => Start::Beginning,
        };
        self.offsets.assign(partition, known, committed, self.log_end, overlap);
        effects.push(Effect::Begin { partition, start });
        if let Some(at_ms) = self.recreated_ms {
            self.hold(self.gap_of_recreated(partition, at_ms), effects);
        } else if self.is_paused() {
            // Newly assigned partitions arrive unpaused.
            effects.push(Effect::Pause(vec![partition]));
        }
    }

    /// Partitions that wait for a person, and why.
    pub fn stopped(&self) -> impl Iterator<Item = KafkaGap> + '_ {
        self.stopped.values().copied()
    }

    fn consumed(&self, partition: i32) -> Option<i64> {
        let (_, progress) = self.offsets.progress().find(|(found, _)| *found == partition)?;
        progress.consumed
    }

    fn gap_of_recreated(&self, partition: i32, at_ms: i64) -> KafkaGap {
        let to = self.log_next.get(partition).or_else(|| self.consumed(partition)).unwrap_or(0);
        KafkaGap { kind: GapKind::Recreated, partition, from: 0, to, at_ms }
    }

    /// Kafka does not have the message that was asked for.
    fn bounds(
        &mut self,
        partition: i32,
        low: i64,
        high: i64,
        at_ms: i64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(next) = self.consumed(partition) else { return };
        if self.stopped.contains_key(&partition) {
            return;
        }
        let gap = |kind, from, to| KafkaGap { kind, partition, from, to, at_ms };
        if next < low {
            self.found(gap(GapKind::Retention, next, low), effects);
        } else if next > high {
            // What was written since it lost its end may lie before ours.
            match self.offsets.compare_end(partition, low, high) {
                Some(offset) => self.look_again(partition, offset, effects),
                None => self.found(gap(GapKind::Truncated, low, next), effects),
            }
        } else {
            // It is there: the message before it tells whether its history is still ours.
            let offset = self.offsets.compare_again(partition, low).unwrap_or(next);
            self.look_again(partition, offset, effects);
        }
    }

    fn look_again(&mut self, partition: i32, offset: i64, effects: &mut Vec<Effect>) {
        self.offsets.look_again(partition);
        effects.push(Effect::Begin { partition, start: Start::At(offset) });
    }

    /// Does with a gap what the policy says.
    fn found(&mut self, gap: KafkaGap, effects: &mut Vec<Effect>) {
        match self.config.gaps.of(gap.kind) {
            GapPolicy::Stop => self.hold(gap, effects),
            GapPolicy::Continue => self.go_on(gap, effects),
        }
    }

    fn hold(&mut self, gap: KafkaGap, effects: &mut Vec<Effect>) {
        self.offsets.hold(gap.partition);
        self.stopped.insert(gap.partition, gap);
        effects.push(Effect::Hold(gap));
    }

    /// Consumption of a partition goes on with what Kafka has.
    fn go_on(&mut self, gap: KafkaGap, effects: &mut Vec<Effect>) {
        let next = match gap.kind {
            GapKind::Retention => Some(gap.to),
            GapKind::Truncated => Some(gap.from),
            GapKind::Recreated => None,
        };
        effects.push(Effect::Note(gap));
        let partition = gap.partition;
        if gap.kind == GapKind::Retention {
            // What was taken before and is not delivered stays in the ledger: Kafka does not have it any more.
            self.offsets.skip(partition, gap.to);
        } else {
            self.offsets.restart(partition, next);
            // Also where it is somebody else's now: what the ledger says of the old history must not count when it comes
            // back.
            effects.push(Effect::Rewind { partition, next });
        }
        if self.offsets.assigned().any(|assigned| assigned == partition) {
            let start = next.map_or(Start::Beginning, Start::At);
            effects.push(Effect::Begin { partition, start });
        }
    }

    fn recreated(&mut self, at_ms: i64, now: Duration, effects: &mut Vec<Effect>) {
        if self.config.gaps.recreated == GapPolicy::Continue {
            return self.go_on_with_another_topic(at_ms, now, effects);
        }
        if self.recreated_ms.is_none() {
            self.recreated_ms = Some(at_ms);
            let assigned: Vec<i32> = self.offsets.assigned().collect();
            for partition in assigned {
                self.hold(self.gap_of_recreated(partition, at_ms), effects);
            }
        }
    }

    fn go_on_with_another_topic(&mut self, at_ms: i64, now: Duration, effects: &mut Vec<Effect>) {
        self.recreated_ms = None;
        self.distrust_committed_until = now.saturating_add(DISTRUST_COMMITTED);
        let known = self.log_next.iter().map(|(partition, _)| partition);
        let known: std::collections::BTreeSet<i32> = known.chain(self.offsets.assigned()).collect();
        effects.push(Effect::NoteTopic);
        for partition in known {
            self.go_on(self.gap_of_recreated(partition, at_ms), effects);
        }
        self.log_next.clear();
        self.log_epochs.clear();
    }

    fn accept(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let stopped = std::mem::take(&mut self.stopped);
        if let Some(at_ms) = self.recreated_ms {
            self.go_on_with_another_topic(at_ms, now, effects);
        } else {
            for gap in stopped.into_values() {
                self.go_on(gap, effects);
            }
        }
    }

    /// Partitions that are not held back by a gap.
    fn flowing(&self) -> Vec<i32> {
        self.offsets.assigned().filter(|partition| !self.stopped.contains_key(partition)).collect()
    }

    fn log_fill(&mut self, fill: f64, effects: &mut Vec<Effect>) {
        if !self.paused && fill >= self.config.high_mark {
            self.pause(effects);
        } else if self.paused && fill <= self.config.low_mark {
            self.paused = false;
            if !self.held {
                effects.push(Effect::Resume(self.flowing()));
            }
        }
    }

    fn hold_all(&mut self, held: bool, effects: &mut Vec<Effect>) {
        if held == self.held {
            return;
        }
        self.held = held;
        if !self.paused {
            let partitions = self.flowing();
            effects.push(if held { Effect::Pause(partitions) } else { Effect::Resume(partitions) });
        }
    }

    fn pause(&mut self, effects: &mut Vec<Effect>) {
        if !self.paused {
            self.paused = true;
            if !self.held {
                effects.push(Effect::Pause(self.flowing()));
            }
        }
    }

    /// What the ledger must say before everything durable of these partitions may be committed.
    #[must_use]
    pub fn testimony_of(&self, partitions: &[i32]) -> Vec<Testimony> {
        self.offsets.testimony(|partition| partitions.contains(&partition))
    }

    fn commit_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let gone_back = self.offsets.take_gone_back();
        let effect = |(partition, next)| Effect::GoneBack { partition, next };
        effects.extend(gone_back.into_iter().map(effect));
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

#[cfg(test)]
mod tests;
