//! Reading an embedded store back.

use serde::Serialize;

use crate::error::StoreError;
use crate::metric_id::MetricId;
use crate::rows::Dimension;

/// Which series; absent fields match all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeriesFilter {
    /// Exact tenant.
    pub tenant_id: Option<String>,
    /// Exact metric name.
    pub name: Option<String>,
    /// Pairs that the series must have among its dimensions.
    pub dimensions: Vec<Dimension>,
}

/// Which measurements of one series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasurementQuery {
    /// The series.
    pub metric_id: MetricId,
    /// First time, milliseconds since the epoch.
    pub from_ms: i64,
    /// Last time.
    pub to_ms: i64,
    /// Most rows.
    pub limit: usize,
    /// Newest rows first; otherwise oldest first.
    pub newest_first: bool,
}

/// Which alarm transitions; absent fields match all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitionQuery {
    /// Exact tenant.
    pub tenant_id: Option<String>,
    /// Exact alarm.
    pub alarm_id: Option<String>,
    /// First time, milliseconds since the epoch.
    pub from_ms: i64,
    /// Last time.
    pub to_ms: i64,
    /// Most rows.
    pub limit: usize,
}

/// A series as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredSeries {
    /// Its id.
    pub metric_id: MetricId,
    /// Region.
    pub region: String,
    /// Tenant.
    pub tenant_id: String,
    /// Metric name.
    pub name: String,
    /// Dimensions sorted by name.
    pub dimensions: Vec<Dimension>,
    /// When it was first written, milliseconds since the epoch.
    pub created_at_ms: i64,
    /// When it was last refreshed.
    pub updated_at_ms: i64,
    /// When it expires.
    pub expires_at_ms: i64,
}

/// A measurement as stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredMeasurement {
    /// When it was measured, milliseconds since the epoch.
    pub time_ms: i64,
    /// The value.
    pub value: f64,
    /// JSON text; empty when there was none.
    pub value_meta: String,
    /// Write time, microseconds since the epoch.
    pub write_time_us: i64,
    /// When it expires, milliseconds since the epoch.
    pub expires_at_ms: i64,
}

/// An alarm transition as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredTransition {
    /// Tenant.
    pub tenant_id: String,
    /// Alarm.
    pub alarm_id: String,
    /// When it changed, milliseconds since the epoch.
    pub time_ms: i64,
    /// Metrics as JSON text.
    pub metric: String,
    /// State before.
    pub old_state: String,
    /// State after.
    pub new_state: String,
    /// Why, for people.
    pub reason: String,
    /// Always `{}`.
    pub reason_data: String,
    /// Sub-alarms as JSON text.
    pub sub_alarms: String,
    /// Write time, microseconds since the epoch.
    pub write_time_us: i64,
    /// When it expires, milliseconds since the epoch.
    pub expires_at_ms: i64,
}

/// The read side of an embedded store. Calls read files: run them on a thread that may block.
pub trait Read: Send + Sync {
    /// Series that match, at most `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    fn series(&self, filter: &SeriesFilter, limit: usize) -> Result<Vec<StoredSeries>, StoreError>;

    /// Measurements of one series.
    ///
    /// # Errors
    /// As [`Read::series`].
    fn measurements(&self, query: &MeasurementQuery) -> Result<Vec<StoredMeasurement>, StoreError>;

    /// Alarm transitions, oldest first per alarm.
    ///
    /// # Errors
    /// As [`Read::series`].
    fn transitions(&self, query: &TransitionQuery) -> Result<Vec<StoredTransition>, StoreError>;
}
