//! Acks in any order, folded into the contiguous *delivered* watermark. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::position::Position;

/// What was acked: everything before `delivered`, and some ranges beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acks {
    delivered: Position,
    /// start -> end; neither touching each other nor `delivered`.
    ranges: BTreeMap<Position, Position>,
}

impl Acks {
    pub fn new(delivered: Position, ranges: impl IntoIterator<Item = Range<Position>>) -> Self {
        let mut acks = Self { delivered, ranges: BTreeMap::new() };
        for range in ranges {
            acks.ack(range);
        }
        acks
    }

    /// Idempotent; empty and old ranges change nothing.
    pub fn ack(&mut self, range: Range<Position>) {
        let mut start = range.start.max(self.delivered);
        let mut end = range.end;
        if start >= end {
            return;
        }
        // Swallow everything that overlaps or touches, from the right: the last range that starts
        // at or before our end reaches furthest.
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        if start <= self.delivered {
            self.delivered = end;
        } else {
            self.ranges.insert(start, end);
        }
    }

    pub fn delivered(&self) -> Position {
        self.delivered
    }

    pub fn is_acked(&self, position: Position) -> bool {
        position < self.delivered
            || self.ranges.range(..=position).next_back().is_some_and(|(_, end)| position < *end)
    }

    /// The ranges beyond `delivered`, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Position>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Records acked beyond `delivered`.
    pub fn beyond(&self) -> u64 {
        self.ranges().filter_map(|range| range.end.distance_from(range.start)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn range(start: u64, end: u64) -> Range<Position> {
        Position::new(start)..Position::new(end)
    }

    #[test]
    fn delivered_moves_only_over_contiguous_acks() {
        let mut acks = Acks::default();
        acks.ack(range(5, 8));
        acks.ack(range(2, 5));
        assert_eq!(acks.delivered(), Position::ZERO);
        assert_eq!(acks.ranges().collect::<Vec<_>>(), [range(2, 8)]);
        acks.ack(range(0, 2));
        assert_eq!(acks.delivered(), Position::new(8));
        assert_eq!(acks.beyond(), 0);
    }

    #[test]
    fn acks_in_any_order_equal_a_set() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let mut acks = Acks::default();
            let mut set = BTreeSet::new();
            for _ in 0..40 {
                let start = random(60);
                let end = start + random(6);
                acks.ack(range(start, end));
                set.extend(start..end);
                for position in 0..70 {
                    assert_eq!(acks.is_acked(Position::new(position)), set.contains(&position));
                }
                let delivered = (0..).find(|position| !set.contains(position)).unwrap();
                assert_eq!(acks.delivered().get(), delivered);
                let beyond = set.iter().filter(|position| **position >= delivered).count();
                assert_eq!(acks.beyond(), beyond as u64);
            }
        }
    }
}
