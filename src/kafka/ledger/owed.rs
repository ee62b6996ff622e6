//! Fetches again what is owed, with a client that leaves the position of the group alone.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use wal::WalError;

use super::{Driver, TURN};
use crate::kafka::gaps::bounds;
use crate::kafka::{envelope, identity};
use crate::offset_ranges::OffsetRange;

/// How long it fetches before it looks around again.
const FETCH_TIME: Duration = Duration::from_millis(200);
const FETCH_BYTES: usize = 1 << 20;

impl Driver {
    /// Fetches some of what is owed.
    pub(super) fn fetch(&mut self) -> Result<(), WalError> {
        let Some(owed) = self.at.keeper.next_owed() else {
            if self.fetching.take().is_some() {
                self.assign(None);
            }
            return Ok(());
        };
        if self.fetching != Some((owed.partition, owed.from)) && !self.begin(owed)? {
            return Ok(());
        }
        let outcome = self.poll(owed);
        match outcome {
            // No room: what was not settled is fetched again when there is some.
            Err(WalError::NoSpace { .. }) => {
                self.fetching = None;
                Ok(())
            }
            outcome => outcome,
        }
    }

    pub(super) fn assign(&mut self, at: Option<(i32, i64)>) {
        let mut list = TopicPartitionList::new();
        if let Some((partition, offset)) = at {
            drop(list.add_partition_offset(&self.at.topic, partition, Offset::Offset(offset)));
        }
        if let Err(error) = self.client.assign(&list) {
            self.failed("assign what is owed", &error);
        }
    }

    /// False when there is nothing to poll for now.
    pub(super) fn begin(&mut self, owed: OffsetRange) -> Result<bool, WalError> {
        self.fetching = None;
        let OffsetRange { partition, from, to } = owed;
        let (low, high) = match bounds(&self.client, &self.at.topic, partition) {
            Ok(bounds) => bounds,
            Err(error) => {
                self.failed("ask for the ends of what is owed", &error);
                return Ok(false);
            }
        };
        for (from, to) in [(from, to.min(low)), (from.max(high), to)] {
            if from < to {
                tracing::error!(
                    code = "KAFKA_GAP",
                    topic = self.at.topic,
                    partition,
                    from,
                    to,
                    "owed messages are not in Kafka any more: they are lost"
                );
                let lost = OffsetRange { partition, from, to };
                match self.at.keeper.lose(lost) {
                    Ok(()) | Err(WalError::NoSpace { .. }) => {}
                    Err(error) => return Err(error),
                }
                return Ok(false);
            }
        }
        tracing::info!(topic = self.at.topic, partition, from, to, "fetching again what is owed");
        self.assign(Some((partition, from)));
        self.fetching = Some((partition, from));
        Ok(true)
    }

    pub(super) fn poll(&mut self, owed: OffsetRange) -> Result<(), WalError> {
        let (partition, to) = (owed.partition, owed.to);
        let mut next = owed.from;
        let begun = Instant::now();
        let mut bytes = 0_usize;
        while next < to && bytes < FETCH_BYTES && begun.elapsed() < FETCH_TIME {
            match self.client.poll(TURN) {
                None => break,
                Some(Ok(message)) => {
                    // What the client had fetched before it was told to go elsewhere.
                    if message.partition() != partition || message.offset() < next {
                        continue;
                    }
                    if message.offset() >= to {
                        next = to;
                        break;
                    }
                    bytes = bytes.saturating_add(message.payload_len());
                    self.at.keeper.take(next, &envelope(&self.at.topic, &message))?;
                    next = message.offset().saturating_add(1);
                }
                Some(Err(KafkaError::PartitionEOF(at))) if at == partition => next = to,
                Some(Err(error)) => {
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) {
                        // Retention was faster: ask for the ends again.
                        self.fetching = None;
                    }
                    self.failed("fetch what is owed", &error);
                    break;
                }
            }
        }
        if next > owed.from {
            // It may have been created again in the meantime: other messages at the same offsets settle nothing.
            let wait = identity::TOPIC_WAIT;
            let topic = identity::of_topic(self.client.client(), &self.at.topic, wait);
            if !topic.topic.is_empty() {
                self.at.keeper.topic_is(&topic);
            }
            self.at.keeper.fetched_to(partition, owed.from, next)?;
            if self.fetching.is_some() {
                self.fetching = Some((partition, next));
            }
            if next >= to {
                tracing::info!(
                    code = "REPAIRED",
                    topic = self.at.topic,
                    partition,
                    through = to,
                    "everything owed up to here is in the log again"
                );
            }
        }
        Ok(())
    }
}
