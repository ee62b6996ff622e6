//! Sets of Kafka offsets, as ranges per partition. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use bincode::{Decode, Encode};

/// A stretch of one partition: from the first offset up to, not including, `to`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Encode,
    Decode,
    serde::Serialize,
    schemars::JsonSchema,
)]
pub struct OffsetRange {
    /// The partition.
    pub partition: i32,
    /// First offset.
    pub from: i64,
    /// Offset after the last.
    pub to: i64,
}

impl OffsetRange {
    /// How many offsets it spans.
    #[must_use]
    pub fn offsets(&self) -> u64 {
        u64::try_from(self.to.saturating_sub(self.from)).unwrap_or(0)
    }
}

/// A set of offsets: disjoint ranges in order, never more than [`OffsetRanges::RANGES_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OffsetRanges {
    partitions: BTreeMap<i32, Vec<Range<i64>>>,
}

impl OffsetRanges {
    /// With more ranges than this the nearest ones are joined: the set must fit into the log's carry, and a few offsets
    /// too many do no harm.
    pub const RANGES_MAX: usize = 256;

    /// Adds a range; an empty one changes nothing.
    pub fn insert(&mut self, range: OffsetRange) {
        if range.from >= range.to {
            return;
        }
        let ranges = self.partitions.entry(range.partition).or_default();
        let (mut from, mut to) = (range.from, range.to);
        ranges.retain(|other| {
            let apart = other.end < from || other.start > to;
            if !apart {
                from = from.min(other.start);
                to = to.max(other.end);
            }
            apart
        });
        let at = ranges.partition_point(|other| other.end < from);
        ranges.insert(at, from..to);
        if self.len() > Self::RANGES_MAX {
            self.join_nearest();
        }
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: OffsetRange) {
        let Some(ranges) = self.partitions.get_mut(&range.partition) else { return };
        if range.from >= range.to {
            return;
        }
        let pieces = std::mem::take(ranges).into_iter().flat_map(|other| {
            let before = other.start..other.end.min(range.from);
            let behind = other.start.max(range.to)..other.end;
            [before, behind]
        });
        *ranges = pieces.filter(|piece| !piece.is_empty()).collect();
        if ranges.is_empty() {
            self.partitions.remove(&range.partition);
        }
    }

    /// The lowest offset of `partition` in the set.
    #[must_use]
    pub fn first(&self, partition: i32) -> Option<i64> {
        self.partitions.get(&partition)?.first().map(|range| range.start)
    }

    /// True for the empty set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        self.partitions.iter().flat_map(|(partition, ranges)| {
            ranges.iter().map(|range| OffsetRange {
                partition: *partition,
                from: range.start,
                to: range.end,
            })
        })
    }

    /// How many offsets are in it.
    #[must_use]
    pub fn offsets(&self) -> u64 {
        self.iter().map(|range| range.offsets()).fold(0, u64::saturating_add)
    }

    fn len(&self) -> usize {
        self.partitions.values().map(Vec::len).sum()
    }

    fn join_nearest(&mut self) {
        let gaps = self.partitions.iter().flat_map(|(partition, ranges)| {
            ranges.windows(2).enumerate().filter_map(move |(index, pair)| match pair {
                [left, right] => Some((right.start.saturating_sub(left.end), *partition, index)),
                _ => None,
            })
        });
        let Some((_, partition, index)) = gaps.min() else {
            // One range in each of thousands of partitions: nothing can be joined.
            return;
        };
        if let Some(ranges) = self.partitions.get_mut(&partition) {
            let right = ranges.remove(index.saturating_add(1));
            if let Some(left) = ranges.get_mut(index) {
                left.end = right.end;
            }
        }
    }
}

impl FromIterator<OffsetRange> for OffsetRanges {
    fn from_iter<I: IntoIterator<Item = OffsetRange>>(ranges: I) -> Self {
        let mut set = Self::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(partition: i32, from: i64, to: i64) -> OffsetRange {
        OffsetRange { partition, from, to }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let set: OffsetRanges =
            [range(0, 5, 7), range(0, 1, 3), range(0, 3, 5), range(1, 0, 1), range(0, 9, 9)]
                .into_iter()
                .collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [range(0, 1, 7), range(1, 0, 1)]);
        assert_eq!((set.first(0), set.first(2), set.offsets()), (Some(1), None, 7));
    }

    #[test]
    fn too_many_ranges_are_joined_where_they_are_nearest_and_nothing_is_left_out() {
        let mut set = OffsetRanges::default();
        for number in 0..200 {
            set.insert(range(3, number * 1000, number * 1000 + 1));
            set.insert(range(3, number * 1000 + 10, number * 1000 + 11));
        }
        assert!(set.len() <= OffsetRanges::RANGES_MAX);
        assert!(
            set.iter().any(|range| range.from == 0 && range.to == 11),
            "{:?}",
            set.iter().next()
        );
        assert_eq!(set.iter().last().unwrap().to, 199 * 1000 + 11);
    }

    #[test]
    fn a_range_in_each_of_many_partitions_is_kept() {
        let set: OffsetRanges = (0..1000).map(|partition| range(partition, 1, 2)).collect();
        assert_eq!(set.iter().count(), 1000);
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_it_stands_for(
            steps in proptest::collection::vec((any::<bool>(), 0..3_i32, 0..40_i64, 0..12_i64), 0..60),
        ) {
            let mut set = OffsetRanges::default();
            let mut model = std::collections::BTreeSet::new();
            for (insert, partition, from, length) in steps {
                let offsets = (from..from + length).map(|offset| (partition, offset));
                if insert {
                    set.insert(range(partition, from, from + length));
                    model.extend(offsets);
                } else {
                    set.remove(range(partition, from, from + length));
                    offsets.for_each(|offset| { model.remove(&offset); });
                }
            }
            let listed: Vec<(i32, i64)> = set
                .iter()
                .flat_map(|range| (range.from..range.to).map(move |offset| (range.partition, offset)))
                .collect();
            prop_assert_eq!(&listed, &model.into_iter().collect::<Vec<_>>());
            let ranges: Vec<OffsetRange> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].partition < pair[1].partition || pair[0].to < pair[1].from));
        }
    }
}
