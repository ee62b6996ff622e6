//! A file and nothing else: the same records, already laid out in memory in batches of whole
//! blocks, written over blocks that hold data already, and on the disk when the call returns. No log
//! can be faster; how near one comes is what can be compared between machines.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use bench_wal::corpus::{RECORD_BYTES, Record, corpus};
use bench_wal::round::{Durable, Log, Writer};
use bench_wal::shape::Load;
use rustix::fs::OFlags;

const BLOCK_BYTES: usize = 4096;
const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Each writer has its own part of the file and starts over at its end.
const PART_BYTES: u64 = 128 * 1024 * 1024;
/// Memory for the batches: more than a processor's own caches, so that what is written comes from
/// where a log's buffers come from.
const BATCHES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How it is written.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Through the page cache, then fdatasync.
    Buffered,
    /// Past the page cache, synced by the write itself.
    Direct,
}

/// The file, full of zeros that are on the disk.
pub struct RawFile {
    path: PathBuf,
    access: Access,
    batches: Batches,
}

impl RawFile {
    /// Creates and fills it.
    pub fn open(dir: &Path, access: Access, load: Load) -> Self {
        let path = dir.join("file");
        let file = File::create_new(&path).unwrap();
        // Written, not allocated: the first write to merely allocated blocks changes metadata.
        let zeros = vec![0; HUGE_PAGE_BYTES];
        let end = PART_BYTES * load.threads as u64;
        for at in (0..end).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).unwrap();
        }
        file.sync_all().unwrap();
        File::open(dir).unwrap().sync_all().unwrap();
        Self { path, access, batches: Batches::of(&corpus(), load.batch) }
    }
}

impl Log for RawFile {
    fn writer(&self, thread: usize) -> Box<dyn Writer + '_> {
        // An open file description of its own, so that each sync reports its own errors.
        let mut options = OpenOptions::new();
        options.write(true);
        if matches!(self.access, Access::Direct) {
            options.custom_flags((OFlags::DIRECT | OFlags::DSYNC).bits() as i32);
        }
        let first = PART_BYTES * thread as u64;
        Box::new(RawWriter {
            file: options.open(&self.path).unwrap(),
            access: self.access,
            batches: self.batches.iter().cycle(),
            part: first..first + PART_BYTES,
            at: first,
        })
    }
}

struct RawWriter<I> {
    file: File,
    access: Access,
    batches: I,
    part: std::ops::Range<u64>,
    at: u64,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Writer for RawWriter<I> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        let bytes = self.batches.next().unwrap();
        if self.at + bytes.len() as u64 > self.part.end {
            self.at = self.part.start;
        }
        self.file.write_all_at(bytes, self.at).unwrap();
        if matches!(self.access, Access::Buffered) {
            self.file.sync_data().unwrap();
        }
        self.at += bytes.len() as u64;
        durable.note(batch.len(), begun);
    }
}

/// Batches of records, each in whole blocks of memory that direct writes can take.
struct Batches {
    memory: Vec<u8>,
    start: usize,
    batch_bytes: usize,
    count: usize,
}

impl Batches {
    fn of(corpus: &[Record], batch: usize) -> Self {
        let batch_bytes = (batch * RECORD_BYTES).next_multiple_of(BLOCK_BYTES);
        let count = (corpus.len() / batch).min(BATCHES_BYTES_MAX / batch_bytes);
        let pages = (batch_bytes * count).next_multiple_of(HUGE_PAGE_BYTES);
        let mut memory = vec![0; pages + HUGE_PAGE_BYTES];
        let start = memory.as_ptr().align_offset(HUGE_PAGE_BYTES);
        ask_for_huge_pages(&mut memory[start..start + pages]);
        let places = memory[start..].chunks_exact_mut(batch_bytes).take(count);
        for (place, records) in places.zip(corpus.chunks_exact(batch)) {
            place[..batch * RECORD_BYTES].copy_from_slice(records.as_flattened());
        }
        Self { memory, start, batch_bytes, count }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.memory[self.start..].chunks_exact(self.batch_bytes).take(self.count)
    }
}

/// One page instead of 256 for the kernel to look up in every direct write. A kernel that has none
/// to give refuses, and the small ones do.
#[expect(unsafe_code, reason = "advice about memory is a system call on an address")]
fn ask_for_huge_pages(memory: &mut [u8]) {
    // SAFETY: the range is borrowed for writing, whole pages long, and this advice changes neither
    // what it holds nor who may use it.
    unsafe {
        rustix::mm::madvise(
            memory.as_mut_ptr().cast(),
            memory.len(),
            rustix::mm::Advice::LinuxHugepage,
        )
    }
    .ok();
}
