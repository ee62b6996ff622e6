//! okaywal: one entry per batch, one chunk per record. A commit returns when it is synced.
//!
//! Its checkpoints, which give files back, come by themselves once a file is nearly full; the
//! manager has nothing to do in them, as if everything had been delivered.

use std::io;
use std::path::Path;
use std::time::Instant;

use bench_wal::corpus::Record;
use bench_wal::round::{Durable, Log, Writer};
use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};

const MIB: u32 = 1024 * 1024;

#[derive(Debug)]
struct Delivered;

impl LogManager for Delivered {
    fn recover(&mut self, _entry: &mut Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last: EntryId,
        _entries: &mut SegmentReader,
        _wal: &WriteAheadLog,
    ) -> io::Result<()> {
        Ok(())
    }
}

/// The open log.
pub struct OkayLog(WriteAheadLog);

impl OkayLog {
    /// Opens an empty directory.
    pub fn open(dir: &Path) -> Self {
        let log = Configuration::default_for(dir)
            .preallocate_bytes(64 * MIB)
            .checkpoint_after_bytes(48 * u64::from(MIB))
            .buffer_bytes(MIB as usize)
            .open(Delivered)
            .unwrap();
        Self(log)
    }
}

impl Log for OkayLog {
    fn writer(&self, _thread: usize) -> Box<dyn Writer + '_> {
        Box::new(OkayWriter(&self.0))
    }
}

struct OkayWriter<'a>(&'a WriteAheadLog);

impl Writer for OkayWriter<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        let mut entry = self.0.begin_entry().unwrap();
        for record in batch {
            entry.write_chunk(record).unwrap();
        }
        entry.commit().unwrap();
        durable.note(batch.len(), begun);
    }
}
