//! What a segment file tells where no walk leads: bytes that are not, or not yet known to be, frames.

use std::io;

use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader};
use crate::format::{SEGMENT_HEADER_BYTES, to_usize};
use crate::fs::{FsFile, read_full_at};

const STEP: usize = 256 * 1024;

/// The nonce of the first frame with a whole header, wherever it is: for files whose own header is
/// rotten. Live frames stand before stale ones.
pub(crate) fn first_nonce<File: FsFile>(file: &File, bytes: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; STEP + FRAME_HEADER_BYTES];
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes {
        let read = read_full_at(file, at, &mut buffer)?;
        let window = buffer.get(..read).unwrap_or_default();
        if let Some((_, header)) = frame_headers(window).next() {
            return Ok(Some(header.nonce));
        }
        at += STEP as u64;
    }
    Ok(None)
}

/// How far behind `end` somebody wrote something that did not become a frame. In a file that was
/// filled with zeros, everything else; in a recycled one, where stale bytes look like torn ones,
/// what has a frame header with the segment's nonce.
pub(crate) fn torn_bytes<File: FsFile>(
    file: &File,
    nonce: u64,
    recycled: bool,
    end: u64,
    limit: u64,
) -> io::Result<u64> {
    let mut buffer = vec![0; STEP + FRAME_HEADER_BYTES];
    let mut torn_to = end;
    let mut at = end;
    while at < limit {
        let wanted = to_usize(limit - at).min(buffer.len());
        let read = read_full_at(file, at, buffer.get_mut(..wanted).unwrap_or_default())?;
        if read == 0 {
            break;
        }
        let window = buffer.get(..read).unwrap_or_default();
        if recycled {
            for (start, header) in frame_headers(window).filter(|(_, found)| found.nonce == nonce) {
                torn_to = torn_to.max((at + start as u64 + header.frame_bytes()).min(limit));
            }
        } else if let Some(last) = window.iter().rposition(|byte| *byte != 0) {
            torn_to = at + last as u64 + 1;
        }
        at += STEP as u64;
    }
    Ok(torn_to - end)
}

/// Whole frame headers in the first [`STEP`] bytes of a window, with where they start.
fn frame_headers(window: &[u8]) -> impl Iterator<Item = (usize, FrameHeader)> + '_ {
    (0..window.len().min(STEP)).step_by(8).filter_map(|start| {
        let candidate = window.get(start..).filter(|bytes| bytes.starts_with(&FRAME_MAGIC))?;
        FrameHeader::decode(candidate).ok().map(|(header, _)| (start, header))
    })
}
