//! Dead letters over HTTP: pages of them, and one.

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use wal::Position;

use super::routes::{Problem, json_response};
use crate::dead_letters::{Bytes, DeadLetterError, LetterFilter, ShownLetter};
use crate::inspect::Inspect;

/// Most letters of one page.
const LETTERS_MAX: usize = 1000;
/// A page ends when its letters have so many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// A page ends when so many letters were looked at: there is an answer before the request's time is over.
const LOOKED_AT_MAX: usize = 100_000;

/// What a page is to hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    from: Option<u64>,
    limit: Option<usize>,
    code: Option<String>,
    topic: Option<String>,
    partition: Option<i32>,
    offset_from: Option<i64>,
    offset_to: Option<i64>,
    since_before_ms: Option<i64>,
    bytes: Option<String>,
    pretty: Option<String>,
}

fn is_asked(value: Option<&str>) -> bool {
    value.is_some_and(|value| value != "false")
}

/// A page of letters from position `from` on, and where the next one begins.
pub(super) async fn list(
    State(inspect): State<Arc<Inspect>>,
    Query(page): Query<Page>,
) -> Response {
    let limit = page.limit.unwrap_or(100).min(LETTERS_MAX);
    let bytes = if is_asked(page.bytes.as_deref()) { Bytes::Lossless } else { Bytes::Readable };
    let pretty = is_asked(page.pretty.as_deref());
    let from = Position::new(page.from.unwrap_or(0));
    let filter = LetterFilter {
        codes: page.code.into_iter().collect(),
        topic: page.topic,
        partition: page.partition,
        offset_from: page.offset_from,
        offset_to: page.offset_to,
        positions: Vec::new(),
        since_before_ms: page.since_before_ms,
    };
    let read = move || {
        let mut shown = Vec::new();
        let (mut looked_at, mut page_bytes, mut is_full) = (0_usize, 0_usize, limit == 0);
        let next = inspect.dead_letters().walk(from, |position, letter| {
            looked_at = looked_at.saturating_add(1);
            if !is_full && filter.matches(position, &letter) {
                page_bytes = page_bytes.saturating_add(letter.bytes());
                shown.push(ShownLetter::of(position, letter, bytes));
            }
            is_full =
                shown.len() >= limit || page_bytes >= PAGE_BYTES_MAX || looked_at >= LOOKED_AT_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let end = inspect.dead_letters().wal().durable().through();
        Ok(json!({
            "dead_letters": shown,
            "next": next.get(),
            "more": is_full && next < end,
            "end": end.get(),
        }))
    };
    answer(read, pretty).await
}

/// One letter with all its bytes.
pub(super) async fn show(
    State(inspect): State<Arc<Inspect>>,
    Path(position): Path<u64>,
    Query(form): Query<Pretty>,
) -> Response {
    let wanted = Position::new(position);
    let read = move || {
        let mut found = None;
        inspect.dead_letters().walk(wanted, |position, letter| {
            found =
                (position == wanted).then(|| ShownLetter::of(position, letter, Bytes::Lossless));
            ControlFlow::Break(())
        })?;
        Ok(json!(found))
    };
    answer(read, is_asked(form.pretty.as_deref())).await
}

#[derive(Deserialize)]
pub(super) struct Pretty {
    pretty: Option<String>,
}

/// Reading files is work for a thread that may block.
async fn answer(
    read: impl FnOnce() -> Result<serde_json::Value, DeadLetterError> + Send + 'static,
    pretty: bool,
) -> Response {
    let failed = |title, detail| {
        Problem { status: StatusCode::INTERNAL_SERVER_ERROR, title, detail }.into_response()
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(serde_json::Value::Null)) => Problem {
            status: StatusCode::NOT_FOUND,
            title: "no such dead letter",
            detail: "none lies at this position, or it was dropped or tried again".to_owned(),
        }
        .into_response(),
        Ok(Ok(answer)) => json_response(StatusCode::OK, &answer, pretty),
        Ok(Err(error)) => failed("dead letters cannot be read", error.to_string()),
        Err(error) => failed("reading was interrupted", error.to_string()),
    }
}
