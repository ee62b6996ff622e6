//! Messages that can never be stored, kept with their reason and their original bytes.
//!
//! They lie in a log of their own, durable before the message is acknowledged. A message that is delivered again after
//! a crash may be written here twice; its key is the same, so readers collapse it. What a person drops or has tried again
//! is acked here, after a note of it is durable, and its space comes back as in any log.
//!
//! ```text
//! delivery -keep-> [ log ] -walk-> listings; retry -> the log of the pipeline; topic -> Kafka
//!                     ^-- remove: note, ack, checkpoint -------+------------------+
//! ```

mod again;
mod clerk;
mod filter;
mod letter;
mod on_disk;
mod orders;
mod shown;
mod tombstone;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wal::{
    AppendError, Batch, Chunk, Fs, GapReason, Position, PushError, ReadOutcome, Wal, WalError,
};

use crate::codec::CodecError;
use crate::sync::lock;

pub use again::{Outcome, RetryTarget, retry};
pub use clerk::{Clerk, ClerkCounts, ClerkParts};
pub use filter::LetterFilter;
pub use letter::{DeadLetter, DeadLetterKey};
pub use on_disk::{Found, read_directory};
pub use orders::{LetterOrder, LetterOrders, Verb};
pub use shown::{Bytes, ShownLetter};

/// Raw bytes moved at once when space is made.
const MOVED_BYTES: usize = 1 << 20;
/// Positions held in memory while letters are removed.
const REMOVED_AT_ONCE: usize = 100_000;

/// Why dead letters were not written; none of them counts as kept.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No room: the messages stay in the log and are tried again.
    #[error("no room for dead letters")]
    Full,
    /// The oldest dead letter is older than allowed: the messages stay in the log and are tried again.
    #[error("the oldest dead letter is too old")]
    Old,
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

/// When dead letters press back, and the clock that tells their age.
#[derive(Debug, Clone, Copy)]
pub struct LetterLimits {
    /// While the oldest is older, no others are kept. None: age is no reason.
    pub age_max: Option<Duration>,
    /// Bytes of the log that new letters leave free, so that others can be moved when space is made.
    pub headroom_bytes: u64,
    /// The wall clock, milliseconds since the epoch.
    pub now_ms: fn() -> i64,
}

/// First letter that is there, and since when it is a dead letter.
#[derive(Debug, Clone, Copy)]
struct Oldest {
    position: Position,
    since_ms: i64,
}

/// The dead letter log.
pub struct DeadLetters<F: Fs> {
    wal: Wal<F>,
    limits: Option<LetterLimits>,
    oldest: Arc<Mutex<Option<Oldest>>>,
}

impl<F: Fs> Clone for DeadLetters<F> {
    fn clone(&self) -> Self {
        Self { wal: self.wal.clone(), limits: self.limits, oldest: Arc::clone(&self.oldest) }
    }
}

impl<F: Fs> DeadLetters<F> {
    /// Dead letters kept in `wal`.
    #[must_use]
    pub fn new(wal: Wal<F>) -> Self {
        Self { wal, limits: None, oldest: Arc::default() }
    }

    /// The same with limits beside those of the log.
    #[must_use]
    pub fn with_limits(mut self, limits: LetterLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// The log underneath, for status and closing.
    #[must_use]
    pub fn wal(&self) -> &Wal<F> {
        &self.wal
    }

    /// Writes down when the letter became one, unless it says so already.
    pub(crate) fn stamp(&self, letter: &mut DeadLetter) {
        if letter.since_ms.is_none() {
            letter.since_ms = self.limits.map(|limits| (limits.now_ms)());
        }
    }

    /// Appends `letters` and returns when they are durable.
    ///
    /// # Errors
    /// None of them may be taken for kept; try again later.
    pub fn keep<'a>(
        &self,
        letters: impl IntoIterator<Item = &'a DeadLetter>,
    ) -> Result<(), DeadLetterError> {
        if self.is_too_old() {
            return Err(DeadLetterError::Old);
        }
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
        let headroom = self.limits.map_or(0, |limits| limits.headroom_bytes);
        if headroom > 0 {
            let status = self.wal.status();
            let taken = status.used_bytes.saturating_add(status.queued_bytes);
            let bytes = u64::try_from(batch.bytes()).unwrap_or(u64::MAX);
            // A letter that is longer than all else together may have the rest.
            let is_alone = status.backlog_records == 0;
            if !is_alone && taken.saturating_add(bytes).saturating_add(headroom) > status.max_bytes
            {
                return Err(DeadLetterError::Full);
            }
        }
        self.append_anyway(batch)
    }

    fn append_anyway(&self, batch: Batch) -> Result<(), DeadLetterError> {
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

    /// Since when the first letter in the log is one, milliseconds since the epoch. After space was made the oldest may
    /// lie further back for a while.
    #[must_use]
    pub fn oldest_since_ms(&self) -> Option<i64> {
        let known = *lock(&self.oldest);
        if let Some(known) = known.filter(|known| !self.wal.is_acked(known.position)) {
            return Some(known.since_ms);
        }
        let mut found = None;
        self.walk(Position::ZERO, |position, letter| {
            found = Some(Oldest { position, since_ms: letter.since_ms() });
            ControlFlow::Break(())
        })
        .ok()?;
        *lock(&self.oldest) = found;
        found.map(|oldest| oldest.since_ms)
    }

    /// Whether the oldest letter is so old that no others are kept.
    #[must_use]
    pub fn is_too_old(&self) -> bool {
        let Some(LetterLimits { age_max: Some(age_max), now_ms, .. }) = self.limits else {
            return false;
        };
        let age_max_ms = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
        self.oldest_since_ms().is_some_and(|since| now_ms().saturating_sub(since) > age_max_ms)
    }

    /// Calls `each` with the dead letters from position `from` on until it breaks off, and returns the position to go on
    /// at. Those that were dropped or tried again are left out. Repetitions are not collapsed here: the caller knows what
    /// it has seen.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn walk(
        &self,
        from: Position,
        mut each: impl FnMut(Position, DeadLetter) -> ControlFlow<()>,
    ) -> Result<Position, DeadLetterError> {
        let mut next = from.max(self.wal.delivered());
        let mut reader = self.wal.reader(next);
        let mut chunk = Chunk::default();
        loop {
            match reader.next(&mut chunk, 1 << 20)? {
                ReadOutcome::Records => {
                    for (position, record) in chunk.iter() {
                        next = position.next();
                        if !self.wal.is_acked(position)
                            && let Ok(letter) = DeadLetter::decode(record)
                            && each(position, letter).is_break()
                        {
                            return Ok(next);
                        }
                    }
                }
                ReadOutcome::Gap(positions, _) => next = positions.end,
                ReadOutcome::CaughtUp => return Ok(next),
            }
        }
    }

    /// The letters from position `from` on and before `end` that are meant, until `take` breaks off; returns the position
    /// to go on at. One that is named by its position is meant with all its repetitions.
    ///
    /// # Errors
    /// As [`DeadLetters::walk`].
    pub fn select(
        &self,
        filter: &LetterFilter,
        from: Position,
        end: Position,
        mut take: impl FnMut(Position, DeadLetter) -> ControlFlow<()>,
    ) -> Result<Position, DeadLetterError> {
        let keys = self.keys_of(&filter.positions)?;
        let filter = LetterFilter { positions: Vec::new(), ..filter.clone() };
        self.walk(from, |position, letter| {
            if position >= end {
                return ControlFlow::Break(());
            }
            let is_named = keys.as_ref().is_none_or(|keys| keys.contains(&letter.key()));
            if is_named && filter.matches(position, &letter) {
                return take(position, letter);
            }
            ControlFlow::Continue(())
        })
    }

    /// Removes the letters before `end` that are meant; returns how many.
    ///
    /// # Errors
    /// As [`DeadLetters::remove`].
    pub fn drop_letters(
        &self,
        filter: &LetterFilter,
        end: Position,
        now: Duration,
    ) -> Result<u64, DeadLetterError> {
        let (mut dropped, mut from) = (0_u64, Position::ZERO);
        loop {
            let mut positions = Vec::new();
            from = self.select(filter, from, end, |position, _| {
                positions.push(position);
                if positions.len() < REMOVED_AT_ONCE {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
            if positions.is_empty() {
                return Ok(dropped);
            }
            dropped = dropped.saturating_add(self.remove(&positions, now)?);
        }
    }

    /// Keys of the letters at these positions; none if no position is named.
    fn keys_of(&self, positions: &[u64]) -> Result<Option<Vec<DeadLetterKey>>, DeadLetterError> {
        if positions.is_empty() {
            return Ok(None);
        }
        let mut keys = Vec::new();
        for wanted in positions {
            let wanted = Position::new(*wanted);
            self.walk(wanted, |position, letter| {
                if position == wanted {
                    keys.push(letter.key());
                }
                ControlFlow::Break(())
            })?;
        }
        Ok(Some(keys))
    }

    /// These letters are gone for good, and so is the note of it after a crash. Returns how many of them were still
    /// there. `now` is the clock that the log was opened with.
    ///
    /// # Errors
    /// The log failed: end the process. Letters may be gone or not.
    pub fn remove(&self, positions: &[Position], now: Duration) -> Result<u64, DeadLetterError> {
        let here: Vec<Position> =
            positions.iter().copied().filter(|position| !self.wal.is_acked(*position)).collect();
        let gone = tombstone::ranges(&here);
        let notes = tombstone::encode(self.wal.status().log_id, &gone)?;
        let mut is_noted = true;
        for note in &notes {
            is_noted &= self.note(note)?;
        }
        gone.iter().for_each(|range| self.wal.ack(range.clone()));
        self.checkpoint(now)?;
        // What has gone made room for the notes of it.
        if !is_noted {
            for note in &notes {
                if !self.note(note)? {
                    tracing::warn!(
                        code = "DEAD_LETTERS_NOTE",
                        "no room to note which dead letters are gone: after a crash some may be there again"
                    );
                    break;
                }
            }
        }
        Ok(u64::try_from(here.len()).unwrap_or(u64::MAX))
    }

    /// Makes a note durable; false: there is no room.
    fn note(&self, note: &[u8]) -> Result<bool, DeadLetterError> {
        let mut batch = Batch::new();
        batch.annotate(note);
        match self.append_anyway(batch) {
            Ok(()) => {}
            Err(DeadLetterError::Full) => return Ok(false),
            Err(error) => return Err(error),
        }
        match self.wal.commit() {
            Ok(()) => Ok(true),
            Err(WalError::NoSpace { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what the log's own notes say is gone, after it was opened; `fs` is its directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn recall<D: Fs>(&self, fs: &D) -> Result<(), WalError> {
        tombstone::gone(fs, self.wal.status().log_id)?
            .into_iter()
            .for_each(|range| self.wal.ack(range));
        Ok(())
    }

    /// Makes acks durable and gives space back. `now` is the clock that the log was opened with.
    ///
    /// # Errors
    /// The log failed: end the process.
    pub fn checkpoint(&self, now: Duration) -> Result<(), WalError> {
        match self.wal.checkpoint(now) {
            Ok(()) | Err(WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// When space is short and a quarter of what lies in the log is gone: appends the oldest letters that are left at the
    /// end, so that the files in which they lay can go. A crash in between leaves them twice, with the same key. Returns
    /// how many were moved; call again until there are none.
    ///
    /// # Errors
    /// The log failed: end the process.
    pub fn make_room(&self) -> Result<u64, DeadLetterError> {
        let status = self.wal.status();
        let all = status.durable.distance_from(status.delivered).unwrap_or(0);
        let gone = all.saturating_sub(status.backlog_records);
        if status.is_below_low_mark() || status.out_of_space || gone.saturating_mul(4) < all {
            return Ok(0);
        }
        let begin = status.delivered;
        let mut reader = self.wal.reader(begin);
        let (mut chunk, mut batch) = (Chunk::default(), Batch::new());
        // Everything before `done` is appended again, or gone.
        let (mut moved, mut bytes, mut done, mut next) = (0_u64, 0_usize, begin, begin);
        let mut has_room = true;
        'walk: while bytes < MOVED_BYTES {
            let ReadOutcome::Records = reader.next(&mut chunk, MOVED_BYTES)? else { break };
            for (position, record) in chunk.iter() {
                if !self.wal.is_acked(position) {
                    if let Err(PushError::BatchFull) = batch.push(record) {
                        let full = std::mem::take(&mut batch);
                        let records = u64::try_from(full.len()).unwrap_or(u64::MAX);
                        has_room = self.append_moved(full)?;
                        if !has_room || batch.push(record).is_err() {
                            break 'walk;
                        }
                        (done, moved) = (next, moved.saturating_add(records));
                    }
                    bytes = bytes.saturating_add(record.len());
                }
                next = position.next();
            }
        }
        if has_room {
            let records = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            if batch.is_empty() || self.append_moved(batch)? {
                (done, moved) = (next, moved.saturating_add(records));
            }
        }
        match self.wal.commit() {
            Ok(()) => {}
            Err(WalError::NoSpace { .. }) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
        self.wal.ack(begin..done);
        Ok(moved)
    }

    /// False: there is no room.
    fn append_moved(&self, batch: Batch) -> Result<bool, DeadLetterError> {
        match self.append_anyway(batch) {
            Ok(()) => Ok(true),
            Err(DeadLetterError::Full) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Letters that lie where the log is damaged are lost: returns their positions once, and lets the log go on behind
    /// them.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn pass_damage(&self) -> Result<Option<std::ops::Range<Position>>, WalError> {
        let delivered = self.wal.delivered();
        if delivered >= self.wal.durable().through() {
            return Ok(None);
        }
        match self.wal.reader(delivered).next(&mut Chunk::default(), 1)? {
            ReadOutcome::Gap(positions, GapReason::Damaged | GapReason::MissingSegment) => {
                self.wal.ack(positions.clone());
                Ok(Some(positions))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
