//! Which segments count: rows G, I, J and L of the table in `recovery.rs`.

use std::ops::Range;

use super::{Gap, RecoveryReport, RecoveryRow};
use crate::error::WalError;
use crate::format::link::SegmentEnd;
use crate::format::{Malformed, SEGMENT_HEADER_BYTES, segment_name};
use crate::fs::{Access, Fs};
use crate::position::Position;
use crate::segment::SegmentInfo;
use crate::survey::{Head, Survey};
use crate::walk::{Step, Walk};

/// What the survey's segments mean, taken together.
pub(crate) struct Lineage {
    /// The segments that count, oldest first, the newest without an end.
    pub kept: Vec<SegmentInfo>,
    /// Names of files in which nothing counts.
    pub superseded: Vec<String>,
    pub gaps: Vec<Gap>,
}

/// Rows I and J, and A's half: what is delivered for sure.
pub(crate) fn delivered_floor(survey: &Survey, report: &mut RecoveryReport) -> Position {
    let written = |slot: &&Result<_, Malformed>| {
        !matches!(slot, Err(Malformed::Zeros | Malformed::Missing | Malformed::Short))
    };
    let bad = survey.slots.iter().any(|slot| written(&slot));
    let noted = noted_floor(survey);
    if let Some((_, slot)) = survey.best_slot() {
        if survey.slots.iter().any(|slot| slot.is_err() && written(&slot)) {
            report.rows.push(RecoveryRow::CursorSlotBad);
        }
        return slot.delivered.max(noted);
    }
    // A CURSOR may be unwritten because nobody ever made a checkpoint; a missing one is lost.
    let missing = matches!(survey.slots, [Err(Malformed::Missing), _]);
    if bad || (missing && !survey.heads.is_empty()) {
        report.rows.push(RecoveryRow::CursorLost);
    }
    noted
}

/// What the links say: delivered so long ago that it is never delivered again.
pub(crate) fn noted_floor(survey: &Survey) -> Position {
    let links = survey.heads.iter().filter_map(|head| head.linked.as_ref());
    links.map(|linked| linked.link.delivered).max().unwrap_or_default()
}

/// Rows G and L: from the newest segment back along the links.
pub(crate) fn lineage<F: Fs>(
    fs: &F,
    survey: &Survey,
    delivered: Position,
) -> Result<Lineage, WalError> {
    let mut lineage = Lineage { kept: Vec::new(), superseded: Vec::new(), gaps: Vec::new() };
    let (fitting, strays) = without_strays(&survey.heads);
    lineage.superseded.extend(strays);
    let mut heads = fitting.into_iter();
    let Some(mut successor) = heads.next() else {
        return Ok(lineage);
    };
    lineage.kept.push(successor.info.clone());
    let mut gap = |range: Range<Position>, row| {
        if range.start.max(delivered) < range.end {
            lineage.gaps.push(Gap { range, row });
        }
    };
    loop {
        let base = successor.info.base;
        let Some(linked) = &successor.linked else {
            // Row K: only the order of the files tells what came before.
            let Some(head) = heads.next() else {
                gap(delivered..base, RecoveryRow::MissingSegment);
                break;
            };
            let end = walked_end(fs, &head.info)?;
            gap(end.position..base, RecoveryRow::MissingSegment);
            lineage.kept.push(SegmentInfo { end: Some(end), ..head.info.clone() });
            successor = head;
            continue;
        };
        let (named, end) = (linked.link.predecessor, linked.link.predecessor_end);
        let found = heads.by_ref().find(|head| {
            let counts = head.info.number <= named;
            if !counts {
                lineage.superseded.push(segment_name(head.info.number));
            }
            counts
        });
        match found {
            Some(head) if head.info.number == named => {
                // An earlier opening met row F here.
                gap(end.position..base, RecoveryRow::LostEnd);
                lineage.kept.push(SegmentInfo { end: Some(end), ..head.info.clone() });
                successor = head;
            }
            // The named one is gone because it was delivered, and so were all before it.
            Some(head) if end.position <= delivered => {
                gap(end.position..base, RecoveryRow::MissingSegment);
                lineage.superseded.push(segment_name(head.info.number));
                lineage.superseded.extend(heads.map(|head| segment_name(head.info.number)));
                break;
            }
            Some(head) => {
                let end = walked_end(fs, &head.info)?;
                gap(end.position..base, RecoveryRow::MissingSegment);
                lineage.kept.push(SegmentInfo { end: Some(end), ..head.info.clone() });
                successor = head;
            }
            None => {
                gap(delivered..base, RecoveryRow::MissingSegment);
                break;
            }
        }
    }
    lineage.kept.reverse();
    // Without a CURSOR nobody knows whether what is before the oldest was delivered.
    if survey.best_slot().is_none() {
        let oldest = lineage.kept.first().map_or(Position::ZERO, |oldest| oldest.base);
        lineage.gaps.retain(|gap| gap.range.end > oldest);
    }
    Ok(lineage)
}

/// The heads, newest first, and the files that do not belong where their names put them: one whose
/// header and link are both rotten may be any other segment under this name, and its positions must
/// lie between those of its neighbours. Taken in, it would hide what they hold.
fn without_strays(heads: &[Head]) -> (Vec<&Head>, Vec<String>) {
    let says_who = |head: &&Head| head.header.is_some() || head.linked.is_some();
    let (mut fitting, mut strays) = (Vec::<&Head>::with_capacity(heads.len()), Vec::new());
    for (at, head) in heads.iter().enumerate().rev() {
        let mut older = heads.iter().take(at);
        let fits = says_who(&head)
            || (older.rfind(says_who).is_none_or(|older| older.info.base <= head.info.base)
                && fitting.last().is_none_or(|newer| head.info.base <= newer.info.base));
        if fits { fitting.push(head) } else { strays.push(segment_name(head.info.number)) }
    }
    (fitting, strays)
}

/// The end of a segment whose successor cannot tell. Damage is crossed as far as a frame behind it
/// says that it was acknowledged.
pub(crate) fn walked_end<F: Fs>(fs: &F, info: &SegmentInfo) -> Result<SegmentEnd, WalError> {
    let name = segment_name(info.number);
    let failed = |error| WalError::io("read", fs.path_of(&name), error);
    let file = fs.open(&name, Access::Read).map_err(failed)?;
    let mut walk = Walk::new(
        file,
        info.nonce,
        SEGMENT_HEADER_BYTES,
        info.header_crc,
        Some(info.base),
        info.bytes,
    );
    let mut end = SegmentEnd { position: info.base, byte: SEGMENT_HEADER_BYTES, chain: 0 };
    let mut beyond: Vec<SegmentEnd> = Vec::new();
    let (mut damaged, mut proven) = (false, Position::ZERO);
    loop {
        match walk.next().map_err(failed)? {
            Step::Frame(frame) => {
                proven = proven.max(frame.header.durable);
                damaged |= walk.bytes(&frame).map_err(failed)?.body.is_err();
                let after = SegmentEnd {
                    position: frame.header.end(),
                    byte: frame.header.next_at(frame.at),
                    chain: frame.crc,
                };
                if damaged { beyond.push(after) } else { end = after }
            }
            Step::Damage { .. } => damaged = true,
            Step::End => break,
        }
    }
    // What a crash left behind a hole was never acknowledged, and its positions were given out
    // again; only what the segment itself proves counts there.
    Ok(beyond.into_iter().rfind(|after| after.position <= proven).unwrap_or(end))
}
