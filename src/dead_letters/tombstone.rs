//! Which dead letters are gone, as their log notes it.
//!
//! A note is the annotation of a batch without records: a log that is full of letters has room for it all the same. It
//! names positions, not messages, so a message that becomes a dead letter again later is one again. It outlives the
//! letters it names, because nothing is reclaimed before everything in front of it. Positions of another log mean nothing
//! in this one.
//!
//! What a crash leaves: a note that is durable holds, whatever the acks of the log say; without one the letters are there
//! again.

use std::ops::{ControlFlow, Range};

use wal::{Fs, LogId, Position, Scanned, WalError};

use crate::codec::{self, CodecError};
use crate::envelope::EnvelopeError;

const VERSION: u8 = 1;
/// Ranges in one note: well below what an annotation, and the reserve of a full log, can have.
const RANGES_MAX: usize = 1000;

/// Contiguous ranges that cover exactly these ascending positions.
pub(super) fn ranges(positions: &[Position]) -> Vec<Range<Position>> {
    let mut ranges: Vec<Range<Position>> = Vec::new();
    for position in positions {
        match ranges.last_mut() {
            Some(last) if last.end == *position => last.end = position.next(),
            _ => ranges.push(*position..position.next()),
        }
    }
    ranges
}

/// The notes that these letters of the log are gone.
///
/// # Errors
/// As [`codec::encode_into`].
pub(super) fn encode(log: LogId, gone: &[Range<Position>]) -> Result<Vec<Vec<u8>>, CodecError> {
    gone.chunks(RANGES_MAX)
        .map(|ranges| {
            let ranges: Vec<(u64, u64)> = ranges
                .iter()
                .map(|range| (range.start.get(), range.end.get().saturating_sub(range.start.get())))
                .collect();
            let mut out = vec![VERSION];
            codec::encode_into(&(log.bytes(), ranges), &mut out)?;
            Ok(out)
        })
        .collect()
}

/// Reads a note: what is gone, if it is about this log.
///
/// # Errors
/// The note is damaged or from a newer program.
fn decode(log: LogId, note: &[u8]) -> Result<Vec<Range<Position>>, EnvelopeError> {
    match note.split_first() {
        None => Ok(Vec::new()),
        Some((&VERSION, rest)) => {
            let (of, ranges) = codec::decode::<([u8; 16], Vec<(u64, u64)>)>(rest)?;
            if of != log.bytes() {
                return Ok(Vec::new());
            }
            let range = |(start, length): (u64, u64)| {
                Position::new(start)..Position::new(start.saturating_add(length))
            };
            Ok(ranges.into_iter().map(range).collect())
        }
        Some((&found, _)) => Err(EnvelopeError::UnknownVersion { found }),
    }
}

/// What a log's directory says is gone; its owner may go on writing. A note that cannot be read is passed over: its
/// letters are there again, which loses nothing.
///
/// # Errors
/// The directory cannot be read.
pub fn gone<F: Fs>(fs: &F, log: LogId) -> Result<Vec<Range<Position>>, WalError> {
    let mut gone = Vec::new();
    wal::scan(fs, |scanned| {
        if let Scanned::Frame { annotation, .. } = scanned {
            match decode(log, annotation) {
                Ok(ranges) => gone.extend(ranges),
                Err(error) => {
                    tracing::warn!(code = "DEAD_LETTERS_NOTE", %error, "a note of what was removed cannot be read");
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    gone.sort_unstable_by_key(|range| range.start);
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_become_ranges_and_a_note_of_them_is_read_back() {
        let at = Position::new;
        let positions: Vec<Position> = [3, 4, 5, 9, 11, 12].map(at).to_vec();
        let gone = ranges(&positions);
        assert_eq!(gone, [at(3)..at(6), at(9)..at(10), at(11)..at(13)]);
        let notes = encode(LogId::new([7; 16]), &gone).unwrap();
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0][..1], [1]);
        assert_eq!(decode(LogId::new([7; 16]), &notes[0]).unwrap(), gone);
        assert_eq!(decode(LogId::new([8; 16]), &notes[0]).unwrap(), [], "another log's");
        assert!(decode(LogId::new([7; 16]), &[2]).is_err());
    }

    #[test]
    fn a_note_of_many_ranges_is_several() {
        let gone: Vec<_> =
            (0..2500).map(|n| Position::new(2 * n)..Position::new(2 * n + 1)).collect();
        let log = LogId::new([1; 16]);
        let notes = encode(log, &gone).unwrap();
        assert_eq!(notes.len(), 3);
        assert!(notes.iter().all(|note| note.len() < 20_000));
        let read: Vec<_> = notes.iter().flat_map(|note| decode(log, note).unwrap()).collect();
        assert_eq!(read, gone);
    }
}
