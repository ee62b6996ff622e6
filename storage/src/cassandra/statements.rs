//! Every prepared statement, in one place.

use std::time::Duration;

use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;

/// A definition does not wait longer for its creation time.
const READ_WAIT: Duration = Duration::from_secs(2);

/// Prepared statements of one session. `[…]` in the names below is what is bound.
#[derive(Debug)]
pub(super) struct Statements {
    /// [id, time, value, meta, write time, ttl]
    pub measurement: PreparedStatement,
    /// The static columns of a series: [id, region, tenant, name, dimensions, write time, ttl]
    pub series: PreparedStatement,
    /// [region, tenant, name, dimensions, names, id, created, updated, write time, ttl]
    pub metric: PreparedStatement,
    /// When series of one name were created: [region, tenant, name, list of dimensions]; dimensions and creation times come
    /// back. `None`: the cluster does not let us read.
    pub created: Option<PreparedStatement>,
    /// [region, tenant, dimension name, value, write time]
    pub dimension: PreparedStatement,
    /// [region, tenant, dimension name, value, metric name, write time]
    pub dimension_metric: PreparedStatement,
    /// [region, tenant, metric name, dimension name, value, write time]
    pub metric_dimension: PreparedStatement,
    /// [tenant, alarm, time, metric, old, new, reason, reason data, sub-alarms, write time, ttl]
    pub alarm: PreparedStatement,
}

impl Statements {
    pub(super) async fn prepare(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let prepare = |columns: &'static str, stamp: &'static str| {
            let values = vec!["?"; columns.split(',').count()].join(", ");
            let (table, columns) = columns.split_once(": ").unwrap_or(("", columns));
            let text = format!(
                "INSERT INTO {keyspace}.{table} ({columns}) VALUES ({values}) USING {stamp}"
            );
            async move {
                let mut statement = session.prepare(text).await?;
                // The write time is bound, so that repeating one changes nothing.
                statement.set_is_idempotent(true);
                Ok::<_, PrepareError>(statement)
            }
        };
        const EXPIRING: &str = "TIMESTAMP ? AND TTL ?";
        const LASTING: &str = "TIMESTAMP ?";
        Ok(Self {
            measurement: prepare("measurements: metric_id, time_stamp, value, value_meta", EXPIRING).await?,
            series: prepare("measurements: metric_id, region, tenant_id, metric_name, dimensions", EXPIRING).await?,
            metric: prepare(
                "metrics: region, tenant_id, metric_name, dimensions, dimension_names, metric_id, created_at, updated_at",
                EXPIRING,
            )
            .await?,
            created: prepare_created(session, keyspace).await,
            dimension: prepare("dimensions: region, tenant_id, name, value", LASTING).await?,
            dimension_metric: prepare(
                "dimensions_metrics: region, tenant_id, dimension_name, dimension_value, metric_name",
                LASTING,
            )
            .await?,
            metric_dimension: prepare(
                "metrics_dimensions: region, tenant_id, metric_name, dimension_name, dimension_value",
                LASTING,
            )
            .await?,
            alarm: prepare(
                "alarm_state_history: tenant_id, alarm_id, time_stamp, metric, old_state, new_state, reason, \
                 reason_data, sub_alarms",
                EXPIRING,
            )
            .await?,
        })
    }
}

/// The only statement that reads. Without it a series' creation time is what this persister knows of it.
async fn prepare_created(session: &Session, keyspace: &str) -> Option<PreparedStatement> {
    const KEY: &str = "region = ? AND tenant_id = ? AND metric_name = ? AND dimensions IN ?";
    let text = format!("SELECT dimensions, created_at FROM {keyspace}.metrics WHERE {KEY}");
    match session.prepare(text).await {
        Ok(mut statement) => {
            statement.set_is_idempotent(true);
            statement.set_request_timeout(Some(READ_WAIT));
            // What is asked of other data centres when writing is too much to ask for a date.
            statement.set_consistency(Consistency::LocalQuorum);
            Some(statement)
        }
        Err(error) => {
            tracing::debug!(%error, "creation times of series are not read");
            None
        }
    }
}
