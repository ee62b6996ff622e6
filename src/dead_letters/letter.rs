//! One dead letter: the message as it came, where it came from, and why it cannot be stored.
//!
//! The first byte of a record is its version. Golden bytes below fix the format.

use bincode::{BorrowDecode, Encode};

use crate::codec::{self, CodecError};
use crate::envelope::{CUT_TO_BYTES, Envelope, EnvelopeError, FIXED_BYTES_MAX, TimestampType};

/// Version written by this program.
const VERSION: u8 = 2;
/// Without `since_ms` and `cut_from`.
const VERSION_FIRST: u8 = 1;
/// What letters of version 1 that were cut say about it.
const CUT: &str = "only the first are kept";

/// A message that cannot be stored, and why.
#[derive(
    Debug, Clone, PartialEq, Eq, Encode, BorrowDecode, serde::Serialize, schemars::JsonSchema,
)]
pub struct DeadLetter {
    /// Topic; empty when the record could not be read at all.
    pub topic: String,
    /// Partition; -1 when unknown.
    pub partition: i32,
    /// Offset; -1 when unknown.
    pub offset: i64,
    /// Index in a message that holds several metrics; 0 otherwise.
    pub element: u32,
    /// Leader epoch; -1 when unknown.
    pub leader_epoch: i32,
    /// Kafka's timestamp, milliseconds since the epoch, if the message had one.
    pub timestamp_ms: Option<i64>,
    /// When it was taken from Kafka, milliseconds since the epoch.
    pub received_ms: i64,
    /// Reason code, stable.
    pub code: String,
    /// Reason for people.
    pub detail: String,
    /// Key of the message.
    #[serde(serialize_with = "as_text_or_hex")]
    #[schemars(with = "Option<String>")]
    pub key: Option<Vec<u8>>,
    /// The message's bytes, or the whole record when it could not be read.
    #[serde(serialize_with = "as_text_or_hex")]
    #[schemars(with = "Option<String>")]
    pub payload: Option<Vec<u8>>,
    /// When it became a dead letter, milliseconds since the epoch; unknown for those of older programs.
    pub since_ms: Option<i64>,
    /// How long key and payload were, if only their first bytes are here.
    pub cut_from: Option<u64>,
}

/// What version 1 has.
#[derive(BorrowDecode)]
struct First {
    topic: String,
    partition: i32,
    offset: i64,
    element: u32,
    leader_epoch: i32,
    timestamp_ms: Option<i64>,
    received_ms: i64,
    code: String,
    detail: String,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
}

/// What tells one dead letter from another: topic, partition, offset, index in the message, timestamp and a checksum of
/// the bytes. Offsets are given again when a topic is created again or loses its end.
pub type DeadLetterKey = (String, i32, i64, u32, Option<i64>, u32);

impl DeadLetter {
    /// A dead letter for a message or one element of it.
    #[must_use]
    pub fn of(envelope: &Envelope<'_>, element: u32, code: &str, detail: &str) -> Self {
        Self {
            topic: envelope.topic.to_owned(),
            partition: envelope.partition,
            offset: envelope.offset,
            element,
            leader_epoch: envelope.leader_epoch,
            timestamp_ms: (envelope.timestamp_type != TimestampType::Absent)
                .then_some(envelope.timestamp_ms),
            received_ms: envelope.received_ms,
            code: code.to_owned(),
            detail: detail.to_owned(),
            key: envelope.key.map(<[u8]>::to_vec),
            payload: envelope.payload.map(<[u8]>::to_vec),
            since_ms: None,
            cut_from: None,
        }
    }

    /// A dead letter for a record of the log that this program cannot read.
    #[must_use]
    pub fn unreadable(record: &[u8], error: &EnvelopeError) -> Self {
        Self {
            topic: String::new(),
            partition: -1,
            offset: -1,
            element: 0,
            leader_epoch: -1,
            timestamp_ms: None,
            received_ms: 0,
            code: "UNREADABLE_RECORD".to_owned(),
            detail: error.to_string(),
            key: None,
            payload: Some(record.to_vec()),
            since_ms: None,
            cut_from: None,
        }
    }

    /// What tells it from others; a message delivered twice has the same.
    #[must_use]
    pub fn key(&self) -> DeadLetterKey {
        let checksum = crc32fast::hash(self.payload.as_deref().unwrap_or_default());
        let Self { partition, offset, element, timestamp_ms, .. } = *self;
        (self.topic.clone(), partition, offset, element, timestamp_ms, checksum)
    }

    /// When it became a dead letter; for those of older programs when it was taken from Kafka, which is earlier.
    #[must_use]
    pub fn since_ms(&self) -> i64 {
        self.since_ms.unwrap_or(self.received_ms)
    }

    /// Whether only the first bytes of the message are here.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut_from.is_some() || (self.since_ms.is_none() && self.detail.contains(CUT))
    }

    /// Bytes of memory and log that it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let bytes = length(&self.key).saturating_add(length(&self.payload));
        let text =
            self.topic.len().saturating_add(self.code.len()).saturating_add(self.detail.len());
        bytes.saturating_add(text).saturating_add(FIXED_BYTES_MAX)
    }

    /// Reads one from a record of the dead letter log.
    ///
    /// # Errors
    /// The record is damaged or from a newer program.
    pub fn decode(record: &[u8]) -> Result<Self, EnvelopeError> {
        match record.split_first() {
            None => Err(EnvelopeError::Empty),
            Some((&VERSION, rest)) => Ok(codec::decode(rest)?),
            Some((&VERSION_FIRST, rest)) => Ok(codec::decode::<First>(rest)?.into()),
            Some((&found, _)) => Err(EnvelopeError::UnknownVersion { found }),
        }
    }

    /// Appends a record of at most `bytes_max` bytes: what is longer is cut, and says so.
    pub(super) fn encode_within(
        &self,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        out.push(VERSION);
        if self.bytes() <= bytes_max {
            return codec::encode_into(self, out);
        }
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let bytes = length(&self.key).saturating_add(length(&self.payload));
        let cut = |bytes: &Option<Vec<u8>>| {
            bytes.as_ref().map(|bytes| bytes.get(..CUT_TO_BYTES).unwrap_or(bytes).to_vec())
        };
        let detail = format!("{} (its {bytes} bytes do not fit here, {CUT})", self.detail);
        let cut_from = self.cut_from.or_else(|| u64::try_from(bytes).ok());
        let (key, payload) = (cut(&self.key), cut(&self.payload));
        codec::encode_into(&Self { detail, key, payload, cut_from, ..self.clone() }, out)
    }
}

impl From<First> for DeadLetter {
    fn from(first: First) -> Self {
        Self {
            topic: first.topic,
            partition: first.partition,
            offset: first.offset,
            element: first.element,
            leader_epoch: first.leader_epoch,
            timestamp_ms: first.timestamp_ms,
            received_ms: first.received_ms,
            code: first.code,
            detail: first.detail,
            key: first.key,
            payload: first.payload,
            since_ms: None,
            cut_from: None,
        }
    }
}

/// Bytes for people: text when they are UTF-8, else hexadecimal behind `0x`.
fn as_text_or_hex<S: serde::Serializer>(
    bytes: &Option<Vec<u8>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    use std::fmt::Write as _;
    match bytes {
        None => serializer.serialize_none(),
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut hex =
                    String::with_capacity(bytes.len().saturating_mul(2).saturating_add(2));
                hex.push_str("0x");
                for byte in bytes {
                    write!(hex, "{byte:02x}").map_err(serde::ser::Error::custom)?;
                }
                serializer.serialize_str(&hex)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            topic: "m".to_owned(),
            partition: 3,
            offset: 1_000_000,
            element: 2,
            leader_epoch: -1,
            timestamp_ms: None,
            received_ms: 5,
            code: "C".to_owned(),
            detail: "d".to_owned(),
            key: None,
            payload: Some(vec![0xff]),
            since_ms: Some(7),
            cut_from: None,
        }
    }

    #[test]
    fn the_bytes_of_both_versions_never_change() {
        let mut bytes = Vec::new();
        letter().encode_within(1000, &mut bytes).unwrap();
        let second: &[u8] = &[
            2, 1, b'm', 6, 252, 128, 132, 30, 0, 2, 1, 0, 10, 1, b'C', 1, b'd', 0, 1, 1, 0xff, 1,
            14, 0,
        ];
        assert_eq!(bytes, second);
        assert_eq!(DeadLetter::decode(second).unwrap(), letter());
        let mut first = second[..second.len() - 3].to_vec();
        first[0] = 1;
        let found = DeadLetter::decode(&first).unwrap();
        assert_eq!(found, DeadLetter { since_ms: None, ..letter() });
        assert_eq!((found.since_ms(), letter().since_ms()), (5, 7));
        for length in 0..second.len() {
            assert!(DeadLetter::decode(&second[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn a_letter_that_was_cut_by_an_older_program_is_known() {
        let detail = "70000 bytes, more than a record of the log can have; only the first are kept";
        let cut = DeadLetter { detail: detail.to_owned(), since_ms: None, ..letter() };
        assert!(cut.is_cut() && !letter().is_cut());
    }
}
