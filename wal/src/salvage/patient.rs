//! A file whose unreadable blocks read as bytes that are no frame.
//!
//! A disk that reports errors for some blocks still gives the others. Only reading for salvage may
//! do this: the log itself never takes a read error for anything else.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::format::{BLOCK_BYTES, to_usize};
use crate::fs::FsFile;

/// Neither zeros nor the start of a frame or a segment.
const UNREADABLE_BYTE: u8 = 0xee;

/// Reads around errors of the medium, and remembers where they were.
pub(super) struct Patient<File> {
    file: File,
    /// First bytes of blocks that could not be read.
    unreadable: Mutex<BTreeSet<u64>>,
}

impl<File: FsFile> Patient<File> {
    pub fn new(file: File) -> Self {
        Self { file, unreadable: Mutex::new(BTreeSet::new()) }
    }

    /// The first unreadable block at or behind `from` and before `to`.
    pub fn unreadable(&self, from: u64, to: u64) -> bool {
        let blocks = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.range(from..to).next().is_some()
    }
}

/// Errors of the medium, not of the call.
fn is_medium(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    error.raw_os_error().map_or(error.kind() == io::ErrorKind::Other, |code| code == EIO)
}

impl<File: FsFile> FsFile for Patient<File> {
    fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        match self.file.read_at(at, bytes) {
            Err(error) if is_medium(&error) => {}
            outcome => return outcome,
        }
        // The rest of one block at a time, so that an error costs one block.
        let block = at - at % BLOCK_BYTES;
        let length = to_usize(block + BLOCK_BYTES - at).min(bytes.len());
        let rest = bytes.get_mut(..length).unwrap_or_default();
        match self.file.read_at(at, rest) {
            Err(error) if is_medium(&error) => {}
            outcome => return outcome,
        }
        let left = self.file.len()?.saturating_sub(at);
        let length = length.min(to_usize(left));
        rest.get_mut(..length).unwrap_or_default().fill(UNREADABLE_BYTE);
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).insert(block);
        Ok(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::read_full_at;

    /// 0, 1, 2 ... in every block, and one block that the medium has lost.
    struct Disk {
        lost: u64,
    }

    const BLOCKS: u64 = 5;

    impl FsFile for Disk {
        fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
            let count = bytes.len().min(to_usize((BLOCKS * BLOCK_BYTES).saturating_sub(at)));
            let touched = at / BLOCK_BYTES..(at + count as u64).div_ceil(BLOCK_BYTES);
            if touched.contains(&self.lost) {
                return Err(io::Error::from_raw_os_error(5));
            }
            for (byte, at) in bytes.iter_mut().take(count).zip(at..) {
                *byte = u8::try_from(at / BLOCK_BYTES).unwrap();
            }
            Ok(count)
        }

        fn sync_data(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn len(&self) -> io::Result<u64> {
            Ok(BLOCKS * BLOCK_BYTES)
        }

        fn set_len(&self, _bytes: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn a_lost_block_costs_itself_and_is_remembered() {
        let file = Patient::new(Disk { lost: 3 });
        let mut bytes = vec![0xff; to_usize(BLOCKS * BLOCK_BYTES) + 100];
        let read = read_full_at(&file, 0, &mut bytes).unwrap();
        assert_eq!(read as u64, BLOCKS * BLOCK_BYTES);
        for (block, bytes) in bytes[..read].chunks(crate::format::BLOCK).enumerate() {
            let wanted = if block == 3 { UNREADABLE_BYTE } else { u8::try_from(block).unwrap() };
            assert!(bytes.iter().all(|byte| *byte == wanted), "block {block}");
        }
        assert!(file.unreadable(0, 4 * BLOCK_BYTES));
        assert!(!file.unreadable(0, 3 * BLOCK_BYTES) && !file.unreadable(4 * BLOCK_BYTES, 1 << 30));
    }

    #[test]
    fn errors_that_are_not_the_mediums_are_errors() {
        struct Denied;
        impl FsFile for Denied {
            fn write_at(&self, _at: u64, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn read_at(&self, _at: u64, _bytes: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::PermissionDenied.into())
            }
            fn sync_data(&self) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
            fn len(&self) -> io::Result<u64> {
                Ok(BLOCK_BYTES)
            }
            fn set_len(&self, _bytes: u64) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
        let outcome = Patient::new(Denied).read_at(0, &mut [0; 10]);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
