//! A record of a log as people and programs read it.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use wal::Position;

use crate::dead_letters::DeadLetter;
use crate::envelope::{Envelope, TimestampType};

/// A message or a dead letter; what is neither is shown as it lies there.
pub(super) struct Shown<'a> {
    position: Position,
    topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    /// Code and detail of a dead letter.
    reason: Option<(String, String)>,
    /// The record, if it could not be read, and why.
    unreadable: Option<(&'a [u8], String)>,
}

impl<'a> Shown<'a> {
    pub fn of(position: Position, record: &'a [u8], dead_letters: bool) -> Self {
        let message =
            |record| Envelope::decode(record).map(|found| Self::message(position, &found));
        let letter = |record| DeadLetter::decode(record).map(|found| Self::letter(position, found));
        let outcome = if dead_letters {
            letter(record).or_else(|error| message(record).map_err(|_| error))
        } else {
            message(record).or_else(|error| letter(record).map_err(|_| error))
        };
        outcome.unwrap_or_else(|error| Self {
            position,
            topic: String::new(),
            partition: -1,
            offset: -1,
            timestamp_ms: None,
            key: None,
            payload: None,
            reason: None,
            unreadable: Some((record, error.to_string())),
        })
    }

    fn message(position: Position, message: &Envelope<'_>) -> Self {
        let timestamp = message.timestamp_type != TimestampType::Absent;
        Self {
            position,
            topic: message.topic.to_owned(),
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: timestamp.then_some(message.timestamp_ms),
            key: message.key.map(<[u8]>::to_vec),
            payload: message.payload.map(<[u8]>::to_vec),
            reason: None,
            unreadable: None,
        }
    }

    fn letter(position: Position, letter: DeadLetter) -> Self {
        Self {
            position,
            topic: letter.topic,
            partition: letter.partition,
            offset: letter.offset,
            timestamp_ms: letter.timestamp_ms,
            key: letter.key,
            payload: letter.payload,
            reason: Some((letter.code, letter.detail)),
            unreadable: None,
        }
    }

    /// The message's bytes alone; of a record that cannot be read, all of it.
    pub fn raw(&self) -> &[u8] {
        match &self.unreadable {
            Some((record, _)) => record,
            None => self.payload.as_deref().unwrap_or_default(),
        }
    }

    pub fn json(&self) -> Value {
        if let Some((record, why)) = &self.unreadable {
            return json!({ "position": self.position.get(), "unreadable": why, "record": hex(record), "record_encoding": "hex" });
        }
        let (key, key_encoding) = encoded(self.key.as_deref());
        let (payload, payload_encoding) = encoded(self.payload.as_deref());
        let mut value = json!({
            "position": self.position.get(),
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp": self.timestamp_ms.map(rfc3339),
            "timestamp_ms": self.timestamp_ms,
            "key": key,
            "key_encoding": key_encoding,
            "payload": payload,
            "payload_encoding": payload_encoding,
        });
        if let (Some((code, detail)), Some(fields)) = (&self.reason, value.as_object_mut()) {
            fields.insert("code".to_owned(), json!(code));
            fields.insert("detail".to_owned(), json!(detail));
        }
        value
    }

    /// One line, control characters escaped.
    pub fn line(&self) -> String {
        if let Some((record, why)) = &self.unreadable {
            return format!("{}  unreadable ({why})  record hex:{}", self.position, hex(record));
        }
        let timestamp = self.timestamp_ms.map_or_else(|| "-".to_owned(), rfc3339);
        let mut line = format!(
            "{}  {} partition {} offset {}  {timestamp}  key {}  payload {}",
            self.position,
            self.topic,
            self.partition,
            self.offset,
            on_one_line(self.key.as_deref()),
            on_one_line(self.payload.as_deref()),
        );
        if let Some((code, detail)) = &self.reason {
            // Writing to a String does not fail.
            let _infallible = write!(line, "  {code}: {}", escaped(detail));
        }
        line
    }
}

/// Text when it is UTF-8, else hexadecimal; and which of the two.
fn encoded(bytes: Option<&[u8]>) -> (Option<String>, Option<&'static str>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text.to_owned()), Some("utf-8")),
        Some((bytes, Err(_))) => (Some(hex(bytes)), Some("hex")),
    }
}

fn on_one_line(bytes: Option<&[u8]>) -> String {
    match encoded(bytes) {
        (Some(text), Some("utf-8")) => escaped(&text),
        (Some(text), _) => format!("hex:{text}"),
        (None, _) => "-".to_owned(),
    }
}

/// On one line: control characters as escapes.
pub(in crate::cli) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // Writing to a String does not fail.
        let _infallible = write!(out, "{byte:02x}");
    }
    out
}

/// Milliseconds since 1970 as a date; the number itself where there is no such date.
pub(in crate::cli) fn rfc3339(ms: i64) -> String {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    match u64::try_from(ms).ok().filter(|ms| *ms < YEAR_10000_MS) {
        Some(ms) => {
            let time = UNIX_EPOCH + Duration::from_millis(ms);
            humantime::format_rfc3339_millis(time).to_string()
        }
        None => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<'a>(payload: &'a [u8]) -> Envelope<'a> {
        Envelope {
            topic: "metrics",
            partition: 3,
            offset: 41,
            leader_epoch: -1,
            timestamp_ms: 1_405_630_174_123,
            timestamp_type: TimestampType::Created,
            received_ms: 1_405_630_174_200,
            key: Some(b"k"),
            payload: Some(payload),
        }
    }

    fn shown(payload: &[u8], dead_letters: bool) -> (String, Value) {
        let mut record = Vec::new();
        message(payload).encode_into(&mut record).unwrap();
        let shown = Shown::of(Position::new(9), &record, dead_letters);
        (shown.line(), shown.json())
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        let (line, _) = shown(b"a\nb\x1b[2J", false);
        assert_eq!(
            line,
            "9  metrics partition 3 offset 41  2014-07-17T20:49:34.123Z  key k  payload a\\nb\\u{1b}[2J"
        );
    }

    #[test]
    fn bytes_that_are_no_text_say_so() {
        let (line, json) = shown(&[0xff, 0x00], true);
        assert!(line.ends_with("payload hex:ff00"), "{line}");
        assert_eq!((&json["payload"], &json["payload_encoding"]), (&json!("ff00"), &json!("hex")));
        assert_eq!((&json["key"], &json["key_encoding"]), (&json!("k"), &json!("utf-8")));
    }

    #[test]
    fn a_record_nobody_can_read_is_shown_as_it_lies_there() {
        let shown = Shown::of(Position::new(2), &[7, 1], false);
        assert!(shown.line().contains("hex:0701"), "{}", shown.line());
        assert_eq!(shown.raw(), [7, 1]);
    }

    #[test]
    fn times_that_are_no_dates_are_numbers() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(-5), "-5 ms");
        assert_eq!(rfc3339(i64::MAX), format!("{} ms", i64::MAX));
    }
}
