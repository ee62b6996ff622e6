//! sled: an atomic batch, a flush, and a sync of its file, because its flush does not reach the disk
//! on Linux by itself. Nothing is deleted in a round, which spares it the work.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bench_wal::corpus::Record;
use bench_wal::round::{Durable, Log, Writer};
use sled::{Batch, Config, Db, Mode};

/// The open database.
pub struct SledLog {
    db: Db,
    /// The file that holds everything but values longer than half a segment.
    file: File,
    next: AtomicU64,
}

impl SledLog {
    /// Opens an empty directory.
    pub fn open(dir: &Path) -> Self {
        let config = Config::new().path(dir).mode(Mode::HighThroughput).flush_every_ms(None);
        let db = config.open().unwrap();
        let file = File::open(dir.join("db")).unwrap();
        Self { db, file, next: AtomicU64::new(0) }
    }
}

impl Log for SledLog {
    fn writer(&self, _thread: usize) -> Box<dyn Writer + '_> {
        Box::new(SledWriter(self))
    }
}

struct SledWriter<'a>(&'a SledLog);

impl Writer for SledWriter<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        let first = self.0.next.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut writes = Batch::default();
        for (record, key) in batch.iter().zip(first..) {
            writes.insert(&key.to_be_bytes(), record.as_slice());
        }
        self.0.db.apply_batch(writes).unwrap();
        self.0.db.flush().unwrap();
        self.0.file.sync_data().unwrap();
        durable.note(batch.len(), begun);
    }
}
