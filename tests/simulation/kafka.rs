//! A Kafka that fits in a page: a topic, the group that consumes it, and one ledger per instance.

use std::collections::BTreeMap;

use monasca_persister::keeper::Written;

use crate::group::{Group, MemberId, Offset};

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
    /// Each with the epoch of the leader that took it.
    messages: Vec<(i32, Message)>,
    /// Epoch of the present leader.
    leader_epoch: i32,
    /// Messages that were lost with the partition's end, with the offsets that they had. Of those that nobody had committed
    /// nobody need know.
    pub torn: Vec<Torn>,
}

/// A message that was lost with its partition's end.
#[derive(Debug)]
pub struct Torn {
    pub offset: i64,
    pub was_committed: bool,
    pub message: Message,
}

impl Partition {
    pub fn push(&mut self, message: Message) {
        self.messages.push((self.leader_epoch, message));
    }

    /// Epoch of the leader that took the message.
    pub fn epoch(&self, offset: i64) -> Option<i32> {
        let offset = usize::try_from(offset).ok().filter(|_| offset >= self.low)?;
        self.messages.get(offset).map(|(epoch, _)| *epoch)
    }

    /// The offset after the last one that a leader of this epoch or an earlier one took.
    pub fn end_of_epoch(&self, epoch: i32) -> i64 {
        i64::try_from(self.messages.partition_point(|(of, _)| *of <= epoch)).unwrap()
    }

    /// The leader is lost, and another one has less.
    fn lose_end(&mut self, end: i64, committed: i64) {
        let lost = self.messages.split_off(usize::try_from(end).unwrap());
        let torn = (end..).zip(lost).map(|(offset, (_, message))| Torn {
            offset,
            was_committed: offset < committed,
            message,
        });
        self.torn.extend(torn);
        self.leader_epoch += 1;
    }

    /// Offset of the next message.
    pub fn end(&self) -> i64 {
        i64::try_from(self.messages.len()).unwrap()
    }

    /// The oldest offset, and the one after the last.
    pub fn bounds(&self) -> (i64, i64) {
        (self.low, self.end())
    }

    pub fn message(&self, offset: i64) -> Option<&Message> {
        if offset < self.low {
            return None;
        }
        self.messages.get(usize::try_from(offset).ok()?).map(|(_, message)| message)
    }
}

/// A topic: one that is deleted and created again has another id.
#[derive(Debug)]
pub struct Topic {
    pub id: String,
    pub partitions: Vec<Partition>,
    /// The next offset of each partition that somebody who consumed this topic has committed last.
    pub claims: BTreeMap<i32, i64>,
}

impl Topic {
    fn new(number: usize, partitions: usize) -> Self {
        let partitions = std::iter::repeat_with(Partition::default).take(partitions).collect();
        Self { id: format!("topic-{number}"), partitions, claims: BTreeMap::new() }
    }

    pub fn message(&self, partition: i32, offset: i64) -> Option<&Message> {
        self.partitions.get(usize::try_from(partition).ok()?)?.message(offset)
    }

    /// Partitions with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (i32, &Partition)> {
        (0..).zip(&self.partitions)
    }

    /// Every message with its partition and offset, those before the oldest that is there included.
    pub fn messages(&self) -> impl Iterator<Item = (i32, i64, &Message)> {
        self.numbered().flat_map(|(number, partition)| {
            let messages = (0..).zip(&partition.messages);
            messages.map(move |(offset, (_, message))| (number, offset, message))
        })
    }

    /// Messages that were lost with the end of their partition.
    pub fn torn(&self) -> impl Iterator<Item = (i32, &Torn)> {
        self.numbered()
            .flat_map(|(number, partition)| partition.torn.iter().map(move |torn| (number, torn)))
    }

    /// Messages that had this offset and are not there any more.
    pub fn gone(&self, partition: i32, offset: i64) -> impl Iterator<Item = &Message> {
        let partition = &self.partitions[usize::try_from(partition).unwrap()];
        let torn = partition.torn.iter().filter(move |torn| torn.offset == offset);
        let old = (offset < partition.low)
            .then(|| &partition.messages[usize::try_from(offset).unwrap()].1);
        torn.map(|torn| &torn.message).chain(old)
    }
}

/// The brokers.
#[derive(Debug)]
pub struct Kafka {
    pub topic: Topic,
    /// Topics of its name that were deleted: what was taken of them is kept.
    pub former: Vec<Topic>,
    pub group: Group,
    /// The group of each instance's ledger: whoever knows its name may write it, member or not.
    pub ledgers: Vec<BTreeMap<i32, Written>>,
}

impl Kafka {
    pub fn new(partitions: usize, instances: usize) -> Self {
        Self {
            group: Group::new(i32::try_from(partitions).unwrap()),
            topic: Topic::new(1, partitions),
            former: Vec::new(),
            ledgers: vec![BTreeMap::new(); instances],
        }
    }

    /// The topic is deleted and created again.
    pub fn recreate(&mut self) {
        let new = Topic::new(self.former.len() + 2, self.topic.partitions.len());
        self.former.push(std::mem::replace(&mut self.topic, new));
    }

    /// The topic that is, and those that were.
    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.former.iter().chain(std::iter::once(&self.topic))
    }

    /// Kafka takes an offset that a member of the group commits. Only what it says of the topic that is there counts for
    /// that one, and what it said of others before they were deleted for those; and so with the history of a partition.
    pub fn commit(&mut self, member: MemberId, partition: i32, offset: Offset) {
        let (is_current, next) = (self.is_current(partition, &offset), offset.next);
        let before = self.group.committed().get(&partition);
        let before = before
            .filter(|before| before.topic == offset.topic && self.is_current(partition, before))
            .map_or(0, |before| before.next);
        self.group.commit(member, partition, offset, before);
        if is_current {
            self.topic.claims.insert(partition, next);
        }
    }

    /// Whether an offset is about the history that the partition has.
    pub fn is_current(&self, partition: i32, offset: &Offset) -> bool {
        let partition = &self.topic.partitions[usize::try_from(partition).unwrap()];
        let epoch = partition.messages.get(usize::try_from(offset.next - 1).unwrap_or(usize::MAX));
        offset.topic == self.topic.id
            && offset.next <= partition.end()
            && (offset.leader_epoch < 0
                || epoch.is_none_or(|(epoch, _)| *epoch == offset.leader_epoch))
    }

    /// Partitions of which the group has consumed nothing.
    pub fn unconsumed(&self) -> Vec<i32> {
        let is_unconsumed = |(number, partition): &(i32, &Partition)| {
            let committed = self.group.committed().get(number);
            let ours = committed.filter(|committed| committed.topic == self.topic.id);
            ours.is_none_or(|ours| self.is_emptied(partition, ours.next))
        };
        self.topic.numbered().filter(is_unconsumed).map(|(number, _)| number).collect()
    }

    /// Whether retention took all of it, from before `next` was committed: by one who consumes no more, after the next one
    /// was given the partition without any offset.
    pub fn is_emptied(&self, partition: &Partition, next: i64) -> bool {
        next < partition.low && partition.low == partition.end()
    }

    /// Partitions that have less than the group has consumed.
    pub fn behind_their_offsets(&self) -> Vec<usize> {
        let is_behind = |(number, partition): (i32, &Partition)| {
            let committed = self.group.committed().get(&number)?;
            let is_ours = committed.topic == self.topic.id && committed.next > partition.end();
            is_ours.then_some(usize::try_from(number).unwrap())
        };
        self.topic.numbered().filter_map(is_behind).collect()
    }

    /// Retention removes messages of a partition.
    pub fn retain(&mut self, partition: i32, from: i64) {
        let partition = &mut self.topic.partitions[usize::try_from(partition).unwrap()];
        partition.low = partition.low.max(from.min(partition.end()));
    }

    /// A partition loses its end.
    pub fn lose_end(&mut self, number: i32, end: i64) {
        let Topic { partitions, claims, .. } = &mut self.topic;
        let claim = claims.entry(number).or_insert(0);
        let partition = &mut partitions[usize::try_from(number).unwrap()];
        partition.lose_end(end.max(partition.low), *claim);
        *claim = (*claim).min(partition.end());
    }
}

/// The value meta of a message; most have none.
pub fn value_meta(sequence: u32) -> String {
    if sequence.is_multiple_of(3) { format!(r#"{{"n":"{sequence}"}}"#) } else { String::new() }
}

/// A metric message as a producer writes it.
pub fn metric_message(series: u32, time_ms: i64, sequence: u32, refused: bool) -> Vec<u8> {
    let tenant = if refused { "refused" } else { "tenant" };
    let meta = value_meta(sequence);
    let meta = if meta.is_empty() { meta } else { format!(r#","value_meta":{meta}"#) };
    format!(
        r#"{{"metric":{{"name":"metric-{series}","dimensions":{{"hostname":"host-{series}"}},"timestamp":{time_ms},"value":{sequence}{meta}}},"meta":{{"tenantId":"{tenant}","region":"region"}},"creation_time":1}}"#
    )
    .into_bytes()
}
