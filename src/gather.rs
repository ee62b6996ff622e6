//! Records of the log in, units of work for the store out: decoding, stamping, grouping by series. Pure.
//!
//! A *gather* is one stretch of the log looked at together. Its rows are grouped by series, because rows of one
//! partition that travel together cost the store a fraction of what they cost alone. Rows with the same key are
//! collapsed to the one that would win anyway. The clock is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use storage::definitions::{DefinitionMemory, Need};
use storage::{AlarmTransition, Definition, IdScheme, Measurement, MetricId, Series, Stamp, Write};
use wal::Position;

use crate::dead_letters::DeadLetter;
use crate::decode;
use crate::envelope::{EffectiveTime, Envelope};

/// What a pipeline carries.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Metric envelopes.
    Metrics,
    /// Alarm state transitions.
    Alarms,
}

impl Kind {
    /// Name of the pipeline that carries it in paths, metrics and log lines; further ones have names of their own.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Alarms => "alarms",
        }
    }
}

/// Numbers that grouping goes by.
#[derive(Debug, Clone, Copy)]
pub struct GatherConfig {
    /// What the records are.
    pub kind: Kind,
    /// How series get their ids.
    pub scheme: IdScheme,
    /// How long rows are kept.
    pub retention: Duration,
    /// How often a series' definition is written again.
    pub definition_refresh: Duration,
    /// Most rows in one request to the store.
    pub batch_rows_max: usize,
    /// Most bytes of values in one request to the store, about.
    pub batch_bytes_max: usize,
    /// Longer messages become dead letters.
    pub message_bytes_max: usize,
}

/// One message of a gather: its place behind the gather's first position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordRef {
    /// Distance from the gather's first position.
    pub index: u32,
    /// Index of the element in a message that holds several; 0 otherwise.
    pub element: u32,
}

/// The messages that one row stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRecords {
    /// The message it was made from.
    pub record: RecordRef,
    /// Messages with the same key that it supersedes.
    pub superseded: Vec<RecordRef>,
}

impl RowRecords {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef> + '_ {
        std::iter::once(self.record).chain(self.superseded.iter().copied())
    }
}

/// Rows that travel to the store together, with the messages they stand for.
#[derive(Debug, Clone)]
pub enum Unit {
    /// The definition of a series: written before the measurements that wait for it.
    Definition(Definition),
    /// Measurements of one series, each time at most once.
    Measurements {
        /// The series.
        series: Arc<Series>,
        /// The rows.
        rows: Vec<Measurement>,
        /// For each row the messages it stands for.
        records: Vec<RowRecords>,
    },
    /// Alarm transitions.
    Alarms {
        /// The rows.
        rows: Vec<AlarmTransition>,
        /// For each row the messages it stands for.
        records: Vec<RowRecords>,
    },
}

impl Unit {
    /// The rows as the store takes them.
    #[must_use]
    pub fn as_write(&self) -> Write<'_> {
        match self {
            Self::Definition(definition) => Write::Definition(definition),
            Self::Measurements { series, rows, .. } => Write::Measurements { series, rows },
            Self::Alarms { rows, .. } => Write::Alarms(rows),
        }
    }

    /// The messages behind each row; none for a definition.
    #[must_use]
    pub fn records(&self) -> &[RowRecords] {
        match self {
            Self::Definition(_) => &[],
            Self::Measurements { records, .. } | Self::Alarms { records, .. } => records,
        }
    }

    /// Number of rows; a definition is one.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.as_write().len()
    }

    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        /// A row without its texts, and what stands for it in lists.
        const ROW_BYTES: usize = 128;
        let texts: usize = match self {
            Self::Definition(_) => ROW_BYTES,
            Self::Measurements { rows, .. } => rows.iter().map(|row| row.value_meta.len()).sum(),
            Self::Alarms { rows, .. } => rows
                .iter()
                .map(|row| {
                    row.metric
                        .len()
                        .saturating_add(row.sub_alarms.len())
                        .saturating_add(row.reason.len())
                })
                .sum(),
        };
        texts.saturating_add(self.rows().saturating_mul(ROW_BYTES))
    }

    /// Two halves of a unit with more than one row; `None` for a single row.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Self)> {
        let middle = self.rows() / 2;
        if middle == 0 {
            return None;
        }
        match self {
            Self::Definition(_) => None,
            Self::Measurements { series, rows, records } => {
                let (first, second) = halves(rows, middle);
                let (first_records, second_records) = halves(records, middle);
                Some((
                    Self::Measurements {
                        series: Arc::clone(series),
                        rows: first,
                        records: first_records,
                    },
                    Self::Measurements {
                        series: Arc::clone(series),
                        rows: second,
                        records: second_records,
                    },
                ))
            }
            Self::Alarms { rows, records } => {
                let (first, second) = halves(rows, middle);
                let (first_records, second_records) = halves(records, middle);
                Some((
                    Self::Alarms { rows: first, records: first_records },
                    Self::Alarms { rows: second, records: second_records },
                ))
            }
        }
    }
}

fn halves<T: Clone>(of: &[T], middle: usize) -> (Vec<T>, Vec<T>) {
    let (first, second) = of.split_at(middle);
    (first.to_vec(), second.to_vec())
}

/// A unit and the unit that must succeed before it, as an index into [`Gathered::units`].
#[derive(Debug, Clone)]
pub struct Planned {
    /// The work.
    pub unit: Unit,
    /// The definition it waits for.
    pub after: Option<usize>,
}

/// What was noticed and not an error, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct GatherCounts {
    /// Records looked at.
    pub records: u64,
    /// Rows made of them.
    pub rows: u64,
    /// Rows that another row of the same gather with the same key superseded.
    pub superseded: u64,
    /// Rows older than the retention: counted, not written.
    pub expired: u64,
    /// Messages whose Kafka timestamp could not be used.
    pub time_replaced: u64,
    /// Messages without a tenant or a region.
    pub meta_missing: u64,
    /// Values stored without a part that was too long for its column.
    pub shortened: u64,
}

/// One stretch of the log as work for the store.
#[derive(Debug, Default)]
pub struct Gathered {
    /// First position.
    pub start: Position,
    /// For each record from `start` on, how many of its rows or dead letters are outstanding.
    pub outstanding: Vec<u32>,
    /// The work; a definition stands before the units that wait for it.
    pub units: Vec<Planned>,
    /// Messages that can never be stored.
    pub dead: Vec<(RecordRef, DeadLetter)>,
    /// What was noticed.
    pub counts: GatherCounts,
    /// Monotonic time when it was finished: its definitions are stamped with that moment.
    pub finished: Duration,
}

impl Gathered {
    /// Position after the last record.
    #[must_use]
    pub fn end(&self) -> Position {
        end_of(self.start, &self.outstanding)
    }
}

fn end_of(start: Position, records: &[u32]) -> Position {
    Position::new(start.get().saturating_add(u64::try_from(records.len()).unwrap_or(u64::MAX)))
}

struct SeriesRows {
    series: Arc<Series>,
    rows: Vec<(Measurement, Order, RecordRef)>,
}

/// Which of two rows with the same key wins: the later message, then the higher partition and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    write_time_us: i64,
    partition: i32,
    offset: i64,
    element: u32,
}

/// Collects records of one stretch of the log.
pub struct Gather {
    config: GatherConfig,
    start: Position,
    outstanding: Vec<u32>,
    series: HashMap<MetricId, SeriesRows>,
    alarms: Vec<(AlarmTransition, Order, RecordRef)>,
    dead: Vec<(RecordRef, DeadLetter)>,
    counts: GatherCounts,
    bytes: usize,
}

impl Gather {
    /// An empty gather that begins at `start`.
    #[must_use]
    pub fn new(config: GatherConfig, start: Position) -> Self {
        Self {
            config,
            start,
            outstanding: Vec::new(),
            series: HashMap::new(),
            alarms: Vec::new(),
            dead: Vec::new(),
            counts: GatherCounts::default(),
            bytes: 0,
        }
    }

    /// Position after the last record taken.
    #[must_use]
    pub fn end(&self) -> Position {
        end_of(self.start, &self.outstanding)
    }

    /// True before the first record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Rows and dead letters collected.
    #[must_use]
    pub fn rows(&self) -> usize {
        usize::try_from(self.counts.rows).unwrap_or(usize::MAX).saturating_add(self.dead.len())
    }

    /// Bytes held, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Skips the record at the next position: it is acked already, or the log reported it lost.
    pub fn skip(&mut self) {
        self.outstanding.push(0);
    }

    /// Takes the record at the next position, and returns the partition and offset it came from if that says how far the
    /// partition is. `now_ms` is the wall clock.
    pub fn push(&mut self, record: &[u8], now_ms: i64) -> Option<(i32, i64)> {
        let index = u32::try_from(self.outstanding.len()).unwrap_or(u32::MAX);
        self.counts.records = self.counts.records.saturating_add(1);
        self.bytes = self.bytes.saturating_add(record.len());
        self.outstanding.push(0);
        let at = RecordRef { index, element: 0 };
        let envelope = match Envelope::decode(record) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.reject(at, DeadLetter::unreadable(record, &error));
                return None;
            }
        };
        self.push_message(&envelope, Envelope::cut_from(record), at, now_ms);
        (!Envelope::is_again(record)).then_some((envelope.partition, envelope.offset))
    }

    /// `cut_from` is how long a message was that is not all there.
    fn push_message(
        &mut self,
        envelope: &Envelope<'_>,
        cut_from: Option<u64>,
        at: RecordRef,
        now_ms: i64,
    ) {
        if let Some(bytes) = cut_from {
            let detail = format!(
                "{bytes} bytes, more than a record of the log can have; only the first are kept, Kafka has it all until \
                 its retention takes it"
            );
            let letter = DeadLetter::of(envelope, 0, "MESSAGE_TOO_LARGE", &detail);
            self.reject(at, DeadLetter { cut_from: Some(bytes), ..letter });
            return;
        }
        let Some(payload) = envelope.payload else {
            self.reject(
                at,
                DeadLetter::of(envelope, 0, "NO_PAYLOAD", "the message has no payload"),
            );
            return;
        };
        if payload.len() > self.config.message_bytes_max {
            let detail = format!(
                "{} bytes, more than the {} that message_bytes_max allows",
                payload.len(),
                self.config.message_bytes_max
            );
            self.reject(at, DeadLetter::of(envelope, 0, "MESSAGE_TOO_LARGE", &detail));
            return;
        }
        let retention_ms = i64::try_from(self.config.retention.as_millis()).unwrap_or(i64::MAX);
        let time = envelope.effective_time(retention_ms);
        if time.replaced {
            self.counts.time_replaced = self.counts.time_replaced.saturating_add(1);
        }
        match self.config.kind {
            Kind::Metrics => self.push_metrics(envelope, payload, time, at.index, now_ms),
            Kind::Alarms => self.push_alarm(envelope, payload, time, at, now_ms),
        }
    }

    fn push_metrics(
        &mut self,
        envelope: &Envelope<'_>,
        payload: &[u8],
        time: EffectiveTime,
        index: u32,
        now_ms: i64,
    ) {
        decode::metrics(payload, |element, decoded| {
            let at = RecordRef { index, element: u32::try_from(element).unwrap_or(u32::MAX) };
            let metric = match decoded {
                Ok(metric) => metric,
                Err(error) => {
                    self.reject(
                        at,
                        DeadLetter::of(envelope, at.element, error.code, &error.detail),
                    );
                    return;
                }
            };
            self.note(metric.notes);
            let Some(stamp) = self.stamp(time, now_ms) else { return };
            let id = metric.id(self.config.scheme);
            let row = Measurement {
                time_ms: metric.time_ms,
                value: metric.value,
                value_meta: metric.value_meta.as_ref().to_owned(),
                stamp,
            };
            let order = order(envelope, stamp, at.element);
            self.series
                .entry(id)
                .or_insert_with(|| SeriesRows {
                    series: Arc::new(metric.to_series(id)),
                    rows: Vec::new(),
                })
                .rows
                .push((row, order, at));
            self.hold(at);
        });
    }

    fn push_alarm(
        &mut self,
        envelope: &Envelope<'_>,
        payload: &[u8],
        time: EffectiveTime,
        at: RecordRef,
        now_ms: i64,
    ) {
        let alarm = match decode::alarm(payload) {
            Ok(alarm) => alarm,
            Err(error) => {
                self.reject(at, DeadLetter::of(envelope, 0, error.code, &error.detail));
                return;
            }
        };
        self.note(alarm.notes);
        let Some(stamp) = self.stamp(time, now_ms) else { return };
        self.alarms.push((alarm.into_transition(stamp), order(envelope, stamp, 0), at));
        self.hold(at);
    }

    /// One more row of the record is outstanding.
    fn hold(&mut self, at: RecordRef) {
        self.counts.rows = self.counts.rows.saturating_add(1);
        self.await_one(at);
    }

    fn await_one(&mut self, at: RecordRef) {
        if let Some(count) =
            usize::try_from(at.index).ok().and_then(|index| self.outstanding.get_mut(index))
        {
            *count = count.saturating_add(1);
        }
    }

    fn reject(&mut self, at: RecordRef, letter: DeadLetter) {
        self.await_one(at);
        self.dead.push((at, letter));
    }

    fn note(&mut self, notes: decode::Notes) {
        if notes.contains(decode::Notes::TENANT_MISSING)
            || notes.contains(decode::Notes::REGION_MISSING)
        {
            self.counts.meta_missing = self.counts.meta_missing.saturating_add(1);
        }
        if notes.contains(decode::Notes::VALUE_META_TOO_LONG)
            || notes.contains(decode::Notes::METRIC_LIST_TOO_LONG)
            || notes.contains(decode::Notes::SUB_ALARMS_TOO_LONG)
        {
            self.counts.shortened = self.counts.shortened.saturating_add(1);
        }
    }

    /// Write time and time to live, or `None` for a row older than the retention.
    fn stamp(&mut self, time: EffectiveTime, now_ms: i64) -> Option<Stamp> {
        let retention_ms = i64::try_from(self.config.retention.as_millis()).unwrap_or(i64::MAX);
        let left_ms = retention_ms.saturating_sub(time.age_ms(now_ms));
        if left_ms <= 0 {
            self.counts.expired = self.counts.expired.saturating_add(1);
            return None;
        }
        Some(Stamp { write_time_us: time.ms.saturating_mul(1000), ttl_s: ttl_s(left_ms) })
    }

    /// The collected work. `memory` tells which series need their definition written.
    #[must_use]
    pub fn finish(self, memory: &DefinitionMemory, now_ms: i64) -> Gathered {
        let mut gathered = Gathered {
            start: self.start,
            outstanding: self.outstanding,
            units: Vec::with_capacity(self.series.len()),
            dead: self.dead,
            counts: self.counts,
            finished: Duration::ZERO,
        };
        let ttl_ms = i64::try_from(
            self.config
                .retention
                .saturating_add(self.config.definition_refresh.saturating_mul(2))
                .as_millis(),
        )
        .unwrap_or(i64::MAX);
        // Ordered by id, so that the same log gives the same work.
        let mut series: Vec<(MetricId, SeriesRows)> = self.series.into_iter().collect();
        series.sort_unstable_by_key(|(id, _)| *id);
        for (id, SeriesRows { series, rows }) in series {
            let after = match memory.need(&id, now_ms) {
                Need::Write { created_at_ms } => {
                    let stamp =
                        Stamp { write_time_us: now_ms.saturating_mul(1000), ttl_s: ttl_s(ttl_ms) };
                    let definition = Definition {
                        series: Arc::clone(&series),
                        created_at_ms,
                        updated_at_ms: now_ms,
                        stamp,
                    };
                    gathered
                        .units
                        .push(Planned { unit: Unit::Definition(definition), after: None });
                    Some(gathered.units.len().saturating_sub(1))
                }
                Need::No => None,
            };
            let rows = collapse(rows, |row| row.time_ms, &mut gathered.counts);
            for (rows, records) in
                self.config.requests(rows, |row| row.value_meta.len().saturating_add(48))
            {
                let unit = Unit::Measurements { series: Arc::clone(&series), rows, records };
                gathered.units.push(Planned { unit, after });
            }
        }
        let alarms = collapse(
            self.alarms,
            |row| (row.tenant_id.clone(), row.alarm_id.clone(), row.time_ms),
            &mut gathered.counts,
        );
        let size = |row: &AlarmTransition| {
            row.metric.len().saturating_add(row.sub_alarms.len()).saturating_add(256)
        };
        // One partition per request: neighbours of one alarm stand together after the sort of `collapse`.
        for alarm in alarms.chunk_by(|(one, _), (other, _)| {
            one.alarm_id == other.alarm_id && one.tenant_id == other.tenant_id
        }) {
            for (rows, records) in self.config.requests(alarm.to_vec(), size) {
                gathered.units.push(Planned { unit: Unit::Alarms { rows, records }, after: None });
            }
        }
        gathered
    }
}

impl GatherConfig {
    /// Cuts rows into requests within the limits.
    fn requests<T>(
        &self,
        rows: Vec<(T, RowRecords)>,
        size: impl Fn(&T) -> usize,
    ) -> Vec<(Vec<T>, Vec<RowRecords>)> {
        let mut requests = Vec::new();
        let (mut batch, mut records, mut bytes) = (Vec::new(), Vec::new(), 0_usize);
        for (row, row_records) in rows {
            let row_bytes = size(&row);
            let full = batch.len() >= self.batch_rows_max
                || bytes.saturating_add(row_bytes) > self.batch_bytes_max;
            if full && !batch.is_empty() {
                requests.push((std::mem::take(&mut batch), std::mem::take(&mut records)));
                bytes = 0;
            }
            bytes = bytes.saturating_add(row_bytes);
            batch.push(row);
            records.push(row_records);
        }
        if !batch.is_empty() {
            requests.push((batch, records));
        }
        requests
    }
}

/// Keeps of rows with the same key the one that wins, and lets it stand for the others. Sorted by key.
fn collapse<T, K: Ord>(
    mut rows: Vec<(T, Order, RecordRef)>,
    key: impl Fn(&T) -> K,
    counts: &mut GatherCounts,
) -> Vec<(T, RowRecords)> {
    rows.sort_by_cached_key(|(row, order, _)| (key(row), *order));
    let mut kept: Vec<(T, RowRecords)> = Vec::with_capacity(rows.len());
    for (row, _, record) in rows {
        match kept.last_mut() {
            Some((last, records)) if key(last) == key(&row) => {
                *last = row;
                let superseded = std::mem::replace(&mut records.record, record);
                records.superseded.push(superseded);
                counts.superseded = counts.superseded.saturating_add(1);
            }
            _ => kept.push((row, RowRecords { record, superseded: Vec::new() })),
        }
    }
    kept
}

fn order(envelope: &Envelope<'_>, stamp: Stamp, element: u32) -> Order {
    Order {
        write_time_us: stamp.write_time_us,
        partition: envelope.partition,
        offset: envelope.offset,
        element,
    }
}

/// Whole seconds to live, at least 1; Cassandra's own limit is twenty years.
fn ttl_s(left_ms: i64) -> i32 {
    const TTL_S_MAX: i64 = 630_720_000;
    i32::try_from((left_ms / 1000).clamp(1, TTL_S_MAX)).unwrap_or(1)
}
