//! Getting the next segment ready before it is needed, and using old files again.
//!
//! Writing into extents that were written before costs neither space nor metadata, which makes a
//! durable write up to three times cheaper; so the next file is filled with zeros once, in the
//! background, and reclaimed files are used again as they are. A disk that has no room shows here,
//! before a group needs it.

use std::collections::VecDeque;

use crate::error::WalError;
use crate::format::{SEGMENT_HEADER_BYTES, segment_name, spare_name};
use crate::fs::{Access, Fs, FsFile, write_all_at};
use crate::log::{Log, Wal};
use crate::position::SegmentNumber;
use crate::segment::{self, Fault, Prepared};
use crate::sync::lock;

/// Zeros are written in pieces of this size, and synced now and then, so that what is in the page
/// cache at once does not hold up the groups.
const FILL_BYTES: usize = 1024 * 1024;
const FILL_SYNC_EVERY: usize = 4;

/// A reclaimed file that waits to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spare {
    pub number: SegmentNumber,
    pub bytes: u64,
}

/// What stands ready behind the newest segment.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    pub next: Option<Prepared>,
    /// Bytes of the file that is being prepared now.
    pub preparing_bytes: u64,
    pub spares: VecDeque<Spare>,
}

impl Stock {
    /// Bytes of files that hold no records.
    pub fn bytes(&self) -> u64 {
        self.preparing_bytes
            + self.next.map_or(0, |next| next.bytes)
            + self.spares.iter().map(|spare| spare.bytes).sum::<u64>()
    }
}

/// How a new file comes by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Spare(Spare),
    /// A new file, filled with zeros.
    Filled,
    /// A new file that grows as it is written.
    Bare,
}

/// What came of an offer to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// A segment was prepared.
    Done,
    /// One waits already, the log is closed, or the file system gains nothing from it.
    NotNeeded,
    /// The quota, or the free space that must be left, does not allow for another file now.
    NoRoom,
}

impl<F: Fs> Wal<F> {
    /// Prepares the next segment, unless one waits. A [`Committer`](crate::Committer) does it in
    /// the background; call it only without one.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: the disk is full; try again later, nothing is lost. Others have
    /// poisoned the log.
    pub fn prepare(&self) -> Result<Preparation, WalError> {
        self.log.prepare()
    }
}

impl<F: Fs> Log<F> {
    pub fn prepare(&self) -> Result<Preparation, WalError> {
        let _alone = lock(&self.preparing);
        let source = {
            let mut state = lock(&self.state);
            state.check()?;
            if state.closed || state.stock.next.is_some() {
                return Ok(Preparation::NotNeeded);
            }
            if state.shed_stock {
                return Ok(Preparation::NoRoom);
            }
            match state.stock.spares.pop_front() {
                Some(spare) => {
                    state.stock.preparing_bytes = spare.bytes;
                    Source::Spare(spare)
                }
                None if !self.overwrites_in_place => return Ok(Preparation::NotNeeded),
                None if !self.has_room_for_file(&state, self.config.segment_bytes) => {
                    return Ok(Preparation::NoRoom);
                }
                None => {
                    state.stock.preparing_bytes = self.config.segment_bytes;
                    Source::Filled
                }
            }
        };
        self.prepare_from(source)?;
        Ok(Preparation::Done)
    }

    /// The prepared file, or a bare one made now. For whoever changes the segment.
    pub fn take_prepared(&self) -> Result<Prepared, Fault> {
        // Waits for a preparation that is under way.
        let _alone = lock(&self.preparing);
        let spare = {
            let mut state = lock(&self.state);
            if let Some(next) = state.stock.next {
                return Ok(next);
            }
            let spare = state.stock.spares.pop_front();
            state.stock.preparing_bytes = spare.map_or(SEGMENT_HEADER_BYTES, |spare| spare.bytes);
            spare
        };
        self.prepare_from(spare.map_or(Source::Bare, Source::Spare))
    }

    /// Removes the files that stand ready, if a frame needs their room.
    pub fn shed_stock(&self) -> Result<(), WalError> {
        let _alone = lock(&self.preparing);
        let mut names = Vec::new();
        {
            let mut state = lock(&self.state);
            // While somebody begins a group, the next segment may be in his hands.
            if !state.shed_stock || state.writer.is_none() || !state.commit.idle() {
                return Ok(());
            }
            names.extend(state.stock.spares.drain(..).map(|spare| spare_name(spare.number)));
            names.extend(state.stock.next.take().map(|next| segment_name(next.number)));
        }
        for name in names {
            // What stays is removed when the log is opened again.
            self.fs
                .unlink(&name)
                .map_err(|error| WalError::io("remove", self.fs.path_of(&name), error))?;
        }
        Ok(())
    }

    fn prepare_from(&self, source: Source) -> Result<Prepared, Fault> {
        let number = {
            let state = lock(&self.state);
            state.segments.back().map_or(SegmentNumber::NONE, |newest| newest.number).next()
        };
        let made = self.make(number, source);
        let mut state = lock(&self.state);
        state.stock.preparing_bytes = 0;
        match made {
            Ok(prepared) => {
                state.stock.next = Some(prepared);
                state.commit.on(crate::commit::Event::Prepared);
                if source == Source::Filled {
                    state.bytes_written += prepared.bytes;
                }
                Ok(prepared)
            }
            Err(Fault::NoSpace(error)) => {
                drop(state);
                if let Source::Spare(spare) = source {
                    // It may have either name by now: let it go.
                    self.fs.unlink(&spare_name(spare.number)).ok();
                    self.fs.unlink(&segment::unfinished_name(number)).ok();
                }
                Err(Fault::NoSpace(error))
            }
            Err(Fault::Fatal(error)) => {
                self.poison(&mut state, &error.to_string());
                Err(Fault::Fatal(error))
            }
        }
    }

    fn make(&self, number: SegmentNumber, source: Source) -> Result<Prepared, Fault> {
        let fs = &self.fs;
        let unfinished = segment::unfinished_name(number);
        let path = || fs.path_of(&unfinished);
        let recycled = matches!(source, Source::Spare(_));
        let header = segment::new_header(fs, self.log_id, number, self.incarnation, recycled)?;
        let (block, header_crc) = header.encode();
        let bytes = match source {
            Source::Spare(spare) => {
                let name = spare_name(spare.number);
                let failed = |error| Fault::soft("write", fs.path_of(&name), error);
                let file = fs.open(&name, Access::ReadWrite).map_err(failed)?;
                write_all_at(&file, 0, &block).map_err(failed)?;
                file.sync_data().map_err(|error| Fault::hard("sync", fs.path_of(&name), error))?;
                fs.rename(&name, &unfinished)
                    .map_err(|error| Fault::soft("rename", fs.path_of(&name), error))?;
                spare.bytes
            }
            Source::Filled | Source::Bare => {
                let file = segment::create_unfinished(fs, number)?;
                let bytes = match source {
                    Source::Filled => self.config.segment_bytes,
                    Source::Spare(_) | Source::Bare => SEGMENT_HEADER_BYTES,
                };
                let written = fill(&file, bytes).and_then(|()| write_all_at(&file, 0, &block));
                if let Err(error) = written.and_then(|()| file.sync_data()) {
                    drop(file);
                    // Give back what was taken; the next attempt removes it too.
                    fs.unlink(&unfinished).ok();
                    return Err(Fault::soft("write", path(), error));
                }
                bytes
            }
        };
        segment::name_it(fs, number)?;
        let written = source != Source::Bare && self.overwrites_in_place;
        Ok(Prepared { number, header, header_crc, bytes, written })
    }
}

fn fill<File: FsFile>(file: &File, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; FILL_BYTES.min(crate::format::to_usize(bytes))];
    let mut at = 0;
    let mut since_sync = 0;
    while at < bytes {
        let piece = crate::format::to_usize(bytes - at).min(zeros.len());
        write_all_at(file, at, zeros.get(..piece).unwrap_or_default())?;
        at += piece as u64;
        since_sync += 1;
        if since_sync == FILL_SYNC_EVERY {
            file.sync_data()?;
            since_sync = 0;
        }
    }
    Ok(())
}
