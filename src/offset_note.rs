//! What the log notes about Kafka's offsets, beside the records: the annotation of a batch, and the carry that is the
//! sum of all annotations and outlives the records.
//!
//! The first byte is a version. Version 1 has the next offsets only; version 2 adds what is owed: offsets that this
//! instance once took and may have lost, which are fetched again. An offset stops being owed in the same annotation
//! that comes with its record, so a crash can neither forget nor invent a debt. Version 3 adds what the offsets are
//! about: the topic's identity, leader epochs, and where Kafka's history and ours part.

use std::collections::BTreeMap;

use crate::codec::{self, CodecError};
use crate::envelope::EnvelopeError;
use crate::kafka_gap::KafkaGap;
use crate::offset_ranges::{OffsetRange, OffsetRanges};
use crate::topic_identity::TopicIdentity;

const VERSION_NEXT: u8 = 1;
const VERSION_OWED: u8 = 2;
const VERSION_IDENTITY: u8 = 3;
/// Gaps remembered until a person takes note of them; the oldest are forgotten first.
const GAPS_MAX: usize = 64;

/// For each partition of a batch, or of all batches, the next offset to take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NextOffsets {
    partitions: BTreeMap<i32, i64>,
}

impl NextOffsets {
    /// Notes that the next offset to take from `partition` is `next`.
    pub fn set(&mut self, partition: i32, next: i64) {
        self.partitions.insert(partition, next);
    }

    /// Next offset of `partition`, if the log has ever seen one.
    #[must_use]
    pub fn get(&self, partition: i32) -> Option<i64> {
        self.partitions.get(&partition).copied()
    }

    /// True when no partition was ever seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Partitions and next offsets in order.
    pub fn iter(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.partitions.iter().map(|(partition, next)| (*partition, *next))
    }

    /// Forgets everything, keeping the allocation.
    pub fn clear(&mut self) {
        self.partitions.clear();
    }

    /// Bytes of an annotation that says nothing else.
    ///
    /// # Errors
    /// As [`codec::encode_into`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![VERSION_NEXT];
        let pairs: Vec<(i32, i64)> = self.iter().collect();
        codec::encode_into(&pairs, &mut out)?;
        Ok(out)
    }

    /// The next offsets of an annotation or carry, whatever else it says; no bytes at all mean no partition.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the bytes are damaged or from a newer program.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Ok(OffsetNote::decode(bytes)?.next)
    }
}

impl FromIterator<(i32, i64)> for NextOffsets {
    fn from_iter<I: IntoIterator<Item = (i32, i64)>>(pairs: I) -> Self {
        Self { partitions: pairs.into_iter().collect() }
    }
}

/// One annotation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetNote {
    /// Next offsets after the batch.
    pub next: NextOffsets,
    /// Offsets that are owed from now on.
    pub owed: Vec<OffsetRange>,
    /// Offsets that are not owed any more: fetched again, as far as Kafka has them, with this batch.
    pub settled: Vec<OffsetRange>,
    /// Owed offsets that Kafka does not have any more: they are lost.
    pub lost: Vec<OffsetRange>,
    /// Lost offsets that a person has taken note of.
    pub acknowledged: Vec<OffsetRange>,
    /// The leader epoch of each partition's last message; -1: what was known of it means nothing any more.
    pub epochs: BTreeMap<i32, i32>,
    /// The topic that the offsets are about from here on. Another one than before ends what was known of the old one.
    pub topic: Option<TopicIdentity>,
    /// Where Kafka's history and ours part.
    pub gaps: Vec<KafkaGap>,
    /// A person has taken note of all gaps up to this time, milliseconds since the epoch; 0: of none.
    pub gaps_seen_ms: i64,
}

type Ranges = Vec<OffsetRange>;
type Owed = (Ranges, Ranges, Ranges, Ranges);
type Identity = (Vec<(i32, i32)>, Option<TopicIdentity>, Vec<KafkaGap>, i64);

impl OffsetNote {
    /// Bytes of the annotation, in the oldest version that can say it.
    ///
    /// # Errors
    /// As [`codec::encode_into`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let owed = [&self.owed, &self.settled, &self.lost, &self.acknowledged];
        let has_identity = !self.epochs.is_empty()
            || self.topic.is_some()
            || !self.gaps.is_empty()
            || self.gaps_seen_ms != 0;
        if !has_identity && owed.iter().all(|ranges| ranges.is_empty()) {
            return self.next.encode();
        }
        let mut out = vec![if has_identity { VERSION_IDENTITY } else { VERSION_OWED }];
        let pairs: Vec<(i32, i64)> = self.next.iter().collect();
        codec::encode_into(
            &(pairs, &self.owed, &self.settled, &self.lost, &self.acknowledged),
            &mut out,
        )?;
        if has_identity {
            let epochs: Vec<(i32, i32)> =
                self.epochs.iter().map(|(partition, epoch)| (*partition, *epoch)).collect();
            codec::encode_into(&(epochs, &self.topic, &self.gaps, self.gaps_seen_ms), &mut out)?;
        }
        Ok(out)
    }

    /// Reads what [`OffsetNote::encode`] wrote.
    ///
    /// # Errors
    /// [`EnvelopeError`]: the bytes are damaged or from a newer program.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        match bytes.split_first() {
            None => Ok(Self::default()),
            Some((&VERSION_NEXT, rest)) => {
                let pairs: Vec<(i32, i64)> = codec::decode(rest)?;
                Ok(Self { next: pairs.into_iter().collect(), ..Self::default() })
            }
            Some((&VERSION_OWED, rest)) => {
                let (pairs, owed) = codec::decode::<(Vec<(i32, i64)>, Owed)>(rest)?;
                Ok(Self::of(pairs, owed))
            }
            Some((&VERSION_IDENTITY, rest)) => {
                let (pairs, owed, (epochs, topic, gaps, gaps_seen_ms)) =
                    codec::decode::<(Vec<(i32, i64)>, Owed, Identity)>(rest)?;
                let epochs = epochs.into_iter().collect();
                Ok(Self { epochs, topic, gaps, gaps_seen_ms, ..Self::of(pairs, owed) })
            }
            Some((&found, _)) => Err(EnvelopeError::UnknownVersion { found }),
        }
    }

    fn of(pairs: Vec<(i32, i64)>, (owed, settled, lost, acknowledged): Owed) -> Self {
        let next = pairs.into_iter().collect();
        Self { next, owed, settled, lost, acknowledged, ..Self::default() }
    }
}

/// All annotations of a log, summed up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOffsets {
    /// Next offset to take, per partition.
    pub next: NextOffsets,
    /// What is to be fetched again.
    pub owed: OffsetRanges,
    /// What is lost, until a person has taken note of it.
    pub lost: OffsetRanges,
    /// The leader epoch of each partition's last message.
    pub epochs: BTreeMap<i32, i32>,
    /// The topic that all of this is about.
    pub topic: Option<TopicIdentity>,
    /// Where Kafka's history and ours part, until a person has taken note of it.
    pub gaps: Vec<KafkaGap>,
}

impl LogOffsets {
    /// Reads a log's carry.
    ///
    /// # Errors
    /// As [`OffsetNote::decode`].
    pub fn decode(carry: &[u8]) -> Result<Self, EnvelopeError> {
        let mut offsets = Self::default();
        offsets.fold(OffsetNote::decode(carry)?);
        Ok(offsets)
    }

    /// Adds an annotation. Adding the last one again changes nothing.
    pub fn fold(&mut self, note: OffsetNote) {
        if let Some(topic) = note.topic {
            if self.topic.as_ref().is_some_and(|known| known.differs(&topic)) {
                // Nobody has the old topic's messages any more.
                self.next.clear();
                self.epochs.clear();
                std::mem::take(&mut self.owed).iter().for_each(|range| self.lost.insert(range));
            }
            self.topic = Some(topic);
        }
        for (partition, next) in note.next.iter() {
            self.next.set(partition, next);
        }
        for (partition, epoch) in note.epochs {
            if epoch < 0 {
                self.epochs.remove(&partition);
            } else {
                self.epochs.insert(partition, epoch);
            }
        }
        for range in note.owed {
            // What is owed again is not lost yet; both at once would read back as lost only.
            self.lost.remove(range);
            self.owed.insert(range);
        }
        for range in note.settled {
            self.owed.remove(range);
        }
        for range in note.lost {
            self.owed.remove(range);
            self.lost.insert(range);
        }
        for range in note.acknowledged {
            self.lost.remove(range);
        }
        for gap in note.gaps {
            if !self.gaps.contains(&gap) {
                self.gaps.push(gap);
            }
        }
        self.gaps.retain(|gap| gap.at_ms > note.gaps_seen_ms);
        let forgotten = self.gaps.len().saturating_sub(GAPS_MAX);
        self.gaps.drain(..forgotten);
    }

    fn as_note(&self) -> OffsetNote {
        OffsetNote {
            next: self.next.clone(),
            owed: self.owed.iter().collect(),
            lost: self.lost.iter().collect(),
            epochs: self.epochs.clone(),
            topic: self.topic.clone(),
            gaps: self.gaps.clone(),
            ..OffsetNote::default()
        }
    }
}

/// The log's carry: see [`LogOffsets`].
#[derive(Debug, Default)]
pub struct OffsetCarry(LogOffsets);

impl wal::Carry for OffsetCarry {
    fn absorb(&mut self, annotation: &[u8]) {
        // Annotations pass the frame's checksum, so one that cannot be read comes from a newer program,
        // and the log has refused such a directory already.
        if let Ok(note) = OffsetNote::decode(annotation) {
            self.0.fold(note);
        }
    }

    fn save(&self) -> Vec<u8> {
        self.0.as_note().encode().unwrap_or_default()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), String> {
        self.0 = LogOffsets::decode(saved).map_err(|error| error.to_string())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wal::Carry as _;

    use super::*;
    use crate::kafka_gap::GapKind;

    fn range(partition: i32, from: i64, to: i64) -> OffsetRange {
        OffsetRange { partition, from, to }
    }

    fn next(pairs: &[(i32, i64)]) -> OffsetNote {
        OffsetNote { next: pairs.iter().copied().collect(), ..OffsetNote::default() }
    }

    fn carried(notes: &[OffsetNote]) -> LogOffsets {
        let mut carry = OffsetCarry::default();
        for note in notes {
            carry.absorb(&note.encode().unwrap());
        }
        LogOffsets::decode(&carry.save()).unwrap()
    }

    #[test]
    fn the_carry_is_the_last_annotation_of_each_partition() {
        let offsets = carried(&[next(&[(0, 10), (1, 20)]), next(&[(1, 30)])]);
        assert_eq!(offsets.next.iter().collect::<Vec<_>>(), [(0, 10), (1, 30)]);
    }

    #[test]
    fn a_debt_is_carried_until_it_is_settled_or_known_to_be_lost() {
        let owe = OffsetNote { owed: vec![range(0, 5, 20)], ..next(&[(0, 20)]) };
        let settle = OffsetNote { settled: vec![range(0, 8, 12)], ..OffsetNote::default() };
        let lose = OffsetNote { lost: vec![range(0, 5, 8)], ..OffsetNote::default() };
        let offsets = carried(&[owe, settle, lose.clone(), lose.clone()]);
        assert_eq!(offsets.owed.iter().collect::<Vec<_>>(), [range(0, 12, 20)]);
        assert_eq!(offsets.lost.iter().collect::<Vec<_>>(), [range(0, 5, 8)]);
        let seen = OffsetNote { acknowledged: lose.lost.clone(), ..OffsetNote::default() };
        assert!(carried(&[lose, seen]).lost.is_empty());
    }

    #[test]
    fn the_bytes_never_change() {
        let plain = next(&[(0, 10), (3, 300)]).encode().unwrap();
        assert_eq!(plain, [1, 2, 0, 20, 6, 251, 88, 2]);
        let note = OffsetNote {
            owed: vec![range(1, 2, 3)],
            settled: vec![range(1, 4, 5)],
            lost: vec![range(1, 6, 7)],
            acknowledged: vec![range(1, 8, 9)],
            ..next(&[(0, 10)])
        };
        let golden = [2, 1, 0, 20, 1, 2, 4, 6, 1, 2, 8, 10, 1, 2, 12, 14, 1, 2, 16, 18];
        assert_eq!(note.encode().unwrap(), golden);
        assert_eq!(OffsetNote::decode(&golden).unwrap(), note);
        let note = OffsetNote {
            epochs: BTreeMap::from([(0, 7)]),
            topic: Some(topic("u")),
            gaps: vec![gap(5, 9, 1)],
            gaps_seen_ms: 3,
            ..next(&[(0, 10)])
        };
        let golden =
            [3, 1, 0, 20, 0, 0, 0, 0, 1, 0, 14, 1, 1, b'c', 1, b'u', 1, 0, 0, 10, 18, 2, 6];
        assert_eq!(note.encode().unwrap(), golden);
        assert_eq!(OffsetNote::decode(&golden).unwrap(), note);
    }

    fn topic(id: &str) -> TopicIdentity {
        TopicIdentity { cluster: "c".to_owned(), topic: id.to_owned() }
    }

    fn gap(from: i64, to: i64, at_ms: i64) -> KafkaGap {
        KafkaGap { kind: GapKind::Retention, partition: 0, from, to, at_ms }
    }

    #[test]
    fn another_topic_of_the_name_ends_what_was_known_of_the_old_one() {
        let named = |id: &str| OffsetNote { topic: Some(topic(id)), ..OffsetNote::default() };
        let old = OffsetNote {
            owed: vec![range(0, 5, 20)],
            epochs: BTreeMap::from([(0, 3)]),
            ..next(&[(0, 20), (1, 4)])
        };
        let same = carried(&[named("t"), old.clone(), named("t")]);
        assert_eq!(same.next.get(0), Some(20));
        let offsets = carried(&[named("t"), old, named("u"), next(&[(1, 2)])]);
        assert_eq!(offsets.next.iter().collect::<Vec<_>>(), [(1, 2)]);
        assert!(offsets.owed.is_empty() && offsets.epochs.is_empty());
        assert_eq!(offsets.lost.iter().collect::<Vec<_>>(), [range(0, 5, 20)]);
        assert_eq!(offsets.topic, Some(topic("u")));
    }

    #[test]
    fn gaps_stay_until_a_person_has_seen_them() {
        let found = |gaps: Vec<KafkaGap>| OffsetNote { gaps, ..OffsetNote::default() };
        let seen = OffsetNote { gaps_seen_ms: 10, ..OffsetNote::default() };
        let notes = [found(vec![gap(1, 2, 10)]), found(vec![gap(1, 2, 10), gap(5, 6, 20)]), seen];
        assert_eq!(carried(&notes[..2]).gaps, [gap(1, 2, 10), gap(5, 6, 20)]);
        assert_eq!(carried(&notes).gaps, [gap(5, 6, 20)]);
        let many: Vec<KafkaGap> = (0..100).map(|at| gap(at, at + 1, at + 1)).collect();
        assert_eq!(carried(&[found(many)]).gaps.first(), Some(&gap(36, 37, 37)));
    }

    #[test]
    fn what_is_owed_again_after_it_counted_as_lost_stays_owed() {
        let lost = OffsetNote { lost: vec![range(1, 7, 31)], ..OffsetNote::default() };
        let owed = OffsetNote { owed: vec![range(1, 10, 20)], ..OffsetNote::default() };
        let offsets = carried(&[lost, owed]);
        assert_eq!(offsets.owed.iter().collect::<Vec<_>>(), [range(1, 10, 20)]);
        assert_eq!(offsets.lost.iter().collect::<Vec<_>>(), [range(1, 7, 10), range(1, 20, 31)]);
    }

    #[test]
    fn bytes_of_a_newer_version_are_refused() {
        assert!(matches!(
            OffsetNote::decode(&[4, 0]),
            Err(EnvelopeError::UnknownVersion { found: 4 })
        ));
        assert!(OffsetCarry::default().load(&[4, 0]).is_err());
    }
}
