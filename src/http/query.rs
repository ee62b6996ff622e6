//! Reading an embedded store over HTTP.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use storage::{
    Dimension, MeasurementQuery, MetricId, Read, SeriesFilter, StoreError, TransitionQuery,
};

use super::blocking::blocking;
use super::routes::{Problem, json_response};
use crate::inspect::Inspect;

/// Most rows of one answer.
const LIMIT_MAX: usize = 100_000;
const LIMIT_DEFAULT: usize = 1_000;

/// Which series: `?tenant=…&name=…&dimensions=hostname:node-1,device:eth0`.
#[derive(Debug, Deserialize)]
pub(super) struct SeriesParameters {
    tenant: Option<String>,
    name: Option<String>,
    dimensions: Option<String>,
    limit: Option<usize>,
}

/// Which measurements of a series: `?metric_id=hex&from_ms=…&to_ms=…&limit=…`.
#[derive(Debug, Deserialize)]
pub(super) struct MeasurementParameters {
    metric_id: String,
    from_ms: Option<i64>,
    to_ms: Option<i64>,
    limit: Option<usize>,
    newest_first: Option<bool>,
}

/// Which transitions: `?tenant=…&alarm_id=…&from_ms=…&to_ms=…`.
#[derive(Debug, Deserialize)]
pub(super) struct AlarmParameters {
    tenant: Option<String>,
    alarm_id: Option<String>,
    from_ms: Option<i64>,
    to_ms: Option<i64>,
    limit: Option<usize>,
}

pub(super) async fn series(
    State(inspect): State<Arc<Inspect>>,
    Query(parameters): Query<SeriesParameters>,
) -> Response {
    let mut dimensions = Vec::new();
    for pair in parameters
        .dimensions
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|pair| !pair.is_empty())
    {
        let Some((name, value)) = pair.split_once(':') else {
            return bad_request(format!("`{pair}` in dimensions is not name:value"));
        };
        dimensions.push(Dimension { name: name.to_owned(), value: value.to_owned() });
    }
    let filter = SeriesFilter { tenant_id: parameters.tenant, name: parameters.name, dimensions };
    answer(inspect, move |read| read.series(&filter, limit(parameters.limit))).await
}

pub(super) async fn measurements(
    State(inspect): State<Arc<Inspect>>,
    Query(parameters): Query<MeasurementParameters>,
) -> Response {
    let Some(metric_id) = MetricId::from_hex(&parameters.metric_id) else {
        return bad_request(format!("`{}` is no metric id in hexadecimal", parameters.metric_id));
    };
    let query = MeasurementQuery {
        metric_id,
        from_ms: parameters.from_ms.unwrap_or(i64::MIN),
        to_ms: parameters.to_ms.unwrap_or(i64::MAX),
        limit: limit(parameters.limit),
        newest_first: parameters.newest_first.unwrap_or(false),
    };
    answer(inspect, move |read| read.measurements(&query)).await
}

pub(super) async fn alarms(
    State(inspect): State<Arc<Inspect>>,
    Query(parameters): Query<AlarmParameters>,
) -> Response {
    let query = TransitionQuery {
        tenant_id: parameters.tenant,
        alarm_id: parameters.alarm_id,
        from_ms: parameters.from_ms.unwrap_or(i64::MIN),
        to_ms: parameters.to_ms.unwrap_or(i64::MAX),
        limit: limit(parameters.limit),
    };
    answer(inspect, move |read| read.transitions(&query)).await
}

fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX)
}

async fn answer<T: Serialize + Send + 'static>(
    inspect: Arc<Inspect>,
    read: impl FnOnce(&dyn Read) -> Result<Vec<T>, StoreError> + Send + 'static,
) -> Response {
    let Some(store) = inspect.read().cloned() else {
        return Problem {
            status: StatusCode::NOT_IMPLEMENTED,
            title: "the store is not embedded",
            detail: "rows are in Cassandra: read them with monasca-api or CQL".to_owned(),
        }
        .into_response();
    };
    match blocking("the store cannot be read", move || read(store.as_ref())).await {
        Ok(rows) => json_response(StatusCode::OK, &rows, false),
        Err(problem) => problem.into_response(),
    }
}

fn bad_request(detail: String) -> Response {
    Problem::bad_parameter(detail).into_response()
}
