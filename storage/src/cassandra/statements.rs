//! Every statement that writes, in one place.

use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::prepared::PreparedStatement;

/// Prepared statements of one session. `[…]` in the names below is what is bound.
#[derive(Debug)]
pub(super) struct Statements {
    /// [id, time, value, meta, write time, ttl]
    pub measurement: PreparedStatement,
    /// The static columns of a series: [id, region, tenant, name, dimensions, write time, ttl]
    pub series: PreparedStatement,
    /// [region, tenant, name, dimensions, names, id, created, updated, write time, ttl]
    pub metric: PreparedStatement,
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
