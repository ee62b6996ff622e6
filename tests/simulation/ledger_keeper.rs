//! The ledger's thread of a process, as `src/kafka/ledger.rs` is one: keeps the ledger, fetches what is owed, takes
//! over from instances that do not come back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use monasca_persister::ingest::Event;
use monasca_persister::keeper::{Missing, Written};
use monasca_persister::ledger::{self, Entry, Finding};
use monasca_persister::offset_ranges::OffsetRange;
use monasca_persister::offsets::Testimony;
use monasca_persister::topic_identity::TopicIdentity;
use wal::Position;

use crate::mutants::Bug;
use crate::process::{Died, Process, envelope};
use crate::surroundings::Surroundings;

/// How far taking over from another instance has come. In the program one thread does it at one go; here anything
/// may come between two steps.
#[derive(Debug)]
pub struct Takeover {
    from: usize,
    ledger: BTreeMap<i32, Written>,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its ledger was read.
    Read,
    /// What it owes is noted in our log.
    Noted,
    /// Our ledger says so too.
    Confirmed,
}

/// A topic's id as the brokers tell it.
pub fn identity(topic: &str) -> TopicIdentity {
    TopicIdentity { cluster: "cluster".to_owned(), topic: topic.to_owned() }
}

/// The ledger of an instance as everybody can read it: what it owes.
pub fn owed_by(ledger: &BTreeMap<i32, Written>) -> Vec<OffsetRange> {
    ledger
        .iter()
        .filter_map(|(partition, written)| {
            ledger::owed(*partition, written.delivered, &written.entry)
        })
        .collect()
}

/// The same, with the topic that each is about.
pub fn owed_of_topics(ledger: &BTreeMap<i32, Written>) -> Vec<(String, OffsetRange)> {
    let owed = |(partition, written): (&i32, &Written)| {
        let range = ledger::owed(*partition, written.delivered, &written.entry)?;
        Some((written.entry.topic.clone(), range))
    };
    ledger.iter().filter_map(owed).collect()
}

/// What the consumer has to say to the ledger's thread, in one queue.
#[derive(Debug)]
pub enum ToLedger {
    Rewind { partition: i32, next: Option<i64>, end: Position },
    GoneBack { partition: i32, next: i64 },
}

impl Process {
    /// The ledger is read once.
    pub fn open_ledger(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let id = at.kafka.topic.id.clone();
        let (found, lost) = self.compare_ledger(&id, &at.kafka.ledgers[self.instance])?;
        at.tally.missing_at_start += u64::from(found);
        if self.keeper.is_open() {
            lost.iter().for_each(|(topic, range)| at.report(topic, *range));
            self.topic_is(&id, at)?;
        }
        at.tell(|| format!("{}: ledger read, owed {:?}", self.instance, self.owed()));
        Ok(())
    }

    /// True when something is missing in the log; and what is lost, because the topic is another one.
    pub fn compare_ledger(
        &mut self,
        topic: &str,
        ledger: &BTreeMap<i32, Written>,
    ) -> Result<(bool, Vec<(String, OffsetRange)>), Died> {
        let nothing = BTreeMap::new();
        let ledger = if self.bug == Bug::TrustForeignLog { &nothing } else { ledger };
        match self.keeper.opened(&identity(topic), ledger) {
            Err(wal::WalError::NoSpace { .. }) => Ok((false, Vec::new())),
            opened => {
                let missing = opened.map_err(Died::of)?;
                let gone = missing.iter().filter(|gone| gone.finding == Finding::TopicRecreated);
                let of = |gone: &Missing| {
                    let id = &ledger.get(&gone.range.partition)?.entry.topic;
                    Some((id.clone(), gone.range))
                };
                Ok((!missing.is_empty(), gone.filter_map(of).collect()))
            }
        }
    }

    /// It is committed; the request or the answer may be lost. True when Kafka has said that it has what is due.
    pub fn keep_ledger(&mut self, at: &mut Surroundings) -> Result<bool, Died> {
        self.rewind_ledger(at.now);
        if !at.settings.ledger {
            return Ok(false);
        }
        if !self.keeper.is_open() {
            self.open_ledger(at)?;
            return Ok(false);
        }
        let commits = self.keeper.due(at.now, 0);
        if commits.is_empty() {
            return Ok(true);
        }
        if at.dice.one_in(10) {
            return Ok(false);
        }
        for commit in &commits {
            assert!(
                commit.delivered <= commit.entry.next,
                "the ledger says that more is delivered than was taken: {commit:?}"
            );
            at.tell(|| {
                let (delivered, next) = (commit.delivered, commit.entry.next);
                format!("{}: ledger {}/{delivered}..{next}", self.instance, commit.partition)
            });
            let written = Written { delivered: commit.delivered, entry: commit.entry.clone() };
            at.kafka.ledgers[self.instance].insert(commit.partition, written);
        }
        if at.dice.one_in(10) {
            return Ok(false);
        }
        for (partition, next) in self.keeper.confirmed(&commits, at.now) {
            self.intake.on(Event::Witnessed { partition, next }, at.now, &mut Vec::new());
        }
        Ok(true)
    }

    fn rewind_ledger(&mut self, now: Duration) {
        while let Some(request) = self.to_ledger.pop_front() {
            let partition = match request {
                ToLedger::Rewind { partition, next, end } => {
                    self.keeper.rewind(partition, next, end);
                    partition
                }
                ToLedger::GoneBack { partition, next } => {
                    self.keeper.gone_back(partition, next);
                    partition
                }
            };
            self.intake.on(Event::LedgerRewound { partition }, now, &mut Vec::new());
        }
    }

    pub fn testify(&mut self, testimony: &[Testimony], now: Duration) {
        // One queue: in order.
        self.rewind_ledger(now);
        for (partition, next) in self.keeper.testify(testimony) {
            self.intake.on(Event::Witnessed { partition, next }, now, &mut Vec::new());
        }
        if self.bug == Bug::CommitBeforeLedger {
            for said in testimony {
                let event = Event::Witnessed { partition: said.partition, next: said.next };
                self.intake.on(event, now, &mut Vec::new());
            }
        }
    }

    /// Some of what is owed is fetched.
    pub fn fetch_owed(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let Some(owed) = self.keeper.next_owed() else { return Ok(()) };
        let partition = usize::try_from(owed.partition).unwrap();
        let (low, high) = at.kafka.topic.partitions[partition].bounds();
        for (from, to) in [(owed.from, owed.to.min(low)), (owed.from.max(high), owed.to)] {
            if from < to {
                let lost = OffsetRange { partition: owed.partition, from, to };
                let topic = self.topic_of_log(at);
                at.report(&topic, lost);
                return match self.keeper.lose(lost) {
                    Ok(()) | Err(wal::WalError::NoSpace { .. }) => Ok(()),
                    Err(error) => Err(Died::of(error)),
                };
            }
        }
        let mut next = owed.from;
        for _ in 0..=at.dice.below(20) {
            let Some(message) = at.kafka.topic.message(owed.partition, next) else { break };
            if next >= owed.to {
                break;
            }
            let epoch = at.kafka.topic.partitions[partition].epoch(next).unwrap_or(-1);
            let envelope = envelope((owed.partition, next), epoch, message, at.now_ms());
            match self.keeper.take(next, &envelope) {
                Err(wal::WalError::NoSpace { .. }) => return Ok(()),
                taken => taken.map_err(Died::of)?,
            }
            at.tally.fetched_again += 1;
            next += 1;
        }
        if self.bug != Bug::SettleWithForeign {
            self.keeper.topic_is(&identity(&at.kafka.topic.id));
        }
        match self.keeper.fetched_to(owed.partition, owed.from, next) {
            Err(wal::WalError::NoSpace { .. }) => Ok(()),
            fetched => fetched.map_err(Died::of),
        }
    }

    /// One step of an order to take over; the order stays until the last one is done.
    pub fn take_over(
        &mut self,
        orders: &mut BTreeSet<usize>,
        at: &mut Surroundings,
    ) -> Result<(), Died> {
        let Some(mut takeover) = self.takeover.take() else {
            let order = orders.iter().nth(at.dice.index(orders.len())).copied();
            if let Some(from) = order
                && self.keeper.is_open()
                && !at.dice.one_in(10)
            {
                at.tally.takeovers_begun += 1;
                let ledger = at.kafka.ledgers[from].clone();
                self.takeover = Some(Takeover { from, ledger, step: Step::Read });
            }
            return Ok(());
        };
        at.is_delicate = true;
        at.tell(|| format!("{}: takes over: {takeover:?}", self.instance));
        // Wherever it fails, it begins anew with reading.
        match takeover.step {
            Step::Read => {
                if !self.keeper.is_about(&identity(&at.kafka.topic.id)) {
                    return Ok(());
                }
                let (ours, others): (BTreeMap<_, _>, BTreeMap<_, _>) = takeover
                    .ledger
                    .clone()
                    .into_iter()
                    .partition(|(_, written)| self.keeper.is_of_our_topic(&written.entry));
                for (topic, range) in owed_of_topics(&others) {
                    at.report(&topic, range);
                }
                let owed = owed_by(&ours);
                if self.bug != Bug::TakeOverUnnoted {
                    match self.keeper.take_over(owed) {
                        Err(wal::WalError::NoSpace { .. }) => return Ok(()),
                        noted => noted.map_err(Died::of)?,
                    }
                }
                let skip = self.bug == Bug::WriteOverFirst;
                takeover.step = if skip { Step::Confirmed } else { Step::Noted };
                self.takeover = Some(takeover);
            }
            Step::Noted => {
                if self.keep_ledger(at)? {
                    takeover.step = Step::Confirmed;
                    self.takeover = Some(takeover);
                }
            }
            Step::Confirmed => {
                if at.dice.one_in(10) {
                    return Ok(());
                }
                let by = format!("instance-{}", self.instance);
                for (partition, written) in takeover.ledger {
                    let delivered = written.entry.next;
                    let entry = Entry { taken_over_by: by.clone(), ..written.entry };
                    at.kafka.ledgers[takeover.from].insert(partition, Written { delivered, entry });
                }
                if !at.dice.one_in(10) {
                    orders.remove(&takeover.from);
                    at.tally.taken_over += 1;
                }
            }
        }
        Ok(())
    }
}
