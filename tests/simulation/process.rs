//! One life of the persister: from opening its logs to a crash or a clean stop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monasca_persister::dead_letters::DeadLetters;
use monasca_persister::deliver::{DeliverConfig, UnitId};
use monasca_persister::delivered::DeliveredOffsets;
use monasca_persister::delivery::Delivery;
use monasca_persister::envelope::{Envelope, TimestampType};
use monasca_persister::gather::{GatherConfig, Kind, Unit};
use monasca_persister::ingest::{Effect, Event, IngestConfig, Start};
use monasca_persister::intake::Intake;
use monasca_persister::keeper::{self, Keeper, Written};
use monasca_persister::log_reader::{LogReader, LookAhead};
use monasca_persister::offset_note::{LogOffsets, OffsetCarry};
use monasca_persister::offset_ranges::OffsetRanges;
use monasca_persister::offset_trail;
use monasca_persister::offsets::{Committable, Testimony};
use monasca_persister::topic_identity::TopicIdentity;
use storage::definitions::DefinitionMemory;
use storage::{IdScheme, StoreError, Verdict};
use wal::sim::SimDisk;
use wal::{NoCarry, Wal, WalConfig};

use crate::kafka::{Kafka, Message};
use crate::store::Store;
use crate::world::{Bug, Dice, Tally};

pub const RETENTION: Duration = Duration::from_secs(3600);

/// The process ended because the disk stopped or failed, and how it said so.
#[derive(Debug)]
pub struct Died(pub String);

impl Died {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A running persister.
pub struct Process {
    pub wal: Wal<SimDisk>,
    dead_letters: DeadLetters<SimDisk>,
    intake: Intake<SimDisk>,
    reader: LogReader<SimDisk>,
    delivery: Delivery<SimDisk>,
    keeper: Keeper<SimDisk>,
    disk: SimDisk,
    bug: Bug,
    /// Offset the consumer fetches next, per assigned partition.
    fetch: BTreeMap<i32, i64>,
    paused: bool,
    /// Commits that Kafka has not answered.
    commits: Vec<Vec<Committable>>,
    /// Requests that the store has not answered.
    requests: Vec<(UnitId, Arc<Unit>)>,
    flushes: u32,
}

/// Settings of the logs: small, so that a run has many segments and sometimes a full log.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

pub fn wal_config() -> WalConfig {
    WalConfig {
        segment_bytes: 24 * 1024,
        max_bytes: 160 * 1024,
        max_record_bytes: RECORD_BYTES_MAX,
        hold_back: Duration::from_secs(5),
        ..WalConfig::default()
    }
}

fn topic() -> TopicIdentity {
    TopicIdentity { cluster: "cluster".to_owned(), topic: "topic".to_owned() }
}

impl Process {
    /// Opens everything and takes over all partitions.
    pub fn start(
        disks: &[SimDisk; 2],
        kafka: &Kafka,
        now: Duration,
        dice: &mut Dice,
        bug: Bug,
        rotten: bool,
    ) -> Result<Self, Died> {
        let (wal, report) =
            Wal::open(disks[0].clone(), wal_config(), Box::<OffsetCarry>::default(), now)
                .map_err(Died::of)?;
        assert!(
            rotten || report.gaps.is_empty(),
            "I1: acknowledged records are gone: {:?}",
            report.gaps
        );
        let next = LogOffsets::decode(&wal.carry()).unwrap().next;
        let delivered = Arc::new(Mutex::new(DeliveredOffsets::new(
            &next,
            wal.delivered(),
            wal.durable().through(),
        )));
        let keeper = Keeper::new(wal.clone(), Arc::clone(&delivered), next);
        let (dead, report) =
            Wal::open(disks[1].clone(), wal_config_of_dead_letters(), Box::new(NoCarry), now)
                .map_err(Died::of)?;
        assert!(report.gaps.is_empty(), "I1: dead letters are gone: {:?}", report.gaps);
        let dead_letters = DeadLetters::new(dead);
        let memory = Arc::new(Mutex::new(DefinitionMemory::new(100, Duration::from_secs(600))));
        let gather = GatherConfig {
            kind: Kind::Metrics,
            scheme: IdScheme::Sha256,
            retention: RETENTION,
            definition_refresh: Duration::from_secs(600),
            batch_rows_max: 7,
            batch_bytes_max: 4096,
            message_bytes_max: 4096,
        };
        let look_ahead = LookAhead { rows_max: 20, freshness: Duration::from_secs(1) };
        let reader =
            LogReader::new(wal.clone(), gather, look_ahead, Arc::clone(&memory), delivered);
        let deliver = DeliverConfig {
            in_flight_max: 8,
            needs_flush: dice.one_in(3),
            seed: dice.next(),
            ..DeliverConfig::default()
        };
        let delivery = Delivery::new(deliver, wal.clone(), dead_letters.clone(), memory);
        let config =
            IngestConfig { commit_interval: Duration::from_millis(500), ..IngestConfig::default() };
        let intake = Intake::new(config, wal.clone()).map_err(Died::of)?;
        let mut process = Self {
            wal,
            dead_letters,
            intake,
            reader,
            delivery,
            keeper,
            disk: disks[0].clone(),
            bug,
            fetch: BTreeMap::new(),
            paused: false,
            commits: Vec::new(),
            requests: Vec::new(),
            flushes: 0,
        };
        for partition in 0..i32::try_from(kafka.partitions.len()).unwrap() {
            process.assign(partition, kafka, now);
        }
        Ok(process)
    }

    /// The ledger's thread reads it once.
    pub fn open_ledger(&mut self, kafka: &Kafka, tally: &mut Tally) -> Result<(), Died> {
        let nothing = BTreeMap::new();
        let ledger = if self.bug == Bug::TrustForeignLog { &nothing } else { &kafka.ledger };
        let opened = match self.keeper.opened(&topic(), ledger) {
            Err(wal::WalError::NoSpace { .. }) => return Ok(()),
            opened => opened.map_err(Died::of)?,
        };
        tally.missing_at_start += u64::from(!opened.is_empty());
        Ok(())
    }

    /// What this instance is known to owe.
    pub fn owed(&self) -> OffsetRanges {
        self.keeper.log_offsets().owed
    }

    /// The ledger's thread commits it; the request or the answer may be lost.
    pub fn keep_ledger(
        &mut self,
        kafka: &mut Kafka,
        now: Duration,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        if !self.keeper.is_open() {
            return self.open_ledger(kafka, tally);
        }
        let commits = self.keeper.due(now, 0);
        if commits.is_empty() || dice.one_in(10) {
            return Ok(());
        }
        for commit in &commits {
            assert!(
                commit.delivered <= commit.entry.next,
                "the ledger says that more is delivered than was taken: {commit:?}"
            );
            let written = Written { delivered: commit.delivered, entry: commit.entry.clone() };
            kafka.ledger.insert(commit.partition, written);
        }
        if !dice.one_in(10) {
            for (partition, next) in self.keeper.confirmed(&commits, now) {
                self.intake.on(Event::Witnessed { partition, next }, now, &mut Vec::new());
            }
        }
        Ok(())
    }

    /// The ledger's thread fetches some of what is owed.
    pub fn fetch_owed(
        &mut self,
        kafka: &Kafka,
        now_ms: i64,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        let Some(owed) = self.keeper.next_owed() else { return Ok(()) };
        let mut next = owed.from;
        for _ in 0..=dice.below(20) {
            let Some(message) = kafka.message(owed.partition, next) else { break };
            if next >= owed.to {
                break;
            }
            let envelope = envelope(owed.partition, next, message, now_ms);
            match self.keeper.take(next, &envelope) {
                Err(wal::WalError::NoSpace { .. }) => return Ok(()),
                taken => taken.map_err(Died::of)?,
            }
            tally.fetched_again += 1;
            next += 1;
        }
        match self.keeper.fetched_to(owed.partition, owed.from, next) {
            Err(wal::WalError::NoSpace { .. }) => Ok(()),
            fetched => fetched.map_err(Died::of),
        }
    }

    fn testify(&mut self, testimony: &[Testimony], now: Duration) {
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

    /// Both last acts for partitions that are given away.
    fn settle(
        &mut self,
        partitions: &[i32],
        kafka: &mut Kafka,
        now: Duration,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        let testimony = self.intake.settle(partitions, now).map_err(Died::of)?;
        self.testify(&testimony, now);
        self.keep_ledger(kafka, now, dice, tally)?;
        for offset in self.intake.committable_of(partitions) {
            kafka.committed.insert(offset.partition(), offset.next());
        }
        Ok(())
    }

    fn assign(&mut self, partition: i32, kafka: &Kafka, now: Duration) {
        let mut effects = Vec::new();
        let committed = kafka.committed.get(&partition).copied();
        self.intake.on(Event::Assigned { partition, committed }, now, &mut effects);
        for effect in &effects {
            if let Effect::Begin { partition, start } = effect {
                let offset = match start {
                    Start::At(offset) => *offset,
                    Start::Beginning => 0,
                    Start::End => panic!("the simulation begins with the oldest message"),
                };
                self.fetch.insert(*partition, offset);
            }
        }
        self.apply(effects, now);
    }

    fn apply(&mut self, effects: Vec<Effect>, now: Duration) {
        for effect in effects {
            match effect {
                Effect::Testify(testimony) => self.testify(&testimony, now),
                Effect::Commit(offsets) => self.commits.push(offsets),
                Effect::Pause(_) => self.paused = true,
                Effect::Resume(_) => self.paused = false,
                _ => {}
            }
        }
    }

    /// The consumer gets messages of one partition; sometimes Kafka sends old ones again.
    pub fn poll(
        &mut self,
        kafka: &Kafka,
        now: Duration,
        now_ms: i64,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        if self.paused || self.intake.is_holding() {
            return self.turn(now);
        }
        let partition = i32::try_from(dice.below(kafka.partitions.len() as u64)).unwrap();
        let Some(mut offset) = self.fetch.get(&partition).copied() else { return self.turn(now) };
        if dice.one_in(20) && offset > 0 {
            offset -= 1;
            tally.repeated += 1;
        }
        let mut effects = Vec::new();
        for _ in 0..=dice.below(30) {
            let Some(message) = kafka.message(partition, offset) else { break };
            let envelope = envelope(partition, offset, message, now_ms);
            self.intake.take(&envelope, now, &mut effects).map_err(Died::of)?;
            offset += 1;
        }
        let fetch = self.fetch.entry(partition).or_insert(0);
        *fetch = (*fetch).max(offset);
        self.apply(effects, now);
        if dice.one_in(8) {
            // A turn that ends before its append: the process may die with these in memory only.
            return Ok(());
        }
        self.turn(now)
    }

    /// The end of a turn of the polling loop.
    pub fn turn(&mut self, now: Duration) -> Result<(), Died> {
        let mut effects = Vec::new();
        self.intake.append(now, &mut effects).map_err(Died::of)?;
        self.intake.tick(now, &mut effects);
        self.apply(effects, now);
        Ok(())
    }

    /// As [`Process::turn`], with the bug that the oracle must see.
    pub fn turn_with(&mut self, now: Duration, bug: Bug) -> Result<(), Died> {
        if bug == Bug::CommitBeforeDurable {
            self.intake.mutant_commit_before_durable();
        }
        self.turn(now)
    }

    /// The background committer leads once.
    pub fn sync(&mut self) -> Result<(), Died> {
        match self.wal.commit() {
            Ok(()) | Err(wal::WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(Died::of(error)),
        }
    }

    /// Kafka answers a commit, or it is lost on the way back or there.
    pub fn answer_commit(&mut self, kafka: &mut Kafka, now: Duration, dice: &mut Dice) {
        if self.commits.is_empty() {
            return;
        }
        // One connection: in order.
        let offsets = self.commits.remove(0);
        let (applied, answered) = (!dice.one_in(10), !dice.one_in(10));
        for offset in offsets {
            if applied {
                kafka.committed.insert(offset.partition(), offset.next());
                if answered {
                    let event =
                        Event::Committed { partition: offset.partition(), next: offset.next() };
                    self.intake.on(event, now, &mut Vec::new());
                }
            }
        }
    }

    /// A rebalance takes partitions away and gives them back; somebody else might have consumed in between.
    pub fn rebalance(
        &mut self,
        kafka: &mut Kafka,
        now: Duration,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        let partition = i32::try_from(dice.below(kafka.partitions.len() as u64)).unwrap();
        if dice.one_in(4) {
            // Lost: nothing may be committed.
        } else {
            self.settle(&[partition], kafka, now, dice, tally)?;
        }
        self.intake.on(Event::Gone { partition }, now, &mut Vec::new());
        // Commits of the old assignment arrive no more.
        self.commits.clear();
        self.assign(partition, kafka, now);
        Ok(())
    }

    /// The reader looks ahead and hands over what is complete.
    pub fn deliver(&mut self, now: Duration, now_ms: i64, hurry: bool) -> Result<(), Died> {
        if let Some(positions) = self.reader.missing() {
            let known = self.keeper.log_offsets().next;
            let owed =
                offset_trail::cover(&self.disk, &positions, &known, &self.keeper.delivered())
                    .map_err(Died::of)?;
            match self.bug {
                Bug::IgnoreGap => self.reader.owed(),
                _ => match keeper::owe(&self.wal, owed) {
                    Ok(()) => self.reader.owed(),
                    Err(wal::WalError::NoSpace { .. }) => {}
                    Err(error) => return Err(Died::of(error)),
                },
            }
        }
        if self.delivery.machine().outstanding_rows() < 60
            && let Some(gathered) = self.reader.pull(hurry, now, now_ms).map_err(Died::of)?
        {
            self.delivery.gathered(gathered, now).map_err(Died::of)?;
        }
        self.delivery.tick(now).map_err(Died::of)?;
        self.collect();
        Ok(())
    }

    fn collect(&mut self) {
        self.requests.extend(self.delivery.take_requests());
        if self.delivery.take_flush() {
            self.flushes += 1;
        }
    }

    /// The store answers one request: in any order, truthfully or by a time-out after which nobody knows.
    pub fn answer_request(
        &mut self,
        store: &mut Store,
        now: Duration,
        dice: &mut Dice,
        store_up: bool,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        if self.flushes > 0 {
            self.flushes -= 1;
            let ok = store_up && !dice.one_in(10);
            self.delivery.flushed(ok, now).map_err(Died::of)?;
            self.collect();
        }
        if self.requests.is_empty() {
            return Ok(());
        }
        let (unit, rows) = self.requests.swap_remove(dice.index(self.requests.len()));
        let write = rows.as_write();
        let outcome = if Store::refuses(&write) && store_up {
            Err(StoreError::new(Verdict::Reject, "DB_INVALID_ROW", "refused"))
        } else if !store_up {
            if dice.one_in(2) {
                Err(StoreError::new(Verdict::Retry, "DB_UNREACHABLE", "down"))
            } else {
                Err(StoreError::new(Verdict::Wait, "DB_SCHEMA", "no table"))
            }
        } else if dice.one_in(12) {
            if dice.one_in(2) {
                store.apply(&write);
            }
            Err(StoreError::new(Verdict::Retry, "DB_TIMEOUT", "unknown outcome"))
        } else if write.len() > 3 && dice.one_in(12) {
            Err(StoreError::new(Verdict::Split, "DB_BATCH_TOO_LARGE", "too large"))
        } else {
            store.apply(&write);
            Ok(())
        };
        tally.store_failures += u64::from(outcome.is_err());
        self.delivery.done(unit, outcome, now).map_err(Died::of)?;
        self.collect();
        Ok(())
    }

    /// The once-a-second duty.
    pub fn checkpoint(&mut self, now: Duration) -> Result<(), Died> {
        // In the program a thread of its own does it.
        match self.wal.prepare() {
            Ok(_) | Err(wal::WalError::NoSpace { .. }) => {}
            Err(error) => return Err(Died::of(error)),
        }
        match self.wal.checkpoint(now) {
            Ok(()) | Err(wal::WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(Died::of(error)),
        }
    }

    /// Nothing left to do, here or in Kafka.
    pub fn is_done(&self, kafka: &Kafka) -> bool {
        let consumed = kafka.partitions.iter().enumerate().all(|(partition, messages)| {
            let end = i64::try_from(messages.len()).unwrap();
            let partition = i32::try_from(partition).unwrap();
            end == 0 || kafka.committed.get(&partition) == Some(&end)
        });
        let status = self.wal.status();
        consumed
            && self.keeper.is_open()
            && self.owed().is_empty()
            && status.backlog_records == 0
            && self.delivery.is_idle()
            && self.requests.is_empty()
    }

    /// A clean stop.
    pub fn stop(
        mut self,
        kafka: &mut Kafka,
        now: Duration,
        dice: &mut Dice,
        tally: &mut Tally,
    ) -> Result<(), Died> {
        let partitions: Vec<i32> = self.fetch.keys().copied().collect();
        self.settle(&partitions, kafka, now, dice, tally)?;
        self.wal.close(now).map_err(Died::of)?;
        self.dead_letters.wal().close(now).map_err(Died::of)?;
        Ok(())
    }

    /// Where it stands, for the message of a failed run.
    pub fn describe(&self) -> String {
        format!(
            "progress {:?}, owed {:?}, cover {:?}, ledger read {}, missing {:?}, fetching from {:?}; {:?}; paused {}, holding {}, outstanding rows {}, requests {}, breaker {:?}",
            self.intake.machine().progress().collect::<Vec<_>>(),
            self.owed(),
            self.reader.missing().map(|positions| offset_trail::cover(
                &self.disk,
                &positions,
                &self.keeper.log_offsets().next,
                &self.keeper.delivered()
            )),
            self.keeper.is_open(),
            self.reader.missing(),
            self.fetch,
            self.wal.status(),
            self.paused,
            self.intake.is_holding(),
            self.delivery.machine().outstanding_rows(),
            self.requests.len(),
            self.delivery.machine().breaker()
        )
    }
}

fn envelope(partition: i32, offset: i64, message: &Message, received_ms: i64) -> Envelope<'_> {
    Envelope {
        topic: "metrics",
        partition,
        offset,
        leader_epoch: -1,
        timestamp_ms: message.timestamp_ms,
        timestamp_type: TimestampType::Created,
        received_ms,
        key: None,
        payload: message.payload.as_deref(),
    }
}

/// The dead letters have room for every poison of a run.
pub fn wal_config_of_dead_letters() -> WalConfig {
    WalConfig { max_bytes: 64 * 1024 * 1024, ..wal_config() }
}
