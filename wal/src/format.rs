//! The bytes of the log. They are drawn here and nowhere else; golden files guard them.
//!
//! All numbers are little-endian. All checksums are CRC-32 (IEEE).
//!
//! ```text
//! segment-00000000000000000007.wal
//! +----------------+ 0
//! | segment header | 4 KiB: who this file is
//! +----------------+ 4096
//! | link frame     | how it joins its predecessor, and what must not die with it
//! | padding        | to the next 4 KiB
//! +----------------+ every group starts on a block: a block that holds
//! | data frame     | acknowledged bytes is never written again
//! | data frame     | frames inside a group start on multiples of 8
//! | padding        |
//! +----------------+
//! | data frame ... |
//! | mark or seal   | "everything before me is durable"; a seal also ends the file
//! +----------------+
//!
//! segment header, 4096 bytes           frame header, 64 bytes
//!    0  8  magic "\x89WALSEG\n"           0  4  magic "\x89FRM"
//!    8  4  format version                 4  1  kind: 1 data, 2 link, 3 mark, 4 seal
//!   12  4  flags: bit 0 = recycled        5  1  compression: 0 none, 1 lz4 block
//!   16 16  log id                         6  1  flags: bit 0 = last frame of its group,
//!   32  8  segment number                             the next one starts on the next block
//!   40  8  incarnation                    7  1  reserved, 0
//!   48  8  nonce, random                  8  8  nonce of the segment
//!   56  8  creation time, ms since 1970  16  8  first position
//!   64     zeros                         24  4  records
//! 4092  4  CRC of bytes 0..4092          28  4  annotation bytes
//!                                        32  4  body bytes as stored
//! body of a data frame, raw              36  4  body bytes raw
//!    per record: 4 length, bytes         40  8  durable position when this was written
//!                                        48  4  chain: CRC of the previous frame's header;
//! frame = header, annotation, body                   in the first frame, of the segment header
//!                                        52  4  CRC of the annotation
//!                                        56  4  CRC of the body as stored
//!                                        60  4  CRC of bytes 0..60
//! ```
//!
//! A segment's file is prepared before it is needed: filled with zeros, or an old file used again
//! (*recycled*), with a new header whose nonce tells live frames from stale ones. So behind the last
//! frame there may be zeros or stale frames, and a file may have a header and no link yet.
//!
//! The link's body and the CURSOR slots are drawn in [`link`] and [`slot`]. A newer version of the
//! format may change everything but this: a segment or a slot begins with its magic and version,
//! is (or begins with) a 4 KiB block, and that block ends in the CRC of the rest. So a newer file
//! is told from a damaged one.

pub(crate) mod frame;
pub(crate) mod link;
pub(crate) mod segment;
pub(crate) mod slot;

use crate::position::SegmentNumber;

/// The newest version this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Syncs start on a fresh block of this size.
pub const BLOCK_BYTES: u64 = 4096;
/// Size of the segment header; the link frame starts here.
pub const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES;
/// Name of the file that keeps the acks.
pub const CURSOR_NAME: &str = "CURSOR";

pub(crate) const BLOCK: usize = 4096;
const CRC_AT: usize = BLOCK - 4;
const SEGMENT_PREFIX: &str = "segment-";
/// A reclaimed segment that waits to be used again; nothing in it counts.
pub(crate) const SPARE_PREFIX: &str = "spare-";
const SEGMENT_SUFFIX: &str = ".wal";
/// A file that is not whole yet has this suffix; it gets its name when it is.
pub(crate) const UNFINISHED_SUFFIX: &str = ".new";

/// The file name of a segment.
#[must_use]
pub fn segment_name(number: SegmentNumber) -> String {
    format!("{SEGMENT_PREFIX}{:020}{SEGMENT_SUFFIX}", number.get())
}

/// The file name of a reclaimed segment that waits to be used again.
pub(crate) fn spare_name(number: SegmentNumber) -> String {
    format!("{SPARE_PREFIX}{:020}{SEGMENT_SUFFIX}", number.get())
}

/// The segment a file name stands for, if it is one.
#[must_use]
pub fn parse_segment_name(name: &str) -> Option<SegmentNumber> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?.strip_suffix(SEGMENT_SUFFIX)?;
    let canonical = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|number| canonical && *number > 0)?;
    Some(SegmentNumber::new(number))
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The file ends before the structure does.
    #[error("cut short")]
    Short,
    /// Nothing but zeros: never written, or lost with its size kept.
    #[error("zeros")]
    Zeros,
    /// The magic number is another one.
    #[error("wrong magic")]
    Magic,
    /// A checksum does not match.
    #[error("wrong checksum")]
    Checksum,
    /// Whole, but of a newer version.
    #[error("version {0} is newer than this program")]
    Newer(u32),
    /// Whole, but of another segment: a stale or misplaced frame.
    #[error("belongs to another segment")]
    Nonce,
    /// Whole, but it does not follow the frame before it.
    #[error("does not follow the frame before it")]
    Chain,
    /// A length or a kind that cannot be.
    #[error("impossible field")]
    Field,
    /// Compressed bytes that do not decompress.
    #[error("does not decompress")]
    Compression,
    /// The file is not there.
    #[error("file is missing")]
    Missing,
}

/// Reads numbers off the front of a slice.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*array)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(bytes)
    }
}

/// Fills a block with zeros up to its CRC and adds that.
fn finish_block(mut fields: Vec<u8>) -> Vec<u8> {
    debug_assert!(fields.len() <= CRC_AT);
    fields.resize(CRC_AT, 0);
    let crc = crc32fast::hash(&fields);
    fields.extend_from_slice(&crc.to_le_bytes());
    fields
}

/// Checks magic, CRC and version, in this order; returns the fields after the version, and the CRC.
fn open_block<'a>(block: &'a [u8], magic: [u8; 8]) -> Result<(Fields<'a>, u32), Malformed> {
    let Some((body, tail)) = block.get(..BLOCK).and_then(|block| block.split_at_checked(CRC_AT))
    else {
        return Err(if block.iter().all(|byte| *byte == 0) {
            Malformed::Zeros
        } else {
            Malformed::Short
        });
    };
    let mut fields = Fields(body);
    if fields.array::<8>()? != magic {
        let zeros = block.iter().all(|byte| *byte == 0);
        return Err(if zeros { Malformed::Zeros } else { Malformed::Magic });
    }
    let crc = Fields(tail).u32()?;
    if crc32fast::hash(body) != crc {
        return Err(Malformed::Checksum);
    }
    match fields.u32()? {
        FORMAT_VERSION => Ok((fields, crc)),
        newer if newer > FORMAT_VERSION => Err(Malformed::Newer(newer)),
        _ => Err(Malformed::Field),
    }
}

/// The next multiple of 8.
pub(crate) const fn align8(bytes: u64) -> u64 {
    bytes.next_multiple_of(8)
}

/// The next block boundary.
pub(crate) const fn align_block(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// A length as a `usize`; what does not fit is longer than any buffer and fails there.
pub(crate) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// A length as it is stored. Lengths are checked against limits far below 4 GiB before.
pub(crate) fn to_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_are_segments() {
        let number = SegmentNumber::new(42);
        assert_eq!(parse_segment_name(&segment_name(number)), Some(number));
        for name in ["segment-42.wal", "segment-00000000000000000000.wal", "CURSOR", "LOCK"] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
        let unfinished = format!("{}{UNFINISHED_SUFFIX}", segment_name(number));
        assert_eq!(parse_segment_name(&unfinished), None);
    }
}
