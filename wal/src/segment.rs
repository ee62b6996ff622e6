//! One segment file and the only one who writes to it.
//!
//! A file gets its segment name when its header is durable. The first segment of an opening is
//! made whole (link and what recovery puts into it) before that, because its name is what ends the
//! recovery; later ones are prepared ahead with the header alone, and get their link when their
//! turn comes: a file with a header and no link was never used.

use std::io;
use std::sync::Arc;

use crate::buffer::BlockBuffer;
use crate::commit::Offer;
use crate::error::{WalError, is_no_space};
use crate::format::frame::FrameKind;
use crate::format::link::{Link, SegmentEnd};
use crate::format::segment::SegmentHeader;
use crate::format::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, UNFINISHED_SUFFIX, segment_name, to_usize};
use crate::frame::{Frame, Place};
use crate::fs::{Access, Fs, FsFile, write_all_at};
use crate::position::{Incarnation, LogId, Position, SegmentNumber};

/// Groups that are in flight side by side, each through a file description of its own: the system
/// reports a failed write-back once per description, and each group must hear of its own.
pub(crate) const IN_FLIGHT_MAX: usize = 2;

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
        Self::Fatal(WalError::Io { op, path, source: Arc::new(error) })
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
    /// Milliseconds since 1970 at which its header was made, if that could be read.
    pub created_ms: Option<u64>,
    /// Bytes in it are not what they should be: its file is not used again.
    pub damaged: bool,
    /// Its file held an earlier segment.
    pub recycled: bool,
}

impl SegmentInfo {
    /// Whether nothing is written to it any more.
    pub fn is_finished(&self) -> bool {
        self.end.is_some()
    }
}

/// A file that has a header and a name and waits to become the newest segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    pub number: SegmentNumber,
    pub header: SegmentHeader,
    pub header_crc: u32,
    pub bytes: u64,
    /// Its bytes were written before, so that writing them again takes no space.
    pub written: bool,
}

/// Where the writer stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Where the next group starts; a multiple of the block size.
    pub at: u64,
    /// CRC of the last frame's header.
    pub chain: u32,
    /// After the last record laid out.
    pub position: Position,
    /// The last frame proves everything before it.
    pub proven: bool,
}

/// The only one who writes to the newest segment.
#[derive(Debug)]
pub(crate) struct Writer<File> {
    /// One description per group in flight.
    pub files: [Arc<File>; IN_FLIGHT_MAX],
    pub info: SegmentInfo,
    pub stands: Standing,
    /// Bytes of the file that were written before; 0 in a file that grows.
    pub prepared_bytes: u64,
    pub sealed: bool,
    buffer: BlockBuffer,
}

impl<File: FsFile> Writer<File> {
    /// Lays the frames out as one group behind the last one and moves on; returns the byte where
    /// the group belongs. Nothing is written.
    pub fn lay_out(&mut self, frames: &[Frame], durable: Position, into: &mut BlockBuffer) -> u64 {
        let at = self.stands.at;
        into.reset(to_usize(frames.iter().map(Frame::bytes).sum::<u64>() + BLOCK_BYTES));
        let last = frames.len().saturating_sub(1);
        let mut chain = self.stands.chain;
        for (index, frame) in frames.iter().enumerate() {
            let place =
                Place { nonce: self.info.nonce, chain, durable, last_of_group: index == last };
            chain = frame.lay_out(place, into);
        }
        if let Some(frame) = frames.last() {
            self.stands = Standing {
                at: at + into.as_slice().len() as u64,
                chain,
                position: frame.end(),
                proven: matches!(frame.kind, FrameKind::Mark | FrameKind::Seal | FrameKind::Link),
            };
        }
        at
    }

    /// Writes the frames as one group, while nothing else is in flight. After an error nothing of
    /// it counts, and the next group goes to the same place: no block there holds acknowledged
    /// bytes.
    pub fn append(&mut self, frames: &[Frame], durable: Position) -> io::Result<u64> {
        let before = self.stands;
        let mut buffer = std::mem::take(&mut self.buffer);
        let at = self.lay_out(frames, durable, &mut buffer);
        let [file, ..] = &self.files;
        let outcome = write_all_at(file.as_ref(), at, buffer.as_slice());
        self.buffer = buffer;
        if outcome.is_err() {
            self.stands = before;
        }
        outcome.map(|()| self.stands.at - at)
    }

    /// Syncs what [`append`](Self::append) wrote.
    pub fn sync(&self) -> io::Result<()> {
        let [file, ..] = &self.files;
        file.sync_data()
    }

    pub fn end(&self) -> SegmentEnd {
        let Standing { at, chain, position, .. } = self.stands;
        SegmentEnd { position, byte: at, chain }
    }

    /// What it offers to groups; a block for the seal is kept back.
    pub fn offer(&self, segment_bytes: u64) -> Offer {
        let prepared = self.prepared_bytes > self.stands.at;
        let size = if prepared { self.prepared_bytes } else { segment_bytes };
        Offer { room: size.saturating_sub(self.stands.at).saturating_sub(BLOCK_BYTES), prepared }
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

pub(crate) fn unfinished_name(number: SegmentNumber) -> String {
    format!("{}{UNFINISHED_SUFFIX}", segment_name(number))
}

/// A header for a new file, with a nonce that no other file has.
pub(crate) fn new_header<F: Fs>(
    fs: &F,
    log_id: LogId,
    number: SegmentNumber,
    incarnation: Incarnation,
    recycled: bool,
) -> Result<SegmentHeader, Fault> {
    let mut nonce = [0; 8];
    fs.entropy(&mut nonce).map_err(|error| {
        Fault::hard("draw a nonce for", fs.path_of(&segment_name(number)), error)
    })?;
    Ok(SegmentHeader {
        log_id,
        number,
        incarnation,
        nonce: if bug!(SameNonce) { 0 } else { u64::from_le_bytes(nonce) },
        created_ms: u64::try_from(fs.unix_time().as_millis()).unwrap_or(u64::MAX),
        recycled,
    })
}

/// Creates a file that has no segment name yet, in place of what an attempt left that found no
/// space.
pub(crate) fn create_unfinished<F: Fs>(fs: &F, number: SegmentNumber) -> Result<F::File, Fault> {
    let name = unfinished_name(number);
    match fs.create_new(&name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs.unlink(&name).and_then(|()| fs.create_new(&name))
        }
        outcome => outcome,
    }
    .map_err(|error| Fault::soft("create", fs.path_of(&name), error))
}

fn open_for_groups<F: Fs>(fs: &F, name: &str) -> Result<[Arc<F::File>; IN_FLIGHT_MAX], Fault> {
    let open = || {
        fs.open(name, Access::WriteBlocks)
            .map(Arc::new)
            .map_err(|error| Fault::soft("open", fs.path_of(name), error))
    };
    Ok([open()?, open()?])
}

/// Writes header and link to a file that has no segment name yet: the first segment of an opening.
pub(crate) fn create<F: Fs>(
    fs: &F,
    new: NewSegment,
    link: &Link,
) -> Result<Writer<F::File>, Fault> {
    let name = unfinished_name(link.number);
    let header = new_header(fs, new.log_id, link.number, link.incarnation, false)?;
    let file = create_unfinished(fs, link.number)?;
    let (block, header_crc) = header.encode();
    let made = write_all_at(&file, 0, &block)
        .and_then(|()| file.sync_data())
        .map_err(|error| Fault::soft("write", fs.path_of(&name), error));
    drop(file);
    let prepared = Prepared {
        number: link.number,
        header,
        header_crc,
        bytes: SEGMENT_HEADER_BYTES,
        written: false,
    };
    let written = made
        .and_then(|()| begin(fs, &name, prepared, new.base))
        .and_then(|mut writer| write_link(fs, &mut writer, new, link).map(|()| writer));
    if written.is_err() {
        // Give back what was taken; the next attempt removes it too, should this fail.
        fs.unlink(&name).ok();
    }
    written
}

/// Opens a prepared file, under whatever name it has, for its link and its groups.
pub(crate) fn begin<F: Fs>(
    fs: &F,
    name: &str,
    prepared: Prepared,
    base: Position,
) -> Result<Writer<F::File>, Fault> {
    Ok(Writer {
        files: open_for_groups(fs, name)?,
        info: SegmentInfo {
            number: prepared.number,
            incarnation: prepared.header.incarnation,
            nonce: prepared.header.nonce,
            base,
            header_crc: Some(prepared.header_crc),
            end: None,
            bytes: prepared.bytes,
            created_ms: Some(prepared.header.created_ms),
            damaged: false,
            recycled: prepared.header.recycled,
        },
        stands: Standing {
            at: SEGMENT_HEADER_BYTES,
            chain: prepared.header_crc,
            position: base,
            proven: true,
        },
        prepared_bytes: if prepared.written { prepared.bytes } else { 0 },
        sealed: false,
        buffer: BlockBuffer::default(),
    })
}

/// Writes the link; it is not durable yet.
pub(crate) fn write_link<F: Fs>(
    fs: &F,
    writer: &mut Writer<F::File>,
    new: NewSegment,
    link: &Link,
) -> Result<(), Fault> {
    let frame = Frame::control(FrameKind::Link, new.base, link.encode());
    writer.append(&[frame], new.durable).map_err(|error| {
        Fault::soft("write", fs.path_of(&segment_name(writer.info.number)), error)
    })?;
    writer.info.bytes = writer.info.bytes.max(writer.stands.at);
    Ok(())
}

/// Makes a created file durable and gives it its name.
pub(crate) fn publish<F: Fs>(fs: &F, writer: &mut Writer<F::File>) -> Result<(), Fault> {
    let unfinished = unfinished_name(writer.info.number);
    if !bug!(NoSyncOfRecovery) {
        writer.sync().map_err(|error| Fault::hard("sync", fs.path_of(&unfinished), error))?;
    }
    name_it(fs, writer.info.number)?;
    writer.info.bytes = writer.stands.at;
    Ok(())
}

/// Gives an unfinished file its segment name, durably.
pub(crate) fn name_it<F: Fs>(fs: &F, number: SegmentNumber) -> Result<(), Fault> {
    let (unfinished, name) = (unfinished_name(number), segment_name(number));
    fs.rename(&unfinished, &name)
        .map_err(|error| Fault::soft("rename", fs.path_of(&unfinished), error))?;
    if bug!(NoDirectorySync) {
        return Ok(());
    }
    fs.sync_dir().map_err(|error| Fault::hard("sync the directory of", fs.path_of(&name), error))
}

/// Reads up to `length` bytes from the start of a file.
pub(crate) fn read_start<File: FsFile>(file: &File, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; to_usize(length)];
    let read = crate::fs::read_full_at(file, 0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
