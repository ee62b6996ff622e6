//! The consumer of a process, as `src/kafka.rs` is one: polls, rebalances, commits.

use monasca_persister::ingest::{Effect, Event, Start};
use monasca_persister::kafka_gap::{GapKind, KafkaGap};
use monasca_persister::offset_ranges::{OffsetRange, OffsetRanges};
use monasca_persister::offsets::{Committable, GroupOffset, ToldOffset};

use crate::group::{MemberId, Notice, Offset, Refused};
use crate::ledger_keeper::{ToLedger, identity};
use crate::mutants::Bug;
use crate::process::{Died, Process, envelope};
use crate::surroundings::Surroundings;

/// A commit on its way: in the name of whom, in which generation.
#[derive(Debug)]
pub struct Commit {
    member: MemberId,
    generation: u64,
    /// Partitions and their next offsets.
    offsets: Vec<(i32, Offset)>,
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
                    let id = at.kafka.topic.id.clone();
                    self.topic_is(&id, at)?;
                    // One answer for all of them.
                    let told = !at.dice.one_in(40);
                    at.tally.committed_unknown += u64::from(!told);
                    for partition in partitions {
                        let committed = at.kafka.group.committed().get(&partition).cloned();
                        if !told {
                            at.kafka.group.withhold(member, partition);
                        }
                        let told = committed.filter(|_| told).map(|offset| ToldOffset {
                            next: offset.next,
                            leader_epoch: offset.leader_epoch,
                            topic: match self.bug {
                                Bug::TrustForeignCommit => identity(""),
                                _ => identity(&offset.topic),
                            },
                        });
                        let committed = told.and_then(|told| self.intake.believed(told));
                        self.assign(partition, committed, at);
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
            self.begins.remove(partition);
            self.stopped.remove(partition);
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

    fn assign(&mut self, partition: i32, committed: Option<GroupOffset>, at: &mut Surroundings) {
        let mut effects = Vec::new();
        let event = Event::Assigned { partition, committed };
        self.intake.on(event, at.now, &mut effects);
        at.tell(|| {
            format!("{}: given {partition}, committed {committed:?}: {effects:?}", self.instance)
        });
        self.stopped.remove(&partition);
        effects.retain(|effect| match effect {
            Effect::Begin { partition, start } => {
                self.fetch_from(*start, *partition, at);
                false
            }
            _ => true,
        });
        self.apply(effects, at);
    }

    /// Consumption begins anew where the machine said.
    fn begin(&mut self, at: &mut Surroundings) {
        for (partition, start) in std::mem::take(&mut self.begins) {
            self.fetch_from(start, partition, at);
            self.stopped.remove(&partition);
            self.intake.on(Event::Begun { partition }, at.now, &mut Vec::new());
        }
    }

    /// What retention took is reported, exactly; what is gone after it was consumed is kept.
    fn went_on(&self, gap: KafkaGap, at: &mut Surroundings) {
        let KafkaGap { kind, partition, from, to, .. } = gap;
        at.tell(|| format!("{}: goes on behind {gap:?}", self.instance));
        match kind {
            GapKind::Retention => {
                at.tally.retention_gaps += 1;
                at.goes_on_behind_retention(partition, from);
                at.report(&self.intake.topic().topic, OffsetRange { partition, from, to });
            }
            GapKind::Truncated => {
                at.tally.truncated_gaps += 1;
                at.goes_on_behind_retention(partition, from);
                // It begins where the histories part, or earlier.
                let member = self.member.into_iter();
                member.for_each(|member| at.kafka.group.withhold(member, partition));
            }
            GapKind::Recreated => {}
        }
    }

    /// Gaps that the log remembers are told to everybody who looks: the process may have died before it could say so.
    pub fn tell_gaps(&self, at: &mut Surroundings) {
        let log = self.keeper.log_offsets();
        let of_another = log.gaps.iter().rposition(|gap| gap.kind == GapKind::Recreated);
        let retention = log.gaps.iter().skip(of_another.map_or(0, |last| last + 1));
        let topic = self.topic_of_log(at);
        for KafkaGap { partition, from, to, .. } in
            retention.filter(|gap| gap.kind == GapKind::Retention)
        {
            at.report(&topic, OffsetRange { partition: *partition, from: *from, to: *to });
        }
    }

    fn fetch_from(&mut self, start: Start, partition: i32, at: &mut Surroundings) {
        let offset = match start {
            Start::At(offset) => {
                if offset <= at.low_offset(partition) {
                    // Nothing is there any more to compare with.
                    at.goes_on_behind_retention(partition, offset);
                }
                offset
            }
            Start::Beginning => at.begins_at_oldest(partition),
            Start::End => panic!("the simulation begins with the oldest message"),
        };
        self.fetch.insert(partition, offset);
        self.fetched_epochs.remove(&partition);
    }

    fn apply(&mut self, effects: Vec<Effect>, at: &mut Surroundings) {
        for effect in effects {
            match effect {
                Effect::Begin { partition, start } => {
                    self.begins.insert(partition, start);
                }
                Effect::Hold(gap) => {
                    self.begins.remove(&gap.partition);
                    self.stopped.insert(gap.partition);
                }
                Effect::Rewind { partition, next } => {
                    let end = self.intake.log_end();
                    self.to_ledger.push_back(ToLedger::Rewind { partition, next, end });
                }
                Effect::GoneBack { partition, next } => {
                    self.to_ledger.push_back(ToLedger::GoneBack { partition, next });
                }
                Effect::Testify(testimony) => self.testify(&testimony, at.now),
                Effect::Commit(offsets) => self.send(&offsets, at),
                Effect::Pause(_) => self.paused = true,
                Effect::Resume(_) => self.paused = false,
                Effect::Note(gap) => self.went_on(gap, at),
                Effect::AwaitDurable(_) | Effect::NoteTopic => {}
            }
        }
    }

    fn send(&mut self, offsets: &[Committable], at: &Surroundings) {
        let Some(member) = self.member else { return };
        let past = i64::from(self.bug == Bug::CommitOnePast);
        let topic = match self.bug {
            Bug::LogPlusOneAfterRecreation => at.kafka.topic.id.clone(),
            _ => self.intake.topic().topic,
        };
        let of = |offset: &Committable| Offset {
            next: offset.next() + past,
            leader_epoch: offset.leader_epoch(),
            topic: topic.clone(),
        };
        let offsets: Vec<(i32, Offset)> =
            offsets.iter().map(|offset| (offset.partition(), of(offset))).collect();
        if !offsets.is_empty() {
            let generation = at.kafka.group.generation();
            self.commits.push_back(Commit { member, generation, offsets });
        }
    }

    /// The brokers say which topic they have.
    pub fn topic_is(&mut self, id: &str, at: &mut Surroundings) -> Result<(), Died> {
        if self.bug == Bug::LogPlusOneAfterRecreation {
            return Ok(());
        }
        let known = self.intake.topic();
        let mut effects = Vec::new();
        let topic = identity(id);
        let (now_ms, now) = (at.now_ms(), at.now);
        let owed = self.owed();
        self.intake.topic_is(topic.clone(), now_ms, now, &mut effects).map_err(Died::of)?;
        at.tally.recreations_noticed += u64::from(known.differs(&topic) && !effects.is_empty());
        self.gone_on(&known.topic, owed, &effects, at);
        self.apply(effects, at);
        Ok(())
    }

    /// The log goes on with another topic: what it owed of the old one is lost, and status says so.
    fn gone_on(&self, id: &str, owed: OffsetRanges, effects: &[Effect], at: &mut Surroundings) {
        if effects.contains(&Effect::NoteTopic) {
            at.tell(|| format!("{}: goes on with another topic: {effects:?}", self.instance));
            owed.iter().for_each(|range| at.report(id, range));
            // It begins at the beginning, whatever others have committed of the topic meanwhile.
            let assigned: Vec<i32> =
                self.intake.machine().progress().map(|(partition, _)| partition).collect();
            if let Some(member) = self.member {
                assigned.iter().for_each(|partition| at.kafka.group.withhold(member, *partition));
            }
        }
    }

    /// The ledger's thread asks for it now and then.
    pub fn look_at_topic(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let id = at.kafka.topic.id.clone();
        if self.bug != Bug::SettleWithForeign {
            self.keeper.topic_is(&identity(&id));
        }
        self.topic_is(&id, at)
    }

    /// Somebody accepts the gaps at which partitions stopped.
    pub fn accept(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let (id, owed) = (self.intake.topic().topic, self.owed());
        let mut effects = Vec::new();
        self.intake.part(Event::Accept, at.now, &mut effects).map_err(Died::of)?;
        at.tally.recreations_accepted += u64::from(effects.contains(&Effect::NoteTopic));
        self.gone_on(&id, owed, &effects, at);
        self.apply(effects, at);
        Ok(())
    }

    /// What a refused position means.
    fn look_for_gaps(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        for divergence in self.intake.take_diverged() {
            let partition = divergence.partition;
            let from = divergence.from.unwrap_or_else(|| at.low_offset(partition));
            let mut effects = Vec::new();
            let event = Event::Diverged { partition, from, at_ms: at.now_ms() };
            self.intake.part(event, at.now, &mut effects).map_err(Died::of)?;
            self.apply(effects, at);
        }
        if !std::mem::take(&mut self.refused) {
            return Ok(());
        }
        let id = at.kafka.topic.id.clone();
        self.topic_is(&id, at)?;
        let assigned: Vec<i32> =
            self.intake.machine().progress().map(|(partition, _)| partition).collect();
        for partition in assigned {
            let bounds = at.kafka.topic.partitions[usize::try_from(partition).unwrap()].bounds();
            let mut effects = Vec::new();
            let times = (at.now_ms(), at.now);
            let at_ms = at.now_ms();
            match (self.bug, self.fetch.get(&partition)) {
                (Bug::IgnoreRetention, Some(next)) if *next < bounds.0 => {
                    self.fetch.insert(partition, bounds.0);
                }
                (Bug::GoOnAtEnd, Some(next)) if *next > bounds.1 => {
                    let event = Event::Diverged { partition, from: bounds.1, at_ms };
                    self.intake.part(event, at.now, &mut effects).map_err(Died::of)?;
                }
                _ => self
                    .intake
                    .compare(partition, bounds, None, times, &mut effects)
                    .map_err(Died::of)?,
            }
            self.apply(effects, at);
        }
        Ok(())
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
        for (partition, offset) in offsets {
            let next = offset.next;
            // Some other error, for one of the partitions only.
            if at.dice.one_in(20) {
                continue;
            }
            at.tell(|| {
                format!("{}: committed {partition}/{next}, answered {answered}", self.instance)
            });
            at.tally.commits_stale += u64::from(offset.topic != at.kafka.topic.id);
            at.kafka.commit(member, partition, offset);
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
        if self.stopped.contains(&partition) {
            return self.turn(at);
        }
        let in_kafka = &at.kafka.topic.partitions[usize::try_from(partition).unwrap()];
        let (low, high) = in_kafka.bounds();
        // The client library asks where the epoch ends of which it fetched a message last.
        let epoch = self.fetched_epochs.get(&partition);
        if offset < low
            || offset > high
            || epoch.is_some_and(|epoch| in_kafka.end_of_epoch(*epoch) < offset)
        {
            self.refused = true;
            return self.turn(at);
        }
        if at.dice.one_in(20) && offset > at.low_offset(partition) {
            offset -= 1;
            at.tally.repeated += 1;
        }
        let mut effects = Vec::new();
        for _ in 0..=at.dice.below(30) {
            let Some(message) = at.kafka.topic.message(partition, offset) else { break };
            let in_kafka = &at.kafka.topic.partitions[usize::try_from(partition).unwrap()];
            let mut epoch = in_kafka.epoch(offset).unwrap_or(-1);
            self.fetched_epochs.insert(partition, epoch);
            if self.bug == Bug::IgnoreLeaderEpoch {
                epoch = -1;
            }
            let envelope = envelope((partition, offset), epoch, message, at.now_ms());
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
        self.look_for_gaps(at)?;
        let mut effects = Vec::new();
        self.intake.append(at.now, &mut effects).map_err(Died::of)?;
        self.intake.tick(at.now, &mut effects);
        self.apply(effects, at);
        if !at.dice.one_in(8) {
            self.begin(at);
        }
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
