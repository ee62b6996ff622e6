//! Keeps the ledger, and the promise that what it owes is fetched again. Carries decisions out against the log; knows
//! no Kafka client: `kafka/ledger.rs` drives it with a real one, the simulator with a model.
//!
//! Order is everything here. A debt is durable in the log before the ledger is written over. The ledger says what is
//! delivered before, and what is taken after, anything that could be lost; it is confirmed before the group's own
//! offset is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wal::{AppendError, Batch, Fs, Incarnation, Position, PushError, Wal, WalError};

use crate::delivered::DeliveredOffsets;
use crate::envelope::Envelope;
use crate::ledger::{self, Entry, Finding, Witness};
use crate::offset_note::{LogOffsets, NextOffsets, OffsetNote};
use crate::offset_ranges::OffsetRange;
use crate::offsets::Testimony;
use crate::sync::lock;
use crate::topic_identity::TopicIdentity;

/// An entry is written again after so long even if nothing moved, so that others see that this instance lives.
pub const IDLE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// One partition of a ledger as Kafka has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The committed offset: everything before it is delivered.
    pub delivered: i64,
    /// The metadata.
    pub entry: Entry,
}

/// What is to be committed to the ledger's group for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerCommit {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub delivered: i64,
    /// The metadata.
    pub entry: Entry,
}

/// What was found at start for one partition whose log does not hold what the ledger remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Why.
    pub finding: Finding,
    /// What is fetched again; nothing when the topic is another one.
    pub range: OffsetRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    delivered: i64,
    next: i64,
    at: Duration,
}

/// Keeps the ledger of one pipeline.
pub struct Keeper<F: Fs> {
    wal: Wal<F>,
    delivered: Arc<Mutex<DeliveredOffsets>>,
    log_next: NextOffsets,
    witness: Option<Witness>,
    /// Next offset per partition that the log holds for certain.
    next: BTreeMap<i32, i64>,
    /// What was said before consumption began anew: said until the group's offset has gone back too. A disk that is lost
    /// meanwhile held the part of the old history that the group's offset still skips.
    said_before: BTreeMap<i32, i64>,
    said: BTreeMap<i32, Said>,
    /// The fetching of what is owed.
    batch: Batch,
    fetched: Option<Fetched>,
    /// Batches that are full, each with what it settles: appended once the topic is known to be the same still.
    full: Vec<(Batch, Fetched)>,
    counts: KeeperCounts,
    idle_interval: Duration,
    /// Partitions whose consumption began anew since the start.
    rewound: BTreeSet<i32>,
    /// Kafka has another topic of the name than the log, and nobody has accepted that.
    is_foreign: bool,
    /// The ledger was ahead: it is read once the log has gone on with Kafka's topic.
    is_put_off: bool,
}

/// A stretch of owed offsets in the batch.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    partition: i32,
    from: i64,
    next: i64,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct KeeperCounts {
    /// Entries that Kafka confirmed.
    pub ledger_entries: u64,
    /// Messages fetched again.
    pub fetched_again: u64,
}

impl<F: Fs> Keeper<F> {
    /// A keeper for a log that was just opened; it says nothing before [`Keeper::opened`]. `log_next` is what the log
    /// knew then: what is taken before the ledger is read must not hide what was lost.
    #[must_use]
    pub fn new(
        wal: Wal<F>,
        delivered: Arc<Mutex<DeliveredOffsets>>,
        log_next: NextOffsets,
    ) -> Self {
        Self {
            wal,
            delivered,
            log_next,
            witness: None,
            next: BTreeMap::new(),
            said_before: BTreeMap::new(),
            said: BTreeMap::new(),
            batch: Batch::new(),
            fetched: None,
            full: Vec::new(),
            counts: KeeperCounts::default(),
            idle_interval: IDLE_INTERVAL,
            rewound: BTreeSet::new(),
            is_foreign: false,
            is_put_off: false,
        }
    }

    /// An entry is written again after so long, if that is shorter than [`IDLE_INTERVAL`].
    #[must_use]
    pub fn heard_of_every(mut self, interval: Duration) -> Self {
        self.idle_interval = interval.min(IDLE_INTERVAL);
        self
    }

    /// True once the ledger was read.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.witness.is_some()
    }

    /// What the ledger said before this start is compared with the log. What is missing is owed from now on, durably.
    ///
    /// A ledger about the topic that Kafka has is put off while the log is about one before it, as that of a disk is which
    /// was rolled back: what it owes cannot be noted in a log that is about other offsets. It stays closed then; try again.
    ///
    /// # Errors
    /// The log failed, or has no room ([`WalError::NoSpace`]): then try again later, nothing is forgotten.
    pub fn opened(
        &mut self,
        topic: &TopicIdentity,
        ledger: &BTreeMap<i32, Written>,
    ) -> Result<Vec<Missing>, WalError> {
        let status = self.wal.status();
        let witness =
            Witness { topic: topic.clone(), log: status.log_id, incarnation: status.incarnation };
        let log = self.log_offsets();
        self.is_foreign = log.topic.as_ref().is_some_and(|known| known.differs(topic));
        let is_of_kafkas_topic =
            |written: &Written| !ledger::is_of_another_topic(&written.entry, &witness);
        if self.is_foreign && ledger.values().any(is_of_kafkas_topic) {
            self.is_put_off = true;
            // What it knows is of the topic before.
            self.log_next = NextOffsets::default();
            return Ok(Vec::new());
        }
        let is_owed_already = |range: OffsetRange| {
            let mut with_it = log.owed.clone();
            with_it.insert(range);
            with_it == log.owed
        };
        let mut missing = Vec::new();
        for (partition, written) in ledger {
            let Written { delivered, entry } = written;
            let (incarnation, durable) =
                (Incarnation::new(entry.incarnation), Position::new(entry.durable));
            let attested = self.wal.attest(incarnation, durable);
            let finding =
                ledger::compare(entry, &witness, &attested, self.log_next.get(*partition));
            if finding != Finding::Intact
                && let Some(range) = ledger::owed(*partition, *delivered, entry)
                // What was taken over from another instance is in the ledger before it is in the log.
                && !(finding == Finding::LogRolledBack && is_owed_already(range))
            {
                missing.push(Missing { finding, range });
            }
        }
        let owed: Vec<OffsetRange> = missing
            .iter()
            .filter(|missing| missing.finding != Finding::TopicRecreated)
            .map(|missing| missing.range)
            .collect();
        self.owe(owed)?;
        let is_ours = |partition: &i32, entry: &Entry| {
            !ledger::is_of_another_topic(entry, &witness)
                && (self.is_put_off || !self.rewound.contains(partition))
        };
        {
            let mut delivered = lock(&self.delivered);
            for (partition, next) in log.next.iter() {
                // What the log knows of another topic is nothing to say of this one.
                if self.is_foreign || self.rewound.contains(&partition) {
                    continue;
                }
                self.next.insert(partition, next);
                // What the ledger says of another topic says nothing of what waits in the log of this one.
                let before = ledger
                    .get(&partition)
                    .filter(|written| is_ours(&partition, &written.entry))
                    .map(|written| written.delivered);
                if delivered.is_behind() {
                    delivered.recall(partition, before.unwrap_or(0));
                }
            }
            for (partition, written) in ledger {
                if is_ours(partition, &written.entry) {
                    delivered.first_seen(*partition, written.delivered);
                }
            }
        }
        // Never less than was said before: what lies between is in the log, or owed.
        for (partition, Written { entry, .. }) in ledger {
            if is_ours(partition, entry) {
                let next = self.next.entry(*partition).or_insert(entry.next);
                *next = (*next).max(entry.next);
            } else if !ledger::is_of_another_topic(entry, &witness) {
                let said = self.said_before.entry(*partition).or_insert(entry.next);
                *said = (*said).max(entry.next);
            }
        }
        self.witness = Some(witness);
        Ok(missing)
    }

    /// Notes durably that these offsets are to be fetched again.
    ///
    /// # Errors
    /// As [`Keeper::opened`].
    pub fn owe(&mut self, owed: Vec<OffsetRange>) -> Result<(), WalError> {
        owe(&self.wal, owed)
    }

    /// Notes durably that these offsets, which another instance owes, are to be fetched again by this one. Our own
    /// ledger must have been confirmed after this before the other's may be written over.
    ///
    /// # Errors
    /// As [`Keeper::opened`].
    pub fn take_over(&mut self, owed: Vec<OffsetRange>) -> Result<(), WalError> {
        self.owe(owed.clone())?;
        let mut delivered = lock(&self.delivered);
        for range in owed {
            delivered.first_seen(range.partition, range.from);
            let next = self.next.entry(range.partition).or_insert(range.to);
            *next = (*next).max(range.to);
        }
        Ok(())
    }

    /// Consumption of a partition begins anew, at `next` or at Kafka's oldest message: the ledger says nothing of its old
    /// history any more. Everything before `end` is of that one.
    pub fn rewind(&mut self, partition: i32, next: Option<i64>, end: Position) {
        self.rewound.insert(partition);
        self.said.remove(&partition);
        let before = match next {
            Some(next) => self.next.insert(partition, next),
            None => {
                self.said_before.remove(&partition);
                self.next.remove(&partition)
            }
        };
        if let (Some(before), Some(_)) = (before, next) {
            let said = self.said_before.entry(partition).or_insert(before);
            *said = (*said).max(before);
        }
        lock(&self.delivered).begin_anew(partition, next, end);
    }

    /// The group's offset of a partition has gone back to where consumption began anew: nothing of its old history need
    /// be said any more, unless it is owed. The log has everything of the new one up to `next`.
    pub fn gone_back(&mut self, partition: i32, next: i64) {
        let known = self.next.entry(partition).or_insert(next);
        *known = (*known).max(next);
        let is_owed = self.log_offsets().owed.first(partition).is_some();
        if !is_owed && self.said_before.remove(&partition).is_some() {
            self.said.remove(&partition);
        }
    }

    /// Which topic Kafka has now. While it is another one than the log's, nothing is fetched again from it.
    pub fn topic_is(&mut self, topic: &TopicIdentity) {
        let known = self.log_offsets().topic;
        self.is_foreign = known.is_some_and(|known| known.differs(topic));
    }

    /// Whether an entry of another instance is about the topic that our log is about; see [`ledger::is_of_another_topic`].
    #[must_use]
    pub fn is_of_our_topic(&self, entry: &Entry) -> bool {
        let Some(witness) = &self.witness else { return false };
        let topic = self.log_offsets().topic.unwrap_or_else(|| witness.topic.clone());
        !ledger::is_of_another_topic(entry, &Witness { topic, ..witness.clone() })
    }

    /// Whether our log is about the topic that Kafka has: what others owe can be taken over then only.
    #[must_use]
    pub fn is_about(&self, topic: &TopicIdentity) -> bool {
        self.is_open() && self.log_offsets().topic.is_none_or(|known| !known.differs(topic))
    }

    /// A person has taken note of what is lost.
    ///
    /// # Errors
    /// As [`Keeper::opened`].
    pub fn acknowledge(&mut self) -> Result<(), WalError> {
        let LogOffsets { lost, gaps, .. } = self.log_offsets();
        let gaps_seen_ms = gaps.iter().map(|gap| gap.at_ms).max().unwrap_or(0);
        let acknowledged = lost.iter().collect();
        self.note(&OffsetNote { acknowledged, gaps_seen_ms, ..OffsetNote::default() })
    }

    /// The log has everything of these partitions up to `next`. Returns what Kafka's ledger says already, as
    /// [`Keeper::confirmed`] does.
    pub fn testify(&mut self, testimony: &[Testimony]) -> Vec<(i32, i64)> {
        let mut delivered = lock(&self.delivered);
        for said in testimony {
            let next = self.next.entry(said.partition).or_insert(said.next);
            *next = (*next).max(said.next);
            delivered.first_seen(said.partition, said.from);
        }
        // A partition that came back asks again for what was confirmed before it went.
        let is_said = |testimony: &&Testimony| {
            self.said.get(&testimony.partition).is_some_and(|said| said.next >= testimony.next)
        };
        testimony.iter().filter(is_said).map(|said| (said.partition, said.next)).collect()
    }

    /// What the ledger should say now and did not say yet. Until it is confirmed, Kafka may have it or what it had
    /// before: neither counts as said.
    pub fn due(&mut self, now: Duration, now_ms: i64) -> Vec<LedgerCommit> {
        let Some(witness) = &mut self.witness else { return Vec::new() };
        // In this order: what is acked because it is owed must be seen as owed.
        let mut delivered = lock(&self.delivered);
        let watermark = self.wal.delivered();
        let LogOffsets { owed, topic, .. } =
            LogOffsets::decode(&self.wal.carry()).unwrap_or_default();
        // The ledger is about what the log holds, whatever Kafka has by now.
        if let Some(topic) = topic {
            witness.topic = topic;
        }
        let durable = self.wal.durable().through();
        delivered.advance(watermark);
        let told = delivered.tell();
        let commits: Vec<LedgerCommit> = self
            .next
            .iter()
            .filter_map(|(partition, next)| {
                let before = self.said_before.get(partition);
                let next = before.map_or(next, |before| next.max(before));
                let told = told.get(partition).copied().unwrap_or(0).min(*next);
                let delivered = owed.first(*partition).map_or(told, |owed| told.min(owed));
                let as_said = self.said.get(partition).is_some_and(|said| {
                    (said.delivered, said.next) == (delivered, *next)
                        && now.saturating_sub(said.at) < self.idle_interval
                });
                (!as_said).then(|| LedgerCommit {
                    partition: *partition,
                    delivered,
                    entry: witness.entry(durable, *next, now_ms),
                })
            })
            .collect();
        for commit in &commits {
            self.said.remove(&commit.partition);
        }
        commits
    }

    /// Kafka has these entries: their offsets may be committed.
    pub fn confirmed(&mut self, commits: &[LedgerCommit], now: Duration) -> Vec<(i32, i64)> {
        for commit in commits {
            self.counts.ledger_entries = self.counts.ledger_entries.saturating_add(1);
            let said = Said { delivered: commit.delivered, next: commit.entry.next, at: now };
            self.said.insert(commit.partition, said);
        }
        commits.iter().map(|commit| (commit.partition, commit.entry.next)).collect()
    }

    /// The next range to be fetched again, while the log has room for it.
    #[must_use]
    pub fn next_owed(&self) -> Option<OffsetRange> {
        if !self.is_open() || self.is_foreign || !self.wal.status().is_below_low_mark() {
            return None;
        }
        self.log_offsets().owed.iter().next()
    }

    /// Takes a message that was owed; `from` is where its range begins now.
    ///
    /// # Errors
    /// As [`Keeper::fetched_to`].
    pub fn take(&mut self, from: i64, message: &Envelope<'_>) -> Result<(), WalError> {
        let bytes_max = self.wal.max_record_bytes();
        match self.batch.push_with(|out| message.encode_within(bytes_max, out)) {
            Ok(()) => {}
            Err(PushError::BatchFull) => {
                if let Some(fetched) = self.fetched.take() {
                    self.full.push((std::mem::take(&mut self.batch), fetched));
                }
                self.batch
                    .push_with(|out| message.encode_within(bytes_max, out))
                    .map_err(|error| poisoned(&error))?;
            }
            Err(error @ PushError::Write(_)) => return Err(poisoned(&error)),
        }
        self.counts.fetched_again = self.counts.fetched_again.saturating_add(1);
        let next = message.offset.saturating_add(1);
        let fetched =
            self.fetched.get_or_insert(Fetched { partition: message.partition, from, next });
        fetched.next = next;
        Ok(())
    }

    /// Everything owed of `partition` before `next` was taken, as far as Kafka has it: makes that durable. The caller has
    /// asked for the topic since it fetched them and said so with [`Keeper::topic_is`]: messages of another topic settle
    /// nothing and are dropped.
    ///
    /// # Errors
    /// The log failed, or is full ([`WalError::NoSpace`]): what was taken since the last call is fetched again later.
    pub fn fetched_to(&mut self, partition: i32, from: i64, next: i64) -> Result<(), WalError> {
        if self.is_foreign {
            self.forget_fetched();
            return Ok(());
        }
        let from = self.full.last().map_or(from, |(_, fetched)| fetched.next);
        let fetched = self.fetched.get_or_insert(Fetched { partition, from, next });
        fetched.next = fetched.next.max(next);
        let appended = self.append();
        // What was not appended is fetched again.
        self.forget_fetched();
        appended?;
        self.wal.commit()
    }

    /// Kafka does not have these owed offsets any more.
    ///
    /// # Errors
    /// As [`Keeper::opened`].
    pub fn lose(&mut self, range: OffsetRange) -> Result<(), WalError> {
        self.note(&OffsetNote { lost: vec![range], ..OffsetNote::default() })
    }

    /// What the log notes about offsets.
    #[must_use]
    pub fn log_offsets(&self) -> LogOffsets {
        LogOffsets::decode(&self.wal.carry()).unwrap_or_default()
    }

    /// For each partition known, the offset before which everything is delivered for certain.
    #[must_use]
    pub fn delivered(&self) -> BTreeMap<i32, i64> {
        let mut delivered = lock(&self.delivered);
        delivered.advance(self.wal.delivered());
        delivered.tell().clone()
    }

    /// Whether moved records may lie in what was not read yet.
    #[must_use]
    pub fn holds_moved(&self) -> bool {
        lock(&self.delivered).holds_moved()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> KeeperCounts {
        self.counts
    }

    fn append(&mut self) -> Result<(), WalError> {
        let mut batches = std::mem::take(&mut self.full);
        if let Some(fetched) = self.fetched.take() {
            batches.push((std::mem::take(&mut self.batch), fetched));
        }
        for (mut batch, Fetched { partition, from, next }) in batches {
            let settled = vec![OffsetRange { partition, from, to: next }];
            let note = OffsetNote { settled, ..OffsetNote::default() };
            annotate(&mut batch, &note)?;
            let range = append(&self.wal, batch)?;
            lock(&self.delivered).fetched_again(partition, from, range.end);
        }
        Ok(())
    }

    fn forget_fetched(&mut self) {
        self.full.clear();
        self.fetched = None;
        self.batch = Batch::new();
    }

    fn note(&mut self, note: &OffsetNote) -> Result<(), WalError> {
        if *note == OffsetNote::default() {
            return Ok(());
        }
        append_note(&self.wal, note)
    }
}

/// Notes durably that these offsets are to be fetched again. What the log notes already is not noted twice: a log that
/// is full of records has room for a few notes only.
///
/// # Errors
/// The log failed, or is full ([`WalError::NoSpace`]): then try again later.
pub fn owe<F: Fs>(wal: &Wal<F>, owed: Vec<OffsetRange>) -> Result<(), WalError> {
    let known = LogOffsets::decode(&wal.carry()).unwrap_or_default().owed;
    let mut with_these = known.clone();
    owed.iter().for_each(|range| with_these.insert(*range));
    if with_these == known {
        return Ok(());
    }
    append_note(wal, &OffsetNote { owed, ..OffsetNote::default() })
}

fn append_note<F: Fs>(wal: &Wal<F>, note: &OffsetNote) -> Result<(), WalError> {
    let mut batch = Batch::new();
    annotate(&mut batch, note)?;
    append(wal, batch)?;
    wal.commit()
}

fn annotate(batch: &mut Batch, note: &OffsetNote) -> Result<(), WalError> {
    let bytes = note.encode().map_err(|error| poisoned(&error))?;
    batch.annotate(&bytes);
    Ok(())
}

fn append<F: Fs>(wal: &Wal<F>, batch: Batch) -> Result<Range<Position>, WalError> {
    match wal.append(batch) {
        Ok(ticket) => Ok(ticket.range()),
        Err(AppendError::Full(_)) => {
            Err(WalError::NoSpace { op: "note owed offsets in", path: "the log".to_owned() })
        }
        Err(AppendError::Poisoned { cause }) => Err(WalError::Poisoned { cause }),
        Err(AppendError::Closed) => Err(WalError::Closed),
        Err(error @ AppendError::TooLarge { .. }) => Err(poisoned(&error)),
    }
}

/// What cannot be written down cannot be promised: the process ends.
fn poisoned(error: &impl std::fmt::Display) -> WalError {
    WalError::Poisoned { cause: error.to_string().into() }
}

#[cfg(test)]
mod tests {
    use wal::WalConfig;
    use wal::sim::SimDisk;

    use super::*;
    use crate::delivered::StretchOffsets;
    use crate::offset_note::OffsetCarry;
    use crate::offset_ranges::OffsetRanges;

    fn topic(id: &str) -> TopicIdentity {
        TopicIdentity { cluster: "c".to_owned(), topic: id.to_owned() }
    }

    /// A log that is about a topic and holds nothing.
    fn log(id: &str) -> Wal<SimDisk> {
        let carry = Box::<OffsetCarry>::default();
        let (wal, _) =
            Wal::open(SimDisk::new(1), WalConfig::default(), carry, Duration::ZERO).unwrap();
        go_on_with(&wal, id);
        wal
    }

    fn go_on_with(wal: &Wal<SimDisk>, id: &str) {
        append_note(wal, &OffsetNote { topic: Some(topic(id)), ..OffsetNote::default() }).unwrap();
    }

    fn keeper(wal: &Wal<SimDisk>) -> Keeper<SimDisk> {
        let nothing = NextOffsets::default();
        let delivered = DeliveredOffsets::new(&nothing, Position::ZERO, Position::ZERO);
        Keeper::new(wal.clone(), Arc::new(Mutex::new(delivered)), nothing)
    }

    /// A ledger of another log that owes offsets 3 to 9 of partition 0.
    fn ledger_about(id: &str) -> BTreeMap<i32, Written> {
        let witness = Witness {
            topic: topic(id),
            log: wal::LogId::new([7; 16]),
            incarnation: Incarnation::new(1),
        };
        let entry = witness.entry(Position::new(9), 9, 1);
        BTreeMap::from([(0, Written { delivered: 3, entry })])
    }

    fn said(keeper: &mut Keeper<SimDisk>) -> Vec<(i64, i64)> {
        let commits = keeper.due(Duration::ZERO, 0);
        keeper.confirmed(&commits, Duration::ZERO);
        commits.iter().map(|commit| (commit.delivered, commit.entry.next)).collect()
    }

    const OWED: OffsetRange = OffsetRange { partition: 0, from: 3, to: 9 };

    #[test]
    fn a_ledger_about_the_present_topic_waits_for_a_log_that_is_about_the_one_before() {
        let wal = log("old");
        let mut keeper = keeper(&wal);
        let ledger = ledger_about("new");
        assert_eq!(keeper.opened(&topic("new"), &ledger).unwrap(), []);
        assert!(!keeper.is_open() && !keeper.is_about(&topic("new")));
        assert_eq!(keeper.log_offsets().owed, OffsetRanges::default(), "of the old topic");
        assert_eq!(said(&mut keeper), [], "what it says stands");

        go_on_with(&wal, "new");
        keeper.rewind(0, None, wal.durable().through());
        let missing = keeper.opened(&topic("new"), &ledger).unwrap();
        assert_eq!(missing, [Missing { finding: Finding::LogReplaced, range: OWED }]);
        assert!(keeper.is_open() && keeper.is_about(&topic("new")));
        assert_eq!(keeper.next_owed(), Some(OWED));
        assert_eq!(said(&mut keeper), [(3, 9)]);
    }

    #[test]
    fn messages_of_another_topic_settle_nothing_that_is_owed() {
        let wal = log("old");
        let mut keeper = keeper(&wal);
        keeper.opened(&topic("old"), &BTreeMap::new()).unwrap();
        keeper.owe(vec![OWED]).unwrap();
        let message = Envelope {
            topic: "t",
            partition: 0,
            offset: 3,
            leader_epoch: 0,
            timestamp_ms: 1,
            timestamp_type: crate::envelope::TimestampType::Created,
            received_ms: 1,
            key: None,
            payload: Some(b"m"),
        };
        keeper.take(3, &message).unwrap();
        keeper.topic_is(&topic("new"));
        keeper.fetched_to(0, 3, 9).unwrap();
        assert_eq!(keeper.log_offsets().owed.iter().collect::<Vec<_>>(), [OWED]);
        assert_eq!(wal.status().backlog_records, 0, "none was taken");
        assert_eq!(keeper.next_owed(), None, "nothing is fetched from the new one");

        keeper.topic_is(&topic("old"));
        keeper.take(3, &message).unwrap();
        keeper.fetched_to(0, 3, 9).unwrap();
        assert_eq!((keeper.next_owed(), wal.status().backlog_records), (None, 1));
    }

    #[test]
    fn an_entry_is_ours_by_the_topic_that_the_log_is_about_now() {
        let wal = log("old");
        let mut keeper = keeper(&wal);
        keeper.opened(&topic("new"), &BTreeMap::new()).unwrap();
        keeper.due(Duration::ZERO, 0);
        let entry = &ledger_about("new")[&0].entry;
        assert!(!keeper.is_of_our_topic(entry) && !keeper.is_about(&topic("new")));
        go_on_with(&wal, "new");
        assert!(keeper.is_of_our_topic(entry) && keeper.is_about(&topic("new")));
    }

    #[test]
    fn what_the_ledger_said_of_another_topic_is_not_said_of_what_waits_in_the_log() {
        let wal = log("new");
        let next = NextOffsets::from_iter([(0, 1)]);
        let mut batch = Batch::new();
        batch.push(b"message 0 of the new topic").unwrap();
        annotate(&mut batch, &OffsetNote { next: next.clone(), ..OffsetNote::default() }).unwrap();
        append(&wal, batch).unwrap();
        wal.commit().unwrap();
        // As after a start: nothing was read from the log yet.
        let delivered = DeliveredOffsets::new(&next, wal.delivered(), wal.durable().through());
        let mut keeper = Keeper::new(wal.clone(), Arc::new(Mutex::new(delivered)), next);
        let missing = keeper.opened(&topic("new"), &ledger_about("old")).unwrap();
        assert_eq!(missing, [Missing { finding: Finding::TopicRecreated, range: OWED }]);
        assert_eq!(said(&mut keeper), [(0, 1)]);
    }

    #[test]
    fn the_ledger_claims_a_history_that_was_replaced_until_the_group_s_offset_has_gone_back() {
        let wal = log("t");
        let mut keeper = keeper(&wal);
        keeper.opened(&topic("t"), &BTreeMap::new()).unwrap();
        keeper.testify(&[Testimony { partition: 0, from: 0, next: 33 }]);
        assert_eq!(said(&mut keeper), [(0, 33)]);
        // The group's offset is 33 still: a disk that is lost now takes what lies between.
        keeper.rewind(0, Some(6), wal.durable().through());
        assert_eq!(said(&mut keeper), [(0, 33)]);
        keeper.gone_back(0, 8);
        assert_eq!(said(&mut keeper), [(0, 8)]);
    }

    #[test]
    fn what_kafka_was_told_without_an_answer_is_not_taken_for_what_it_said_before() {
        let now = Duration::ZERO;
        let wal = log("t");
        let mut keeper = keeper(&wal);
        let delivered = Arc::clone(&keeper.delivered);
        keeper.opened(&topic("t"), &BTreeMap::new()).unwrap();
        keeper.testify(&[Testimony { partition: 0, from: 0, next: 10 }]);
        let due = |keeper: &mut Keeper<SimDisk>| {
            let commits = keeper.due(now, 0);
            let said = commits.iter().map(|commit| (commit.delivered, commit.entry.next));
            (said.collect::<Vec<_>>(), commits)
        };
        let (said, commits) = due(&mut keeper);
        assert_eq!(said, [(0, 10)]);
        keeper.confirmed(&commits, now);
        assert_eq!(due(&mut keeper).0, []);

        let mut batch = Batch::new();
        batch.push(&[0]).unwrap();
        let end = append(&wal, batch).unwrap().end;
        wal.commit().unwrap();
        let mut offsets = StretchOffsets::default();
        (0..10).for_each(|offset| offsets.saw(Position::ZERO, 0, offset));
        lock(&delivered).read(end, offsets);
        wal.ack(Position::ZERO..end);
        // Kafka has this, but the answer does not arrive.
        assert_eq!(due(&mut keeper).0, [(10, 10)]);
        keeper.take_over(vec![OffsetRange { partition: 0, from: 0, to: 5 }]).unwrap();
        assert_eq!(due(&mut keeper).0, [(0, 10)]);
    }
}
