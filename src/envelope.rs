//! One Kafka message as one record of the log: coordinates, times, key and payload, versioned.
//!
//! The payload is kept as it came, so that a corrected decoder can read old records again. The first byte is the
//! version; the rest is [`crate::codec`]'s business. Golden bytes below fix the format.

use bincode::{BorrowDecode, Encode};

use crate::codec::{self, CodecError};

/// Version written by this program.
const VERSION: u8 = 1;
/// Version of a message that is longer than a record of the log can be: its length, then a message as in version 1
/// with the first bytes of key and payload.
const VERSION_CUT: u8 = 2;
/// Version of a message that comes from the dead letters: as version 1. Its offset lies before those around it, and was
/// accounted for when it became a dead letter, so it says nothing about how far its partition is.
const VERSION_AGAIN: u8 = 3;
/// How much of key and payload such a record has.
pub(crate) const CUT_TO_BYTES: usize = 4096;
/// No fields but topic, key and payload take more than this, with all lengths.
pub(crate) const FIXED_BYTES_MAX: usize = 128;

/// What Kafka's timestamp of a message means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub enum TimestampType {
    /// The message has none.
    Absent,
    /// Set by the producer.
    Created,
    /// Set by the broker.
    Appended,
}

/// A Kafka message with everything needed to store it later, borrowed from wherever it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Envelope<'a> {
    /// Topic it came from.
    pub topic: &'a str,
    /// Partition of the topic.
    pub partition: i32,
    /// Kafka's offset in the partition.
    pub offset: i64,
    /// Epoch of the partition's leader when it was fetched; -1 when unknown.
    pub leader_epoch: i32,
    /// Kafka's timestamp in milliseconds since the epoch; meaningless when absent.
    pub timestamp_ms: i64,
    /// Who set the timestamp.
    pub timestamp_type: TimestampType,
    /// When this program took it, milliseconds since the epoch.
    pub received_ms: i64,
    /// Key, if any.
    pub key: Option<&'a [u8]>,
    /// Payload; a message without one becomes a dead letter.
    pub payload: Option<&'a [u8]>,
}

/// A record that this program cannot read.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// The record is empty.
    #[error("empty record")]
    Empty,
    /// Written by a newer program: start that one.
    #[error("record version {found} is newer than {VERSION_AGAIN}, the newest this program reads")]
    UnknownVersion {
        /// Version found.
        found: u8,
    },
    /// The bytes are damaged or foreign.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl<'a> Envelope<'a> {
    /// Appends the record's bytes to `out`.
    ///
    /// # Errors
    /// As [`codec::encode_into`].
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(VERSION);
        codec::encode_into(self, out)
    }

    /// Appends a record of at most `bytes_max` bytes: a longer message is cut, and says so when it is read, so that it
    /// becomes a dead letter and its partition goes on.
    ///
    /// # Errors
    /// As [`codec::encode_into`].
    pub fn encode_within(&self, bytes_max: usize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let bytes = length(self.key).saturating_add(length(self.payload));
        if bytes.saturating_add(self.topic.len()).saturating_add(FIXED_BYTES_MAX) <= bytes_max {
            return self.encode_into(out);
        }
        let cut =
            |bytes: Option<&'a [u8]>| bytes.map(|bytes| bytes.get(..CUT_TO_BYTES).unwrap_or(bytes));
        out.push(VERSION_CUT);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        codec::encode_into(
            &(bytes, Envelope { key: cut(self.key), payload: cut(self.payload), ..*self }),
            out,
        )
    }

    /// Appends the record of a message that comes from the dead letters, to be tried again.
    ///
    /// # Errors
    /// As [`codec::encode_into`].
    pub fn encode_again_into(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(VERSION_AGAIN);
        codec::encode_into(self, out)
    }

    /// Whether the record comes from the dead letters.
    #[must_use]
    pub fn is_again(record: &[u8]) -> bool {
        record.first() == Some(&VERSION_AGAIN)
    }

    /// How long key and payload of a message were that was cut; `None` if the record has all of it.
    #[must_use]
    pub fn cut_from(record: &[u8]) -> Option<u64> {
        match record.split_first() {
            Some((&VERSION_CUT, rest)) => {
                codec::decode::<(u64, Envelope<'_>)>(rest).ok().map(|(bytes, _)| bytes)
            }
            Some(_) | None => None,
        }
    }

    /// Reads a record, borrowing key and payload from it; see [`cut_from`](Self::cut_from).
    ///
    /// # Errors
    /// [`EnvelopeError`]: the record was not written by this program or one before it.
    pub fn decode(record: &'a [u8]) -> Result<Self, EnvelopeError> {
        match record.split_first() {
            None => Err(EnvelopeError::Empty),
            Some((&(VERSION | VERSION_AGAIN), rest)) => Ok(codec::decode(rest)?),
            Some((&VERSION_CUT, rest)) => Ok(codec::decode::<(u64, _)>(rest)?.1),
            Some((&found, _)) => Err(EnvelopeError::UnknownVersion { found }),
        }
    }

    /// The time that stands for the message: Kafka's, unless it is absent, more than a day after it was received, or
    /// older than the retention; then the time it was received.
    #[must_use]
    pub fn effective_time(&self, retention_ms: i64) -> EffectiveTime {
        let usable = self.timestamp_type != TimestampType::Absent
            && self.timestamp_ms <= self.received_ms.saturating_add(DAY_MS)
            && self.timestamp_ms >= self.received_ms.saturating_sub(retention_ms)
            && self.timestamp_ms > 0;
        let told_ms = (self.timestamp_type != TimestampType::Absent).then_some(self.timestamp_ms);
        if usable {
            EffectiveTime { ms: self.timestamp_ms, replaced: false, told_ms }
        } else {
            EffectiveTime { ms: self.received_ms, replaced: true, told_ms }
        }
    }
}

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The time that decides a row's write time and age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveTime {
    /// Milliseconds since the epoch.
    pub ms: i64,
    /// True when Kafka's timestamp could not be used.
    pub replaced: bool,
    /// Kafka's timestamp, if there is one.
    pub told_ms: Option<i64>,
}

impl EffectiveTime {
    /// How old the message is at `now_ms`, at the least. What was received while our clock was wrong is as old as
    /// Kafka's timestamp says: whoever believed that clock would take a fresh message for one of 1970.
    #[must_use]
    pub fn age_ms(&self, now_ms: i64) -> i64 {
        let told_ms = self.told_ms.filter(|told| *told <= now_ms.saturating_add(DAY_MS));
        let youngest_ms = told_ms.map_or(self.ms, |told| told.max(self.ms));
        now_ms.saturating_sub(youngest_ms).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Envelope<'static> {
        Envelope {
            topic: "metrics",
            partition: 3,
            offset: 1_000_000,
            leader_epoch: -1,
            timestamp_ms: 1_405_630_174_123,
            timestamp_type: TimestampType::Created,
            received_ms: 1_405_630_174_200,
            key: Some(b"k"),
            payload: Some(b"{}"),
        }
    }

    #[test]
    fn the_bytes_of_version_1_never_change() {
        let mut bytes = Vec::new();
        sample().encode_into(&mut bytes).unwrap();
        let golden: &[u8] = &[
            1, 7, b'm', b'e', b't', b'r', b'i', b'c', b's', 6, 252, 128, 132, 30, 0, 1, 253, 86,
            167, 44, 140, 142, 2, 0, 0, 1, 253, 240, 167, 44, 140, 142, 2, 0, 0, 1, 1, b'k', 1, 2,
            b'{', b'}',
        ];
        assert_eq!(bytes, golden);
        assert_eq!(Envelope::decode(golden).unwrap(), sample());
    }

    #[test]
    fn a_message_from_the_dead_letters_is_the_same_and_known() {
        let (mut first, mut again) = (Vec::new(), Vec::new());
        sample().encode_into(&mut first).unwrap();
        sample().encode_again_into(&mut again).unwrap();
        assert_eq!(Envelope::decode(&again).unwrap(), sample());
        assert!(Envelope::is_again(&again) && !Envelope::is_again(&first));
        assert_eq!((again[0], &again[1..]), (3, &first[1..]));
    }

    #[test]
    fn a_message_longer_than_a_record_is_cut_and_says_how_long_it_was() {
        let key = vec![b'k'; 5000];
        let payload = vec![b'p'; 70_000];
        let long = Envelope { key: Some(&key), payload: Some(&payload), ..sample() };
        let mut whole = Vec::new();
        long.encode_within(80_000, &mut whole).unwrap();
        assert_eq!((Envelope::decode(&whole).unwrap(), Envelope::cut_from(&whole)), (long, None));
        let mut bytes = Vec::new();
        long.encode_within(64_000, &mut bytes).unwrap();
        assert!(bytes.len() <= 64_000);
        assert_eq!(Envelope::cut_from(&bytes), Some(75_000));
        let cut = Envelope { key: Some(&key[..4096]), payload: Some(&payload[..4096]), ..long };
        assert_eq!(Envelope::decode(&bytes).unwrap(), cut);
        assert_eq!(&bytes[..7], [2, 252, 248, 36, 1, 0, 7], "version 2 never changes");
        for length in 0..bytes.len() {
            assert!(Envelope::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
    }

    #[test]
    fn what_fits_is_never_longer_than_allowed() {
        let topic = "t".repeat(249);
        for length in [0, 1, 250, 251, 65_535, 65_536, 100_000] {
            let payload = vec![0; length];
            let message = Envelope {
                topic: &topic,
                partition: i32::MIN,
                offset: i64::MIN,
                leader_epoch: i32::MIN,
                timestamp_ms: i64::MIN,
                received_ms: i64::MIN,
                key: Some(&[]),
                payload: Some(&payload),
                ..sample()
            };
            let mut bytes = Vec::new();
            message.encode_into(&mut bytes).unwrap();
            assert!(bytes.len() <= length + topic.len() + FIXED_BYTES_MAX, "{}", bytes.len());
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let mut bytes = Vec::new();
        sample().encode_into(&mut bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(Envelope::decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        bytes.push(0);
        assert!(Envelope::decode(&bytes).is_err(), "one byte too many");
    }

    #[test]
    fn a_newer_version_is_named() {
        assert!(matches!(
            Envelope::decode(&[4, 0]),
            Err(EnvelopeError::UnknownVersion { found: 4 })
        ));
    }

    #[test]
    fn a_timestamp_that_cannot_be_right_is_replaced_by_the_receive_time() {
        let retention_ms = 1_000_000;
        let day_ms = 86_400_000;
        let received = sample().received_ms;
        let time = |timestamp_ms, timestamp_type| {
            Envelope { timestamp_ms, timestamp_type, ..sample() }.effective_time(retention_ms)
        };
        assert_eq!(
            time(received - 5, TimestampType::Created),
            EffectiveTime { ms: received - 5, replaced: false, told_ms: Some(received - 5) }
        );
        assert_eq!(time(received + day_ms, TimestampType::Appended).ms, received + day_ms);
        assert_eq!(time(received + day_ms + 1, TimestampType::Created).ms, received);
        assert_eq!(time(received - retention_ms - 1, TimestampType::Created).ms, received);
        assert!(time(received, TimestampType::Absent).replaced);
    }

    #[test]
    fn a_message_received_by_a_clock_at_1970_is_not_old_when_the_clock_is_right() {
        let sent = sample().timestamp_ms;
        let message = Envelope { received_ms: 90_000, ..sample() };
        let time = message.effective_time(1_000_000);
        assert_eq!((time.ms, time.replaced), (90_000, true));
        assert_eq!(time.age_ms(sent + 3_000), 3_000);
        let silent = Envelope { timestamp_type: TimestampType::Absent, ..message };
        assert_eq!(silent.effective_time(1_000_000).age_ms(100_000), 10_000);
        let ahead = Envelope { received_ms: sent, timestamp_ms: sent + 3 * DAY_MS, ..sample() };
        assert_eq!(ahead.effective_time(1_000_000).age_ms(sent + 7), 7, "a producer far ahead");
    }
}
