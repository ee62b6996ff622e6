//! How a log is set up: plain fields, each default beside its reason.

use std::time::Duration;

use crate::format::BLOCK_BYTES;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What is done to a frame's records before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Stored as they are.
    None,
    /// LZ4 per frame; a frame that does not shrink is stored as it is.
    Lz4,
}

/// When queued records are written and synced for callers that do not wait.
///
/// Whatever the policy, *durable* always means on the disk: a [`Durable`](crate::Durable) proof, and
/// with it a ticket, exists only after a sync. The policy decides how soon that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// At once, everything that has queued together.
    EachGroup,
    /// At most this often, unless a full group has queued or somebody waits: fewer writes on slow
    /// or wearing media, and a crash loses up to this much of what was never called durable.
    Interval(Duration),
}

/// The settings of one log. Build it with `..WalConfig::default()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalConfig {
    /// Size at which a segment is finished and the next one begun. A single larger frame still
    /// gets a segment of its own.
    pub segment_bytes: u64,
    /// The quota: bytes of all files of the log together. At the limit appending blocks, nothing
    /// is dropped.
    pub max_bytes: u64,
    /// Free space that must be left on the file system: below it, the log takes no more of it and
    /// appending blocks as at the quota.
    pub min_free_bytes: u64,
    /// The longest record; a longer one is refused, not cut.
    pub max_record_bytes: usize,
    /// Bound on the memory of frames that wait to be written.
    pub queue_bytes_max: usize,
    /// How long a delivered segment is kept, so that it can be delivered once more when a store
    /// turns out to have lost what it acknowledged.
    pub hold_back: Duration,
    /// What is done to the records before they are written.
    pub compression: Compression,
    /// When a [`Committer`](crate::Committer) writes.
    pub sync_policy: SyncPolicy,
    /// The deliberate bug to show, for the tests that must catch it.
    #[cfg(feature = "mutants")]
    pub mutant: crate::mutants::Mutant,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            // Large enough that a change of segment (three syncs) is rare, small enough that space
            // comes back in steps that matter on a small disk.
            segment_bytes: 64 * MIB,
            // A guess that fits an edge box; every site should set its own.
            max_bytes: 8 * 1024 * MIB,
            // Another process's logs and the system's own need to go on.
            min_free_bytes: 256 * MIB,
            // Kafka's own default limit for a message.
            max_record_bytes: 1024 * 1024,
            // Several groups: enough to keep the disk busy while callers go on.
            queue_bytes_max: 16 * 1024 * 1024,
            // Cassandra acknowledges up to 10 s before its own commit log is synced.
            hold_back: Duration::from_secs(60),
            // 0.3 disk bytes per payload byte: three times more outage hours per gigabyte.
            compression: Compression::Lz4,
            sync_policy: SyncPolicy::EachGroup,
            #[cfg(feature = "mutants")]
            mutant: crate::mutants::Mutant::None,
        }
    }
}

/// One field that cannot be used as it is set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// Name of the field in [`WalConfig`].
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl WalConfig {
    /// The smallest useful segment: header, link and a few blocks.
    pub const SEGMENT_BYTES_MIN: u64 = 16 * KIB;
    /// The longest record any configuration may allow; lengths on the disk are checked against it.
    pub const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

    /// Bytes that records leave free for batches without records.
    pub(crate) fn note_reserve(&self) -> u64 {
        (self.segment_bytes / 16).clamp(2 * BLOCK_BYTES, 64 * 1024)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// One entry per wrong field; correct them all and try again.
    pub fn validate(&self) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut wrong = |field, problem| errors.push(ConfigError { field, problem });
        if self.segment_bytes < Self::SEGMENT_BYTES_MIN || self.segment_bytes > 1024 * MIB {
            wrong(
                "segment_bytes",
                format!("must be between 16 KiB and 1 GiB, is {}", self.segment_bytes),
            );
        }
        let quota_min = self.segment_bytes.saturating_mul(4);
        if self.max_bytes < quota_min {
            wrong(
                "max_bytes",
                format!("must hold at least four segments ({quota_min}), is {}", self.max_bytes),
            );
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > Self::RECORD_BYTES_MAX {
            wrong(
                "max_record_bytes",
                format!("must be between 1 and 64 MiB, is {}", self.max_record_bytes),
            );
        } else if (self.max_record_bytes as u64).saturating_mul(2) > self.max_bytes {
            wrong(
                "max_record_bytes",
                format!("must be at most half of max_bytes, is {}", self.max_record_bytes),
            );
        }
        if self.queue_bytes_max < self.max_record_bytes {
            wrong(
                "queue_bytes_max",
                format!(
                    "must hold at least one record of {} bytes, is {}",
                    self.max_record_bytes, self.queue_bytes_max
                ),
            );
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(WalConfig::default().validate(), Ok(()));
    }

    #[test]
    fn every_wrong_field_is_named() {
        let config = WalConfig {
            segment_bytes: 1,
            max_bytes: 2,
            max_record_bytes: 0,
            queue_bytes_max: 0,
            ..WalConfig::default()
        };
        let fields: Vec<_> =
            config.validate().unwrap_err().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["segment_bytes", "max_bytes", "max_record_bytes"]);
        let config = WalConfig { queue_bytes_max: 10, ..WalConfig::default() };
        assert_eq!(config.validate().unwrap_err()[0].field, "queue_bytes_max");
    }
}
