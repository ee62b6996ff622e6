//! Everything that can still be read in a log's directory, in position order, however damaged the
//! directory is: for tools, not for the log itself.
//!
//! **Promise.** Changes nothing, takes no lock, and may run beside the log's owner. Every record in
//! a whole frame that counts is shown exactly once; every position that is not shown is told as
//! missing; every damaged spot is told as a [`Flaw`]. Headers, links, the CURSOR and file names are
//! believed only as far as the frames bear them out, so any of them may be rotten, missing or
//! swapped. Blocks that cannot be read at all cost what is in them and nothing else.
//!
//! **What counts.** A later segment replaces an earlier one from its first position on: what a
//! crash left behind that in the earlier file was never confirmed. One thing is taken from there:
//! records that recovery had appended again, if their newer copy is the one that rotted; they are
//! known by standing without a break right behind the end that the link names.
//!
//! Bytes behind the last frame of a segment are *unused space* whatever they are, and so is a file
//! with a header and no frame, unless something else proves that records were there.

mod cursor;
mod identity;
mod inventory;
mod patient;
mod source;
mod tail;

use std::ops::{ControlFlow, Range};

use crate::error::WalError;
use crate::format::Malformed;
use crate::frame::split_record;
use crate::fs::Fs;
use crate::position::{LogId, Position, SegmentNumber};
pub use cursor::Cursor;
pub use inventory::{Inventory, SegmentEntry, inventory};
use source::{Ahead, Source};
pub use tail::Tail;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// In which file of the directory.
    pub file: String,
    /// The segment it holds, or should hold; `NONE` for the CURSOR.
    pub segment: SegmentNumber,
    /// From which byte.
    pub byte_at: u64,
    /// What is wrong there.
    pub reason: FlawReason,
    /// The bytes had been confirmed as durable. Others may be what a crash, or the owner's write in
    /// progress, leaves.
    pub acknowledged: bool,
}

/// What is wrong at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlawReason {
    /// Bytes that do not make sense.
    #[error("{0}")]
    Bytes(Malformed),
    /// The disk reports an error for this block.
    #[error("cannot be read")]
    Unreadable,
    /// Not a segment of this log: nothing in it is used.
    #[error("belongs to log {0}")]
    OtherLog(LogId),
    /// The file holds a segment that should have another name. It is used as what it is.
    #[error("is segment {0}")]
    OtherSegment(SegmentNumber),
}

/// Why positions are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They had been confirmed as durable and were not acked.
    Acknowledged,
    /// Nothing proves that they were ever confirmed: a crash leaves such holes.
    Unconfirmed,
    /// They had been acked: nobody needs them.
    Delivered,
}

/// One thing met on the way, in position order.
#[derive(Clone, Debug)]
pub enum Salvaged<'a> {
    /// The carry that a segment began with: folded over everything before `position`.
    Carry {
        /// The first position of the segment.
        position: Position,
        /// As the user of the log saved it.
        saved: &'a [u8],
    },
    /// A frame with whole records.
    Frame(SalvagedFrame<'a>),
    /// The annotation of a frame whose records are lost; they have just been told as missing.
    Annotation(&'a [u8]),
    /// These positions are nowhere.
    Missing {
        /// The positions.
        range: Range<Position>,
        /// What that means.
        loss: Loss,
    },
}

/// A frame with whole records.
#[derive(Clone, Debug)]
pub struct SalvagedFrame<'a> {
    /// In which segment.
    pub segment: SegmentNumber,
    /// At which byte of it.
    pub byte_at: u64,
    /// Its annotation; `None` if that is damaged.
    pub annotation: Option<&'a [u8]>,
    first: Position,
    raw: &'a [u8],
    from: Position,
}

impl<'a> SalvagedFrame<'a> {
    /// The records with their positions. Those that were shown before, from another copy, are left
    /// out.
    pub fn records(&self) -> impl Iterator<Item = (Position, &'a [u8])> + use<'a> {
        let (mut rest, mut position, from) = (self.raw, self.first, self.from);
        std::iter::from_fn(move || {
            let (record, behind) = split_record(rest)?;
            let at = position;
            (rest, position) = (behind, position.next());
            Some((at, record))
        })
        .filter(move |(position, _)| *position >= from)
    }
}

/// What there was.
#[derive(Clone, Debug)]
pub struct SalvageSummary {
    /// The directory.
    pub inventory: Inventory,
    /// Every damaged spot, by file and byte, as far as the walk went.
    pub flaws: Vec<Flaw>,
    /// Records shown.
    pub records: u64,
    /// Frames shown.
    pub frames: u64,
}

/// Walks through everything and shows it to `visit`, until it breaks off.
///
/// # Errors
/// The directory cannot be listed, a file cannot be opened, or a file is of a newer version of this
/// program ([`WalError::NewerVersion`]): use that one.
pub fn salvage<F: Fs>(
    fs: &F,
    visit: impl FnMut(Salvaged<'_>) -> ControlFlow<()>,
) -> Result<SalvageSummary, WalError> {
    let inventory = inventory(fs)?;
    let mut flaws = inventory.flaws.clone();
    let start = inventory.start();
    let merge = Merge {
        fs,
        inventory: &inventory,
        next: start,
        carried: 0,
        sources: Vec::new(),
        opened: 0,
        flaws: Vec::new(),
        records: 0,
        frames: 0,
        delivered: inventory.delivered,
        visit,
    };
    let (records, frames, found) = merge.run()?;
    flaws.extend(found);
    flaws.sort_by(|a, b| (&a.file, a.byte_at).cmp(&(&b.file, b.byte_at)));
    flaws.dedup_by(|a, b| a.file == b.file && a.byte_at == b.byte_at);
    Ok(SalvageSummary { inventory, flaws, records, frames })
}

/// All segments side by side. Usually one is open at a time, two where one replaces the end of
/// another.
struct Merge<'i, F: Fs, V> {
    fs: &'i F,
    inventory: &'i Inventory,
    /// Everything before it was shown or told.
    next: Position,
    /// Segments whose carry was shown.
    carried: usize,
    sources: Vec<Source<F::File>>,
    /// Segments whose file was opened, or turned out to be gone.
    opened: usize,
    flaws: Vec<Flaw>,
    records: u64,
    frames: u64,
    /// Grows while the log's owner works.
    delivered: Position,
    visit: V,
}

impl<F: Fs, V: FnMut(Salvaged<'_>) -> ControlFlow<()>> Merge<'_, F, V> {
    fn run(mut self) -> Result<(u64, u64, Vec<Flaw>), WalError> {
        let flow = self.walk()?;
        if flow.is_continue() {
            let end = self.inventory.proven.max(self.next);
            let _done = self.advance_to(end)?;
        }
        Ok((self.records, self.frames, self.flaws))
    }

    fn walk(&mut self) -> Result<ControlFlow<()>, WalError> {
        loop {
            self.settle()?;
            let first = self.sources.iter().filter_map(|source| source.at(self.next)).min();
            // Another segment may begin before that.
            let entry = self.inventory.segments.get(self.opened);
            if let Some(entry) = entry.filter(|entry| first.is_none_or(|at| entry.base <= at)) {
                let source = Source::open(self.fs, self.inventory, self.opened, entry)?;
                self.sources.extend(source);
                self.opened += 1;
                continue;
            }
            let Some(first) = first else { return Ok(ControlFlow::Continue(())) };
            if self.advance_to(first)?.is_break() || self.show(first)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }

    /// Drops what was shown from another copy, and sources that have ended.
    fn settle(&mut self) -> Result<(), WalError> {
        let mut index = 0;
        while let Some(source) = self.sources.get_mut(index) {
            while source.ahead().is_some_and(|ahead| ahead.is_behind(self.next)) {
                source.advance(self.fs)?;
            }
            if source.ahead().is_some() {
                index += 1;
            } else {
                let source = self.sources.remove(index);
                self.flaws.extend(source.flaws(self.fs, self.inventory)?);
            }
        }
        Ok(())
    }

    /// Tells what lies between the last record shown and `position`: carries and missing positions.
    fn advance_to(&mut self, position: Position) -> Result<ControlFlow<()>, WalError> {
        while let Some(entry) = self.inventory.segments.get(self.carried) {
            if entry.base > position {
                break;
            }
            self.carried += 1;
            if self.missing(entry.base)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if let Some(saved) = &entry.carry {
                let position = entry.base;
                if (self.visit)(Salvaged::Carry { position, saved }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        self.missing(position)
    }

    fn missing(&mut self, end: Position) -> Result<ControlFlow<()>, WalError> {
        if end <= self.next {
            return Ok(ControlFlow::Continue(()));
        }
        if end > self.delivered {
            // The owner may have delivered and reclaimed it while this went on.
            let now = cursor::read_cursor(self.fs)?.of(self.inventory.log_id);
            self.delivered = self.delivered.max(now.delivered.unwrap_or_default());
        }
        while self.next < end {
            let (loss, until) = self.loss_at(self.next);
            let range = self.next..until.map_or(end, |until| until.min(end));
            self.next = range.end;
            if (self.visit)(Salvaged::Missing { range, loss }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What it means that `position` is missing, and up to where it means the same.
    fn loss_at(&self, position: Position) -> (Loss, Option<Position>) {
        if position < self.delivered {
            return (Loss::Delivered, Some(self.delivered));
        }
        let acked = self.inventory.acked.iter().find(|range| range.end > position);
        if let Some(range) = acked.filter(|range| range.start <= position) {
            return (Loss::Delivered, Some(range.end));
        }
        let until = acked.map(|range| range.start);
        if position < self.inventory.proven {
            let proven = self.inventory.proven;
            (Loss::Acknowledged, Some(until.map_or(proven, |until| until.min(proven))))
        } else {
            (Loss::Unconfirmed, until)
        }
    }

    /// Shows the best copy of what begins at `first`, which is where everything stands now.
    fn show(&mut self, first: Position) -> Result<ControlFlow<()>, WalError> {
        let candidates = self.sources.iter().enumerate();
        let best = candidates
            .filter(|(_, source)| source.at(self.next) == Some(first))
            .max_by_key(|(_, source)| (source.ahead().is_some_and(Ahead::is_whole), source.index));
        let Some(index) = best.map(|(index, _)| index) else {
            return Ok(ControlFlow::Continue(()));
        };
        let mut source = self.sources.remove(index);
        let others = self.sources.iter().filter_map(|other| other.at(self.next)).min();
        let flow = match source.ahead() {
            Some(ahead) if ahead.is_whole() => {
                let from = self.next;
                self.next = self.next.max(ahead.end());
                self.frames += 1;
                self.records += ahead.end().distance_from(from).unwrap_or(0);
                (self.visit)(Salvaged::Frame(SalvagedFrame {
                    segment: source.number,
                    byte_at: ahead.at,
                    annotation: ahead.annotation.as_deref(),
                    first: ahead.first,
                    raw: ahead.raw(),
                    from,
                }))
            }
            Some(ahead) => {
                // Another copy may have the rest of it.
                let end = others.map_or(ahead.end(), |other| other.min(ahead.end()));
                let flow = self.missing(end.max(self.next))?;
                match (flow, ahead.annotation.as_deref()) {
                    (ControlFlow::Continue(()), Some(annotation)) if self.next == ahead.end() => {
                        (self.visit)(Salvaged::Annotation(annotation))
                    }
                    _ => flow,
                }
            }
            None => ControlFlow::Continue(()),
        };
        source.advance(self.fs)?;
        self.sources.insert(index, source);
        Ok(flow)
    }
}
