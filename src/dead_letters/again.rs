//! Trying dead letters again: the message goes to the log of its pipeline, as it came, and delivery decides anew.
//!
//! It is durable there before the letter is gone here. A crash in between leaves both, and then the message is delivered
//! twice at worst, which changes nothing. One that fails again becomes a dead letter again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wal::{AppendError, Batch, Fs, Position, PushError, Wal, WalError};

use super::{DeadLetter, DeadLetterError, DeadLetters, LetterFilter};
use crate::envelope::{Envelope, FIXED_BYTES_MAX, TimestampType};

/// Bytes of messages appended before they are made durable and their letters are removed.
const PORTION_BYTES: usize = 1 << 20;
/// Letters in such a portion.
const PORTION_LETTERS: usize = 10_000;

/// A pipeline that can try messages again.
pub struct RetryTarget<F: Fs> {
    /// The topic it consumes.
    pub topic: String,
    /// Its log.
    pub wal: Wal<F>,
}

/// What became of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
pub struct Outcome {
    /// Letters that are gone.
    pub removed: u64,
    /// Letters that stay, by the reason why.
    pub left: BTreeMap<String, u64>,
    /// Why it ended early, if it did.
    pub stopped: Option<String>,
}

const NO_PIPELINE: &str = "no pipeline that is enabled consumes their topic";
const NOT_READABLE: &str = "not a message: the record could not be read";
const CUT: &str =
    "only their first bytes are here; Kafka has the rest until its retention takes it";
const TOO_LONG: &str = "longer than a record of the pipeline's log can be";
const EXPIRED: &str = "older than the retention: the store would not keep them";
const LOG_FULL: &str = "the log of the pipeline has no room: give the order again when it has";

/// Messages on their way to the logs, and the letters they come from.
struct Portion {
    /// For each target; the last one is being filled.
    batches: Vec<Vec<Batch>>,
    positions: Vec<Position>,
    messages: BTreeSet<(String, i32, i64, Option<i64>, u32)>,
    bytes: usize,
}

impl Portion {
    fn new(targets: usize) -> Self {
        Self {
            batches: std::iter::repeat_with(Vec::new).take(targets).collect(),
            positions: Vec::new(),
            messages: BTreeSet::new(),
            bytes: 0,
        }
    }
}

/// Has the letters before `end` that are meant tried again. `retention` is that of the store; `now` the clock that the
/// log of dead letters was opened with, `now_ms` the wall clock.
///
/// # Errors
/// A log failed: end the process. Letters that are still there may be in the pipeline's log as well.
pub fn retry<F: Fs, T: Fs>(
    letters: &DeadLetters<F>,
    targets: &[RetryTarget<T>],
    filter: &LetterFilter,
    end: Position,
    retention: Duration,
    now: Duration,
    now_ms: i64,
) -> Result<Outcome, DeadLetterError> {
    let mut outcome = Outcome::default();
    let mut from = Position::ZERO;
    loop {
        let mut portion = Portion::new(targets.len());
        let mut failed = Ok(());
        from = letters.select(filter, from, end, |position, letter| {
            match take(&letter, targets, &mut portion, retention, now_ms) {
                Ok(None) => portion.positions.push(position),
                Ok(Some(LOG_FULL)) => {
                    outcome.stopped = Some(LOG_FULL.to_owned());
                    return ControlFlow::Break(());
                }
                Ok(Some(why)) => {
                    let count = outcome.left.entry(why.to_owned()).or_default();
                    *count = count.saturating_add(1);
                }
                Err(error) => {
                    failed = Err(error);
                    return ControlFlow::Break(());
                }
            }
            if portion.bytes < PORTION_BYTES && portion.positions.len() < PORTION_LETTERS {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        failed?;
        if portion.positions.is_empty() {
            return Ok(outcome);
        }
        if !append(&mut portion, targets)? {
            outcome.stopped = Some(LOG_FULL.to_owned());
            return Ok(outcome);
        }
        outcome.removed = outcome.removed.saturating_add(letters.remove(&portion.positions, now)?);
        if outcome.stopped.is_some() {
            return Ok(outcome);
        }
    }
}

/// Puts the letter's message into the portion, unless it is there already; or says why it cannot be.
fn take<T: Fs>(
    letter: &DeadLetter,
    targets: &[RetryTarget<T>],
    portion: &mut Portion,
    retention: Duration,
    now_ms: i64,
) -> Result<Option<&'static str>, DeadLetterError> {
    if letter.topic.is_empty() || letter.offset < 0 {
        return Ok(Some(NOT_READABLE));
    }
    if letter.is_cut() {
        return Ok(Some(CUT));
    }
    let found = targets.iter().zip(&mut portion.batches).find(|(to, _)| to.topic == letter.topic);
    let Some((target, batches)) = found else { return Ok(Some(NO_PIPELINE)) };
    let message = message(letter);
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let bytes = length(message.key)
        .saturating_add(length(message.payload))
        .saturating_add(message.topic.len())
        .saturating_add(FIXED_BYTES_MAX);
    if bytes > target.wal.max_record_bytes() {
        return Ok(Some(TOO_LONG));
    }
    let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    if message.effective_time(retention_ms).age_ms(now_ms) >= retention_ms {
        return Ok(Some(EXPIRED));
    }
    // What the pipeline still has to deliver goes before.
    if !target.wal.status().is_below_low_mark() {
        return Ok(Some(LOG_FULL));
    }
    // Of a message that holds several metrics any number may be dead letters.
    let (topic, partition, offset, _, timestamp_ms, checksum) = letter.key();
    if !portion.messages.insert((topic, partition, offset, timestamp_ms, checksum)) {
        return Ok(None);
    }
    portion.bytes = portion.bytes.saturating_add(bytes);
    let pushed =
        batches.last_mut().map(|batch| batch.push_with(|out| message.encode_again_into(out)));
    match pushed {
        Some(Ok(())) => Ok(None),
        Some(Err(PushError::Write(error))) => Err(error.into()),
        None | Some(Err(PushError::BatchFull)) => {
            let mut batch = Batch::new();
            batch.push_with(|out| message.encode_again_into(out)).map_err(|error| match error {
                PushError::Write(error) => DeadLetterError::Codec(error),
                PushError::BatchFull => DeadLetterError::TooLong("over 4 GiB".to_owned()),
            })?;
            batches.push(batch);
            Ok(None)
        }
    }
}

/// The message as it came.
fn message(letter: &DeadLetter) -> Envelope<'_> {
    Envelope {
        topic: &letter.topic,
        partition: letter.partition,
        offset: letter.offset,
        leader_epoch: letter.leader_epoch,
        timestamp_ms: letter.timestamp_ms.unwrap_or(0),
        timestamp_type: match letter.timestamp_ms {
            // Who set it is not kept, and nothing depends on it.
            Some(_) => TimestampType::Created,
            None => TimestampType::Absent,
        },
        received_ms: letter.received_ms,
        key: letter.key.as_deref(),
        payload: letter.payload.as_deref(),
    }
}

/// Makes everything of the portion durable; false: there is no room for all of it, and none of it may be removed.
fn append<T: Fs>(
    portion: &mut Portion,
    targets: &[RetryTarget<T>],
) -> Result<bool, DeadLetterError> {
    for (target, batches) in targets.iter().zip(&mut portion.batches) {
        for batch in batches.drain(..) {
            match target.wal.append(batch) {
                // Committed below with the others.
                Ok(_ticket) => {}
                Err(AppendError::Full(_)) => return Ok(false),
                Err(AppendError::Poisoned { cause }) => {
                    return Err(WalError::Poisoned { cause }.into());
                }
                Err(AppendError::Closed) => return Err(WalError::Closed.into()),
                Err(error @ AppendError::TooLarge { .. }) => {
                    return Err(DeadLetterError::TooLong(error.to_string()));
                }
            }
        }
        match target.wal.commit() {
            Ok(()) => {}
            Err(WalError::NoSpace { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
