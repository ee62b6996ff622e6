//! Acks in any order, folded into the contiguous *delivered* watermark, and what they were a while
//! ago. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use crate::position::Position;

/// Snapshots within one hold-back: it is prolonged by up to one such part.
const HELD_PARTS: u32 = 16;

/// What was acked: everything before `delivered`, and some ranges beyond it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    delivered: Position,
    /// start -> end; neither touching each other nor `delivered`.
    ranges: BTreeMap<Position, Position>,
}

/// The acks now, and at some moments before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acks {
    now: Set,
    /// Oldest first: what was acked when.
    held: VecDeque<(Duration, Set)>,
    /// Everything before it was acked longer ago than the hold-back: it will never be delivered
    /// again.
    floor: Position,
}

impl Acks {
    /// Everything before `floor` is gone already.
    pub fn new(
        floor: Position,
        delivered: Position,
        ranges: impl IntoIterator<Item = Range<Position>>,
    ) -> Self {
        let now = Set { delivered, ranges: BTreeMap::new() };
        let mut acks = Self { now, held: VecDeque::new(), floor: floor.min(delivered) };
        for range in ranges {
            acks.ack(range);
        }
        acks
    }

    /// Idempotent; empty and old ranges change nothing.
    pub fn ack(&mut self, range: Range<Position>) {
        self.now.ack(range);
    }

    pub fn delivered(&self) -> Position {
        self.now.delivered
    }

    pub fn is_acked(&self, position: Position) -> bool {
        self.now.is_acked(position)
    }

    /// The ranges beyond `delivered`, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Position>> + '_ {
        self.now.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Records acked beyond `delivered`.
    pub fn beyond(&self) -> u64 {
        self.ranges().filter_map(|range| range.end.distance_from(range.start)).sum()
    }

    /// Records in the range that are not acked.
    pub fn missing(&self, range: Range<Position>) -> Vec<Range<Position>> {
        self.now.missing(range)
    }

    pub fn floor(&self) -> Position {
        self.floor
    }

    /// The present acks, for [`hold`](Self::hold).
    pub fn snapshot(&self) -> Set {
        self.now.clone()
    }

    /// Notes that these acks are durable, and moves the floor.
    pub fn hold(&mut self, durable: Set, now: Duration, hold_back: Duration) {
        let due = self.held.back().is_none_or(|(at, set)| {
            *set != durable && now.saturating_sub(*at) >= hold_back / HELD_PARTS
        });
        if due {
            self.held.push_back((now, durable));
        }
        let old = |at: &Duration| now.saturating_sub(*at) >= hold_back;
        while self.held.get(1).is_some_and(|(at, _)| old(at)) {
            self.held.pop_front();
        }
        if let Some((at, set)) = self.held.front()
            && old(at)
        {
            self.floor = self.floor.max(set.delivered);
        }
    }

    /// Goes back to what was acked `hold_back` ago; returns what is not acked any more.
    pub fn redeliver(&mut self, now: Duration, hold_back: Duration) -> Vec<Range<Position>> {
        let old = |at: &Duration| now.saturating_sub(*at) >= hold_back;
        let before = match self.held.iter().rfind(|(at, _)| old(at)) {
            Some((_, set)) => set.clone(),
            None => Set { delivered: self.floor, ranges: BTreeMap::new() },
        };
        let end = self.now.end();
        let after = std::mem::replace(&mut self.now, before);
        self.held.retain(|(at, _)| old(at));
        let missing_now = self.now.missing(self.now.delivered..end);
        // What was not acked before either is not news.
        missing_now.into_iter().flat_map(|range| after.acked(range)).collect()
    }
}

impl Set {
    fn ack(&mut self, range: Range<Position>) {
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
        if start <= self.delivered || bug!(DeliveredOverHoles) {
            self.delivered = end;
        } else {
            self.ranges.insert(start, end);
        }
    }

    fn is_acked(&self, position: Position) -> bool {
        position < self.delivered
            || self.ranges.range(..=position).next_back().is_some_and(|(_, end)| position < *end)
    }

    /// After the last acked record.
    fn end(&self) -> Position {
        self.ranges.values().next_back().map_or(self.delivered, |end| *end)
    }

    /// The parts of the range that are acked, ascending.
    fn acked(&self, range: Range<Position>) -> Vec<Range<Position>> {
        let first = Position::ZERO..self.delivered;
        std::iter::once(first)
            .chain(self.ranges.iter().map(|(start, end)| *start..*end))
            .map(|acked| acked.start.max(range.start)..acked.end.min(range.end))
            .filter(|part| part.start < part.end)
            .collect()
    }

    /// The parts of the range that are not acked, ascending.
    fn missing(&self, range: Range<Position>) -> Vec<Range<Position>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        for acked in self.acked(range.clone()) {
            if at < acked.start {
                missing.push(at..acked.start);
            }
            at = acked.end;
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
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
        assert_eq!(acks.missing(range(0, 10)), [range(0, 2), range(8, 10)]);
        acks.ack(range(0, 2));
        assert_eq!(acks.delivered(), Position::new(8));
        assert_eq!(acks.beyond(), 0);
    }

    const HOLD: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn redelivery_goes_back_by_the_hold_back_and_never_behind_the_floor() {
        let mut acks = Acks::new(Position::ZERO, Position::ZERO, []);
        acks.ack(range(0, 10));
        acks.ack(range(20, 30));
        acks.hold(acks.snapshot(), at(0), HOLD);
        acks.ack(range(10, 15));
        acks.hold(acks.snapshot(), at(30), HOLD);
        assert_eq!(acks.floor(), Position::ZERO);
        acks.ack(range(40, 50));
        acks.hold(acks.snapshot(), at(60), HOLD);
        assert_eq!(acks.floor(), Position::new(10));
        // Since second 0: 10..15 and 40..50.
        assert_eq!(acks.redeliver(at(70), HOLD), [range(10, 15), range(40, 50)]);
        assert_eq!(acks.delivered(), Position::new(10));
        assert!(acks.is_acked(Position::new(25)));
        assert_eq!(acks.redeliver(at(70), HOLD), [], "only once");
    }

    #[test]
    fn a_young_opening_gives_back_everything_whose_segments_are_there() {
        let mut acks = Acks::new(Position::new(5), Position::new(50), [range(60, 70)]);
        acks.hold(acks.snapshot(), at(100), HOLD);
        acks.ack(range(50, 55));
        assert_eq!(acks.redeliver(at(110), HOLD), [range(5, 55), range(60, 70)]);
        assert_eq!(acks.delivered(), Position::new(5));
    }

    #[test]
    fn a_long_hold_back_keeps_few_snapshots() {
        let mut acks = Acks::new(Position::ZERO, Position::ZERO, []);
        for second in 0..1000 {
            acks.ack(range(second, second + 1));
            acks.hold(acks.snapshot(), at(second), HOLD);
        }
        assert!(acks.held.len() <= 18, "{}", acks.held.len());
        assert!(acks.floor() >= Position::new(1000 - 66), "{:?}", acks.floor());
        assert!(acks.floor() <= Position::new(1000 - 60), "{:?}", acks.floor());
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
