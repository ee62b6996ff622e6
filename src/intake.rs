//! Carries the ingest machine out against the log: messages in, batches appended, proofs of durability back.
//!
//! Knows no Kafka client: `kafka.rs` drives it with a real consumer, the simulator with a model.

use std::collections::VecDeque;
use std::time::Duration;

use wal::{AppendError, Batch, Fs, Position, PushError, Wal, WalError};

use crate::codec::CodecError;
use crate::envelope::{Envelope, EnvelopeError};
use crate::ingest::{Effect, Event, Ingest, IngestConfig};
use crate::offset_note::NextOffsets;
use crate::offsets::{Committable, Intake as Decision, Testimony};

/// Why messages cannot be taken any more.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The log failed: end the process, start again.
    #[error("append to log: {0}")]
    Wal(#[from] WalError),
    /// A batch has messages of more partitions (thousands) than the log can note with it: give them to more instances.
    #[error("a batch that the log cannot take: {0}")]
    TooLong(String),
    /// A record or annotation cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// What the log remembers of the offsets cannot be read.
    #[error("carry of the log: {0}")]
    Carry(#[from] EnvelopeError),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct IntakeCounts {
    /// Messages taken.
    pub messages: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Messages that Kafka sent again and the log had already.
    pub repeated: u64,
    /// Messages of partitions that are not ours any more.
    pub unassigned: u64,
    /// Batches appended.
    pub batches: u64,
}

/// The first stage without its consumer.
pub struct Intake<F: Fs> {
    machine: Ingest,
    wal: Wal<F>,
    batch: Batch,
    /// Batches that the full log refused, in order.
    held: VecDeque<Batch>,
    /// End of what was appended and not yet reported to the machine.
    appended_end: Option<Position>,
    annotation: NextOffsets,
    counts: IntakeCounts,
}

impl<F: Fs> Intake<F> {
    /// The stage for a log that was just opened.
    ///
    /// # Errors
    /// [`IntakeError::Carry`]: the log's memory of offsets is from a newer program.
    pub fn new(config: IngestConfig, wal: Wal<F>) -> Result<Self, IntakeError> {
        let log_next = NextOffsets::decode(&wal.carry())?;
        Ok(Self {
            machine: Ingest::new(config, log_next, wal.durable().through()),
            wal,
            batch: Batch::new(),
            held: VecDeque::new(),
            appended_end: None,
            annotation: NextOffsets::default(),
            counts: IntakeCounts::default(),
        })
    }

    /// Takes a message, unless it was taken before or its partition is not ours.
    ///
    /// # Errors
    /// [`IntakeError`]: the message was not taken and nothing after it may be.
    pub fn take(
        &mut self,
        message: &Envelope<'_>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        match self.machine.take(message.partition, message.offset) {
            Decision::Take => {}
            Decision::Repeated => {
                self.counts.repeated = self.counts.repeated.saturating_add(1);
                return Ok(());
            }
            Decision::Unassigned => {
                self.counts.unassigned = self.counts.unassigned.saturating_add(1);
                return Ok(());
            }
        }
        let bytes_max = self.wal.max_record_bytes();
        match self.batch.push_with(|out| message.encode_within(bytes_max, out)) {
            Ok(()) => {}
            Err(PushError::Write(error)) => return Err(error.into()),
            Err(PushError::BatchFull) => {
                // The machine counts this message as taken already, the sealed batch does not hold it.
                self.seal_before(message)?;
                self.push_held(now, effects)?;
                self.batch.push_with(|out| message.encode_within(bytes_max, out)).map_err(
                    |error| match error {
                        PushError::Write(error) => IntakeError::Codec(error),
                        full @ PushError::BatchFull => IntakeError::TooLong(full.to_string()),
                    },
                )?;
            }
        }
        let bytes = message.payload.map_or(0, <[u8]>::len);
        self.counts.messages = self.counts.messages.saturating_add(1);
        self.counts.payload_bytes =
            self.counts.payload_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Hands everything taken so far to the log.
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed.
    pub fn append(&mut self, now: Duration, effects: &mut Vec<Effect>) -> Result<(), IntakeError> {
        if !self.batch.is_empty() {
            self.machine.annotation(&mut self.annotation);
            self.seal()?;
        }
        self.push_held(now, effects)?;
        // Only when nothing is held does everything taken lie in the log.
        if let (Some(end), true) = (self.appended_end, self.held.is_empty()) {
            self.appended_end = None;
            self.machine.on(Event::Appended { end }, now, effects);
        }
        Ok(())
    }

    /// Queues the current batch with an annotation that ends before `message`.
    fn seal_before(&mut self, message: &Envelope<'_>) -> Result<(), IntakeError> {
        self.machine.annotation(&mut self.annotation);
        self.annotation.set(message.partition, message.offset);
        self.seal()
    }

    fn seal(&mut self) -> Result<(), IntakeError> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.annotate(&self.annotation.encode()?);
        self.held.push_back(batch);
        Ok(())
    }

    /// Appends what is held, as far as the log has room.
    fn push_held(&mut self, now: Duration, effects: &mut Vec<Effect>) -> Result<(), IntakeError> {
        while let Some(batch) = self.held.pop_front() {
            match self.wal.append(batch) {
                Ok(ticket) => {
                    self.appended_end = Some(ticket.range().end);
                    self.counts.batches = self.counts.batches.saturating_add(1);
                }
                Err(AppendError::Full(batch)) => {
                    self.held.push_front(batch);
                    self.machine.on(Event::LogFull, now, effects);
                    return Ok(());
                }
                Err(AppendError::Poisoned { cause }) => {
                    return Err(WalError::Poisoned { cause }.into());
                }
                Err(AppendError::Closed) => return Err(WalError::Closed.into()),
                Err(other @ AppendError::TooLarge { .. }) => {
                    return Err(IntakeError::TooLong(other.to_string()));
                }
            }
        }
        Ok(())
    }

    /// Bytes that wait for the disk.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.wal.status().queued_bytes
    }

    /// True while the log refuses batches: nothing more should be polled.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Passes on what the log has proved and how full it is, and whatever time brings.
    pub fn tick(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.machine.on(Event::Durable(self.wal.durable()), now, effects);
        let status = self.wal.status();
        // A held batch is above the mark whatever the numbers say.
        if !self.is_holding() {
            self.machine.on(Event::LogFill(status.fill()), now, effects);
        }
        self.machine.on(Event::Tick, now, effects);
    }

    /// Applies an event of the consumer.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        self.machine.on(event, now, effects);
    }

    /// The first of two last acts for partitions that are about to be given away: everything taken from them becomes
    /// durable, and what the ledger must say before it may be committed is returned.
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed; nothing may be committed.
    pub fn settle(
        &mut self,
        partitions: &[i32],
        now: Duration,
    ) -> Result<Vec<Testimony>, IntakeError> {
        let mut effects = Vec::new();
        self.append(now, &mut effects)?;
        effects.clear();
        for partition in partitions {
            self.machine.on(Event::Revoking { partition: *partition }, now, &mut effects);
        }
        if effects.iter().any(|effect| matches!(effect, Effect::AwaitDurable(_))) {
            match self.wal.commit() {
                // A full log keeps what it has; the rest is fetched again by whoever gets the partition.
                Ok(()) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.machine.on(Event::Durable(self.wal.durable()), now, &mut effects);
        Ok(self.machine.testimony_of(partitions))
    }

    /// The second one: what may be committed of these partitions.
    #[must_use]
    pub fn committable_of(&self, partitions: &[i32]) -> Vec<Committable> {
        partitions.iter().flat_map(|partition| self.machine.committable_of(*partition)).collect()
    }

    /// Position after everything appended so far: whatever is appended later lies behind it.
    #[must_use]
    pub fn log_end(&self) -> Position {
        self.wal.status().appended
    }

    /// The machine, for status.
    #[must_use]
    pub fn machine(&self) -> &Ingest {
        &self.machine
    }

    /// The deliberate bug of the audit: everything polled counts as durable at once.
    #[cfg(feature = "mutants")]
    pub fn mutant_commit_before_durable(&mut self) {
        self.machine.mutant_commit_before_durable();
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> IntakeCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use wal::sim::SimDisk;
    use wal::{Chunk, ReadOutcome, Reader, WalConfig};

    use super::*;
    use crate::envelope::TimestampType;
    use crate::offset_note::OffsetCarry;

    fn records(reader: &mut Reader<SimDisk>) -> Vec<Vec<u8>> {
        let mut chunk = Chunk::default();
        assert_eq!(reader.next(&mut chunk, usize::MAX).unwrap(), ReadOutcome::Records);
        chunk.iter().map(|(_, record)| record.to_vec()).collect()
    }

    #[test]
    fn a_message_longer_than_a_record_is_taken_cut_and_its_partition_goes_on() {
        let config = WalConfig { max_record_bytes: 20_000, ..WalConfig::default() };
        let disk = SimDisk::new(1);
        let carry = Box::<OffsetCarry>::default();
        let (wal, _) = Wal::open(disk, config, carry, Duration::ZERO).unwrap();
        let config = IngestConfig { ledger: false, ..IngestConfig::default() };
        let mut intake = Intake::new(config, wal.clone()).unwrap();
        let mut effects = Vec::new();
        let assigned = Event::Assigned { partition: 0, committed: Some(5) };
        intake.on(assigned, Duration::ZERO, &mut effects);
        let payloads = [vec![1; 10], vec![2; 50_000], vec![3; 10]];
        for (offset, payload) in (5..).zip(&payloads) {
            let message = Envelope {
                topic: "metrics",
                partition: 0,
                offset,
                leader_epoch: -1,
                timestamp_ms: 0,
                timestamp_type: TimestampType::Absent,
                received_ms: 0,
                key: None,
                payload: Some(payload),
            };
            intake.take(&message, Duration::ZERO, &mut effects).unwrap();
        }
        assert!(intake.settle(&[0], Duration::ZERO).unwrap().is_empty());
        let committable = intake.committable_of(&[0]);
        assert_eq!(committable.iter().map(Committable::next).collect::<Vec<_>>(), [8]);
        let records = records(&mut wal.reader(Position::ZERO));
        let cut: Vec<Option<u64>> =
            records.iter().map(|record| Envelope::cut_from(record)).collect();
        assert_eq!(cut, [None, Some(50_000), None]);
        assert_eq!(Envelope::decode(&records[1]).unwrap().payload, Some(&payloads[1][..4096]));
    }
}
