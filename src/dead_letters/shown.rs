//! A dead letter for people and programs.

use serde::Serialize;
use wal::Position;

use super::DeadLetter;

/// Whether the bytes of key and payload can be had back from what is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
    /// Text, or hexadecimal behind `0x` where it is none: for reading.
    Readable,
    /// The same, and base64 beside it.
    Lossless,
}

/// A letter and where it lies, as JSON.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct ShownLetter {
    /// Its position in the log of dead letters: its name for `show`, `retry` and `drop`.
    pub position: u64,
    /// The letter.
    #[serde(flatten)]
    pub letter: DeadLetter,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl ShownLetter {
    /// Shows a letter.
    #[must_use]
    pub fn of(position: Position, letter: DeadLetter, bytes: Bytes) -> Self {
        let base64 = |field: &Option<Vec<u8>>| match bytes {
            Bytes::Readable => None,
            Bytes::Lossless => field.as_deref().map(openssl::base64::encode_block),
        };
        Self {
            position: position.get(),
            key_base64: base64(&letter.key),
            payload_base64: base64(&letter.payload),
            letter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::EnvelopeError;

    #[test]
    fn bytes_that_are_no_text_come_back_from_base64() {
        let record = [0xff, 0x00, b'"'];
        let letter = DeadLetter::unreadable(&record, &EnvelopeError::Empty);
        let json = |bytes| {
            let shown = ShownLetter::of(Position::new(4), letter.clone(), bytes);
            serde_json::to_value(shown).unwrap()
        };
        let lossless = json(Bytes::Lossless);
        assert_eq!((&lossless["position"], &lossless["payload"]), (&4.into(), &"0xff0022".into()));
        let text = lossless["payload_base64"].as_str().unwrap();
        assert_eq!(openssl::base64::decode_block(text).unwrap(), record);
        assert_eq!(lossless.get("key_base64"), None);
        assert_eq!(json(Bytes::Readable).get("payload_base64"), None);
    }
}
