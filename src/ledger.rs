//! What an instance tells Kafka about its own deliveries, and what follows from reading it again. Pure.
//!
//! Every instance keeps a second consumer group, `<group>.delivered.<instance>`: its offsets are what is *delivered*,
//! so that any Kafka tool shows what is not as lag; its metadata says which log holds the rest. It is committed before
//! the group's own offset. A disk that was lost, replaced or rolled back is seen by comparing it with the log.

use serde::{Deserialize, Serialize};
use wal::{Attestation, Incarnation, LogId, Position};

use crate::offset_ranges::OffsetRange;
use crate::topic_identity::TopicIdentity;

/// Version of the metadata.
const VERSION: u32 = 1;

/// The ledger group of an instance.
#[must_use]
pub fn group_of(group: &str, instance: &str) -> String {
    format!("{group}.delivered.{instance}")
}

/// The instance whose ledger a group is, if it is one that belongs to `group`.
#[must_use]
pub fn instance_of<'a>(group: &str, ledger_group: &'a str) -> Option<&'a str> {
    ledger_group.strip_prefix(group)?.strip_prefix(".delivered.")
}

/// What is committed with the delivered offset of one partition, as JSON of less than 300 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Version.
    pub v: u32,
    /// Id of the Kafka cluster; empty if it has none.
    pub cluster: String,
    /// Id of the topic; empty if the broker does not tell it.
    pub topic: String,
    /// Id of the log.
    pub log: String,
    /// How often the log had been opened.
    pub incarnation: u64,
    /// Everything before this position was durable in it.
    pub durable: u64,
    /// Next offset to take: everything from the committed offset up to here is owed.
    pub next: i64,
    /// When it was written, milliseconds since the epoch.
    pub at_ms: i64,
    /// The instance that took over what was owed, if one did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub taken_over_by: String,
}

impl Entry {
    /// The entry as metadata of a commit.
    #[must_use]
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads metadata; `None` for anything that is no entry of a known version.
    #[must_use]
    pub fn decode(metadata: &str) -> Option<Self> {
        serde_json::from_str::<Self>(metadata).ok().filter(|entry| entry.v <= VERSION)
    }
}

/// Whose log it is and where it stands: the part of an entry that is the same for all partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The topic.
    pub topic: TopicIdentity,
    /// Id of our log.
    pub log: LogId,
    /// Its present opening.
    pub incarnation: Incarnation,
}

impl Witness {
    /// The entry of a partition.
    #[must_use]
    pub fn entry(&self, durable: Position, next: i64, at_ms: i64) -> Entry {
        Entry {
            v: VERSION,
            cluster: self.topic.cluster.clone(),
            topic: self.topic.topic.clone(),
            log: self.log.to_string(),
            incarnation: self.incarnation.get(),
            durable: durable.get(),
            next,
            at_ms,
            taken_over_by: String::new(),
        }
    }
}

/// What comparing the ledger with the log at start has shown for a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The log has everything.
    Intact,
    /// The ledger is about another log: this one's disk was lost or replaced.
    LogReplaced,
    /// The ledger remembers more than the log has: an older copy was put back, or the disk forgot.
    LogRolledBack,
    /// The ledger is about another topic of this name: nothing of it can be fetched any more.
    TopicRecreated,
}

/// Compares what the ledger says of a partition with the log as it was opened. `attested` is the log's own answer about
/// the entry's incarnation and durable position, `log_next` the next offset that it knows.
#[must_use]
pub fn compare(
    entry: &Entry,
    ours: &Witness,
    attested: &Attestation,
    log_next: Option<i64>,
) -> Finding {
    if is_of_another_topic(entry, ours) {
        return Finding::TopicRecreated;
    }
    if entry.log != ours.log.to_string() {
        return Finding::LogReplaced;
    }
    // The present opening has told Kafka nothing yet: an entry of it is from an opening that this directory forgot.
    let forgotten = entry.incarnation >= ours.incarnation.get();
    let behind = log_next.is_none_or(|log_next| log_next < entry.next);
    if forgotten || behind || *attested != Attestation::Intact {
        return Finding::LogRolledBack;
    }
    Finding::Intact
}

/// Whether an entry is about another topic of the same name, in which its offsets mean nothing.
#[must_use]
pub fn is_of_another_topic(entry: &Entry, ours: &Witness) -> bool {
    let theirs = TopicIdentity { cluster: entry.cluster.clone(), topic: entry.topic.clone() };
    theirs.differs(&ours.topic)
}

/// What a partition owes by its ledger.
#[must_use]
pub fn owed(partition: i32, delivered: i64, entry: &Entry) -> Option<OffsetRange> {
    (delivered < entry.next).then_some(OffsetRange { partition, from: delivered, to: entry.next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Witness {
        Witness {
            topic: TopicIdentity { cluster: "c".to_owned(), topic: "t".to_owned() },
            log: LogId::new([7; 16]),
            incarnation: Incarnation::new(5),
        }
    }

    fn entry() -> Entry {
        Witness { incarnation: Incarnation::new(4), ..ours() }.entry(Position::new(100), 50, 1)
    }

    fn found(entry: &Entry) -> Finding {
        compare(entry, &ours(), &Attestation::Intact, Some(50))
    }

    #[test]
    fn a_log_that_has_what_the_ledger_remembers_is_intact() {
        assert_eq!(found(&entry()), Finding::Intact);
        // A broker that tells no ids changes nothing.
        assert_eq!(found(&Entry { topic: String::new(), ..entry() }), Finding::Intact);
    }

    #[test]
    fn another_log_means_that_ours_was_lost() {
        let other = LogId::new([8; 16]).to_string();
        assert_eq!(found(&Entry { log: other, ..entry() }), Finding::LogReplaced);
    }

    #[test]
    fn a_log_that_knows_less_than_the_ledger_was_rolled_back() {
        let missing = Attestation::Missing(Position::new(60)..Position::new(100));
        assert_eq!(compare(&entry(), &ours(), &missing, Some(50)), Finding::LogRolledBack);
        assert_eq!(
            compare(&entry(), &ours(), &Attestation::Intact, Some(49)),
            Finding::LogRolledBack
        );
        assert_eq!(compare(&entry(), &ours(), &Attestation::Intact, None), Finding::LogRolledBack);
        assert_eq!(found(&Entry { incarnation: 5, ..entry() }), Finding::LogRolledBack);
    }

    #[test]
    fn a_topic_of_the_same_name_is_another_topic() {
        assert_eq!(found(&Entry { topic: "u".to_owned(), ..entry() }), Finding::TopicRecreated);
        assert_eq!(found(&Entry { cluster: "d".to_owned(), ..entry() }), Finding::TopicRecreated);
    }

    #[test]
    fn the_metadata_is_small_and_comes_back() {
        let topic = TopicIdentity { cluster: "x".repeat(22), topic: "y".repeat(22) };
        let entry = Witness { topic, ..ours() }.entry(Position::new(u64::MAX), i64::MAX, i64::MAX);
        let text = entry.encode();
        assert!(text.len() < 300, "{}: {text}", text.len());
        assert_eq!(Entry::decode(&text), Some(entry));
        assert_eq!(Entry::decode(""), None);
        assert_eq!(Entry::decode("{\"v\":2}"), None);
    }

    #[test]
    fn groups_are_named_after_their_instance() {
        assert_eq!(group_of("1_metrics", "edge-7"), "1_metrics.delivered.edge-7");
        assert_eq!(instance_of("1_metrics", "1_metrics.delivered.edge-7"), Some("edge-7"));
        assert_eq!(instance_of("1_metrics", "1_metrics"), None);
    }
}
