//! Where the newest segment ends: rows A to F and H of the table in `recovery.rs`. Pure.

use std::ops::Range;

use super::{Gap, RecoveryReport, RecoveryRow};
use crate::format::frame::FrameKind;
use crate::format::link::SegmentEnd;
use crate::format::{Malformed, SEGMENT_HEADER_BYTES};
use crate::position::Position;
use crate::segment::SegmentInfo;
use crate::survey::{Content, Damage, Met, Survey};

/// What the newest segment adds.
pub(crate) struct Tail {
    /// Where the old file ends from now on.
    pub end: SegmentEnd,
    /// Frames of row D.
    pub unproven: Vec<Met>,
    /// L of this opening: positions before it are intact or reported.
    pub intact_end: Position,
    /// Where the new segment's records go on.
    pub resume: Position,
    pub proven: Position,
    /// The old file is needed: data frames stay in it, or damage.
    pub used: bool,
    /// Annotations of what stays, in order.
    pub annotations: Vec<Vec<u8>>,
    pub torn_bytes: u64,
}

/// Rows B, C, D, E and F. `followed`: there was a later segment, which is lost. What lies behind a
/// hole here may then be what a crash left of groups that were never acknowledged, and its positions
/// were given out again; only what the segment itself proves counts.
pub(crate) fn read_tail(
    newest: &SegmentInfo,
    content: Content,
    outside_proof: Position,
    followed: bool,
    report: &mut RecoveryReport,
) -> Tail {
    let watermarks = content.met.iter().map(|met| met.frame.header.durable);
    let proven_inside = watermarks.fold(newest.base, Position::max);
    let proven = proven_inside.max(outside_proof);
    let proven = if bug!(DamageIsTornTail) { Position::ZERO } else { proven };
    let mut end = SegmentEnd {
        position: newest.base,
        byte: SEGMENT_HEADER_BYTES,
        chain: newest.header_crc.unwrap_or(0),
    };
    let mut position = newest.base;
    let mut byte = SEGMENT_HEADER_BYTES;
    let mut unproven: Vec<Met> = Vec::new();
    let mut annotations = Vec::new();
    let mut used = false;
    let mut torn = content.torn_bytes > 0;
    let whole_end = content.met.last().map_or(SEGMENT_HEADER_BYTES, |met| met.end.byte);
    let mut damaged = false;
    let mut rotten = Vec::new();
    let mut lost = |range: Range<Position>, row| report.gaps.push(Gap { range, row });
    for met in content.met {
        let header = met.frame.header;
        let data = header.kind == FrameKind::Data;
        let whole = met.body.and(met.annotation.as_ref().map(|_| ()).map_err(|reason| *reason));
        let hole = damaged || met.after_damage || (whole.is_err() && data);
        if followed && hole && header.end() > proven_inside {
            break;
        }
        if met.after_damage {
            if position >= proven {
                torn = true;
                break;
            }
            damaged = true;
            lost(position..header.first, RecoveryRow::Damaged);
        }
        if let (Err(reason), true) = (whole, data) {
            if header.first >= proven {
                torn = true;
                break;
            }
            damaged = true;
            rotten.push((met.frame.at, reason));
            if met.body.is_err() {
                lost(header.first..header.end(), RecoveryRow::Damaged);
            }
        }
        position = header.end();
        byte = met.end.byte;
        // A batch of annotations only, at W, has no position of its own to be proven by.
        let proof_reaches = header.end() <= proven && (header.records > 0 || header.first < proven);
        if !data {
            if unproven.is_empty() {
                end = met.end;
            }
        } else if (proof_reaches || bug!(TrustUnprovenTail)) && unproven.is_empty() {
            end = met.end;
            used = true;
            annotations.extend(met.annotation);
        } else if bug!(DropUnprovenTail) {
            position = end.position;
            break;
        } else {
            unproven.push(met);
        }
    }
    if damaged {
        report.rows.push(RecoveryRow::Damaged);
    }
    for (byte_at, reason) in content.damage.iter().filter(|(at, _)| *at < byte).chain(&rotten) {
        report.damage.push(Damage { segment: newest.number, byte_at: *byte_at, reason: *reason });
    }
    let torn_bytes = if torn { whole_end.saturating_sub(byte) + content.torn_bytes } else { 0 };
    if position < proven {
        report.rows.push(RecoveryRow::LostEnd);
        report.gaps.push(Gap { range: position..proven, row: RecoveryRow::LostEnd });
        report.damage.push(Damage {
            segment: newest.number,
            byte_at: byte,
            reason: content.damage.last().map_or(Malformed::Short, |(_, reason)| *reason),
        });
    } else if !unproven.is_empty() {
        report.rows.push(RecoveryRow::Unproven);
    }
    if torn && position >= proven {
        report.rows.push(RecoveryRow::TornTail);
    }
    if !torn && position == proven {
        report.rows.push(RecoveryRow::CleanEnd);
    }
    Tail {
        end,
        unproven,
        intact_end: position,
        resume: position.max(proven),
        proven,
        // A file with damage is kept even if nothing else is in it.
        used: used || damaged || position < proven,
        annotations,
        torn_bytes,
    }
}

/// Rows A and H.
pub(crate) fn nothing_left(
    proof: Position,
    delivered: Position,
    survey: &Survey,
    report: &mut RecoveryReport,
) -> Tail {
    if survey.best_slot().is_some() || !survey.damage.is_empty() {
        report.rows.push(RecoveryRow::LostEverything);
        report.gaps.push(Gap { range: delivered..proof, row: RecoveryRow::LostEverything });
    } else {
        report.rows.push(RecoveryRow::NewLog);
    }
    Tail {
        end: SegmentEnd::default(),
        unproven: Vec::new(),
        intact_end: delivered,
        resume: proof,
        proven: proof,
        used: false,
        annotations: Vec::new(),
        torn_bytes: 0,
    }
}
