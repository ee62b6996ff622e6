//! What lies in a log's directory, read without changing anything.
//!
//! Reads the CURSOR, the headers and the links; one segment is walked in full, the newest. Recovery
//! decides on what is found here, the offline scan shows it.

use std::io;

use crate::error::WalError;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameKind};
use crate::format::link::{Link, SegmentEnd};
use crate::format::segment::SegmentHeader;
use crate::format::slot::Slot;
use crate::format::{
    BLOCK_BYTES, CURSOR_NAME, Malformed, SEGMENT_HEADER_BYTES, parse_segment_name, segment_name,
};
use crate::fs::{Access, Fs, FsFile};
use crate::position::{LogId, Position, SegmentNumber};
use crate::remains;
use crate::segment::{SegmentInfo, read_start};
use crate::walk::{Found, Step, Walk};

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which segment.
    pub segment: SegmentNumber,
    /// From which byte.
    pub byte_at: u64,
    /// What is wrong there.
    pub reason: Malformed,
}

/// The link of a segment, and the watermark in its frame.
#[derive(Clone, Debug)]
pub(crate) struct Linked {
    pub link: Link,
    pub durable: Position,
}

/// A segment file as its first blocks show it.
#[derive(Debug)]
pub(crate) struct Head {
    pub info: SegmentInfo,
    pub log_id: Option<LogId>,
    pub linked: Option<Linked>,
    pub header: Option<SegmentHeader>,
}

/// The two slots: `Err(Zeros)` is one that was never written.
pub(crate) type Slots = [Result<Slot, Malformed>; 2];

#[derive(Debug)]
pub(crate) struct Survey {
    /// Ascending numbers.
    pub heads: Vec<Head>,
    pub damage: Vec<Damage>,
    pub slots: Slots,
    /// Segments with a header and nothing else: prepared and never used, or all of it is lost.
    pub unused: Vec<SegmentNumber>,
    /// Files that were being made when the process ended, and those that waited to be used again.
    pub unfinished: Vec<String>,
    /// The highest number any file name uses.
    pub highest: SegmentNumber,
}

impl Survey {
    /// The newest valid slot and its place.
    pub fn best_slot(&self) -> Option<(u64, &Slot)> {
        match &self.slots {
            [Ok(first), Ok(second)] if second.generation > first.generation => Some((1, second)),
            [Ok(first), _] => Some((0, first)),
            [_, Ok(second)] => Some((1, second)),
            [_, _] => None,
        }
    }
}

pub(crate) fn survey<F: Fs>(fs: &F) -> Result<Survey, WalError> {
    let names = fs.list().map_err(|error| WalError::io("list", fs.path_of("."), error))?;
    let slots = read_slots(fs)?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| parse_segment_name(name)).collect();
    numbers.sort_unstable();
    let mut survey = Survey {
        heads: Vec::with_capacity(numbers.len()),
        damage: Vec::new(),
        slots,
        unused: Vec::new(),
        unfinished: names.into_iter().filter(|name| is_unfinished(name)).collect(),
        highest: numbers.last().copied().unwrap_or_default(),
    };
    for number in numbers {
        let name = segment_name(number);
        let failed = |error| WalError::io("read", fs.path_of(&name), error);
        let file = match fs.open(&name, Access::Read) {
            Ok(file) => file,
            // Reclaimed since it was listed: only a look without the lock can see that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(WalError::io("open", fs.path_of(&name), error)),
        };
        match read_head(file, number).map_err(failed)? {
            Ok((head, damage)) => {
                survey.damage.extend(damage);
                survey.heads.push(head);
            }
            Err(Headless::Unused) => survey.unused.push(number),
            Err(Headless::Malformed(Malformed::Newer(found))) => {
                return Err(WalError::newer(fs.path_of(&name), found));
            }
            Err(Headless::Malformed(reason)) => {
                survey.damage.push(Damage { segment: number, byte_at: 0, reason });
            }
        }
    }
    // A segment that a later one follows was in use.
    for number in &survey.unused {
        let follows = |head: &Head| {
            head.linked.as_ref().is_some_and(|linked| linked.link.predecessor == *number)
        };
        if survey.heads.iter().any(follows) {
            let reason = Malformed::Zeros;
            survey.damage.push(Damage { segment: *number, byte_at: SEGMENT_HEADER_BYTES, reason });
        }
    }
    check_log_ids(fs, &survey)?;
    Ok(survey)
}

fn is_unfinished(name: &str) -> bool {
    let unfinished = name.strip_suffix(crate::format::UNFINISHED_SUFFIX);
    unfinished.is_some_and(|name| name == CURSOR_NAME || parse_segment_name(name).is_some())
        || name.starts_with(crate::format::SPARE_PREFIX)
}

/// One directory, one log. The CURSOR says whose it is, or else the newest segment.
fn check_log_ids<F: Fs>(fs: &F, survey: &Survey) -> Result<(), WalError> {
    let newest = survey.heads.iter().rev().find_map(|head| head.log_id);
    let Some(expected) = survey.best_slot().map(|(_, slot)| slot.log_id).or(newest) else {
        return Ok(());
    };
    for head in &survey.heads {
        if let Some(found) = head.log_id.filter(|found| *found != expected) {
            let path = fs.path_of(&segment_name(head.info.number));
            return Err(WalError::ForeignSegment { path, found, expected });
        }
    }
    Ok(())
}

fn read_slots<F: Fs>(fs: &F) -> Result<Slots, WalError> {
    let file = match fs.open(CURSOR_NAME, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok([Err(Malformed::Missing), Err(Malformed::Missing)]);
        }
        Err(error) => return Err(WalError::io("open", fs.path_of(CURSOR_NAME), error)),
    };
    let bytes = read_start(&file, 2 * BLOCK_BYTES)
        .map_err(|error| WalError::io("read", fs.path_of(CURSOR_NAME), error))?;
    let block = crate::format::BLOCK;
    let slots = [
        Slot::decode(bytes.get(..block).unwrap_or(&bytes)),
        Slot::decode(bytes.get(block..).unwrap_or_default()),
    ];
    for slot in &slots {
        if let Err(Malformed::Newer(found)) = slot {
            return Err(WalError::newer(fs.path_of(CURSOR_NAME), *found));
        }
    }
    Ok(slots)
}

/// Why a segment file has no head.
enum Headless {
    /// A whole header with nothing behind it that is of this segment.
    Unused,
    Malformed(Malformed),
}

type HeadOutcome = Result<(Head, Vec<Damage>), Headless>;

/// Header and link. A rotten header is made up for by the link, a missing link by the first frame
/// that can be found; `Err` if the file has nothing to go by.
fn read_head<File: FsFile>(file: File, number: SegmentNumber) -> io::Result<HeadOutcome> {
    let bytes = file.len()?;
    let start = read_start(&file, SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES as u64)?;
    let mut damage = Vec::new();
    let header = match SegmentHeader::decode(&start) {
        Ok((header, crc)) if header.number == number => Some((header, crc)),
        // The file of another segment under this name.
        Ok(_) => return Ok(Err(Headless::Malformed(Malformed::Nonce))),
        Err(reason @ Malformed::Newer(_)) => return Ok(Err(Headless::Malformed(reason))),
        Err(reason) => {
            damage.push(Damage { segment: number, byte_at: 0, reason });
            None
        }
    };
    let nonce = match &header {
        Some((header, _)) => Some(header.nonce),
        None => remains::first_nonce(&file, bytes)?,
    };
    let Some(nonce) = nonce else {
        let reason = damage.first().map_or(Malformed::Short, |damage| damage.reason);
        return Ok(Err(Headless::Malformed(reason)));
    };
    let header_crc = header.as_ref().map(|(_, crc)| *crc);
    let mut walk =
        Walk::new(file, nonce, SEGMENT_HEADER_BYTES, header_crc, None, bytes).first_frame_only();
    let mut linked = None;
    let mut base = None;
    let mut incarnation = header.as_ref().map(|(header, _)| header.incarnation);
    let first = loop {
        match walk.next()? {
            Step::Frame(frame) => break Some(frame),
            Step::Damage { at, reason } => {
                damage.push(Damage { segment: number, byte_at: at, reason });
            }
            Step::End => break None,
        }
    };
    if let Some(frame) = first {
        base = Some(frame.header.first);
        if frame.header.kind == FrameKind::Link {
            match walk.bytes(&frame)?.body.and_then(Link::decode) {
                Ok(link) if link.number == number => {
                    incarnation = Some(link.incarnation);
                    linked = Some(Linked { link, durable: frame.header.durable });
                }
                Ok(_) => return Ok(Err(Headless::Malformed(Malformed::Nonce))),
                // The write of its first group was cut: it was never in use.
                Err(_) if header.is_some() && !walk.meets_a_frame()? => {
                    return Ok(Err(Headless::Unused));
                }
                Err(reason) => {
                    damage.push(Damage { segment: number, byte_at: frame.at, reason });
                }
            }
        }
    }
    let Some(base) = base else {
        let reason = damage.first().map_or(Malformed::Zeros, |damage| damage.reason);
        return Ok(Err(if header.is_some() {
            Headless::Unused
        } else {
            Headless::Malformed(reason)
        }));
    };
    let info = SegmentInfo {
        number,
        incarnation: incarnation.unwrap_or_default(),
        nonce,
        base,
        header_crc,
        end: None,
        bytes,
        created_ms: header.as_ref().map(|(header, _)| header.created_ms),
        damaged: false,
        recycled: header.as_ref().is_some_and(|(header, _)| header.recycled),
    };
    let log_id = header.as_ref().map(|(header, _)| header.log_id);
    Ok(Ok((Head { info, log_id, linked, header: header.map(|(header, _)| header) }, damage)))
}

/// A frame met on a full walk.
#[derive(Debug)]
pub(crate) struct Met {
    pub frame: Found,
    /// Damage was crossed to get here.
    pub after_damage: bool,
    pub body: Result<(), Malformed>,
    pub annotation: Result<Vec<u8>, Malformed>,
    /// Where the walk stood after it.
    pub end: SegmentEnd,
}

impl Met {
    /// What the carry is to absorb.
    pub fn annotation(&self) -> Option<&[u8]> {
        self.annotation.as_deref().ok().filter(|annotation| !annotation.is_empty())
    }
}

/// Everything in one segment up to `limit`, damage crossed.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub met: Vec<Met>,
    pub damage: Vec<(u64, Malformed)>,
    /// Bytes behind the last frame up to the last one that somebody began to write for it.
    pub torn_bytes: u64,
}

pub(crate) fn read_content<F: Fs>(
    fs: &F,
    info: &SegmentInfo,
    limit: u64,
) -> Result<Content, WalError> {
    let name = segment_name(info.number);
    let file = fs
        .open(&name, Access::Read)
        .map_err(|error| WalError::io("open", fs.path_of(&name), error))?;
    let failed = |error| WalError::io("read", fs.path_of(&name), error);
    let mut walk =
        Walk::new(file, info.nonce, SEGMENT_HEADER_BYTES, info.header_crc, Some(info.base), limit)
            .recycled(info.recycled);
    let mut content = Content::default();
    let mut after_damage = false;
    loop {
        let step = match walk.next() {
            Err(_) if bug!(ReadErrorIsEnd) => Step::End,
            step => step.map_err(failed)?,
        };
        match step {
            Step::Frame(frame) => {
                let bytes = walk.bytes(&frame).map_err(failed)?;
                let body = bytes.body.map(|_| ());
                let annotation = bytes.annotation.map(<[u8]>::to_vec);
                let end = SegmentEnd {
                    position: frame.header.end(),
                    byte: frame.header.next_at(frame.at),
                    chain: frame.crc,
                };
                content.met.push(Met { frame, after_damage, body, annotation, end });
                after_damage = false;
            }
            Step::Damage { at, reason } => {
                content.damage.push((at, reason));
                after_damage = true;
            }
            Step::End => break,
        }
    }
    content.torn_bytes = walk.torn_bytes();
    Ok(content)
}
