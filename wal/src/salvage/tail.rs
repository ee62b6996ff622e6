//! How the newest segment ends.

use crate::error::WalError;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, FrameKind};
use crate::format::{SEGMENT_HEADER_BYTES, to_usize};
use crate::fs::{Access, Fs, FsFile, read_full_at};
use crate::position::Position;
use crate::salvage::inventory::SegmentEntry;
use crate::salvage::patient::Patient;
use crate::walk::{Step, Walk};

/// How the newest segment ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// After the last record in it.
    pub end: Position,
    /// The highest watermark in it.
    pub proven: Position,
    /// The last frame proves everything before it: the log was closed, or was idle.
    pub clean: bool,
    /// Bytes behind the last frame that somebody began to write: a crash, or a write in progress.
    pub torn_bytes: u64,
    /// The annotations in it, in order.
    pub annotations: Vec<Vec<u8>>,
}

pub(super) fn read_tail<F: Fs>(fs: &F, newest: &SegmentEntry) -> Result<Tail, WalError> {
    let failed = |error| WalError::io("read", fs.path_of(&newest.file), error);
    let mut tail = Tail { end: newest.base, ..Tail::default() };
    let file = match fs.open(&newest.file, Access::Read) {
        Ok(file) => Patient::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(tail),
        Err(error) => return Err(failed(error)),
    };
    let mut walk = Walk::new(
        file,
        newest.nonce,
        SEGMENT_HEADER_BYTES,
        newest.header_crc,
        Some(newest.base),
        newest.bytes,
    );
    let mut end_byte = SEGMENT_HEADER_BYTES;
    loop {
        match walk.next().map_err(failed)? {
            Step::Frame(found) => {
                let header = found.header;
                tail.end = header.end();
                tail.proven = tail.proven.max(header.durable);
                tail.clean = header.kind != FrameKind::Data && header.durable >= header.first;
                end_byte = header.next_at(found.at);
                let bytes = walk.bytes(&found).map_err(failed)?;
                if let (Ok(annotation), FrameKind::Data) = (bytes.annotation, header.kind)
                    && !annotation.is_empty()
                {
                    tail.annotations.push(annotation.to_vec());
                }
            }
            Step::Damage { .. } => {}
            Step::End => break,
        }
    }
    tail.torn_bytes = torn_bytes(walk.file(), newest, end_byte).map_err(failed)?;
    tail.clean &= tail.torn_bytes == 0;
    Ok(tail)
}

/// How far behind `end` somebody wrote something that did not become a frame: everything but zeros;
/// in a file that was used before, where stale bytes look like torn ones, frame headers of this
/// segment.
fn torn_bytes<File: FsFile>(file: &File, newest: &SegmentEntry, end: u64) -> std::io::Result<u64> {
    const STEP: usize = 256 * 1024;
    let mut buffer = vec![0; STEP + FRAME_HEADER_BYTES];
    let mut torn_to = end;
    let mut at = end;
    while at < newest.bytes {
        let wanted = to_usize(newest.bytes - at).min(buffer.len());
        let read = read_full_at(file, at, buffer.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 {
            break;
        }
        let window = buffer.get(..read).unwrap_or_default();
        if newest.recycled {
            for start in (0..read.min(STEP)).step_by(8) {
                let candidate = window.get(start..).unwrap_or_default();
                if candidate.starts_with(&FRAME_MAGIC)
                    && let Ok((header, _)) = FrameHeader::decode(candidate)
                    && header.nonce == newest.nonce
                {
                    let frame_end = at + start as u64 + header.frame_bytes();
                    torn_to = torn_to.max(frame_end.min(newest.bytes));
                }
            }
        } else if let Some(last) = window.iter().rposition(|byte| *byte != 0) {
            torn_to = at + last as u64 + 1;
        }
        at += STEP as u64;
    }
    Ok(torn_to - end)
}
