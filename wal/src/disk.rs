//! The real disk: one directory, opened once, everything relative to it.
//!
//! Directories are made private (0700), files too (0600); a symbolic link in the place of a log
//! file is refused, and no file leaks into child processes.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use crate::fs::{Access, Fs, FsFile, Space};

const LOCK_NAME: &str = "LOCK";

/// A directory on the real disk.
#[derive(Debug)]
pub struct DiskFs {
    path: PathBuf,
    dir: File,
}

impl DiskFs {
    /// Opens the directory and creates it (with its parents) if it is missing; its parent is
    /// synced then, so that a new log does not vanish with its directory.
    ///
    /// # Errors
    /// What the system says: no permission, not a directory, read-only file system.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Self> {
        let path = dir.as_ref().to_path_buf();
        let missing: Vec<&Path> =
            path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        for created in missing {
            let parent = match created.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            File::open(parent)?.sync_all()?;
        }
        Self::open_existing(path)
    }

    /// Opens the directory for looking only: nothing is created.
    ///
    /// # Errors
    /// What the system says, for example that there is no such directory.
    pub fn open_existing(dir: impl AsRef<Path>) -> io::Result<Self> {
        let path = dir.as_ref().to_path_buf();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { path, dir: File::from(dir) })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::io::retry_on_intr(|| rustix::fs::openat(&self.dir, name, flags, mode))?;
        Ok(File::from(file))
    }
}

impl Fs for DiskFs {
    type File = DiskFile;
    type Lock = DiskLock;

    fn create_new(&self, name: &str) -> io::Result<DiskFile> {
        self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map(DiskFile)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<DiskFile> {
        let flags = match access {
            Access::Read => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        self.open_at(name, flags).map(DiskFile)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            // The log's own names are plain text; what is not belongs to somebody else.
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.dir)?;
        Ok(Space {
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn try_lock(&self) -> io::Result<Option<DiskLock>> {
        let file = self.open_at(LOCK_NAME, OFlags::RDWR | OFlags::CREATE)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(DiskLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn entropy(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += rustix::io::retry_on_intr(|| {
                rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty())
            })?;
        }
        Ok(())
    }

    fn unix_time(&self) -> Duration {
        // A clock before 1970 is a wrong clock; the time is for people only.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn path_of(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

/// Holds the directory's `flock` until it is dropped; the kernel drops it with the process.
#[derive(Debug)]
pub struct DiskLock {
    _file: File,
}

/// A file on the real disk.
#[derive(Debug)]
pub struct DiskFile(File);

impl FsFile for DiskFile {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        retry_interrupted(|| self.0.write_at(bytes, at))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        retry_interrupted(|| self.0.read_at(bytes, at))
    }

    fn sync_data(&self) -> io::Result<()> {
        // Not repeated, not even after an interruption: a second sync may report success for
        // pages the first one lost.
        Ok(rustix::fs::fdatasync(&self.0)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
}

fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}
