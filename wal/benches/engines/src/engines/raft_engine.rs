//! raft-engine with synced writes, each producer with a Raft group of its own, as TiKV has it.
//!
//! Set up in its favour: files are recycled, and filled with zeros before the first write.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bench_wal::corpus::Record;
use bench_wal::round::{Durable, Log, Writer};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

const GROUPS_MAX: usize = 8;
const INDEX_BYTES: usize = 8;

/// Tells the engine an entry's index: the first bytes of the value.
struct Entries;

impl MessageExt for Entries {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let (index, _) = entry.value.split_first_chunk::<INDEX_BYTES>().unwrap();
        u64::from_le_bytes(*index)
    }
}

/// The open engine.
pub struct RaftLog {
    engine: Engine,
    /// For each group: the index of its next entry; everything before is durable.
    next: [AtomicU64; GROUPS_MAX],
}

impl RaftLog {
    /// Opens an empty directory; compresses batches from this size on, or never if it is 0.
    pub fn open(dir: &Path, compress_from_bytes: u64) -> Self {
        let config = Config {
            dir: dir.to_str().unwrap().to_owned(),
            batch_compression_threshold: ReadableSize(compress_from_bytes),
            // As long as the log's segments; what is compacted is purged once there is more.
            target_file_size: ReadableSize::mb(64),
            purge_threshold: ReadableSize::mb(256),
            enable_log_recycle: true,
            prefill_for_recycle: true,
            ..Config::default()
        };
        Self { engine: Engine::open(config).unwrap(), next: [const { AtomicU64::new(1) }; _] }
    }
}

impl Log for RaftLog {
    fn writer(&self, thread: usize) -> Box<dyn Writer + '_> {
        Box::new(RaftWriter { log: self, thread, entries: Vec::new() })
    }

    fn reclaim(&self) {
        for (thread, next) in self.next.iter().enumerate() {
            self.engine.compact_to(group(thread), next.load(Ordering::Acquire));
        }
        self.engine.purge_expired_files().unwrap();
    }
}

/// Groups count from 1.
fn group(thread: usize) -> u64 {
    thread as u64 + 1
}

struct RaftWriter<'a> {
    log: &'a RaftLog,
    thread: usize,
    /// Used again, to spare it the allocations.
    entries: Vec<BytesValue>,
}

impl Writer for RaftWriter<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        let first = self.log.next[self.thread].load(Ordering::Relaxed);
        self.entries.resize_with(batch.len(), BytesValue::new);
        for ((entry, record), index) in self.entries.iter_mut().zip(batch).zip(first..) {
            let value = entry.mut_value();
            value.clear();
            value.extend_from_slice(&index.to_le_bytes());
            value.extend_from_slice(record);
        }
        let mut writes = LogBatch::with_capacity(1);
        writes.add_entries::<Entries>(group(self.thread), &self.entries).unwrap();
        self.log.engine.write(&mut writes, true).unwrap();
        self.log.next[self.thread].store(first + batch.len() as u64, Ordering::Release);
        durable.note(batch.len(), begun);
    }
}
