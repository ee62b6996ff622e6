//! The body of a link frame: how a segment joins the log, and what must not die with the
//! segments before it.
//!
//! ```text
//!  0  8  number of this segment          (again, so that a rotten header costs nothing)
//!  8  8  incarnation of this segment
//! 16  8  number of the predecessor, 0 = none
//! 24  8  position after the predecessor's last record
//! 32  8  byte after the predecessor's last frame that counts
//! 40  4  CRC of the header of that frame
//! 44  4  entries in the history
//! 48  8  delivered floor: everything before it was delivered when this was written, and longer
//!        ago than the hold-back
//! 56  4  carry bytes
//! 60  4  reserved, 0
//! 64     history: 8 incarnation, 8 first position that is new in it
//!        carry
//! ```
//!
//! The frame's own first position is the base of the segment. It is beyond the predecessor's end
//! only if acknowledged records were lost in between.

use super::{Fields, Malformed};
use crate::carry::CARRY_BYTES_MAX;
use crate::format::to_u32;
use crate::position::{Incarnation, Position, SegmentNumber};

/// Openings of the log that a link remembers, the newest last.
pub(crate) const HISTORY_MAX: usize = 64;

/// Where a segment's valid content ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentEnd {
    pub position: Position,
    pub byte: u64,
    pub chain: u32,
}

/// From which position on an incarnation wrote records that no earlier one had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    pub incarnation: Incarnation,
    pub at: Position,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub number: SegmentNumber,
    pub incarnation: Incarnation,
    pub predecessor: SegmentNumber,
    pub predecessor_end: SegmentEnd,
    pub delivered: Position,
    pub history: Vec<Resumed>,
    pub carry: Vec<u8>,
}

impl Link {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.history.len() * 16 + self.carry.len());
        out.extend_from_slice(&self.number.get().to_le_bytes());
        out.extend_from_slice(&self.incarnation.get().to_le_bytes());
        out.extend_from_slice(&self.predecessor.get().to_le_bytes());
        out.extend_from_slice(&self.predecessor_end.position.get().to_le_bytes());
        out.extend_from_slice(&self.predecessor_end.byte.to_le_bytes());
        out.extend_from_slice(&self.predecessor_end.chain.to_le_bytes());
        out.extend_from_slice(&to_u32(self.history.len()).to_le_bytes());
        out.extend_from_slice(&self.delivered.get().to_le_bytes());
        out.extend_from_slice(&to_u32(self.carry.len()).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for resumed in &self.history {
            out.extend_from_slice(&resumed.incarnation.get().to_le_bytes());
            out.extend_from_slice(&resumed.at.get().to_le_bytes());
        }
        out.extend_from_slice(&self.carry);
        out
    }

    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let number = SegmentNumber::new(fields.u64()?);
        let incarnation = Incarnation::new(fields.u64()?);
        let predecessor = SegmentNumber::new(fields.u64()?);
        let predecessor_end = SegmentEnd {
            position: Position::new(fields.u64()?),
            byte: fields.u64()?,
            chain: fields.u32()?,
        };
        let entries = fields.u32()? as usize;
        let delivered = Position::new(fields.u64()?);
        let carry_bytes = fields.u32()? as usize;
        fields.u32()?;
        if entries > HISTORY_MAX || carry_bytes > CARRY_BYTES_MAX || predecessor >= number {
            return Err(Malformed::Field);
        }
        let mut history = Vec::with_capacity(entries);
        for _ in 0..entries {
            history.push(Resumed {
                incarnation: Incarnation::new(fields.u64()?),
                at: Position::new(fields.u64()?),
            });
        }
        let carry = fields.bytes(carry_bytes)?.to_vec();
        if !fields.0.is_empty() {
            return Err(Malformed::Field);
        }
        Ok(Self { number, incarnation, predecessor, predecessor_end, delivered, history, carry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            number: SegmentNumber::new(9),
            incarnation: Incarnation::new(4),
            predecessor: SegmentNumber::new(7),
            predecessor_end: SegmentEnd { position: Position::new(50), byte: 8192, chain: 3 },
            delivered: Position::new(40),
            history: vec![Resumed { incarnation: Incarnation::new(4), at: Position::new(50) }],
            carry: b"state".to_vec(),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(Link::decode(&link().encode()), Ok(link()));
    }

    #[test]
    fn hostile_counts_are_refused_before_anything_is_allocated() {
        let bytes = link().encode();
        for at in [44, 56] {
            let mut hostile = bytes.clone();
            hostile[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(Link::decode(&hostile), Err(Malformed::Field));
        }
        assert_eq!(Link::decode(&bytes[..bytes.len() - 1]), Err(Malformed::Short));
        assert_eq!(Link::decode(&bytes[..20]), Err(Malformed::Short));
    }
}
