//! Rows into tables.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, try_join_all};
use scylla::client::session::Session;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;

use super::session::{CassandraConfig, connect};
use super::statements::Statements;
use super::{errors, lives, schema};
use crate::Store;
use crate::error::{StoreError, Verdict};
use crate::lives::NodeLife;
use crate::rows::{AlarmTransition, Definition, Measurement, Series, Write};

/// Longest wait between two attempts to connect.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// The health check's own limit.
const HEALTH_WAIT: Duration = Duration::from_secs(2);

/// A cluster.
pub struct CassandraStore {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

struct Shared {
    config: CassandraConfig,
    state: RwLock<State>,
    /// Held while statements are prepared, so that one task does it for all.
    preparing: tokio::sync::Mutex<()>,
}

struct State {
    session: Option<Arc<Session>>,
    statements: Option<Arc<Statements>>,
    /// Why there is no session.
    reason: StoreError,
    closed: bool,
}

struct Connected {
    session: Arc<Session>,
    statements: Arc<Statements>,
}

impl Shared {
    fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
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

/// Connects until it succeeds; afterwards the driver keeps the connections by itself.
async fn keep_connecting(shared: Arc<Shared>) {
    let mut wait = Duration::from_millis(250);
    while !shared.state(|state| state.closed) {
        match connect(&shared.config).await {
            Ok(session) => {
                tracing::info!(nodes = ?shared.config.contact_points, "connected to Cassandra");
                // Closed meanwhile: the connections end here instead of outliving the store.
                shared.change(|state| state.session = (!state.closed).then(|| Arc::new(session)));
                return;
            }
            Err(error) => {
                tracing::debug!(
                    code = error.code,
                    detail = error.detail,
                    "connect to Cassandra; tried again"
                );
                shared.change(|state| state.reason = error);
            }
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(CONNECT_WAIT_MAX);
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
        runtime.spawn(keep_connecting(Arc::clone(&shared)));
        Self { shared, runtime }
    }

    async fn write_now(&self, rows: Write<'_>) -> Result<(), StoreError> {
        let connected = self.shared.connected().await?;
        let written = match rows {
            Write::Definition(definition) => connected.write_definition(definition).await,
            Write::Measurements { series, rows } => {
                connected.write_measurements(series, rows).await
            }
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
    async fn execute_all<R: SerializeRow>(
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
        let id = series.id.as_bytes();
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let stamp = row.stamp;
                let time = CqlTimestamp(row.time_ms);
                (id, time, row.value, row.value_meta.as_str(), stamp.write_time_us, stamp.ttl_s)
            })
            .collect();
        self.execute_all(&self.statements.measurement, &rows).await
    }

    /// When the series was created, if the table says so. A persister that forgot it, or never knew, must not write a
    /// later one over it; and a date is not worth stopping for, so an answer that does not come is none.
    async fn created_at_ms(&self, key: impl SerializeRow) -> Option<i64> {
        let statement = self.statements.created.as_ref()?;
        let answer = self.session.execute_unpaged(statement, key).await;
        let rows = answer.ok()?.into_rows_result().ok()?;
        let (created_at,) = rows.maybe_first_row::<(Option<CqlTimestamp>,)>().ok()??;
        created_at.map(|time| time.0)
    }

    async fn write_definition(&self, definition: &Definition) -> Result<(), StoreError> {
        let series = definition.series.as_ref();
        let stamp = definition.stamp;
        let (id, region, tenant_id, name) = (
            series.id.as_bytes(),
            series.region.as_str(),
            series.tenant_id.as_str(),
            series.name.as_str(),
        );
        let dimensions = series.dimension_list();
        let names = series.dimension_names();
        let statements = &self.statements;
        let created_at_ms = self
            .created_at_ms((region, tenant_id, name, &dimensions, &names))
            .await
            .map_or(definition.created_at_ms, |known| known.min(definition.created_at_ms));
        let mut requests: Vec<BoxFuture<'_, Result<(), StoreError>>> = Vec::new();
        requests.push(
            self.execute(
                &statements.series,
                (id, region, tenant_id, name, &dimensions, stamp.write_time_us, stamp.ttl_s),
            )
            .boxed(),
        );
        requests.push(
            self.execute(
                &statements.metric,
                (
                    region,
                    tenant_id,
                    name,
                    &dimensions,
                    &names,
                    id,
                    CqlTimestamp(created_at_ms),
                    CqlTimestamp(definition.updated_at_ms),
                    stamp.write_time_us,
                    stamp.ttl_s,
                ),
            )
            .boxed(),
        );
        for dimension in &series.dimensions {
            let (key, value, at) =
                (dimension.name.as_str(), dimension.value.as_str(), stamp.write_time_us);
            let tables = [
                self.execute(&statements.dimension, (region, tenant_id, key, value, at)).boxed(),
                self.execute(
                    &statements.dimension_metric,
                    (region, tenant_id, key, value, name, at),
                )
                .boxed(),
                self.execute(
                    &statements.metric_dimension,
                    (region, tenant_id, name, key, value, at),
                )
                .boxed(),
            ];
            requests.extend(tables);
        }
        try_join_all(requests).await.map(drop)
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

impl Store for CassandraStore {
    fn write<'a>(&'a self, rows: Write<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        self.write_now(rows).boxed()
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
