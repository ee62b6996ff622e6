//! What is remembered of definitions across restarts: a small sled tree that can be rebuilt at any time.
//!
//! Delete it and nothing is lost: definitions are written again. It is a queue of batches, not a map, because that is
//! cheap to write, to load and to bound: what a batch holds is due again after one refresh, so whole batches go when
//! they are old. The tree's name is a digest of what the store says it is, down to the ids of its tables: another cluster,
//! or tables dropped and created again, have another tree, and a foreign one is dropped.
//!
//! ```text
//! key    newest confirmation in it, seconds since 1970 (u32, big-endian), number of the batch (u32, big-endian)
//! value  1 (format), then entries of 20 bytes
//! ```
//!
//! sled does not reach the disk on Linux by itself, so its files are synced after it. Its answer to damage may be a panic,
//! which ends the process: a mark beside it says while it is being worked on, and what is found marked at the next start
//! is set aside unopened, so that damage costs one start at the most.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::table::{ENTRY_BYTES, Entry};
use crate::sled_store::sync_files;

const FORMAT: u8 = 1;
/// 60,000 bytes: sled puts values that are much longer into files of their own.
const BATCH_ENTRIES: usize = 3000;
const CACHE_BYTES: u64 = 2 << 20;
const TREE_PREFIX: &[u8] = b"batches-";
/// sled gives space back late or never: a cache that takes much more than it holds is written anew.
const SLACK_BYTES: u64 = 64 << 20;
const IDLE: u8 = b'0';
const BUSY: u8 = b'1';

/// Why there is no cache. The program goes on without.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process has it.
    #[error("another process uses it")]
    Locked,
    /// It cannot be read.
    #[error("damaged: {0}")]
    Damaged(String),
    /// The disk or sled said no.
    #[error("{0}")]
    Failed(String),
}

impl From<sled::Error> for CacheError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
                Self::Locked
            }
            sled::Error::Io(io) => io.into(),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<io::Error> for CacheError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A cache and what was in it.
pub struct Opened {
    /// The cache.
    pub cache: DefinitionCache,
    /// What it remembers, oldest first.
    pub entries: Vec<Entry>,
    /// It held the definitions of another store, or of tables that are gone; they are dropped.
    pub foreign: bool,
    /// What was there could not be used and was moved out of the way.
    pub set_aside: Option<SetAside>,
}

/// A cache that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// What was wrong with it.
    pub why: String,
    /// Where it is now.
    pub path: PathBuf,
}

/// The cache of one store.
pub struct DefinitionCache {
    dir: PathBuf,
    /// Locked as long as this lives.
    mark: File,
    db: sled::Db,
    tree: sled::Tree,
    /// Keys and how many entries each has.
    batches: BTreeMap<[u8; 8], usize>,
    entries: usize,
    next: u32,
}

fn tree_name(identity: &str) -> Vec<u8> {
    let digest = Sha256::digest(identity.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    [TREE_PREFIX, hex.as_bytes()].concat()
}

fn mark_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

fn aside_path(dir: &Path) -> PathBuf {
    dir.with_extension("aside")
}

/// Moves the cache in `dir` out of the way; only the last one that was moved is kept.
fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = aside_path(dir);
    remove_if_there(&aside)?;
    match std::fs::rename(dir, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_parent(dir)?;
    Ok(aside)
}

fn remove_if_there(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(dir),
        other => other,
    }
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    dir.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Runs `work` with the mark set; a process that ends inside leaves it set.
fn marked<T>(mark: &File, work: impl FnOnce() -> Result<T, CacheError>) -> Result<T, CacheError> {
    mark.write_all_at(&[BUSY], 0)?;
    let done = work();
    mark.write_all_at(&[IDLE], 0)?;
    done
}

fn open_db(dir: &Path) -> Result<sled::Db, CacheError> {
    Ok(sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None)
        .open()?)
}

impl DefinitionCache {
    /// Opens or creates the cache in `dir` for the store that calls itself `identity`.
    ///
    /// # Errors
    /// It is locked, or nothing can be written there. What is merely damaged or foreign is no error.
    pub fn open(dir: &Path, identity: &str) -> Result<Opened, CacheError> {
        let mark = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mark_path(dir))?;
        match mark.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CacheError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut was = [IDLE];
        let read = mark.read_at(&mut was, 0)?;
        let mut aside = None;
        if read == 1 && was == [BUSY] {
            let why = "the process that used it ended in the middle of a change".to_owned();
            aside = Some(SetAside { why, path: set_aside(dir)? });
        }
        let tree_name = tree_name(identity);
        let mut found = marked(&mark, || Found::read(dir, &tree_name));
        if let Err(error @ (CacheError::Damaged(_) | CacheError::Failed(_))) = &found {
            aside = Some(SetAside { why: error.to_string(), path: set_aside(dir)? });
            found = marked(&mark, || Found::read(dir, &tree_name));
        }
        let Found { db, tree, entries, batches, foreign } = found?;
        let next = batches.keys().map(number_of).max().unwrap_or(0).wrapping_add(1);
        let cache =
            Self { dir: dir.to_owned(), mark, db, tree, entries: entries.len(), batches, next };
        Ok(Opened { cache, entries, foreign, set_aside: aside })
    }

    /// Moves the cache in `dir` out of the way, whoever wrote it: nothing of it is loaded any more. Durable.
    ///
    /// # Errors
    /// It is where it was.
    pub fn forget_unopened(dir: &Path) -> Result<(), CacheError> {
        set_aside(dir)?;
        Ok(())
    }

    /// Adds what is settled in the store, drops what was confirmed before `due_s` (seconds since 1970) and the oldest of
    /// more than `most` entries. Durable when it returns.
    ///
    /// # Errors
    /// What it holds now is not known: [`DefinitionCache::discard`] it.
    pub fn turn(&mut self, settled: &[Entry], due_s: i64, most: usize) -> Result<(), CacheError> {
        let mut old: VecDeque<[u8; 8]> = VecDeque::new();
        let mut left = self.entries.saturating_add(settled.len());
        for (key, count) in &self.batches {
            if confirmed_of(key) >= due_s && left <= most {
                break;
            }
            left = left.saturating_sub(*count);
            old.push_back(*key);
        }
        if old.is_empty() && settled.is_empty() {
            return Ok(());
        }
        let mark = self.mark.try_clone()?;
        marked(&mark, || {
            for key in old {
                self.remove(&key)?;
            }
            for batch in settled.chunks(BATCH_ENTRIES) {
                self.add(batch)?;
            }
            self.sync()?;
            if self.is_bloated()? {
                return Err(CacheError::Failed(
                    "its files take much more than they hold".to_owned(),
                ));
            }
            Ok(())
        })
    }

    /// Drops everything in whose batch something was confirmed at or after `since_ms`. Durable when it returns.
    ///
    /// # Errors
    /// As [`DefinitionCache::turn`].
    pub fn forget_since(&mut self, since_ms: i64) -> Result<(), CacheError> {
        let since_s = since_ms.div_euclid(1000);
        let young: Vec<[u8; 8]> =
            self.batches.keys().filter(|key| confirmed_of(key) >= since_s).copied().collect();
        let mark = self.mark.try_clone()?;
        marked(&mark, || {
            for key in young {
                self.remove(&key)?;
            }
            self.sync()
        })
    }

    /// Moves it out of the way, so that nothing of it is loaded any more. Durable.
    ///
    /// # Errors
    /// It is where it was.
    pub fn discard(self) -> Result<PathBuf, CacheError> {
        let Self { dir, mark, db, tree, .. } = self;
        // sled may still write when it is closed, by name.
        drop((tree, db));
        let aside = set_aside(&dir)?;
        drop(mark);
        Ok(aside)
    }

    /// Entries in it, superseded ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    /// True when it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn add(&mut self, batch: &[Entry]) -> Result<(), CacheError> {
        let newest = batch.iter().map(Entry::confirmed_s).max().unwrap_or(0);
        let newest = u32::try_from(newest).unwrap_or(u32::MAX);
        let mut key = [0; 8];
        let (first, second) = key.split_at_mut(4);
        first.copy_from_slice(&newest.to_be_bytes());
        second.copy_from_slice(&self.next.to_be_bytes());
        self.next = self.next.wrapping_add(1);
        let mut value = Vec::with_capacity(batch.len().saturating_mul(ENTRY_BYTES) + 1);
        value.push(FORMAT);
        for entry in batch {
            entry.encode_into(&mut value);
        }
        self.tree.insert(key, value)?;
        if let Some(replaced) = self.batches.insert(key, batch.len()) {
            self.entries = self.entries.saturating_sub(replaced);
        }
        self.entries = self.entries.saturating_add(batch.len());
        Ok(())
    }

    fn remove(&mut self, key: &[u8; 8]) -> Result<(), CacheError> {
        self.tree.remove(key)?;
        let count = self.batches.remove(key).unwrap_or(0);
        self.entries = self.entries.saturating_sub(count);
        Ok(())
    }

    fn sync(&self) -> Result<(), CacheError> {
        self.db.flush()?;
        sync_files(&self.dir)?;
        Ok(())
    }

    /// Whether its files take much more than what it holds.
    fn is_bloated(&self) -> Result<bool, CacheError> {
        let held = u64::try_from(self.entries.saturating_mul(ENTRY_BYTES)).unwrap_or(u64::MAX);
        Ok(self.db.size_on_disk()? > held.saturating_mul(4).saturating_add(SLACK_BYTES))
    }
}

/// What a directory holds.
struct Found {
    db: sled::Db,
    tree: sled::Tree,
    entries: Vec<Entry>,
    batches: BTreeMap<[u8; 8], usize>,
    foreign: bool,
}

impl Found {
    fn read(dir: &Path, tree_name: &[u8]) -> Result<Self, CacheError> {
        let db = open_db(dir)?;
        let mut foreign = false;
        for name in db.tree_names() {
            if name.starts_with(TREE_PREFIX) && name != tree_name {
                foreign |= !db.open_tree(&name)?.is_empty();
                db.drop_tree(name)?;
            }
        }
        let tree = db.open_tree(tree_name)?;
        let mut entries = Vec::new();
        let mut batches = BTreeMap::new();
        for batch in &tree {
            let (key, value) = batch?;
            let (Ok(key), Some((&FORMAT, rest))) =
                (<[u8; 8]>::try_from(key.as_ref()), value.split_first())
            else {
                return Err(CacheError::Damaged("a batch of another format".to_owned()));
            };
            let (parts, []) = rest.as_chunks::<ENTRY_BYTES>() else {
                return Err(CacheError::Damaged("a batch that is cut short".to_owned()));
            };
            batches.insert(key, parts.len());
            entries.extend(parts.iter().filter_map(Entry::decode));
        }
        if foreign {
            db.flush()?;
            sync_files(dir)?;
        }
        Ok(Self { db, tree, entries, batches, foreign })
    }
}

fn confirmed_of(key: &[u8; 8]) -> i64 {
    let [a, b, c, d, ..] = *key;
    i64::from(u32::from_be_bytes([a, b, c, d]))
}

fn number_of(key: &[u8; 8]) -> u32 {
    let [.., a, b, c, d] = *key;
    u32::from_be_bytes([a, b, c, d])
}
