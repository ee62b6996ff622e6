//! Where Kafka's history of a partition and ours part, and what is done about it. Plain.

use bincode::{Decode, Encode};

/// How they part.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum GapKind {
    /// Kafka removed messages before they were consumed: they are lost.
    Retention,
    /// The partition lost its end, as after brokers that lost power: what we took of it is in the log or stored.
    Truncated,
    /// The topic was deleted and another one of its name created: what we took of the old one is in the log or stored.
    Recreated,
}

impl GapKind {
    /// Stable code, as logs and status say it.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Retention => "KAFKA_GAP",
            Self::Truncated => "KAFKA_TRUNCATED",
            Self::Recreated => "KAFKA_RECREATED",
        }
    }
}

/// Offsets of one partition that Kafka does not have any more, and we thought it had.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, serde::Serialize, schemars::JsonSchema,
)]
pub struct KafkaGap {
    /// How Kafka's history and ours part.
    pub kind: GapKind,
    /// The partition.
    pub partition: i32,
    /// First offset of it.
    pub from: i64,
    /// Offset after the last: where consumption goes on after a retention gap, where it stood otherwise.
    pub to: i64,
    /// When it was found, milliseconds since the epoch.
    pub at_ms: i64,
}

impl KafkaGap {
    /// What happened, for people.
    #[must_use]
    pub fn message(&self, topic: &str) -> String {
        let Self { partition, from, to, .. } = self;
        match self.kind {
            GapKind::Retention => format!(
                "{topic}/{partition}: Kafka removed offsets {from} to {to} before they were consumed"
            ),
            GapKind::Truncated => format!(
                "{topic}/{partition}: Kafka lost offsets {from} to {to} after they were consumed"
            ),
            GapKind::Recreated => format!(
                "{topic}/{partition}: the topic was created again; the old one was consumed up to offset {to}"
            ),
        }
    }
}

/// What is done when such a gap is found.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum GapPolicy {
    /// The gap is recorded and consumption goes on with what Kafka has.
    Continue,
    /// The partition is not consumed until an operator accepts the gap.
    Stop,
}

/// What is done about each kind.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema, serde::Deserialize,
)]
#[serde(deny_unknown_fields, default)]
pub struct GapPolicies {
    /// Retention overtook us.
    pub retention: GapPolicy,
    /// The partition was truncated.
    pub truncated: GapPolicy,
    /// The topic was created again.
    pub recreated: GapPolicy,
}

impl Default for GapPolicies {
    fn default() -> Self {
        Self {
            // What is lost is lost; waiting loses more.
            retention: GapPolicy::Continue,
            // We have what Kafka lost, and go on where it ends.
            truncated: GapPolicy::Continue,
            // Somebody did that on purpose, or pointed us to the wrong cluster.
            recreated: GapPolicy::Stop,
        }
    }
}

impl GapPolicies {
    /// What is done about a kind.
    #[must_use]
    pub fn of(&self, kind: GapKind) -> GapPolicy {
        match kind {
            GapKind::Retention => self.retention,
            GapKind::Truncated => self.truncated,
            GapKind::Recreated => self.recreated,
        }
    }
}
