//! One life of the persister: from opening its logs to a crash or a clean stop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monasca_persister::dead_letters::DeadLetters;
use monasca_persister::deliver::{DeliverConfig, UnitId};
use monasca_persister::delivery::Delivery;
use monasca_persister::envelope::{Envelope, OffsetCarry, TimestampType};
use monasca_persister::gather::{GatherConfig, Kind, Unit};
use monasca_persister::ingest::{Effect, Event, IngestConfig, Start};
use monasca_persister::intake::Intake;
use monasca_persister::log_reader::{LogReader, LookAhead};
use monasca_persister::offsets::Committable;
use storage::definitions::DefinitionMemory;
use storage::{IdScheme, StoreError, Verdict};
use wal::sim::SimDisk;
use wal::{NoCarry, Wal, WalConfig};

use crate::kafka::Kafka;
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

impl Process {
    /// Opens everything and takes over all partitions.
    pub fn start(
        disks: &[SimDisk; 2],
        kafka: &Kafka,
        now: Duration,
        dice: &mut Dice,
    ) -> Result<Self, Died> {
        let (wal, report) =
            Wal::open(disks[0].clone(), wal_config(), Box::<OffsetCarry>::default(), now)
                .map_err(Died::of)?;
        assert!(report.gaps.is_empty(), "I1: acknowledged records are gone: {:?}", report.gaps);
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
        let reader = LogReader::new(wal.clone(), gather, look_ahead, Arc::clone(&memory));
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
        self.apply(effects);
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Commit(offsets) => self.commits.push(offsets),
                Effect::Pause(_) => self.paused = true,
                Effect::Resume(_) => self.paused = false,
                Effect::Begin { .. } | Effect::AwaitDurable(_) => {}
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
            let envelope = Envelope {
                topic: "metrics",
                partition,
                offset,
                leader_epoch: -1,
                timestamp_ms: message.timestamp_ms,
                timestamp_type: TimestampType::Created,
                received_ms: now_ms,
                key: None,
                payload: message.payload.as_deref(),
            };
            self.intake.take(&envelope, now, &mut effects).map_err(Died::of)?;
            offset += 1;
        }
        let fetch = self.fetch.entry(partition).or_insert(0);
        *fetch = (*fetch).max(offset);
        self.apply(effects);
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
        self.apply(effects);
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
        let offsets = self.commits.remove(dice.index(self.commits.len()));
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
    ) -> Result<(), Died> {
        let partition = i32::try_from(dice.below(kafka.partitions.len() as u64)).unwrap();
        if dice.one_in(4) {
            // Lost: nothing may be committed.
        } else {
            for offset in self.intake.settle(&[partition], now).map_err(Died::of)? {
                kafka.committed.insert(offset.partition(), offset.next());
            }
        }
        self.intake.on(Event::Gone { partition }, now, &mut Vec::new());
        // Commits of the old assignment arrive no more.
        self.commits.clear();
        self.assign(partition, kafka, now);
        Ok(())
    }

    /// The reader looks ahead and hands over what is complete.
    pub fn deliver(&mut self, now: Duration, now_ms: i64, hurry: bool) -> Result<(), Died> {
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
            && status.backlog_records == 0
            && self.delivery.is_idle()
            && self.requests.is_empty()
    }

    /// A clean stop.
    pub fn stop(mut self, kafka: &mut Kafka, now: Duration) -> Result<(), Died> {
        let partitions: Vec<i32> = self.fetch.keys().copied().collect();
        for offset in self.intake.settle(&partitions, now).map_err(Died::of)? {
            kafka.committed.insert(offset.partition(), offset.next());
        }
        self.wal.close(now).map_err(Died::of)?;
        self.dead_letters.wal().close(now).map_err(Died::of)?;
        Ok(())
    }

    /// Where it stands, for the message of a failed run.
    pub fn describe(&self) -> String {
        format!(
            "{:?}; paused {}, holding {}, outstanding rows {}, requests {}, breaker {:?}",
            self.wal.status(),
            self.paused,
            self.intake.is_holding(),
            self.delivery.machine().outstanding_rows(),
            self.requests.len(),
            self.delivery.machine().breaker()
        )
    }
}

/// The dead letters have room for every poison of a run.
pub fn wal_config_of_dead_letters() -> WalConfig {
    WalConfig { max_bytes: 64 * 1024 * 1024, ..wal_config() }
}
