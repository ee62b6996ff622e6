//! Places in the log, and the proof that a place is safe.
//!
//! The four watermarks are positions and keep one order at all times:
//! `appended >= durable >= delivered >= reclaimed`. Each says "everything before me".
//! This file knows numbers only: no bytes, no files.

use std::fmt;

/// A record's ordinal in the log, from 0. As a watermark or the end of a range it is exclusive:
/// everything *before* it is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// Where every log begins.
    pub const ZERO: Position = Position(0);

    /// The position with this ordinal.
    #[must_use]
    pub const fn new(ordinal: u64) -> Self {
        Self(ordinal)
    }

    /// The ordinal.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position of the record that follows. Stays at the last one, which no log reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position `records` later, or `None` beyond the last ordinal (only numbers read from a
    /// damaged file lead there).
    #[must_use]
    pub const fn offset_by(self, records: u64) -> Option<Self> {
        match self.0.checked_add(records) {
            Some(ordinal) => Some(Self(ordinal)),
            None => None,
        }
    }

    /// How many records lie between `earlier` and this position, or `None` if `earlier` is later.
    #[must_use]
    pub const fn distance_from(self, earlier: Position) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many times the log has been opened. (incarnation, position) never means two different
/// durable records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(u64);

impl Incarnation {
    /// The incarnation with this number; the first opening of a log has number 1.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which file of the log. Numbers grow by one, from 1, and are never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// "No segment": the predecessor of a log's first one.
    pub const NONE: SegmentNumber = SegmentNumber(0);

    /// The segment with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    pub(crate) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which log: drawn at random when the directory is first used, kept for its life.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LogId([u8; 16]);

impl LogId {
    /// The id with these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they are stored.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Proof that every record before [`through`](Durable::through) is on the disk. Only the log makes
/// one, and only after a sync reported success, so that an upstream offset can demand it by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable {
    through: Position,
}

impl Durable {
    pub(crate) const fn proven(through: Position) -> Self {
        Self { through }
    }

    /// The watermark: every record before it is durable.
    #[must_use]
    pub const fn through(&self) -> Position {
        self.through
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_checked_at_both_ends() {
        let last = Position::new(u64::MAX);
        assert_eq!(last.next(), last);
        assert_eq!(last.offset_by(1), None);
        assert_eq!(Position::new(2).distance_from(Position::new(3)), None);
        assert_eq!(Position::new(7).distance_from(Position::new(3)), Some(4));
        assert_eq!(Position::new(7).offset_by(3), Some(Position::new(10)));
    }
}
