//! Messages that can never be stored, kept with their reason and their original bytes.
//!
//! They lie in a log of their own, durable before the message is acknowledged. A message that is delivered again after
//! a crash may be written here twice; its key is the same, so readers collapse it.

use bincode::{BorrowDecode, Encode};
use wal::{AppendError, Batch, Fs, PushError, Wal, WalError};

use crate::codec::{self, CodecError};
use crate::envelope::{CUT_TO_BYTES, Envelope, EnvelopeError, FIXED_BYTES_MAX, TimestampType};

const VERSION: u8 = 1;

/// A message that cannot be stored, and why.
#[derive(Debug, Clone, PartialEq, Eq, Encode, BorrowDecode, serde::Serialize)]
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
    pub key: Option<Vec<u8>>,
    /// The message's bytes, or the whole record when it could not be read.
    #[serde(serialize_with = "as_text_or_hex")]
    pub payload: Option<Vec<u8>>,
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
        }
    }

    /// What tells it from others; a message delivered twice has the same.
    #[must_use]
    pub fn key(&self) -> DeadLetterKey {
        let checksum = crc32fast::hash(self.payload.as_deref().unwrap_or_default());
        let Self { partition, offset, element, timestamp_ms, .. } = *self;
        (self.topic.clone(), partition, offset, element, timestamp_ms, checksum)
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
            Some((&found, _)) => Err(EnvelopeError::UnknownVersion { found }),
        }
    }

    /// Appends a record of at most `bytes_max` bytes: what is longer is cut, and says so.
    fn encode_within(&self, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(VERSION);
        if self.bytes() <= bytes_max {
            return codec::encode_into(self, out);
        }
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let bytes = length(&self.key).saturating_add(length(&self.payload));
        let cut = |bytes: &Option<Vec<u8>>| {
            bytes.as_ref().map(|bytes| bytes.get(..CUT_TO_BYTES).unwrap_or(bytes).to_vec())
        };
        let detail =
            format!("{} (its {bytes} bytes do not fit here, only the first are kept)", self.detail);
        codec::encode_into(
            &Self { detail, key: cut(&self.key), payload: cut(&self.payload), ..self.clone() },
            out,
        )
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

/// Why dead letters were not written; none of them counts as kept.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No room: the messages stay in the log and are tried again.
    #[error("no room for dead letters")]
    Full,
    /// The dead letter cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The dead letter log failed.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The dead letter is longer than its log allows.
    #[error("{0}")]
    TooLong(String),
}

/// The dead letter log.
pub struct DeadLetters<F: Fs> {
    wal: Wal<F>,
}

impl<F: Fs> Clone for DeadLetters<F> {
    fn clone(&self) -> Self {
        Self { wal: self.wal.clone() }
    }
}

impl<F: Fs> DeadLetters<F> {
    /// Dead letters kept in `wal`.
    #[must_use]
    pub fn new(wal: Wal<F>) -> Self {
        Self { wal }
    }

    /// The log underneath, for status and closing.
    #[must_use]
    pub fn wal(&self) -> &Wal<F> {
        &self.wal
    }

    /// Appends `letters` and returns when they are durable.
    ///
    /// # Errors
    /// None of them may be taken for kept; try again later.
    pub fn keep<'a>(
        &self,
        letters: impl IntoIterator<Item = &'a DeadLetter>,
    ) -> Result<(), DeadLetterError> {
        let mut batch = Batch::new();
        let bytes_max = self.wal.max_record_bytes();
        for letter in letters {
            match batch.push_with(|out| letter.encode_within(bytes_max, out)) {
                Ok(()) => {}
                Err(PushError::BatchFull) => {
                    self.append(std::mem::take(&mut batch))?;
                    batch.push_with(|out| letter.encode_within(bytes_max, out)).map_err(
                        |error| match error {
                            PushError::Write(error) => DeadLetterError::Codec(error),
                            PushError::BatchFull => {
                                DeadLetterError::TooLong("dead letter over 4 GiB".to_owned())
                            }
                        },
                    )?;
                }
                Err(PushError::Write(error)) => return Err(error.into()),
            }
        }
        if !batch.is_empty() {
            self.append(batch)?;
        }
        self.wal.commit()?;
        Ok(())
    }

    fn append(&self, batch: Batch) -> Result<(), DeadLetterError> {
        match self.wal.append(batch) {
            Ok(_ticket) => Ok(()),
            Err(AppendError::Full(_)) => Err(DeadLetterError::Full),
            Err(AppendError::Poisoned { cause }) => Err(WalError::Poisoned { cause }.into()),
            Err(AppendError::Closed) => Err(WalError::Closed.into()),
            Err(other @ AppendError::TooLarge { .. }) => {
                Err(DeadLetterError::TooLong(other.to_string()))
            }
        }
    }

    /// Number of dead letters kept, repetitions included.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.wal.status().backlog_records
    }

    /// Calls `each` with the dead letters from position `from` on, at most `limit`, and returns the position to go on
    /// at. Repetitions are not collapsed here: the caller knows what it has seen.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn read(
        &self,
        from: wal::Position,
        limit: usize,
        mut each: impl FnMut(wal::Position, DeadLetter),
    ) -> Result<wal::Position, DeadLetterError> {
        let mut reader = self.wal.reader(from);
        let mut chunk = wal::Chunk::default();
        let mut next = from;
        let mut taken = 0_usize;
        loop {
            match reader.next(&mut chunk, 1 << 20)? {
                wal::ReadOutcome::Records => {
                    for (position, record) in chunk.iter() {
                        if taken >= limit {
                            return Ok(next);
                        }
                        if let Ok(letter) = DeadLetter::decode(record) {
                            each(position, letter);
                            taken = taken.saturating_add(1);
                        }
                        next = position.next();
                    }
                }
                wal::ReadOutcome::Gap(positions, _) => next = positions.end,
                wal::ReadOutcome::CaughtUp => return Ok(next),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wal::sim::SimDisk;
    use wal::{NoCarry, Position, WalConfig};

    use super::*;

    #[test]
    fn a_letter_longer_than_its_log_allows_is_kept_cut_and_says_so() {
        let config = WalConfig { max_record_bytes: 20_000, ..WalConfig::default() };
        let disk = SimDisk::new(1);
        let (wal, _) = Wal::open(disk, config, Box::new(NoCarry), Duration::ZERO).unwrap();
        let letters = DeadLetters::new(wal);
        let letter = |payload: usize| DeadLetter {
            payload: Some(vec![b'p'; payload]),
            ..DeadLetter::unreadable(b"", &EnvelopeError::Empty)
        };
        letters.keep([&letter(10), &letter(30_000), &letter(19_900)]).unwrap();
        let mut found = Vec::new();
        letters.read(Position::ZERO, 9, |_, letter| found.push(letter)).unwrap();
        assert_eq!(found[0], letter(10));
        assert_eq!(found[1].payload, letter(4096).payload);
        assert!(found[1].detail.contains("its 30000 bytes do not fit"), "{}", found[1].detail);
        assert_eq!(found[2].payload, letter(4096).payload, "without room for the rest of it");
    }
}
