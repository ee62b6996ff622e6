//! What every store promises, checked for sled and for a real Cassandra alike, and what each of them promises alone.
//!
//! Rows are read back past the store's own code where that is possible: Cassandra through a plain session, with the
//! write time and the time to live that the server itself reports.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; its numbers are small"
)]

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::Cassandra;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::serialize::row::SerializeRow;
use scylla::value::CqlTimestamp;
use storage::cassandra::{CassandraConfig, CassandraStore, schema};
use storage::sled_store::{SledConfig, SledStore};
use storage::{
    AlarmTransition, Definition, Dimension, IdScheme, Measurement, MeasurementQuery, Read, Run,
    Series, SeriesFilter, Stamp, Store, StoreError, TransitionQuery, Verdict, Write,
};
use tempfile::TempDir;

const TTL_S: i32 = 3600;
const SIMPLE: &str = "{'class': 'SimpleStrategy', 'replication_factor': 1}";

/// The node of this file's tests: starting one takes most of their time. It ends, and its directory goes, with the
/// last test that holds it; a static would leave the directory behind.
fn shared_node() -> Arc<Cassandra> {
    static NODE: Mutex<Weak<Cassandra>> = Mutex::new(Weak::new());
    let mut node = NODE.lock().unwrap_or_else(PoisonError::into_inner);
    node.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Cassandra::start().unwrap());
        *node = Arc::downgrade(&started);
        started
    })
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test)
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Repeats what a store answers with [`Verdict::Retry`], as its caller does.
async fn until_ok<F: Future<Output = Result<(), StoreError>>>(mut attempt: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        match attempt().await {
            Ok(()) => return,
            Err(error) if error.verdict == Verdict::Retry && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{error} ({:?})", error.verdict),
        }
    }
}

fn config(node: &Cassandra, keyspace: &str) -> CassandraConfig {
    CassandraConfig {
        contact_points: vec![node.contact_point()],
        keyspace: keyspace.to_owned(),
        ..CassandraConfig::default()
    }
}

fn store(config: &CassandraConfig) -> CassandraStore {
    CassandraStore::new(config.clone(), tokio::runtime::Handle::current())
}

fn open_sled(dir: &Path) -> SledStore {
    SledStore::open(dir, SledConfig { cache_bytes: 8 << 20, max_bytes: 1 << 30 }).unwrap()
}

/// A keyspace of its own, a store that writes to it, and a session that looks at it.
struct Tables {
    store: CassandraStore,
    session: Session,
    keyspace: String,
}

impl Tables {
    async fn new(node: &Cassandra) -> Self {
        let keyspace = harness::unique("conformance");
        let config = config(node, &keyspace);
        schema::apply(&config, SIMPLE).await.unwrap();
        assert_eq!(schema::check(&config).await.unwrap(), Vec::<String>::new());
        let store = store(&config);
        until_ok(|| store.health()).await;
        let session = SessionBuilder::new().known_node(node.contact_point()).build().await.unwrap();
        Self { store, session, keyspace }
    }

    async fn select<R>(&self, columns: &str, rest: &str, values: impl SerializeRow) -> Vec<R>
    where
        R: for<'f, 'm> DeserializeRow<'f, 'm>,
    {
        let text = format!("SELECT {columns} FROM {}.{rest}", self.keyspace);
        let rows =
            self.session.query_unpaged(text, values).await.unwrap().into_rows_result().unwrap();
        rows.rows::<R>().unwrap().map(Result::unwrap).collect()
    }
}

/// A measurement as either store shows it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    time_ms: i64,
    value: f64,
    value_meta: String,
    write_time_us: i64,
}

fn as_seen(row: &Measurement) -> Seen {
    Seen {
        time_ms: row.time_ms,
        value: row.value,
        value_meta: row.value_meta.clone(),
        write_time_us: row.stamp.write_time_us,
    }
}

/// A definition as either store shows it: region, tenant, name, dimensions, id, created, updated.
type SeenSeries = (String, String, String, Vec<String>, Vec<u8>, i64, i64);

fn as_seen_series(definition: &Definition) -> SeenSeries {
    let series = &definition.series;
    (
        series.region.clone(),
        series.tenant_id.clone(),
        series.name.clone(),
        series.dimension_list(),
        series.id.as_bytes().to_vec(),
        definition.created_at_ms,
        definition.updated_at_ms,
    )
}

/// A store under test and the way to look into it.
enum Place {
    /// With the directory, which goes when the store does.
    Sled(SledStore, #[expect(dead_code, reason = "held")] TempDir),
    Cassandra(Box<Tables>),
}

impl Place {
    /// One of each, empty.
    async fn all(node: &Cassandra) -> [Self; 2] {
        let dir = TempDir::new().unwrap();
        [Self::Sled(open_sled(dir.path()), dir), Self::Cassandra(Box::new(Tables::new(node).await))]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Sled(..) => "sled",
            Self::Cassandra(_) => "Cassandra",
        }
    }

    async fn write(&self, rows: Write<'_>) {
        let store: &dyn Store = match self {
            Self::Sled(store, _) => store,
            Self::Cassandra(tables) => &tables.store,
        };
        store.write(rows).await.unwrap_or_else(|error| panic!("{}: {error}", self.name()));
    }

    async fn measurements(&self, series: &Series) -> Vec<Seen> {
        match self {
            Self::Sled(store, _) => {
                sled_measurements(store, series).into_iter().map(|(seen, _)| seen).collect()
            }
            Self::Cassandra(tables) => tables
                .select::<(CqlTimestamp, f64, String, i64)>(
                    "time_stamp, value, value_meta, WRITETIME(value)",
                    "measurements WHERE metric_id = ?",
                    (series.id.as_bytes(),),
                )
                .await
                .into_iter()
                .map(|(time, value, value_meta, write_time_us)| Seen {
                    time_ms: time.0,
                    value,
                    value_meta,
                    write_time_us,
                })
                .collect(),
        }
    }

    /// Seconds from now until each measurement of the series expires.
    async fn left_s(&self, series: &Series) -> Vec<i64> {
        match self {
            Self::Sled(store, _) => {
                let now_ms = now_ms();
                let rows = sled_measurements(store, series);
                rows.into_iter().map(|(_, expires_at_ms)| (expires_at_ms - now_ms) / 1000).collect()
            }
            Self::Cassandra(tables) => tables
                .select::<(i32,)>(
                    "TTL(value)",
                    "measurements WHERE metric_id = ?",
                    (series.id.as_bytes(),),
                )
                .await
                .into_iter()
                .map(|(left_s,)| i64::from(left_s))
                .collect(),
        }
    }

    async fn series(&self) -> Vec<SeenSeries> {
        match self {
            Self::Sled(store, _) => sled_series(store),
            Self::Cassandra(tables) => tables
                .select::<(String, String, String, Vec<String>, Vec<u8>, CqlTimestamp, CqlTimestamp)>(
                    "region, tenant_id, metric_name, dimensions, metric_id, created_at, updated_at",
                    "metrics",
                    (),
                )
                .await
                .into_iter()
                .map(|(region, tenant, name, dimensions, id, created, updated)| {
                    (region, tenant, name, dimensions, id, created.0, updated.0)
                })
                .collect(),
        }
    }

    /// All alarm transitions, by tenant, alarm and time; only their time to live is left out.
    async fn alarms(&self) -> Vec<AlarmTransition> {
        let mut alarms: Vec<AlarmTransition> = match self {
            Self::Sled(store, _) => sled_alarms(store),
            Self::Cassandra(tables) => tables
                .select::<(String, String, CqlTimestamp, String, String, String, String, String, String, i64)>(
                    "tenant_id, alarm_id, time_stamp, metric, old_state, new_state, reason, reason_data, sub_alarms, \
                     WRITETIME(new_state)",
                    "alarm_state_history",
                    (),
                )
                .await
                .into_iter()
                .map(|row| AlarmTransition {
                    tenant_id: row.0,
                    alarm_id: row.1,
                    time_ms: row.2.0,
                    metric: row.3,
                    old_state: row.4,
                    new_state: row.5,
                    reason: row.6,
                    reason_data: row.7,
                    sub_alarms: row.8,
                    stamp: Stamp { write_time_us: row.9, ttl_s: TTL_S },
                })
                .collect(),
        };
        alarms.sort_by(|one, other| {
            (&one.tenant_id, &one.alarm_id, one.time_ms).cmp(&(
                &other.tenant_id,
                &other.alarm_id,
                other.time_ms,
            ))
        });
        alarms
    }
}

fn sled_measurements(store: &SledStore, series: &Series) -> Vec<(Seen, i64)> {
    let query = MeasurementQuery {
        metric_id: series.id,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
        limit: usize::MAX,
        newest_first: false,
    };
    let rows = store.measurements(&query).unwrap();
    rows.into_iter()
        .map(|row| {
            let seen = Seen {
                time_ms: row.time_ms,
                value: row.value,
                value_meta: row.value_meta,
                write_time_us: row.write_time_us,
            };
            (seen, row.expires_at_ms)
        })
        .collect()
}

fn sled_series(store: &SledStore) -> Vec<SeenSeries> {
    let rows = store.series(&SeriesFilter::default(), usize::MAX).unwrap();
    rows.into_iter()
        .map(|row| {
            let dimensions = row
                .dimensions
                .iter()
                .map(|dimension| format!("{}\t{}", dimension.name, dimension.value))
                .collect();
            let id = row.metric_id.as_bytes().to_vec();
            (
                row.region,
                row.tenant_id,
                row.name,
                dimensions,
                id,
                row.created_at_ms,
                row.updated_at_ms,
            )
        })
        .collect()
}

fn sled_alarms(store: &SledStore) -> Vec<AlarmTransition> {
    let query = TransitionQuery {
        tenant_id: None,
        alarm_id: None,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
        limit: usize::MAX,
    };
    let rows = store.transitions(&query).unwrap();
    rows.into_iter()
        .map(|row| AlarmTransition {
            tenant_id: row.tenant_id,
            alarm_id: row.alarm_id,
            time_ms: row.time_ms,
            metric: row.metric,
            old_state: row.old_state,
            new_state: row.new_state,
            reason: row.reason,
            reason_data: row.reason_data,
            sub_alarms: row.sub_alarms,
            stamp: Stamp { write_time_us: row.write_time_us, ttl_s: TTL_S },
        })
        .collect()
}

fn dimension(name: &str, value: &str) -> Dimension {
    Dimension { name: name.to_owned(), value: value.to_owned() }
}

fn series(name: &str) -> Series {
    let dimensions = vec![dimension("service", "compute"), dimension("hostname", "node-1")];
    Series::new(IdScheme::Sha256, "eu", "tenant-1", name, dimensions)
}

/// A stamp `newer_us` after some moment of this run.
fn stamp(base_ms: i64, newer_us: i64) -> Stamp {
    Stamp { write_time_us: base_ms * 1000 + newer_us, ttl_s: TTL_S }
}

fn measurement(time_ms: i64, value: f64, stamp: Stamp) -> Measurement {
    Measurement { time_ms, value, value_meta: format!(r#"{{"value":"{value}"}}"#), stamp }
}

fn definition(series: Series, at_ms: i64, stamp: Stamp) -> Definition {
    Definition { series: Arc::new(series), created_at_ms: at_ms, updated_at_ms: at_ms, stamp }
}

fn alarm(alarm_id: &str, time_ms: i64, new_state: &str, stamp: Stamp) -> AlarmTransition {
    AlarmTransition {
        tenant_id: "tenant-1".to_owned(),
        alarm_id: alarm_id.to_owned(),
        time_ms,
        metric: r#"[{"name":"cpu"}]"#.to_owned(),
        old_state: "OK".to_owned(),
        new_state: new_state.to_owned(),
        reason: "Thresholds were exceeded".to_owned(),
        reason_data: "{}".to_owned(),
        sub_alarms: r#"[{"sub_alarm_state":"ALARM"}]"#.to_owned(),
        stamp,
    }
}

#[test]
fn writing_again_changes_nothing() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            let series = series("cpu");
            let rows: Vec<_> =
                (0..3).map(|at| measurement(now + at, at as f64, stamp(now, at))).collect();
            let definition = definition(series.clone(), now, stamp(now, 0));
            let alarms =
                [alarm("a", now, "ALARM", stamp(now, 0)), alarm("b", now, "OK", stamp(now, 1))];
            for _ in 0..3 {
                place.write(Write::Definitions(std::slice::from_ref(&definition))).await;
                place.write(Write::Measurements { series: &series, rows: &rows }).await;
                place.write(Write::Alarms(&alarms)).await;
                let seen: Vec<_> = rows.iter().map(as_seen).collect();
                assert_eq!(place.measurements(&series).await, seen, "{}", place.name());
                assert_eq!(place.series().await, [as_seen_series(&definition)], "{}", place.name());
                assert_eq!(place.alarms().await, alarms, "{}", place.name());
            }
        }
    });
}

#[test]
fn a_lower_write_time_does_not_overwrite_a_higher_one_in_either_order() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            for (name, order) in [("rising", [1, 2]), ("falling", [2, 1])] {
                let series = series(name);
                for newer in order {
                    let stamp = stamp(now, newer);
                    // The older values are greater: only the write time may decide.
                    let row = measurement(now, 10.0 - newer as f64, stamp);
                    place.write(Write::Measurements { series: &series, rows: &[row] }).await;
                    let mut definition = definition(series.clone(), now, stamp);
                    definition.updated_at_ms = now + 10 - newer;
                    place.write(Write::Definitions(std::slice::from_ref(&definition))).await;
                    let state = if newer == 2 { "ALARM" } else { "UNDETERMINED" };
                    place.write(Write::Alarms(&[alarm(name, now, state, stamp)])).await;
                }
                let newest = as_seen(&measurement(now, 8.0, stamp(now, 2)));
                assert_eq!(place.measurements(&series).await, [newest], "{} {name}", place.name());
                let found = place.series().await.into_iter().find(|found| found.2 == name).unwrap();
                assert_eq!(found.6, now + 8, "{} {name}", place.name());
                let found =
                    place.alarms().await.into_iter().find(|found| found.alarm_id == name).unwrap();
                assert_eq!(
                    found,
                    alarm(name, now, "ALARM", stamp(now, 2)),
                    "{} {name}",
                    place.name()
                );
            }
        }
    });
}

#[test]
fn one_two_a_hundred_and_a_thousand_rows_of_a_series_are_one_request() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            for count in [1, 2, 100, 1000] {
                let series = series(&format!("rows.{count}"));
                let rows: Vec<_> =
                    (0..count).map(|at| measurement(now + at, at as f64, stamp(now, at))).collect();
                place.write(Write::Measurements { series: &series, rows: &rows }).await;
                let seen: Vec<_> = rows.iter().map(as_seen).collect();
                assert_eq!(place.measurements(&series).await, seen, "{} {count}", place.name());
            }
        }
    });
}

#[test]
fn an_empty_value_meta_is_stored_and_hides_an_older_one() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            let series = series("cpu");
            let older = measurement(now, 1.0, stamp(now, 0));
            let newer =
                Measurement { value_meta: String::new(), ..measurement(now, 2.0, stamp(now, 1)) };
            for row in [&older, &newer] {
                place
                    .write(Write::Measurements { series: &series, rows: std::slice::from_ref(row) })
                    .await;
                assert_eq!(place.measurements(&series).await, [as_seen(row)], "{}", place.name());
            }
        }
    });
}

#[test]
fn text_of_any_script_comes_back_as_it_was() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            let dimensions = vec![
                dimension("ключ", "значение"),
                dimension("鍵", "値 🦀"),
                dimension("e\u{301}", "é"),
            ];
            let series =
                Series::new(IdScheme::Sha256, "région", "مستأجر", "температура.℃", dimensions);
            let definition = definition(series.clone(), now, stamp(now, 0));
            let row = Measurement {
                value_meta: "{\"метка\":\"🦀\\n\"}".to_owned(),
                ..measurement(now, -0.5, stamp(now, 0))
            };
            let transition = AlarmTransition {
                reason: "zu heiß: 99 ℃".to_owned(),
                ..alarm("警報", now, "ALARM", stamp(now, 0))
            };
            place.write(Write::Definitions(std::slice::from_ref(&definition))).await;
            place
                .write(Write::Measurements { series: &series, rows: std::slice::from_ref(&row) })
                .await;
            place.write(Write::Alarms(std::slice::from_ref(&transition))).await;
            assert_eq!(place.series().await, [as_seen_series(&definition)], "{}", place.name());
            assert_eq!(place.measurements(&series).await, [as_seen(&row)], "{}", place.name());
            assert_eq!(place.alarms().await, [transition], "{}", place.name());
        }
    });
}

#[test]
fn rows_expire_when_their_time_to_live_says() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let series = series("cpu");
            let now = now_ms();
            for (at, ttl_s) in [(0, 60), (1, TTL_S), (2, 45 * 86_400)] {
                let stamp = Stamp { ttl_s, ..stamp(now, 0) };
                let row = measurement(now + at, 1.0, stamp);
                place.write(Write::Measurements { series: &series, rows: &[row] }).await;
            }
            let left = place.left_s(&series).await;
            assert_eq!(left.len(), 3, "{}", place.name());
            for (left_s, ttl_s) in left.into_iter().zip([60, i64::from(TTL_S), 45 * 86_400]) {
                assert!(
                    (ttl_s - 30..=ttl_s).contains(&left_s),
                    "{}: {left_s} s of {ttl_s} s left",
                    place.name()
                );
            }
            let brief = measurement(now + 3, 1.0, Stamp { ttl_s: 1, ..stamp(now_ms(), 0) });
            place.write(Write::Measurements { series: &series, rows: &[brief] }).await;
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(
                place.measurements(&series).await.len(),
                3,
                "{}: one has expired",
                place.name()
            );
        }
    });
}

#[test]
fn alarm_transitions_of_several_alarms_go_in_one_request() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            let of_other_tenant = AlarmTransition {
                tenant_id: "tenant-2".to_owned(),
                ..alarm("a", now, "OK", stamp(now, 0))
            };
            let mut alarms = vec![of_other_tenant];
            for at in 0..3 {
                // Interleaved, so that the rows of one alarm are not neighbours.
                alarms.push(alarm("a", now + at, "ALARM", stamp(now, at)));
                alarms.push(alarm("b", now + at, "OK", stamp(now, at)));
            }
            place.write(Write::Alarms(&alarms)).await;
            alarms.sort_by(|one, other| {
                (&one.tenant_id, &one.alarm_id, one.time_ms).cmp(&(
                    &other.tenant_id,
                    &other.alarm_id,
                    other.time_ms,
                ))
            });
            assert_eq!(place.alarms().await, alarms, "{}", place.name());
        }
    });
}

#[test]
fn cassandra_a_definition_fills_its_five_tables_and_an_alarm_the_sixth() {
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let now = now_ms();
        let stamp = stamp(now, 7);
        let series = series("cpu");
        let definition =
            Definition { updated_at_ms: now + 5, ..definition(series.clone(), now, stamp) };
        let row = measurement(now, 1.5, stamp);
        let transition = alarm("a", now, "ALARM", stamp);
        tables.store.write(Write::Definitions(std::slice::from_ref(&definition))).await.unwrap();
        tables
            .store
            .write(Write::Measurements { series: &series, rows: std::slice::from_ref(&row) })
            .await
            .unwrap();
        tables.store.write(Write::Alarms(std::slice::from_ref(&transition))).await.unwrap();
        let text = str::to_owned;
        let list = vec![text("hostname\tnode-1"), text("service\tcompute")];
        let names = vec![text("hostname"), text("service")];
        let id = series.id.as_bytes().to_vec();

        let of_measurements = "metric_id, region, tenant_id, metric_name, dimensions, time_stamp, value, value_meta, \
                               WRITETIME(value), WRITETIME(region)";
        type InMeasurements =
            (Vec<u8>, String, String, String, Vec<String>, CqlTimestamp, f64, String, i64, i64);
        let found = tables.select::<InMeasurements>(of_measurements, "measurements", ()).await;
        let expected = (
            id.clone(),
            text("eu"),
            text("tenant-1"),
            text("cpu"),
            list.clone(),
            CqlTimestamp(now),
            1.5,
            row.value_meta.clone(),
            stamp.write_time_us,
            stamp.write_time_us,
        );
        assert_eq!(found, [expected]);

        let of_metrics = "region, tenant_id, metric_name, dimensions, dimension_names, metric_id, created_at, \
                          updated_at, WRITETIME(metric_id)";
        type InMetrics = (
            String,
            String,
            String,
            Vec<String>,
            Vec<String>,
            Vec<u8>,
            CqlTimestamp,
            CqlTimestamp,
            i64,
        );
        let found = tables.select::<InMetrics>(of_metrics, "metrics", ()).await;
        let (created, updated) = (CqlTimestamp(now), CqlTimestamp(now + 5));
        let expected = (
            text("eu"),
            text("tenant-1"),
            text("cpu"),
            list,
            names,
            id,
            created,
            updated,
            stamp.write_time_us,
        );
        assert_eq!(found, [expected]);

        let pairs = [("hostname", "node-1"), ("service", "compute")];
        let mut found = tables
            .select::<(String, String, String, String)>(
                "region, tenant_id, name, value",
                "dimensions",
                (),
            )
            .await;
        found.sort();
        assert_eq!(
            found,
            pairs.map(|(name, value)| (text("eu"), text("tenant-1"), text(name), text(value)))
        );

        for table in ["dimensions_metrics", "metrics_dimensions"] {
            let columns = "region, tenant_id, dimension_name, dimension_value, metric_name";
            let mut found =
                tables.select::<(String, String, String, String, String)>(columns, table, ()).await;
            found.sort();
            let expected = pairs.map(|(name, value)| {
                (text("eu"), text("tenant-1"), text(name), text(value), text("cpu"))
            });
            assert_eq!(found, expected, "{table}");
        }

        let (left,): (i32,) =
            tables.select("TTL(metric_id)", "metrics", ()).await.into_iter().next().unwrap();
        assert!((TTL_S - 60..=TTL_S).contains(&left), "{left} s left");
        assert_eq!(Place::Cassandra(Box::new(tables)).alarms().await, [transition]);
    });
}

#[test]
fn a_definition_keeps_its_first_creation_time_whoever_writes_it_again() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let (now, series) = (now_ms(), series("cpu"));
            let at = |created_at_ms: i64, newer: i64| Definition {
                created_at_ms,
                updated_at_ms: now + newer,
                ..definition(series.clone(), now, stamp(now, newer))
            };
            place.write(Write::Definitions(&[at(now - 5000, 1)])).await;
            // A persister that remembers nothing takes it for new.
            place.write(Write::Definitions(&[at(now + 2000, 2)])).await;
            let found = place.series().await;
            assert_eq!(found, [as_seen_series(&at(now - 5000, 2))], "{}", place.name());
            place.write(Write::Definitions(&[at(now - 9000, 3)])).await;
            let found = place.series().await;
            assert_eq!(found, [as_seen_series(&at(now - 9000, 3))], "{}", place.name());
        }
    });
}

/// Hosts that measure the same two things, as a cloud's do.
fn many_series() -> Vec<Series> {
    (0..130)
        .map(|number| {
            let dimensions = vec![
                dimension("service", "compute"),
                dimension("hostname", &format!("node-{}", number / 2)),
            ];
            let name = if number % 2 == 0 { "cpu" } else { "memory" };
            Series::new(IdScheme::Sha256, "eu", "tenant-1", name, dimensions)
        })
        .collect()
}

#[test]
fn definitions_written_together_read_like_those_written_one_by_one() {
    let node = shared_node();
    run(async {
        let (together, alone) = (Place::all(&node).await, Place::all(&node).await);
        let now = now_ms();
        for (together, alone) in together.into_iter().zip(alone) {
            let of_all = |created_at_ms: i64, newer: i64| -> Vec<Definition> {
                let each = |series| Definition {
                    created_at_ms,
                    updated_at_ms: now + newer,
                    ..definition(series, now, stamp(now, newer))
                };
                many_series().into_iter().map(each).collect()
            };
            let first = of_all(now - 5000, 1);
            let (known, new) = first.split_at(100);
            together.write(Write::Definitions(known)).await;
            for definition in known {
                alone.write(Write::Definitions(std::slice::from_ref(definition))).await;
            }
            // All of them again, with a later creation time: the earlier one stays where there is one.
            let again = of_all(now + 2000, 2);
            together.write(Write::Definitions(&again)).await;
            for definition in &again {
                alone.write(Write::Definitions(std::slice::from_ref(definition))).await;
            }
            let mut found = [together.series().await, alone.series().await];
            found.iter_mut().for_each(|series| series.sort());
            let [found, expected] = found;
            assert_eq!(found, expected, "{}", together.name());
            let earlier = found.iter().filter(|series| series.5 == now - 5000).count();
            assert_eq!((found.len(), earlier), (100 + new.len(), 100), "{}", together.name());
            if let (Place::Cassandra(together), Place::Cassandra(alone)) = (&together, &alone) {
                for (columns, table) in [
                    ("region, tenant_id, name, value", "dimensions"),
                    ("region, dimension_name, dimension_value, metric_name", "dimensions_metrics"),
                    ("region, metric_name, dimension_name, dimension_value", "metrics_dimensions"),
                ] {
                    type Row = (String, String, String, String);
                    let mut found = together.select::<Row>(columns, table, ()).await;
                    let mut expected = alone.select::<Row>(columns, table, ()).await;
                    found.sort();
                    expected.sort();
                    assert_eq!(found, expected, "{table}");
                    assert!(found.len() >= 66, "{table}: {}", found.len());
                }
                type Statics = (Vec<u8>, String, String, String, Vec<String>);
                let columns = "metric_id, region, tenant_id, metric_name, dimensions";
                let mut found = together.select::<Statics>(columns, "measurements", ()).await;
                let mut expected = alone.select::<Statics>(columns, "measurements", ()).await;
                found.sort();
                expected.sort();
                assert_eq!((found.len(), &found), (130, &expected), "static columns");
            }
        }
    });
}

#[test]
fn few_rows_of_many_series_written_together_are_all_there() {
    let node = shared_node();
    run(async {
        for place in Place::all(&node).await {
            let now = now_ms();
            let runs: Vec<Run> = many_series()
                .into_iter()
                .take(10)
                .zip(0..)
                .map(|(series, number)| Run {
                    series: Arc::new(series),
                    rows: (0..4)
                        .map(|at| measurement(now + at, number as f64, stamp(now, at)))
                        .collect(),
                })
                .collect();
            place.write(Write::Runs(&runs)).await;
            place.write(Write::Runs(&runs[3..5])).await;
            for run in &runs {
                let expected: Vec<Seen> = run.rows.iter().map(as_seen).collect();
                assert_eq!(place.measurements(&run.series).await, expected, "{}", place.name());
            }
        }
    });
}

#[test]
fn cassandra_says_which_series_the_same_replicas_keep() {
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let replicas: Vec<Option<u64>> =
            many_series().iter().map(|series| tables.store.replicas(&series.id)).collect();
        assert!(replicas[0].is_some(), "known once there is a connection");
        assert!(
            replicas.iter().all(|other| *other == replicas[0]),
            "one node keeps all: {replicas:?}"
        );
        let nowhere = CassandraConfig {
            contact_points: vec!["127.0.0.1:1".to_owned()],
            ..CassandraConfig::default()
        };
        assert_eq!(store(&nowhere).replicas(&series("cpu").id), None);
    });
}

/// What is left of each column's time to live; `None`: it has none.
type Left = (Option<i32>, Option<i32>, Option<i32>, Option<i32>);

#[test]
fn cassandra_what_describes_a_series_outlives_its_measurements_and_is_refreshed() {
    const DAY_S: i32 = 86_400;
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let now = now_ms();
        let series = series("cpu");
        let (retention_s, described_s) = (45 * DAY_S, 47 * DAY_S);
        let row = |at: i64, ttl_s| measurement(now + at, 1.0, Stamp { ttl_s, ..stamp(now, at) });
        // A measurement of a series is there before its definition is refreshed, and after.
        let refresh = |newer: i64, ttl_s| {
            let stamp = Stamp { write_time_us: (now + newer) * 1000, ttl_s };
            Definition { updated_at_ms: now + newer, ..definition(series.clone(), now, stamp) }
        };
        let near = |left: Option<i32>, want: i32, what: &str| {
            let left = left.unwrap_or_else(|| panic!("{what} never expires"));
            assert!((want - 60..=want).contains(&left), "{what}: {left} s of {want} s left");
        };
        // As if it had been written most of its time ago.
        tables.store.write(Write::Definitions(&[refresh(0, 2 * DAY_S)])).await.unwrap();
        let rows = [row(0, retention_s)];
        tables.store.write(Write::Measurements { series: &series, rows: &rows }).await.unwrap();
        for (newer, want) in [(0, 2 * DAY_S), (1000, described_s)] {
            if newer > 0 {
                let refreshed = refresh(newer, described_s);
                tables
                    .store
                    .write(Write::Definitions(std::slice::from_ref(&refreshed)))
                    .await
                    .unwrap();
            }
            let of = "measurements WHERE metric_id = ?";
            let id = (series.id.as_bytes(),);
            let ttl = "TTL(region), TTL(tenant_id), TTL(metric_name), TTL(dimensions)";
            let (region, tenant, name, dimensions) =
                tables.select::<Left>(ttl, of, id).await.into_iter().next().unwrap();
            near(region, want, "region");
            near(tenant, want, "tenant_id");
            near(name, want, "metric_name");
            near(dimensions, want, "dimensions");
            let (value,): (Option<i32>,) =
                tables.select("TTL(value)", of, id).await.into_iter().next().unwrap();
            near(value, retention_s, "value");
            let written = "WRITETIME(region), WRITETIME(tenant_id), WRITETIME(metric_name), \
                           WRITETIME(dimensions), WRITETIME(value)";
            let found = tables.select::<(i64, i64, i64, i64, i64)>(written, of, id).await;
            let stamped = (now + newer) * 1000;
            assert_eq!(found, [(stamped, stamped, stamped, stamped, now * 1000)]);
            let ttl = "TTL(metric_id), TTL(created_at), TTL(updated_at), TTL(metric_id)";
            let (id, created, updated, _) =
                tables.select::<Left>(ttl, "metrics", ()).await.into_iter().next().unwrap();
            near(id, want, "metrics.metric_id");
            near(created, want, "metrics.created_at");
            near(updated, want, "metrics.updated_at");
        }
        // A series whose measurements are all gone is still described.
        let silent = Series::new(IdScheme::Sha256, "eu", "tenant-1", "gone", Vec::new());
        let described = definition(silent.clone(), now, stamp(now, 0));
        tables.store.write(Write::Definitions(std::slice::from_ref(&described))).await.unwrap();
        let rows = [row(0, 1)];
        tables.store.write(Write::Measurements { series: &silent, rows: &rows }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let found = tables
            .select::<(String, Option<f64>)>(
                "metric_name, value",
                "measurements WHERE metric_id = ?",
                (silent.id.as_bytes(),),
            )
            .await;
        assert_eq!(found, [("gone".to_owned(), None)], "the static columns alone");
    });
}

#[test]
fn a_store_says_what_it_is_and_tables_made_anew_are_another_one() {
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let config = config(&node, &tables.keyspace);
        let first = tables.store.identity().await.unwrap();
        let again = store(&config);
        until_ok(|| again.health()).await;
        assert_eq!(again.identity().await.unwrap(), first, "as another process sees it");
        let other = Tables::new(&node).await;
        assert_ne!(other.store.identity().await.unwrap(), first, "another keyspace");
        let drop_table = format!("DROP TABLE {}.metrics", tables.keyspace);
        tables.session.query_unpaged(drop_table, ()).await.unwrap();
        let error = tables.store.identity().await.unwrap_err();
        assert_eq!((error.verdict, error.code), (Verdict::Wait, "DB_SCHEMA"), "{error}");
        schema::apply(&config, SIMPLE).await.unwrap();
        assert_ne!(tables.store.identity().await.unwrap(), first, "one table is new");
    });
    run(async {
        let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let first = open_sled(dir.path()).identity().await.unwrap();
        assert_eq!(open_sled(dir.path()).identity().await.unwrap(), first, "opened again");
        assert_ne!(open_sled(other.path()).identity().await.unwrap(), first, "made anew");
    });
}

#[test]
fn cassandra_a_tenant_too_long_for_a_key_is_rejected_and_others_still_go_through() {
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let now = now_ms();
        let long = Series::new(
            IdScheme::Sha256,
            "eu",
            "t".repeat(65_536),
            "cpu",
            vec![dimension("a", "b")],
        );
        let error = tables
            .store
            .write(Write::Definitions(&[definition(long, now, stamp(now, 0))]))
            .await
            .unwrap_err();
        assert_eq!((error.verdict, error.code), (Verdict::Reject, "DB_INVALID_ROW"), "{error}");
        tables
            .store
            .write(Write::Definitions(&[definition(series("cpu"), now, stamp(now, 0))]))
            .await
            .unwrap();
    });
}

#[test]
fn cassandra_a_missing_keyspace_means_wait_and_heals_when_it_is_created() {
    let node = shared_node();
    run(async {
        let config = config(&node, &harness::unique("missing"));
        let store = store(&config);
        let now = now_ms();
        let (series, row) = (series("cpu"), measurement(now, 1.0, stamp(now, 0)));
        let write = || {
            store.write(Write::Measurements { series: &series, rows: std::slice::from_ref(&row) })
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        let error = loop {
            let error = write().await.unwrap_err();
            if error.code != "DB_UNREACHABLE" || Instant::now() > deadline {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!((error.verdict, error.code), (Verdict::Wait, "DB_SCHEMA"), "{error}");
        let missing = schema::check(&config).await.unwrap();
        assert_eq!(missing.len(), 6, "all six tables: {missing:?}");
        schema::apply(&config, SIMPLE).await.unwrap();
        write().await.unwrap();
    });
}

#[test]
fn cassandra_a_keyspace_dropped_and_created_again_heals_too() {
    let node = shared_node();
    run(async {
        let tables = Tables::new(&node).await;
        let now = now_ms();
        let (series, row) = (series("cpu"), measurement(now, 1.0, stamp(now, 0)));
        let rows = std::slice::from_ref(&row);
        let write = || tables.store.write(Write::Measurements { series: &series, rows });
        write().await.unwrap();
        tables
            .session
            .query_unpaged(format!("DROP KEYSPACE {}", tables.keyspace), ())
            .await
            .unwrap();
        let error = write().await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Wait, "{error}");
        schema::apply(&config(&node, &tables.keyspace), SIMPLE).await.unwrap();
        write().await.unwrap();
        assert_eq!(Place::Cassandra(Box::new(tables)).measurements(&series).await, [as_seen(&row)]);
    });
}

#[test]
fn cassandra_a_killed_node_means_retry_and_writes_succeed_unaided_after_its_restart() {
    // Held so that the node of the other tests does not end between two of them.
    let _shared = shared_node();
    let mut node = Cassandra::start().unwrap();
    run(async {
        let tables = Tables::new(&node).await;
        let now = now_ms();
        let series = series("cpu");
        let row = |at: i64| [measurement(now + at, at as f64, stamp(now, at))];
        tables.store.write(Write::Measurements { series: &series, rows: &row(0) }).await.unwrap();
        node.kill();
        for _ in 0..20 {
            let error = tables
                .store
                .write(Write::Measurements { series: &series, rows: &row(1) })
                .await
                .unwrap_err();
            assert_eq!(error.verdict, Verdict::Retry, "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(tables.store.health().await.unwrap_err().verdict, Verdict::Retry);
        node.restart().unwrap();
        let rows = row(1);
        until_ok(|| tables.store.write(Write::Measurements { series: &series, rows: &rows })).await;
        let Tables { store, keyspace, .. } = tables;
        let session = SessionBuilder::new().known_node(node.contact_point()).build().await.unwrap();
        let seen = Place::Cassandra(Box::new(Tables { store, session, keyspace }))
            .measurements(&series)
            .await;
        // The row from before the kill may be gone: with `commitlog_sync: periodic` the server acknowledges first and
        // keeps later. What is acknowledged since the restart has to be there.
        assert!(seen.contains(&as_seen(&row(1)[0])), "{seen:?}");
    });
}

#[test]
fn sled_everything_flushed_is_there_after_reopening() {
    let (dir, copy) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let now = now_ms();
    let series = series("cpu");
    let rows: Vec<_> =
        (0..500).map(|at| measurement(now + at, at as f64, stamp(now, at))).collect();
    let definition = definition(series.clone(), now, stamp(now, 0));
    let alarms = [alarm("a", now, "ALARM", stamp(now, 0))];
    let check = |store: &SledStore, how: &str| {
        let seen: Vec<_> =
            sled_measurements(store, &series).into_iter().map(|(seen, _)| seen).collect();
        assert_eq!(seen, rows.iter().map(as_seen).collect::<Vec<_>>(), "{how}");
        assert_eq!(sled_series(store), [as_seen_series(&definition)], "{how}");
        assert_eq!(sled_alarms(store), alarms, "{how}");
    };
    run(async {
        let store = open_sled(dir.path());
        assert!(store.needs_flush());
        store.write(Write::Definitions(std::slice::from_ref(&definition))).await.unwrap();
        store.write(Write::Measurements { series: &series, rows: &rows }).await.unwrap();
        store.write(Write::Alarms(&alarms)).await.unwrap();
        store.flush().await.unwrap();
        // What the files hold now is what a crash would leave: neither closing nor dropping may be needed.
        copy_files(dir.path(), copy.path());
        check(&open_sled(copy.path()), "copied after the flush");
        store.close().await.unwrap();
        let error = store.write(Write::Alarms(&alarms)).await.unwrap_err();
        assert_eq!(error.verdict, Verdict::Retry, "closed");
    });
    check(&open_sled(dir.path()), "closed and opened again");
}

fn copy_files(from: &Path, to: &Path) {
    for entry in from.read_dir().unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
