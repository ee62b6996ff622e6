//! Moving a few stuck records out of the way.
//!
//! A segment is reclaimed when all of it is delivered, so one record that cannot be delivered for
//! long would keep the space of everything after it. When space is short, what is left of a mostly
//! delivered segment is appended again at the head of the log and acked where it was: delivered
//! later, in another order, never lost. A crash in between delivers it twice.

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

impl<F: Fs> Wal<F> {
    /// If the log is above its low mark and the oldest segment is mostly delivered, appends its
    /// other records again at the head, waits until they are durable, and acks them where they
    /// were. Returns how many were moved; the next checkpoint can reclaim the segment.
    ///
    /// # Errors
    /// As [`append`](Wal::append) and [`commit`](Wal::commit); records already moved may be
    /// delivered twice then. A full log moves nothing, which is no error.
    pub fn relocate_stuck(&self) -> Result<u64, WalError> {
        if self.status().is_below_low_mark() {
            return Ok(0);
        }
        let Some((base, end)) = self.oldest_finished() else {
            return Ok(0);
        };
        let left = lock(&self.log.acks).missing(base..end);
        let stuck: u64 = left.iter().filter_map(|range| range.end.distance_from(range.start)).sum();
        let all = end.distance_from(base).unwrap_or(0);
        if stuck == 0 || stuck.saturating_mul(LEFT_ONE_IN) > all {
            return Ok(0);
        }
        let mut moved = 0;
        for range in left {
            let mut reader = self.reader(range.start);
            let mut chunk = Chunk::new();
            let mut batch = Batch::new();
            while reader.position() < range.end {
                match reader.next(&mut chunk, READ_BYTES)? {
                    ReadOutcome::Records => {}
                    // Damage is reported to whoever delivers.
                    ReadOutcome::Gap(..) | ReadOutcome::CaughtUp => return Ok(moved),
                }
                let wanted = chunk.iter().take_while(|(position, _)| *position < range.end);
                for (_, record) in wanted {
                    if let Err(PushError::BatchFull) = batch.push(record) {
                        let full = std::mem::take(&mut batch);
                        if !self.append_moved(full)? {
                            return Ok(moved);
                        }
                        batch.push(record).ok();
                    }
                }
            }
            if !self.append_moved(batch)? {
                return Ok(moved);
            }
            if !bug!(AckBeforeMoved) {
                self.commit()?;
            }
            moved += range.end.distance_from(range.start).unwrap_or(0);
            self.ack(range);
        }
        Ok(moved)
    }

    fn append_moved(&self, batch: Batch) -> Result<bool, WalError> {
        match self.append(batch) {
            Ok(_ticket) => Ok(true),
            Err(AppendError::Full(_) | AppendError::TooLarge { .. }) => Ok(false),
            Err(AppendError::Poisoned { cause }) => Err(WalError::Poisoned { cause }),
            Err(AppendError::Closed) => Err(WalError::Closed),
        }
    }

    fn oldest_finished(&self) -> Option<(Position, Position)> {
        let state = lock(&self.log.state);
        let oldest = state.segments.front()?;
        oldest.end.map(|end| (oldest.base, end.position))
    }
}
