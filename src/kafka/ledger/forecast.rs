//! Asks the brokers what a forecast of their retention needs; see [`crate::retention`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::message::Message as _;

use super::client::Context;
use super::{Driver, LedgerKeeper, RetentionLeft, TURN};
use crate::clock::wall_ms;
use crate::kafka::gaps::bounds;
use crate::kafka::properties::connection;
use crate::kafka::token::Tokens;
use crate::kafka::{CALLBACK_WAIT, lock};
use crate::retention::Behind;

/// How often it is forecast when Kafka removes what was not consumed, and how often the topic's retention is asked for.
pub(super) const RETENTION_INTERVAL: Duration = Duration::from_secs(15);
const RETENTION_ASK_INTERVAL: Duration = Duration::from_secs(10 * 60);

impl Driver {
    /// Forecasts when Kafka removes what was not consumed, for partitions that are behind.
    pub(super) fn look_at_retention(&mut self) {
        let snapshot = self.at.ingest.snapshot();
        let has_caught_up = |partition: &i32| snapshot.lag.get(partition) == Some(&0);
        let (others, behind): (Vec<i32>, Vec<i32>) =
            snapshot.partitions.keys().partition(|partition| has_caught_up(partition));
        others.iter().for_each(|partition| self.forecast.forget(*partition));
        if !behind.is_empty() && self.now() >= self.next_retention {
            match retention_of(&self.at) {
                Ok(retention) => {
                    self.forecast.retention = retention;
                    self.next_retention = self.now() + RETENTION_ASK_INTERVAL;
                }
                Err(error) => {
                    tracing::debug!(topic = self.at.topic, %error, "ask for the topic's retention")
                }
            }
        }
        let mut left = BTreeMap::new();
        for partition in behind {
            let Some(progress) = snapshot.partitions.get(&partition) else { continue };
            let Ok((low, high)) = bounds(&self.client, &self.at.topic, partition) else { break };
            let next = progress.consumed.unwrap_or(low);
            if next >= high {
                self.forecast.forget(partition);
                continue;
            }
            let timestamp_ms = progress.timestamp_ms.or_else(|| self.timestamp_at(partition, next));
            let behind = Behind { next, timestamp_ms, low };
            if let Some(forecast) = self.forecast.left(partition, behind, self.now(), wall_ms()) {
                let is_near = self.forecast.is_near(forecast);
                left.insert(partition, RetentionLeft { seconds: forecast.as_secs(), is_near });
            }
        }
        lock(&self.handle.snapshot).retention = left;
    }

    /// Timestamp of a message that nobody has consumed yet: of a partition from which nothing was taken since the start.
    pub(super) fn timestamp_at(&mut self, partition: i32, offset: i64) -> Option<i64> {
        if self.fetching.is_some() {
            return None;
        }
        self.assign(Some((partition, offset)));
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut found = None;
        while found.is_none() && Instant::now() < deadline {
            if let Some(Ok(message)) = self.client.poll(TURN)
                && message.partition() == partition
                && message.offset() >= offset
            {
                found = Some(message.timestamp().to_millis());
            }
        }
        self.assign(None);
        found.flatten()
    }
}

/// How long Kafka keeps the topic's messages, by age; `None`: for ever.
fn retention_of(at: &LedgerKeeper) -> anyhow::Result<Option<Duration>> {
    let admin: AdminClient<Context> = connection(&at.kafka)?.create_with_context(Context)?;
    Tokens::new(&at.kafka).keep(admin.inner(), Duration::ZERO)?;
    let options = AdminOptions::new().request_timeout(Some(CALLBACK_WAIT));
    let topic = [ResourceSpecifier::Topic(&at.topic)];
    let answered = at.runtime.block_on(admin.describe_configs(&topic, &options))?;
    let Some(Ok(config)) = answered.into_iter().next() else {
        anyhow::bail!("the brokers do not say");
    };
    let value = |name| config.get(name).and_then(|entry| entry.value.as_deref());
    let is_deleted = value("cleanup.policy").is_none_or(|policy| policy.contains("delete"));
    let millis = value("retention.ms").and_then(|text| text.parse::<u64>().ok());
    Ok(millis.filter(|_| is_deleted).map(Duration::from_millis))
}
