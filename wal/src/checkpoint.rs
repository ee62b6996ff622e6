//! Making acks durable, and giving back the space of what was delivered.
//!
//! The order is fixed: acked, then CURSOR durable, then the hold-back over, then the file is used
//! again or removed. Neither acks nor checkpoints nor reclaiming need new disk space.

use std::time::Duration;

use crate::config::WalConfig;
use crate::cursor::Set;
use crate::error::WalError;
use crate::format::slot::{RANGES_MAX, Slot};
use crate::format::{BLOCK_BYTES, CURSOR_NAME, segment_name, spare_name};
use crate::fs::{Fs, FsFile, write_all_at};
use crate::log::Wal;
use crate::position::{Position, SegmentNumber};
use crate::prepare::Spare;
use crate::segment::{Fault, SegmentInfo};
use crate::sync::lock;

/// Reclaimed files kept for use again: enough for the segments between two checkpoints at full speed,
/// because filling a new file with zeros writes all its bytes twice. A small quota keeps fewer.
const SPARES_MAX: u64 = 16;
const SPARES_MIN: u64 = 4;
/// The part of the quota they may take beyond the fewest.
const SPARES_PART: u64 = 8;

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
        if !bug!(NoSyncOfCursor) {
            self.file.sync_data().map_err(|error| Fault::hard("sync", path.to_owned(), error))?;
        }
        if !bug!(OneCursorSlot) {
            self.slot = 1 - self.slot;
        }
        self.generation += 1;
        self.written = Some(slot);
        Ok(())
    }
}

impl<F: Fs> Wal<F> {
    /// Makes the acks durable, then gives back the segments that a checkpoint older than
    /// `config.hold_back` found delivered. `now` is the clock given to `open`.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: try again later. A failed write or sync poisons the log. When only a
    /// segment could not be removed, it is kept and the next checkpoint tries again.
    pub fn checkpoint(&self, now: Duration) -> Result<(), WalError> {
        let held = self.note_acks()?;
        let floor = {
            let mut acks = lock(&self.log.acks);
            // Only what is in the slot is durable; acks that came since wait for the next one.
            acks.hold(held, now, self.log.config.hold_back);
            if bug!(NoHoldBack) { acks.delivered() } else { acks.floor() }
        };
        self.look_at_free_space();
        self.log.shed_stock()?;
        self.reclaim(floor)
    }

    /// Writes the CURSOR, unless it says so already; returns what it says.
    pub(crate) fn note_acks(&self) -> Result<Set, WalError> {
        let mut cursor = lock(&self.log.cursor);
        let acks = lock(&self.log.acks);
        let mut delivered = acks.delivered();
        if bug!(CheckpointTooFar) {
            delivered = self.durable().through();
        }
        let ranges = acks.ranges().take(RANGES_MAX).collect();
        let held = acks.snapshot();
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
        if bug!(ReclaimBeforeCursor) {
            self.reclaim(delivered)?;
        }
        if !unchanged && let Err(fault) = cursor.write(slot, &self.log.fs.path_of(CURSOR_NAME)) {
            return Err(self.poison_if_fatal(fault));
        }
        Ok(held)
    }

    /// Free space below the floor is pressure like a full quota.
    fn look_at_free_space(&self) {
        // A file system that does not tell is taken to have enough: writing finds out.
        let below = self
            .log
            .fs
            .space()
            .is_ok_and(|space| space.free_bytes < self.log.config.min_free_bytes);
        lock(&self.log.state).below_floor = below;
    }

    fn reclaim(&self, floor: Position) -> Result<(), WalError> {
        let fs = &self.log.fs;
        let mut spares = Vec::new();
        let mut changed = false;
        let mut outcome = Ok(());
        while let Some((segment, keep)) = self.next_reclaimable(floor, spares.len()) {
            let name = segment_name(segment.number);
            let done =
                if keep { fs.rename(&name, &spare_name(segment.number)) } else { fs.unlink(&name) };
            match done {
                Ok(()) => {
                    changed = true;
                    if keep {
                        spares.push(Spare { number: segment.number, bytes: segment.bytes });
                    }
                }
                // Somebody else removed it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    lock(&self.log.state).segments.push_front(segment);
                    outcome = Err(WalError::io("remove", fs.path_of(&name), error));
                    break;
                }
            }
        }
        if changed
            && !bug!(ReuseBeforeDirectorySync)
            && let Err(error) = fs.sync_dir()
        {
            let fault = Fault::hard("sync the directory of", fs.path_of("."), error);
            return Err(self.poison_if_fatal(fault));
        }
        // Only now: a name that came back after a crash must not show another segment's header.
        if !spares.is_empty() {
            lock(&self.log.state).stock.spares.extend(spares);
            self.log.idle.notify_one();
        }
        outcome
    }

    /// Takes the oldest segment off the list if its time has come, and says whether its file is
    /// worth keeping. It leaves the list before its file goes, so that a reader that finds no file
    /// looks again.
    fn next_reclaimable(&self, floor: Position, new_spares: usize) -> Option<(SegmentInfo, bool)> {
        let mut state = lock(&self.log.state);
        // A gap between two segments counts as the end of the first.
        let next_base = state.segments.get(1).map(|next| next.base)?;
        let oldest = state.segments.front()?;
        let ends = oldest.end.is_some_and(|end| end.position <= floor);
        if !ends || next_base > floor {
            return None;
        }
        let keep = !oldest.damaged
            && oldest.bytes == self.log.config.segment_bytes
            && self.log.overwrites_in_place
            && !state.below_floor
            && !state.closed
            && ((state.stock.spares.len() + new_spares) as u64) < spares_max(&self.log.config);
        state.segments.pop_front().map(|segment| (segment, keep))
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

fn spares_max(config: &WalConfig) -> u64 {
    (config.max_bytes / SPARES_PART / config.segment_bytes).clamp(SPARES_MIN, SPARES_MAX)
}
