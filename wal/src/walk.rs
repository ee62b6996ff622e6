//! From frame to frame through one segment file, and past damage to the next whole frame.
//!
//! Reader, recovery and scan walk with the same code. The walk promises that it never reads at or
//! behind its limit, that it never allocates more than one frame and a read-ahead, and that what
//! it yields carries the segment's nonce and, next to each other, the right chain.
//! What damage means is not its business.

use std::io;

use crate::format::frame::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader};
use crate::format::{BLOCK, Malformed, align8, to_usize};
use crate::frame::FrameBytes;
use crate::fs::{FsFile, read_full_at};
use crate::position::Position;

const READ_AHEAD_BYTES: u64 = 256 * 1024;
/// Enough for most links.
const FIRST_FRAME_BYTES: u64 = 8 * 1024;

/// A frame whose header is in order; annotation and body are not checked yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub at: u64,
    pub header: FrameHeader,
    /// CRC of its header.
    pub crc: u32,
}

#[derive(Debug)]
pub(crate) enum Step {
    Frame(Found),
    /// No frame here. The next call looks for the next whole one.
    Damage {
        at: u64,
        reason: Malformed,
    },
    /// The limit. Grows in a live segment; then the walk goes on.
    End,
}

/// The state to come back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bookmark {
    at: u64,
    chain: Option<u32>,
    expected: Option<Position>,
    lost: bool,
}

pub(crate) struct Walk<File> {
    file: File,
    nonce: u64,
    limit: u64,
    place: Bookmark,
    window: Vec<u8>,
    window_at: u64,
    read_ahead: u64,
    /// The end of the last frame.
    whole_to: u64,
    /// The file is full of another segment's frames.
    recycled: bool,
    /// Where the last thing ends that was begun and did not become a frame.
    begun_to: u64,
}

impl<File: FsFile> Walk<File> {
    /// `chain` and `expected` are `None` where nobody knows what came before.
    pub fn new(
        file: File,
        nonce: u64,
        at: u64,
        chain: Option<u32>,
        expected: Option<Position>,
        limit: u64,
    ) -> Self {
        Self {
            file,
            nonce,
            limit,
            place: Bookmark { at, chain, expected, lost: false },
            window: Vec::new(),
            window_at: 0,
            read_ahead: READ_AHEAD_BYTES,
            whole_to: at,
            recycled: false,
            begun_to: 0,
        }
    }

    /// Reads only a little ahead: for the first frame of each of many files.
    pub fn first_frame_only(mut self) -> Self {
        self.read_ahead = FIRST_FRAME_BYTES;
        self
    }

    /// For a file that was used before: in it, only what has this segment's nonce is torn.
    pub fn recycled(mut self, recycled: bool) -> Self {
        self.recycled = recycled;
        self
    }

    /// How far behind the last frame somebody wrote something that did not become one: in a file
    /// that was filled with zeros everything else, in a recycled one a header with the nonce.
    pub fn torn_bytes(&self) -> u64 {
        self.begun_to.saturating_sub(self.whole_to)
    }

    /// The limit may only grow.
    pub fn extend(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    pub fn bookmark(&self) -> Bookmark {
        self.place
    }

    pub fn go_back(&mut self, bookmark: Bookmark) {
        self.place = bookmark;
    }

    /// The file it walks through.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The byte where the walk stands.
    pub fn at(&self) -> u64 {
        self.place.at
    }

    pub fn next(&mut self) -> io::Result<Step> {
        if self.place.lost {
            self.read_ahead = READ_AHEAD_BYTES;
            return self.search();
        }
        let at = self.place.at;
        if at >= self.limit {
            return Ok(Step::End);
        }
        match self.inspect(at)? {
            Ok(found) => Ok(self.arrive(found)),
            Err(reason) => {
                self.place.lost = true;
                self.note_begun(at)?;
                Ok(Step::Damage { at, reason })
            }
        }
    }

    /// Goes on past damage until it meets a frame; false if there is none up to the limit.
    pub fn meets_a_frame(&mut self) -> io::Result<bool> {
        loop {
            match self.next()? {
                Step::Frame(_) => return Ok(true),
                Step::Damage { .. } => {}
                Step::End => return Ok(false),
            }
        }
    }

    /// Annotation and body of a frame, each checked.
    pub fn bytes(&mut self, found: &Found) -> io::Result<FrameBytes<'_>> {
        let bytes = self.read(found.at, found.header.frame_bytes())?;
        Ok(FrameBytes::check(&found.header, bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default()))
    }

    fn arrive(&mut self, found: Found) -> Step {
        self.whole_to = found.header.next_at(found.at);
        self.place = Bookmark {
            at: self.whole_to,
            chain: Some(found.crc),
            expected: Some(found.header.end()),
            lost: false,
        };
        Step::Frame(found)
    }

    /// The frame that must start at `at`.
    fn inspect(&mut self, at: u64) -> io::Result<Result<Found, Malformed>> {
        let (nonce, limit, place) = (self.nonce, self.limit, self.place);
        let (header, crc) = match FrameHeader::decode(self.read(at, FRAME_HEADER_BYTES as u64)?) {
            Ok(decoded) => decoded,
            Err(reason) => return Ok(Err(reason)),
        };
        let follows = if place.lost {
            place.expected.is_none_or(|expected| header.first >= expected)
        } else {
            place.chain.is_none_or(|chain| header.chain == chain)
                && place.expected.is_none_or(|expected| header.first == expected)
        };
        Ok(if header.nonce != nonce && !bug!(AnyNonce) {
            Err(Malformed::Nonce)
        } else if !follows {
            Err(Malformed::Chain)
        } else if at.checked_add(header.frame_bytes()).is_none_or(|end| end > limit) {
            Err(Malformed::Short)
        } else {
            Ok(Found { at, header, crc })
        })
    }

    /// The next whole frame in steps of 8 bytes.
    fn search(&mut self) -> io::Result<Step> {
        let mut at = align8(self.place.at + 1);
        while at.saturating_add(FRAME_HEADER_BYTES as u64) <= self.limit {
            let window = self.read(at, FRAME_HEADER_BYTES as u64)?;
            if window.len() < FRAME_HEADER_BYTES {
                break; // the file is shorter than it should be
            }
            let length = window.len() as u64;
            let (written, candidate) = look_through(window);
            if written > 0 && !self.recycled {
                self.begun_to = at + written as u64;
            }
            match candidate {
                None => at += align8(length),
                Some(start) => {
                    at += start as u64;
                    if let Ok(found) = self.inspect(at)? {
                        return Ok(self.arrive(found));
                    }
                    self.note_begun(at)?;
                    at += 8;
                }
            }
        }
        // Nothing whole up to the limit; should it grow, the search goes on from there.
        self.place.at = self.place.at.max(at.saturating_sub(8));
        Ok(Step::End)
    }

    /// Notes what begins at `at` and is no frame.
    fn note_begun(&mut self, at: u64) -> io::Result<()> {
        let (nonce, limit, recycled) = (self.nonce, self.limit, self.recycled);
        let bytes = self.read(at, FRAME_HEADER_BYTES as u64)?;
        let end = if recycled {
            let header = FrameHeader::decode(bytes).ok().filter(|(found, _)| found.nonce == nonce);
            header.map(|(header, _)| at.saturating_add(header.frame_bytes()).min(limit))
        } else {
            let written = bytes.iter().take(8).rposition(|byte| *byte != 0);
            written.map(|last| at + last as u64 + 1)
        };
        self.begun_to = self.begun_to.max(end.unwrap_or(0));
        Ok(())
    }

    /// At least `length` bytes from `at`, as far as the limit and the file go; more if they are in
    /// memory already.
    fn read(&mut self, at: u64, length: u64) -> io::Result<&[u8]> {
        let wanted = length.min(self.limit.saturating_sub(at));
        let window_end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + wanted > window_end {
            let ahead = wanted.max(self.read_ahead).min(self.limit.saturating_sub(at));
            self.window.resize(to_usize(ahead), 0);
            self.window_at = at;
            let outcome = read_full_at(&self.file, at, &mut self.window);
            self.window.truncate(*outcome.as_ref().unwrap_or(&0));
            outcome?;
        }
        Ok(self.window.get(to_usize(at - self.window_at)..).unwrap_or_default())
    }
}

/// Up to the first place where a frame may start, and where that is: the end of what is not zero.
/// Zeros, of which a prepared file is full, are passed over a block at a time.
fn look_through(window: &[u8]) -> (usize, Option<usize>) {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let mut written = 0;
    for (at, block) in (0..).step_by(BLOCK).zip(window.chunks(BLOCK)) {
        if ZEROS.starts_with(block) {
            continue;
        }
        let start = block.chunks(8).position(|chunk| chunk.starts_with(&FRAME_MAGIC));
        let start = start.map(|chunks| chunks * 8);
        let before = block.get(..start.unwrap_or(block.len())).unwrap_or_default();
        if let Some(last) = before.iter().rposition(|byte| *byte != 0) {
            written = at + last + 1;
        }
        if let Some(start) = start {
            return (written, Some(at + start));
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::buffer::BlockBuffer;
    use crate::config::Compression;
    use crate::frame::{Encoded, Frame, Place};

    /// A file that cannot be written.
    struct Bytes(Vec<u8>);

    impl FsFile for Bytes {
        fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
            let rest = self.0.get(to_usize(at)..).unwrap_or_default();
            // Short on purpose.
            let count = rest.len().min(bytes.len()).min(1000);
            bytes[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }

        fn sync_data(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn set_len(&self, _bytes: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    const NONCE: u64 = 77;

    fn frame(first: u64, records: &[&[u8]]) -> Frame {
        let mut batch = Batch::new();
        for record in records {
            batch.push(record).unwrap();
        }
        Encoded::of(&batch, Compression::None).into_frame(batch, Position::new(first))
    }

    fn lay(frame: &Frame, nonce: u64, chain: u32, out: &mut Vec<u8>) -> u32 {
        let place = Place { nonce, chain, durable: Position::ZERO, last_of_group: true };
        let mut group = BlockBuffer::default();
        group.reset(to_usize(frame.bytes()) + 4096);
        let crc = frame.lay_out(place, &mut group);
        out.extend_from_slice(group.as_slice());
        crc
    }

    /// First positions of the frames found, `None` for damage.
    fn walk(bytes: Vec<u8>, limit: u64) -> Vec<Option<u64>> {
        let mut walk = Walk::new(Bytes(bytes), NONCE, 0, Some(5), Some(Position::ZERO), limit);
        let mut seen = Vec::new();
        loop {
            match walk.next().unwrap() {
                Step::Frame(found) => seen.push(Some(found.header.first.get())),
                Step::Damage { .. } => seen.push(None),
                Step::End => return seen,
            }
        }
    }

    #[test]
    fn a_stale_frame_that_fits_in_all_but_the_chain_is_not_taken() {
        let mut bytes = Vec::new();
        let chain = lay(&frame(0, &[b"one"]), NONCE, 5, &mut bytes);
        // Left by an earlier attempt to write here: same file, right position, another past.
        lay(&frame(1, &[b"stale"]), NONCE, chain ^ 1, &mut bytes);
        let mut walk = Walk::new(Bytes(bytes), NONCE, 0, Some(5), Some(Position::ZERO), 8192);
        assert!(matches!(walk.next().unwrap(), Step::Frame(_)));
        assert!(matches!(walk.next().unwrap(), Step::Damage { reason: Malformed::Chain, .. }));
    }

    #[test]
    fn frames_of_another_segment_are_passed_over() {
        let mut bytes = Vec::new();
        let chain = lay(&frame(0, &[b"one"]), NONCE, 5, &mut bytes);
        lay(&frame(1, &[b"recycled"]), NONCE + 1, chain, &mut bytes);
        lay(&frame(2, &[b"three"]), NONCE, 0, &mut bytes);
        assert_eq!(walk(bytes, 12288), [Some(0), None, Some(2)]);
    }

    #[test]
    fn a_frame_inside_a_record_is_not_met_on_the_way() {
        let mut inner = Vec::new();
        lay(&frame(1, &[b"inner"]), NONCE, 0, &mut inner);
        let mut bytes = Vec::new();
        let chain = lay(&frame(0, &[&inner]), NONCE, 5, &mut bytes);
        let next = bytes.len() as u64;
        lay(&frame(1, &[b"two"]), NONCE, chain, &mut bytes);
        assert_eq!(walk(bytes.clone(), next), [Some(0)]);
        assert_eq!(walk(bytes, next + 4096), [Some(0), Some(1)]);
    }

    #[test]
    fn nothing_at_the_limit_or_behind_the_end_is_read() {
        let mut bytes = Vec::new();
        lay(&frame(0, &[b"one"]), NONCE, 5, &mut bytes);
        assert_eq!(walk(bytes.clone(), 50), [None]);
        assert_eq!(walk(bytes.clone(), 4096), [Some(0)]);
        // The file is shorter than its successor says.
        assert_eq!(walk(bytes, 1 << 30), [Some(0), None]);
        assert_eq!(walk(vec![0; 300_000], 300_000), [None]);
    }
}
