//! A Kafka that fits in a page: a topic, the group that consumes it, and one ledger per instance.

use std::collections::BTreeMap;

use monasca_persister::keeper::Written;

use crate::group::Group;

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

/// The messages of a partition, by offset.
#[derive(Debug, Default)]
pub struct Partition {
    /// Messages before it are not there any more.
    pub low: i64,
    messages: Vec<Message>,
}

impl Partition {
    pub fn push(&mut self, message: Message) {
        self.messages.push(message);
    }

    /// Offset of the next message.
    pub fn end(&self) -> i64 {
        i64::try_from(self.messages.len()).unwrap()
    }

    pub fn message(&self, offset: i64) -> Option<&Message> {
        if offset < self.low {
            return None;
        }
        self.messages.get(usize::try_from(offset).ok()?)
    }
}

/// A topic: one that is deleted and created again has another id.
#[derive(Debug)]
pub struct Topic {
    pub id: String,
    pub partitions: Vec<Partition>,
}

impl Topic {
    pub fn message(&self, partition: i32, offset: i64) -> Option<&Message> {
        self.partitions.get(usize::try_from(partition).ok()?)?.message(offset)
    }

    /// Partitions with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (i32, &Partition)> {
        (0..).zip(&self.partitions)
    }

    /// Every message with its partition and offset.
    pub fn messages(&self) -> impl Iterator<Item = (i32, i64, &Message)> {
        self.numbered().flat_map(|(number, partition)| {
            (partition.low..partition.end())
                .filter_map(move |offset| Some((number, offset, partition.message(offset)?)))
        })
    }
}

/// The brokers.
#[derive(Debug)]
pub struct Kafka {
    pub topic: Topic,
    pub group: Group,
    /// The group of each instance's ledger: whoever knows its name may write it, member or not.
    pub ledgers: Vec<BTreeMap<i32, Written>>,
}

impl Kafka {
    pub fn new(partitions: usize, instances: usize) -> Self {
        let partitions: Vec<Partition> =
            std::iter::repeat_with(Partition::default).take(partitions).collect();
        Self {
            group: Group::new(i32::try_from(partitions.len()).unwrap()),
            topic: Topic { id: "topic-1".to_owned(), partitions },
            ledgers: vec![BTreeMap::new(); instances],
        }
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
