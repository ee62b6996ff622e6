//! The clients that read and write ledgers: consumers without membership.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::KafkaConfig;
use crate::kafka::CALLBACK_WAIT;
use crate::kafka::properties::connection;
use crate::kafka::token::Tokens;
use crate::keeper::{LedgerCommit, Written};
use crate::ledger::{self, Entry};

/// Messages for the log only: the client's own chatter goes where the consumer's goes.
pub(super) struct Context;

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", facility, message, "ledger");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason, "ledger");
    }
}

impl ConsumerContext for Context {}

pub(super) fn client(kafka: &KafkaConfig, group: &str) -> anyhow::Result<BaseConsumer<Context>> {
    let mut config = connection(kafka)?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "true")
        // It never joins; but the library compares this with a max.poll.interval.ms that is set for all clients.
        .set("session.timeout.ms", kafka.session_timeout.as_millis().to_string())
        // One turn takes no more; see `connection`.
        .set("queued.max.messages.kbytes", "1024")
        .set("queued.min.messages", "2000");
    Ok(config.create_with_context(Context)?)
}

/// A client for a few questions: its token lasts for them.
pub(super) fn client_with_token(
    kafka: &KafkaConfig,
    group: &str,
) -> anyhow::Result<BaseConsumer<Context>> {
    let client = client(kafka, group)?;
    Tokens::new(kafka).keep(client.client(), Duration::ZERO)?;
    Ok(client)
}

pub(super) fn partitions_of(client: &BaseConsumer<Context>, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(topic), CALLBACK_WAIT)?;
    let topics = metadata.topics().iter().filter(|found| found.name() == topic);
    Ok(topics
        .flat_map(|topic| topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect())
}

/// The ledger that the client's group holds.
pub(super) fn read(
    client: &BaseConsumer<Context>,
    topic: &str,
) -> KafkaResult<BTreeMap<i32, Written>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions_of(client, topic)? {
        asked.add_partition(topic, partition);
    }
    if asked.count() == 0 {
        return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition));
    }
    let committed = client.committed_offsets(asked, CALLBACK_WAIT)?;
    let mut ledger = BTreeMap::new();
    for element in committed.elements() {
        element.error()?;
        if let (Offset::Offset(delivered), Some(entry)) =
            (element.offset(), Entry::decode(element.metadata()))
        {
            ledger.insert(element.partition(), Written { delivered, entry });
        }
    }
    Ok(ledger)
}

/// The ledger of an instance, for people and for taking over.
///
/// # Errors
/// No broker answers, or the group may not be read.
pub(crate) fn read_of(
    kafka: &KafkaConfig,
    topic: &str,
    group: &str,
    instance: &str,
) -> anyhow::Result<BTreeMap<i32, Written>> {
    Ok(read(&client_with_token(kafka, &ledger::group_of(group, instance))?, topic)?)
}

/// Names of all instances that keep a ledger for `group`.
///
/// # Errors
/// No broker answers, or groups may not be listed.
pub(crate) fn instances(kafka: &KafkaConfig, group: &str) -> anyhow::Result<Vec<String>> {
    let client = client_with_token(kafka, &format!("{group}.delivered"))?;
    let groups = client.fetch_group_list(None, CALLBACK_WAIT)?;
    let mut names: Vec<String> = groups
        .groups()
        .iter()
        .filter_map(|found| ledger::instance_of(group, found.name()).map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

pub(super) fn commit(
    client: &BaseConsumer<Context>,
    topic: &str,
    commits: &[LedgerCommit],
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut element = list.add_partition(topic, commit.partition);
        element.set_offset(Offset::Offset(commit.delivered))?;
        element.set_metadata(commit.entry.encode());
    }
    client.commit(&list, CommitMode::Sync)
}

/// Whether trying again is pointless until somebody grants a right.
pub(super) fn is_forbidden(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::GroupAuthorizationFailed | RDKafkaErrorCode::OffsetMetadataTooLarge)
    )
}
