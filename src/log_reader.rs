//! Looks ahead in the log: durable records in, gathers out.
//!
//! Without a backlog a gather waits up to `freshness` for more rows of the same series; with one it is full at once,
//! and its rows travel in larger batches. Synchronous and without a clock, so that the simulator drives it too.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use storage::definitions::DefinitionMemory;
use wal::{Chunk, Fs, GapReason, Position, ReadOutcome, Reader, Wal, WalError};

use crate::delivered::{DeliveredOffsets, StretchOffsets};
use crate::gather::{Gather, GatherConfig, Gathered};

/// Bytes read from the log at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// A gather ends when it holds so many bytes of records.
const GATHER_BYTES_MAX: usize = 64 << 20;

/// When a gather is complete.
#[derive(Debug, Clone, Copy)]
pub struct LookAhead {
    /// Most rows of one gather.
    pub rows_max: usize,
    /// How long the first row of a gather may wait for others.
    pub freshness: Duration,
}

/// A stretch of the log that cannot be read: acknowledged messages that are damaged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LogGap {
    /// First position lost.
    pub from: u64,
    /// First position that is there again.
    pub to: u64,
    /// What was found instead.
    pub reason: &'static str,
}

/// Reads on from the delivered watermark.
pub struct LogReader<F: Fs> {
    wal: Wal<F>,
    reader: Reader<F>,
    chunk: Chunk,
    config: GatherConfig,
    look_ahead: LookAhead,
    memory: Arc<Mutex<DefinitionMemory>>,
    gather: Option<(Gather, Duration)>,
    next: Position,
    gaps: Vec<LogGap>,
    /// What was missing at the last look, until somebody owes it.
    missing: Option<Range<Position>>,
    delivered: Arc<Mutex<DeliveredOffsets>>,
}

impl<F: Fs> LogReader<F> {
    /// A reader that begins with the oldest record that was not delivered.
    #[must_use]
    pub fn new(
        wal: Wal<F>,
        config: GatherConfig,
        look_ahead: LookAhead,
        memory: Arc<Mutex<DefinitionMemory>>,
        delivered: Arc<Mutex<DeliveredOffsets>>,
    ) -> Self {
        let next = wal.delivered();
        let reader = wal.reader(next);
        Self {
            wal,
            reader,
            chunk: Chunk::default(),
            config,
            look_ahead,
            memory,
            gather: None,
            next,
            gaps: Vec::new(),
            missing: None,
            delivered,
        }
    }

    /// Position of the next record to be looked at.
    #[must_use]
    pub fn next(&self) -> Position {
        self.next
    }

    /// Positions that are missing: nothing behind them is read before [`LogReader::owed`] was called.
    #[must_use]
    pub fn missing(&self) -> Option<Range<Position>> {
        self.missing.clone()
    }

    /// What is missing will be fetched from Kafka again, and the log remembers that: goes on behind it.
    pub fn owed(&mut self) {
        if let Some(positions) = self.missing.take() {
            self.wal.ack(positions.clone());
            self.next = positions.end;
            self.note(StretchOffsets::default());
        }
    }

    /// Stretches of the log found damaged since the last call.
    pub fn take_gaps(&mut self) -> Vec<LogGap> {
        std::mem::take(&mut self.gaps)
    }

    /// When the gather that is being collected is due, if there is one.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.gather.as_ref().map(|(_, begun)| begun.saturating_add(self.look_ahead.freshness))
    }

    /// Takes what is durable. Returns a gather when one is full or has waited long enough, or, with `hurry`, when
    /// there is anything at all. `None` means: nothing complete yet.
    ///
    /// # Errors
    /// The log cannot be read; start again.
    pub fn pull(
        &mut self,
        hurry: bool,
        now: Duration,
        now_ms: i64,
    ) -> Result<Option<Gathered>, WalError> {
        loop {
            let full = self.gather.as_ref().is_some_and(|(gather, _)| {
                gather.rows() >= self.look_ahead.rows_max || gather.bytes() >= GATHER_BYTES_MAX
            });
            if full || self.missing.is_some() {
                return Ok(self.finish(now_ms));
            }
            match self.reader.next(&mut self.chunk, CHUNK_BYTES)? {
                ReadOutcome::Records => self.take_chunk(now, now_ms),
                ReadOutcome::Gap(positions, _) if self.is_all_acked(&positions) => {
                    // Delivered and gone: nothing is missing.
                    let gathered = self.finish(now_ms);
                    self.next = positions.end;
                    self.note(StretchOffsets::default());
                    if gathered.is_some() {
                        return Ok(gathered);
                    }
                }
                ReadOutcome::Gap(positions, reason) => {
                    self.gaps.push(LogGap {
                        from: positions.start.get(),
                        to: positions.end.get(),
                        reason: match reason {
                            GapReason::Reclaimed => "reclaimed before it was read",
                            GapReason::Damaged => "damaged",
                            GapReason::MissingSegment => "segment file is missing",
                        },
                    });
                    self.missing = Some(positions);
                }
                ReadOutcome::CaughtUp => {
                    let due = self.due().is_some_and(|due| now >= due);
                    return Ok(if due || hurry { self.finish(now_ms) } else { None });
                }
            }
        }
    }

    fn take_chunk(&mut self, now: Duration, now_ms: i64) {
        let (gather, _) =
            self.gather.get_or_insert_with(|| (Gather::new(self.config, self.next), now));
        let mut offsets = StretchOffsets::default();
        for (position, record) in self.chunk.iter() {
            if self.wal.is_acked(position) {
                gather.skip();
            } else if let Some((partition, offset)) = gather.push(record, now_ms) {
                offsets.saw(partition, offset);
            }
        }
        self.next = gather.end();
        self.note(offsets);
    }

    fn is_all_acked(&self, positions: &Range<Position>) -> bool {
        positions.end <= self.wal.delivered()
            || (positions.start.get()..positions.end.get())
                .all(|position| self.wal.is_acked(Position::new(position)))
    }

    fn note(&self, offsets: StretchOffsets) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).read(self.next, offsets);
    }

    fn finish(&mut self, now_ms: i64) -> Option<Gathered> {
        let (gather, _) = self.gather.take()?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Some(gather.finish(&mut memory, now_ms))
    }
}
