//! How far each partition is delivered, as the ledger tells it: a lower bound that is never too high. Pure.
//!
//! The log's delivered watermark counts positions; Kafka wants offsets. The reader notes which offsets lie in each
//! stretch it has read; a stretch counts once the watermark has passed it. What was appended out of order (records that
//! were moved, or fetched again) has to be seen by the reader first: until then the old value stands.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use wal::Position;

use crate::offset_note::NextOffsets;

/// Stretches remembered one by one; beyond that, neighbours are joined, which delays the value and nothing else.
const STRETCHES_MAX: usize = 4096;

/// Offsets of one partition in a stretch of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    lowest: i64,
    next: i64,
}

impl Span {
    /// Nothing counts higher than this.
    fn limit(&mut self, next: i64) {
        self.lowest = self.lowest.min(next);
        self.next = self.next.min(next);
    }
}

#[derive(Debug)]
struct Stretch {
    end: Position,
    spans: BTreeMap<i32, Span>,
}

/// Where partitions began anew: what lies before the position is of another history. Offsets there count no higher than
/// where the partition began; `None`: not at all.
#[derive(Debug, Clone, Default)]
struct Beginnings {
    anew: BTreeMap<i32, (Position, Option<i64>)>,
    /// Where the log ended when it was opened. Of a partition that it knew nothing of then, all before is of another topic.
    opened: Position,
}

impl Beginnings {
    fn of(&self, partition: i32) -> (Position, Option<i64>) {
        self.anew.get(&partition).copied().unwrap_or((self.opened, None))
    }
}

/// Collects the offsets of a stretch while it is read.
#[derive(Debug, Default)]
pub struct StretchOffsets {
    spans: BTreeMap<i32, Span>,
    began_anew: Beginnings,
}

impl StretchOffsets {
    /// The record at `position`.
    pub fn saw(&mut self, position: Position, partition: i32, offset: i64) {
        let mut new = Span { lowest: offset, next: offset.saturating_add(1) };
        match self.began_anew.of(partition) {
            (before, _) if position >= before => {}
            (_, None) => return,
            (_, Some(begins)) => new.limit(begins),
        }
        self.spans
            .entry(partition)
            .and_modify(|span| {
                span.lowest = span.lowest.min(new.lowest);
                span.next = span.next.max(new.next);
            })
            .or_insert(new);
    }
}

/// For each partition the offset before which everything this instance took is delivered.
#[derive(Debug)]
pub struct DeliveredOffsets {
    /// Read and not delivered.
    stretches: VecDeque<Stretch>,
    /// Next offset after everything delivered.
    delivered: BTreeMap<i32, i64>,
    /// What was told last: stands while `read_to` is before `exact_from`.
    told: BTreeMap<i32, i64>,
    read_to: Position,
    exact_from: Position,
    /// Records are being moved: see [`DeliveredOffsets::freeze`].
    frozen: bool,
    /// Moved records lie before.
    moved_before: Position,
    began_anew: Beginnings,
}

impl DeliveredOffsets {
    /// For a log that was just opened: `next` is what it holds up to `end`, and everything before `delivered` is
    /// delivered.
    #[must_use]
    pub fn new(next: &NextOffsets, delivered: Position, end: Position) -> Self {
        let caught_up = delivered >= end;
        let told = if caught_up { next.iter().collect() } else { BTreeMap::new() };
        Self {
            stretches: VecDeque::new(),
            delivered: next.iter().collect(),
            told,
            read_to: delivered,
            exact_from: end,
            frozen: false,
            moved_before: Position::ZERO,
            // Of what lies in the log already, the highest offset is the log's own: higher ones are of another history.
            began_anew: Beginnings {
                anew: next.iter().map(|(partition, next)| (partition, (end, Some(next)))).collect(),
                opened: end,
            },
        }
    }

    /// Consumption of the partition begins anew at `next`, or where nobody knows yet: everything of it in the log so far,
    /// before `end`, is of another history from that offset on, and Kafka cannot give it again. What is not delivered of
    /// the time before it still counts.
    pub fn begin_anew(&mut self, partition: i32, next: Option<i64>, end: Position) {
        self.began_anew.anew.insert(partition, (end, next));
        let Some(next) = next else {
            self.stretches.iter_mut().for_each(|stretch| {
                stretch.spans.remove(&partition);
            });
            self.delivered.remove(&partition);
            self.told.remove(&partition);
            return;
        };
        for stretch in &mut self.stretches {
            if let Some(span) = stretch.spans.get_mut(&partition) {
                span.limit(next);
            }
        }
        // Of one that nothing was read of yet nothing is known, as before.
        for known in [&mut self.delivered, &mut self.told] {
            known.entry(partition).and_modify(|known| *known = (*known).min(next));
        }
    }

    /// To be filled with what the reader sees next.
    #[must_use]
    pub fn stretch(&self) -> StretchOffsets {
        StretchOffsets { spans: BTreeMap::new(), began_anew: self.began_anew.clone() }
    }

    /// Nothing higher than this is told until the reader knows better: what the ledger said before the log was opened.
    pub fn recall(&mut self, partition: i32, delivered: i64) {
        let told = self.told.entry(partition).or_insert(delivered);
        *told = (*told).min(delivered);
    }

    /// What was delivered from `start` on may be lost, and is no more: the reader begins anew there.
    pub fn start_over(&mut self, start: Position) {
        self.tell();
        self.exact_from = self.exact_from.max(self.read_to);
        self.read_to = start;
        self.stretches.clear();
    }

    /// The reader has read up to `end` and seen these offsets since the last call.
    pub fn read(&mut self, end: Position, mut offsets: StretchOffsets) {
        self.read_to = self.read_to.max(end);
        // One may have begun anew while these were read.
        offsets.spans.retain(|partition, span| match self.began_anew.of(*partition) {
            (before, _) if end > before => true,
            (_, None) => false,
            (_, Some(next)) => {
                span.limit(next);
                true
            }
        });
        if self.is_behind() {
            // Nothing is told of these as delivered, also when it was before it was taken back.
            for (partition, span) in &offsets.spans {
                if let Some(told) = self.told.get_mut(partition) {
                    *told = (*told).min(span.lowest);
                }
            }
        }
        if !offsets.spans.is_empty() {
            self.stretches.push_back(Stretch { end, spans: offsets.spans });
        }
        if self.stretches.len() > STRETCHES_MAX {
            self.join_neighbours();
        }
    }

    /// If the partition was never seen before, its first message is at `from` or behind.
    pub fn first_seen(&mut self, partition: i32, from: i64) {
        // Of one that the log knew when it was opened, older offsets may still wait in it.
        if let Entry::Vacant(unknown) = self.delivered.entry(partition) {
            unknown.insert(from);
            self.told.entry(partition).or_insert(from);
        }
    }

    /// True while the reader has not seen everything that was there before it began, or that was appended out of order.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.frozen || self.read_to < self.exact_from
    }

    /// Records before `end` were appended out of order: nothing new is told before the reader has seen them.
    pub fn out_of_order(&mut self, end: Position) {
        self.exact_from = self.exact_from.max(end);
    }

    /// As [`DeliveredOffsets::out_of_order`], for records of `partition` from offset `lowest` on.
    pub fn fetched_again(&mut self, partition: i32, lowest: i64, end: Position) {
        // What waits in the log already may be lower; it is known as long as the reader is not behind.
        self.tell();
        self.recall(partition, lowest);
        self.out_of_order(end);
    }

    /// Records may be moved from now on: nothing new is told before [`DeliveredOffsets::thaw`].
    pub fn freeze(&mut self) {
        self.tell();
        self.frozen = true;
    }

    /// Everything that was moved lies before `end`.
    pub fn thaw(&mut self, end: Position) {
        self.frozen = false;
        self.moved_before = self.moved_before.max(end);
        self.out_of_order(end);
    }

    /// Whether moved records may lie in what the reader has not seen: they have any offsets from what is told on.
    #[must_use]
    pub fn holds_moved(&self) -> bool {
        self.frozen || self.read_to < self.moved_before
    }

    /// Takes the log's delivered watermark.
    pub fn advance(&mut self, delivered: Position) {
        while self.stretches.front().is_some_and(|stretch| stretch.end <= delivered) {
            let Some(stretch) = self.stretches.pop_front() else { return };
            for (partition, span) in stretch.spans {
                let next = self.delivered.entry(partition).or_insert(span.next);
                *next = (*next).max(span.next);
            }
        }
    }

    /// For each partition known, the offset before which everything is delivered.
    pub fn tell(&mut self) -> &BTreeMap<i32, i64> {
        if !self.is_behind() {
            let mut now = self.delivered.clone();
            for (partition, span) in self.stretches.iter().flat_map(|stretch| &stretch.spans) {
                now.entry(*partition)
                    .and_modify(|next| *next = (*next).min(span.lowest))
                    .or_insert(span.lowest);
            }
            self.told = now;
        }
        &self.told
    }

    fn join_neighbours(&mut self) {
        let mut joined: VecDeque<Stretch> = VecDeque::with_capacity(STRETCHES_MAX);
        for (number, stretch) in std::mem::take(&mut self.stretches).into_iter().enumerate() {
            match joined.back_mut() {
                Some(last) if !number.is_multiple_of(2) => {
                    last.end = stretch.end;
                    for (partition, span) in stretch.spans {
                        last.spans
                            .entry(partition)
                            .and_modify(|known| {
                                known.lowest = known.lowest.min(span.lowest);
                                known.next = known.next.max(span.next);
                            })
                            .or_insert(span);
                    }
                }
                _ => joined.push_back(stretch),
            }
        }
        self.stretches = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> Position {
        Position::new(position)
    }

    fn stretch(offsets: &[(i32, i64)]) -> StretchOffsets {
        let mut stretch = StretchOffsets::default();
        offsets.iter().for_each(|(partition, offset)| stretch.saw(at(0), *partition, *offset));
        stretch
    }

    fn told(offsets: &mut DeliveredOffsets, delivered: u64) -> Vec<(i32, i64)> {
        offsets.advance(at(delivered));
        offsets.tell().iter().map(|(partition, next)| (*partition, *next)).collect()
    }

    #[test]
    fn an_offset_counts_once_the_stretch_it_lies_in_is_delivered() {
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(0), at(0));
        offsets.first_seen(0, 100);
        offsets.first_seen(1, 7);
        offsets.read(at(3), stretch(&[(0, 100), (0, 101), (1, 7)]));
        offsets.read(at(4), stretch(&[(0, 102)]));
        assert_eq!(told(&mut offsets, 2), [(0, 100), (1, 7)]);
        assert_eq!(told(&mut offsets, 3), [(0, 102), (1, 8)]);
        assert_eq!(told(&mut offsets, 4), [(0, 103), (1, 8)]);
    }

    #[test]
    fn after_a_restart_the_old_value_stands_until_the_backlog_was_read() {
        let next: NextOffsets = [(0, 500), (1, 50)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(10), at(20));
        offsets.recall(0, 300);
        offsets.recall(1, 40);
        offsets.read(at(15), stretch(&[(0, 310)]));
        assert_eq!(told(&mut offsets, 12), [(0, 300), (1, 40)]);
        offsets.read(at(20), stretch(&[(0, 499)]));
        assert_eq!(told(&mut offsets, 12), [(0, 310), (1, 50)]);
        assert_eq!(told(&mut offsets, 20), [(0, 500), (1, 50)]);
    }

    #[test]
    fn what_is_appended_out_of_order_holds_the_value_until_it_was_read() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(20), at(20));
        assert_eq!(told(&mut offsets, 20), [(0, 500)]);
        // Offset 120 is moved to position 20, and its old place acked.
        offsets.read(at(21), stretch(&[(0, 500)]));
        assert_eq!(told(&mut offsets, 20), [(0, 500)]);
        offsets.freeze();
        assert_eq!(told(&mut offsets, 21), [(0, 500)]);
        offsets.thaw(at(22));
        assert_eq!(told(&mut offsets, 21), [(0, 500)]);
        offsets.read(at(22), stretch(&[(0, 120)]));
        assert_eq!(told(&mut offsets, 21), [(0, 120)]);
        assert_eq!(told(&mut offsets, 22), [(0, 501)]);
    }

    #[test]
    fn what_is_fetched_again_counts_as_undelivered_until_it_is_delivered_again() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(20), at(20));
        offsets.fetched_again(0, 450, at(22));
        assert_eq!(told(&mut offsets, 20), [(0, 450)]);
        offsets.read(at(22), stretch(&[(0, 450), (0, 455)]));
        assert_eq!(told(&mut offsets, 20), [(0, 450)]);
        assert_eq!(told(&mut offsets, 22), [(0, 500)]);
    }

    #[test]
    fn what_is_fetched_again_does_not_hide_what_was_read_and_never_told() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(10), at(20));
        offsets.read(at(20), stretch(&[(0, 310)]));
        offsets.fetched_again(0, 450, at(22));
        assert_eq!(told(&mut offsets, 10), [(0, 310)]);
    }

    #[test]
    fn what_was_read_and_never_told_counts_while_records_are_moved() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(10), at(20));
        offsets.read(at(20), stretch(&[(0, 310)]));
        offsets.freeze();
        offsets.thaw(at(21));
        offsets.fetched_again(0, 450, at(22));
        assert_eq!(told(&mut offsets, 10), [(0, 310)]);
    }

    #[test]
    fn nothing_is_told_of_a_partition_whose_backlog_was_not_read_before_the_ledger_is() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(10), at(20));
        offsets.first_seen(0, 500);
        assert_eq!(told(&mut offsets, 10), []);
        offsets.recall(0, 300);
        assert_eq!(told(&mut offsets, 10), [(0, 300)]);
    }

    #[test]
    fn what_was_taken_before_a_partition_began_anew_does_not_count_for_what_comes_after() {
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(0), at(0));
        offsets.first_seen(0, 0);
        offsets.read(at(5), stretch(&[(0, 0), (0, 9)]));
        // The partition was truncated to 7 and goes on there; positions 5 to 8 were taken before and not read yet.
        offsets.begin_anew(0, Some(7), at(8));
        offsets.read(at(8), stretch(&[(0, 10), (0, 12)]));
        assert_eq!(told(&mut offsets, 8), [(0, 7)]);
        offsets.read(at(9), stretch(&[(0, 7), (0, 8)]));
        assert_eq!(told(&mut offsets, 8), [(0, 7)]);
        assert_eq!(told(&mut offsets, 9), [(0, 9)]);
    }

    #[test]
    fn what_is_not_delivered_of_the_time_before_a_partition_lost_its_end_still_counts() {
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(0), at(0));
        offsets.first_seen(0, 0);
        offsets.read(at(5), stretch(&[(0, 0), (0, 4)]));
        offsets.begin_anew(0, Some(7), at(10));
        // One chunk with the end of the old history and the beginning of the new one.
        let mut chunk = offsets.stretch();
        for (position, offset) in (5..10).zip(5..) {
            chunk.saw(at(position), 0, offset);
        }
        chunk.saw(at(10), 0, 7);
        offsets.read(at(11), chunk);
        assert_eq!(told(&mut offsets, 4), [(0, 0)], "its messages may be fetched again");
        assert_eq!(told(&mut offsets, 5), [(0, 5)]);
        assert_eq!(told(&mut offsets, 11), [(0, 8)]);
    }

    #[test]
    fn a_backlog_with_two_histories_counts_no_higher_than_the_newer_one() {
        let next: NextOffsets = [(0, 9)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(0), at(20));
        offsets.recall(0, 7);
        offsets.read(at(10), stretch(&[(0, 10), (0, 15)]));
        offsets.read(at(20), stretch(&[(0, 7), (0, 8)]));
        assert_eq!(told(&mut offsets, 10), [(0, 7)]);
        assert_eq!(told(&mut offsets, 20), [(0, 9)]);
    }

    #[test]
    fn a_partition_of_another_topic_is_as_one_that_was_never_seen() {
        let next: NextOffsets = [(0, 500)].into_iter().collect();
        let mut offsets = DeliveredOffsets::new(&next, at(20), at(20));
        offsets.begin_anew(0, None, at(22));
        offsets.read(at(22), stretch(&[(0, 500), (0, 501)]));
        assert_eq!(told(&mut offsets, 22), []);
        offsets.first_seen(0, 3);
        assert_eq!(told(&mut offsets, 22), [(0, 3)]);

        // After a restart the log knows nothing of it, though its records are there.
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(20), at(22));
        let mut chunk = offsets.stretch();
        chunk.saw(at(21), 0, 501);
        chunk.saw(at(22), 0, 3);
        offsets.read(at(23), chunk);
        offsets.first_seen(0, 3);
        assert_eq!(told(&mut offsets, 22), [(0, 3)]);
        assert_eq!(told(&mut offsets, 23), [(0, 4)]);
    }

    #[test]
    fn what_was_delivered_and_is_taken_back_is_not_told_as_delivered() {
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(0), at(0));
        offsets.first_seen(0, 0);
        offsets.read(at(5), stretch(&[(0, 0), (0, 4)]));
        offsets.read(at(9), stretch(&[(0, 5), (0, 8)]));
        assert_eq!(told(&mut offsets, 7), [(0, 5)]);
        // Positions 2 to 7 go again.
        offsets.start_over(at(2));
        assert_eq!(told(&mut offsets, 2), [(0, 5)], "until the reader knows better");
        offsets.read(at(5), stretch(&[(0, 2), (0, 4)]));
        assert_eq!(told(&mut offsets, 2), [(0, 2)]);
        assert_eq!(told(&mut offsets, 5), [(0, 2)], "the rest was not read yet");
        offsets.read(at(9), stretch(&[(0, 5), (0, 8)]));
        assert_eq!(told(&mut offsets, 5), [(0, 5)]);
        assert_eq!(told(&mut offsets, 9), [(0, 9)]);
    }

    #[test]
    fn joined_stretches_count_when_the_later_one_is_delivered() {
        let mut offsets = DeliveredOffsets::new(&NextOffsets::default(), at(0), at(0));
        let many = u64::try_from(STRETCHES_MAX).unwrap() + 1;
        for position in 0..many {
            let offset = i64::try_from(position).unwrap();
            offsets.read(at(position + 1), stretch(&[(0, offset)]));
        }
        assert!(offsets.stretches.len() <= STRETCHES_MAX);
        assert_eq!(told(&mut offsets, 3), [(0, 2)]);
        assert_eq!(told(&mut offsets, many), [(0, i64::try_from(many).unwrap())]);
    }
}
