//! One life of the persister: from opening its logs to a crash or a clean stop. What it shares with the program is
//! everything but the threads and the clients; `consumer.rs` and `ledger_keeper.rs` have the other two of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use monasca_persister::aside::Aside;
use monasca_persister::dead_letters::DeadLetters;
use monasca_persister::deliver::{DeliverConfig, UnitId};
use monasca_persister::delivered::DeliveredOffsets;
use monasca_persister::delivery::{Delivery, Held};
use monasca_persister::envelope::{Envelope, TimestampType};
use monasca_persister::gather::{GatherConfig, Kind, Unit};
use monasca_persister::ingest::{IngestConfig, Start};
use monasca_persister::intake::Intake;
use monasca_persister::kafka_gap::{GapPolicies, GapPolicy};
use monasca_persister::keeper::{self, Keeper};
use monasca_persister::lives::Lives;
use monasca_persister::log_reader::{LogReader, LookAhead};
use monasca_persister::offset_note::{LogOffsets, OffsetCarry};
use monasca_persister::offset_ranges::OffsetRanges;
use monasca_persister::offset_trail;
use storage::definitions::DefinitionMemory;
use storage::{IdScheme, NodeLife, StoreError};
use wal::sim::SimDisk;
use wal::{NoCarry, Wal, WalConfig};

use crate::consumer::Commit;
use crate::dice::Dice;
use crate::group::{MemberId, Offset};
use crate::kafka::{Kafka, Message};
use crate::ledger_keeper::{Takeover, ToLedger};
use crate::mutants::Bug;
use crate::store;
use crate::store::TABLE_CHANGED;
use crate::surroundings::Surroundings;

pub const RETENTION: Duration = Duration::from_secs(45 * 86_400);
pub const HOLD_BACK: Duration = Duration::from_secs(5);
/// How often the store's node is asked which life it is in.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
const IN_FLIGHT_MAX: usize = 8;
/// A gather is taken over while less is outstanding.
const ROWS_HELD: usize = 60;
const GATHER_ROWS: usize = 20;
/// A record takes 150 bytes at least.
const SEGMENT_ROWS: usize = 24 * 1024 / 150;

/// The process ended because the disk stopped or failed, and how it said so.
#[derive(Debug)]
pub struct Died(pub String);

impl Died {
    pub fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A running persister.
pub struct Process {
    pub wal: Wal<SimDisk>,
    dead_letters: DeadLetters<SimDisk>,
    pub(crate) intake: Intake<SimDisk>,
    reader: LogReader<SimDisk>,
    delivery: Delivery<SimDisk>,
    pub(crate) keeper: Keeper<SimDisk>,
    disk: SimDisk,
    pub(crate) bug: Bug,
    /// Which instance it is.
    pub(crate) instance: usize,
    /// As whom it last joined the group.
    pub(crate) member: Option<MemberId>,
    /// Offset the consumer fetches next, per assigned partition.
    pub(crate) fetch: BTreeMap<i32, i64>,
    /// Epoch of the leader of the last message fetched, since consumption of the partition began.
    pub(crate) fetched_epochs: BTreeMap<i32, i32>,
    /// Where consumption of partitions is to begin anew.
    pub(crate) begins: BTreeMap<i32, Start>,
    /// Partitions that stand still because of a gap, until they begin anew.
    pub(crate) stopped: BTreeSet<i32>,
    /// Kafka refused the position of a partition.
    pub(crate) refused: bool,
    /// What the ledger's thread was not told yet.
    pub(crate) to_ledger: VecDeque<ToLedger>,
    pub(crate) paused: bool,
    /// Commits that Kafka has not answered.
    pub(crate) commits: VecDeque<Commit>,
    pub(crate) takeover: Option<Takeover>,
    /// Requests that the store has not looked at.
    requests: Vec<(UnitId, Arc<Unit>)>,
    /// Answers of the store on their way.
    answers: Vec<(UnitId, Result<(), StoreError>)>,
    flushes: u32,
    lives: Lives,
    asked: Option<Duration>,
    /// When the question was asked that the store's node has answered, with the answer: it is on its way.
    told: Option<(Duration, Vec<NodeLife>)>,
    watched_until: Duration,
    memory: Arc<Mutex<DefinitionMemory>>,
}

/// Settings of the logs: small, so that a run has many segments and sometimes a full log.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

fn wal_config() -> WalConfig {
    WalConfig {
        segment_bytes: 24 * 1024,
        max_bytes: 160 * 1024,
        max_record_bytes: RECORD_BYTES_MAX,
        hold_back: HOLD_BACK,
        ..WalConfig::default()
    }
}

/// The dead letters have room for every poison of a run.
fn wal_config_of_dead_letters() -> WalConfig {
    WalConfig { max_bytes: 64 * 1024 * 1024, ..wal_config() }
}

/// What is the same for all processes of a run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub bug: Bug,
    /// The instances may keep ledgers. Where they may not, no disk may be lost: nobody would notice.
    pub ledger: bool,
    /// Where Kafka's history and theirs part, consumption goes on by itself.
    pub goes_on: bool,
    /// The store may lose power. Then no disk of an instance is lost: what one of them lost the other would have to have.
    pub store_loses: bool,
}

impl Process {
    /// Opens everything; it is no member of the group yet.
    pub fn start(
        instance: usize,
        disks: &[SimDisk; 2],
        now: Duration,
        dice: &mut Dice,
        Settings { bug, ledger, goes_on, store_loses }: Settings,
        rotten: bool,
        lives: &BTreeMap<String, i64>,
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
        let aside = Arc::new(Mutex::new(Aside::default()));
        let look_ahead = LookAhead { rows_max: GATHER_ROWS, freshness: Duration::from_secs(1) };
        let reader = LogReader::new(
            wal.clone(),
            gather,
            look_ahead,
            Arc::clone(&memory),
            Arc::clone(&delivered),
        )
        .with_aside(Arc::clone(&aside))
        .with_replicas(Arc::new(|series| Some(store::replicas(series))));
        let deliver = DeliverConfig {
            in_flight_max: IN_FLIGHT_MAX,
            needs_flush: !store_loses && dice.one_in(3),
            seed: dice.next(),
            ..DeliverConfig::default()
        };
        let delivery =
            Delivery::new(deliver, wal.clone(), dead_letters.clone(), Arc::clone(&memory))
                .with_aside(aside, delivered);
        let policy = if goes_on { GapPolicy::Continue } else { GapPolicy::Stop };
        let config = IngestConfig {
            commit_interval: Duration::from_millis(500),
            ledger,
            gaps: GapPolicies { retention: policy, truncated: policy, recreated: policy },
            ..IngestConfig::default()
        };
        let intake = Intake::new(config, wal.clone()).map_err(Died::of)?;
        Ok(Self {
            wal,
            dead_letters,
            intake,
            reader,
            delivery,
            keeper,
            disk: disks[0].clone(),
            bug,
            instance,
            member: None,
            fetch: BTreeMap::new(),
            fetched_epochs: BTreeMap::new(),
            begins: BTreeMap::new(),
            stopped: BTreeSet::new(),
            refused: false,
            to_ledger: VecDeque::new(),
            paused: false,
            commits: VecDeque::new(),
            takeover: None,
            requests: Vec::new(),
            answers: Vec::new(),
            flushes: 0,
            lives: Lives::new(lives.clone(), HOLD_BACK, now),
            asked: None,
            told: None,
            watched_until: if store_loses { now } else { Duration::MAX },
            memory,
        })
    }

    /// What this instance is known to owe.
    pub fn owed(&self) -> OffsetRanges {
        self.keeper.log_offsets().owed
    }

    /// The topic that the log's offsets are about; of a log that does not know, the one that is there.
    pub fn topic_of_log(&self, at: &Surroundings) -> String {
        let known = self.keeper.log_offsets().topic.map(|topic| topic.topic);
        known.unwrap_or_else(|| at.kafka.topic.id.clone())
    }

    /// The background committer leads once.
    pub fn sync(&mut self) -> Result<(), Died> {
        match self.wal.commit() {
            Ok(()) | Err(wal::WalError::NoSpace { .. }) => Ok(()),
            Err(error) => Err(Died::of(error)),
        }
    }

    /// Asks the store's node which life it is in, once a second; the answer may take its time. What it may have lost is
    /// delivered again. Returns what the next start must know.
    pub fn watch(&mut self, at: &mut Surroundings) -> Result<Option<BTreeMap<String, i64>>, Died> {
        let now = at.now;
        let Some((asked, answers)) = self.told.take() else {
            if self.asked.is_none_or(|asked| now.saturating_sub(asked) >= ASK_INTERVAL) {
                self.asked = Some(now);
                let life = NodeLife { node: "node".to_owned(), life: Some(at.store.life) };
                let is_answered = at.store.is_up && !at.dice.one_in(20);
                self.told = Some((now, if is_answered { vec![life] } else { Vec::new() }));
            }
            return Ok(None);
        };
        let loss = self.lives.on(&answers, asked, now);
        if let Some(loss) = loss.filter(|_| self.bug != Bug::TrustStore) {
            at.tally.delivered_again += 1;
            self.delivery.start_over(now).map_err(Died::of)?;
            self.collect();
            let since = match loss.seen {
                Some(seen) => now.saturating_sub(seen).saturating_add(HOLD_BACK),
                None => now,
            };
            let since_ms = at.now_ms() - i64::try_from(since.as_millis()).unwrap();
            self.memory.lock().unwrap().forget_since(since_ms);
            match self.reader.start_over(self.hold_back_clock(now)) {
                Ok(_) | Err(wal::WalError::NoSpace { .. }) => {}
                Err(error) => return Err(Died::of(error)),
            }
        }
        if let Some(until) = self.lives.watched_until(asked) {
            self.watched_until = until;
        }
        Ok(self.lives.present())
    }

    /// Whether it knows in which life the store is.
    pub fn knows(&self, life: i64) -> bool {
        self.lives.present().is_some_and(|lives| lives.get("node") == Some(&life))
    }

    fn hold_back_clock(&self, now: Duration) -> Duration {
        match self.bug {
            Bug::HoldBackUnwatched => now,
            _ => now.min(self.watched_until),
        }
    }

    /// I10: however long the store is away, memory and log are bounded.
    pub fn check_bounds(&self) {
        let rows = self.delivery.machine().outstanding_rows();
        // The last gather comes on top, and is larger by what is read at once: up to a segment.
        assert!(rows <= ROWS_HELD + GATHER_ROWS + SEGMENT_ROWS, "I10: {rows} rows are held");
        let requests = self.requests.len() + self.answers.len();
        assert!(requests <= 2 * IN_FLIGHT_MAX, "I10: {requests} requests are under way");
        let bytes = self.wal.status().allocated_bytes;
        assert!(bytes <= wal_config().max_bytes, "I10: the log has {bytes} bytes");
    }

    /// The reader looks ahead and hands over what is complete.
    pub fn deliver(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        if let Some(positions) = self.reader.missing() {
            let known = self.keeper.log_offsets().next;
            let (told, moved) = (self.keeper.delivered(), self.keeper.holds_moved());
            let owed = offset_trail::cover(&self.disk, &positions, &known, &told, moved)
                .map_err(Died::of)?;
            at.tell(|| format!("{}: {positions:?} missing, covered by {owed:?}", self.instance));
            match self.bug {
                Bug::IgnoreGap => self.reader.owed(),
                _ => match keeper::owe(&self.wal, owed) {
                    Ok(()) => self.reader.owed(),
                    Err(wal::WalError::NoSpace { .. }) => {}
                    Err(error) => return Err(Died::of(error)),
                },
            }
        }
        if self.delivery.take_come_back() {
            self.delivery.come_back(at.now).map_err(Died::of)?;
            at.tally.came_back += 1;
        }
        self.reader.come_back_if_wanted();
        if self.delivery.machine().outstanding_rows() < ROWS_HELD
            && let Some(gathered) =
                self.reader.pull(false, at.now, at.now_ms()).map_err(Died::of)?
        {
            self.delivery.gathered(gathered, at.now).map_err(Died::of)?;
        }
        self.delivery.tick(at.now).map_err(Died::of)?;
        self.collect();
        Ok(())
    }

    fn collect(&mut self) {
        self.requests.extend(self.delivery.take_requests());
        if self.delivery.take_flush() {
            self.flushes += 1;
        }
    }

    /// The store looks at one request, in any order; or one of its answers arrives.
    pub fn answer_request(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let Surroundings { store, dice, now, .. } = at;
        if self.flushes > 0 {
            self.flushes -= 1;
            let ok = store.is_up && !dice.one_in(10);
            self.delivery.flushed(ok, *now).map_err(Died::of)?;
            self.collect();
        }
        if !self.requests.is_empty() {
            let (unit, rows) = self.requests.swap_remove(dice.index(self.requests.len()));
            let mut answer = store.answer(&rows, dice);
            if let (Bug::BelieveRefusals, Err(error)) = (self.bug, &mut answer) {
                error.is_sure = true;
            }
            self.answers.push((unit, answer));
            if dice.one_in(4) {
                return Ok(());
            }
        }
        if !self.answers.is_empty() {
            let (unit, outcome) = self.answers.swap_remove(dice.index(self.answers.len()));
            at.tally.store_failures += u64::from(outcome.is_err());
            self.delivery.done(unit, outcome, at.now).map_err(Died::of)?;
            self.collect();
            self.check_dead_letters();
        }
        Ok(())
    }

    /// I10: a cause that is the table's stops delivery instead of making dead letters of all that comes.
    fn check_dead_letters(&self) {
        let dead = self.delivery.dead_lettered().get(TABLE_CHANGED).copied().unwrap_or(0);
        let taken = self.delivery.machine().counts().rows_written;
        // Ten rows, or some per cent of them; more than one message may have been of a row.
        assert!(dead <= 20.max(taken / 10), "I10: {dead} good dead letters, {taken} rows taken");
    }

    /// The once-a-second duty. Returns whether records were moved in the log.
    pub fn checkpoint(&mut self, may_move: bool, at: &mut Surroundings) -> Result<bool, Died> {
        // In the program a thread of its own does it.
        match self.wal.prepare() {
            Ok(_) | Err(wal::WalError::NoSpace { .. }) => {}
            Err(error) => return Err(Died::of(error)),
        }
        match self.wal.checkpoint(self.hold_back_clock(at.now)) {
            Ok(()) | Err(wal::WalError::NoSpace { .. }) => {}
            Err(error) => return Err(Died::of(error)),
        }
        if !may_move {
            return Ok(false);
        }
        let most = Held { rows: ROWS_HELD, bytes: usize::MAX };
        let cleared = self.delivery.clear_the_way(most, at.now).map_err(Died::of)?;
        at.tally.rows_set_aside += cleared.rows_set_aside;
        at.tally.records_moved += cleared.records_moved;
        self.collect();
        Ok(cleared.rows_set_aside > 0 || cleared.records_moved > 0)
    }

    /// Nothing left to do for it.
    pub fn is_idle(&self, at: &Surroundings) -> bool {
        self.keeper.is_open() == at.settings.ledger
            && self.owed().is_empty()
            && self.wal.status().backlog_records == 0
            && self.delivery.is_idle()
            && (!at.settings.store_loses || self.knows(at.store.life))
            && self.requests.is_empty()
            && self.answers.is_empty()
            && self.takeover.is_none()
            && self.stopped.is_empty()
            && self.begins.is_empty()
            && !self.refused
            && self.to_ledger.is_empty()
    }

    /// A clean stop.
    pub fn stop(mut self, at: &mut Surroundings) -> Result<(), Died> {
        self.leave(at)?;
        self.wal.close(self.hold_back_clock(at.now)).map_err(Died::of)?;
        self.dead_letters.wal().close(at.now).map_err(Died::of)?;
        Ok(())
    }

    /// Where it stands, for the message of a failed run.
    pub fn describe(&self) -> String {
        format!(
            "instance {}: progress {:?}, owed {:?}, cover {:?}, ledger read {}, missing {:?}, fetching from {:?}; {:?}; paused {}, holding {}, stopped {:?}, begins {:?}, refused {}, outstanding rows {}, requests {}, breaker {:?}",
            self.instance,
            self.intake.machine().progress().collect::<Vec<_>>(),
            self.owed(),
            self.reader.missing().map(|positions| offset_trail::cover(
                &self.disk,
                &positions,
                &self.keeper.log_offsets().next,
                &self.keeper.delivered(),
                self.keeper.holds_moved()
            )),
            self.keeper.is_open(),
            self.reader.missing(),
            self.fetch,
            self.wal.status(),
            self.paused,
            self.intake.is_holding(),
            self.stopped,
            self.begins,
            self.refused,
            self.delivery.machine().outstanding_rows(),
            self.requests.len() + self.answers.len(),
            self.delivery.machine().breaker()
        )
    }
}

/// A message as the log keeps it.
pub fn envelope(
    (partition, offset): (i32, i64),
    leader_epoch: i32,
    message: &Message,
    received_ms: i64,
) -> Envelope<'_> {
    Envelope {
        topic: "metrics",
        partition,
        offset,
        leader_epoch,
        timestamp_ms: message.timestamp_ms,
        timestamp_type: TimestampType::Created,
        received_ms,
        key: None,
        payload: message.payload.as_deref(),
    }
}

/// Whether everything produced was committed.
pub fn is_consumed(kafka: &Kafka) -> bool {
    kafka.topic.numbered().all(|(number, partition)| {
        let committed = kafka.group.committed().get(&number);
        let is_ours = |committed: &&Offset| committed.topic == kafka.topic.id;
        let is_all = |committed: &Offset| {
            kafka.is_emptied(partition, committed.next)
                || committed.next == partition.end() && kafka.is_current(number, committed)
        };
        // Of one that is empty nobody need say anything.
        committed.filter(is_ours).map_or(partition.low == partition.end(), is_all)
    })
}
