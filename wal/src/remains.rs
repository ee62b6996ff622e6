//! What a segment file tells whose own header is rotten.

use std::io;

use crate::format::SEGMENT_HEADER_BYTES;
use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader};
use crate::fs::{FsFile, read_full_at};

const STEP: usize = 256 * 1024;

/// The nonce of the first frame with a whole header, wherever it is. Live frames stand before stale
/// ones.
pub(crate) fn first_nonce<File: FsFile>(file: &File, bytes: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; STEP + FRAME_HEADER_BYTES];
    let mut at = SEGMENT_HEADER_BYTES;
    while at < bytes {
        let read = read_full_at(file, at, &mut buffer)?;
        let found = (0..read.min(STEP)).step_by(8).find_map(|start| {
            let candidate = buffer.get(start..read)?;
            candidate.starts_with(&FRAME_MAGIC).then(|| FrameHeader::decode(candidate).ok())?
        });
        if let Some((header, _)) = found {
            return Ok(Some(header.nonce));
        }
        at += STEP as u64;
    }
    Ok(None)
}
