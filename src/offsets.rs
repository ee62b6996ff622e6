//! Which offset may be committed, per partition: a queue of (position, next offset). Pure.
//!
//! A [`Committable`] offset is the only thing the Kafka side accepts for a commit, and only [`Offsets::durable`] makes
//! one, from the log's own proof of durability. A partition that was taken away is forgotten at once, so that a late
//! completion finds nothing to commit.

use std::collections::{BTreeMap, VecDeque};

use wal::{Durable, Position};

/// A next offset before which every message of its partition is durable in the log.
///
/// It cannot be made outside this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committable {
    partition: i32,
    next: i64,
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
    /// Its partition is not ours any more.
    Unassigned,
}

/// How far a partition has come; each value is a next offset.
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
}

impl Offsets {
    /// Begins to track `partition`. `start` is the offset consumption begins at when it is known; `committed` what
    /// Kafka holds for the group. When the log knows more than Kafka, what it knows lies before `log_end`, which need
    /// not be durable yet: a partition may be lost and come back between an append and its sync.
    pub fn assign(
        &mut self,
        partition: i32,
        start: Option<i64>,
        committed: Option<i64>,
        log_end: Position,
    ) {
        let progress =
            PartitionProgress { started_at: start, consumed: start, durable: committed, committed };
        let mut state = Partition { progress, witnessed: committed, ..Partition::default() };
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

    /// Decides about the message at `offset` and, when it is to be taken, notes it.
    pub fn take(&mut self, partition: i32, offset: i64) -> Intake {
        let Some(state) = self.partitions.get_mut(&partition) else { return Intake::Unassigned };
        if state.progress.consumed.is_some_and(|next| offset < next) {
            return Intake::Repeated;
        }
        let next = offset.saturating_add(1);
        state.progress.started_at.get_or_insert(offset);
        state.progress.consumed = Some(next);
        state.taken = Some(next);
        Intake::Take
    }

    /// Partitions with messages taken since the last append, with their next offsets: the annotation of that append.
    pub fn taken(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.partitions.iter().filter_map(|(partition, state)| Some((*partition, state.taken?)))
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
                let next = if self.needs_witness { durable.min(state.witnessed?) } else { durable };
                let new = state.progress.committed.is_none_or(|committed| next > committed);
                new.then_some(Committable { partition: *partition, next })
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
            .filter(|(partition, _)| wanted(**partition))
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

    /// The ledger of this instance says that everything of `partition` before `next` is in its log.
    pub fn witnessed(&mut self, partition: i32, next: i64) {
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.witnessed = Some(state.witnessed.map_or(next, |old| old.max(next)));
        }
    }

    /// Kafka confirmed that the group's offset of `partition` is `next`. An answer about more than is durable is one to
    /// a commit of an earlier assignment: believed, it would withhold every commit until this one has come so far.
    pub fn committed(&mut self, partition: i32, next: i64) {
        if let Some(state) = self.partitions.get_mut(&partition)
            && state.progress.durable.is_some_and(|durable| next <= durable)
        {
            state.progress.committed =
                Some(state.progress.committed.map_or(next, |old| old.max(next)));
        }
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
mod tests {
    use std::time::Duration;

    use wal::sim::SimDisk;
    use wal::{Batch, NoCarry, Wal, WalConfig};

    use super::*;

    /// A log, and a proof that everything appended to it is durable.
    fn append(wal: &Wal<SimDisk>) -> (Position, Durable) {
        let mut batch = Batch::new();
        batch.push(b"record").unwrap();
        let end = wal.append(batch).unwrap().range().end;
        wal.commit().unwrap();
        (end, wal.durable())
    }

    fn log() -> Wal<SimDisk> {
        let config = WalConfig::default();
        Wal::open(SimDisk::new(1), config, Box::new(NoCarry), Duration::ZERO).unwrap().0
    }

    const NONE: [i64; 0] = [];

    fn committable(offsets: &Offsets) -> Vec<i64> {
        offsets.committable(|_| true).iter().map(Committable::next).collect()
    }

    /// Takes everything before `next`, and makes it durable.
    fn take_to(offsets: &mut Offsets, wal: &Wal<SimDisk>, next: i64) {
        assert_eq!(offsets.take(0, next - 1), Intake::Take);
        let (end, proof) = append(wal);
        offsets.appended(end);
        offsets.durable(proof);
    }

    #[test]
    fn a_commit_answered_after_its_partition_came_back_withholds_nothing() {
        let (wal, mut offsets) = (log(), Offsets::default());
        offsets.assign(0, Some(100), Some(100), Position::ZERO);
        take_to(&mut offsets, &wal, 200);
        assert_eq!(committable(&offsets), [200]);
        offsets.forget(0);
        // The answer comes while the partition is somebody else's, and once more after it came back further down, as
        // when an operator has reset the group.
        offsets.committed(0, 200);
        offsets.assign(0, Some(50), Some(50), wal.durable().through());
        offsets.committed(0, 200);
        assert_eq!(committable(&offsets), NONE);
        take_to(&mut offsets, &wal, 60);
        assert_eq!(committable(&offsets), [60], "the answer belonged to another assignment");
        offsets.committed(0, 60);
        assert_eq!(committable(&offsets), NONE);
    }

    #[test]
    fn news_of_the_ledger_after_a_partition_came_back_commits_nothing_that_is_not_durable() {
        let (wal, mut offsets) = (log(), Offsets::default());
        offsets.need_witness(true);
        offsets.assign(0, Some(100), Some(100), Position::ZERO);
        take_to(&mut offsets, &wal, 200);
        offsets.forget(0);
        offsets.witnessed(0, 200);
        assert_eq!(committable(&offsets), NONE);
        // Somebody else took it to 150; we go on behind our own log.
        let (end, proof) = append(&wal);
        offsets.assign(0, Some(200), Some(150), end);
        offsets.witnessed(0, 200);
        assert_eq!(committable(&offsets), NONE, "our own records are not proved durable again");
        offsets.durable(proof);
        assert_eq!(committable(&offsets), [200]);
        // Further down than the ledger has ever been: what is durable decides.
        offsets.forget(0);
        offsets.assign(0, Some(50), Some(50), end);
        offsets.witnessed(0, 200);
        assert_eq!(committable(&offsets), NONE);
        take_to(&mut offsets, &wal, 60);
        assert_eq!(committable(&offsets), [60]);
    }

    #[test]
    fn what_becomes_durable_after_a_partition_is_gone_is_not_committed() {
        let (wal, mut offsets) = (log(), Offsets::default());
        offsets.assign(0, Some(0), None, Position::ZERO);
        assert_eq!(offsets.take(0, 9), Intake::Take);
        let (end, proof) = append(&wal);
        offsets.appended(end);
        offsets.forget(0);
        offsets.durable(proof);
        assert_eq!(committable(&offsets), NONE);
        assert_eq!(offsets.take(0, 10), Intake::Unassigned);
    }
}
