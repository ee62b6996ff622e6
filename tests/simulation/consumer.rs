//! The consumer of a process, as `src/kafka.rs` is one: polls, rebalances, commits.

use monasca_persister::ingest::{Effect, Event, Start};
use monasca_persister::offsets::{Committable, GroupOffset};

use crate::group::{MemberId, Notice, Refused};
use crate::mutants::Bug;
use crate::process::{Died, Process, envelope};
use crate::surroundings::Surroundings;

/// A commit on its way: in the name of whom, in which generation.
#[derive(Debug)]
pub struct Commit {
    member: MemberId,
    generation: u64,
    offsets: Vec<(i32, i64)>,
}

impl Process {
    /// Becomes a member of the group.
    pub fn join(&mut self, at: &mut Surroundings) {
        self.member = Some(at.kafka.group.join(self.instance));
    }

    /// Callbacks of a poll: what the group wants, or that it has lost patience with this process, which may notice late.
    pub fn heed(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let Some(member) = self.member else { return Ok(()) };
        if !at.kafka.group.is_member(member) {
            if at.dice.one_in(6) {
                self.lose(at);
            }
            return Ok(());
        }
        while let Some(notice) = at.kafka.group.next_notice(member) {
            match notice {
                Notice::Revoke(partitions) => {
                    at.tell(|| format!("{}: asked to give back {partitions:?}", self.instance));
                    self.settle(&partitions, at)?;
                    self.forget(&partitions, at);
                    for partition in partitions {
                        at.kafka.group.gave_back(member, partition);
                    }
                }
                Notice::Assign(partitions) => {
                    // One answer for all of them.
                    let told = !at.dice.one_in(40);
                    at.tally.committed_unknown += u64::from(!told);
                    for partition in partitions {
                        let committed = at.kafka.group.committed().get(&partition).copied();
                        if !told {
                            at.kafka.group.withhold(member, partition);
                        }
                        self.assign(partition, committed.filter(|_| told), at);
                    }
                }
            }
        }
        Ok(())
    }

    /// The partitions are somebody else's already: nothing may be committed. Joins again.
    fn lose(&mut self, at: &mut Surroundings) {
        let partitions: Vec<i32> = self.fetch.keys().copied().collect();
        let kept = match self.bug {
            Bug::RetryRefusedCommit => self.intake.committable_of(&partitions),
            _ => Vec::new(),
        };
        at.tally.partitions_lost += partitions.len() as u64;
        at.tell(|| format!("{}: lost {partitions:?}", self.instance));
        self.forget(&partitions, at);
        self.join(at);
        if !kept.is_empty() {
            self.send(&kept, at);
        }
    }

    fn forget(&mut self, partitions: &[i32], at: &Surroundings) {
        for partition in partitions {
            self.fetch.remove(partition);
            if self.bug != Bug::RememberGonePartition {
                let event = Event::Gone { partition: *partition };
                self.intake.on(event, at.now, &mut Vec::new());
            }
        }
    }

    /// Both last acts for partitions that are given away.
    fn settle(&mut self, partitions: &[i32], at: &mut Surroundings) -> Result<(), Died> {
        let testimony = self.intake.settle(partitions, at.now).map_err(Died::of)?;
        self.testify(&testimony, at.now);
        self.keep_ledger(at)?;
        let offsets = self.intake.committable_of(partitions);
        self.send(&offsets, at);
        // It waits for the answer, and earlier ones come before it.
        while self.answer_commit(at) {}
        Ok(())
    }

    fn assign(&mut self, partition: i32, committed: Option<i64>, at: &mut Surroundings) {
        let mut effects = Vec::new();
        // This Kafka never loses an end: no leader of it is another's successor.
        let known = committed.map(|next| GroupOffset { next, leader_epoch: -1 });
        let event = Event::Assigned { partition, committed: known };
        self.intake.on(event, at.now, &mut effects);
        at.tell(|| {
            format!("{}: given {partition}, committed {committed:?}: {effects:?}", self.instance)
        });
        for effect in &effects {
            if let Effect::Begin { partition, start } = effect {
                let offset = match start {
                    Start::At(offset) => *offset,
                    Start::Beginning => at.low_offset(*partition),
                    Start::End => panic!("the simulation begins with the oldest message"),
                };
                self.fetch.insert(*partition, offset);
            }
        }
        self.apply(effects, at);
    }

    fn apply(&mut self, effects: Vec<Effect>, at: &Surroundings) {
        for effect in effects {
            match effect {
                Effect::Testify(testimony) => self.testify(&testimony, at.now),
                Effect::Commit(offsets) => self.send(&offsets, at),
                Effect::Pause(_) => self.paused = true,
                Effect::Resume(_) => self.paused = false,
                // Its topic keeps what it has.
                _ => {}
            }
        }
    }

    fn send(&mut self, offsets: &[Committable], at: &Surroundings) {
        let Some(member) = self.member else { return };
        let past = i64::from(self.bug == Bug::CommitOnePast);
        let offsets: Vec<(i32, i64)> =
            offsets.iter().map(|offset| (offset.partition(), offset.next() + past)).collect();
        if !offsets.is_empty() {
            let generation = at.kafka.group.generation();
            self.commits.push_back(Commit { member, generation, offsets });
        }
    }

    /// Kafka answers the oldest commit, or it is lost on the way back or there. False when there is none.
    pub fn answer_commit(&mut self, at: &mut Surroundings) -> bool {
        // One connection: in order.
        let Some(Commit { member, generation, offsets }) = self.commits.pop_front() else {
            return false;
        };
        if at.dice.one_in(10) {
            at.tally.commits_lost += 1;
            return true;
        }
        if at.kafka.group.admits(member, generation) == Err(Refused) {
            at.tally.commits_refused += 1;
            // Some clients hear of it at their next heartbeat only.
            if self.member == Some(member) && !at.kafka.group.is_member(member) && at.dice.one_in(2)
            {
                self.lose(at);
            }
            return true;
        }
        let answered = !at.dice.one_in(10);
        at.tally.commits_lost += u64::from(!answered);
        for (partition, next) in offsets {
            // Some other error, for one of the partitions only.
            if at.dice.one_in(20) {
                continue;
            }
            at.tell(|| {
                format!("{}: committed {partition}/{next}, answered {answered}", self.instance)
            });
            at.kafka.group.commit(member, partition, next);
            if answered {
                self.intake.on(Event::Committed { partition, next }, at.now, &mut Vec::new());
            }
        }
        true
    }

    /// The consumer gets messages of one partition; sometimes Kafka sends old ones again.
    pub fn poll(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        if at.dice.one_in(2) {
            self.heed(at)?;
        }
        if self.paused || self.intake.is_holding() || self.fetch.is_empty() {
            return self.turn(at);
        }
        let chosen = at.dice.index(self.fetch.len());
        let Some((partition, mut offset)) =
            self.fetch.iter().nth(chosen).map(|(partition, offset)| (*partition, *offset))
        else {
            return self.turn(at);
        };
        if at.dice.one_in(20) && offset > at.low_offset(partition) {
            offset -= 1;
            at.tally.repeated += 1;
        }
        let mut effects = Vec::new();
        for _ in 0..=at.dice.below(30) {
            let Some(message) = at.kafka.topic.message(partition, offset) else { break };
            let envelope = envelope(partition, offset, message, at.now_ms());
            self.intake.take(&envelope, at.now, &mut effects).map_err(Died::of)?;
            offset += 1;
        }
        let fetch = self.fetch.entry(partition).or_insert(0);
        *fetch = (*fetch).max(offset);
        self.apply(effects, at);
        if at.dice.one_in(4) {
            // A callback in the middle of a turn: what was taken is in memory only.
            self.heed(at)?;
        }
        if at.dice.one_in(8) {
            // A turn that ends before its append: the process may die with these in memory only.
            return Ok(());
        }
        self.turn(at)
    }

    /// The end of a turn of the polling loop.
    pub fn turn(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        if self.bug == Bug::CommitBeforeDurable && at.dice.one_in(4) {
            self.intake.mutant_commit_before_durable();
        }
        let mut effects = Vec::new();
        self.intake.append(at.now, &mut effects).map_err(Died::of)?;
        self.intake.tick(at.now, &mut effects);
        self.apply(effects, at);
        Ok(())
    }

    /// The last acts as a member.
    pub fn leave(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let partitions: Vec<i32> = self.fetch.keys().copied().collect();
        self.settle(&partitions, at)?;
        // A static member does not say goodbye; the group finds out by itself.
        if let Some(member) = self.member
            && at.dice.one_in(2)
        {
            at.kafka.group.remove(member);
        }
        Ok(())
    }
}
