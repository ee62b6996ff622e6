//! A read-only walk over everything in a log's directory, without its lock: for listings, audits
//! and people. Changes nothing, needs no configuration, and may run beside the log's owner; then it
//! shows what was there at some moment.

use std::ops::ControlFlow;

use crate::error::WalError;
use crate::format::frame::FrameKind;
use crate::format::link::SegmentEnd;
use crate::format::segment::SegmentHeader;
use crate::format::{Malformed, SEGMENT_HEADER_BYTES, segment_name};
use crate::frame::{decode_body, split_record};
use crate::fs::{Access, Fs};
use crate::position::{Incarnation, Position, SegmentNumber};
use crate::survey::{Damage, Head, survey};
use crate::walk::{Step, Walk};

/// One thing met on the walk, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scanned<'a> {
    /// A segment begins.
    Segment {
        /// Its number.
        number: SegmentNumber,
        /// The opening that made it.
        incarnation: Incarnation,
        /// Position of its first record.
        base: Position,
        /// Size of its file.
        bytes: u64,
        /// Its header, unless that is rotten.
        header: Option<SegmentHeader>,
    },
    /// A frame begins; its records follow.
    Frame {
        /// In which segment.
        segment: SegmentNumber,
        /// At which byte.
        byte_at: u64,
        /// What it is for.
        kind: FrameKind,
        /// Position of its first record.
        first: Position,
        /// How many records it has.
        records: u32,
        /// Bytes in the file.
        stored_bytes: u64,
        /// The watermark when it was written.
        durable: Position,
        /// Its annotation; empty if it has none or a damaged one.
        annotation: &'a [u8],
    },
    /// A record.
    Record {
        /// Its position.
        position: Position,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Bytes that are not what they should be. At the end of the newest segment this is what a
    /// crash, or the owner's write in progress, leaves.
    Damage(Damage),
}

/// What a scan saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanSummary {
    /// Segment files.
    pub segments: u64,
    /// Whole data frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// The delivered watermark in the CURSOR, if that is readable.
    pub delivered: Option<Position>,
    /// The durable watermark in the CURSOR: more may be durable by now.
    pub durable: Option<Position>,
    /// The highest watermark in any frame.
    pub proven: Position,
    /// Damage before `proven`: acknowledged bytes are affected.
    pub damage: Vec<Damage>,
}

/// Shows everything to `visit`, until it breaks off.
///
/// # Errors
/// A file could not be read, or is of a newer version or another log.
pub fn scan<F: Fs>(
    fs: &F,
    mut visit: impl FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> Result<ScanSummary, WalError> {
    let survey = survey(fs)?;
    let mut summary = ScanSummary {
        delivered: survey.best_slot().map(|(_, slot)| slot.delivered),
        durable: survey.best_slot().map(|(_, slot)| slot.durable),
        damage: survey.damage.clone(),
        ..ScanSummary::default()
    };
    for damage in &survey.damage {
        if visit(Scanned::Damage(damage.clone())).is_break() {
            return Ok(summary);
        }
    }
    for (index, head) in survey.heads.iter().enumerate() {
        let next = survey.heads.get(index + 1);
        // A link that passes over this segment makes it one in which nothing counts.
        let passed_over =
            survey.heads.iter().skip(index + 1).filter_map(|later| later.linked.as_ref()).any(
                |linked| {
                    linked.link.predecessor < head.info.number
                        && linked.link.number > head.info.number
                },
            );
        if passed_over {
            continue;
        }
        let successor = next
            .into_iter()
            .chain(survey.heads.iter().skip(index + 2))
            .filter_map(|later| later.linked.as_ref())
            .find(|linked| linked.link.predecessor == head.info.number);
        let end = successor.map(|linked| linked.link.predecessor_end);
        if scan_segment(fs, head, end, &mut summary, &mut visit)?.is_break() {
            break;
        }
    }
    Ok(summary)
}

fn scan_segment<F: Fs>(
    fs: &F,
    head: &Head,
    end: Option<SegmentEnd>,
    summary: &mut ScanSummary,
    visit: &mut impl FnMut(Scanned<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, WalError> {
    let info = &head.info;
    let limit = end.map_or(info.bytes, |end| end.byte);
    let segment = info.number;
    let name = segment_name(segment);
    let failed = |error| WalError::io("read", fs.path_of(&name), error);
    let file = match fs.open(&name, Access::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ControlFlow::Continue(()));
        }
        Err(error) => return Err(failed(error)),
    };
    summary.segments += 1;
    let begins = Scanned::Segment {
        number: segment,
        incarnation: info.incarnation,
        base: info.base,
        bytes: info.bytes,
        header: head.header,
    };
    if visit(begins).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let mut walk =
        Walk::new(file, info.nonce, SEGMENT_HEADER_BYTES, info.header_crc, Some(info.base), limit);
    let mut position = info.base;
    let mut suspects: Vec<(Damage, Position)> = Vec::new();
    // The last suspect has no frame behind it.
    let mut trailing = false;
    let mut raw = Vec::new();
    loop {
        let frame = match walk.next().map_err(failed)? {
            Step::Frame(frame) => frame,
            Step::Damage { at, reason } => {
                suspects.push((Damage { segment, byte_at: at, reason }, position));
                trailing = true;
                continue;
            }
            Step::End => break,
        };
        let header = frame.header;
        trailing = false;
        position = header.end();
        summary.proven = summary.proven.max(header.durable);
        let bytes = walk.bytes(&frame).map_err(failed)?;
        let shown = Scanned::Frame {
            segment,
            byte_at: frame.at,
            kind: header.kind,
            first: header.first,
            records: header.records,
            stored_bytes: header.frame_bytes(),
            durable: header.durable,
            annotation: bytes.annotation.unwrap_or_default(),
        };
        if visit(shown).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if header.kind != FrameKind::Data {
            continue;
        }
        raw.clear();
        let decoded = bytes.body.and_then(|body| decode_body(&header, body, &mut raw));
        if let Err(reason) = bytes.annotation.map(|_| ()).and(decoded) {
            suspects.push((Damage { segment, byte_at: frame.at, reason }, header.first));
        }
        if decoded.is_err() {
            continue;
        }
        summary.frames += 1;
        let mut rest = raw.as_slice();
        let mut at = header.first;
        while let Some((record, behind)) = split_record(rest) {
            summary.records += 1;
            if visit(Scanned::Record { position: at, bytes: record }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at = at.next();
            rest = behind;
        }
    }
    let proven = summary.proven.max(summary.durable.unwrap_or_default());
    if end.is_some() && walk.at() < limit && suspects.is_empty() {
        trailing = true;
        let damage = Damage { segment, byte_at: walk.at(), reason: Malformed::Short };
        suspects.push((damage, position));
    }
    if trailing
        && end.is_none()
        && position >= proven
        && suspects.last().is_some_and(|(damage, _)| is_unused_space(info.recycled, damage.reason))
    {
        suspects.pop();
    }
    let last = suspects.len().saturating_sub(1);
    for (index, (damage, at)) in suspects.into_iter().enumerate() {
        let acknowledged = match end {
            // A crash may take the seal or mark that recovery saw there, and no record with it.
            Some(end) => at < end.position || !(trailing && index == last),
            None => at < proven,
        };
        if visit(Scanned::Damage(damage.clone())).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if acknowledged {
            summary.damage.push(damage);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Behind the last frame of the newest segment: prepared with zeros, or stale bytes of an earlier
/// use of the file, which may look like anything.
fn is_unused_space(recycled: bool, reason: Malformed) -> bool {
    recycled || matches!(reason, Malformed::Zeros | Malformed::Nonce)
}
