//! One segment file: made whole under another name, then appended to by one writer.
//!
//! A file gets its segment name only after its header, its link and the records recovery put into
//! it are durable, so a named segment always has them; if they cannot be read, they rotted.

use std::io;
use std::time::Duration;

use crate::error::{WalError, is_no_space};
use crate::format::frame::FrameKind;
use crate::format::link::{Link, SegmentEnd};
use crate::format::segment::SegmentHeader;
use crate::format::{
    BLOCK_BYTES, SEGMENT_HEADER_BYTES, UNFINISHED_SUFFIX, align_block, segment_name, to_usize,
};
use crate::frame::{Frame, Place};
use crate::fs::{Fs, FsFile, write_all_at};
use crate::position::{Incarnation, LogId, Position, SegmentNumber};

/// A group buffer that grew for a huge record is given back down to this.
const BUFFER_BYTES_KEPT: usize = 2 * 1024 * 1024;

/// Why a step of the writer failed, by what it means for the log.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Pressure: nothing of the step counts, it may be tried again.
    NoSpace(WalError),
    /// Nobody knows what the disk has: poison.
    Fatal(WalError),
}

impl Fault {
    /// For operations whose lack of space leaves everything as it was.
    pub fn soft(op: &'static str, path: String, error: io::Error) -> Self {
        let no_space = is_no_space(&error);
        let error = WalError::io(op, path, error);
        if no_space { Self::NoSpace(error) } else { Self::Fatal(error) }
    }

    /// For syncs: a lack of space found there has lost pages already.
    pub fn hard(op: &'static str, path: String, error: io::Error) -> Self {
        Self::Fatal(WalError::Io { op, path, source: std::sync::Arc::new(error) })
    }
}

impl From<Fault> for WalError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoSpace(error) | Fault::Fatal(error) => error,
        }
    }
}

/// What the log remembers of a segment.
#[derive(Clone, Debug)]
pub(crate) struct SegmentInfo {
    pub number: SegmentNumber,
    pub incarnation: Incarnation,
    pub nonce: u64,
    /// Position of its first record.
    pub base: Position,
    /// CRC of the segment header, if that could be read: the chain starts there.
    pub header_crc: Option<u32>,
    /// Where its content ends; `None` for the one that is written.
    pub end: Option<SegmentEnd>,
    /// Size of the file.
    pub bytes: u64,
    /// When a durable checkpoint first said that all of it is delivered.
    pub covered_since: Option<Duration>,
}

/// The only one who writes to the newest segment.
#[derive(Debug)]
pub(crate) struct Writer<File> {
    pub file: File,
    pub info: SegmentInfo,
    /// Where the next group starts; a multiple of the block size.
    pub at: u64,
    /// CRC of the last frame's header.
    pub chain: u32,
    /// After the last record written.
    pub position: Position,
    /// The last frame proves everything before it.
    pub proven: bool,
    pub sealed: bool,
    buffer: Vec<u8>,
}

impl<File: FsFile> Writer<File> {
    /// Writes the frames as one group. After an error nothing of it counts, and the next group
    /// goes to the same place: no block there holds acknowledged bytes.
    pub fn append(&mut self, frames: &[Frame], durable: Position) -> io::Result<u64> {
        self.buffer.clear();
        let mut chain = self.chain;
        let last = frames.len().saturating_sub(1);
        for (index, frame) in frames.iter().enumerate() {
            let place =
                Place { nonce: self.info.nonce, chain, durable, last_of_group: index == last };
            chain = frame.lay_out(place, &mut self.buffer);
        }
        let bytes = self.buffer.len() as u64;
        let outcome = write_all_at(&self.file, self.at, &self.buffer);
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        outcome?;
        self.at += bytes;
        self.chain = chain;
        if let Some(frame) = frames.last() {
            self.position = frame.end();
            self.proven = matches!(frame.kind, FrameKind::Mark | FrameKind::Seal);
        }
        Ok(bytes)
    }

    pub fn end(&self) -> SegmentEnd {
        SegmentEnd { position: self.position, byte: self.at, chain: self.chain }
    }

    /// Bytes for groups that are left; a block for the seal is kept back.
    pub fn room(&self, segment_bytes: u64) -> u64 {
        segment_bytes.saturating_sub(self.at).saturating_sub(BLOCK_BYTES)
    }
}

/// What identifies a new segment; the rest is in its link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewSegment {
    pub log_id: LogId,
    pub base: Position,
    /// Watermark in the link frame.
    pub durable: Position,
}

fn unfinished_name(number: SegmentNumber) -> String {
    format!("{}{UNFINISHED_SUFFIX}", segment_name(number))
}

/// Writes header and link to a file that has no segment name yet.
pub(crate) fn create<F: Fs>(
    fs: &F,
    new: NewSegment,
    link: &Link,
) -> Result<Writer<F::File>, Fault> {
    let name = unfinished_name(link.number);
    let path = || fs.path_of(&name);
    let mut nonce = [0; 8];
    fs.entropy(&mut nonce).map_err(|error| Fault::hard("draw a nonce for", path(), error))?;
    let header = SegmentHeader {
        log_id: new.log_id,
        number: link.number,
        incarnation: link.incarnation,
        nonce: u64::from_le_bytes(nonce),
        created_ms: u64::try_from(fs.unix_time().as_millis()).unwrap_or(u64::MAX),
    };
    let file = match fs.create_new(&name) {
        // Left behind by an attempt that found no space.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.unlink(&name).and_then(|()| fs.create_new(&name))
        }
        outcome => outcome,
    }
    .map_err(|error| Fault::soft("create", path(), error))?;

    let (mut buffer, header_crc) = header.encode();
    let frame = Frame::control(FrameKind::Link, new.base, link.encode());
    let place =
        Place { nonce: header.nonce, chain: header_crc, durable: new.durable, last_of_group: true };
    let chain = frame.lay_out(place, &mut buffer);
    let at = buffer.len() as u64;
    debug_assert_eq!(at, SEGMENT_HEADER_BYTES + align_block(frame.bytes()));
    if let Err(error) = write_all_at(&file, 0, &buffer) {
        // Give back what was taken; the next attempt removes it too, should this fail.
        fs.unlink(&name).ok();
        return Err(Fault::soft("write", path(), error));
    }
    buffer.clear();
    Ok(Writer {
        file,
        info: SegmentInfo {
            number: link.number,
            incarnation: link.incarnation,
            nonce: header.nonce,
            base: new.base,
            header_crc: Some(header_crc),
            end: None,
            bytes: at,
            covered_since: None,
        },
        at,
        chain,
        position: new.base,
        proven: true,
        sealed: false,
        buffer,
    })
}

/// Makes a created file durable and gives it its name.
pub(crate) fn publish<F: Fs>(fs: &F, writer: &mut Writer<F::File>) -> Result<(), Fault> {
    let unfinished = unfinished_name(writer.info.number);
    let name = segment_name(writer.info.number);
    writer.file.sync_data().map_err(|error| Fault::hard("sync", fs.path_of(&unfinished), error))?;
    fs.rename(&unfinished, &name)
        .map_err(|error| Fault::soft("rename", fs.path_of(&unfinished), error))?;
    fs.sync_dir()
        .map_err(|error| Fault::hard("sync the directory of", fs.path_of(&name), error))?;
    writer.info.bytes = writer.at;
    Ok(())
}

/// Reads up to `length` bytes from the start of a file.
pub(crate) fn read_start<File: FsFile>(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; to_usize(length)];
    let read = crate::fs::read_full_at(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
