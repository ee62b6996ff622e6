//! Where Kafka refuses a position or has another history: asks what there is, and carries out what the machine decides.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::{CALLBACK_WAIT, Context, Ingestion, KafkaConsumer, identity, lock};
use crate::clock::wall_ms;
use crate::ingest::{Effect, Event, Start};
use crate::intake::IntakeError;
use crate::kafka_gap::KafkaGap;

/// What follows a gap, for people.
pub(super) const GOES_ON: &str = "consumption goes on with what Kafka has";
/// How often partitions whose position was refused are looked at.
const REFUSED_INTERVAL: Duration = Duration::from_secs(1);

impl Context {
    pub(super) fn rewind(&self, partition: i32, next: Option<i64>) {
        let end = lock(&self.intake).log_end();
        self.ledger.rewind(partition, next, end);
    }

    /// Fetches nothing of a partition before a person has accepted the gap.
    pub(super) fn hold(&self, consumer: &KafkaConsumer, gap: &KafkaGap) {
        self.say_gap(gap, "the partition stops until `offsets accept`");
        if let Err(error) = consumer.pause(&self.list(&[gap.partition])) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "stop a partition at a gap");
        }
    }

    pub(super) fn say_gap(&self, gap: &KafkaGap, then: &str) {
        tracing::error!(
            code = gap.kind.code(),
            topic = self.topic,
            partition = gap.partition,
            from = gap.from,
            to = gap.to,
            "{}; {then}",
            gap.message(&self.topic)
        );
    }

    /// Begins to consume a partition of ours somewhere else; false: to be tried again.
    pub(super) fn begin(&self, consumer: &KafkaConsumer, partition: i32, start: Start) -> bool {
        // Not a seek: the client library refuses it where it has given up to fetch.
        let begun = Self::unassign(consumer, &self.list(&[partition])).and_then(|()| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&self.topic, partition, offset_of(start))?;
            consumer.incremental_assign(&list)
        });
        if let Err(error) = begun {
            tracing::warn!(code = "KAFKA_ASSIGN", partition, %error, "consume from another offset; tried again");
            return false;
        }
        // A position that is refused again and again is not said each time.
        if self.is_due("CONSUMPTION", &partition.to_string()) {
            tracing::info!(topic = self.topic, partition, start = ?start, "consumption goes on");
        }
        let mut intake = lock(&self.intake);
        intake.on(Event::Begun { partition }, self.now(), &mut Vec::new());
        let is_paused = intake.machine().is_paused();
        drop(intake);
        if is_paused && let Err(error) = consumer.pause(&self.list(&[partition])) {
            tracing::error!(code = "KAFKA_PAUSE", %error, "pause partitions");
        }
        true
    }
}

impl Ingestion {
    /// Compares partitions whose position Kafka refused, and those whose history it has replaced, with what there is,
    /// and has the machine decide.
    pub(super) fn look_for_gaps(
        &self,
        context: &Context,
        effects: &mut Vec<Effect>,
    ) -> Result<(), IntakeError> {
        let diverged = lock(&context.intake).take_diverged();
        for divergence in diverged {
            let partition = divergence.partition;
            let oldest = || self.bounds(context, partition).map(|(low, _)| low);
            match divergence.from.or_else(oldest) {
                Some(from) => {
                    let event = Event::Diverged { partition, from, at_ms: wall_ms() };
                    lock(&context.intake).part(event, context.now(), effects)?;
                }
                None => lock(&context.intake).diverged(divergence),
            }
        }
        let due = *lock(&context.refused);
        if due.is_none_or(|due| context.now() < due) {
            return Ok(());
        }
        // One that was created again may look as if it was truncated.
        let topic = context.topic_identity(&self.consumer, identity::TOPIC_WAIT);
        let assigned: Vec<i32> = {
            let mut intake = lock(&context.intake);
            intake.topic_is(topic, wall_ms(), context.now(), effects)?;
            intake.machine().progress().map(|(partition, _)| partition).collect()
        };
        let mut is_over = true;
        for partition in assigned {
            let Some(bounds) = self.bounds(context, partition) else {
                is_over = false;
                continue;
            };
            let beginning = lock(&context.beginnings).get(&partition).copied();
            let at = (wall_ms(), context.now());
            lock(&context.intake).compare(partition, bounds, beginning, at, effects)?;
        }
        *lock(&context.refused) = (!is_over).then(|| context.now() + REFUSED_INTERVAL);
        Ok(())
    }

    /// The ends of a partition, if the brokers tell them now.
    pub(super) fn bounds(&self, context: &Context, partition: i32) -> Option<(i64, i64)> {
        match bounds(&self.consumer, &context.topic, partition) {
            Ok(bounds) => Some(bounds),
            Err(error) => {
                if context.is_due("KAFKA_REFUSED", &error.to_string()) {
                    tracing::warn!(
                        code = "KAFKA_REFUSED",
                        topic = context.topic,
                        partition,
                        %error,
                        "Kafka refused the position and does not say why; asked again"
                    );
                }
                None
            }
        }
    }
}

/// The oldest offset that a partition has, and the one behind its newest message. Asked one by one: the client library's
/// own question for both takes an error in one answer for an empty partition, and so for a gap.
pub(super) fn bounds<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> KafkaResult<(i64, i64)> {
    let ask = |which: Offset| {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(topic, partition, which)?;
        let answered = consumer.offsets_for_times(asked, CALLBACK_WAIT)?;
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                return Ok(offset);
            }
        }
        Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset))
    };
    Ok((ask(Offset::Beginning)?, ask(Offset::End)?))
}

pub(super) fn offset_of(start: Start) -> Offset {
    match start {
        Start::At(offset) => Offset::Offset(offset),
        Start::Beginning => Offset::Beginning,
        Start::End => Offset::End,
    }
}
