//! How the newest segment ends.

use crate::error::WalError;
use crate::format::SEGMENT_HEADER_BYTES;
use crate::format::frame::FrameKind;
use crate::fs::{Access, Fs};
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
    )
    .recycled(newest.recycled);
    loop {
        match walk.next().map_err(failed)? {
            Step::Frame(found) => {
                let header = found.header;
                tail.end = header.end();
                tail.proven = tail.proven.max(header.durable);
                tail.clean = header.kind != FrameKind::Data && header.durable >= header.first;
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
    tail.torn_bytes = walk.torn_bytes();
    tail.clean &= tail.torn_bytes == 0;
    Ok(tail)
}
