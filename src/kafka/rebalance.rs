//! Partitions that are given to us, and those that we give back. The callbacks carry everything out to the end without
//! polling, and share one [`Deadline`].

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

use super::gaps::{GOES_ON, offset_of};
use super::group::{self, Deadline};
use super::{Context, KafkaConsumer, event_of, identity, lock};
use crate::clock::wall_ms;
use crate::ingest::{Effect, Event, Start};
use crate::intake::IntakeError;
use crate::offsets::{Committable, ToldOffset};
use crate::topic_identity::TopicIdentity;

/// How often the committed offsets are asked for in the time of one rebalance.
const COMMITTED_TRIES: u32 = 3;

impl Context {
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.membership.rebalance_time)
    }

    pub(super) fn assign(&self, consumer: &KafkaConsumer, partitions: &TopicPartitionList) {
        let deadline = self.deadline();
        // Whatever the group had against us is over.
        lock(&self.shared.snapshot).trouble.take_if(|trouble| trouble.is_of_group());
        let committed = self.committed(consumer, partitions, deadline);
        let at_first = self.partitions_at_first(consumer, deadline);
        let topic = self.topic_identity(consumer, deadline.left());
        let mut effects = Vec::new();
        let mut start_at = TopicPartitionList::new();
        {
            let mut intake = lock(&self.intake);
            if let Err(error) = intake.topic_is(topic, wall_ms(), self.now(), &mut effects) {
                *lock(&self.failed) = Some(error);
                return;
            }
            for element in partitions.elements() {
                let partition = element.partition();
                // Where it is not known, the log's own decides, and is committed again: that repeats messages at worst.
                let told = committed.get(&partition).cloned().flatten();
                let committed = told.and_then(|told| intake.believed(told));
                let event = Event::Assigned { partition, committed };
                intake.on(event, self.now(), &mut effects);
            }
        }
        let mut pause = Vec::new();
        let mut hold = Vec::new();
        let mut starts = BTreeMap::new();
        for effect in effects {
            match effect {
                Effect::Begin { partition, start }
                    if partitions.find_partition(&self.topic, partition).is_none() =>
                {
                    lock(&self.begin).insert(partition, start);
                }
                Effect::Begin { partition, start } => {
                    let is_new = usize::try_from(partition).is_ok_and(|number| number >= at_first);
                    let start = match start {
                        // Somebody may have committed an offset, or messages may have come before we did.
                        Start::End if is_new || !committed.contains_key(&partition) => {
                            Start::Beginning
                        }
                        start => start,
                    };
                    lock(&self.beginnings).insert(partition, start);
                    let offset = offset_of(start);
                    if let Err(error) =
                        start_at.add_partition_offset(&self.topic, partition, offset)
                    {
                        tracing::error!(code = "KAFKA_ASSIGN", partition, %error, "set start offset");
                    }
                    starts.insert(partition, start);
                }
                Effect::Pause(partitions) => pause.extend(partitions),
                Effect::Hold(gap) => hold.push(gap),
                Effect::Rewind { partition, next } => self.rewind(partition, next),
                Effect::GoneBack { partition, next } => self.ledger.gone_back(partition, next),
                Effect::Note(gap) => self.say_gap(&gap, GOES_ON),
                Effect::AwaitDurable(_)
                | Effect::Testify(_)
                | Effect::Commit(_)
                | Effect::Resume(_)
                | Effect::NoteTopic => {}
            }
        }
        tracing::info!(topic = self.topic, ?starts, "partitions assigned");
        if let Err(error) = consumer.incremental_assign(&start_at) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "assign partitions");
        }
        self.pause(consumer, &pause);
        hold.iter().for_each(|gap| self.hold(consumer, gap));
    }

    pub(super) fn revoke(&self, consumer: &KafkaConsumer, partitions: &TopicPartitionList) {
        let numbers: Vec<i32> =
            partitions.elements().iter().map(|element| element.partition()).collect();
        let deadline = self.deadline();
        let lost = consumer.assignment_lost();
        if !lost && !self.leaving.load(Ordering::Relaxed) {
            match self.settle(&numbers, deadline) {
                Ok(offsets) => self.commit_within(consumer, &offsets, deadline),
                Err(error) => *lock(&self.failed) = Some(error),
            }
        }
        {
            let mut intake = lock(&self.intake);
            for partition in &numbers {
                lock(&self.begin).remove(partition);
                intake.on(Event::Gone { partition: *partition }, self.now(), &mut Vec::new());
            }
        }
        tracing::info!(topic = self.topic, partitions = ?numbers, lost, "partitions given up");
        if let Err(error) = Self::unassign(consumer, partitions) {
            tracing::error!(code = "KAFKA_ASSIGN", %error, "give up partitions");
        }
    }

    /// Makes everything of these partitions durable and known to the ledger, as far as the time allows; returns what may
    /// be committed. What is not durable in time is consumed again by whoever gets the partition.
    pub(super) fn settle(
        &self,
        partitions: &[i32],
        deadline: Deadline,
    ) -> Result<Vec<Committable>, IntakeError> {
        let (awaited, wal) = {
            let mut intake = lock(&self.intake);
            (intake.begin_to_settle(partitions, self.now())?, intake.wal().clone())
        };
        if let Some(end) = awaited
            && !group::wait_durable(&wal, end, deadline)?
        {
            tracing::warn!(
                code = "REVOKED_UNSETTLED",
                topic = self.topic,
                ?partitions,
                "the log is not durable in time: what is missing is consumed again by another member"
            );
        }
        let testimony = lock(&self.intake).settled(partitions, self.now());
        // Whatever was confirmed before counts as well.
        let mut news = self.ledger.news();
        if !testimony.is_empty() {
            news.extend(self.ledger.settle(testimony, deadline.left()));
        }
        let mut intake = lock(&self.intake);
        for item in news {
            match event_of(item) {
                Ok(event) => intake.on(event, self.now(), &mut Vec::new()),
                Err(later) => lock(&self.news).push(later),
            }
        }
        Ok(intake.committable_of(partitions))
    }

    /// Committed offsets of the group for each partition of which they are known. A broker that does not answer in time
    /// means: unknown, so the log decides.
    pub(super) fn committed(
        &self,
        consumer: &KafkaConsumer,
        partitions: &TopicPartitionList,
        deadline: Deadline,
    ) -> BTreeMap<i32, Option<ToldOffset>> {
        let mut known = BTreeMap::new();
        if partitions.count() == 0 {
            return known;
        }
        for tries_left in (1..=COMMITTED_TRIES).rev() {
            let asked = Deadline::after(deadline.left() / tries_left);
            match consumer.committed_offsets(partitions.clone(), asked.left()) {
                Ok(committed) => {
                    for element in committed.elements() {
                        match (element.error(), element.offset()) {
                            (Ok(()), Offset::Offset(next)) => {
                                let partition = element.partition();
                                let topic = TopicIdentity::of_metadata(element.metadata());
                                let leader_epoch = identity::committed_leader_epoch(
                                    &committed,
                                    &self.topic,
                                    partition,
                                );
                                let told = ToldOffset { next, leader_epoch, topic };
                                known.insert(partition, Some(told));
                            }
                            (Ok(()), _) => {
                                known.insert(element.partition(), None);
                            }
                            (Err(error), _) => self.committed_unknown(&error),
                        }
                    }
                    if known.len() == partitions.count() {
                        return known;
                    }
                }
                Err(error) => self.committed_unknown(&error),
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // An error that came at once may be over a moment later.
            std::thread::sleep(asked.left().min(Duration::from_millis(200)));
        }
        // Starting from the log or from the beginning repeats messages at worst; rewrites are harmless.
        tracing::error!(
            code = "KAFKA_COMMITTED_UNKNOWN",
            topic = self.topic,
            partitions = partitions.count().saturating_sub(known.len()),
            "committed offsets are not known in time: the log's own decide, or else the oldest messages"
        );
        known
    }

    pub(super) fn committed_unknown(&self, error: &KafkaError) {
        if self.is_due("KAFKA_COMMITTED_UNKNOWN", &error.to_string()) {
            tracing::warn!(
                code = "KAFKA_COMMITTED_UNKNOWN",
                topic = self.topic,
                %error,
                "read committed offsets; tried again"
            );
        }
    }

    /// Partitions that the topic had when we were first given some: what comes later begins with its oldest message.
    pub(super) fn partitions_at_first(
        &self,
        consumer: &KafkaConsumer,
        deadline: Deadline,
    ) -> usize {
        if !self.membership.begins_at_end {
            return usize::MAX;
        }
        *self.partitions_at_first.get_or_init(|| {
            let metadata = consumer.fetch_metadata(Some(&self.topic), deadline.left());
            metadata.map_or(0, |metadata| {
                let topics = metadata.topics().iter();
                topics.map(|topic| topic.partitions().len()).max().unwrap_or(0)
            })
        })
    }

    /// Gives partitions up. The client library remembers that one was paused, and would go on with that when it comes
    /// back.
    pub(super) fn unassign(
        consumer: &KafkaConsumer,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<()> {
        if let Err(error) = consumer.resume(partitions) {
            tracing::debug!(%error, "resume partitions that are given up");
        }
        consumer.incremental_unassign(partitions)
    }

    /// Which topic Kafka has now, if the brokers say it: those that did not say it once are not waited for again. The
    /// ledger's thread goes on asking.
    pub(super) fn topic_identity(
        &self,
        consumer: &KafkaConsumer,
        time_left: Duration,
    ) -> TopicIdentity {
        if self.is_topic_untold.load(Ordering::Relaxed) {
            return TopicIdentity::default();
        }
        let wait = time_left.min(identity::TOPIC_WAIT);
        let topic = identity::of_topic(consumer.client(), &self.topic, wait);
        if topic.topic.is_empty() && wait == identity::TOPIC_WAIT {
            self.is_topic_untold.store(true, Ordering::Relaxed);
        }
        topic
    }
}
