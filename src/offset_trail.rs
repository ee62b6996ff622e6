//! Which Kafka offsets cover what is missing. Pure.
//!
//! What carries, annotations and records say about offsets is folded in log order. A hole in the positions leaves, for
//! every partition, the span from the next offset before it to the first offset known behind it: a superset of what is
//! missing, and rewriting what is already stored changes nothing.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use wal::{Fs, Loss, Position, Salvaged, SalvagedFrame, WalError};

use crate::envelope::Envelope;
use crate::offset_note::NextOffsets;
use crate::offset_ranges::OffsetRange;

/// Positions that are missing, and where Kafka has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// The positions.
    pub positions: Range<Position>,
    /// What that means.
    pub loss: Loss,
    /// Where Kafka has them.
    pub ranges: Vec<Span>,
}

/// Offsets of one partition. An unknown start means from its first offset on, an unknown end up to what was taken last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Span {
    /// The partition.
    pub partition: i32,
    /// First offset.
    pub from: Option<i64>,
    /// Offset after the last.
    pub to: Option<i64>,
}

/// What carries, annotations and records have said up to here.
#[derive(Debug, Default)]
pub struct OffsetTrail {
    next: NextOffsets,
    holes: Vec<Hole>,
    /// Holes behind which a partition was not seen yet.
    waiting: BTreeMap<i32, Vec<usize>>,
    /// The first hole of which a partition unknown so far may be a part.
    open_from: usize,
    /// Carries may be incomplete: see [`OffsetTrail::cautious`].
    is_cautious: bool,
}

impl OffsetTrail {
    /// Next offsets as of here.
    pub fn next(&self) -> &NextOffsets {
        &self.next
    }

    /// A trail that does not believe a carry to know what a damaged annotation said: an opening of the log sums up what
    /// it can read. Its spans are longer.
    #[must_use]
    pub fn cautious() -> Self {
        Self { is_cautious: true, ..Self::default() }
    }

    /// The carry of a segment: it names every partition ever seen.
    pub fn carry(&mut self, saved: &NextOffsets) {
        if self.is_cautious {
            let news = saved.iter().filter(|(partition, offset)| {
                self.next.get(*partition).is_none_or(|known| known < *offset)
            });
            return self.annotation(&news.collect());
        }
        self.annotation(saved);
        self.waiting.clear();
        self.open_from = self.holes.len();
    }

    /// What was taken up to here.
    pub fn annotation(&mut self, next: &NextOffsets) {
        for (partition, offset) in next.iter() {
            self.seen(partition, offset);
            self.next.set(partition, offset);
        }
    }

    /// Whether records would say something new.
    pub fn wants_records(&self) -> bool {
        !self.waiting.is_empty() || self.open_from < self.holes.len()
    }

    /// A record of which the annotation may be damaged. One that comes late, because the log moved it out of the way,
    /// says nothing.
    pub fn record(&mut self, partition: i32, offset: i64) {
        if self.next.get(partition).is_none_or(|known| known <= offset) {
            self.seen(partition, offset);
            self.next.set(partition, offset.saturating_add(1));
        }
    }

    /// These positions are missing.
    pub fn missing(&mut self, positions: Range<Position>, loss: Loss) {
        if loss == Loss::Delivered {
            return;
        }
        for (partition, _) in self.next.iter() {
            self.waiting.entry(partition).or_default().push(self.holes.len());
        }
        let from = |(partition, from)| Span { partition, from: Some(from), to: None };
        let ranges = self.next.iter().map(from).collect();
        self.holes.push(Hole { positions, loss, ranges });
    }

    /// All holes, in order.
    pub fn finish(mut self) -> Vec<Hole> {
        for range in self.holes.iter_mut().flat_map(|hole| &mut hole.ranges) {
            // Consumption began anew in the hole, at an offset that went with it.
            if range.from.zip(range.to).is_some_and(|(from, to)| from > to) {
                range.from = None;
            }
        }
        for hole in &mut self.holes {
            hole.ranges.retain(|range| match (range.from, range.to) {
                (Some(from), Some(to)) => from < to,
                (None, Some(to)) => to > 0,
                (_, None) => true,
            });
            hole.ranges.sort_unstable_by_key(|range| range.partition);
        }
        self.holes
    }

    /// `offset` is known to come behind all holes so far.
    fn seen(&mut self, partition: i32, offset: i64) {
        if self.next.get(partition).is_none() {
            for hole in self.holes.iter_mut().skip(self.open_from) {
                hole.ranges.push(Span { partition, from: None, to: Some(offset) });
            }
        }
        for index in self.waiting.remove(&partition).unwrap_or_default() {
            let ranges = self.holes.get_mut(index).map(|hole| &mut hole.ranges);
            let own = ranges.into_iter().flatten().find(|range| range.partition == partition);
            if let Some(range) = own {
                range.to = Some(offset);
            }
        }
    }
}

/// Folds a walk through a log's directory. Annotations that cannot be read say nothing: records do.
#[derive(Debug, Default)]
pub struct LogTrail {
    /// What is known of the offsets.
    pub offsets: OffsetTrail,
    /// The topic that the records name.
    pub topic: Option<String>,
}

impl LogTrail {
    /// One step of the walk.
    pub fn note(&mut self, salvaged: &Salvaged<'_>) {
        match salvaged {
            Salvaged::Carry { saved, .. } => {
                if let Ok(next) = NextOffsets::decode(saved) {
                    self.offsets.carry(&next);
                }
            }
            Salvaged::Annotation(annotation) => {
                if let Ok(next) = NextOffsets::decode(annotation) {
                    self.offsets.annotation(&next);
                }
            }
            Salvaged::Missing { range, loss } => self.offsets.missing(range.clone(), *loss),
            Salvaged::Frame(frame) => self.frame(frame),
        }
    }

    fn frame(&mut self, frame: &SalvagedFrame<'_>) {
        let annotation = frame.annotation.and_then(|bytes| NextOffsets::decode(bytes).ok());
        if annotation.is_none() || self.topic.is_none() || self.offsets.wants_records() {
            for (_, record) in frame.records() {
                if let Ok(message) = Envelope::decode(record) {
                    if !Envelope::is_again(record) {
                        self.offsets.record(message.partition, message.offset);
                    }
                    self.topic.get_or_insert_with(|| message.topic.to_owned());
                }
            }
        }
        if let Some(next) = annotation {
            self.offsets.annotation(&next);
        }
    }
}

/// The Kafka offsets that cover what is missing at `positions` of the log in `fs`: a superset. `known` is what the log
/// has taken of each partition, `delivered` what is delivered for certain. With `holds_moved` records that were moved may
/// have lain there, of any offset that is not delivered. Reads the whole log; its owner may go on writing.
///
/// # Errors
/// The directory cannot be read.
pub fn cover<F: Fs>(
    fs: &F,
    positions: &Range<Position>,
    known: &NextOffsets,
    delivered: &BTreeMap<i32, i64>,
    holds_moved: bool,
) -> Result<Vec<OffsetRange>, WalError> {
    let mut trail = LogTrail { offsets: OffsetTrail::cautious(), topic: None };
    wal::salvage(fs, |salvaged| {
        trail.note(&salvaged);
        ControlFlow::Continue(())
    })?;
    let holes: Vec<Hole> = trail
        .offsets
        .finish()
        .into_iter()
        .filter(|hole| hole.positions.start < positions.end && hole.positions.end > positions.start)
        .collect();
    let first = |partition| delivered.get(&partition).copied().unwrap_or(0);
    let whole = |(partition, to)| OffsetRange { partition, from: first(partition), to };
    if holes.is_empty() || holds_moved {
        // The walk and the reader may disagree about what is missing: then everything taken is.
        return Ok(known.iter().map(whole).filter(|range| range.from < range.to).collect());
    }
    let spans = holes.iter().flat_map(|hole| &hole.ranges);
    Ok(spans
        .filter_map(|span| {
            let to = span.to.or_else(|| known.get(span.partition))?;
            let from = span.from.unwrap_or_else(|| first(span.partition));
            Some(OffsetRange { partition: span.partition, from, to })
        })
        .filter(|range| range.from < range.to)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(pairs: &[(i32, i64)]) -> NextOffsets {
        let mut next = NextOffsets::default();
        pairs.iter().for_each(|(partition, offset)| next.set(*partition, *offset));
        next
    }

    fn positions(from: u64, to: u64) -> Range<Position> {
        Position::new(from)..Position::new(to)
    }

    /// Partition, first offset, offset after the last.
    type Bounds = (i32, Option<i64>, Option<i64>);

    fn ranges(trail: OffsetTrail) -> Vec<Vec<Bounds>> {
        let holes = trail.finish();
        let triple = |range: &Span| (range.partition, range.from, range.to);
        holes.iter().map(|hole| hole.ranges.iter().map(triple).collect()).collect()
    }

    #[test]
    fn a_hole_spans_from_the_next_offset_before_it_to_the_first_one_behind() {
        let mut trail = OffsetTrail::default();
        trail.carry(&next(&[(0, 10), (1, 20), (2, 30)]));
        trail.annotation(&next(&[(0, 15)]));
        trail.missing(positions(5, 9), Loss::Acknowledged);
        assert!(trail.wants_records());
        trail.record(0, 18);
        trail.record(0, 19);
        trail.annotation(&next(&[(0, 20)]));
        // Partition 1 lost nothing; partition 2 is not seen again.
        trail.record(1, 20);
        assert_eq!(ranges(trail), [vec![(0, Some(15), Some(18)), (2, Some(30), None)]]);
    }

    #[test]
    fn a_carry_behind_the_hole_closes_it_for_every_partition() {
        let mut trail = OffsetTrail::default();
        trail.annotation(&next(&[(0, 10), (1, 20)]));
        trail.missing(positions(5, 9), Loss::Acknowledged);
        trail.carry(&next(&[(0, 12), (1, 20), (7, 3)]));
        assert!(!trail.wants_records());
        trail.annotation(&next(&[(8, 5)]));
        assert_eq!(ranges(trail), [vec![(0, Some(10), Some(12)), (7, None, Some(3))]]);
    }

    #[test]
    fn a_cautious_trail_looks_for_later_evidence_than_a_carry() {
        let mut trail = OffsetTrail::cautious();
        trail.annotation(&next(&[(0, 10), (1, 20)]));
        trail.missing(positions(5, 9), Loss::Acknowledged);
        // Written by an opening that could not read what the hole said of partitions 0 and 7.
        trail.carry(&next(&[(0, 10), (1, 25)]));
        trail.record(0, 14);
        trail.record(7, 3);
        let spans = vec![(0, Some(10), Some(14)), (1, Some(20), Some(25)), (7, None, Some(3))];
        assert_eq!(ranges(trail), [spans]);
    }

    #[test]
    fn two_holes_in_a_row_end_where_something_is_seen_again() {
        let mut trail = OffsetTrail::default();
        trail.annotation(&next(&[(0, 10)]));
        trail.missing(positions(0, 1), Loss::Acknowledged);
        trail.missing(positions(1, 2), Loss::Unconfirmed);
        trail.missing(positions(2, 3), Loss::Delivered);
        trail.record(0, 13);
        let span = vec![(0, Some(10), Some(13))];
        assert_eq!(ranges(trail), [span.clone(), span]);
    }

    #[test]
    fn a_damaged_annotation_is_made_up_for_by_the_records() {
        let mut trail = OffsetTrail::default();
        trail.record(3, 7);
        assert_eq!(trail.next().get(3), Some(8));
    }

    #[test]
    fn a_record_that_was_moved_closes_no_hole() {
        let mut trail = OffsetTrail::default();
        trail.annotation(&next(&[(3, 8)]));
        trail.missing(positions(5, 9), Loss::Acknowledged);
        trail.record(3, 5);
        assert_eq!(trail.next().get(3), Some(8));
        trail.record(3, 12);
        assert_eq!(ranges(trail), [vec![(3, Some(8), Some(12))]]);
    }
}
