//! What our clients are made with: what an operator may tune, memory, and what the guarantee needs.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use super::group;
use crate::config::{KafkaConfig, PipelineConfig};
use crate::kafka_connection;
use crate::secrets::SecretError;

/// Most bytes of one fetch, as they travel; a batch that is longer comes alone.
const FETCH_BYTES: &str = "262144";

/// How any client of ours reaches the brokers. What an operator may tune comes first; what the guarantee needs cannot be
/// overridden and is set behind it.
pub(super) fn connection(kafka: &KafkaConfig) -> Result<ClientConfig, SecretError> {
    let mut config = ClientConfig::new();
    config
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        // Memory: what a fetch brings is counted as it travels, and unpacks to many times that; messages that wait cost
        // 300 bytes each besides. A line of 10 kB/s carries a fetch before it times out. docs/memory.md has the sums.
        .set("message.max.bytes", FETCH_BYTES)
        .set("fetch.max.bytes", FETCH_BYTES)
        .set("fetch.message.max.bytes", FETCH_BYTES)
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "10000")
        // A connection that died without a word is given up after so long; an answer takes no longer.
        .set("socket.timeout.ms", "30000")
        .set("socket.connection.setup.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("reconnect.backoff.ms", "200")
        .set("reconnect.backoff.max.ms", "5000")
        .set("check.crcs", "true");
    for (property, value) in &kafka.properties {
        config.set(property, value);
    }
    for (property, value) in kafka_connection::properties(kafka)?.iter() {
        config.set(property, value);
    }
    // Informational, because a listener that hangs up is not more than that to the client library.
    config.set_log_level(RDKafkaLogLevel::Info);
    Ok(config)
}

/// What the consumer of a pipeline is made with.
///
/// # Errors
/// A secret cannot be read.
pub fn client_config(
    kafka: &KafkaConfig,
    pipeline: &PipelineConfig,
    member: Option<&str>,
) -> Result<ClientConfig, SecretError> {
    let mut config = connection(kafka)?;
    config
        .set("group.id", &pipeline.group_id)
        .set("session.timeout.ms", kafka.session_timeout.as_millis().to_string())
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("enable.partition.eof", "false")
        .set("statistics.interval.ms", "1000");
    if !kafka.properties.contains_key("max.poll.interval.ms") {
        let interval = group::poll_interval(kafka.session_timeout);
        config.set("max.poll.interval.ms", interval.as_millis().to_string());
    }
    if let Some(member) = member {
        config.set("group.instance.id", member);
    }
    Ok(config)
}
