//! One segment file on the way through it: what comes next, and what was wrong until there.

use crate::error::WalError;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::format::segment::SegmentHeader;
use crate::format::{BLOCK_BYTES, Malformed, SEGMENT_HEADER_BYTES};
use crate::frame::decode_body;
use crate::fs::{Access, Fs};
use crate::position::{Position, SegmentNumber};
use crate::salvage::inventory::{Inventory, SegmentEntry};
use crate::salvage::patient::Patient;
use crate::salvage::{Flaw, FlawReason};
use crate::segment::read_start;
use crate::walk::{Step, Walk};

/// How far a segment counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    /// The byte at which its successor's link says it ends, if that can be read.
    pub limit: Option<u64>,
    /// The position there.
    end: Option<Position>,
    /// Where the next segment that counts begins.
    pub replaced_from: Option<Position>,
    /// What the segment itself proves, if there was a later one that is lost: behind a hole, only
    /// that counts. The rest was never confirmed, and its positions were given out again.
    proven_inside: Option<Position>,
}

impl Plan {
    /// For the segment at this place of the log's order.
    pub fn of(inventory: &Inventory, index: usize) -> Self {
        let end = inventory.segments.get(index).and_then(|entry| entry.end);
        Self {
            limit: end.map(|end| end.byte),
            end: end.map(|end| end.position),
            replaced_from: inventory.segments.get(index + 1).map(|later| later.base),
            proven_inside: (index + 1 == inventory.segments.len() && inventory.lost_newest())
                .then_some(inventory.tail.proven),
        }
    }

    fn is_newest(&self) -> bool {
        self.replaced_from.is_none()
    }

    /// Whether bytes had been confirmed that stand before `expected`, with or without a frame behind
    /// them. The last frame of a finished segment may be a seal or a mark that a crash took after
    /// recovery had seen it: no record went with it.
    fn was_acknowledged(&self, expected: Position, trailing: bool, proven: Position) -> bool {
        match self.end {
            Some(end) if trailing => expected < end,
            Some(_) => true,
            None => !self.is_newest() || expected < proven,
        }
    }
}

/// A data frame that waits to be shown.
#[derive(Debug)]
pub(super) struct Ahead {
    pub at: u64,
    pub first: Position,
    end: Position,
    pub annotation: Option<Vec<u8>>,
    /// Lengths and bytes of its records; `None` if they are damaged.
    raw: Option<Vec<u8>>,
}

impl Ahead {
    pub fn is_whole(&self) -> bool {
        self.raw.is_some()
    }

    pub fn end(&self) -> Position {
        self.end
    }

    pub fn raw(&self) -> &[u8] {
        self.raw.as_deref().unwrap_or_default()
    }

    /// Nothing of it is left to show. A frame with an annotation alone takes no position.
    pub fn is_behind(&self, next: Position) -> bool {
        if self.first == self.end { self.first < next } else { self.end <= next }
    }
}

/// Bytes that were no frame.
#[derive(Clone, Copy, Debug)]
struct Spot {
    at: u64,
    /// Where the walk found its way again; `None` if it did not.
    until: Option<u64>,
    reason: Malformed,
    /// The position that should have come.
    expected: Position,
}

pub(super) struct Source<File> {
    pub number: SegmentNumber,
    /// Its place in the log's order.
    pub index: usize,
    file: String,
    nonce: u64,
    header_readable: bool,
    plan: Plan,
    walk: Walk<Patient<File>>,
    expected: Position,
    /// Damage was met since the last whole frame.
    astray: bool,
    /// The walk is behind the segment's end, among records that were appended again later.
    beyond: bool,
    ahead: Option<Ahead>,
    spots: Vec<Spot>,
}

impl<File: crate::fs::FsFile> Source<File> {
    /// `None` if the file is gone: its owner has reclaimed it.
    pub fn open<F: Fs<File = File>>(
        fs: &F,
        inventory: &Inventory,
        index: usize,
        entry: &SegmentEntry,
    ) -> Result<Option<Self>, WalError> {
        let plan = Plan::of(inventory, index);
        let file = match fs.open(&entry.file, Access::Read) {
            Ok(file) => Patient::new(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(WalError::io("open", fs.path_of(&entry.file), error)),
        };
        let walk = Walk::new(
            file,
            entry.nonce,
            SEGMENT_HEADER_BYTES,
            entry.header_crc,
            Some(entry.base),
            entry.bytes,
        );
        let mut source = Self {
            number: entry.number,
            index,
            file: entry.file.clone(),
            nonce: entry.nonce,
            header_readable: entry.header_crc.is_some(),
            plan,
            walk,
            expected: entry.base,
            astray: false,
            beyond: false,
            ahead: None,
            spots: Vec::new(),
        };
        source.advance(fs)?;
        Ok(Some(source))
    }

    pub fn ahead(&self) -> Option<&Ahead> {
        self.ahead.as_ref()
    }

    /// Where the next frame begins that has something new for `next`.
    pub fn at(&self, next: Position) -> Option<Position> {
        self.ahead.as_ref().map(|ahead| ahead.first.max(next))
    }

    /// Goes on to the next data frame that counts.
    pub fn advance<F: Fs<File = File>>(&mut self, fs: &F) -> Result<(), WalError> {
        self.ahead = None;
        let failed = |error| WalError::io("read", fs.path_of(&self.file), error);
        loop {
            match self.walk.next().map_err(failed)? {
                Step::Damage { .. } if self.beyond => return Ok(()),
                Step::Damage { at, reason } => {
                    self.astray = true;
                    let expected = self.expected;
                    self.spots.push(Spot { at, until: None, reason, expected });
                }
                Step::End => return Ok(()),
                Step::Frame(found) => {
                    let header = found.header;
                    if !self.beyond && !self.is_own(found.at, &header) {
                        if self.astray && self.plan.limit != Some(found.at) {
                            // What a crash left, never confirmed.
                            return Ok(());
                        }
                        self.beyond = true;
                    }
                    if self.plan.proven_inside.is_some_and(|proven| header.end() > proven)
                        && !self.spots.is_empty()
                    {
                        return Ok(());
                    }
                    if std::mem::take(&mut self.astray)
                        && let Some(spot) = self.spots.last_mut()
                    {
                        spot.until = Some(found.at);
                    }
                    self.expected = header.end();
                    let bytes = self.walk.bytes(&found).map_err(failed)?;
                    let mut raw = Vec::new();
                    let body = bytes.body.and_then(|body| match header.kind {
                        FrameKind::Data => decode_body(&header, body, &mut raw),
                        FrameKind::Link | FrameKind::Mark | FrameKind::Seal => Ok(()),
                    });
                    let annotation = bytes.annotation.map(<[u8]>::to_vec);
                    let whole = body.and(annotation.as_ref().map(|_| ()).map_err(|reason| *reason));
                    if let (Err(reason), false) = (whole, self.beyond) {
                        let until = Some(header.next_at(found.at));
                        self.spots.push(Spot {
                            at: found.at,
                            until,
                            reason,
                            expected: header.first,
                        });
                    }
                    if header.kind != FrameKind::Data {
                        continue;
                    }
                    self.ahead = Some(Ahead {
                        at: found.at,
                        first: header.first,
                        end: header.end(),
                        annotation: annotation.ok(),
                        raw: body.is_ok().then_some(raw),
                    });
                    return Ok(());
                }
            }
        }
    }

    /// Whether a frame stands before the segment's end.
    fn is_own(&self, at: u64, header: &FrameHeader) -> bool {
        match (self.plan.limit, self.plan.replaced_from) {
            (Some(limit), _) => at < limit,
            (None, Some(from)) => {
                header.first < from || (header.kind != FrameKind::Data && header.first == from)
            }
            (None, None) => true,
        }
    }

    /// What was wrong, after the last frame.
    pub fn flaws<F: Fs<File = File>>(
        self,
        fs: &F,
        inventory: &Inventory,
    ) -> Result<Vec<Flaw>, WalError> {
        let mut flaws = Vec::new();
        let stands = self.walk.at();
        for spot in &self.spots {
            let before_end = self.plan.limit.is_none_or(|limit| spot.at < limit);
            // Behind the last frame of a segment whose end nobody tells, or that is being written.
            let unused = spot.until.is_none()
                && match (self.plan.limit, self.plan.replaced_from) {
                    (Some(_), _) => false,
                    (None, Some(from)) => spot.expected >= from,
                    (None, None) => spot.expected >= inventory.proven,
                };
            if !before_end || unused {
                continue;
            }
            let until = spot.until.unwrap_or(stands).max(spot.at + 1);
            let unreadable = self.walk.file().unreadable(spot.at - spot.at % BLOCK_BYTES, until);
            let trailing = spot.until.is_none();
            let acknowledged =
                self.plan.was_acknowledged(spot.expected, trailing, inventory.proven);
            let reason =
                if unreadable { FlawReason::Unreadable } else { FlawReason::Bytes(spot.reason) };
            flaws.push(self.flaw(spot.at, reason, acknowledged));
        }
        // A file that is shorter than its successor says, cut where a frame ends.
        let lost = self.spots.iter().any(|spot| spot.until.is_none());
        if let Some(limit) = self.plan.limit
            && stands < limit
            && !self.beyond
            && !lost
        {
            let acknowledged = self.plan.was_acknowledged(self.expected, true, inventory.proven);
            flaws.push(self.flaw(stands, FlawReason::Bytes(Malformed::Short), acknowledged));
        }
        // The end is lost where a frame ended, and no other file can have had it.
        let later = inventory.flaws.iter().any(|flaw| flaw.segment > self.number);
        if self.plan.is_newest() && self.expected < inventory.proven && !lost && !later {
            flaws.push(self.flaw(stands, FlawReason::Bytes(Malformed::Short), true));
        }
        if !flaws.is_empty() && !self.plan.is_newest() && self.is_reclaimed(fs)? {
            flaws.clear();
        }
        Ok(flaws)
    }

    fn flaw(&self, byte_at: u64, reason: FlawReason, acknowledged: bool) -> Flaw {
        Flaw { file: self.file.clone(), segment: self.number, byte_at, reason, acknowledged }
    }

    /// Whether the owner has meanwhile removed the file or used it again: then what was read from
    /// it last says nothing.
    fn is_reclaimed<F: Fs<File = File>>(&self, fs: &F) -> Result<bool, WalError> {
        let failed = |error| WalError::io("read", fs.path_of(&self.file), error);
        let file = match fs.open(&self.file, Access::Read) {
            Ok(file) => Patient::new(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        let start = read_start(&file, SEGMENT_HEADER_BYTES).map_err(failed)?;
        let nonce = SegmentHeader::decode(&start).map(|(header, _)| header.nonce);
        Ok(self.header_readable && nonce != Ok(self.nonce))
    }
}
