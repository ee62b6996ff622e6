//! A Kafka that fits in a page: partitions, one group's committed offsets and its ledger, nothing else.

use std::collections::BTreeMap;

use monasca_persister::keeper::Written;

/// What a message is, so that the oracle knows what must become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// A measurement of a series at a time, with a value that no other message has.
    Stored { series: u32, time_ms: i64, sequence: u32 },
    /// The store refuses the row: it must become a dead letter.
    Refused,
    /// It cannot be decoded or has no payload: it must become a dead letter.
    Poison,
}

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    pub payload: Option<Vec<u8>>,
    pub timestamp_ms: i64,
    pub fate: Fate,
}

/// The broker.
#[derive(Debug, Default)]
pub struct Kafka {
    pub partitions: Vec<Vec<Message>>,
    pub committed: BTreeMap<i32, i64>,
    /// The ledger's group.
    pub ledger: BTreeMap<i32, Written>,
}

impl Kafka {
    pub fn new(partitions: usize) -> Self {
        Self { partitions: vec![Vec::new(); partitions], ..Self::default() }
    }

    pub fn message(&self, partition: i32, offset: i64) -> Option<&Message> {
        self.partitions.get(usize::try_from(partition).ok()?)?.get(usize::try_from(offset).ok()?)
    }

    /// Every message with its partition and offset.
    pub fn messages(&self) -> impl Iterator<Item = (i32, i64, &Message)> {
        self.partitions.iter().enumerate().flat_map(|(partition, messages)| {
            messages.iter().enumerate().map(move |(offset, message)| {
                (i32::try_from(partition).unwrap(), i64::try_from(offset).unwrap(), message)
            })
        })
    }
}

/// A metric message as a producer writes it.
pub fn metric_message(series: u32, time_ms: i64, sequence: u32, refused: bool) -> Vec<u8> {
    let tenant = if refused { "refused" } else { "tenant" };
    format!(
        r#"{{"metric":{{"name":"metric-{series}","dimensions":{{"hostname":"host-{series}"}},"timestamp":{time_ms},"value":{sequence}}},"meta":{{"tenantId":"{tenant}","region":"region"}},"creation_time":1}}"#
    )
    .into_bytes()
}
