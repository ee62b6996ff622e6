//! One of the two slots of `CURSOR`. They are written in turn, so that a torn write costs the
//! newer one only.
//!
//! ```text
//!    0  8  magic "\x89WALCUR\n"
//!    8  4  format version
//!   12  4  number of ranges
//!   16 16  log id
//!   32  8  generation: the highest valid one counts
//!   40  8  incarnation that wrote it
//!   48  8  delivered: everything before it was acked
//!   56  8  durable: everything before it is in the segments
//!   64  8  highest segment number in use
//!   72     ranges acked beyond delivered: 8 start, 8 end, ascending
//! 4092  4  CRC of bytes 0..4092
//! ```

use std::ops::Range;

use super::{FORMAT_VERSION, Malformed, finish_block, open_block, to_u32};
use crate::position::{Incarnation, LogId, Position, SegmentNumber};

const MAGIC: [u8; 8] = *b"\x89WALCUR\n";
/// Ranges that fit; what is acked beyond them is delivered again after a restart.
pub(crate) const RANGES_MAX: usize = (super::CRC_AT - 72) / 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub log_id: LogId,
    pub generation: u64,
    pub incarnation: Incarnation,
    pub delivered: Position,
    pub durable: Position,
    pub segment: SegmentNumber,
    pub ranges: Vec<Range<Position>>,
}

impl Slot {
    pub fn encode(&self) -> Vec<u8> {
        let ranges = self.ranges.get(..RANGES_MAX).unwrap_or(&self.ranges);
        let mut fields = Vec::with_capacity(super::BLOCK);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        fields.extend_from_slice(&to_u32(ranges.len()).to_le_bytes());
        fields.extend_from_slice(&self.log_id.bytes());
        fields.extend_from_slice(&self.generation.to_le_bytes());
        fields.extend_from_slice(&self.incarnation.get().to_le_bytes());
        fields.extend_from_slice(&self.delivered.get().to_le_bytes());
        fields.extend_from_slice(&self.durable.get().to_le_bytes());
        fields.extend_from_slice(&self.segment.get().to_le_bytes());
        for range in ranges {
            fields.extend_from_slice(&range.start.get().to_le_bytes());
            fields.extend_from_slice(&range.end.get().to_le_bytes());
        }
        finish_block(fields)
    }

    pub fn decode(block: &[u8]) -> Result<Self, Malformed> {
        let (mut fields, _) = open_block(block, MAGIC)?;
        let count = fields.u32()? as usize;
        let mut slot = Self {
            log_id: LogId::new(fields.array()?),
            generation: fields.u64()?,
            incarnation: Incarnation::new(fields.u64()?),
            delivered: Position::new(fields.u64()?),
            durable: Position::new(fields.u64()?),
            segment: SegmentNumber::new(fields.u64()?),
            ranges: Vec::new(),
        };
        if count > RANGES_MAX || slot.delivered > slot.durable {
            return Err(Malformed::Field);
        }
        let mut floor = slot.delivered;
        for _ in 0..count {
            let range = Position::new(fields.u64()?)..Position::new(fields.u64()?);
            if range.start < floor || range.end <= range.start || range.end > slot.durable {
                return Err(Malformed::Field);
            }
            floor = range.end;
            slot.ranges.push(range);
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(ranges: Vec<Range<Position>>) -> Slot {
        Slot {
            log_id: LogId::new([1; 16]),
            generation: 8,
            incarnation: Incarnation::new(2),
            delivered: Position::new(10),
            durable: Position::new(5000),
            segment: SegmentNumber::new(4),
            ranges,
        }
    }

    fn range(start: u64, end: u64) -> Range<Position> {
        Position::new(start)..Position::new(end)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let slot = slot(vec![range(12, 20), range(30, 31)]);
        assert_eq!(Slot::decode(&slot.encode()), Ok(slot));
    }

    #[test]
    fn ranges_beyond_the_room_are_left_out_from_the_end() {
        let many: Vec<_> = (0..400).map(|n| range(20 + n * 4, 22 + n * 4)).collect();
        let decoded = Slot::decode(&slot(many.clone()).encode()).unwrap();
        assert_eq!(decoded.ranges, many[..RANGES_MAX]);
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for ranges in [
            vec![range(5, 8)],
            vec![range(20, 20)],
            vec![range(20, 30), range(25, 40)],
            vec![range(20, 5001)],
        ] {
            assert_eq!(Slot::decode(&slot(ranges).encode()), Err(Malformed::Field));
        }
    }
}
