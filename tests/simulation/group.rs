//! The consumer group as its coordinator sees it: members, a generation, who was given which partition, and the
//! committed offsets.
//!
//! Rebalances are cooperative: a partition that is to move is asked back first, and given to somebody else in the next
//! one. An offset is taken from a member of the present generation only. As a real coordinator it does not ask whose
//! the partition is; two oracles do:
//! - G1: nobody commits an offset of a partition that was given to another member.
//! - G2: a committed offset never goes back, unless Kafka did not tell it when the partition was given out,
//!   the topic is another one, its partition has lost its end, or the member has gone on with it only now.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::dice::Dice;

/// A member: a process gets a new one each time it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId(u64);

/// What a member is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Give these partitions back.
    Revoke(Vec<i32>),
    /// Consume these partitions too.
    Assign(Vec<i32>),
}

/// The coordinator does not know the member, or not in this generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// What a rebalance did.
#[derive(Debug, Default)]
pub struct Moves {
    /// Partitions that their owner is to give back.
    pub asked_back: u64,
    /// Partitions that were given to another instance than before.
    pub changed_hands: u64,
}

#[derive(Debug)]
struct Member {
    /// Static membership: a process that comes back in time gets what its predecessor had.
    instance: usize,
    notices: VecDeque<Notice>,
    /// Partitions whose committed offset Kafka did not tell it.
    untold: BTreeSet<i32>,
}

/// The group.
#[derive(Debug)]
pub struct Group {
    partitions: i32,
    generation: u64,
    next_member: u64,
    members: BTreeMap<MemberId, Member>,
    /// To whom each partition was given last.
    owners: BTreeMap<i32, MemberId>,
    /// And to which instance.
    homes: BTreeMap<i32, usize>,
    /// Partitions that their owner has given back since the last rebalance.
    given_back: BTreeSet<i32>,
    committed: BTreeMap<i32, Offset>,
}

/// A committed offset, and its metadata: the topic that whoever committed it consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offset {
    pub next: i64,
    /// Epoch of the leader that the message before it came from.
    pub leader_epoch: i32,
    pub topic: String,
}

impl Group {
    pub fn new(partitions: i32) -> Self {
        Self {
            partitions,
            generation: 0,
            next_member: 0,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            homes: BTreeMap::new(),
            given_back: BTreeSet::new(),
            committed: BTreeMap::new(),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn committed(&self) -> &BTreeMap<i32, Offset> {
        &self.committed
    }

    /// A process of this instance joins. Its predecessor, if it still counts as alive, is fenced off.
    pub fn join(&mut self, instance: usize) -> MemberId {
        self.next_member += 1;
        let id = MemberId(self.next_member);
        let mut member = Member { instance, notices: VecDeque::new(), untold: BTreeSet::new() };
        let before = self.members.iter().find(|(_, member)| member.instance == instance);
        if let Some(before) = before.map(|(before, _)| *before)
            && let Some(fenced) = self.members.remove(&before)
        {
            let asked_back: BTreeSet<i32> = fenced
                .notices
                .iter()
                .flat_map(|notice| match notice {
                    Notice::Revoke(partitions) => partitions.clone(),
                    Notice::Assign(_) => Vec::new(),
                })
                .collect();
            let mut inherited = Vec::new();
            for (partition, owner) in &mut self.owners {
                let stays = !asked_back.contains(partition) && !self.given_back.contains(partition);
                if *owner == before && stays {
                    *owner = id;
                    inherited.push(*partition);
                }
            }
            if !inherited.is_empty() {
                member.notices.push_back(Notice::Assign(inherited));
            }
        }
        self.members.insert(id, member);
        id
    }

    /// The member is gone: it said so, or was silent for too long.
    pub fn remove(&mut self, member: MemberId) {
        self.members.remove(&member);
    }

    pub fn is_member(&self, member: MemberId) -> bool {
        self.members.contains_key(&member)
    }

    /// Members with their instances.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, usize)> {
        self.members.iter().map(|(id, member)| (*id, member.instance))
    }

    pub fn next_notice(&mut self, member: MemberId) -> Option<Notice> {
        self.members.get_mut(&member)?.notices.pop_front()
    }

    /// The member has carried out what it was told about this partition.
    pub fn gave_back(&mut self, member: MemberId, partition: i32) {
        if self.owners.get(&partition) == Some(&member) {
            self.given_back.insert(partition);
        }
    }

    fn owner(&self, partition: i32) -> Option<MemberId> {
        let owner = self.owners.get(&partition).copied()?;
        (self.is_member(owner) && !self.given_back.contains(&partition)).then_some(owner)
    }

    /// Whether some partition is nobody's.
    pub fn is_uneven(&self) -> bool {
        !self.members.is_empty() && (0..self.partitions).any(|p| self.owner(p).is_none())
    }

    /// A rebalance, if all members take part: nobody does who stands still or has not done what it was told.
    pub fn rebalance(
        &mut self,
        is_awake: impl Fn(usize) -> bool,
        sticky: bool,
        dice: &mut Dice,
    ) -> Option<Moves> {
        let ready = |member: &Member| is_awake(member.instance) && member.notices.is_empty();
        if self.members.is_empty() || !self.members.values().all(ready) {
            return None;
        }
        self.generation += 1;
        let ids: Vec<MemberId> = self.members.keys().copied().collect();
        let mut moves = Moves::default();
        let mut revoked: BTreeMap<MemberId, Vec<i32>> = BTreeMap::new();
        let mut assigned: BTreeMap<MemberId, Vec<i32>> = BTreeMap::new();
        for partition in 0..self.partitions {
            let owner = self.owner(partition);
            let target = ids[dice.index(ids.len())];
            match owner {
                Some(owner) if sticky || owner == target || dice.one_in(2) => {}
                Some(owner) => {
                    moves.asked_back += 1;
                    revoked.entry(owner).or_default().push(partition);
                }
                None => {
                    self.given_back.remove(&partition);
                    self.owners.insert(partition, target);
                    let home = self.members.get(&target)?.instance;
                    let before = self.homes.insert(partition, home);
                    moves.changed_hands += u64::from(before.is_some_and(|before| before != home));
                    assigned.entry(target).or_default().push(partition);
                }
            }
        }
        for (id, partitions) in revoked {
            self.members.get_mut(&id)?.notices.push_back(Notice::Revoke(partitions));
        }
        for (id, partitions) in assigned {
            let member = self.members.get_mut(&id)?;
            partitions.iter().for_each(|partition| {
                member.untold.remove(partition);
            });
            member.notices.push_back(Notice::Assign(partitions));
        }
        Some(moves)
    }

    /// The topic was deleted, and with it what was committed.
    pub fn forget_committed(&mut self) {
        self.committed.clear();
    }

    /// Kafka does not tell the member what is committed.
    pub fn withhold(&mut self, member: MemberId, partition: i32) {
        if let Some(member) = self.members.get_mut(&member) {
            member.untold.insert(partition);
        }
    }

    /// Whether it would take a commit.
    pub fn admits(&self, member: MemberId, generation: u64) -> Result<(), Refused> {
        if self.is_member(member) && generation == self.generation { Ok(()) } else { Err(Refused) }
    }

    /// A commit that it admits. What was committed `before` of the same history may not be taken back.
    pub fn commit(&mut self, member: MemberId, partition: i32, offset: Offset, before: i64) {
        let next = offset.next;
        let owner = self.owners.get(&partition).copied();
        assert!(
            owner == Some(member),
            "G1: {member:?} commits {next} of partition {partition}, which was given to {owner:?}"
        );
        self.committed.insert(partition, offset);
        let untold =
            self.members.get(&member).is_some_and(|member| member.untold.contains(&partition));
        assert!(
            next >= before || untold,
            "G2: the committed offset of partition {partition} goes back from {before} to {next}"
        );
    }
}
