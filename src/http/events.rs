//! State and backlog as server-sent events, once a second, for the page and for whoever likes to watch.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::routes::Problem;
use super::site::Site;
use crate::inspect::{Backlog, Status};

/// Streams at a time: each keeps one of the connections.
const STREAMS_MAX: usize = 16;
const INTERVAL: Duration = Duration::from_secs(1);

/// What the page shows.
#[derive(Serialize, JsonSchema)]
pub(super) struct Overview {
    /// What is the matter.
    pub status: Status,
    /// What waits.
    pub backlog: Backlog,
    /// When this was said, milliseconds since the epoch.
    pub now_ms: i64,
    /// How this program ended the last time, as `last_shutdown.json` has it.
    pub last_shutdown: Option<serde_json::Value>,
}

impl Overview {
    pub fn of(site: &Site) -> Self {
        let inspect = &site.parts.inspect;
        Self {
            status: inspect.status(),
            backlog: inspect.backlog(),
            now_ms: crate::clock::wall_ms(),
            last_shutdown: inspect.last_shutdown(),
        }
    }
}

struct Seat(Site);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn events(State(site): State<Site>) -> Response {
    let taken = site.streams.fetch_add(1, Ordering::Relaxed);
    let seat = Seat(site);
    if taken >= STREAMS_MAX {
        return Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            title: "too many streams",
            detail: format!("{STREAMS_MAX} are open; ask /api/v1/overview instead"),
        }
        .into_response();
    }
    let ticks = tokio::time::interval(INTERVAL);
    let stream = futures_util::stream::unfold((seat, ticks), |(seat, mut ticks)| async move {
        ticks.tick().await;
        let event = Event::default().event("overview").json_data(Overview::of(&seat.0));
        let event = event.unwrap_or_else(|error| Event::default().comment(error.to_string()));
        Some((Ok::<_, Infallible>(event), (seat, ticks)))
    });
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}
