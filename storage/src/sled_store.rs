//! The embedded store for trying it out: sled, pure Rust, quick to build.
//!
//! Its work is blocking and happens inside the futures it returns: the caller runs them on threads of their own.
//! `flush` of sled does not reach the disk on Linux by itself, so [`SledStore`] also syncs the files; rows count as
//! durable only after that, and the caller keeps its log until then.
//!
//! sled gives space back late or never: that is why there is a size cap, and why it is for trying out.

use std::fs::File;
use std::hash::BuildHasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::Store;
use crate::error::{StoreError, Verdict};
use crate::metric_id::MetricId;
use crate::read::{
    MeasurementQuery, Read, SeriesFilter, StoredMeasurement, StoredSeries, StoredTransition,
    TransitionQuery,
};
use crate::rows::{AlarmTransition, Definition, Dimension, Measurement, Stamp, Write};

/// How the store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SledConfig {
    /// Memory for its cache.
    pub cache_bytes: u64,
    /// Most bytes on disk; at the limit writes wait.
    pub max_bytes: u64,
}

/// The store.
pub struct SledStore {
    dir: PathBuf,
    config: SledConfig,
    db: sled::Db,
    measurements: sled::Tree,
    series: sled::Tree,
    alarms: sled::Tree,
    /// One writer at a time, so that comparing write times and inserting is one step.
    writing: Mutex<()>,
    writes: AtomicU64,
    closed: AtomicBool,
    identity: String,
}

#[derive(Serialize, Deserialize)]
struct SeriesValue {
    id: Vec<u8>,
    region: String,
    tenant_id: String,
    name: String,
    dimensions: Vec<Dimension>,
    created_at_ms: i64,
    updated_at_ms: i64,
    write_time_us: i64,
    expires_at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct AlarmValue {
    tenant_id: String,
    alarm_id: String,
    time_ms: i64,
    metric: String,
    old_state: String,
    new_state: String,
    reason: String,
    reason_data: String,
    sub_alarms: String,
    write_time_us: i64,
    expires_at_ms: i64,
}

/// A measurement's value: three numbers, then the meta text.
struct MeasurementValue<'a> {
    value: f64,
    write_time_us: i64,
    expires_at_ms: i64,
    value_meta: &'a str,
}

impl<'a> MeasurementValue<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.value_meta.len().saturating_add(24));
        bytes.extend_from_slice(&self.value.to_le_bytes());
        bytes.extend_from_slice(&self.write_time_us.to_le_bytes());
        bytes.extend_from_slice(&self.expires_at_ms.to_le_bytes());
        bytes.extend_from_slice(self.value_meta.as_bytes());
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (value, rest) = bytes.split_first_chunk()?;
        let (write_time_us, rest) = rest.split_first_chunk()?;
        let (expires_at_ms, rest) = rest.split_first_chunk()?;
        Some(Self {
            value: f64::from_le_bytes(*value),
            write_time_us: i64::from_le_bytes(*write_time_us),
            expires_at_ms: i64::from_le_bytes(*expires_at_ms),
            value_meta: std::str::from_utf8(rest).ok()?,
        })
    }
}

/// Key of the store's own number, outside its trees.
const IDENTITY: &str = "identity";

fn expires_at_ms(stamp: Stamp) -> i64 {
    (stamp.write_time_us / 1000).saturating_add(i64::from(stamp.ttl_s).saturating_mul(1000))
}

fn damaged(what: &str) -> StoreError {
    StoreError::new(
        Verdict::Wait,
        "STORE_CORRUPT",
        format!("{what} cannot be read: set the store directory aside"),
    )
}

fn failed(error: &sled::Error) -> StoreError {
    match error {
        sled::Error::Io(io)
            if matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
        {
            StoreError::new(Verdict::Retry, "STORE_DISK_FULL", error.to_string())
        }
        sled::Error::Corruption { .. } => damaged("the store"),
        _ => StoreError::new(Verdict::Retry, "STORE_ERROR", error.to_string()),
    }
}

/// Times sort as unsigned bytes when their sign is flipped.
fn time_key(time_ms: i64) -> [u8; 8] {
    (time_ms ^ i64::MIN).to_be_bytes()
}

fn measurement_key(id: &MetricId, time_ms: i64) -> Vec<u8> {
    let id = id.as_bytes();
    let mut key = Vec::with_capacity(id.len().saturating_add(9));
    // The length first, so that no id is the beginning of another.
    key.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
    key.extend_from_slice(id);
    key.extend_from_slice(&time_key(time_ms));
    key
}

fn measurement_time(key: &[u8]) -> Option<i64> {
    let (_, time) = key.split_last_chunk::<8>()?;
    Some(i64::from_be_bytes(*time) ^ i64::MIN)
}

/// Series sort by name, so that one name is a range.
fn series_key(name: &str, id: &MetricId) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(id.as_bytes());
    key
}

fn alarm_key(row: &AlarmTransition) -> Vec<u8> {
    let mut key = row.tenant_id.as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(row.alarm_id.as_bytes());
    key.push(0);
    key.extend_from_slice(&time_key(row.time_ms));
    key
}

fn wall_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl SledStore {
    /// Opens or creates the store in `dir`.
    ///
    /// # Errors
    /// The directory cannot be used, or another process holds it.
    pub fn open(dir: &Path, config: SledConfig) -> Result<Self, StoreError> {
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(config.cache_bytes)
            .flush_every_ms(None)
            .open()
            .map_err(|error| failed(&error))?;
        let tree = |name: &str| db.open_tree(name).map_err(|error| failed(&error));
        let identity = identity_of(&db, dir).map_err(|error| failed(&error))?;
        Ok(Self {
            identity,
            dir: dir.to_owned(),
            config,
            measurements: tree("measurements")?,
            series: tree("series")?,
            alarms: tree("alarms")?,
            db,
            writing: Mutex::new(()),
            writes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        })
    }

    fn check_open(&self) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(StoreError::new(Verdict::Retry, "STORE_CLOSED", "the store is closed"));
        }
        Ok(())
    }

    fn check_room(&self) -> Result<(), StoreError> {
        // Asking for the size costs a look at the files.
        if !self.writes.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
            return Ok(());
        }
        let bytes = self.db.size_on_disk().map_err(|error| failed(&error))?;
        if bytes >= self.config.max_bytes {
            let detail = format!(
                "{bytes} bytes on disk, {} allowed: raise the limit",
                self.config.max_bytes
            );
            return Err(StoreError::new(Verdict::Wait, "STORE_FULL", detail));
        }
        Ok(())
    }

    fn write_now(&self, rows: Write<'_>) -> Result<(), StoreError> {
        self.check_open()?;
        self.check_room()?;
        let _one_writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match rows {
            Write::Definitions(definitions) => {
                definitions.iter().try_for_each(|definition| self.write_definition(definition))
            }
            Write::Measurements { series, rows } => self.write_measurements(&series.id, rows),
            Write::Runs(runs) => {
                runs.iter().try_for_each(|run| self.write_measurements(&run.series.id, &run.rows))
            }
            Write::Alarms(rows) => self.write_alarms(rows),
        }
    }

    fn write_measurements(&self, id: &MetricId, rows: &[Measurement]) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        // The same key twice in one request: the later insert of a batch wins, so it must be the later write.
        let mut newest: std::collections::HashMap<i64, i64> =
            std::collections::HashMap::with_capacity(rows.len());
        for row in rows {
            let key = measurement_key(id, row.time_ms);
            let stored = self.measurements.get(&key).map_err(|error| failed(&error))?;
            let stored_us = stored
                .as_deref()
                .and_then(MeasurementValue::decode)
                .map(|value| value.write_time_us);
            let known_us = newest.get(&row.time_ms).copied().or(stored_us);
            if known_us.is_some_and(|known| known >= row.stamp.write_time_us) {
                continue;
            }
            newest.insert(row.time_ms, row.stamp.write_time_us);
            let value = MeasurementValue {
                value: row.value,
                write_time_us: row.stamp.write_time_us,
                expires_at_ms: expires_at_ms(row.stamp),
                value_meta: &row.value_meta,
            };
            batch.insert(key, value.encode());
        }
        self.measurements.apply_batch(batch).map_err(|error| failed(&error))
    }

    fn write_definition(&self, definition: &Definition) -> Result<(), StoreError> {
        let series = &definition.series;
        let key = series_key(&series.name, &series.id);
        let stored = self.series.get(&key).map_err(|error| failed(&error))?;
        let stored: Option<SeriesValue> =
            stored.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        if stored
            .as_ref()
            .is_some_and(|stored| stored.write_time_us >= definition.stamp.write_time_us)
        {
            return Ok(());
        }
        let value = SeriesValue {
            id: series.id.as_bytes().to_vec(),
            region: series.region.clone(),
            tenant_id: series.tenant_id.clone(),
            name: series.name.clone(),
            dimensions: series.dimensions.clone(),
            // An embedded store is asked in place: the first creation time stays.
            created_at_ms: stored.map_or(definition.created_at_ms, |stored| {
                stored.created_at_ms.min(definition.created_at_ms)
            }),
            updated_at_ms: definition.updated_at_ms,
            write_time_us: definition.stamp.write_time_us,
            expires_at_ms: expires_at_ms(definition.stamp),
        };
        self.insert_json(&self.series, key, &value)
    }

    fn write_alarms(&self, rows: &[AlarmTransition]) -> Result<(), StoreError> {
        for row in rows {
            let key = alarm_key(row);
            let stored = self.alarms.get(&key).map_err(|error| failed(&error))?;
            let stored: Option<AlarmValue> =
                stored.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
            if stored.is_some_and(|stored| stored.write_time_us >= row.stamp.write_time_us) {
                continue;
            }
            let value = AlarmValue {
                tenant_id: row.tenant_id.clone(),
                alarm_id: row.alarm_id.clone(),
                time_ms: row.time_ms,
                metric: row.metric.clone(),
                old_state: row.old_state.clone(),
                new_state: row.new_state.clone(),
                reason: row.reason.clone(),
                reason_data: row.reason_data.clone(),
                sub_alarms: row.sub_alarms.clone(),
                write_time_us: row.stamp.write_time_us,
                expires_at_ms: expires_at_ms(row.stamp),
            };
            self.insert_json(&self.alarms, key, &value)?;
        }
        Ok(())
    }

    fn insert_json<T: Serialize>(
        &self,
        tree: &sled::Tree,
        key: Vec<u8>,
        value: &T,
    ) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|error| {
            StoreError::new(Verdict::Reject, "STORE_INVALID_ROW", error.to_string())
        })?;
        tree.insert(key, bytes).map_err(|error| failed(&error))?;
        Ok(())
    }

    fn flush_now(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| failed(&error))?;
        sync_files(&self.dir).map_err(|error| failed(&sled::Error::Io(error)))
    }
}

/// A number drawn when the store was created; durable before anybody goes by it.
fn identity_of(db: &sled::Db, dir: &Path) -> sled::Result<String> {
    if let Some(known) = db.get(IDENTITY)? {
        return Ok(format!("sled {}", String::from_utf8_lossy(&known)));
    }
    // Two random numbers of the operating system's making.
    let drawn = [(); 2].map(|()| std::hash::RandomState::new().hash_one(std::process::id()));
    let drawn = format!("{:016x}{:016x}", drawn[0], drawn[1]);
    db.insert(IDENTITY, drawn.as_bytes())?;
    db.flush()?;
    sync_files(dir).map_err(sled::Error::Io)?;
    Ok(format!("sled {drawn}"))
}

/// Syncs every file below `dir`, and the directories themselves.
pub(crate) fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            sync_files(&path)?;
        } else {
            match File::open(&path) {
                Ok(file) => file.sync_data()?,
                // A snapshot that was replaced meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    File::open(dir)?.sync_all()
}

impl Store for SledStore {
    fn write<'a>(&'a self, rows: Write<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { self.write_now(rows) }.boxed()
    }

    fn needs_flush(&self) -> bool {
        true
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.check_open()?;
            self.flush_now()
        }
        .boxed()
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.check_open()?;
            self.db.size_on_disk().map(drop).map_err(|error| failed(&error))
        }
        .boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, StoreError>> {
        async move {
            self.check_open()?;
            Ok(self.identity.clone())
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.closed.store(true, Ordering::Relaxed);
            self.flush_now()
        }
        .boxed()
    }
}

impl Read for SledStore {
    fn series(&self, filter: &SeriesFilter, limit: usize) -> Result<Vec<StoredSeries>, StoreError> {
        let now_ms = wall_ms();
        let entries = match &filter.name {
            Some(name) => self.series.scan_prefix([name.as_bytes(), &[0]].concat()),
            None => self.series.iter(),
        };
        let mut found = Vec::new();
        for entry in entries {
            if found.len() >= limit {
                break;
            }
            let (_, bytes) = entry.map_err(|error| failed(&error))?;
            let value: SeriesValue =
                serde_json::from_slice(&bytes).map_err(|_| damaged("a series"))?;
            let wanted = value.expires_at_ms > now_ms
                && filter.name.as_ref().is_none_or(|name| *name == value.name)
                && filter.tenant_id.as_ref().is_none_or(|tenant_id| *tenant_id == value.tenant_id)
                && filter.dimensions.iter().all(|dimension| value.dimensions.contains(dimension));
            if wanted {
                found.push(StoredSeries {
                    metric_id: MetricId::try_from(value.id.as_slice())
                        .map_err(|_| damaged("a series"))?,
                    region: value.region,
                    tenant_id: value.tenant_id,
                    name: value.name,
                    dimensions: value.dimensions,
                    created_at_ms: value.created_at_ms,
                    updated_at_ms: value.updated_at_ms,
                    expires_at_ms: value.expires_at_ms,
                });
            }
        }
        Ok(found)
    }

    fn measurements(&self, query: &MeasurementQuery) -> Result<Vec<StoredMeasurement>, StoreError> {
        let now_ms = wall_ms();
        let range = measurement_key(&query.metric_id, query.from_ms)
            ..=measurement_key(&query.metric_id, query.to_ms);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.measurements.range(range);
        let row = |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, bytes) = entry.map_err(|error| failed(&error))?;
            let (Some(time_ms), Some(value)) =
                (measurement_time(&key), MeasurementValue::decode(&bytes))
            else {
                return Err(damaged("a measurement"));
            };
            Ok(StoredMeasurement {
                time_ms,
                value: value.value,
                value_meta: value.value_meta.to_owned(),
                write_time_us: value.write_time_us,
                expires_at_ms: value.expires_at_ms,
            })
        };
        let alive = |row: &Result<StoredMeasurement, StoreError>| {
            row.as_ref().map_or(true, |row| row.expires_at_ms > now_ms)
        };
        if query.newest_first {
            entries.rev().map(row).filter(alive).take(query.limit).collect()
        } else {
            entries.map(row).filter(alive).take(query.limit).collect()
        }
    }

    fn transitions(&self, query: &TransitionQuery) -> Result<Vec<StoredTransition>, StoreError> {
        let now_ms = wall_ms();
        let mut found = Vec::new();
        for entry in self.alarms.iter() {
            if found.len() >= query.limit {
                break;
            }
            let (_, bytes) = entry.map_err(|error| failed(&error))?;
            let value: AlarmValue =
                serde_json::from_slice(&bytes).map_err(|_| damaged("an alarm transition"))?;
            let wanted = value.expires_at_ms > now_ms
                && (query.from_ms..=query.to_ms).contains(&value.time_ms)
                && query.tenant_id.as_ref().is_none_or(|tenant_id| *tenant_id == value.tenant_id)
                && query.alarm_id.as_ref().is_none_or(|alarm_id| *alarm_id == value.alarm_id);
            if wanted {
                found.push(StoredTransition {
                    tenant_id: value.tenant_id,
                    alarm_id: value.alarm_id,
                    time_ms: value.time_ms,
                    metric: value.metric,
                    old_state: value.old_state,
                    new_state: value.new_state,
                    reason: value.reason,
                    reason_data: value.reason_data,
                    sub_alarms: value.sub_alarms,
                    write_time_us: value.write_time_us,
                    expires_at_ms: value.expires_at_ms,
                });
            }
        }
        Ok(found)
    }
}
