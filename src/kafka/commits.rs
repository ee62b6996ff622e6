//! Commits of the group's offsets: one at a time, of nothing but what is [`Committable`].

use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::group::Deadline;
use super::{Context, KafkaConsumer, identity, lock};
use crate::ingest::Event;
use crate::offsets::Committable;

/// A commit without an answer is counted as lost after this time: the client library answers each, at the latest when
/// its own timeouts are over.
const COMMIT_LOST_AFTER: Duration = Duration::from_secs(300);

impl Context {
    /// The offsets as the client library takes them. The log has proved them durable; nothing else has this type.
    pub(super) fn offsets(&self, offsets: &[Committable]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        // Whoever reads it must know which topic it is about: names are given again.
        let metadata = lock(&self.intake).topic().encode();
        for offset in offsets {
            let next = Offset::Offset(offset.next());
            let partition = offset.partition();
            match list.add_partition_offset(&self.topic, partition, next) {
                Ok(()) => {
                    let element = list.find_partition(&self.topic, partition);
                    element.into_iter().for_each(|mut element| element.set_metadata(&metadata));
                }
                Err(error) => {
                    tracing::error!(code = "KAFKA_COMMIT", partition, %error, "set offset");
                }
            }
            identity::set_leader_epoch(&mut list, &self.topic, partition, offset.leader_epoch());
        }
        list
    }

    /// Has the offsets committed, unless the last commit has not been answered: then what is due now is due again later.
    /// The callback tells how it went.
    pub(super) fn commit(&self, consumer: &KafkaConsumer, offsets: &[Committable]) {
        let since = *lock(&self.committing);
        let is_under_way =
            since.is_some_and(|since| self.now().saturating_sub(since) < COMMIT_LOST_AFTER);
        if offsets.is_empty() || is_under_way {
            return;
        }
        match identity::commit(consumer.client(), &self.offsets(offsets)) {
            Ok(()) => *lock(&self.committing) = Some(self.now()),
            Err(error) => self.commit_failed(&error),
        }
    }

    pub(super) fn commit_failed(&self, error: &KafkaError) {
        let text = format!("KAFKA_COMMIT: {error}");
        if self.is_due("KAFKA_COMMIT", &text) {
            tracing::warn!(
                code = "KAFKA_COMMIT",
                topic = self.topic,
                %error,
                "commit offsets; tried again later"
            );
        }
        lock(&self.shared.snapshot).last_error = Some(text);
    }

    /// Commits offsets, and waits for that without polling.
    pub(super) fn commit_within(
        &self,
        consumer: &KafkaConsumer,
        offsets: &[Committable],
        deadline: Deadline,
    ) {
        if offsets.is_empty() {
            return;
        }
        let list = self.offsets(offsets);
        match identity::commit_within(consumer.client(), &list, deadline.left()) {
            Ok(()) => self.confirmed(&list),
            Err(error) => tracing::warn!(
                code = "KAFKA_COMMIT",
                topic = self.topic,
                %error,
                "commit offsets of partitions that are given up: what is missing is consumed again by another member"
            ),
        }
    }

    pub(super) fn confirmed(&self, offsets: &TopicPartitionList) {
        let mut intake = lock(&self.intake);
        for element in offsets.elements() {
            if let (Offset::Offset(next), Ok(())) = (element.offset(), element.error()) {
                let event = Event::Committed { partition: element.partition(), next };
                intake.on(event, self.now(), &mut Vec::new());
            }
        }
    }
}
