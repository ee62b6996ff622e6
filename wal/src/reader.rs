//! Durable records from a position on, in order, or the exact positions that are not there.
//!
//! Reads with plain file reads (no mapping: a read error must be an error, not a signal), never
//! behind the durable byte of the segment that is being written, and stops in every finished
//! segment at the byte its successor's link names, so that what a crash left behind it is not seen.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::WalError;
use crate::format::frame::FrameKind;
use crate::format::{SEGMENT_HEADER_BYTES, segment_name};
use crate::frame::{decode_body, split_record};
use crate::fs::{Access, Fs};
use crate::log::Log;
use crate::position::{Position, SegmentNumber};
use crate::recent::RecentFile;
use crate::sync::lock;
use crate::walk::{Step, Walk};

/// Why positions are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// They were delivered and their segment is gone.
    Reclaimed,
    /// Their bytes are damaged.
    Damaged,
    /// Their segment file is missing.
    MissingSegment,
}

/// What a call of [`Reader::next`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum ReadOutcome {
    /// The chunk holds the next records.
    Records,
    /// These positions cannot be read. The reader stands behind them; ack them when their loss has
    /// been dealt with, or *delivered* stops there.
    Gap(Range<Position>, GapReason),
    /// Nothing more is durable: see [`Wal::wait_durable`](crate::Wal::wait_durable).
    CaughtUp,
}

/// A reusable buffer of consecutive records.
#[derive(Debug, Default)]
pub struct Chunk {
    first: Position,
    records: u64,
    /// Length and bytes of each record.
    raw: Vec<u8>,
}

impl Chunk {
    /// An empty chunk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The records with their positions.
    #[must_use]
    pub fn iter(&self) -> ChunkIter<'_> {
        ChunkIter { position: self.first, raw: &self.raw }
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The positions of its records.
    #[must_use]
    pub fn range(&self) -> Range<Position> {
        self.first..self.first.offset_by(self.records).unwrap_or(self.first)
    }

    /// Bytes of its records with their lengths.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }

    /// Removes `records` records from byte `start` on: a reader may begin in the middle of a frame.
    fn forget(&mut self, start: usize, records: u64) {
        let mut rest = self.raw.get(start..).unwrap_or_default();
        for _ in 0..records {
            rest = split_record(rest).map_or(&[][..], |(_, rest)| rest);
        }
        let keep_from = self.raw.len() - rest.len();
        if keep_from > start {
            self.raw.drain(start..keep_from);
        }
    }

    fn reset(&mut self, first: Position) {
        self.first = first;
        self.records = 0;
        self.raw.clear();
    }
}

impl<'a> IntoIterator for &'a Chunk {
    type Item = (Position, &'a [u8]);
    type IntoIter = ChunkIter<'a>;

    fn into_iter(self) -> ChunkIter<'a> {
        self.iter()
    }
}

/// The records of a [`Chunk`].
#[derive(Clone, Debug)]
pub struct ChunkIter<'a> {
    position: Position,
    raw: &'a [u8],
}

impl<'a> Iterator for ChunkIter<'a> {
    type Item = (Position, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (record, rest) = split_record(self.raw)?;
        let position = self.position;
        self.position = position.next();
        self.raw = rest;
        Some((position, record))
    }
}

/// Stands at a position and moves on. Not tied to the acks.
pub struct Reader<F: Fs> {
    log: Arc<Log<F>>,
    position: Position,
    open: Option<Open<F::File>>,
}

struct Open<File> {
    number: SegmentNumber,
    walk: Walk<RecentFile<File>>,
}

/// What reading on in one segment came to.
enum Found {
    /// The chunk is full, or an error waits behind its records.
    Records,
    /// Nothing whole up to this position.
    Damage(Position),
    /// All that may be read in it.
    End,
}

/// What the log knows about a segment right now.
struct View {
    number: SegmentNumber,
    base: Position,
    nonce: u64,
    header_crc: Option<u32>,
    /// After the last record that may be read in it.
    end: Position,
    limit: u64,
    finished: bool,
    oldest: bool,
    /// Base of the segment after it.
    next_base: Option<Position>,
}

enum Entered {
    Open,
    /// Gone between two looks; the next look shows what is left.
    Reclaimed,
    /// Gone though it should be there.
    Missing,
}

impl<F: Fs> std::fmt::Debug for Reader<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<F: Fs> Reader<F> {
    pub(crate) fn new(log: Arc<Log<F>>, from: Position) -> Self {
        Self { log, position: from, open: None }
    }

    /// The position of the record that comes next.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Puts the next records into `chunk`: whole frames until it holds `max_bytes`, at least one.
    ///
    /// # Errors
    /// A file could not be read. The reader stays where it is: try again, and if that does not
    /// help, end the process. A read error is never taken for the end of the log.
    pub fn next(&mut self, chunk: &mut Chunk, max_bytes: usize) -> Result<ReadOutcome, WalError> {
        chunk.reset(self.position);
        loop {
            let Some(view) = self.view() else {
                return Ok(found(chunk, ReadOutcome::CaughtUp));
            };
            if view.base > self.position {
                let delivered = lock(&self.log.acks).delivered();
                return Ok(if self.position < delivered {
                    self.gap(chunk, view.base.min(delivered), GapReason::Reclaimed)
                } else if view.oldest {
                    self.gap(chunk, view.base, GapReason::MissingSegment)
                } else {
                    self.gap(chunk, view.base, GapReason::Damaged)
                });
            }
            match self.enter(&view) {
                Ok(Entered::Open) => {}
                Ok(Entered::Reclaimed) => continue,
                Ok(Entered::Missing) => {
                    return Ok(self.gap(chunk, view.end, GapReason::MissingSegment));
                }
                // The records come first; the next call meets the error again.
                Err(_) if !chunk.is_empty() => return Ok(ReadOutcome::Records),
                Err(error) => return Err(error),
            }
            let damaged_to = match self.read_segment(&view, chunk, max_bytes)? {
                Found::Records => return Ok(ReadOutcome::Records),
                Found::Damage(end) => Some(end),
                Found::End if self.position < view.end => Some(view.end),
                Found::End => None,
            };
            if let Some(end) = damaged_to {
                if !chunk.is_empty() {
                    return Ok(ReadOutcome::Records);
                }
                if bug!(SilentGap) {
                    self.position = end;
                    chunk.reset(end);
                    continue;
                }
                if self.log.note_damage(view.number) {
                    return Ok(self.gap(chunk, end, GapReason::Damaged));
                }
                // Its file was reclaimed meanwhile and holds another segment by now.
                self.open = None;
                continue;
            }
            if !view.finished {
                return Ok(found(chunk, ReadOutcome::CaughtUp));
            }
            self.open = None;
            if let Some(next) = view.next_base.filter(|next| *next > self.position) {
                // Recovery left this hole: the end of the segment could not be read.
                return Ok(self.gap(chunk, next, GapReason::Damaged));
            }
        }
    }

    /// Reports the gap up to `end`, after the records before it.
    fn gap(&mut self, chunk: &Chunk, end: Position, reason: GapReason) -> ReadOutcome {
        if !chunk.is_empty() {
            return ReadOutcome::Records;
        }
        let range = self.position..end;
        self.position = end;
        ReadOutcome::Gap(range, reason)
    }

    /// The segment that holds the next record, or the oldest one after it; `None` if nothing at or
    /// after the position is durable.
    fn view(&self) -> Option<View> {
        let state = lock(&self.log.state);
        let durable = state.commit.durable();
        if self.position >= durable {
            return None;
        }
        let index = state.segments.partition_point(|segment| {
            segment.end.is_some_and(|end| end.position <= self.position)
        });
        let segment = state.segments.get(index)?;
        let (end, limit) = match segment.end {
            Some(end) => (end.position, end.byte),
            None => (durable, state.durable_byte),
        };
        Some(View {
            number: segment.number,
            base: segment.base,
            nonce: segment.nonce,
            header_crc: segment.header_crc,
            end,
            limit,
            finished: segment.is_finished(),
            oldest: index == 0,
            next_base: state.segments.get(index + 1).map(|next| next.base),
        })
    }

    /// Opens the segment unless it is open.
    fn enter(&mut self, view: &View) -> Result<Entered, WalError> {
        if let Some(open) = self.open.as_mut().filter(|open| open.number == view.number) {
            open.walk.extend(view.limit);
            return Ok(Entered::Open);
        }
        self.open = None;
        let name = segment_name(view.number);
        let file = match self.log.fs.open(&name, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let listed = lock(&self.log.state)
                    .segments
                    .iter()
                    .any(|segment| segment.number == view.number);
                return Ok(if listed { Entered::Missing } else { Entered::Reclaimed });
            }
            Err(error) => return Err(WalError::io("open", self.log.fs.path_of(&name), error)),
        };
        let recent = Arc::clone(&self.log.recent);
        let walk = Walk::new(
            RecentFile { file, segment: view.number, recent },
            view.nonce,
            SEGMENT_HEADER_BYTES,
            view.header_crc,
            Some(view.base),
            view.limit,
        );
        self.open = Some(Open { number: view.number, walk });
        Ok(Entered::Open)
    }

    /// Reads until the chunk is full, damage shows, or the segment's readable part ends. At damage
    /// the walk stands before it as long as the chunk has records to return first.
    fn read_segment(
        &mut self,
        view: &View,
        chunk: &mut Chunk,
        max_bytes: usize,
    ) -> Result<Found, WalError> {
        let Some(open) = self.open.as_mut() else {
            return Ok(Found::End);
        };
        let name = segment_name(view.number);
        let failed = |error| WalError::io("read", self.log.fs.path_of(&name), error);
        loop {
            let bookmark = open.walk.bookmark();
            let frame = match open.walk.next() {
                Ok(Step::Frame(frame)) => frame,
                // The frame after it shows how far it goes.
                Ok(Step::Damage { .. }) => continue,
                Ok(Step::End) => return Ok(Found::End),
                Err(error) => {
                    open.walk.go_back(bookmark);
                    return after_records(chunk, failed(error));
                }
            };
            let header = frame.header;
            if header.kind != FrameKind::Data || header.end() <= self.position {
                continue;
            }
            if header.first > self.position {
                open.walk.go_back(bookmark);
                return Ok(Found::Damage(header.first.min(view.end)));
            }
            let bytes = match open.walk.bytes(&frame) {
                Ok(bytes) => bytes,
                Err(error) => {
                    open.walk.go_back(bookmark);
                    return after_records(chunk, failed(error));
                }
            };
            let start = chunk.raw.len();
            let decoded = bytes.body.and_then(|body| decode_body(&header, body, &mut chunk.raw));
            if decoded.is_err() {
                if !chunk.is_empty() {
                    open.walk.go_back(bookmark);
                }
                return Ok(Found::Damage(header.end()));
            }
            let skip = self.position.distance_from(header.first).unwrap_or(0);
            chunk.forget(start, skip);
            chunk.records += u64::from(header.records) - skip;
            self.position = header.end();
            if chunk.raw.len() >= max_bytes {
                return Ok(Found::Records);
            }
        }
    }
}

/// Records that were read come before the error; the next call meets it again.
fn after_records(chunk: &Chunk, error: WalError) -> Result<Found, WalError> {
    if chunk.is_empty() { Err(error) } else { Ok(Found::Records) }
}

impl<F: Fs> Log<F> {
    /// Remembers that a segment is damaged and keeps a copy of it; false if it is not part of the
    /// log any more.
    fn note_damage(&self, number: SegmentNumber) -> bool {
        let name = segment_name(number);
        {
            let mut state = lock(&self.state);
            let Some(segment) = state.segments.iter_mut().find(|listed| listed.number == number)
            else {
                return false;
            };
            if std::mem::replace(&mut segment.damaged, true) {
                return true;
            }
            let kept = (name.clone(), segment.bytes);
            if !state.quarantined.iter().any(|(known, _)| *known == name) {
                state.quarantined.push(kept);
            }
        }
        // A convenience: what cannot be kept is reported all the same.
        if self.fs.quarantine(&name).is_err() {
            lock(&self.state).quarantined.retain(|(kept, _)| *kept != name);
        }
        true
    }
}

fn found(chunk: &Chunk, otherwise: ReadOutcome) -> ReadOutcome {
    if chunk.is_empty() { otherwise } else { ReadOutcome::Records }
}
