//! Looks ahead in the log: durable records in, gathers out.
//!
//! Without a backlog a gather waits up to `freshness` for more rows of the same series. With one nothing waits: a gather
//! takes in as much as memory allows, and because more rows of a series then lie in it, each costs the store less. Synchronous and without a clock, so that the simulator drives it too.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage::definitions::DefinitionMemory;
use wal::{Chunk, Fs, GapReason, Position, ReadOutcome, Reader, Wal, WalError};

use crate::aside::Aside;
use crate::batch_limit::BatchLimit;
use crate::config::ExpiredBacklog;
use crate::delivered::{DeliveredOffsets, StretchOffsets};
use crate::envelope::Envelope;
use crate::gather::{Gather, GatherConfig, Gathered, KnownSeries, Replicas};
use crate::sync::lock;

mod again;

/// Bytes read from the log at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// A gather ends when it takes so many bytes of memory.
const GATHER_BYTES_MAX: usize = 32 << 20;

/// When a gather is complete.
#[derive(Debug, Clone, Copy)]
pub struct LookAhead {
    /// Most rows of one gather.
    pub rows_max: usize,
    /// How long the first row of a gather may wait for others.
    pub freshness: Duration,
}

/// A stretch of the log that cannot be read: acknowledged messages that are damaged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
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
    /// The chunk was read and not taken yet.
    chunk_waits: bool,
    expired: ExpiredBacklog,
    replicas: Replicas,
    held: bool,
    config: GatherConfig,
    look_ahead: LookAhead,
    memory: Arc<Mutex<DefinitionMemory>>,
    gather: Option<(Gather, Duration)>,
    known: KnownSeries,
    next: Position,
    gaps: Vec<LogGap>,
    /// What was missing at the last look, until somebody owes it.
    missing: Option<Range<Position>>,
    delivered: Arc<Mutex<DeliveredOffsets>>,
    batch_limit: Arc<BatchLimit>,
    aside: Arc<Mutex<Aside>>,
    /// The next stretch that is left out, as it was when the chunk was read.
    left_out: Option<Range<Position>>,
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
            chunk_waits: false,
            expired: ExpiredBacklog::default(),
            replicas: Arc::new(|_| None),
            held: false,
            config,
            look_ahead,
            memory,
            gather: None,
            known: KnownSeries::default(),
            next,
            gaps: Vec::new(),
            missing: None,
            delivered,
            batch_limit: Arc::default(),
            aside: Arc::default(),
            left_out: None,
        }
    }

    /// Makes no request that is larger than this.
    #[must_use]
    pub fn with_batch_limit(mut self, batch_limit: Arc<BatchLimit>) -> Self {
        self.batch_limit = batch_limit;
        self
    }

    /// Leaves out what is put there, until it begins anew.
    #[must_use]
    pub fn with_aside(mut self, aside: Arc<Mutex<Aside>>) -> Self {
        self.aside = aside;
        self
    }

    /// What is done about a backlog that is older than the retention.
    #[must_use]
    pub fn with_expired(mut self, expired: ExpiredBacklog) -> Self {
        self.expired = expired;
        self
    }

    /// Which series are worth sending together; without it none are.
    #[must_use]
    pub fn with_replicas(mut self, replicas: Replicas) -> Self {
        self.replicas = replicas;
        self
    }

    /// True while more than a hundredth of what comes next is older than the retention by the wall clock, and that is not
    /// believed: a clock that is wrong must not discard a backlog. Goes on by itself when the clock is right.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
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
                return Ok(self.finish(now, now_ms));
            }
            if self.chunk_waits {
                self.held =
                    self.expired == ExpiredBacklog::Wait && self.is_older_than_retention(now_ms);
                if self.held {
                    return Ok(self.finish(now, now_ms));
                }
                self.chunk_waits = false;
                self.take_chunk(now, now_ms);
                continue;
            }
            // Held while it reads: what is moved behind everything else must be known before it can be read.
            let aside = lock(&self.aside);
            self.left_out = aside.from(self.next);
            if let Some(left_out) = self.left_out.take_if(|left_out| left_out.start <= self.next) {
                drop(aside);
                let gathered = self.finish(now, now_ms);
                self.next = left_out.end;
                self.reader = self.wal.reader(self.next);
                self.note(StretchOffsets::default());
                if gathered.is_some() {
                    return Ok(gathered);
                }
                continue;
            }
            let read = self.reader.next(&mut self.chunk, CHUNK_BYTES)?;
            drop(aside);
            match read {
                ReadOutcome::Records => self.chunk_waits = true,
                ReadOutcome::Gap(positions, _) if self.is_all_acked(&positions) => {
                    // Delivered and gone: nothing is missing.
                    let gathered = self.finish(now, now_ms);
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
                    return Ok(if due || hurry { self.finish(now, now_ms) } else { None });
                }
            }
        }
    }

    /// Whether more than a hundredth of the chunk would be dropped.
    fn is_older_than_retention(&self, now_ms: i64) -> bool {
        let retention_ms = i64::try_from(self.config.retention.as_millis()).unwrap_or(i64::MAX);
        let (mut records, mut old) = (0_usize, 0_usize);
        for (position, record) in self.chunk.iter() {
            records = records.saturating_add(1);
            // One from the dead letters that is too old was asked for by a person, and says nothing about the clock.
            let is_old = !Envelope::is_again(record)
                && Envelope::decode(record).is_ok_and(|envelope| {
                    envelope.effective_time(retention_ms).age_ms(now_ms) >= retention_ms
                });
            if is_old && !self.wal.is_acked(position) {
                old = old.saturating_add(1);
            }
        }
        old.saturating_mul(100) > records
    }

    fn take_chunk(&mut self, now: Duration, now_ms: i64) {
        let batch_bytes_max = self.config.batch_bytes_max.min(self.batch_limit.bytes_max());
        let config = GatherConfig { batch_bytes_max, ..self.config };
        let (gather, _) = self.gather.get_or_insert_with(|| {
            let known = std::mem::take(&mut self.known);
            (Gather::new(config, self.next).with_known(known), now)
        });
        let mut offsets = lock(&self.delivered).stretch();
        let left_out = self.left_out.as_ref().map(|left_out| left_out.start);
        for (position, record) in self.chunk.iter() {
            if Some(position) == left_out {
                break;
            }
            if self.wal.is_acked(position) {
                gather.skip();
            } else if let Some((partition, offset)) = gather.push(record, now_ms) {
                offsets.saw(position, partition, offset);
            }
        }
        self.next = gather.end();
        if Some(self.next) == left_out {
            self.reader = self.wal.reader(self.next);
        }
        self.note(offsets);
    }

    fn is_all_acked(&self, positions: &Range<Position>) -> bool {
        positions.end <= self.wal.delivered()
            || (positions.start.get()..positions.end.get())
                .all(|position| self.wal.is_acked(Position::new(position)))
    }

    fn note(&self, offsets: StretchOffsets) {
        lock(&self.delivered).read(self.next, offsets);
    }

    fn finish(&mut self, now: Duration, now_ms: i64) -> Option<Gathered> {
        let (mut gather, _) = self.gather.take()?;
        self.known = gather.take_known();
        let memory = lock(&self.memory);
        Some(Gathered { finished: now, ..gather.finish(&memory, &self.replicas, now_ms) })
    }
}

#[cfg(test)]
mod tests {
    use storage::IdScheme;
    use wal::sim::SimDisk;
    use wal::{Batch, NoCarry, WalConfig};

    use super::*;
    use crate::envelope::TimestampType;
    use crate::gather::{Kind, Unit};
    use crate::offset_note::NextOffsets;

    const NOW_MS: i64 = 1_800_000_000_000;
    const RETENTION: Duration = Duration::from_secs(3600);
    const RETENTION_MS: i64 = 3_600_000;

    fn reader() -> LogReader<SimDisk> {
        let (wal, _) =
            Wal::open(SimDisk::new(1), WalConfig::default(), Box::new(NoCarry), Duration::ZERO)
                .unwrap();
        let mut batch = Batch::new();
        for offset in 0..10 {
            let payload = format!(r#"{{"metric":{{"name":"m","timestamp":{offset},"value":1}}}}"#);
            let message = Envelope {
                topic: "metrics",
                partition: 0,
                offset,
                leader_epoch: -1,
                timestamp_ms: NOW_MS,
                timestamp_type: TimestampType::Created,
                received_ms: NOW_MS,
                key: None,
                payload: Some(payload.as_bytes()),
            };
            batch.push_with(|out| message.encode_into(out)).unwrap();
        }
        let _durable_soon = wal.append(batch).unwrap();
        wal.commit().unwrap();
        let config = GatherConfig {
            kind: Kind::Metrics,
            scheme: IdScheme::Sha256,
            retention: RETENTION,
            definition_refresh: RETENTION,
            batch_rows_max: 100,
            batch_bytes_max: 1 << 16,
            message_bytes_max: 1 << 20,
        };
        let look_ahead = LookAhead { rows_max: 100, freshness: Duration::ZERO };
        let memory = Arc::new(Mutex::new(DefinitionMemory::new(10, RETENTION)));
        let delivered =
            DeliveredOffsets::new(&NextOffsets::default(), Position::ZERO, wal.durable().through());
        LogReader::new(wal, config, look_ahead, memory, Arc::new(Mutex::new(delivered)))
    }

    #[test]
    fn a_clock_that_jumps_ahead_does_not_discard_a_backlog() {
        let mut reader = reader();
        let ahead_ms = NOW_MS + RETENTION_MS;
        for _ in 0..3 {
            assert!(reader.pull(true, Duration::ZERO, ahead_ms).unwrap().is_none());
            assert!(reader.is_held());
        }
        let gathered = reader.pull(true, Duration::ZERO, NOW_MS + 5).unwrap().unwrap();
        assert!(!reader.is_held(), "the clock is right again");
        assert_eq!((gathered.counts.rows, gathered.counts.expired), (10, 0));
    }

    #[test]
    fn a_definition_is_stamped_with_the_present_and_outlives_the_data_by_two_refreshes() {
        use storage::{Definition, Measurement};
        let age_ms = RETENTION_MS / 2;
        let mut reader = reader();
        let now = Duration::from_secs(7);
        let gathered = reader.pull(true, now, NOW_MS + age_ms).unwrap().unwrap();
        assert_eq!(gathered.finished, now);
        let units: Vec<_> = gathered.units.iter().map(|planned| &planned.unit).collect();
        let [Unit::Definitions(definitions), Unit::Measurements { rows, .. }] = units[..] else {
            panic!("{units:?}");
        };
        let [definition] = &definitions[..] else { panic!("{definitions:?}") };
        let Definition { created_at_ms, updated_at_ms, stamp, .. } = definition;
        assert_eq!(*created_at_ms, NOW_MS + age_ms);
        assert_eq!(*updated_at_ms, NOW_MS + age_ms);
        assert_eq!(stamp.write_time_us, (NOW_MS + age_ms) * 1000);
        assert_eq!(
            i64::from(stamp.ttl_s) * 1000,
            3 * RETENTION_MS,
            "refresh is the retention here"
        );
        let Measurement { stamp, .. } = rows[0];
        assert_eq!(i64::from(stamp.ttl_s) * 1000, RETENTION_MS - age_ms);
    }

    #[test]
    fn what_was_acknowledged_within_the_hold_back_is_read_again_with_its_definition() {
        let mut reader = reader();
        let pull = |reader: &mut LogReader<SimDisk>| {
            let gathered = reader.pull(true, Duration::ZERO, NOW_MS).unwrap()?;
            let definitions = gathered.units.iter();
            let definitions: usize = definitions
                .filter(|planned| matches!(planned.unit, Unit::Definitions(_)))
                .map(|planned| planned.unit.rows())
                .sum();
            Some((gathered.start, gathered.end(), gathered.counts.rows, definitions))
        };
        let all = Some((Position::ZERO, Position::new(10), 10, 1));
        assert_eq!(pull(&mut reader), all);
        reader.wal.ack(Position::ZERO..Position::new(8));
        reader.wal.checkpoint(Duration::ZERO).unwrap();
        assert_eq!(pull(&mut reader), None);
        assert_eq!(reader.start_over(Duration::from_secs(30)).unwrap(), 8);
        assert_eq!(pull(&mut reader), all);
        assert_eq!(pull(&mut reader), None);
        // Acknowledged longer ago than that, it is safe.
        reader.wal.ack(Position::ZERO..Position::new(8));
        reader.wal.checkpoint(Duration::from_secs(40)).unwrap();
        assert_eq!(reader.start_over(Duration::from_secs(101)).unwrap(), 0);
        assert_eq!(pull(&mut reader), Some((Position::new(8), Position::new(10), 2, 1)));
    }

    #[test]
    fn a_backlog_that_is_really_too_old_is_dropped_when_that_is_wanted() {
        let mut reader = reader().with_expired(ExpiredBacklog::Drop);
        let gathered = reader.pull(true, Duration::ZERO, NOW_MS + RETENTION_MS).unwrap().unwrap();
        assert_eq!((gathered.counts.rows, gathered.counts.expired), (0, 10));
    }
}
