//! What can go wrong, named by what the caller can do next.

use std::io;
use std::sync::Arc;

use crate::batch::Batch;
use crate::config::ConfigError;
use crate::format::FORMAT_VERSION;
use crate::position::{LogId, SegmentNumber};

/// A failure of the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// The settings are wrong: correct them; nothing was touched.
    #[error("invalid configuration of the log: {}", join(.0))]
    Config(Vec<ConfigError>),
    /// Another process has the log open: stop it or use another directory.
    #[error("{path}: the log is in use by another process")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// The log was written by a newer version of this program: use that one. Nothing was touched.
    #[error("{path}: format version {found} is newer than {known}, the newest this program knows")]
    NewerVersion {
        /// The file that says so.
        path: String,
        /// Its version.
        found: u32,
        /// The newest version this program reads.
        known: u32,
    },
    /// A segment of another log lies in the directory: find out whose it is. Nothing was touched.
    #[error("{path}: belongs to log {found}, this directory holds log {expected}")]
    ForeignSegment {
        /// The file.
        path: String,
        /// The log it names.
        found: LogId,
        /// The log of the other files.
        expected: LogId,
    },
    /// The saved carry is not understood by its owner: the log does not open. Nothing was touched.
    #[error("segment {segment}: the saved carry was refused: {reason}")]
    CarryRefused {
        /// Where it was saved.
        segment: SegmentNumber,
        /// What its owner says.
        reason: String,
    },
    /// A file operation failed. While the log is open and the operation was a write or a sync of
    /// it, the log is poisoned as well; end the process.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which file.
        path: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// No space on the device or in the quota of its owner. Nothing is lost: the log keeps what is
    /// queued, refuses new batches, and goes on by itself at the next commit that finds space.
    #[error("cannot {op} {path}: no space left")]
    NoSpace {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which file.
        path: String,
    },
    /// An earlier write or sync failed, and nobody knows what the disk kept: end the process and
    /// start again; recovery reads back what is really there.
    #[error("the log is poisoned: {cause}")]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

fn join(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl WalError {
    /// What a newer program wrote is refused.
    pub(crate) fn newer(path: String, found: u32) -> Self {
        Self::NewerVersion { path, found, known: FORMAT_VERSION }
    }

    pub(crate) fn io(op: &'static str, path: String, source: io::Error) -> Self {
        if is_no_space(&source) {
            Self::NoSpace { op, path }
        } else {
            Self::Io { op, path, source: Arc::new(source) }
        }
    }
}

/// Whether the device or its owner's quota is full: pressure, not damage.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The quota, the device or the queue is full: here is the batch again. Wait for delivery or
    /// for the next commit, then append it again.
    #[error("the log is full")]
    Full(Batch),
    /// A record is longer than `max_record_bytes`, or the annotation longer than 64 KiB: this
    /// batch can never be appended.
    #[error("{what} of {bytes} bytes is longer than {bytes_max}")]
    TooLarge {
        /// "record" or "annotation".
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest allowed.
        bytes_max: usize,
        /// The batch, untouched.
        batch: Batch,
    },
    /// A write or a sync failed: end the process.
    #[error("the log is poisoned: {cause}")]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}
