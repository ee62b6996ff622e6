//! The frame header.

use super::{Fields, Malformed, align_block, align8};
use crate::batch::{ANNOTATION_BYTES_MAX, RECORD_PREFIX_BYTES};
use crate::config::WalConfig;
use crate::position::Position;

pub(crate) const FRAME_HEADER_BYTES: usize = 64;
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"\x89FRM";
const FLAG_LAST_OF_GROUP: u8 = 1;
/// The longest body, raw or stored.
pub(crate) const BODY_BYTES_MAX: usize = WalConfig::RECORD_BYTES_MAX + RECORD_PREFIX_BYTES;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Records.
    Data,
    /// The first frame of a segment: its place in the log.
    Link,
    /// A proof that everything before it is durable.
    Mark,
    /// A mark that ends its segment.
    Seal,
}

impl FrameKind {
    const fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Link => 2,
            Self::Mark => 3,
            Self::Seal => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Data),
            2 => Some(Self::Link),
            3 => Some(Self::Mark),
            4 => Some(Self::Seal),
            _ => None,
        }
    }
}

/// How a frame's body is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Lz4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub kind: FrameKind,
    pub encoding: Encoding,
    pub last_of_group: bool,
    pub nonce: u64,
    pub first: Position,
    pub records: u32,
    pub annotation_bytes: u32,
    pub stored_bytes: u32,
    pub raw_bytes: u32,
    pub durable: Position,
    pub chain: u32,
    pub annotation_crc: u32,
    pub body_crc: u32,
}

impl FrameHeader {
    /// The header, and its CRC: the chain value of the next frame.
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES);
        let encoding = match self.encoding {
            Encoding::Plain => 0,
            Encoding::Lz4 => 1,
        };
        let flags = if self.last_of_group { FLAG_LAST_OF_GROUP } else { 0 };
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&[self.kind.code(), encoding, flags, 0]);
        out.extend_from_slice(&self.nonce.to_le_bytes());
        out.extend_from_slice(&self.first.get().to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.annotation_bytes.to_le_bytes());
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&self.durable.get().to_le_bytes());
        out.extend_from_slice(&self.chain.to_le_bytes());
        out.extend_from_slice(&self.annotation_crc.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        (out, crc)
    }

    /// Checks the magic, the CRC and every field against its limits; nothing is allocated.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32), Malformed> {
        let header = bytes.first_chunk::<FRAME_HEADER_BYTES>().ok_or(Malformed::Short)?;
        let mut fields = Fields(header);
        if fields.array::<4>()? != FRAME_MAGIC {
            let zeros = header.iter().all(|byte| *byte == 0);
            return Err(if zeros { Malformed::Zeros } else { Malformed::Magic });
        }
        let (body, tail) = header.split_at_checked(FRAME_HEADER_BYTES - 4).unwrap_or_default();
        let crc = Fields(tail).u32()?;
        if crc32fast::hash(body) != crc {
            return Err(Malformed::Checksum);
        }
        let [kind, encoding, flags, reserved] = fields.array::<4>()?;
        let header = Self {
            kind: FrameKind::from_code(kind).ok_or(Malformed::Field)?,
            encoding: match encoding {
                0 => Encoding::Plain,
                1 => Encoding::Lz4,
                _ => return Err(Malformed::Field),
            },
            last_of_group: flags & FLAG_LAST_OF_GROUP != 0,
            nonce: fields.u64()?,
            first: Position::new(fields.u64()?),
            records: fields.u32()?,
            annotation_bytes: fields.u32()?,
            stored_bytes: fields.u32()?,
            raw_bytes: fields.u32()?,
            durable: Position::new(fields.u64()?),
            chain: fields.u32()?,
            annotation_crc: fields.u32()?,
            body_crc: fields.u32()?,
        };
        let plausible = reserved == 0
            && flags & !FLAG_LAST_OF_GROUP == 0
            && header.annotation_bytes as usize <= ANNOTATION_BYTES_MAX
            && header.stored_bytes as usize <= BODY_BYTES_MAX
            && header.raw_bytes as usize <= BODY_BYTES_MAX
            && u64::from(header.records) * RECORD_PREFIX_BYTES as u64
                <= u64::from(header.raw_bytes)
            && match header.encoding {
                Encoding::Plain => header.stored_bytes == header.raw_bytes,
                // No LZ4 block grows more than 255-fold.
                Encoding::Lz4 => {
                    u64::from(header.raw_bytes) <= u64::from(header.stored_bytes) * 255 + 64
                }
            }
            && (header.kind == FrameKind::Data || header.records == 0)
            && header.first.offset_by(u64::from(header.records)).is_some();
        if plausible { Ok((header, crc)) } else { Err(Malformed::Field) }
    }

    /// The position after its last record.
    pub fn end(&self) -> Position {
        // Checked when it was decoded, far from the limit when it was made.
        self.first.offset_by(u64::from(self.records)).unwrap_or(self.first)
    }

    /// Header, annotation and body.
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.annotation_bytes) + u64::from(self.stored_bytes)
    }

    /// Where the frame after this one starts.
    pub fn next_at(&self, at: u64) -> u64 {
        let end = at.saturating_add(self.frame_bytes());
        if self.last_of_group { align_block(end) } else { align8(end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Data,
            encoding: Encoding::Lz4,
            last_of_group: true,
            nonce: 11,
            first: Position::new(100),
            records: 3,
            annotation_bytes: 5,
            stored_bytes: 20,
            raw_bytes: 40,
            durable: Position::new(90),
            chain: 0xdead_beef,
            annotation_crc: 1,
            body_crc: 2,
        }
    }

    fn encoded(header: &FrameHeader) -> Vec<u8> {
        header.encode().0
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = encoded(&header());
        assert_eq!(bytes.len(), FRAME_HEADER_BYTES);
        assert_eq!(FrameHeader::decode(&bytes).unwrap().0, header());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encoded(&header());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn hostile_lengths_are_refused_even_with_a_right_checksum() {
        let hostile = [
            FrameHeader { stored_bytes: u32::MAX, ..header() },
            FrameHeader { raw_bytes: u32::MAX, ..header() },
            FrameHeader { annotation_bytes: u32::MAX, ..header() },
            FrameHeader { records: 11, ..header() },
            FrameHeader { raw_bytes: 20 * 255 + 65, ..header() },
            FrameHeader { first: Position::new(u64::MAX - 1), ..header() },
            FrameHeader { kind: FrameKind::Mark, ..header() },
            FrameHeader { encoding: Encoding::Plain, ..header() },
        ];
        for header in hostile {
            let outcome = FrameHeader::decode(&encoded(&header));
            assert_eq!(outcome.unwrap_err(), Malformed::Field, "{header:?}");
        }
    }

    #[test]
    fn the_last_frame_of_a_group_is_followed_by_a_fresh_block() {
        let last = header();
        assert_eq!(last.next_at(4096), 8192);
        let inner = FrameHeader { last_of_group: false, ..last };
        assert_eq!(inner.next_at(4096), 4096 + 64 + 5 + 20 + 7);
    }
}
