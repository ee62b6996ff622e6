//! fjall's journal: an atomic batch with `SyncData`. The memtable is never flushed in a round, so
//! that only the journal and the insertion into the memtable are measured.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bench_wal::corpus::Record;
use bench_wal::round::{Durable, Log, Writer};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

const GIB: u64 = 1024 * 1024 * 1024;

/// The open database.
pub struct FjallLog {
    db: Database,
    records: Keyspace,
    next: AtomicU64,
}

impl FjallLog {
    /// Opens an empty directory.
    pub fn open(dir: &Path) -> Self {
        let db = Database::builder(dir).max_journaling_size(16 * GIB).open().unwrap();
        let options = || KeyspaceCreateOptions::default().max_memtable_size(4 * GIB);
        let records = db.keyspace("records", options).unwrap();
        Self { db, records, next: AtomicU64::new(0) }
    }
}

impl Log for FjallLog {
    fn writer(&self, _thread: usize) -> Box<dyn Writer + '_> {
        Box::new(FjallWriter(self))
    }
}

struct FjallWriter<'a>(&'a FjallLog);

impl Writer for FjallWriter<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        let first = self.0.next.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut writes = self.0.db.batch().durability(Some(PersistMode::SyncData));
        for (record, key) in batch.iter().zip(first..) {
            writes.insert(&self.0.records, key.to_be_bytes(), record.as_slice());
        }
        writes.commit().unwrap();
        durable.note(batch.len(), begun);
    }
}
