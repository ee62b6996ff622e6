//! The file operations the log needs, as a trait, so that tests can bring a disk that fails, tears
//! and forgets.
//!
//! Names are relative to one directory. All calls are synchronous. Randomness and the wall clock
//! come from here too, so that a simulated run repeats exactly.

use std::io;
use std::time::Duration;

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing in place.
    ReadWrite,
    /// Writing whole blocks from memory that starts on a block. Where the file system takes direct
    /// writes, each of them is durable when it returns, and `sync_data` has nothing left to do.
    WriteBlocks,
}

/// What is left on the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that may still be written.
    pub free_bytes: u64,
    /// Bytes of the whole file system.
    pub total_bytes: u64,
}

/// One directory with the log's files.
pub trait Fs: Send + Sync + 'static {
    /// An open file.
    type File: FsFile;
    /// Held as long as the directory is ours; dropping it lets others in.
    type Lock: Send + Sync;

    /// Creates a file for reading and writing; an error of kind `AlreadyExists` if it exists.
    ///
    /// # Errors
    /// What the system says.
    fn create_new(&self, name: &str) -> io::Result<Self::File>;

    /// Opens an existing file.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str, access: Access) -> io::Result<Self::File>;

    /// Gives a file another name, replacing what has it; durable after [`sync_dir`](Fs::sync_dir).
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name; durable after [`sync_dir`](Fs::sync_dir).
    ///
    /// # Errors
    /// What the system says.
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Keeps the file's present bytes under `quarantine/`, whatever becomes of the name; nothing to
    /// do if they are kept already. Takes no space as long as the file itself exists.
    ///
    /// # Errors
    /// What the system says; the caller may go on without the copy.
    fn quarantine(&self, name: &str) -> io::Result<()>;

    /// Names and sizes of the files in quarantine.
    ///
    /// # Errors
    /// What the system says.
    fn quarantined(&self) -> io::Result<Vec<(String, u64)>>;

    /// Whether bytes that were written once can be written again in place, without new space.
    /// Copy-on-write file systems say no: preparing files ahead is useless there.
    fn overwrites_in_place(&self) -> bool;

    /// The names of all files, in any order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes created, renamed and removed names durable.
    ///
    /// # Errors
    /// What the system says; the caller must poison the log.
    fn sync_dir(&self) -> io::Result<()>;

    /// What is left on the file system.
    ///
    /// # Errors
    /// What the system says.
    fn space(&self) -> io::Result<Space>;

    /// Takes the directory for this process; `None` if another one has it.
    ///
    /// # Errors
    /// What the system says.
    fn try_lock(&self) -> io::Result<Option<Self::Lock>>;

    /// Fills the buffer with random bytes.
    ///
    /// # Errors
    /// What the system says.
    fn entropy(&self, bytes: &mut [u8]) -> io::Result<()>;

    /// Time since 1970, for people who look at a segment; the log never computes with it.
    fn unix_time(&self) -> Duration;

    /// The full name of a file, for messages.
    fn path_of(&self, name: &str) -> String;
}

/// One open file.
pub trait FsFile: Send + Sync {
    /// Writes at a byte; may write less than asked, never nothing.
    ///
    /// # Errors
    /// What the system says; an interrupted call is repeated inside.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Reads at a byte; may read less than asked, nothing only at the end of the file.
    ///
    /// # Errors
    /// What the system says; an interrupted call is repeated inside.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize>;

    /// Makes the data and the size durable.
    ///
    /// # Errors
    /// Whatever it is, the caller must poison the log and never try again.
    fn sync_data(&self) -> io::Result<()>;

    /// The file's size in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or extends the file; what is added reads as zeros.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
}

/// Writes everything, however short the single writes are.
pub(crate) fn write_all_at<File: FsFile>(file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(at + done as u64, rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => done += written,
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends; returns how much there was.
pub(crate) fn read_full_at<File: FsFile>(
    file: &File,
    at: u64,
    bytes: &mut [u8],
) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(at + done as u64, rest)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
