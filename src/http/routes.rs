//! Every path, and the server that answers them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use super::{dropwizard, letters, prometheus, query};
use crate::inspect::Inspect;

/// A request is answered within this time or not at all.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// No request has a body worth reading.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A server that is bound, so that its address is known before anything else starts.
pub struct Bound {
    listener: tokio::net::TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Bound {
    /// Binds `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("bind http.bind {address}"))?;
        let address = listener.local_addr().context("read the bound address")?;
        Ok(Self { listener, address })
    }
}

/// Answers until `stop`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    bound: Bound,
    inspect: Arc<Inspect>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(bound.listener, router(inspect))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(inspect: Arc<Inspect>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/ping", get(ping))
        .route("/healthcheck", get(healthcheck))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/backlog", get(backlog))
        .route("/api/v1/dead-letters", get(letters::list))
        .route("/api/v1/dead-letters/{position}", get(letters::show))
        .route("/api/v1/query/series", get(query::series))
        .route("/api/v1/query/measurements", get(query::measurements))
        .route("/api/v1/query/alarms", get(query::alarms))
        .fallback(not_found)
        .layer(CatchPanicLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIME_MAX))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES_MAX))
        .with_state(inspect)
}

/// An error as `application/problem+json`.
pub(super) struct Problem {
    pub status: StatusCode,
    pub title: &'static str,
    pub detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body =
            json!({"title": self.title, "status": self.status.as_u16(), "detail": self.detail});
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
            .into_response()
    }
}

#[derive(Deserialize)]
struct Form {
    pretty: Option<String>,
    format: Option<String>,
}

impl Form {
    /// `?pretty` and `?pretty=true` ask for it, `?pretty=false` does not.
    fn is_pretty(&self) -> bool {
        self.pretty.as_deref().is_some_and(|value| value != "false")
    }
}

/// JSON, indented when asked for.
pub(super) fn json_response<T: Serialize>(status: StatusCode, value: &T, pretty: bool) -> Response {
    let text =
        if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    match text {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            title: "answer cannot be written",
            detail: error.to_string(),
        }
        .into_response(),
    }
}

const INDEX: &str = "\
monasca-persister

/healthcheck                 does every part work now
/livez  /readyz  /ping       for supervisors
/metrics                     Prometheus text; ?format=json for Dropwizard JSON
/api/v1/status               what is the matter, and what to do
/api/v1/backlog              what waits
/api/v1/dead-letters         messages that cannot be stored; ?from, limit, code, topic, partition, offset_from, offset_to
/api/v1/dead-letters/N       the one at position N, with its bytes
/api/v1/query/series         series of an embedded store
/api/v1/query/measurements   their measurements
/api/v1/query/alarms         alarm transitions
";

async fn index() -> &'static str {
    INDEX
}

async fn ping() -> &'static str {
    "pong\n"
}

async fn healthcheck(State(inspect): State<Arc<Inspect>>, Query(form): Query<Form>) -> Response {
    let checks = inspect.health().await;
    let healthy = checks.values().all(|check| check.healthy);
    let status = if healthy { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    json_response(status, &checks, form.is_pretty())
}

async fn livez(State(inspect): State<Arc<Inspect>>) -> Response {
    match inspect.stalled() {
        None => "alive\n".into_response(),
        Some(detail) => {
            Problem { status: StatusCode::SERVICE_UNAVAILABLE, title: "stalled", detail }
                .into_response()
        }
    }
}

async fn readyz(State(inspect): State<Arc<Inspect>>) -> Response {
    match inspect.not_ready() {
        None => "ready\n".into_response(),
        Some(detail) => {
            Problem { status: StatusCode::SERVICE_UNAVAILABLE, title: "not ready", detail }
                .into_response()
        }
    }
}

/// Prometheus text, unless the client asks for what the old persister's admin port answered.
async fn metrics(
    State(inspect): State<Arc<Inspect>>,
    Query(form): Query<Form>,
    headers: HeaderMap,
) -> Response {
    let accept =
        headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wants_json = match form.format.as_deref() {
        Some(format) => format == "json",
        None => form.pretty.is_some() || accept.starts_with("application/json"),
    };
    if wants_json {
        return json_response(StatusCode::OK, &dropwizard::render(&inspect), form.is_pretty());
    }
    match prometheus::render(&inspect) {
        Ok(text) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => Problem {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            title: "metrics cannot be written",
            detail: error.to_string(),
        }
        .into_response(),
    }
}

async fn status(State(inspect): State<Arc<Inspect>>, Query(form): Query<Form>) -> Response {
    json_response(StatusCode::OK, &inspect.status(), form.is_pretty())
}

async fn backlog(State(inspect): State<Arc<Inspect>>, Query(form): Query<Form>) -> Response {
    json_response(StatusCode::OK, &inspect.backlog(), form.is_pretty())
}

async fn not_found(uri: axum::http::Uri) -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        title: "no such path",
        detail: format!("{} is not known; / lists what is", uri.path()),
    }
}
