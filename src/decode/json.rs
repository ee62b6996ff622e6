//! What both kinds of messages need of JSON.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use super::DecodeError;

/// Deepest nesting; the deepest real message has six levels.
const DEPTH_MAX: usize = 32;
/// Last millisecond of the year 9999.
const TIME_MS_MAX: i64 = 253_402_300_799_999;

/// Tags at the beginning of errors that serde passes through as text.
const NOT_FINITE: &str = "not finite:";
const BAD_TIMESTAMP: &str = "bad timestamp:";
const DUPLICATE: &str = "duplicate ";
const EMPTY: &str = "missing field: empty ";

/// The payload as text, if it is text and not nested too deeply.
pub(super) fn text(payload: &[u8]) -> Result<&str, DecodeError> {
    check_depth(payload)?;
    std::str::from_utf8(payload).map_err(|error| DecodeError::new("NOT_UTF8", error.to_string()))
}

/// A look at brackets outside strings, before any parser sees them.
fn check_depth(payload: &[u8]) -> Result<(), DecodeError> {
    // Most messages have fewer brackets than they may have levels, and counting is a fraction of the work.
    let brackets = payload.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if brackets <= DEPTH_MAX {
        return Ok(());
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in payload.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth = depth.saturating_add(1);
                if depth > DEPTH_MAX {
                    return Err(DecodeError::new(
                        "TOO_DEEP",
                        format!("more than {DEPTH_MAX} levels at byte {at}"),
                    ));
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Parses one value and names what is wrong with it by a code.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, DecodeError> {
    serde_json::from_str(text).map_err(|error| {
        let detail = error.to_string();
        let code = if detail.starts_with(NOT_FINITE) || detail.starts_with("number out of range") {
            "NOT_FINITE"
        } else if detail.starts_with(BAD_TIMESTAMP) {
            "BAD_TIMESTAMP"
        } else if detail.starts_with(DUPLICATE) {
            "DUPLICATE_KEY"
        } else if detail.starts_with("missing field") {
            "MISSING_FIELD"
        } else if error.is_data() {
            "WRONG_TYPE"
        } else {
            "NOT_JSON"
        };
        DecodeError::new(code, detail)
    })
}

/// A duplicate key as an error that [`parse`] recognises.
pub(super) fn duplicate<E: Error>(what: &str, key: &str) -> E {
    E::custom(format_args!("{DUPLICATE}{what} `{key}`"))
}

/// Text without a character in it, where one is needed.
pub(super) fn check_not_empty<E: Error>(field: &str, text: &str) -> Result<(), E> {
    if text.is_empty() { Err(E::custom(format_args!("{EMPTY}`{field}`"))) } else { Ok(()) }
}

/// Milliseconds since the epoch; fractions are cut off, as the Python persister's database did.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeMs(pub i64);

impl<'de> Deserialize<'de> for TimeMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimeVisitor;
        impl Visitor<'_> for TimeVisitor {
            type Value = i64;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("milliseconds since the epoch")
            }

            fn visit_i64<E: Error>(self, ms: i64) -> Result<i64, E> {
                Ok(ms)
            }

            fn visit_u64<E: Error>(self, ms: u64) -> Result<i64, E> {
                Ok(i64::try_from(ms).unwrap_or(i64::MAX))
            }

            #[expect(
                clippy::cast_possible_truncation,
                reason = "cut off on purpose; saturates, and is checked below"
            )]
            fn visit_f64<E: Error>(self, ms: f64) -> Result<i64, E> {
                Ok(if ms > -1.0 { ms as i64 } else { -1 })
            }
        }
        let ms = deserializer.deserialize_any(TimeVisitor)?;
        if (0..=TIME_MS_MAX).contains(&ms) {
            Ok(Self(ms))
        } else {
            Err(D::Error::custom(format_args!(
                "{BAD_TIMESTAMP} {ms} ms is not between the years 1970 and 9999"
            )))
        }
    }
}

/// A finite number, or a text that holds one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number(pub f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = f64;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number")
            }

            #[expect(clippy::cast_precision_loss, reason = "the column is a double, as upstream's")]
            fn visit_i64<E: Error>(self, number: i64) -> Result<f64, E> {
                Ok(number as f64)
            }

            #[expect(clippy::cast_precision_loss, reason = "the column is a double, as upstream's")]
            fn visit_u64<E: Error>(self, number: u64) -> Result<f64, E> {
                Ok(number as f64)
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<f64, E> {
                Ok(number)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
                text.trim()
                    .parse()
                    .map_err(|_| E::custom(format_args!("{NOT_FINITE} `{text}` is no number")))
            }
        }
        let number = deserializer.deserialize_any(NumberVisitor)?;
        if number.is_finite() {
            Ok(Self(number))
        } else {
            Err(D::Error::custom(format_args!("{NOT_FINITE} the value is {number}")))
        }
    }
}

/// A string, borrowed when it has no escapes. A null counts as empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Cow<'de, str>, E> {
                Ok(Cow::Owned(text.to_owned()))
            }

            fn visit_unit<E: Error>(self) -> Result<Cow<'de, str>, E> {
                Ok(Cow::Borrowed(""))
            }
        }
        deserializer.deserialize_any(TextVisitor).map(Self)
    }
}

/// A string, or the JSON text of a number or boolean.
pub(super) fn scalar_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    match text.as_bytes().first()? {
        b'"' => match text.get(1..text.len().saturating_sub(1)) {
            Some(inner) if !inner.contains('\\') => Some(Cow::Borrowed(inner)),
            _ => serde_json::from_str(text).ok().map(Cow::Owned),
        },
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(text)),
    }
}

/// JSON text without white space between its tokens.
pub(super) fn compact(text: &str) -> Cow<'_, str> {
    let (mut in_string, mut escaped) = (false, false);
    let mut inside = |byte: u8| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ => {}
        }
        in_string
    };
    if !text.bytes().any(|byte| !inside(byte) && byte.is_ascii_whitespace()) {
        return Cow::Borrowed(text);
    }
    let (mut in_string, mut escaped) = (false, false);
    let kept = text.chars().filter(|character| {
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !character.is_ascii_whitespace()
    });
    Cow::Owned(kept.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_goes_only_between_tokens() {
        assert_eq!(compact("{ \"a b\" : [ 1, \"\\\" \" ] }\n"), "{\"a b\":[1,\"\\\" \"]}");
        assert!(matches!(compact("{\"a b\":1}"), Cow::Borrowed(_)));
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_levels() {
        let payload = format!("\"{}\\\"{}\"", "[".repeat(40), "{".repeat(40));
        assert!(text(payload.as_bytes()).is_ok());
    }
}
