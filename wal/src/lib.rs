//! A durable, ordered log of opaque records.
//!
//! **Promise.** A record whose ticket says *durable* is read back byte-equal, in order, after any
//! crash, or its loss is reported as exact positions. A failed write or sync is never repeated and
//! never hidden: the log is poisoned, and the next start finds out what the disk kept.
//!
//! **Not promised.** No replication, no random access, no transactions, no replacing of records. The
//! log knows nothing about what its records mean, and it has no async runtime: calls that wait,
//! wait on the calling thread.
//!
//! ```text
//! append --> queue --lead--> write, sync --> durable --> Reader --> ack --> checkpoint --> reclaim
//! ```
//!
//! **What a crash costs**, by the last step that had finished:
//!
//! | step                     | after a kill          | after a power cut                     |
//! |--------------------------|-----------------------|---------------------------------------|
//! | appended                 | lost, never confirmed | lost, never confirmed                 |
//! | written, not synced      | kept                  | any part; whole records up to the first hole are kept |
//! | synced (*durable*)       | kept                  | kept                                  |
//! | acked                    | delivered again       | delivered again                       |
//! | checkpointed             | not delivered again   | not delivered again                   |
//! | recovery, at any point   | starts over           | starts over                           |
//!
//! **Assumed of the disk.** A sync that reports success is true. A block of 4 KiB that was synced
//! and is not written again keeps its bytes, or shows damage that a CRC finds. A rename is atomic.
//! Files and names may reach the disk in any order until they are synced.

/// Whether the deliberate bug of this name is active; in a release build it never is.
macro_rules! bug {
    ($name:ident) => {{
        #[cfg(feature = "mutants")]
        let active = crate::mutants::active(crate::mutants::Mutant::$name);
        #[cfg(not(feature = "mutants"))]
        let active = false;
        active
    }};
}

mod attest;
mod batch;
mod buffer;
mod carry;
mod checkpoint;
mod commit;
mod committer;
mod config;
mod cursor;
mod disk;
mod error;
mod format;
mod frame;
mod fs;
mod leader;
mod log;
#[cfg(feature = "mutants")]
pub mod mutants;
mod position;
mod prepare;
mod reader;
mod recent;
mod recovery;
mod relocate;
mod remains;
mod salvage;
mod scan;
mod segment;
#[cfg(feature = "sim")]
pub mod sim;
mod status;
#[cfg(feature = "sim")]
mod steps;
mod survey;
mod sync;
mod ticket;
mod timing;
mod walk;

pub use attest::Attestation;
pub use batch::{ANNOTATION_BYTES_MAX, BATCH_BYTES_MAX, Batch, PushError};
pub use carry::{CARRY_BYTES_MAX, Carry, NoCarry};
pub use committer::Committer;
pub use config::{Compression, ConfigError, SyncPolicy, WalConfig};
pub use disk::{DiskFile, DiskFs, DiskLock};
pub use error::{AppendError, WalError};
pub use format::frame::FrameKind;
pub use format::segment::SegmentHeader;
pub use format::{
    BLOCK_BYTES, CURSOR_NAME, FORMAT_VERSION, Malformed, SEGMENT_HEADER_BYTES, parse_segment_name,
    segment_name,
};
pub use fs::{Access, Fs, FsFile, Space};
pub use log::Wal;
#[cfg(feature = "mutants")]
pub use mutants::Mutant;
pub use position::{Durable, Incarnation, LogId, Position, SegmentNumber};
pub use prepare::Preparation;
pub use reader::{Chunk, ChunkIter, GapReason, ReadOutcome, Reader};
pub use recovery::{Gap, RecoveryReport, RecoveryRow};
pub use relocate::Moved;
pub use salvage::{
    Cursor, Flaw, FlawReason, Inventory, Loss, SalvageSummary, Salvaged, SalvagedFrame,
    SegmentEntry, Tail, inventory, salvage,
};
pub use scan::{ScanSummary, Scanned, scan};
pub use status::{CloseReport, WalStatus};
#[cfg(feature = "sim")]
pub use steps::GroupInFlight;
pub use survey::Damage;
pub use ticket::Ticket;
pub use timing::{BUCKET_MICROS, Latency};
