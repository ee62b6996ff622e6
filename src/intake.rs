//! Carries the ingest machine out against the log: messages in, batches appended, proofs of durability back.
//!
//! Knows no Kafka client: `kafka.rs` drives it with a real consumer, the simulator with a model.

use std::collections::VecDeque;
use std::time::Duration;

use wal::{AppendError, Batch, Fs, Position, PushError, Wal, WalError};

use crate::codec::CodecError;
use crate::envelope::{Envelope, EnvelopeError, TimestampType};
use crate::ingest::{Effect, Event, Ingest, IngestConfig, Start};
use crate::offset_note::{LogOffsets, OffsetNote};
use crate::offsets::{
    Committable, Coordinates, GroupOffset, Intake as Decision, Testimony, ToldOffset,
};
use crate::topic_identity::TopicIdentity;

/// A partition of which Kafka's messages before our next offset are not those that we took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Divergence {
    /// The partition.
    pub partition: i32,
    /// The offset from which on they are others, or gone; not known is `None`: perhaps all that Kafka has.
    pub from: Option<i64>,
}

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
    /// The group has no place for this member any more, for example because another one has its name.
    #[error("the group ended this membership: {0}")]
    ThrownOut(String),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
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
    annotation: OffsetNote,
    /// The topic that the log's offsets are about, as the log knows it.
    topic: Option<TopicIdentity>,
    /// The topic that is consumed, if it is another one.
    other_topic: Option<TopicIdentity>,
    /// Partitions whose history Kafka has replaced, not yet reported to the machine.
    diverged: Vec<Divergence>,
    counts: IntakeCounts,
}

impl<F: Fs> Intake<F> {
    /// The stage for a log that was just opened.
    ///
    /// # Errors
    /// [`IntakeError::Carry`]: the log's memory of offsets is from a newer program.
    pub fn new(config: IngestConfig, wal: Wal<F>) -> Result<Self, IntakeError> {
        let log = LogOffsets::decode(&wal.carry())?;
        Ok(Self {
            machine: Ingest::new(config, &log, wal.durable().through()),
            wal,
            batch: Batch::new(),
            held: VecDeque::new(),
            appended_end: None,
            annotation: OffsetNote::default(),
            topic: log.topic,
            other_topic: None,
            diverged: Vec::new(),
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
        let coordinates = Coordinates {
            partition: message.partition,
            offset: message.offset,
            leader_epoch: message.leader_epoch,
            timestamp_ms: (message.timestamp_type != TimestampType::Absent)
                .then_some(message.timestamp_ms),
        };
        match self.machine.take(coordinates) {
            Decision::Take => {}
            Decision::Diverged => {
                self.diverged(Divergence { partition: message.partition, from: None });
                return Ok(());
            }
            Decision::EndLost => {
                let from = Some(message.offset.saturating_add(1));
                self.diverged(Divergence { partition: message.partition, from });
                return Ok(());
            }
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
        self.annotation.next.set(message.partition, message.offset);
        self.seal()
    }

    fn seal(&mut self) -> Result<(), IntakeError> {
        let mut batch = std::mem::take(&mut self.batch);
        batch.annotate(&self.annotation.encode()?);
        self.held.push_back(batch);
        Ok(())
    }

    /// Says which topic is consumed. If the log's offsets are about another one, the machine decides what that means.
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed.
    pub fn topic_is(
        &mut self,
        topic: TopicIdentity,
        at_ms: i64,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        if topic.is_unknown() {
            return Ok(());
        }
        match &self.topic {
            Some(known) if known.differs(&topic) => {
                if self.other_topic.as_ref() != Some(&topic) {
                    self.other_topic = Some(topic);
                    self.part(Event::Recreated { at_ms }, now, effects)?;
                }
            }
            Some(_) => self.other_topic = None,
            None => {
                self.append(now, effects)?;
                self.topic = Some(topic.clone());
                let note = OffsetNote { topic: Some(topic), ..OffsetNote::default() };
                self.note(&note, now, effects)?;
            }
        }
        Ok(())
    }

    /// The topic that the log's offsets are about: that of every offset that we commit. Unknown until the brokers say it.
    #[must_use]
    pub fn topic(&self) -> TopicIdentity {
        self.topic.clone().unwrap_or_default()
    }

    /// What the group's committed offset says of the topic that is consumed: nothing, if it was committed by a member that
    /// consumed another topic of the name.
    #[must_use]
    pub fn believed(&self, told: ToldOffset) -> Option<GroupOffset> {
        let ours = self.other_topic.as_ref().or(self.topic.as_ref());
        let ToldOffset { next, leader_epoch, topic } = told;
        if ours.is_some_and(|ours| ours.differs(&topic)) {
            return None;
        }
        let is_of_our_topic = ours.is_some_and(|ours| !topic.topic.is_empty() && topic == *ours);
        Some(GroupOffset { next, leader_epoch, is_of_our_topic })
    }

    /// Compares a partition of ours whose position Kafka may have refused with what there is: from `low` to `high`. One
    /// of which nothing was taken yet begins again where it began.
    ///
    /// # Errors
    /// As [`Intake::part`].
    pub fn compare(
        &mut self,
        partition: i32,
        (low, high): (i64, i64),
        beginning: Option<Start>,
        (at_ms, now): (i64, Duration),
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        let ours = self.machine.progress().find(|(ours, _)| *ours == partition);
        match ours.map(|(_, progress)| progress.consumed) {
            None => Ok(()),
            Some(Some(_)) => self.part(Event::Bounds { partition, low, high, at_ms }, now, effects),
            Some(None) => {
                let start = beginning.unwrap_or(Start::Beginning);
                effects.push(Effect::Begin { partition, start });
                Ok(())
            }
        }
    }

    /// Applies an event after which consumption may begin anew somewhere, and notes that in the log: behind everything
    /// taken so far and before anything that is taken next.
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed.
    pub fn part(
        &mut self,
        event: Event,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        self.append(now, effects)?;
        let mut found = Vec::new();
        self.machine.on(event, now, &mut found);
        let mut note = OffsetNote::default();
        for effect in &found {
            match effect {
                Effect::Note(gap) => note.gaps.push(*gap),
                Effect::NoteTopic => {
                    self.topic = self.other_topic.take();
                    note.topic.clone_from(&self.topic);
                }
                _ => {}
            }
        }
        if note != OffsetNote::default() {
            self.note(&note, now, effects)?;
        }
        effects.append(&mut found);
        Ok(())
    }

    /// Queues a batch without records, with what the machine wants noted of restarted partitions; durable on return,
    /// unless the log is full.
    fn note(
        &mut self,
        note: &OffsetNote,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        self.machine.annotation(&mut self.annotation);
        let OffsetNote { next, epochs, .. } = self.annotation.clone();
        let mut batch = Batch::new();
        batch.annotate(&OffsetNote { next, epochs, ..note.clone() }.encode()?);
        self.held.push_back(batch);
        self.append(now, effects)
    }

    /// To be asked for again with [`Intake::take_diverged`].
    pub fn diverged(&mut self, divergence: Divergence) {
        self.diverged.push(divergence);
    }

    /// Partitions of which Kafka's messages before our next offset are not those that we took.
    pub fn take_diverged(&mut self) -> Vec<Divergence> {
        std::mem::take(&mut self.diverged)
    }

    /// Appends what is held, as far as the log has room.
    fn push_held(&mut self, now: Duration, effects: &mut Vec<Effect>) -> Result<(), IntakeError> {
        while let Some(batch) = self.held.pop_front() {
            let is_note = batch.is_empty();
            match self.wal.append(batch) {
                Ok(ticket) => {
                    self.appended_end = Some(ticket.range().end);
                    self.counts.batches = self.counts.batches.saturating_add(1);
                    if is_note {
                        // No position tells whether it is durable.
                        match self.wal.commit() {
                            Ok(()) | Err(WalError::NoSpace { .. }) => {}
                            Err(error) => return Err(error.into()),
                        }
                    }
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
    /// durable, and what the ledger must say before it may be committed is returned. For who has all the time in the
    /// world; see [`Intake::begin_to_settle`].
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed; nothing may be committed.
    pub fn settle(
        &mut self,
        partitions: &[i32],
        now: Duration,
    ) -> Result<Vec<Testimony>, IntakeError> {
        if self.begin_to_settle(partitions, now)?.is_some() {
            match self.wal.commit() {
                // A full log keeps what it has; the rest is fetched again by whoever gets the partition.
                Ok(()) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.settled(partitions, now))
    }

    /// Hands everything taken to the log; the position that must be durable before [`Intake::settled`] has it all.
    ///
    /// # Errors
    /// [`IntakeError::Wal`]: the log failed; nothing may be committed.
    pub fn begin_to_settle(
        &mut self,
        partitions: &[i32],
        now: Duration,
    ) -> Result<Option<Position>, IntakeError> {
        let mut effects = Vec::new();
        self.append(now, &mut effects)?;
        effects.clear();
        for partition in partitions {
            self.machine.on(Event::Revoking { partition: *partition }, now, &mut effects);
        }
        let awaited = effects.into_iter().filter_map(|effect| match effect {
            Effect::AwaitDurable(position) => Some(position),
            _ => None,
        });
        Ok(awaited.max())
    }

    /// What the ledger must say of these partitions, as far as the log has made them durable by now.
    pub fn settled(&mut self, partitions: &[i32], now: Duration) -> Vec<Testimony> {
        self.machine.on(Event::Durable(self.wal.durable()), now, &mut Vec::new());
        self.machine.testimony_of(partitions)
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

    /// The log.
    #[must_use]
    pub fn wal(&self) -> &Wal<F> {
        &self.wal
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
mod tests;
