//! Batches to frames and back: compression and checksums, done on the caller's thread.
//!
//! What only the writer of the file knows (nonce, chain, durable watermark) is filled in when the
//! frame is laid out for writing. Pure: no files, no locks.

use std::cell::RefCell;
use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::batch::{Batch, RECORD_PREFIX_BYTES};
use crate::buffer::BlockBuffer;
use crate::config::Compression;
use crate::format::frame::{Encoding, FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::{BLOCK_BYTES, Fields, Malformed, align_block, align8, to_u32, to_usize};
use crate::position::Position;

/// Bodies below this are stored as they are: LZ4 gains nothing on them.
const COMPRESS_FROM_BYTES: usize = 128;

/// A frame that lacks only what its place in a file gives it.
#[derive(Debug)]
pub(crate) struct Frame {
    pub kind: FrameKind,
    pub first: Position,
    pub records: u32,
    encoding: Encoding,
    raw_bytes: u32,
    annotation_crc: u32,
    body_crc: u32,
    annotation: Vec<u8>,
    body: Vec<u8>,
    /// When a caller gave it to the log.
    pub queued: Option<Instant>,
}

/// Where a frame goes, known to the writer alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub nonce: u64,
    pub chain: u32,
    pub durable: Position,
    pub last_of_group: bool,
}

/// The outcome of compressing and summing up a batch; the batch is not consumed yet, because the
/// log may turn out to be full.
pub(crate) struct Encoded {
    compressed: Option<Vec<u8>>,
    annotation_crc: u32,
    body_crc: u32,
}

/// What a thread needs to compress, kept between batches.
struct Compressor {
    table: CompressTable,
    out: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: RefCell<Compressor> =
        RefCell::new(Compressor { table: CompressTable::large(), out: Vec::new() });
}

/// A scratch buffer that grew for a huge record is given back down to this.
const SCRATCH_BYTES_KEPT: usize = 1024 * 1024;

impl Encoded {
    pub fn of(batch: &Batch, compression: Compression) -> Self {
        let raw = batch.body();
        let compressed = match compression {
            Compression::Lz4 if raw.len() >= COMPRESS_FROM_BYTES => compress(raw),
            Compression::Lz4 | Compression::None => None,
        };
        Self {
            annotation_crc: crc32fast::hash(batch.annotation()),
            body_crc: crc32fast::hash(compressed.as_deref().unwrap_or(raw)),
            compressed,
        }
    }

    /// Bytes of the frame this becomes.
    pub fn frame_bytes(&self, batch: &Batch) -> u64 {
        let stored = self.compressed.as_ref().map_or(batch.bytes(), Vec::len);
        frame_bytes(batch.annotation().len(), stored)
    }

    pub fn into_frame(self, batch: Batch, first: Position) -> Frame {
        let records = batch.records();
        let (raw, annotation) = batch.into_parts();
        let raw_bytes = to_u32(raw.len());
        let (encoding, body) = match self.compressed {
            Some(compressed) => (Encoding::Lz4, compressed),
            None => (Encoding::Plain, raw),
        };
        Frame {
            kind: FrameKind::Data,
            first,
            records,
            encoding,
            raw_bytes,
            annotation_crc: self.annotation_crc,
            body_crc: self.body_crc,
            annotation,
            body,
            queued: None,
        }
    }
}

fn frame_bytes(annotation: usize, stored: usize) -> u64 {
    align8((FRAME_HEADER_BYTES + annotation + stored) as u64)
}

/// LZ4, or `None` if it saves less than a sixteenth: then reading it back is not worth the work.
fn compress(raw: &[u8]) -> Option<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|Compressor { table, out }| {
        let most = get_maximum_output_size(raw.len());
        if out.len() < most {
            out.resize(most, 0);
        }
        let written = compress_into_with_table(raw, out, table).ok();
        let worth_it = |written: &usize| *written <= raw.len() - raw.len() / 16;
        // The frame waits in memory until it is durable, so it gets just what it needs.
        let compressed =
            written.filter(worth_it).and_then(|written| out.get(..written)).map(<[u8]>::to_vec);
        if out.len() > SCRATCH_BYTES_KEPT {
            *out = Vec::new();
        }
        compressed
    })
}

impl Frame {
    /// A frame without records: link, mark or seal.
    pub fn control(kind: FrameKind, at: Position, body: Vec<u8>) -> Self {
        Self {
            kind,
            first: at,
            records: 0,
            encoding: Encoding::Plain,
            raw_bytes: to_u32(body.len()),
            annotation_crc: crc32fast::hash(&[]),
            body_crc: crc32fast::hash(&body),
            annotation: Vec::new(),
            body,
            queued: None,
        }
    }

    /// A frame read from a file, for another place: the bytes stay as they were stored.
    pub fn copied(header: &FrameHeader, annotation: Vec<u8>, body: Vec<u8>) -> Self {
        Self {
            kind: header.kind,
            first: header.first,
            records: header.records,
            encoding: header.encoding,
            raw_bytes: header.raw_bytes,
            annotation_crc: header.annotation_crc,
            body_crc: header.body_crc,
            annotation,
            body,
            queued: None,
        }
    }

    /// One of the deliberate bugs: its bytes are lost, its place is kept.
    pub fn forget_records(&mut self) {
        self.body.iter_mut().for_each(|byte| *byte = 0);
        self.body_crc = crc32fast::hash(&self.body);
    }

    /// Bytes it takes inside a group.
    pub fn bytes(&self) -> u64 {
        frame_bytes(self.annotation.len(), self.body.len())
    }

    pub fn end(&self) -> Position {
        self.first.offset_by(u64::from(self.records)).unwrap_or(self.first)
    }

    /// Bytes of its records with their lengths, before compression.
    pub fn raw_bytes(&self) -> u64 {
        u64::from(self.raw_bytes)
    }

    pub fn annotation(&self) -> &[u8] {
        &self.annotation
    }

    /// Appends the frame with its padding to a group, and returns the chain value for the next one.
    pub fn lay_out(&self, place: Place, group: &mut BlockBuffer) -> u32 {
        let (header, crc) = FrameHeader {
            kind: self.kind,
            encoding: self.encoding,
            last_of_group: place.last_of_group,
            nonce: place.nonce,
            first: self.first,
            records: self.records,
            annotation_bytes: to_u32(self.annotation.len()),
            stored_bytes: to_u32(self.body.len()),
            raw_bytes: self.raw_bytes,
            durable: place.durable,
            chain: place.chain,
            annotation_crc: self.annotation_crc,
            body_crc: self.body_crc,
        }
        .encode();
        group.extend_from_slice(&header);
        group.extend_from_slice(&self.annotation);
        group.extend_from_slice(&self.body);
        let end = group.len() as u64;
        let padded = if place.last_of_group { align_block(end) } else { align8(end) };
        group.pad_to(to_usize(padded));
        crc
    }
}

/// The most a queued frame can take on the disk: alone in a group, with the padding.
pub(crate) fn planned_bytes(frame_bytes: u64) -> u64 {
    align_block(frame_bytes) + BLOCK_BYTES
}

/// Appends the raw body (lengths and records) to `out`.
pub(crate) fn decode_body(
    header: &FrameHeader,
    stored: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let start = out.len();
    match header.encoding {
        Encoding::Plain => out.extend_from_slice(stored),
        Encoding::Lz4 => {
            let raw_bytes = header.raw_bytes as usize;
            out.resize(start + raw_bytes, 0);
            let target = out.get_mut(start..).unwrap_or_default();
            match lz4_flex::block::decompress_into(stored, target) {
                Ok(written) if written == raw_bytes => {}
                Ok(_) | Err(_) => {
                    out.truncate(start);
                    return Err(Malformed::Compression);
                }
            }
        }
    }
    let outcome = check_records(out.get(start..).unwrap_or_default(), header.records);
    if outcome.is_err() {
        out.truncate(start);
    }
    outcome
}

/// Whether the body holds exactly that many records.
fn check_records(raw: &[u8], records: u32) -> Result<(), Malformed> {
    let mut rest = raw;
    for _ in 0..records {
        (_, rest) = split_record(rest).ok_or(Malformed::Field)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Malformed::Field) }
}

/// The first record of a raw body, and what follows it.
pub(crate) fn split_record(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = raw.split_first_chunk::<RECORD_PREFIX_BYTES>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Checks a frame's annotation and body against the header's CRCs, each on its own.
pub(crate) struct FrameBytes<'a> {
    pub annotation: Result<&'a [u8], Malformed>,
    pub body: Result<&'a [u8], Malformed>,
}

impl<'a> FrameBytes<'a> {
    /// `bytes` are what follows the header.
    pub fn check(header: &FrameHeader, bytes: &'a [u8]) -> Self {
        let mut fields = Fields(bytes);
        let mut part = |length: u32, crc: u32| {
            let part = fields.bytes(length as usize)?;
            if crc32fast::hash(part) == crc || bug!(AnyBody) {
                Ok(part)
            } else {
                Err(Malformed::Checksum)
            }
        };
        Self {
            annotation: part(header.annotation_bytes, header.annotation_crc),
            body: part(header.stored_bytes, header.body_crc),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place =
        Place { nonce: 5, chain: 6, durable: Position::new(1), last_of_group: true };

    fn batch(records: &[&[u8]]) -> Batch {
        let mut batch = Batch::new();
        for record in records {
            batch.push(record).unwrap();
        }
        batch
    }

    fn laid_out(frame: &Frame) -> Vec<u8> {
        let mut group = BlockBuffer::default();
        group.reset(to_usize(frame.bytes() + BLOCK_BYTES));
        frame.lay_out(PLACE, &mut group);
        group.as_slice().to_vec()
    }

    fn round_trip(records: &[&[u8]], compression: Compression) -> (FrameHeader, Vec<u8>) {
        let batch = batch(records);
        let raw = batch.body().to_vec();
        let encoded = Encoded::of(&batch, compression);
        let bytes = encoded.frame_bytes(&batch);
        let frame = encoded.into_frame(batch, Position::new(3));
        assert_eq!(frame.bytes(), bytes);
        let out = laid_out(&frame);
        assert_eq!(out.len() % 4096, 0);
        let (header, _) = FrameHeader::decode(&out).unwrap();
        let parts = FrameBytes::check(&header, &out[FRAME_HEADER_BYTES..]);
        let mut decoded = Vec::new();
        decode_body(&header, parts.body.unwrap(), &mut decoded).unwrap();
        assert_eq!(decoded, raw);
        (header, out)
    }

    #[test]
    fn what_compresses_is_compressed_and_reads_back() {
        let (header, _) = round_trip(&[&[b'a'; 1000], b"", &[b'b'; 300]], Compression::Lz4);
        assert_eq!(header.encoding, Encoding::Lz4);
        assert!(header.stored_bytes < 200);
    }

    #[test]
    fn what_does_not_compress_is_stored_plain() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..1000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let (header, _) = round_trip(&[&noise], Compression::Lz4);
        assert_eq!(header.encoding, Encoding::Plain);
        let (header, _) = round_trip(&[&[0; 1000]], Compression::None);
        assert_eq!(header.encoding, Encoding::Plain);
    }

    #[test]
    fn a_body_that_is_not_its_records_is_refused() {
        let (header, _) = round_trip(&[b"one", b"two"], Compression::None);
        let mut out = b"before".to_vec();
        for wrong in [&b"\x03\0\0\0one"[..], b"\xff\xff\xff\xff", b""] {
            assert_eq!(decode_body(&header, wrong, &mut out), Err(Malformed::Field));
            assert_eq!(out, b"before");
        }
        let compressed = FrameHeader { encoding: Encoding::Lz4, ..header };
        let outcome = decode_body(&compressed, b"\xf0", &mut out);
        assert_eq!(outcome, Err(Malformed::Compression));
        assert_eq!(out, b"before");
    }

    #[test]
    fn annotation_and_body_are_checked_apart() {
        let mut batch = batch(&[b"record"]);
        batch.annotate(b"note");
        let frame = Encoded::of(&batch, Compression::None).into_frame(batch, Position::ZERO);
        let mut out = laid_out(&frame);
        out[FRAME_HEADER_BYTES + 6] ^= 1;
        let (header, _) = FrameHeader::decode(&out).unwrap();
        let parts = FrameBytes::check(&header, &out[FRAME_HEADER_BYTES..]);
        assert_eq!(parts.annotation, Ok(&b"note"[..]));
        assert_eq!(parts.body, Err(Malformed::Checksum));
    }
}
