//! The state behind a simulated disk: images, dirty sectors, names, and what chance does to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Injected;

#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) random: Random,
    /// Apart, so that a fault elsewhere does not change nonces.
    pub(super) entropy: Random,
    pub(super) boot: u64,
    pub(super) locked: bool,
    pub(super) sector: usize,
    pub(super) files: BTreeMap<u64, Image>,
    pub(super) next_file: u64,
    pub(super) live: BTreeMap<String, u64>,
    pub(super) durable: BTreeMap<String, u64>,
    /// Changes of names since the directory was synced.
    pub(super) pending: Vec<NameChange>,
    pub(super) capacity: Option<u64>,
    pub(super) overwrites_in_place: bool,
    pub(super) operations: u64,
    pub(super) stop_at: Option<u64>,
    pub(super) stopped: bool,
    pub(super) injected: BTreeMap<u64, Injected>,
    /// From this operation on, every one fails.
    pub(super) broken_from: Option<(u64, Injected)>,
    /// Syncs may turn out never to have happened.
    pub(super) lies: bool,
    pub(super) fired: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) dirty: BTreeSet<usize>,
    /// Failed write-backs so far: every open file reports each of them once.
    pub(super) failures: u64,
    /// What was durable before the last sync, for disks that lie.
    pub(super) before_sync: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Add(String, u64),
    Remove(String),
    Rename(String, String, u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// SplitMix64.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 up to and including `most`.
    pub(super) fn up_to(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % (most as u64 + 1)).unwrap_or(0)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// What becomes of the operation that was begun.
pub(super) enum Fate {
    Run,
    Fail(Injected),
    /// The machine stops in the middle of it.
    Stop,
}

impl Disk {
    pub(super) fn begin(&mut self, boot: u64) -> io::Result<Fate> {
        if self.stopped || boot != self.boot {
            return Err(stopped());
        }
        self.operations += 1;
        if self.stop_at.is_some_and(|at| self.operations >= at) {
            self.stopped = true;
            return Ok(Fate::Stop);
        }
        let broken = self.broken_from.filter(|(from, _)| self.operations >= *from);
        let error = self.injected.remove(&self.operations).or(broken.map(|(_, error)| error));
        Ok(match error {
            Some(error) => {
                self.fired += 1;
                Fate::Fail(error)
            }
            None => Fate::Run,
        })
    }

    /// For operations that happen or do not.
    pub(super) fn whole<T>(
        &mut self,
        boot: u64,
        apply: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.begin(boot)? {
            Fate::Run => apply(self),
            Fate::Fail(error) => Err(error.into()),
            Fate::Stop => {
                if self.random.one_in(2) {
                    apply(self).ok();
                }
                Err(stopped())
            }
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.live.values().copied().collect();
        named
            .iter()
            .filter_map(|file| self.files.get(file))
            .map(|image| image.live.len() as u64)
            .sum()
    }

    pub(super) fn image(&mut self, file: u64) -> io::Result<&mut Image> {
        self.files.get_mut(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Applies the names that survive; what has no name is gone.
    pub(super) fn settle_names(&mut self, keep_percent: u64) {
        for change in std::mem::take(&mut self.pending) {
            if !self.random.percent(keep_percent) {
                continue;
            }
            match change {
                NameChange::Add(name, file) => {
                    self.durable.insert(name, file);
                }
                NameChange::Remove(name) => {
                    self.durable.remove(&name);
                }
                NameChange::Rename(from, to, file) => {
                    self.durable.remove(&from);
                    self.durable.insert(to, file);
                }
            }
        }
        self.live = self.durable.clone();
        let named: BTreeSet<u64> = self.live.values().copied().collect();
        self.files.retain(|file, _| named.contains(file));
    }

    /// Some syncs that were reported never happened.
    pub(super) fn unsync(&mut self) {
        let random = &mut self.random;
        for image in self.files.values_mut() {
            if random.one_in(3)
                && let Some(before) = image.before_sync.take()
            {
                image.durable = before;
            }
        }
    }

    pub(super) fn settle_data(&mut self, keep_percent: u64, torn: bool) {
        let (sector, random) = (self.sector, &mut self.random);
        for image in self.files.values_mut() {
            let (live, durable) = (image.live.len(), image.durable.len());
            let (shorter, longer) = (live.min(durable), live.max(durable));
            // The size is metadata of its own: old, new, or something on the way.
            let size = match random.up_to(3) {
                0 => durable,
                1 => shorter + random.up_to(longer - shorter),
                _ => live,
            };
            image.durable.resize(size, 0);
            for index in std::mem::take(&mut image.dirty) {
                let start = index * sector;
                let end = (start + sector).min(size).min(live);
                if start >= end || !random.percent(keep_percent) {
                    continue;
                }
                if let (Some(to), Some(from)) =
                    (image.durable.get_mut(start..end), image.live.get(start..end))
                {
                    to.copy_from_slice(from);
                    if torn && random.one_in(4) {
                        let garbage_from = random.up_to(to.len());
                        for byte in to.iter_mut().skip(garbage_from) {
                            *byte = random.next().to_le_bytes()[0];
                        }
                    }
                }
            }
            image.live.clone_from(&image.durable);
        }
    }
}

impl Image {
    pub(super) fn write(&mut self, at: usize, bytes: &[u8], sector: usize) {
        let end = at + bytes.len();
        let grown_from = self.live.len().min(at);
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        if let Some(target) = self.live.get_mut(at..end) {
            target.copy_from_slice(bytes);
        }
        if !bytes.is_empty() {
            self.dirty.extend(grown_from / sector..=(end - 1) / sector);
        }
    }

    pub(super) fn sync(&mut self, sector: usize, may_lie: bool) {
        if may_lie && !self.dirty.is_empty() {
            self.before_sync = Some(self.durable.clone());
        }
        self.durable.resize(self.live.len(), 0);
        for index in std::mem::take(&mut self.dirty) {
            let start = index * sector;
            let end = (start + sector).min(self.live.len());
            if let (Some(to), Some(from)) =
                (self.durable.get_mut(start..end), self.live.get(start..end))
            {
                to.copy_from_slice(from);
            }
        }
    }

    /// The kernel drops the error with the dirty marks. Either the pages stay as they look, and
    /// are lost with the cache, or they are read anew from the disk.
    pub(super) fn lose(&mut self, sector: usize, reverted: bool) {
        let dirty = std::mem::take(&mut self.dirty);
        self.failures += 1;
        self.durable.resize(self.live.len(), 0);
        if reverted {
            for index in dirty {
                let start = index * sector;
                let end = (start + sector).min(self.live.len());
                if let (Some(to), Some(from)) =
                    (self.live.get_mut(start..end), self.durable.get(start..end))
                {
                    to.copy_from_slice(from);
                }
            }
        }
    }
}

pub(super) fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

impl From<Injected> for io::Error {
    fn from(injected: Injected) -> Self {
        match injected {
            Injected::Eio => io::Error::other("injected input/output error"),
            Injected::NoSpace => io::ErrorKind::StorageFull.into(),
        }
    }
}
