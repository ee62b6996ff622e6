//! What waits in a log, decoded: pages of records, and who they belong to. Reads beside the delivery and disturbs
//! nothing: a reader of its own, no acks, bounded work.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use storage::Stamp;
use wal::{Chunk, Fs, Position, ReadOutcome, Wal, WalError};

use crate::clock::wall_ms;
use crate::decode::{self, DecodeError};
use crate::envelope::{Envelope, TimestampType};
use crate::gather::Kind;

/// Bytes read from the log at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// Of a message that cannot be decoded, so much is shown.
const SHOWN_BYTES_MAX: usize = 4096;
/// A page ends when its messages have so many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// So many tenants, metrics or series are told apart; what comes beyond is counted together.
const GROUPS_MAX: usize = 100_000;
/// What everything beyond that is called.
const OTHERS: &str = "(others)";

/// How much one question may cost.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Most records looked at.
    pub records_max: u64,
    /// Longest time.
    pub time_max: Duration,
}

/// One waiting record.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WaitingRecord {
    /// Its position in the log.
    pub position: u64,
    /// Topic it came from.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Kafka's timestamp, milliseconds since the epoch, if the message had one.
    pub timestamp_ms: Option<i64>,
    /// When it was taken from Kafka, milliseconds since the epoch.
    pub received_ms: i64,
    /// Bytes of the message.
    pub bytes: u64,
    /// Metrics in it.
    pub metrics: Vec<WaitingMetric>,
    /// The alarm transition in it.
    pub alarm: Option<WaitingAlarm>,
    /// Why it, or an element of it, will be a dead letter.
    pub problems: Vec<String>,
    /// The first bytes of a message that cannot be decoded, as text, what is none replaced.
    pub payload: Option<String>,
}

/// One metric.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WaitingMetric {
    /// Region; empty when absent.
    pub region: String,
    /// Tenant; empty when absent.
    pub tenant_id: String,
    /// Metric name.
    pub name: String,
    /// Dimensions.
    pub dimensions: BTreeMap<String, String>,
    /// When it was measured, milliseconds since the epoch.
    pub time_ms: i64,
    /// The value.
    pub value: f64,
    /// Compact JSON; empty when absent.
    pub value_meta: String,
}

/// One alarm transition.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WaitingAlarm {
    /// Tenant; empty when absent.
    pub tenant_id: String,
    /// The alarm.
    pub alarm_id: String,
    /// State before.
    pub old_state: String,
    /// State since.
    pub new_state: String,
    /// Why.
    pub reason: String,
    /// When, milliseconds since the epoch.
    pub time_ms: i64,
}

/// Which records a page holds.
#[derive(Debug, Clone, Default)]
pub struct PageOf {
    /// From this position on.
    pub from: u64,
    /// Most records.
    pub limit: usize,
    /// Only those of this tenant.
    pub tenant: Option<String>,
    /// Only those of this metric.
    pub metric: Option<String>,
}

/// A page of waiting records.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RecordPage {
    /// The pipeline.
    pub pipeline: String,
    /// The records, oldest first.
    pub records: Vec<WaitingRecord>,
    /// Where the next page begins.
    pub next: u64,
    /// There is more behind it.
    pub more: bool,
    /// Position after the last durable record.
    pub end: u64,
    /// Positions on the way that cannot be read.
    pub missing: u64,
}

/// By what waiting records are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Who they belong to.
    Tenant,
    /// Metric name; for alarms the alarm's id.
    Metric,
    /// For how long they wait.
    Age,
}

/// Who the waiting records belong to.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Census {
    /// By what they are told apart.
    pub by: By,
    /// The largest first; ages the youngest first.
    pub groups: Vec<Group>,
    /// Groups there are; not all of them are listed.
    pub groups_total: usize,
    /// Records looked at, oldest first.
    pub records: u64,
    /// All that waits was looked at; otherwise the oldest of it.
    pub complete: bool,
}

/// Records of one tenant, metric or age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Group {
    /// The pipeline.
    pub pipeline: String,
    /// Tenant, metric, or age; empty when the messages name none.
    pub name: String,
    /// Messages; one with several metrics counts for each of its groups.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was taken from Kafka, milliseconds since the epoch.
    pub oldest_received_ms: i64,
}

/// The record that waits for longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Oldest {
    /// Its position.
    pub position: u64,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When it was taken from Kafka, milliseconds since the epoch.
    pub received_ms: i64,
    /// Kafka's timestamp, milliseconds since the epoch, if it has one.
    pub timestamp_ms: Option<i64>,
}

/// Ages, each up to its limit.
const AGES: [(&str, Duration); 7] = [
    ("1m", Duration::from_secs(60)),
    ("10m", Duration::from_secs(600)),
    ("1h", Duration::from_secs(3600)),
    ("6h", Duration::from_secs(6 * 3600)),
    ("1d", Duration::from_secs(86_400)),
    ("7d", Duration::from_secs(7 * 86_400)),
    ("older", Duration::MAX),
];

/// Calls `each` with every record that waits, from `from` on, until it says stop. Returns where it ended, and how many
/// positions could not be read.
fn walk<F: Fs>(
    wal: &Wal<F>,
    from: Position,
    chunk_bytes: usize,
    mut each: impl FnMut(Position, &[u8]) -> bool,
) -> Result<(Position, u64), WalError> {
    let start = from.max(wal.delivered());
    let mut reader = wal.reader(start);
    let mut chunk = Chunk::default();
    let mut missing = 0_u64;
    loop {
        match reader.next(&mut chunk, chunk_bytes)? {
            ReadOutcome::CaughtUp => return Ok((reader.position(), missing)),
            ReadOutcome::Gap(range, reason) => {
                // What was delivered while we read is no loss.
                if reason != wal::GapReason::Reclaimed {
                    let lost = range.end.distance_from(range.start).unwrap_or(0);
                    missing = missing.saturating_add(lost);
                }
            }
            ReadOutcome::Records => {
                for (position, record) in chunk.iter() {
                    if position >= start && !wal.is_acked(position) && !each(position, record) {
                        return Ok((position.next(), missing));
                    }
                }
            }
        }
    }
}

/// The record that waits for longest, if any does.
///
/// # Errors
/// The log cannot be read.
pub fn oldest<F: Fs>(wal: &Wal<F>) -> Result<Option<Oldest>, WalError> {
    let mut found = None;
    walk(wal, Position::ZERO, 1, |position, record| {
        let Ok(message) = Envelope::decode(record) else { return true };
        found = Some(Oldest {
            position: position.get(),
            partition: message.partition,
            offset: message.offset,
            received_ms: message.received_ms,
            timestamp_ms: timestamp(&message),
        });
        false
    })?;
    Ok(found)
}

/// A page of what waits.
///
/// # Errors
/// The log cannot be read.
pub fn page<F: Fs>(
    wal: &Wal<F>,
    pipeline: &str,
    kind: Kind,
    of: &PageOf,
    effort: Effort,
) -> Result<RecordPage, WalError> {
    let begun = Instant::now();
    let mut records = Vec::new();
    let (mut bytes, mut looked_at) = (0_usize, 0_u64);
    let (next, missing) = walk(wal, Position::new(of.from), CHUNK_BYTES, |position, record| {
        looked_at = looked_at.saturating_add(1);
        let shown = shown(position, record, kind);
        if of.is_met(&shown) {
            bytes = bytes.saturating_add(record.len());
            records.push(shown);
        }
        records.len() < of.limit
            && bytes < PAGE_BYTES_MAX
            && looked_at < effort.records_max
            && begun.elapsed() < effort.time_max
    })?;
    let end = wal.durable().through();
    Ok(RecordPage {
        pipeline: pipeline.to_owned(),
        records,
        next: next.get(),
        more: next < end,
        end: end.get(),
        missing,
    })
}

impl PageOf {
    fn is_met(&self, record: &WaitingRecord) -> bool {
        let tenant = |wanted: &String| {
            record.metrics.iter().any(|metric| metric.tenant_id == *wanted)
                || record.alarm.as_ref().is_some_and(|alarm| alarm.tenant_id == *wanted)
        };
        let metric = |wanted: &String| record.metrics.iter().any(|metric| metric.name == *wanted);
        self.tenant.as_ref().is_none_or(tenant) && self.metric.as_ref().is_none_or(metric)
    }
}

/// Counts what waits in a log by tenant, metric or age, into `groups`. Returns the records looked at, and whether that
/// was all.
///
/// # Errors
/// The log cannot be read.
pub fn census<F: Fs>(
    wal: &Wal<F>,
    pipeline: &str,
    kind: Kind,
    by: By,
    effort: Effort,
    groups: &mut HashMap<String, Group>,
) -> Result<(u64, bool), WalError> {
    let begun = Instant::now();
    let now_ms = wall_ms();
    let (mut looked_at, mut complete) = (0_u64, true);
    walk(wal, Position::ZERO, CHUNK_BYTES, |_, record| {
        looked_at = looked_at.saturating_add(1);
        if let Ok(message) = Envelope::decode(record) {
            for name in names(&message, kind, by, now_ms) {
                let name = if groups.contains_key(&name) || groups.len() < GROUPS_MAX {
                    name
                } else {
                    OTHERS.to_owned()
                };
                let group = groups.entry(name).or_insert_with_key(|name| Group {
                    pipeline: pipeline.to_owned(),
                    name: name.clone(),
                    oldest_received_ms: message.received_ms,
                    ..Group::default()
                });
                group.records = group.records.saturating_add(1);
                let bytes = message.payload.map_or(0, <[u8]>::len);
                group.bytes = group.bytes.saturating_add(u64::try_from(bytes).unwrap_or(0));
                group.oldest_received_ms = group.oldest_received_ms.min(message.received_ms);
            }
        }
        complete = looked_at < effort.records_max
            && (!looked_at.is_multiple_of(1024) || begun.elapsed() < effort.time_max);
        complete
    })?;
    Ok((looked_at, complete))
}

/// The largest `top` of all; ages in their order.
#[must_use]
pub fn ranked(by: By, mut groups: Vec<Group>, top: usize) -> Vec<Group> {
    let age = |group: &Group| AGES.iter().position(|(name, _)| *name == group.name);
    if by == By::Age {
        groups.sort_by_key(|group| (group.pipeline.clone(), age(group)));
    } else {
        groups.sort_by(|a, b| b.records.cmp(&a.records).then_with(|| a.name.cmp(&b.name)));
    }
    groups.truncate(top);
    groups
}

/// The groups of one message, each once.
fn names(message: &Envelope<'_>, kind: Kind, by: By, now_ms: i64) -> Vec<String> {
    if by == By::Age {
        let age_ms = u64::try_from(now_ms.saturating_sub(message.received_ms)).unwrap_or(0);
        let age = Duration::from_millis(age_ms);
        let bucket = AGES.iter().find(|(_, limit)| age < *limit).map_or("older", |(name, _)| name);
        return vec![bucket.to_owned()];
    }
    let payload = message.payload.unwrap_or_default();
    let mut names = Vec::new();
    match kind {
        Kind::Metrics => decode::metrics(payload, |_, metric| {
            names.push(match (metric, by) {
                (Ok(metric), By::Tenant) => metric.tenant_id.into_owned(),
                (Ok(metric), _) => metric.name.into_owned(),
                (Err(error), _) => unreadable(&error),
            });
        }),
        Kind::Alarms => names.push(match (decode::alarm(payload), by) {
            (Ok(alarm), By::Tenant) => alarm.into_transition(NO_STAMP).tenant_id,
            (Ok(alarm), _) => alarm.into_transition(NO_STAMP).alarm_id,
            (Err(error), _) => unreadable(&error),
        }),
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// What is shown is not stored.
const NO_STAMP: Stamp = Stamp { write_time_us: 0, ttl_s: 0 };

fn unreadable(error: &DecodeError) -> String {
    format!("(unreadable: {})", error.code)
}

fn timestamp(message: &Envelope<'_>) -> Option<i64> {
    (message.timestamp_type != TimestampType::Absent).then_some(message.timestamp_ms)
}

fn shown(position: Position, record: &[u8], kind: Kind) -> WaitingRecord {
    let mut waiting = WaitingRecord {
        position: position.get(),
        topic: String::new(),
        partition: -1,
        offset: -1,
        timestamp_ms: None,
        received_ms: 0,
        bytes: 0,
        metrics: Vec::new(),
        alarm: None,
        problems: Vec::new(),
        payload: None,
    };
    let message = match Envelope::decode(record) {
        Ok(message) => message,
        Err(error) => {
            waiting.problems.push(error.to_string());
            return waiting;
        }
    };
    message.topic.clone_into(&mut waiting.topic);
    waiting.partition = message.partition;
    waiting.offset = message.offset;
    waiting.timestamp_ms = timestamp(&message);
    waiting.received_ms = message.received_ms;
    let payload = message.payload.unwrap_or_default();
    waiting.bytes = u64::try_from(payload.len()).unwrap_or(u64::MAX);
    match kind {
        Kind::Metrics => decode::metrics(payload, |_, metric| match metric {
            Ok(metric) => waiting.metrics.push(WaitingMetric {
                region: metric.region.into_owned(),
                tenant_id: metric.tenant_id.into_owned(),
                name: metric.name.into_owned(),
                dimensions: metric
                    .dimensions
                    .into_iter()
                    .map(|(name, value)| (name.into_owned(), value.into_owned()))
                    .collect(),
                time_ms: metric.time_ms,
                value: metric.value,
                value_meta: metric.value_meta.into_owned(),
            }),
            Err(error) => waiting.problems.push(error.to_string()),
        }),
        Kind::Alarms => match decode::alarm(payload) {
            Ok(alarm) => {
                let alarm = alarm.into_transition(NO_STAMP);
                waiting.alarm = Some(WaitingAlarm {
                    tenant_id: alarm.tenant_id,
                    alarm_id: alarm.alarm_id,
                    old_state: alarm.old_state,
                    new_state: alarm.new_state,
                    reason: alarm.reason,
                    time_ms: alarm.time_ms,
                });
            }
            Err(error) => waiting.problems.push(error.to_string()),
        },
    }
    if !waiting.problems.is_empty() {
        let start = payload.get(..SHOWN_BYTES_MAX).unwrap_or(payload);
        waiting.payload = Some(String::from_utf8_lossy(start).into_owned());
    }
    waiting
}
