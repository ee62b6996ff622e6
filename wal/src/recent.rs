//! The last groups, kept in memory for readers that follow closely.
//!
//! Direct writes leave nothing in the page cache, so without this a live reader would fetch from
//! the disk what was in memory a moment ago. It is a cache: what is not in it is in the file.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::buffer::BlockBuffer;
use crate::fs::FsFile;
use crate::position::SegmentNumber;
use crate::sync::{Mutex, lock};

/// Bound on the memory kept: a few groups, so that a reader has until then to take them.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// Buffers that wait for their next group.
const POOL_MAX: usize = 4;

#[derive(Debug)]
struct Kept {
    segment: SegmentNumber,
    at: u64,
    buffer: Arc<BlockBuffer>,
}

#[derive(Debug, Default)]
struct Groups {
    kept: VecDeque<Kept>,
    bytes: usize,
    pool: Vec<BlockBuffer>,
}

/// Shared by the writers and all readers.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Groups>);

impl Recent {
    /// A buffer for the next group.
    pub fn buffer(&self) -> BlockBuffer {
        lock(&self.0).pool.pop().unwrap_or_default()
    }

    /// Takes a buffer back that holds nothing worth keeping.
    pub fn give_back(&self, buffer: BlockBuffer) {
        let mut groups = lock(&self.0);
        if groups.pool.len() < POOL_MAX {
            groups.pool.push(buffer);
        }
    }

    /// Keeps a durable group and lets the oldest ones go.
    pub fn keep(&self, segment: SegmentNumber, at: u64, buffer: BlockBuffer) {
        let mut groups = lock(&self.0);
        groups.bytes += buffer.memory();
        groups.kept.push_back(Kept { segment, at, buffer: Arc::new(buffer) });
        while groups.bytes > BYTES_MAX
            && let Some(oldest) = groups.kept.pop_front()
        {
            groups.bytes -= oldest.buffer.memory();
            // A reader may still be copying from it.
            if let (Ok(buffer), true) =
                (Arc::try_unwrap(oldest.buffer), groups.pool.len() < POOL_MAX)
            {
                groups.pool.push(buffer);
            }
        }
    }

    /// Copies what it has from this byte on, as far as one group goes; 0 if it has nothing.
    fn read(&self, segment: SegmentNumber, at: u64, bytes: &mut [u8]) -> usize {
        let found = {
            let groups = lock(&self.0);
            // Ascending by segment and byte.
            let after =
                groups.kept.partition_point(|kept| (kept.segment, kept.at) <= (segment, at));
            after
                .checked_sub(1)
                .and_then(|index| groups.kept.get(index))
                .filter(|kept| kept.segment == segment)
                .map(|kept| (kept.at, Arc::clone(&kept.buffer)))
        };
        let Some((start, buffer)) = found else {
            return 0;
        };
        let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
        let there = buffer.as_slice().get(skip..).unwrap_or_default();
        let count = there.len().min(bytes.len());
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        count
    }
}

/// A segment file seen through the recent groups. For reading only.
pub(crate) struct RecentFile<File> {
    pub file: File,
    pub segment: SegmentNumber,
    pub recent: Arc<Recent>,
}

impl<File: FsFile> FsFile for RecentFile<File> {
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        match self.recent.read(self.segment, at, bytes) {
            0 => self.file.read_at(at, bytes),
            read => Ok(read),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(byte: u8, bytes: usize) -> BlockBuffer {
        let mut buffer = BlockBuffer::default();
        buffer.reset(bytes);
        buffer.extend_from_slice(&vec![byte; bytes]);
        buffer
    }

    #[test]
    fn only_what_is_kept_is_read_and_the_oldest_goes_first() {
        let recent = Recent::default();
        let (one, two) = (SegmentNumber::new(1), SegmentNumber::new(2));
        recent.keep(one, 8192, filled(1, 4096));
        recent.keep(one, 12288, filled(2, 8192));
        recent.keep(two, 4096, filled(3, 4096));
        let mut bytes = [0; 5000];
        assert_eq!(recent.read(one, 4096, &mut bytes), 0, "before the first");
        assert_eq!(recent.read(one, 8192 + 4000, &mut bytes), 96, "one group at a time");
        assert_eq!(bytes[95], 1);
        assert_eq!(recent.read(one, 12288, &mut bytes), 5000);
        assert_eq!(bytes, [2; 5000]);
        assert_eq!(recent.read(one, 20480, &mut bytes), 0, "behind the last");
        assert_eq!(recent.read(two, 8191, &mut bytes), 1);
        recent.keep(two, 8192, filled(4, BYTES_MAX));
        assert_eq!(recent.read(two, 4096, &mut bytes), 0, "let go");
        assert_eq!(recent.read(two, 8192, &mut bytes), 5000);
    }
}
