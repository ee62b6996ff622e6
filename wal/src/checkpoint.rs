//! Making acks durable, and giving back the space of what was delivered.
//!
//! The order is fixed: acked, then CURSOR durable, then the hold-back over, then unlinked. Neither
//! acks nor checkpoints nor reclaiming need new disk space.

use std::time::Duration;

use crate::error::WalError;
use crate::format::slot::{RANGES_MAX, Slot};
use crate::format::{BLOCK_BYTES, CURSOR_NAME, segment_name};
use crate::fs::{Fs, FsFile, write_all_at};
use crate::log::{Wal, lock};
use crate::position::SegmentNumber;
use crate::segment::{Fault, SegmentInfo};

/// The open CURSOR file and what its next slot must say.
#[derive(Debug)]
pub(crate) struct CursorFile<File> {
    pub file: File,
    /// Generation and place of the next write.
    pub generation: u64,
    pub slot: u64,
    /// What was written last.
    pub written: Option<Slot>,
}

impl<File: FsFile> CursorFile<File> {
    /// Writes the slot that does not hold the newest state.
    fn write(&mut self, slot: Slot, path: &str) -> Result<(), Fault> {
        write_all_at(&self.file, self.slot * BLOCK_BYTES, &slot.encode())
            .map_err(|error| Fault::soft("write", path.to_owned(), error))?;
        self.file.sync_data().map_err(|error| Fault::hard("sync", path.to_owned(), error))?;
        self.slot = 1 - self.slot;
        self.generation += 1;
        self.written = Some(slot);
        Ok(())
    }
}

impl<F: Fs> Wal<F> {
    /// Makes the acks durable, then removes the segments that a checkpoint older than
    /// `config.hold_back` found delivered. `now` is the clock given to `open`.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: try again later. A failed write or sync poisons the log. When only a
    /// segment could not be removed, it is kept and the next checkpoint tries again.
    pub fn checkpoint(&self, now: Duration) -> Result<(), WalError> {
        let mut cursor = lock(&self.log.cursor);
        let acks = lock(&self.log.acks);
        let delivered = acks.delivered();
        let ranges = acks.ranges().take(RANGES_MAX).collect();
        drop(acks);
        let (durable, segment) = {
            let state = lock(&self.log.state);
            state.check()?;
            let newest = state.segments.back().map_or(SegmentNumber::NONE, |newest| newest.number);
            (state.commit.durable(), newest)
        };
        let slot = Slot {
            log_id: self.log.log_id,
            generation: cursor.generation,
            incarnation: self.log.incarnation,
            delivered,
            durable,
            segment,
            ranges,
        };
        let unchanged = cursor.written.as_ref().is_some_and(|written| {
            let generation = written.generation;
            Slot { generation, ..slot.clone() } == *written
        });
        if !unchanged && let Err(fault) = cursor.write(slot, &self.log.fs.path_of(CURSOR_NAME)) {
            return Err(self.poison_if_fatal(fault));
        }
        self.reclaim(now, delivered)
    }

    fn reclaim(&self, now: Duration, delivered: crate::position::Position) -> Result<(), WalError> {
        let mut removed = false;
        let mut outcome = Ok(());
        while let Some(segment) = self.next_reclaimable(now, delivered) {
            let name = segment_name(segment.number);
            match self.log.fs.unlink(&name) {
                Ok(()) => removed = true,
                // Somebody else removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    lock(&self.log.state).segments.push_front(segment);
                    outcome = Err(WalError::io("remove", self.log.fs.path_of(&name), error));
                    break;
                }
            }
        }
        if removed && let Err(error) = self.log.fs.sync_dir() {
            let fault = Fault::hard("sync the directory of", self.log.fs.path_of("."), error);
            return Err(self.poison_if_fatal(fault));
        }
        outcome
    }

    /// Notes since when segments are covered by a checkpoint, and takes the oldest off the list if
    /// its time has come. It leaves the list before its file goes, so that a reader that finds no
    /// file looks again.
    fn next_reclaimable(
        &self,
        now: Duration,
        delivered: crate::position::Position,
    ) -> Option<SegmentInfo> {
        let mut state = lock(&self.log.state);
        for segment in &mut state.segments {
            match segment.end {
                Some(end) if end.position <= delivered => {
                    segment.covered_since.get_or_insert(now);
                }
                Some(_) | None => break,
            }
        }
        // A gap between two segments counts as the end of the first.
        let next_base = state.segments.get(1).map(|next| next.base)?;
        let oldest = state.segments.front()?;
        let waited = oldest.covered_since.and_then(|since| now.checked_sub(since))?;
        if oldest.is_finished() && waited >= self.log.config.hold_back && next_base <= delivered {
            state.segments.pop_front()
        } else {
            None
        }
    }

    fn poison_if_fatal(&self, fault: Fault) -> WalError {
        match fault {
            Fault::NoSpace(error) => error,
            Fault::Fatal(error) => {
                self.log.poison(&mut lock(&self.log.state), &error.to_string());
                error
            }
        }
    }
}
