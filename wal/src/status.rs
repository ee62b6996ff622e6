//! The log in numbers, computed from what is there whenever somebody asks.

use std::time::Duration;

use crate::fs::Fs;
use crate::leader::InFlight;
use crate::log::{Log, State};
use crate::position::{Incarnation, LogId, Position};
use crate::timing::Latency;

/// A snapshot. `appended >= durable >= delivered >= reclaimed`.
#[derive(Clone, Debug, PartialEq)]
pub struct WalStatus {
    /// Position of the next record that will be appended.
    pub appended: Position,
    /// Everything before it is on the disk.
    pub durable: Position,
    /// Everything before it was acked.
    pub delivered: Position,
    /// Everything before it has left the disk.
    pub reclaimed: Position,
    /// Durable records that are not acked.
    pub backlog_records: u64,
    /// Disk bytes of the records from `delivered` on. An estimate: inside a segment the records
    /// are taken as equally long, and acked ranges beyond `delivered` still count.
    pub backlog_bytes: u64,
    /// Bytes of frames that are queued or being written.
    pub queued_bytes: u64,
    /// Bytes of all files of the log, those that stand ready for new records included.
    pub allocated_bytes: u64,
    /// The part of them that records, delivered or not, lie in.
    pub used_bytes: u64,
    /// The quota.
    pub max_bytes: u64,
    /// Number of segment files with records.
    pub segments: usize,
    /// Reclaimed files that wait to be used again.
    pub spare_segments: usize,
    /// A segment is prepared for the next change.
    pub next_prepared: bool,
    /// When the oldest segment was begun, milliseconds since 1970 by the wall clock of that moment:
    /// no record in the log is older.
    pub oldest_segment_ms: Option<u64>,
    /// The present opening.
    pub incarnation: Incarnation,
    /// The log.
    pub log_id: LogId,
    /// What poisoned the log, if it is.
    pub poisoned: Option<String>,
    /// The last write found no space, or less is free than `min_free_bytes`; the log goes on by
    /// itself when there is some.
    pub out_of_space: bool,
    /// No more appends.
    pub closed: bool,
    /// From append to durable, per batch.
    pub append_latency: Latency,
    /// The write of a group; with direct writes, until it is on the medium.
    pub write_latency: Latency,
    /// The sync of a group.
    pub sync_latency: Latency,
    /// How long the oldest group in flight has been on its way, if there is one: a slow disk shows
    /// here while it is slow.
    pub in_flight_for: Option<Duration>,
    /// Groups made durable since the log was opened.
    pub groups: u64,
    /// Bytes given to the disk since the log was opened, links, marks and prepared files included.
    pub bytes_written: u64,
    /// Raw bytes of the records among them.
    pub payload_bytes_written: u64,
}

impl WalStatus {
    /// Above this fill, intake should pause.
    pub const HIGH_MARK: f64 = 0.8;
    /// Below this fill, a paused intake should resume.
    pub const LOW_MARK: f64 = 0.7;

    /// The used part of the quota, 0 to 1; what is queued counts as used.
    #[must_use]
    pub fn fill(&self) -> f64 {
        ratio(self.used_bytes.saturating_add(self.queued_bytes), self.max_bytes)
    }

    /// Whether intake should pause.
    #[must_use]
    pub fn is_above_high_mark(&self) -> bool {
        self.out_of_space || self.fill() >= Self::HIGH_MARK
    }

    /// Whether a paused intake may resume.
    #[must_use]
    pub fn is_below_low_mark(&self) -> bool {
        !self.out_of_space && self.fill() < Self::LOW_MARK
    }

    pub(crate) fn compute<F: Fs>(
        log: &Log<F>,
        state: &State<F::File>,
        delivered: Position,
        acked_beyond: u64,
    ) -> Self {
        let durable = state.commit.durable();
        // Read before the state, so it can only lag behind.
        let delivered = delivered.min(durable);
        let backlog = durable.distance_from(delivered).unwrap_or(0);
        Self {
            appended: state.commit.appended(),
            durable,
            delivered,
            reclaimed: state
                .segments
                .front()
                .map_or(delivered, |oldest| oldest.base.min(delivered)),
            backlog_records: backlog.saturating_sub(acked_beyond),
            backlog_bytes: backlog_bytes(state, delivered, durable),
            queued_bytes: state.commit.queued_bytes(),
            allocated_bytes: state.allocated_bytes(),
            used_bytes: state.allocated_bytes().saturating_sub(state.reusable_bytes()),
            max_bytes: log.config.max_bytes,
            segments: state.segments.len(),
            spare_segments: state.stock.spares.len(),
            next_prepared: state.stock.next.is_some(),
            oldest_segment_ms: state.segments.front().and_then(|oldest| oldest.created_ms),
            incarnation: log.incarnation,
            log_id: log.log_id,
            poisoned: state.poison.as_ref().map(ToString::to_string),
            out_of_space: state.commit.starved() || state.below_floor,
            closed: state.closed,
            append_latency: log.timings.append.snapshot(),
            write_latency: log.timings.write.snapshot(),
            sync_latency: log.timings.sync.snapshot(),
            in_flight_for: state.in_flight.front().map(InFlight::age),
            groups: state.groups,
            bytes_written: state.bytes_written,
            payload_bytes_written: state.payload_written,
        }
    }
}

fn backlog_bytes<File>(state: &State<File>, delivered: Position, durable: Position) -> u64 {
    let mut total: u64 = 0;
    for segment in state.segments.iter().rev() {
        let end = segment.end.map_or(durable, |end| end.position);
        if end <= delivered {
            break;
        }
        let content = segment.end.map_or(state.durable_byte, |end| end.byte);
        let records = end.distance_from(segment.base).unwrap_or(0);
        let undelivered = end.distance_from(delivered.max(segment.base)).unwrap_or(0);
        if let Some(share) =
            (u128::from(content) * u128::from(undelivered)).checked_div(u128::from(records))
        {
            total = total.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        }
    }
    total
}

/// For gauges only; the loss above 2^53 does not matter there.
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// What is left when a log closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReport {
    /// Everything before it is on the disk.
    pub durable: Position,
    /// Everything before it was acked.
    pub delivered: Position,
    /// Records that stay in the log for the next start.
    pub backlog_records: u64,
    /// Their disk bytes, estimated as in [`WalStatus`].
    pub backlog_bytes: u64,
}
