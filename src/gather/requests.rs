//! Rows into requests: definitions of one name together, rows of one series together, few rows of several series of the
//! same replicas together, each within the limits that the store sets. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::definitions::{DefinitionMemory, Need};
use storage::{AlarmTransition, Definition, Measurement, MetricId, Run, Series, Stamp};

use super::units::{Planned, RecordRef, Records, Unit};
use super::{GatherConfig, GatherCounts, Order, SeriesRows, ttl_s};

/// Most definitions in one request.
const DEFINITIONS_MAX: usize = 100;
/// Most bytes of series in one request of definitions, about.
const DEFINITION_BYTES_MAX: usize = 256 << 10;
/// Most series in one request: Cassandra warns of more partitions.
const FEW_SERIES_MAX: usize = 10;
/// Most bytes in a request of several series, about: Cassandra warns at 5 KiB.
const FEW_BYTES_MAX: usize = 4 << 10;

/// Appends the definitions that have to be written to `units`, those of one name together. Returns for each series what
/// it waits for.
pub(super) fn definitions(
    config: &GatherConfig,
    series: &[SeriesRows],
    memory: &DefinitionMemory,
    now_ms: i64,
    units: &mut Vec<Planned>,
) -> Vec<Option<(usize, usize)>> {
    let ttl_ms = i64::try_from(
        config.retention.saturating_add(config.definition_refresh.saturating_mul(2)).as_millis(),
    )
    .unwrap_or(i64::MAX);
    let stamp = Stamp { write_time_us: now_ms.saturating_mul(1000), ttl_s: ttl_s(ttl_ms) };
    let mut due: Vec<(usize, Definition)> = Vec::new();
    for (number, SeriesRows { series, .. }) in series.iter().enumerate() {
        if let Need::Write { created_at_ms } = memory.need(&series.id, now_ms) {
            let series = Arc::clone(series);
            due.push((number, Definition { series, created_at_ms, updated_at_ms: now_ms, stamp }));
        }
    }
    // Stable: within one name they stay in the order of their ids.
    due.sort_by(|(_, one), (_, other)| {
        let (one, other) = (&one.series, &other.series);
        (&one.name, &one.tenant_id, &one.region).cmp(&(
            &other.name,
            &other.tenant_id,
            &other.region,
        ))
    });
    let mut waits_for = vec![None; series.len()];
    let (mut group, mut bytes) = (Vec::new(), 0_usize);
    for (number, definition) in due {
        let more = series_bytes(&definition.series);
        if group.len() >= DEFINITIONS_MAX
            || (bytes.saturating_add(more) > DEFINITION_BYTES_MAX && !group.is_empty())
        {
            units.push(Planned::of_definitions(std::mem::take(&mut group)));
            bytes = 0;
        }
        if let Some(waits_for) = waits_for.get_mut(number) {
            *waits_for = Some((units.len(), group.len()));
        }
        bytes = bytes.saturating_add(more);
        group.push(definition);
    }
    if !group.is_empty() {
        units.push(Planned::of_definitions(group));
    }
    waits_for
}

pub(super) fn alarm_units(
    config: &GatherConfig,
    mut alarms: Vec<(AlarmTransition, Order, RecordRef)>,
    counts: &mut GatherCounts,
) -> Vec<Planned> {
    alarms.sort_by(|(one, one_order, _), (other, other_order, _)| {
        (&one.tenant_id, &one.alarm_id, one.time_ms, one_order).cmp(&(
            &other.tenant_id,
            &other.alarm_id,
            other.time_ms,
            other_order,
        ))
    });
    let mut units = Vec::new();
    // One partition per request.
    for alarm in alarms.chunk_by(|(one, ..), (other, ..)| {
        one.alarm_id == other.alarm_id && one.tenant_id == other.tenant_id
    }) {
        let requests = config.requests(
            alarm.iter().map(|(row, _, record)| (row.clone(), *record)),
            |one, other| one.time_ms == other.time_ms,
            |row| row.metric.len().saturating_add(row.sub_alarms.len()).saturating_add(256),
            counts,
        );
        for (rows, records) in requests {
            let unit = Unit::Alarms { rows, records };
            units.push(Planned { unit, after: None, replicas: None });
        }
    }
    units
}

impl Planned {
    fn of_definitions(definitions: Vec<Definition>) -> Self {
        Self { unit: Unit::Definitions(definitions), after: None, replicas: None }
    }
}

/// Few rows of a series, joined with those of others that the same replicas keep.
pub(super) struct Few {
    rows_max: usize,
    bytes_max: usize,
    by_replicas: BTreeMap<u64, (Vec<Run>, Records, usize)>,
}

impl Few {
    pub(super) fn new(config: &GatherConfig) -> Self {
        let bytes_max = FEW_BYTES_MAX.min(config.batch_bytes_max);
        Self { rows_max: config.batch_rows_max, bytes_max, by_replicas: BTreeMap::new() }
    }

    fn bytes(rows: &[Measurement]) -> usize {
        /// A row in Cassandra's own count, and what a partition has besides.
        const ROW_BYTES: usize = 72;
        const PARTITION_BYTES: usize = 48;
        let rows = rows.iter().map(|row| row.value_meta.len().saturating_add(ROW_BYTES));
        rows.sum::<usize>().saturating_add(PARTITION_BYTES)
    }

    /// Whether the rows are better off with others: as many as make a full batch with others alike.
    pub(super) fn takes(&self, rows: &[Measurement]) -> bool {
        Self::bytes(rows) <= self.bytes_max / FEW_SERIES_MAX && rows.len() < self.rows_max
    }

    pub(super) fn push(&mut self, replicas: u64, run: Run, records: Records) -> Option<Planned> {
        let (runs, known, bytes) = self.by_replicas.entry(replicas).or_default();
        let more = Self::bytes(&run.rows);
        let full = runs.len() >= FEW_SERIES_MAX
            || known.rows.len().saturating_add(run.rows.len()) > self.rows_max
            || bytes.saturating_add(more) > self.bytes_max;
        let complete = (full && !runs.is_empty()).then(|| {
            *bytes = 0;
            Self::planned(std::mem::take(runs), std::mem::take(known), replicas)
        });
        *bytes = bytes.saturating_add(more);
        runs.push(run);
        known.append(records);
        complete
    }

    pub(super) fn finish(self) -> impl Iterator<Item = Planned> {
        self.by_replicas
            .into_iter()
            .filter(|(_, (runs, ..))| !runs.is_empty())
            .map(|(replicas, (runs, records, _))| Self::planned(runs, records, replicas))
    }

    fn planned(mut runs: Vec<Run>, records: Records, replicas: u64) -> Planned {
        let unit = match (runs.pop(), runs.is_empty()) {
            (Some(Run { series, rows }), true) => Unit::Measurements { series, rows, records },
            (last, _) => {
                runs.extend(last);
                Unit::Runs { runs, records }
            }
        };
        Planned { unit, after: None, replicas: Some(replicas) }
    }
}

impl GatherConfig {
    /// Cuts sorted rows into requests within the limits. Of rows with the same key the last stays, and stands for the
    /// others.
    pub(super) fn requests<T>(
        &self,
        rows: impl ExactSizeIterator<Item = (T, RecordRef)>,
        same: impl Fn(&T, &T) -> bool,
        size: impl Fn(&T) -> usize,
        counts: &mut GatherCounts,
    ) -> Vec<(Vec<T>, Records)> {
        let mut requests = Vec::new();
        let (mut batch, mut records, mut bytes) = (Vec::new(), Records::default(), 0_usize);
        let mut left = rows.len();
        for (row, record) in rows {
            if let Some(last) = batch.last_mut().filter(|last| same(last, &row)) {
                bytes = bytes.saturating_sub(size(last)).saturating_add(size(&row));
                *last = row;
                records.supersede(record);
                counts.superseded = counts.superseded.saturating_add(1);
                left = left.saturating_sub(1);
                continue;
            }
            let row_bytes = size(&row);
            let full = batch.len() >= self.batch_rows_max
                || bytes.saturating_add(row_bytes) > self.batch_bytes_max;
            if full && !batch.is_empty() {
                requests.push((std::mem::take(&mut batch), std::mem::take(&mut records)));
                bytes = 0;
            }
            if batch.is_empty() {
                let capacity = left.min(self.batch_rows_max);
                batch.reserve_exact(capacity);
                records.rows.reserve_exact(capacity);
            }
            bytes = bytes.saturating_add(row_bytes);
            batch.push(row);
            records.rows.push(record);
            left = left.saturating_sub(1);
        }
        if !batch.is_empty() {
            requests.push((batch, records));
        }
        requests
    }
}

/// Bytes of memory that a series takes while its rows are collected, about.
pub(super) fn series_bytes(series: &Series) -> usize {
    /// With its places in lists.
    const SERIES_BYTES: usize = size_of::<Series>() + size_of::<(MetricId, SeriesRows)>() * 2 + 64;
    let texts =
        [&series.region, &series.tenant_id, &series.name].iter().map(|text| text.len()).sum();
    series.dimensions.iter().fold(SERIES_BYTES.saturating_add(texts), |bytes, dimension| {
        bytes
            .saturating_add(dimension.name.len())
            .saturating_add(dimension.value.len())
            .saturating_add(size_of::<storage::Dimension>())
    })
}
