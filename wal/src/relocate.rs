//! Moving records that cannot be delivered for long out of the way of all others.
//!
//! A segment is reclaimed when all of it is delivered, so one record that stays would keep the
//! space of everything after it. Moved records are appended again at the head of the log and acked
//! where they were: delivered later, in another order, never lost. A crash in between delivers them
//! twice.

use std::ops::Range;

use crate::batch::{Batch, PushError};
use crate::error::{AppendError, WalError};
use crate::fs::Fs;
use crate::log::Wal;
use crate::position::Position;
use crate::reader::{Chunk, ReadOutcome};
use crate::sync::lock;

/// A segment is worth moving when at most one record in this many is left in it.
const LEFT_ONE_IN: u64 = 10;
/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;
/// So many records are rather read and left out than a file opened behind them.
const READ_OVER: u64 = 20_000;

/// What [`Wal::move_to_head`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many records.
    pub records: u64,
    /// Where they are now, in order; neighbours are one range.
    pub to: Vec<Range<Position>>,
}

impl<F: Fs> Wal<F> {
    /// If the log is above its low mark and the oldest segment is mostly delivered, moves its other
    /// records to the head. Returns how many were moved; the next checkpoint can reclaim the segment.
    ///
    /// # Errors
    /// As [`move_to_head`](Wal::move_to_head).
    pub fn relocate_stuck(&self) -> Result<u64, WalError> {
        if self.status().is_below_low_mark() {
            return Ok(0);
        }
        let Some(Range { start, end }) = self.oldest_finished() else {
            return Ok(0);
        };
        let left = self.not_acked(start..end);
        let stuck: u64 = left.iter().filter_map(|range| range.end.distance_from(range.start)).sum();
        let all = end.distance_from(start).unwrap_or(0);
        if stuck == 0 || stuck.saturating_mul(LEFT_ONE_IN) > all {
            return Ok(0);
        }
        self.move_to_head(&left).map(|moved| moved.records)
    }

    /// Appends the records of these ranges, in ascending order, again at the head, waits until they
    /// are durable, and acks them where they were. What finds no room, or cannot be read, stays
    /// where it is, with everything behind it: damage is reported to whoever reads on.
    ///
    /// # Errors
    /// As [`append`](Wal::append) and [`commit`](Wal::commit), for a log that was poisoned or
    /// closed; records already moved may be delivered twice then.
    pub fn move_to_head(&self, ranges: &[Range<Position>]) -> Result<Moved, WalError> {
        let mut ranges = ranges.iter().filter(|range| range.start < range.end).peekable();
        let Some(first) = ranges.peek() else { return Ok(Moved::default()) };
        let mut reader = self.reader(first.start);
        let (mut chunk, mut batch) = (Chunk::new(), Batch::new());
        let mut moving =
            Moving { wal: self, from: Vec::new(), in_batch: Vec::new(), to: Vec::new() };
        'read: while let Some(range) = ranges.peek() {
            if range.start.distance_from(reader.position()).is_some_and(|over| over > READ_OVER) {
                reader = self.reader(range.start);
            }
            match reader.next(&mut chunk, READ_BYTES)? {
                ReadOutcome::Records => {}
                ReadOutcome::Gap(..) | ReadOutcome::CaughtUp => break,
            }
            for (position, record) in chunk.iter() {
                while ranges.next_if(|range| range.end <= position).is_some() {}
                let Some(range) = ranges.peek() else { break };
                if position < range.start {
                    continue;
                }
                if let Err(PushError::BatchFull) = batch.push(record) {
                    if !moving.append(std::mem::take(&mut batch))? {
                        break 'read;
                    }
                    batch.push(record).ok();
                }
                push_position(&mut moving.in_batch, position);
            }
            while ranges.next_if(|range| range.end <= reader.position()).is_some() {}
        }
        if !batch.is_empty() {
            moving.append(batch)?;
        }
        moving.finish()
    }

    /// The records of a range that are not acked.
    #[must_use]
    pub fn not_acked(&self, range: Range<Position>) -> Vec<Range<Position>> {
        lock(&self.log.acks).missing(range)
    }

    /// The positions of the oldest segment, if nothing is appended to it any more.
    #[must_use]
    pub fn oldest_finished(&self) -> Option<Range<Position>> {
        let state = lock(&self.log.state);
        let oldest = state.segments.front()?;
        oldest.end.map(|end| oldest.base..end.position)
    }
}

/// Records on their way to the head.
struct Moving<'a, F: Fs> {
    wal: &'a Wal<F>,
    /// Appended again.
    from: Vec<Range<Position>>,
    /// In the batch that is being filled.
    in_batch: Vec<Range<Position>>,
    to: Vec<Range<Position>>,
}

impl<F: Fs> Moving<'_, F> {
    /// False: there is no room.
    fn append(&mut self, batch: Batch) -> Result<bool, WalError> {
        match self.wal.append(batch) {
            Ok(ticket) => {
                for range in self.in_batch.drain(..) {
                    push_range(&mut self.from, range);
                }
                push_range(&mut self.to, ticket.range());
                Ok(true)
            }
            Err(AppendError::Full(_) | AppendError::TooLarge { .. }) => {
                self.in_batch.clear();
                Ok(false)
            }
            Err(AppendError::Poisoned { cause }) => Err(WalError::Poisoned { cause }),
            Err(AppendError::Closed) => Err(WalError::Closed),
        }
    }

    fn finish(self) -> Result<Moved, WalError> {
        if !bug!(AckBeforeMoved) {
            match self.wal.commit() {
                Ok(()) => {}
                // They will be durable some time, and are delivered twice then.
                Err(WalError::NoSpace { .. }) => return Ok(Moved::default()),
                Err(error) => return Err(error),
            }
        }
        let mut records = 0_u64;
        for range in self.from {
            records = records.saturating_add(range.end.distance_from(range.start).unwrap_or(0));
            self.wal.ack(range);
        }
        Ok(Moved { records, to: self.to })
    }
}

fn push_position(ranges: &mut Vec<Range<Position>>, position: Position) {
    if let Some(end) = position.offset_by(1) {
        push_range(ranges, position..end);
    }
}

fn push_range(ranges: &mut Vec<Range<Position>>, range: Range<Position>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
