//! The segment header: identity only, so that a file can be prepared before its place is known.

use super::{FORMAT_VERSION, Malformed, finish_block, open_block};
use crate::position::{Incarnation, LogId, SegmentNumber};

const MAGIC: [u8; 8] = *b"\x89WALSEG\n";

/// Who a segment file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log it belongs to.
    pub log_id: LogId,
    /// Its number.
    pub number: SegmentNumber,
    /// The opening of the log that made it.
    pub incarnation: Incarnation,
    /// Drawn at random for this file; its frames repeat it.
    pub nonce: u64,
    /// When it was made, milliseconds since 1970, for people.
    pub created_ms: u64,
    /// Its file belonged to an earlier segment: behind the last frame lie stale bytes.
    pub recycled: bool,
}

const FLAG_RECYCLED: u32 = 1;

impl SegmentHeader {
    /// The header's block, and its CRC, from which the chain of the frames starts.
    pub(crate) fn encode(&self) -> (Vec<u8>, u32) {
        let mut fields = Vec::with_capacity(super::BLOCK);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let flags = if self.recycled { FLAG_RECYCLED } else { 0 };
        fields.extend_from_slice(&flags.to_le_bytes());
        fields.extend_from_slice(&self.log_id.bytes());
        fields.extend_from_slice(&self.number.get().to_le_bytes());
        fields.extend_from_slice(&self.incarnation.get().to_le_bytes());
        fields.extend_from_slice(&self.nonce.to_le_bytes());
        fields.extend_from_slice(&self.created_ms.to_le_bytes());
        let block = finish_block(fields);
        let crc = block.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
        (block, crc)
    }

    pub(crate) fn decode(block: &[u8]) -> Result<(Self, u32), Malformed> {
        let (mut fields, crc) = open_block(block, MAGIC)?;
        let flags = fields.u32()?;
        if flags & !FLAG_RECYCLED != 0 {
            return Err(Malformed::Field);
        }
        let header = Self {
            log_id: LogId::new(fields.array()?),
            number: SegmentNumber::new(fields.u64()?),
            incarnation: Incarnation::new(fields.u64()?),
            nonce: fields.u64()?,
            created_ms: fields.u64()?,
            recycled: flags & FLAG_RECYCLED != 0,
        };
        Ok((header, crc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: LogId::new([7; 16]),
            number: SegmentNumber::new(3),
            incarnation: Incarnation::new(2),
            nonce: 0x0123_4567_89ab_cdef,
            created_ms: 1_700_000_000_000,
            recycled: true,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let (block, crc) = header().encode();
        assert_eq!(SegmentHeader::decode(&block), Ok((header(), crc)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (block, _) = header().encode();
        for at in (0..100).chain(4000..4096) {
            let mut damaged = block.clone();
            damaged[at] ^= 0x10;
            assert!(SegmentHeader::decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let (mut block, _) = header().encode();
        block[8] = 2;
        assert_eq!(SegmentHeader::decode(&block), Err(Malformed::Checksum));
        let crc = crc32fast::hash(&block[..4092]);
        block[4092..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(Malformed::Newer(2)));
    }
}
