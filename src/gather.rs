//! Records of the log in, units of work for the store out: decoding, stamping, grouping by series. Pure.
//!
//! A *gather* is one stretch of the log looked at together. Its rows are grouped by series, because rows of one
//! partition that travel together cost the store a fraction of what they cost alone. Rows with the same key are
//! collapsed to the one that would win anyway. The clock is an argument.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use storage::definitions::DefinitionMemory;
use storage::{AlarmTransition, IdScheme, Measurement, MetricId, Run, Series, Stamp};
use wal::Position;

use crate::dead_letters::DeadLetter;
use crate::decode;
use crate::envelope::{EffectiveTime, Envelope};

mod known;
mod requests;
mod units;

pub use known::KnownSeries;
use requests::{Few, alarm_units, definitions, series_bytes};
pub use units::{Planned, RecordRef, Records, Unit};

/// What a pipeline carries.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    schemars::JsonSchema,
    serde::Deserialize,
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

/// Tells which replicas keep a series; see [`storage::Store::replicas`].
pub type Replicas = Arc<dyn Fn(&MetricId) -> Option<u64> + Send + Sync>;

/// What was noticed and not an error, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
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
    rows: Vec<Row>,
}

/// A measurement as it waits for others: in few bytes, because how many wait together decides what each of them costs.
struct Row {
    time_ms: i64,
    value: f64,
    write_time_us: i64,
    offset: i64,
    value_meta: Box<str>,
    ttl_s: i32,
    partition: i32,
    record: RecordRef,
}

impl Row {
    /// Sorts by key, and what wins behind what it supersedes.
    fn order(&self) -> (i64, Order) {
        let order = Order {
            write_time_us: self.write_time_us,
            partition: self.partition,
            offset: self.offset,
            element: self.record.element,
        };
        (self.time_ms, order)
    }

    fn into_measurement(self) -> (Measurement, RecordRef) {
        let stamp = Stamp { write_time_us: self.write_time_us, ttl_s: self.ttl_s };
        let (time_ms, value) = (self.time_ms, self.value);
        (Measurement { time_ms, value, value_meta: self.value_meta.into(), stamp }, self.record)
    }
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
    known: KnownSeries,
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
            known: KnownSeries::default(),
            alarms: Vec::new(),
            dead: Vec::new(),
            counts: GatherCounts::default(),
            bytes: 0,
        }
    }

    /// Takes what is known of series from earlier gathers.
    #[must_use]
    pub fn with_known(mut self, known: KnownSeries) -> Self {
        self.known = known;
        self
    }

    /// What is known of series, for the next gather.
    pub fn take_known(&mut self) -> KnownSeries {
        std::mem::take(&mut self.known)
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

    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.saturating_add(self.outstanding.len().saturating_mul(size_of::<u32>()))
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
            let entry = self.series.entry(id).or_insert_with(|| {
                let series = self.known.get(id, || metric.to_series(id));
                self.bytes = self.bytes.saturating_add(series_bytes(&series));
                SeriesRows { series, rows: Vec::new() }
            });
            let before = entry.rows.capacity();
            if entry.rows.len() == before {
                // By the half: what is doubled is empty for a third on average.
                entry.rows.reserve_exact((before / 2).max(4));
            }
            let more =
                entry.rows.capacity().saturating_sub(before).saturating_mul(size_of::<Row>());
            self.bytes = self.bytes.saturating_add(more).saturating_add(metric.value_meta.len());
            entry.rows.push(Row {
                time_ms: metric.time_ms,
                value: metric.value,
                write_time_us: stamp.write_time_us,
                offset: envelope.offset,
                value_meta: metric.value_meta.into(),
                ttl_s: stamp.ttl_s,
                partition: envelope.partition,
                record: at,
            });
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
        let order = Order {
            write_time_us: stamp.write_time_us,
            partition: envelope.partition,
            offset: envelope.offset,
            element: 0,
        };
        // Its texts are most of the message.
        let bytes = payload.len().saturating_add(size_of::<(AlarmTransition, Order, RecordRef)>());
        self.bytes = self.bytes.saturating_add(bytes);
        self.alarms.push((alarm.into_transition(stamp), order, at));
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
        self.bytes = self.bytes.saturating_add(letter.bytes());
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

    /// The collected work. `memory` tells which series need their definition written, `replicas` which series are worth
    /// sending together.
    #[must_use]
    pub fn finish(self, memory: &DefinitionMemory, replicas: &Replicas, now_ms: i64) -> Gathered {
        let Self { config, start, outstanding, series, alarms, dead, mut counts, .. } = self;
        // Ordered by id, so that the same log gives the same work.
        let mut series: Vec<SeriesRows> = series.into_values().collect();
        series.sort_unstable_by_key(|of_series| of_series.series.id);
        let mut units = Vec::with_capacity(series.len());
        let waits_for = definitions(&config, &series, memory, now_ms, &mut units);
        let mut few = Few::new(&config);
        for (of_series, after) in series.into_iter().zip(waits_for) {
            let SeriesRows { series, mut rows } = of_series;
            // Nearly sorted as a rule, which this sort makes use of.
            rows.sort_by_key(Row::order);
            let replicas = replicas(&series.id);
            let requests = config.requests(
                rows.into_iter().map(Row::into_measurement),
                |one, other| one.time_ms == other.time_ms,
                |row| row.value_meta.len().saturating_add(48),
                &mut counts,
            );
            for (rows, records) in requests {
                match replicas {
                    // What waits for a definition goes by itself: others need not wait for it too.
                    Some(replicas) if after.is_none() && few.takes(&rows) => {
                        let run = Run { series: Arc::clone(&series), rows };
                        units.extend(few.push(replicas, run, records));
                    }
                    _ => {
                        let unit =
                            Unit::Measurements { series: Arc::clone(&series), rows, records };
                        units.push(Planned { unit, after, replicas });
                    }
                }
            }
        }
        units.extend(few.finish());
        units.extend(alarm_units(&config, alarms, &mut counts));
        Gathered { start, outstanding, units, dead, counts, finished: Duration::ZERO }
    }
}

/// Whole seconds to live, at least 1; Cassandra's own limit is twenty years.
fn ttl_s(left_ms: i64) -> i32 {
    const TTL_S_MAX: i64 = 630_720_000;
    i32::try_from((left_ms / 1000).clamp(1, TTL_S_MAX)).unwrap_or(1)
}

#[cfg(test)]
mod tests;
