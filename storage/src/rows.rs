//! The rows that are stored: typed, owned by nobody's wire format.
//!
//! A *definition* describes a series (who measures what, where); a *measurement* is one value of it.
//! Rows carry their write time and time to live, so that writing one twice changes nothing.

use std::sync::Arc;

use crate::metric_id::{IdScheme, MetricId, metric_id};

/// One dimension of a series: a name and a value, both free text.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Dimension {
    /// What is told apart, for example `hostname`.
    pub name: String,
    /// Its value, for example `node-1`.
    pub value: String,
}

/// Everything that tells one series from another, and the id that stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Id of the series: the partition key of its measurements.
    pub id: MetricId,
    /// Region; empty when the message had none.
    pub region: String,
    /// Tenant (project); empty when the message had none.
    pub tenant_id: String,
    /// Metric name, for example `cpu.idle_perc`.
    pub name: String,
    /// Dimensions sorted by name; names are unique.
    pub dimensions: Vec<Dimension>,
}

impl Series {
    /// A series with its id; `dimensions` may come in any order.
    #[must_use]
    pub fn new(
        scheme: IdScheme,
        region: impl Into<String>,
        tenant_id: impl Into<String>,
        name: impl Into<String>,
        mut dimensions: Vec<Dimension>,
    ) -> Self {
        let (region, tenant_id, name) = (region.into(), tenant_id.into(), name.into());
        dimensions.sort();
        let pairs =
            dimensions.iter().map(|dimension| (dimension.name.as_str(), dimension.value.as_str()));
        let id = metric_id(scheme, &region, &tenant_id, &name, pairs);
        Self { id, region, tenant_id, name, dimensions }
    }

    /// The dimensions as Cassandra's tables hold them: `name TAB value`, sorted by name.
    #[must_use]
    pub fn dimension_list(&self) -> Vec<String> {
        self.dimensions
            .iter()
            .map(|dimension| format!("{}\t{}", dimension.name, dimension.value))
            .collect()
    }

    /// The sorted names of the dimensions.
    #[must_use]
    pub fn dimension_names(&self) -> Vec<&str> {
        self.dimensions.iter().map(|dimension| dimension.name.as_str()).collect()
    }
}

/// How a row is stamped so that replays change nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Write time in microseconds since the epoch: the higher one wins for the same key.
    pub write_time_us: i64,
    /// Seconds until the row expires; at least 1.
    pub ttl_s: i32,
}

/// One value of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// When it was measured, milliseconds since the epoch.
    pub time_ms: i64,
    /// The value; never NaN or infinite.
    pub value: f64,
    /// JSON object as text; empty when the message had none, so that an older one cannot show through.
    pub value_meta: String,
    /// Write time and expiry.
    pub stamp: Stamp,
}

/// Measurements of one series that travel together with those of others.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The series.
    pub series: Arc<Series>,
    /// Its values.
    pub rows: Vec<Measurement>,
}

/// The rows that describe a series: written before or with its first measurement, refreshed later.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The series described.
    pub series: Arc<Series>,
    /// When this persister first wrote the series as far as it knows, milliseconds since the epoch. A store that has an
    /// earlier one keeps that.
    pub created_at_ms: i64,
    /// When it was last refreshed, milliseconds since the epoch.
    pub updated_at_ms: i64,
    /// Write time and expiry; outlives the measurements that need it.
    pub stamp: Stamp,
}

/// One change of state of one alarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlarmTransition {
    /// Tenant that owns the alarm.
    pub tenant_id: String,
    /// The alarm.
    pub alarm_id: String,
    /// When it changed, milliseconds since the epoch.
    pub time_ms: i64,
    /// The alarm's metrics as JSON text.
    pub metric: String,
    /// `UNDETERMINED`, `OK` or `ALARM`.
    pub old_state: String,
    /// `UNDETERMINED`, `OK` or `ALARM`.
    pub new_state: String,
    /// Why it changed, for people.
    pub reason: String,
    /// Always `{}`: kept for readers that expect the column.
    pub reason_data: String,
    /// The sub-alarms as JSON text with snake_case keys.
    pub sub_alarms: String,
    /// Write time and expiry.
    pub stamp: Stamp,
}

/// Rows that one request to the store carries, all of one kind.
#[derive(Debug, Clone, Copy)]
pub enum Write<'a> {
    /// Definitions: every table that describes these series. Those of one name and tenant cost least together.
    Definitions(&'a [Definition]),
    /// Measurements of one series, at most one per time.
    Measurements {
        /// The series.
        series: &'a Series,
        /// Its values.
        rows: &'a [Measurement],
    },
    /// A few measurements each of several series that [`Store::replicas`](crate::Store::replicas) says the same of; each
    /// series once, and each of its times once.
    Runs(&'a [Run]),
    /// Alarm transitions of any alarms.
    Alarms(&'a [AlarmTransition]),
}

impl Write<'_> {
    /// Number of rows as the message's sender counts them: a definition is one.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Write::Definitions(definitions) => definitions.len(),
            Write::Measurements { rows, .. } => rows.len(),
            Write::Runs(runs) => runs.iter().map(|run| run.rows.len()).sum(),
            Write::Alarms(rows) => rows.len(),
        }
    }

    /// Bytes that it takes on the way to a remote store, about.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        /// What each statement of a batch has besides its values: id, lengths, write time and expiry.
        const ROW_BYTES: usize = 64;
        /// A measurement's id, time and value.
        const MEASUREMENT_BYTES: usize = 48;
        const REQUEST_BYTES: usize = 64;
        let measurements = |rows: &[Measurement]| -> usize {
            let bytes = rows.iter().map(|row| row.value_meta.len());
            bytes.sum::<usize>().saturating_add(
                rows.len().saturating_mul(ROW_BYTES.saturating_add(MEASUREMENT_BYTES)),
            )
        };
        let rows = match self {
            // In five tables: most texts of a series stand in two of them, each dimension in three more.
            Write::Definitions(definitions) => definitions
                .iter()
                .map(|definition| {
                    let series = definition.series.as_ref();
                    let name = series
                        .region
                        .len()
                        .saturating_add(series.tenant_id.len())
                        .saturating_add(series.name.len());
                    let dimensions: usize = series
                        .dimensions
                        .iter()
                        .map(|dimension| dimension.name.len().saturating_add(dimension.value.len()))
                        .sum();
                    let each = name.saturating_add(ROW_BYTES);
                    let lists = each.saturating_add(dimensions).saturating_mul(2);
                    let shared =
                        each.saturating_mul(series.dimensions.len()).saturating_add(dimensions);
                    lists.saturating_add(shared.saturating_mul(3))
                })
                .sum(),
            Write::Measurements { rows, .. } => measurements(rows),
            Write::Runs(runs) => runs.iter().map(|run| measurements(&run.rows)).sum(),
            Write::Alarms(rows) => rows
                .iter()
                .map(|row| {
                    [&row.tenant_id, &row.alarm_id, &row.metric, &row.reason, &row.sub_alarms]
                        .iter()
                        .map(|text| text.len())
                        .sum::<usize>()
                        .saturating_add(ROW_BYTES)
                })
                .sum(),
        };
        rows.saturating_add(REQUEST_BYTES)
    }

    /// True when there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
