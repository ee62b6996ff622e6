//! Dead letters over HTTP: pages of them, and one.

use std::ops::ControlFlow;

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wal::Position;

use super::blocking::blocking;
use super::routes::Problem;
use super::site::Site;
use crate::dead_letters::{Bytes, DeadLetterError, LetterFilter, ShownLetter};

/// What is wrong when they cannot be read.
const UNREADABLE: &str = "dead letters cannot be read";
/// Most letters of one page.
const LETTERS_MAX: usize = 1000;
/// A page ends when its letters have so many bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// A page ends when so many letters were looked at: there is an answer before the request's time is over.
const LOOKED_AT_MAX: usize = 100_000;

/// What a page is to hold.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// From this position on: `next` of the page before.
    from: Option<u64>,
    /// Most letters, 100 unless said.
    limit: Option<usize>,
    /// Only those with this reason code.
    code: Option<String>,
    /// Only those of this topic.
    topic: Option<String>,
    /// Only those of this partition.
    partition: Option<i32>,
    /// From this offset on.
    offset_from: Option<i64>,
    /// Before this offset.
    offset_to: Option<i64>,
    /// Letters since before this time, milliseconds since the epoch.
    since_before_ms: Option<i64>,
    /// `true`: key and message in base64 as well.
    bytes: Option<String>,
}

/// A page of letters.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LetterPage {
    /// The letters, oldest first.
    dead_letters: Vec<ShownLetter>,
    /// Where the next page begins.
    next: u64,
    /// There is more behind it.
    more: bool,
    /// Position after the last letter.
    end: u64,
}

/// A page of letters from position `from` on, and where the next one begins.
pub(super) async fn list(site: Site, page: Page) -> Result<LetterPage, Problem> {
    let limit = page.limit.unwrap_or(100).min(LETTERS_MAX);
    let is_lossless = page.bytes.is_some_and(|value| value != "false");
    let bytes = if is_lossless { Bytes::Lossless } else { Bytes::Readable };
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
    blocking(UNREADABLE, move || {
        let letters = site.parts.inspect.dead_letters();
        let mut shown = Vec::new();
        let (mut looked_at, mut page_bytes, mut is_full) = (0_usize, 0_usize, limit == 0);
        let next = letters.walk(from, |position, letter| {
            looked_at = looked_at.saturating_add(1);
            if !is_full && filter.matches(position, &letter) {
                page_bytes = page_bytes.saturating_add(letter.bytes());
                shown.push(ShownLetter::of(position, letter, bytes));
            }
            is_full =
                shown.len() >= limit || page_bytes >= PAGE_BYTES_MAX || looked_at >= LOOKED_AT_MAX;
            if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let end = letters.wal().durable().through();
        Ok::<_, DeadLetterError>(LetterPage {
            dead_letters: shown,
            next: next.get(),
            more: is_full && next < end,
            end: end.get(),
        })
    })
    .await
}

/// Which letter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct One {
    /// Its position, as the list names it.
    position: u64,
}

/// One letter with all its bytes.
pub(super) async fn show(site: Site, one: One) -> Result<ShownLetter, Problem> {
    let wanted = Position::new(one.position);
    let found = blocking(UNREADABLE, move || {
        let mut found = None;
        site.parts.inspect.dead_letters().walk(wanted, |position, letter| {
            found =
                (position == wanted).then(|| ShownLetter::of(position, letter, Bytes::Lossless));
            ControlFlow::Break(())
        })?;
        Ok::<_, DeadLetterError>(found)
    });
    found.await?.ok_or_else(|| Problem {
        status: StatusCode::NOT_FOUND,
        title: "no such dead letter",
        detail: "none lies at this position, or it was dropped or tried again".to_owned(),
    })
}
