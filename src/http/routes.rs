//! Every path and what answers it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use super::api::{About, Api, ProblemBody};
use super::blocking::blocking;
use super::guard::Access;
use super::site::Site;
use super::{backlog, control, dropwizard, events, letters, prometheus, query};
use crate::config::ShownConfig;
use crate::inspect::{Inspect, Status};
use crate::sync::lock;

/// A request is answered within this time or not at all.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// No request has a body worth reading.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// The whole page: nothing is fetched from elsewhere.
const PAGE: &str = include_str!("page.html");
/// What the page may do: what is in it, and ask us.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A path without parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

fn open(path: &'static str, summary: &'static str) -> About {
    About { path, summary, access: Access::Open }
}

fn look(path: &'static str, summary: &'static str) -> About {
    About { path, summary, access: Access::Look }
}

fn change(path: &'static str, summary: &'static str) -> About {
    About { path, summary, access: Access::Change }
}

pub(super) fn router(site: Site) -> Router {
    let text = json!({"text/plain": {"schema": {"type": "string"}}});
    let html = json!({"text/html": {"schema": {"type": "string"}}});
    let rows =
        json!({"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}});
    let stream = json!({"text/event-stream": {"schema": {"type": "string", "description": "events `overview`, each with what /api/v1/overview answers"}}});
    let metrics_content = json!({
        "application/openmetrics-text": {"schema": {"type": "string"}},
        "application/json": {"schema": {"type": "object", "required": ["version", "gauges", "counters", "histograms", "meters", "timers"]}},
    });
    let checks = json!({"application/json": {"schema": {"type": "object", "additionalProperties": {
        "type": "object", "required": ["healthy", "message"],
        "properties": {"healthy": {"type": "boolean"}, "message": {"type": "string"}},
    }}}});
    let document = json!({"application/json": {"schema": {"type": "object", "required": ["openapi", "paths"]}}});
    let api = Api::new(site.clone())
        .other(open("/", "The page for people."), &[], &html, page)
        .other(open("/ping", "pong."), &[], &text, ping)
        .other(open("/healthcheck", "Does every part work now: 200, or 500 with the reason."), &["pretty"], &checks, healthcheck)
        .other(open("/livez", "Is the process alive: 503 only when one of its threads is stuck."), &[], &text, livez)
        .other(open("/readyz", "Is it ready for work; an outage of the database is no reason why not."), &[], &text, readyz)
        .other(open("/startupz", "Has it started."), &[], &text, startupz)
        .other(open("/metrics", "Prometheus text; Dropwizard JSON with the old persister's names when JSON is asked for."), &["pretty", "format"], &metrics_content, metrics)
        .other(look("/threads", "Threads of the process, by name, with their state and CPU time."), &[], &text, threads)
        .other(look("/api/v1/events", "State and backlog once a second, as server-sent events."), &[], &stream, events::events)
        .other(open("/openapi.json", "This description."), &["pretty"], &document, openapi)
        .other(look("/api/v1/query/series", "Series of an embedded store."), &["tenant", "name", "dimensions", "limit"], &rows, query::series)
        .other(look("/api/v1/query/measurements", "Measurements of a series of an embedded store."), &["metric_id", "from_ms", "to_ms", "limit", "newest_first"], &rows, query::measurements)
        .other(look("/api/v1/query/alarms", "Alarm transitions of an embedded store."), &["tenant", "alarm_id", "from_ms", "to_ms", "limit"], &rows, query::alarms)
        .get(look("/api/v1/status", "What is the matter, and what to do."), status)
        .get(look("/api/v1/overview", "State and backlog together: what the page shows."), overview)
        .get(look("/api/v1/backlog", "What waits: in numbers, and by tenant, metric or age when asked."), backlog::backlog)
        .get(look("/api/v1/backlog/records", "What waits, record by record, decoded, in pages."), backlog::records)
        .get(look("/api/v1/wal/segments", "The files of the logs."), backlog::segments)
        .get(look("/api/v1/dead-letters", "Messages that can never be stored, in pages."), letters::list)
        .get(look("/api/v1/dead-letters/{position}", "One of them, with its bytes."), letters::show)
        .get(look("/api/v1/config", "The configuration in effect, where each value comes from, and no secret."), config)
        .post(change("/api/v1/control/pause", "Pauses consumption, delivery or both, until `resume`, also across restarts."), control::pause)
        .post(change("/api/v1/control/resume", "Goes on."), control::resume)
        .post(change("/api/v1/control/drain", "Takes nothing more from Kafka and delivers what waits, until `resume`."), control::drain)
        .post(change("/api/v1/control/checkpoint", "Notes durably what is delivered, and gives back the space that the hold-back allows."), control::checkpoint)
        .post(change("/api/v1/control/log-level", "Changes what is logged, until the next start."), control::log_level)
        .post(change("/api/v1/control/acknowledge", "Takes note of gaps and of what is lost."), control::acknowledge)
        .post(change("/api/v1/control/accept", "Goes on with partitions that stopped at a gap."), control::accept)
        .post(change("/api/v1/dead-letters/retry", "Has dead letters delivered anew; says how many unless `confirm` says so."), control::retry)
        .post(change("/api/v1/dead-letters/purge", "Removes dead letters for good; says how many unless `confirm` says so."), control::purge);
    let (router, openapi) = api.finish();
    // The first one stays; there is no second.
    let _first = site.openapi.set(openapi);
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(|_| {
            Problem {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                title: "fault of the program",
                detail: "the handler panicked".to_owned(),
            }
            .into_response()
        }))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIME_MAX))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn(only_get_and_post))
        .with_state(site)
}

/// Nothing else is answered, not even what a browser asks beforehand: there is no sharing with other origins.
async fn only_get_and_post(request: Request, next: Next) -> Result<Response, Infallible> {
    let method = request.method().clone();
    let response = if method == Method::GET || method == Method::POST {
        next.run(request).await
    } else {
        wrong_method(method).await.into_response()
    };
    Ok(with_problem(response))
}

/// Errors that a layer or an extractor made are problems like all others.
fn with_problem(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|content| content.to_str().ok())
        .is_some_and(|content| content.contains("json"));
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return response;
    }
    let title = status.canonical_reason().unwrap_or("error");
    Problem { status, title, detail: format!("the request was answered with {status}") }
        .into_response()
}

/// An error as `application/problem+json`.
pub(super) struct Problem {
    pub status: StatusCode,
    pub title: &'static str,
    pub detail: String,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, title, detail } = self;
        let body = json!(ProblemBody { title, status: status.as_u16(), detail });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
            .into_response()
    }
}

impl Problem {
    pub fn bad_parameter(detail: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, title: "bad parameter", detail }
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

async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(PAGE)).into_response()
}

async fn startupz(State(inspect): State<Arc<Inspect>>) -> Response {
    if inspect.has_started() {
        return "started\n".into_response();
    }
    let detail = "logs and stores are being opened".to_owned();
    Problem { status: StatusCode::SERVICE_UNAVAILABLE, title: "starting", detail }.into_response()
}

async fn threads() -> Response {
    blocking("threads cannot be listed", super::threads::list).await.into_response()
}

async fn openapi(State(site): State<Site>, Query(form): Query<Form>) -> Response {
    json_response(StatusCode::OK, &site.openapi.get(), form.is_pretty())
}

async fn status(site: Site, _: Nothing) -> Result<Status, Problem> {
    Ok(site.parts.inspect.status())
}

async fn overview(site: Site, _: Nothing) -> Result<events::Overview, Problem> {
    Ok(events::Overview::of(&site))
}

async fn config(site: Site, _: Nothing) -> Result<ShownConfig, Problem> {
    Ok(lock(&site.parts.config).clone())
}

async fn wrong_method(method: Method) -> Problem {
    Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        title: "wrong method",
        detail: format!("{method} is not answered here; /openapi.json lists what is"),
    }
}

async fn not_found(uri: axum::http::Uri) -> Problem {
    Problem {
        status: StatusCode::NOT_FOUND,
        title: "no such path",
        detail: format!("{} is not known; /openapi.json lists what is", uri.path()),
    }
}
