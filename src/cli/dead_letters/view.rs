//! A dead letter as people read it.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::wal::record::{escaped, rfc3339};

/// Above the lines of [`line`].
pub(super) const HEADING: &str = "position  dead since                code                  topic/partition/offset            detail";

fn text<'a>(letter: &'a Value, field: &str) -> &'a str {
    letter.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn number(letter: &Value, field: &str) -> i64 {
    letter.get(field).and_then(Value::as_i64).unwrap_or(-1)
}

fn since(letter: &Value) -> String {
    let since = letter.get("since_ms").and_then(Value::as_i64);
    rfc3339(since.unwrap_or_else(|| number(letter, "received_ms")))
}

/// Topic, partition and offset, and which element of a message that holds several.
fn place(letter: &Value) -> String {
    let topic = text(letter, "topic");
    if topic.is_empty() {
        return "unknown".to_owned();
    }
    let mut place = format!("{topic}/{}/{}", number(letter, "partition"), number(letter, "offset"));
    let element = number(letter, "element");
    if element > 0 {
        // Writing to a String does not fail.
        let _infallible = write!(place, "#{element}");
    }
    place
}

/// One line.
pub(super) fn line(letter: &Value) -> String {
    format!(
        "{:>8}  {}  {:<20}  {:<32}  {}",
        number(letter, "position"),
        since(letter),
        text(letter, "code"),
        place(letter),
        escaped(text(letter, "detail"))
    )
}

/// All of it.
pub(super) fn whole(letter: &Value) -> String {
    let time = |field| {
        letter.get(field).and_then(Value::as_i64).map_or_else(|| "none".to_owned(), rfc3339)
    };
    let shown = |field| letter.get(field).and_then(Value::as_str).unwrap_or("none");
    let mut lines = vec![
        format!("position     {}", number(letter, "position")),
        format!("message      {}", place(letter)),
        format!("reason       {}: {}", text(letter, "code"), escaped(text(letter, "detail"))),
        format!("dead since   {}", since(letter)),
        format!("received     {}", time("received_ms")),
        format!("Kafka's time {}", time("timestamp_ms")),
    ];
    if let Some(bytes) = letter.get("cut_from").and_then(Value::as_u64) {
        lines.push(format!("cut          of {bytes} bytes only the first are here"));
    }
    lines.push(format!("key          {}", escaped(shown("key"))));
    lines.push("payload".to_owned());
    lines.push(shown("payload").to_owned());
    lines.join("\n")
}

/// The message's bytes.
pub(super) fn bytes(letter: &Value) -> anyhow::Result<Vec<u8>> {
    let Some(text) = letter.get("payload_base64").and_then(Value::as_str) else {
        return Ok(Vec::new());
    };
    openssl::base64::decode_block(text).context("read the payload")
}
