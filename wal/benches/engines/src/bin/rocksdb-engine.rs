//! RocksDB's write-ahead log as one engine of the benchmark. A program of its own, because every
//! process that is linked with RocksDB carries megabytes of it, and the others' memory is measured.
//!
//! `rocksdb-engine version` prints the library's version, or fails when it was built without.

#[cfg(has_rocksdb)]
mod rocksdb {
    #![expect(unsafe_code, reason = "RocksDB is C++; the four functions of shim.cc are all of it")]

    use std::ffi::{CStr, CString, c_char, c_void};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Instant;

    use bench_wal::corpus::{RECORD_BYTES, Record};
    use bench_wal::round::{Durable, Log, Writer};

    unsafe extern "C" {
        fn bench_rocksdb_version() -> *const c_char;
        fn bench_rocksdb_open(path: *const c_char) -> *mut c_void;
        fn bench_rocksdb_commit(
            db: *mut c_void,
            first: u64,
            records: *const c_char,
            count: usize,
            record_bytes: usize,
        );
        fn bench_rocksdb_close(db: *mut c_void);
    }

    pub fn version() -> String {
        // SAFETY: the function returns a static, terminated string.
        unsafe { CStr::from_ptr(bench_rocksdb_version()) }.to_string_lossy().into_owned()
    }

    pub struct RocksDb {
        db: *mut c_void,
        next: AtomicU64,
    }

    // SAFETY: a rocksdb::DB may be used by any number of threads at once.
    unsafe impl Sync for RocksDb {}

    impl RocksDb {
        pub fn open(dir: &Path) -> Self {
            let path = CString::new(dir.to_str().unwrap()).unwrap();
            // SAFETY: the path is terminated; the function ends the process rather than return null.
            let db = unsafe { bench_rocksdb_open(path.as_ptr()) };
            Self { db, next: AtomicU64::new(0) }
        }
    }

    impl Drop for RocksDb {
        fn drop(&mut self) {
            // SAFETY: opened by us, closed once, and no writer outlives the log it borrows.
            unsafe { bench_rocksdb_close(self.db) }
        }
    }

    impl Log for RocksDb {
        fn writer(&self, _thread: usize) -> Box<dyn Writer + '_> {
            Box::new(RocksDbWriter(self))
        }
    }

    struct RocksDbWriter<'a>(&'a RocksDb);

    impl Writer for RocksDbWriter<'_> {
        fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
            let begun = Instant::now();
            let first = self.0.next.fetch_add(batch.len() as u64, Ordering::Relaxed);
            // SAFETY: the records lie one after the other, `batch.len()` of `RECORD_BYTES` each, and
            // are only read; the database is open as long as the log is borrowed.
            unsafe {
                let records = batch.as_ptr().cast::<c_char>();
                bench_rocksdb_commit(self.0.db, first, records, batch.len(), RECORD_BYTES);
            }
            durable.note(batch.len(), begun);
        }
    }
}

#[cfg(has_rocksdb)]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [only] if only == "version" => println!("{}", rocksdb::version()),
        arguments => bench_wal::round::child(arguments, |_, dir, shape| {
            (Box::new(rocksdb::RocksDb::open(dir)), shape.load())
        }),
    }
}

#[cfg(not(has_rocksdb))]
fn main() -> std::process::ExitCode {
    println!("built without RocksDB's headers (Debian: librocksdb-dev)");
    std::process::ExitCode::FAILURE
}
