//! The CURSOR, as far as it can be read.

use std::io;
use std::ops::Range;

use crate::error::WalError;
use crate::format::slot::Slot;
use crate::format::{BLOCK, BLOCK_BYTES, CURSOR_NAME, Malformed};
use crate::fs::{Access, Fs};
use crate::position::{Incarnation, LogId, Position, SegmentNumber};
use crate::salvage::patient::Patient;
use crate::salvage::{Flaw, FlawReason};
use crate::segment::read_start;

/// What the CURSOR says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Everything before it was acked; `None` if no checkpoint was ever made, or none can be read.
    pub delivered: Option<Position>,
    /// Everything before it was durable at the last checkpoint.
    pub durable: Option<Position>,
    /// Ranges acked beyond `delivered`.
    pub acked: Vec<Range<Position>>,
    pub(super) log_id: Option<LogId>,
    pub(super) segment: SegmentNumber,
    pub(super) incarnation: Incarnation,
    /// It is of another log and says nothing about this one.
    pub(super) foreign: Option<LogId>,
    /// Bytes of the slots that are damaged.
    pub(super) bad: Vec<(u64, Malformed)>,
}

/// The newer of the two slots.
pub(super) fn read_cursor<F: Fs>(fs: &F) -> Result<Cursor, WalError> {
    let file = match fs.open(CURSOR_NAME, Access::Read) {
        Ok(file) => Patient::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Cursor { bad: vec![(0, Malformed::Missing)], ..Cursor::default() });
        }
        Err(error) => return Err(WalError::io("open", fs.path_of(CURSOR_NAME), error)),
    };
    let bytes = read_start(&file, 2 * BLOCK_BYTES)
        .map_err(|error| WalError::io("read", fs.path_of(CURSOR_NAME), error))?;
    let mut cursor = Cursor::default();
    let mut best: Option<Slot> = None;
    for (place, start) in [0, BLOCK].into_iter().enumerate() {
        let end = bytes.len().min(start + BLOCK);
        match Slot::decode(bytes.get(start..end).unwrap_or_default()) {
            Ok(slot) => {
                if best.as_ref().is_none_or(|best| slot.generation > best.generation) {
                    best = Some(slot);
                }
            }
            Err(Malformed::Newer(found)) => {
                return Err(WalError::newer(fs.path_of(CURSOR_NAME), found));
            }
            // Never written.
            Err(Malformed::Zeros) => {}
            Err(reason) => cursor.bad.push((place as u64 * BLOCK_BYTES, reason)),
        }
    }
    let Some(slot) = best else { return Ok(cursor) };
    Ok(Cursor {
        delivered: Some(slot.delivered),
        durable: Some(slot.durable),
        acked: slot.ranges,
        log_id: Some(slot.log_id),
        segment: slot.segment,
        incarnation: slot.incarnation,
        foreign: None,
        bad: cursor.bad,
    })
}

impl Cursor {
    /// Itself, unless it is of another log than `log_id`.
    pub(super) fn of(self, log_id: Option<LogId>) -> Self {
        match self.log_id.filter(|own| log_id.is_some_and(|log_id| log_id != *own)) {
            Some(other) => Self { foreign: Some(other), bad: self.bad, ..Self::default() },
            None => self,
        }
    }
}

/// What is wrong with it.
pub(super) fn cursor_flaws(cursor: &Cursor, has_segments: bool) -> Vec<Flaw> {
    let lost = cursor.delivered.is_none();
    let flaw = |byte_at, reason| Flaw {
        file: CURSOR_NAME.to_owned(),
        segment: SegmentNumber::NONE,
        byte_at,
        reason,
        // One bad slot may be a torn write; the other one counts.
        acknowledged: lost,
    };
    let flaws = cursor.bad.iter().filter(|(_, reason)| {
        // It is made before the first segment.
        *reason != Malformed::Missing || has_segments
    });
    flaws
        .map(|(byte_at, reason)| flaw(*byte_at, FlawReason::Bytes(*reason)))
        .chain(cursor.foreign.map(|other| flaw(0, FlawReason::OtherLog(other))))
        .collect()
}
