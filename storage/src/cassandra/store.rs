//! Rows into tables.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;

use super::connecting::keep_connected;
use super::session::CassandraConfig;
use super::statements::Statements;
use super::{errors, lives, replicas, schema};
use crate::Store;
use crate::error::{StoreError, Verdict};
use crate::lives::NodeLife;
use crate::metric_id::MetricId;
use crate::rows::{AlarmTransition, Measurement, Run, Series, Write};

/// The health check's own limit.
const HEALTH_WAIT: Duration = Duration::from_secs(2);

/// A cluster.
pub struct CassandraStore {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

pub(super) struct Shared {
    pub(super) config: CassandraConfig,
    state: RwLock<State>,
    /// Held while statements are prepared, so that one task does it for all.
    preparing: tokio::sync::Mutex<()>,
}

pub(super) struct State {
    pub(super) session: Option<Arc<Session>>,
    pub(super) statements: Option<Arc<Statements>>,
    /// Why there is no session.
    pub(super) reason: StoreError,
    pub(super) closed: bool,
}

pub(super) struct Connected {
    pub(super) session: Arc<Session>,
    pub(super) statements: Arc<Statements>,
}

impl Shared {
    pub(super) fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn session(&self) -> Result<Arc<Session>, StoreError> {
        self.state(|state| state.session.clone().ok_or_else(|| state.reason.clone()))
    }

    async fn connected(&self) -> Result<Connected, StoreError> {
        if let Some(connected) = self.prepared() {
            return Ok(connected);
        }
        let session = self.session()?;
        let _one_at_a_time = self.preparing.lock().await;
        if let Some(connected) = self.prepared() {
            return Ok(connected);
        }
        let statements = Statements::prepare(&session, &self.config.keyspace)
            .await
            .map_err(|error| errors::of_prepare(&error))?;
        let statements = Arc::new(statements);
        self.change(|state| state.statements = Some(Arc::clone(&statements)));
        Ok(Connected { session, statements })
    }

    fn prepared(&self) -> Option<Connected> {
        self.state(|state| {
            Some(Connected {
                session: state.session.clone()?,
                statements: state.statements.clone()?,
            })
        })
    }

    /// Statements of a schema that has changed are prepared again.
    fn note(&self, error: StoreError) -> StoreError {
        if error.code == "DB_SCHEMA" || error.code == "DB_UNPREPARED" {
            self.change(|state| state.statements = None);
        }
        error
    }
}

impl CassandraStore {
    /// A store that connects in the background on `runtime`; until it has, writes answer `DB_UNREACHABLE`.
    #[must_use]
    pub fn new(config: CassandraConfig, runtime: tokio::runtime::Handle) -> Self {
        let shared = Arc::new(Shared {
            config,
            state: RwLock::new(State {
                session: None,
                statements: None,
                reason: StoreError::new(Verdict::Retry, "DB_UNREACHABLE", "not connected yet"),
                closed: false,
            }),
            preparing: tokio::sync::Mutex::new(()),
        });
        runtime.spawn(keep_connected(Arc::clone(&shared)));
        Self { shared, runtime }
    }

    async fn write_now(&self, rows: Write<'_>) -> Result<(), StoreError> {
        let connected = self.shared.connected().await?;
        let written = match rows {
            Write::Definitions(definitions) => connected.write_definitions(definitions).await,
            Write::Measurements { series, rows } => {
                connected.write_measurements(series, rows).await
            }
            Write::Runs(runs) => connected.write_runs(runs).await,
            Write::Alarms(rows) => connected.write_alarms(rows).await,
        };
        written.map_err(|error| self.shared.note(error))
    }

    async fn ask(&self) -> Result<(), StoreError> {
        let session = self.shared.session()?;
        session
            .query_unpaged(schema::of_one_node("SELECT release_version FROM system.local"), ())
            .await
            .map_err(|error| errors::of_execution(&error))?;
        self.shared.connected().await.map(drop)
    }
}

impl Connected {
    async fn execute(
        &self,
        statement: &PreparedStatement,
        row: impl SerializeRow,
    ) -> Result<(), StoreError> {
        self.session
            .execute_unpaged(statement, row)
            .await
            .map_err(|error| errors::of_execution(&error))?;
        Ok(())
    }

    /// Rows of one partition in one request: one mutation for the server.
    pub(super) async fn execute_all<R: SerializeRow>(
        &self,
        statement: &PreparedStatement,
        rows: &[R],
    ) -> Result<(), StoreError> {
        if let [row] = rows {
            return self.execute(statement, row).await;
        }
        let mut batch = Batch::new(BatchType::Unlogged);
        batch.set_is_idempotent(true);
        for _ in rows {
            batch.append_statement(statement.clone());
        }
        self.session.batch(&batch, rows).await.map_err(|error| errors::of_execution(&error))?;
        Ok(())
    }

    async fn write_measurements(
        &self,
        series: &Series,
        rows: &[Measurement],
    ) -> Result<(), StoreError> {
        let rows: Vec<_> = rows.iter().map(|row| bound(series, row)).collect();
        self.execute_all(&self.statements.measurement, &rows).await
    }

    /// One batch of several partitions: worth it for few rows of each, of the same replicas.
    async fn write_runs(&self, runs: &[Run]) -> Result<(), StoreError> {
        let rows: Vec<_> = runs
            .iter()
            .flat_map(|run| run.rows.iter().map(|row| bound(&run.series, row)))
            .collect();
        self.execute_all(&self.statements.measurement, &rows).await
    }

    async fn write_alarms(&self, rows: &[AlarmTransition]) -> Result<(), StoreError> {
        let same = |one: &AlarmTransition, other: &AlarmTransition| {
            one.tenant_id == other.tenant_id && one.alarm_id == other.alarm_id
        };
        for alarm in rows.chunk_by(same) {
            let bound: Vec<_> = alarm
                .iter()
                .map(|row| {
                    (
                        row.tenant_id.as_str(),
                        row.alarm_id.as_str(),
                        CqlTimestamp(row.time_ms),
                        row.metric.as_str(),
                        row.old_state.as_str(),
                        row.new_state.as_str(),
                        row.reason.as_str(),
                        row.reason_data.as_str(),
                        row.sub_alarms.as_str(),
                        row.stamp.write_time_us,
                        row.stamp.ttl_s,
                    )
                })
                .collect();
            self.execute_all(&self.statements.alarm, &bound).await?;
        }
        Ok(())
    }
}

/// A measurement as it is bound.
fn bound<'a>(
    series: &'a Series,
    row: &'a Measurement,
) -> (&'a [u8], CqlTimestamp, f64, &'a str, i64, i32) {
    let Measurement { value, stamp, .. } = *row;
    let (id, time) = (series.id.as_bytes(), CqlTimestamp(row.time_ms));
    (id, time, value, row.value_meta.as_str(), stamp.write_time_us, stamp.ttl_s)
}

impl Store for CassandraStore {
    fn write<'a>(&'a self, rows: Write<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        self.write_now(rows).boxed()
    }

    fn replicas(&self, series: &MetricId) -> Option<u64> {
        let session = self.shared.session().ok()?;
        let (keyspace, table) = (&self.shared.config.keyspace, "measurements");
        let cluster = session.get_cluster_state();
        let token = cluster.compute_token(keyspace, table, &(series.as_bytes(),)).ok()?;
        replicas::of_token(&cluster, keyspace, table, token)
    }

    fn needs_flush(&self) -> bool {
        // Replicas that confirmed a write have it as safe as the cluster makes it.
        false
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            tokio::time::timeout(HEALTH_WAIT, self.ask()).await.unwrap_or_else(|_| {
                Err(StoreError::new(
                    Verdict::Retry,
                    "DB_TIMEOUT",
                    format!("no answer within {HEALTH_WAIT:?}"),
                ))
            })
        }
        .boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, StoreError>> {
        async {
            let session = self.shared.session()?;
            schema::identity(&session, &self.shared.config.keyspace).await
        }
        .boxed()
    }

    fn lives(&self) -> BoxFuture<'_, Vec<NodeLife>> {
        async {
            match self.shared.session() {
                Ok(session) => lives::ask(&session, &self.shared.config).await,
                Err(_) => Vec::new(),
            }
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let mut session = None;
            self.shared.change(|state| {
                state.closed = true;
                state.statements = None;
                state.reason =
                    StoreError::new(Verdict::Retry, "STORE_CLOSED", "the store is closed");
                session = state.session.take();
            });
            // The driver's tasks end on the runtime they belong to.
            let _inside = self.runtime.enter();
            drop(session);
            Ok(())
        }
        .boxed()
    }
}
