//! Which offset may be committed, per partition: a queue of (position, next offset). Pure.
//!
//! A [`Committable`] offset is the only thing the Kafka side accepts for a commit, and only [`Offsets::durable`] makes
//! one, from the log's own proof of durability. A partition that was taken away is forgotten at once, so that a late
//! completion finds nothing to commit.

use std::collections::{BTreeMap, VecDeque};

use wal::{Durable, Position};

use crate::topic_identity::TopicIdentity;

/// A next offset before which every message of its partition is durable in the log.
///
/// It cannot be made outside this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committable {
    partition: i32,
    next: i64,
    leader_epoch: i32,
}

impl Committable {
    /// Partition whose offset it is.
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The next offset to consume, as Kafka commits it.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Epoch of the leader that the message before it came from; -1 when unknown.
    #[must_use]
    pub fn leader_epoch(&self) -> i32 {
        self.leader_epoch
    }
}

/// What Kafka holds for a partition of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupOffset {
    /// The committed next offset.
    pub next: i64,
    /// Epoch of the leader that the message before it came from; -1 where whoever committed it did not say.
    pub leader_epoch: i32,
    /// Whoever committed it said which topic it is about, and that is the one that we consume.
    pub is_of_our_topic: bool,
}

impl GroupOffset {
    /// An offset of which nothing else is known.
    #[must_use]
    pub fn unknown(next: i64) -> Self {
        Self { next, leader_epoch: -1, is_of_our_topic: false }
    }
}

/// A committed offset as the brokers tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldOffset {
    /// The committed next offset.
    pub next: i64,
    /// As in [`GroupOffset`].
    pub leader_epoch: i32,
    /// The topic that whoever committed it consumed; unknown where its metadata does not say.
    pub topic: TopicIdentity,
}

/// What the ledger is to say of a partition before its offset is committed: [`Committable`] offsets are the only ones
/// that can be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Testimony {
    /// The partition.
    pub partition: i32,
    /// Where consumption began when this process was first given the partition.
    pub from: i64,
    /// The next offset that is to be committed.
    pub next: i64,
}

/// Whether a message is to be put into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// New: append it.
    Take,
    /// Its offset was taken before: Kafka sent it again.
    Repeated,
    /// Its partition is not ours any more, or its consumption is about to begin elsewhere.
    Unassigned,
    /// Kafka has another message at the last offset that our log has: their histories have parted somewhere before.
    Diverged,
    /// It is Kafka's last one and was taken before: Kafka has lost everything that was taken behind it.
    EndLost,
}

/// The last message of a partition that the log has, fetched again to see whether Kafka still has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// Its offset.
    pub offset: i64,
    /// The epoch of the leader that it came from: with the offset it tells a message from any other.
    pub leader_epoch: i32,
    /// Kafka has less than the log: this is the offset of Kafka's last message, and the epoch is that of the log's. One
    /// of a later epoch was written after Kafka had lost its end, one of an earlier epoch was taken.
    pub is_end: bool,
}

impl Overlap {
    /// What a message at or behind it means: `None` when Kafka still has what was taken.
    fn found(&self, offset: i64, leader_epoch: i32) -> Option<Intake> {
        let is_there = offset == self.offset;
        match (self.is_end, is_there) {
            (true, true) if (0..=self.leader_epoch).contains(&leader_epoch) => {
                Some(Intake::EndLost)
            }
            (true, _) => Some(Intake::Diverged),
            (false, true) if leader_epoch >= 0 && leader_epoch != self.leader_epoch => {
                Some(Intake::Diverged)
            }
            (false, _) => None,
        }
    }
}

/// What tells a message from others, and when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coordinates {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The epoch of the leader that it came from; -1 when unknown.
    pub leader_epoch: i32,
    /// Kafka's timestamp, milliseconds since the epoch, if it has one.
    pub timestamp_ms: Option<i64>,
}

/// How far a partition has come; offsets are next offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartitionProgress {
    /// Where consumption began after the last assignment.
    pub started_at: Option<i64>,
    /// Next offset to take from Kafka.
    pub consumed: Option<i64>,
    /// Everything before it is durable in the log.
    pub durable: Option<i64>,
    /// What Kafka last confirmed for the group.
    pub committed: Option<i64>,
    /// Timestamp of the last message taken, milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
}

#[derive(Debug, Default)]
struct Partition {
    progress: PartitionProgress,
    /// Next offset taken since the last append, not yet in any batch handed to the log.
    taken: Option<i64>,
    /// Appended, not yet durable: everything before `next` lies before `end` in the log.
    pending: VecDeque<Pending>,
    /// Everything before it is in the ledger.
    witnessed: Option<i64>,
    /// Everything before it is delivered, as far as is known.
    delivered: Option<i64>,
    /// Epochs of the leaders that messages came from, each with the first offset of its own, since what was committed last.
    epochs: Vec<(i64, i32)>,
    overlap: Option<Overlap>,
    /// Nothing is taken before consumption has begun anew.
    held: bool,
    /// The ledger has not heard yet that consumption began anew: what it says is about the time before.
    ledger_is_behind: bool,
    /// Consumption began anew, and the group's offset is where it was before.
    is_ahead_in_kafka: bool,
    /// The group's offset has gone back to where consumption began anew, and nobody was told.
    has_gone_back: bool,
}

impl Partition {
    /// Epoch of the leader of the last message; -1 when unknown.
    fn last_epoch(&self) -> i32 {
        self.epochs.last().map_or(-1, |(_, epoch)| *epoch)
    }

    /// Epoch of the leader of the message before `next`; -1 when unknown.
    fn epoch_before(&self, next: i64) -> i32 {
        let before = self.epochs.iter().rev().find(|(from, _)| *from < next);
        before.map_or(-1, |(_, epoch)| *epoch)
    }

    /// Nothing lower than `next` is committed from now on.
    fn forget_epochs_before(&mut self, next: i64) {
        let old = self.epochs.partition_point(|(from, _)| *from < next).saturating_sub(1);
        self.epochs.drain(..old);
    }
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    end: Position,
    next: i64,
}

/// The offsets of all assigned partitions.
#[derive(Debug, Default)]
pub struct Offsets {
    partitions: BTreeMap<i32, Partition>,
    /// Where consumption of a partition that was given away began when it was first assigned.
    origins: BTreeMap<i32, i64>,
    /// Nothing is committed before the ledger has it.
    needs_witness: bool,
    /// Nothing is committed before it is delivered.
    needs_delivery: bool,
}

impl Offsets {
    /// Begins to track `partition`. `start` is the offset consumption begins at when it is known; `committed` what
    /// Kafka holds for the group. When the log knows more than Kafka, what it knows lies before `log_end`, which need
    /// not be durable yet: a partition may be lost and come back between an append and its sync. `overlap` is the last
    /// message of the log, if consumption begins with it.
    pub fn assign(
        &mut self,
        partition: i32,
        start: Option<i64>,
        committed: Option<i64>,
        log_end: Position,
        overlap: Option<Overlap>,
    ) {
        let progress = PartitionProgress {
            started_at: start,
            consumed: start,
            durable: committed,
            committed,
            timestamp_ms: None,
        };
        let mut state = Partition {
            progress,
            witnessed: committed,
            epochs: overlap.iter().map(|overlap| (overlap.offset, overlap.leader_epoch)).collect(),
            overlap,
            ..Partition::default()
        };
        if let Some(next) =
            start.filter(|start| committed.is_none_or(|committed| *start > committed))
        {
            state.pending.push_back(Pending { end: log_end, next });
        }
        self.partitions.insert(partition, state);
    }

    /// Forgets `partition`; whatever of it becomes durable later is not committed by us.
    pub fn forget(&mut self, partition: i32) {
        let state = self.partitions.remove(&partition);
        if let Some(began) = state.and_then(|state| state.progress.started_at) {
            self.origins.entry(partition).or_insert(began);
        }
    }

    /// Decides about a message and, when it is to be taken, notes it.
    pub fn take(&mut self, message: Coordinates) -> Intake {
        let Coordinates { partition, offset, leader_epoch, timestamp_ms } = message;
        let Some(state) = self.partitions.get_mut(&partition) else { return Intake::Unassigned };
        if state.held {
            return Intake::Unassigned;
        }
        if let Some(overlap) = state.overlap.take_if(|overlap| overlap.offset <= offset)
            && let Some(parted) = overlap.found(offset, leader_epoch)
        {
            state.held = true;
            return parted;
        }
        if state.progress.consumed.is_some_and(|next| offset < next) {
            return Intake::Repeated;
        }
        let next = offset.saturating_add(1);
        state.progress.started_at.get_or_insert(offset);
        state.progress.consumed = Some(next);
        state.taken = Some(next);
        state.progress.timestamp_ms = timestamp_ms;
        if state.last_epoch() != leader_epoch {
            state.epochs.push((offset, leader_epoch));
        }
        Intake::Take
    }

    /// Consumption of `partition` begins anew at `start`, because what was taken from there on is of another history, or
    /// where Kafka's oldest message is, because all of it is; what is appended next comes with the new start. Nothing is
    /// taken before [`Offsets::begun`], and nothing that the ledger says counts before [`Offsets::ledger_rewound`].
    pub fn restart(&mut self, partition: i32, start: Option<i64>) {
        if start.is_none() {
            self.origins.remove(&partition);
        }
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let started_at = start.map(|start| state.progress.started_at.unwrap_or(start).min(start));
        // The last message before the place where histories part is in both: it tells whether the partition loses its end
        // once more before anything else is consumed.
        let before = start.map(|start| (start.saturating_sub(1), state.epoch_before(start)));
        *state = Partition {
            epochs: before.filter(|(_, epoch)| *epoch >= 0).into_iter().collect(),
            progress: PartitionProgress {
                started_at,
                consumed: start,
                ..PartitionProgress::default()
            },
            taken: start,
            held: true,
            ledger_is_behind: true,
            is_ahead_in_kafka: start.is_some(),
            ..Partition::default()
        };
    }

    /// Consumption of `partition` goes on at `next`, because Kafka has nothing before it any more: what was taken before
    /// is of the same history. Nothing is taken before [`Offsets::begun`].
    pub fn skip(&mut self, partition: i32, next: i64) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            // Nobody knows whose messages are missing.
            let gone = state.progress.consumed.unwrap_or(next).min(next.saturating_sub(1));
            state.epochs.push((gone, -1));
            state.progress.consumed = Some(next);
            state.taken = Some(next);
            state.overlap = None;
            state.held = true;
        }
    }

    /// Nothing is taken or committed of `partition` before it is restarted.
    pub fn hold(&mut self, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.held = true;
            state.taken = None;
            state.pending.clear();
            state.progress.durable = state.progress.committed;
        }
    }

    /// Consumption of `partition` is about to begin at something that was taken, to look at it again. What comes before
    /// [`Offsets::begun`] comes once more behind that, perhaps of another history: it is not taken now.
    pub fn look_again(&mut self, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.held = true;
        }
    }

    /// Consumption of a partition that waits for it has begun at its new place.
    pub fn begun(&mut self, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.held = false;
        }
    }

    /// What the ledger says of a restarted partition is about its new history from now on.
    pub fn ledger_rewound(&mut self, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.ledger_is_behind = false;
        }
    }

    /// Where to begin again so that Kafka's last message before our next one is compared with ours; `None` when it is
    /// older than `low`, Kafka's oldest, or not known.
    pub fn compare_again(&mut self, partition: i32, low: i64) -> Option<i64> {
        let state = self.partitions.get_mut(&partition)?;
        let offset = state.progress.consumed?.checked_sub(1).filter(|offset| *offset >= low)?;
        let leader_epoch = state.last_epoch();
        let overlap = Overlap { offset, leader_epoch, is_end: false };
        state.overlap = (leader_epoch >= 0).then_some(overlap);
        state.overlap.map(|overlap| overlap.offset)
    }

    /// Where to begin again so that Kafka's last message, which lies before our next one, is compared with what was taken;
    /// `None` when there is none or nothing to compare it with. `low` is Kafka's oldest offset, `high` the one after its
    /// last.
    pub fn compare_end(&mut self, partition: i32, low: i64, high: i64) -> Option<i64> {
        let state = self.partitions.get_mut(&partition)?;
        let offset = high.checked_sub(1).filter(|offset| *offset >= low)?;
        let leader_epoch = state.last_epoch();
        let overlap = Overlap { offset, leader_epoch, is_end: true };
        state.overlap = (leader_epoch >= 0).then_some(overlap);
        state.overlap.map(|overlap| overlap.offset)
    }

    /// Partitions with messages taken since the last append, with their next offsets: the annotation of that append.
    pub fn taken(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.partitions.iter().filter_map(|(partition, state)| Some((*partition, state.taken?)))
    }

    /// Leader epochs of the partitions in [`Offsets::taken`], where they are known, and -1 where one that was known
    /// means nothing any more.
    pub fn taken_epochs(&self) -> impl Iterator<Item = (i32, i32)> + '_ {
        self.partitions
            .iter()
            .filter(|(_, state)| state.taken.is_some() && (state.last_epoch() >= 0 || state.held))
            .map(|(partition, state)| (*partition, state.last_epoch()))
    }

    /// Everything taken so far lies before `end` in the log.
    pub fn appended(&mut self, end: Position) {
        for state in self.partitions.values_mut() {
            if let Some(next) = state.taken.take() {
                state.pending.push_back(Pending { end, next });
            }
        }
    }

    /// Applies the log's proof.
    pub fn durable(&mut self, proof: Durable) {
        for state in self.partitions.values_mut() {
            while let Some(front) = state.pending.front() {
                if front.end > proof.through() {
                    break;
                }
                state.progress.durable = Some(front.next);
                state.pending.pop_front();
            }
        }
    }

    /// What may be committed and was not confirmed yet, for the partitions that `wanted` accepts.
    pub fn committable(&self, wanted: impl Fn(i32) -> bool) -> Vec<Committable> {
        self.partitions
            .iter()
            .filter(|(partition, _)| wanted(**partition))
            .filter_map(|(partition, state)| {
                let durable = state.progress.durable?;
                let mut next = durable;
                if self.needs_witness {
                    next = next.min(state.witnessed?);
                }
                if self.needs_delivery {
                    next = next.min(state.delivered?);
                }
                let new = state.progress.committed.is_none_or(|committed| next > committed);
                let leader_epoch = state.epoch_before(next);
                new.then_some(Committable { partition: *partition, next, leader_epoch })
            })
            .collect()
    }

    /// What the ledger does not say yet and must before it may be committed, for the partitions that `wanted` accepts.
    pub fn testimony(&self, wanted: impl Fn(i32) -> bool) -> Vec<Testimony> {
        if !self.needs_witness {
            return Vec::new();
        }
        self.partitions
            .iter()
            .filter(|(partition, state)| wanted(**partition) && !state.ledger_is_behind)
            .filter_map(|(partition, state)| {
                let next = state.progress.durable?;
                let began = state.progress.started_at.unwrap_or(next);
                let from = self.origins.get(partition).copied().unwrap_or(began);
                let new = state.witnessed.is_none_or(|witnessed| next > witnessed);
                new.then_some(Testimony { partition: *partition, from, next })
            })
            .collect()
    }

    /// From now on nothing is committed before the ledger has it, or, with `false`, without regard to it.
    pub fn need_witness(&mut self, needed: bool) {
        self.needs_witness = needed;
    }

    /// From now on nothing is committed before it is delivered.
    pub fn need_delivery(&mut self, needed: bool) {
        self.needs_delivery = needed;
    }

    /// Everything of `partition` before `next` is delivered.
    pub fn delivered(&mut self, partition: i32, next: i64) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.delivered = Some(next);
        }
    }

    /// The ledger of this instance says that everything of `partition` before `next` is in its log.
    pub fn witnessed(&mut self, partition: i32, next: i64) {
        if let Some(state) =
            self.partitions.get_mut(&partition).filter(|state| !state.ledger_is_behind)
        {
            state.witnessed = Some(state.witnessed.map_or(next, |old| old.max(next)));
        }
    }

    /// Kafka confirmed that the group's offset of `partition` is `next`. An answer about more than is durable is one to
    /// a commit of an earlier assignment, or from before the partition was restarted: believed, it would withhold every
    /// commit until this one has come so far.
    pub fn committed(&mut self, partition: i32, next: i64) {
        if let Some(state) = self.partitions.get_mut(&partition)
            && state.progress.durable.is_some_and(|durable| next <= durable)
        {
            state.progress.committed =
                Some(state.progress.committed.map_or(next, |old| old.max(next)));
            state.forget_epochs_before(next);
            state.has_gone_back |= std::mem::take(&mut state.is_ahead_in_kafka);
        }
    }

    /// Partitions that began anew and whose group offset has gone back, each once, with the next offset that is durable:
    /// what was committed since is not beyond it. What the ledger says of them counts again after
    /// [`Offsets::ledger_rewound`].
    pub fn take_gone_back(&mut self) -> Vec<(i32, i64)> {
        let gone_back = |(partition, state): (&i32, &mut Partition)| {
            let durable =
                state.progress.durable.filter(|_| std::mem::take(&mut state.has_gone_back))?;
            state.ledger_is_behind = true;
            state.witnessed = None;
            Some((*partition, durable))
        };
        self.partitions.iter_mut().filter_map(gone_back).collect()
    }

    /// Position that must be durable before the offsets of `partition` are all committable, if any is not.
    #[must_use]
    pub fn awaited(&self, partition: i32) -> Option<Position> {
        self.partitions.get(&partition)?.pending.back().map(|pending| pending.end)
    }

    /// Assigned partitions.
    pub fn assigned(&self) -> impl Iterator<Item = i32> + '_ {
        self.partitions.keys().copied()
    }

    /// Progress of every assigned partition.
    pub fn progress(&self) -> impl Iterator<Item = (i32, PartitionProgress)> + '_ {
        self.partitions.iter().map(|(partition, state)| (*partition, state.progress))
    }
}

#[cfg(feature = "mutants")]
impl Offsets {
    /// The deliberate bug of the audit: everything consumed counts as durable before the log has it.
    pub fn mutant_commit_before_durable(&mut self) {
        for state in self.partitions.values_mut() {
            state.progress.durable = state.progress.consumed;
        }
    }
}

#[cfg(test)]
mod tests;
