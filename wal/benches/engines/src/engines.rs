//! The engines, each as its users set it up when every commit must be on the disk.

mod fjall;
mod okaywal;
mod raft_engine;
mod raw;
mod sled;
pub mod wal_log;

use std::path::Path;

use bench_wal::round::Log;
use bench_wal::shape::{Load, Shape};
use wal::Compression;

/// What a row of the table is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This project's log.
    Ours,
    /// Another log.
    Other,
    /// A file and nothing else, with so many writes in flight.
    Raw(usize),
}

/// One line of every table.
#[derive(Clone, Copy, Debug)]
pub struct Engine {
    /// As printed, and as passed to the child processes.
    pub name: &'static str,
    /// What it is compared as.
    pub role: Role,
}

/// The log without compression: the one that is compared.
pub const PLAIN: &str = "wal";
/// The log as it is set up by default.
pub const LZ4: &str = "wal, lz4";
/// Runs in a program of its own.
pub const ROCKSDB: &str = "rocksdb";

const RAFT_PLAIN: &str = "raft-engine";
const RAFT_LZ4: &str = "raft-engine, lz4";
const OKAYWAL: &str = "okaywal";
const SLED: &str = "sled";
const FJALL: &str = "fjall";
const RAW_BUFFERED: [&str; 2] = ["file, fdatasync, 1 in flight", "file, fdatasync, 2 in flight"];
const RAW_DIRECT: [&str; 2] = ["file, direct, 1 in flight", "file, direct, 2 in flight"];

/// All of them, in the order of the table.
pub const ENGINES: [Engine; 12] = [
    Engine { name: PLAIN, role: Role::Ours },
    Engine { name: LZ4, role: Role::Ours },
    Engine { name: RAFT_PLAIN, role: Role::Other },
    Engine { name: RAFT_LZ4, role: Role::Other },
    Engine { name: OKAYWAL, role: Role::Other },
    Engine { name: ROCKSDB, role: Role::Other },
    Engine { name: FJALL, role: Role::Other },
    Engine { name: SLED, role: Role::Other },
    Engine { name: RAW_BUFFERED[0], role: Role::Raw(1) },
    Engine { name: RAW_DIRECT[0], role: Role::Raw(1) },
    Engine { name: RAW_BUFFERED[1], role: Role::Raw(2) },
    Engine { name: RAW_DIRECT[1], role: Role::Raw(2) },
];

impl Engine {
    /// Whether it has a row in this shape: the others' commit calls return when the batch is on the
    /// disk, so one thread of theirs cannot have a second one on its way.
    pub fn takes(&self, shape: &Shape) -> bool {
        !shape.pipelined || self.role != Role::Other
    }
}

/// Opens an engine of this program in an empty directory.
pub fn open(name: &str, dir: &Path, shape: &Shape) -> (Box<dyn Log>, Load) {
    let log: Box<dyn Log> = match name {
        PLAIN => Box::new(wal_log::WalLog::open(dir, Compression::None, shape)),
        LZ4 => Box::new(wal_log::WalLog::open(dir, Compression::Lz4, shape)),
        RAFT_PLAIN => Box::new(raft_engine::RaftLog::open(dir, 0)),
        // Its default: batches from 8 KiB on are compressed.
        RAFT_LZ4 => Box::new(raft_engine::RaftLog::open(dir, 8 * 1024)),
        OKAYWAL => Box::new(okaywal::OkayLog::open(dir)),
        FJALL => Box::new(fjall::FjallLog::open(dir)),
        SLED => Box::new(sled::SledLog::open(dir)),
        raw => return open_raw(raw, dir, shape),
    };
    (log, shape.load())
}

fn open_raw(name: &str, dir: &Path, shape: &Shape) -> (Box<dyn Log>, Load) {
    let of_kind = |names: [&str; 2]| names.iter().position(|known| *known == name);
    let (index, access) = match (of_kind(RAW_BUFFERED), of_kind(RAW_DIRECT)) {
        (Some(index), _) => (index, raw::Access::Buffered),
        (None, Some(index)) => (index, raw::Access::Direct),
        (None, None) => panic!("there is no engine `{name}`"),
    };
    let load = shape.raw_load(index + 1);
    (Box::new(raw::RawFile::open(dir, access, load)), load)
}
