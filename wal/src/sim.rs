//! A disk in memory that forgets, tears and fails, all from one seed.
//!
//! Every file has a live image (what a read sees, the page cache) and a durable one (what survives
//! a power cut), with dirty sectors between them; names have both as well. A [`SimDisk`] is a
//! handle of the machine's present boot: [`crash`](SimDisk::crash) ends the boot, and everything
//! that was opened through it fails from then on, as a dead process does nothing.
//!
//! It does not model time, permissions or other processes.

mod image;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fs::{Access, Fs, FsFile, Space};
use image::{Disk, Fate, Image, NameChange, Random, stopped};

/// What a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashLevel {
    /// The process is killed: all that was written survives, durable or not.
    Kill,
    /// Power is cut: any subset of the unsynced sectors survives, and sizes and names that were
    /// not synced survive or not, each on its own.
    PowerCut,
    /// As `PowerCut`, and an unsynced sector may end in garbage.
    TornSectors,
    /// As `PowerCut`, and the last sync of a file may never have happened: the disk lied.
    LostSyncs,
}

/// An error that one operation is to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// Input/output error. A sync that reports it has lost the pages: later syncs succeed without
    /// them.
    Eio,
    /// No space left on the device.
    NoSpace,
}

/// A handle; clones share the disk and the boot.
#[derive(Clone, Debug)]
pub struct SimDisk {
    disk: Arc<Mutex<Disk>>,
    boot: u64,
}

impl SimDisk {
    /// An empty disk. Everything it does by chance follows from the seed, the size of its sectors
    /// (512 or 4096 bytes) included.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let sector = if random.one_in(2) { 512 } else { 4096 };
        let entropy = Random(random.next());
        let disk = Disk {
            random,
            entropy,
            boot: 0,
            locked: false,
            sector,
            files: BTreeMap::new(),
            next_file: 0,
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            capacity: None,
            overwrites_in_place: true,
            operations: 0,
            stop_at: None,
            stopped: false,
            injected: BTreeMap::new(),
            broken_from: None,
            lies: false,
            fired: 0,
        };
        Self { disk: Arc::new(Mutex::new(disk)), boot: 0 }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the boot and starts the next: returns its handle; all older handles, files and locks
    /// are dead. Planned faults and the stop are forgotten, the capacity stays.
    #[must_use = "the old handle is dead"]
    pub fn crash(&self, level: CrashLevel) -> SimDisk {
        let mut disk = self.disk();
        if level == CrashLevel::LostSyncs {
            disk.unsync();
        }
        if level != CrashLevel::Kill {
            let keep_percent = disk.random.next() % 5 * 25;
            disk.settle_data(keep_percent, level == CrashLevel::TornSectors);
            let keep_percent = disk.random.next() % 5 * 25;
            disk.settle_names(keep_percent);
        }
        disk.boot += 1;
        disk.locked = false;
        disk.stopped = false;
        disk.stop_at = None;
        disk.injected.clear();
        disk.broken_from = None;
        SimDisk { disk: Arc::clone(&self.disk), boot: disk.boot }
    }

    /// An independent copy of the disk in its present state, with a handle of the same boot and
    /// the lock free.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        let mut copy = self.disk().clone();
        copy.locked = false;
        SimDisk { boot: self.boot, disk: Arc::new(Mutex::new(copy)) }
    }

    /// The machine stops in the middle of the `operations`-th operation from now (1 is the next
    /// one); from then on every operation fails until [`crash`](SimDisk::crash).
    pub fn fail_after(&self, operations: u64) {
        let mut disk = self.disk();
        disk.stop_at = Some(disk.operations.saturating_add(operations.max(1)));
    }

    /// Whether the planned stop has come.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.disk().stopped
    }

    /// Operations so far, on all boots.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Makes the `operations`-th operation from now (1 is the next one) report an error.
    pub fn inject(&self, operations: u64, error: Injected) {
        let mut disk = self.disk();
        let at = disk.operations.saturating_add(operations.max(1));
        disk.injected.insert(at, error);
    }

    /// Makes every operation from the `operations`-th from now on report an error, until the crash.
    pub fn break_after(&self, operations: u64, error: Injected) {
        let mut disk = self.disk();
        disk.broken_from = Some((disk.operations.saturating_add(operations.max(1)), error));
    }

    /// Lets [`LostSyncs`](CrashLevel::LostSyncs) drop syncs that come from now on.
    pub fn lie(&self) {
        self.disk().lies = true;
    }

    /// How many injected errors were reported.
    #[must_use]
    pub fn injected_fired(&self) -> u64 {
        self.disk().fired
    }

    /// Bytes that fit on the disk; beyond that, writing finds no space. `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk().capacity = bytes;
    }

    /// Makes it say that it copies on write, or that it does not (as at first).
    pub fn set_copy_on_write(&self, copies: bool) {
        self.disk().overwrites_in_place = !copies;
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.disk().used_bytes()
    }

    /// The files, sorted.
    #[must_use]
    pub fn file_names(&self) -> Vec<String> {
        self.disk().live.keys().cloned().collect()
    }

    /// A file's bytes as a read would see them.
    #[must_use]
    pub fn read_file(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk();
        disk.live.get(name).and_then(|file| disk.files.get(file)).map(|image| image.live.clone())
    }

    /// Puts a durable file there, as an operator or rot would: not an operation.
    pub fn write_file(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk();
        let file = disk.next_file;
        disk.next_file += 1;
        let (live, durable) = (bytes.to_vec(), bytes.to_vec());
        let image = Image { live, durable, ..Image::default() };
        disk.files.insert(file, image);
        disk.live.insert(name.to_owned(), file);
        disk.durable.insert(name.to_owned(), file);
    }

    /// Takes a file away for good: not an operation.
    pub fn remove_file(&self, name: &str) {
        let mut disk = self.disk();
        disk.live.remove(name);
        disk.durable.remove(name);
    }

    fn open_image(&self, file: u64) -> SimFile {
        let failures = self.disk().image(file).map_or(0, |image| image.failures);
        SimFile { disk: self.clone(), file, seen: Arc::new(AtomicU64::new(failures)) }
    }
}

/// Frees the directory when it is dropped.
#[derive(Debug)]
pub struct SimLock {
    disk: SimDisk,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut disk = self.disk.disk();
        if disk.boot == self.disk.boot {
            disk.locked = false;
        }
    }
}

impl Fs for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn create_new(&self, name: &str) -> io::Result<SimFile> {
        let file = self.disk().whole(self.boot, |disk| {
            if disk.live.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let file = disk.next_file;
            disk.next_file += 1;
            disk.files.insert(file, Image::default());
            disk.live.insert(name.to_owned(), file);
            disk.pending.push(NameChange::Add(name.to_owned(), file));
            Ok(file)
        })?;
        Ok(self.open_image(file))
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<SimFile> {
        let file = self.disk().whole(self.boot, |disk| {
            disk.live.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })?;
        Ok(self.open_image(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().whole(self.boot, |disk| {
            let file =
                disk.live.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            disk.live.insert(to.to_owned(), file);
            disk.pending.push(NameChange::Rename(from.to_owned(), to.to_owned(), file));
            Ok(())
        })
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.disk().whole(self.boot, |disk| {
            disk.live.remove(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            disk.pending.push(NameChange::Remove(name.to_owned()));
            Ok(())
        })
    }

    fn quarantine(&self, name: &str) -> io::Result<()> {
        self.disk().whole(self.boot, |disk| {
            let file = disk
                .live
                .get(name)
                .copied()
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let kept = format!("quarantine/{name}");
            if !disk.live.contains_key(&kept) {
                disk.live.insert(kept.clone(), file);
                disk.pending.push(NameChange::Add(kept, file));
            }
            Ok(())
        })
    }

    fn quarantined(&self) -> io::Result<Vec<(String, u64)>> {
        self.disk().whole(self.boot, |disk| {
            let sizes = disk.live.iter().filter_map(|(name, file)| {
                let name = name.strip_prefix("quarantine/")?;
                Some((name.to_owned(), disk.files.get(file)?.live.len() as u64))
            });
            Ok(sizes.collect())
        })
    }

    fn overwrites_in_place(&self) -> bool {
        self.disk().overwrites_in_place
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk().whole(self.boot, |disk| {
            let in_directory = |name: &&String| !name.contains('/');
            let mut names: Vec<String> = disk.live.keys().filter(in_directory).cloned().collect();
            // A directory has no order.
            for last in (1..names.len()).rev() {
                let other = disk.random.up_to(last);
                names.swap(last, other);
            }
            Ok(names)
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk().whole(self.boot, |disk| {
            disk.durable = disk.live.clone();
            disk.pending.clear();
            Ok(())
        })
    }

    fn space(&self) -> io::Result<Space> {
        self.disk().whole(self.boot, |disk| {
            let total_bytes = disk.capacity.unwrap_or(u64::MAX);
            Ok(Space { free_bytes: total_bytes.saturating_sub(disk.used_bytes()), total_bytes })
        })
    }

    fn try_lock(&self) -> io::Result<Option<SimLock>> {
        let taken =
            self.disk().whole(self.boot, |disk| Ok(!std::mem::replace(&mut disk.locked, true)))?;
        Ok(taken.then(|| SimLock { disk: self.clone() }))
    }

    fn entropy(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut disk = self.disk();
        for chunk in bytes.chunks_mut(8) {
            let random = disk.entropy.next().to_le_bytes();
            chunk.iter_mut().zip(random).for_each(|(byte, random)| *byte = random);
        }
        Ok(())
    }

    fn unix_time(&self) -> Duration {
        Duration::from_secs(1_700_000_000 + self.boot)
    }

    fn path_of(&self, name: &str) -> String {
        format!("sim:{name}")
    }
}

/// An open file on a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: SimDisk,
    file: u64,
    /// Failed write-backs that this open file has reported.
    seen: Arc<AtomicU64>,
}

fn to_usize(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl FsFile for SimFile {
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.disk.disk();
        let fate = disk.begin(self.disk.boot)?;
        let start = to_usize(at)?;
        let used = disk.used_bytes();
        let free = disk.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(used));
        let sector = disk.sector;
        let Disk { random, files, .. } = &mut *disk;
        let image = files.get_mut(&self.file).ok_or_else(stopped)?;
        // What lies inside the file needs no new space.
        let inside = (image.live.len() as u64).saturating_sub(at);
        let fits = usize::try_from(inside.saturating_add(free)).unwrap_or(usize::MAX);
        let count = match fate {
            Fate::Run if fits == 0 && !bytes.is_empty() => return Err(Injected::NoSpace.into()),
            Fate::Run if bytes.len() > 1 && random.one_in(32) => {
                1 + random.up_to(bytes.len().min(fits) - 1)
            }
            Fate::Run => bytes.len().min(fits),
            // An error tells nothing about what was written before it.
            Fate::Fail(_) | Fate::Stop => random.up_to(bytes.len().min(fits)),
        };
        image.write(start, bytes.get(..count).unwrap_or_default(), sector);
        match fate {
            Fate::Run => Ok(count),
            Fate::Fail(error) => Err(error.into()),
            Fate::Stop => Err(stopped()),
        }
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let start = to_usize(at)?;
        self.disk.disk().whole(self.disk.boot, |disk| {
            let short = disk.random.one_in(32);
            let wanted = if short { disk.random.up_to(bytes.len()).max(1) } else { bytes.len() };
            let image = disk.image(self.file)?;
            let there = image.live.get(start..).unwrap_or_default();
            let count = wanted.min(there.len()).min(bytes.len());
            if let (Some(to), Some(from)) = (bytes.get_mut(..count), there.get(..count)) {
                to.copy_from_slice(from);
            }
            Ok(count)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk.disk();
        let fate = disk.begin(self.disk.boot)?;
        let (sector, chance, lies) = (disk.sector, disk.random.one_in(2), disk.lies);
        let image = disk.image(self.file)?;
        match fate {
            Fate::Run => {
                image.sync(sector, lies);
                if self.seen.swap(image.failures, Ordering::Relaxed) == image.failures {
                    Ok(())
                } else {
                    Err(Injected::Eio.into())
                }
            }
            Fate::Fail(error) => {
                image.lose(sector, chance);
                self.seen.store(image.failures, Ordering::Relaxed);
                Err(error.into())
            }
            Fate::Stop => {
                if chance {
                    image.sync(sector, lies);
                }
                Err(stopped())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.disk().whole(self.disk.boot, |disk| Ok(disk.image(self.file)?.live.len() as u64))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let size = to_usize(bytes)?;
        self.disk.disk().whole(self.disk.boot, |disk| {
            let sector = disk.sector;
            let image = disk.image(self.file)?;
            let (shorter, longer) = (image.live.len().min(size), image.live.len().max(size));
            image.live.resize(size, 0);
            if longer > shorter {
                image.dirty.extend(shorter / sector..=(longer - 1) / sector);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
