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
const QUARANTINE_DIR: &str = "quarantine";
/// Magic numbers of file systems that write everything to a new place: btrfs, bcachefs, ZFS.
const COPY_ON_WRITE: [i64; 3] = [0x9123_683e, 0xca45_1a4e, 0x2fc1_2fc1];

/// A directory on the real disk.
#[derive(Debug)]
pub struct DiskFs {
    path: PathBuf,
    dir: File,
    direct: bool,
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
        Ok(Self { path, dir: File::from(dir), direct: true })
    }

    /// Writes through the page cache even where direct writes are possible: every group then costs
    /// a write and an fdatasync. For file systems whose direct writes are slow or broken.
    #[must_use]
    pub fn buffered(mut self) -> Self {
        self.direct = false;
        self
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
        self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map(DiskFile::buffered)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<DiskFile> {
        match access {
            Access::Read => self.open_at(name, OFlags::RDONLY).map(DiskFile::buffered),
            Access::ReadWrite => self.open_at(name, OFlags::RDWR).map(DiskFile::buffered),
            Access::WriteBlocks if self.direct => {
                match self.open_at(name, OFlags::RDWR | OFlags::DIRECT | OFlags::DSYNC) {
                    Ok(file) => Ok(DiskFile { file, durable_writes: true }),
                    // This file system has no direct writes.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        self.open(name, Access::ReadWrite)
                    }
                    Err(error) => Err(error),
                }
            }
            Access::WriteBlocks => self.open(name, Access::ReadWrite),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn quarantine(&self, name: &str) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.dir, QUARANTINE_DIR, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let kept = format!("{QUARANTINE_DIR}/{name}");
        match rustix::fs::linkat(&self.dir, name, &self.dir, &kept, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn quarantined(&self) -> io::Result<Vec<(String, u64)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(&self.dir, QUARANTINE_DIR, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut files = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
            if let (Ok(name), true) = (name.to_str(), file) {
                files.push((name.to_owned(), u64::try_from(stat.st_size).unwrap_or(0)));
            }
        }
        Ok(files)
    }

    fn overwrites_in_place(&self) -> bool {
        rustix::fs::fstatfs(&self.dir).is_ok_and(|stat| !COPY_ON_WRITE.contains(&stat.f_type))
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
pub struct DiskFile {
    file: File,
    /// Opened so that a write returns when its bytes are on the medium.
    durable_writes: bool,
}

impl DiskFile {
    fn buffered(file: File) -> Self {
        Self { file, durable_writes: false }
    }
}

impl FsFile for DiskFile {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        retry_interrupted(|| self.file.write_at(bytes, at))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        retry_interrupted(|| self.file.read_at(bytes, at))
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.durable_writes {
            return Ok(());
        }
        // Not repeated, not even after an interruption: a second sync may report success for
        // pages the first one lost.
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
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
