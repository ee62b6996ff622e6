//! One run: a world with a clock, and dice that decide what happens next.

use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};

use crate::kafka::{Fate, Kafka, Message, metric_message};
use crate::oracle;
use crate::process::Process;
use crate::store::Store;

/// The deliberate bug of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    None,
    CommitBeforeDurable,
    /// The group's offset does not wait for the ledger.
    CommitBeforeLedger,
    /// What the ledger says about another log, or an older copy of this one, is not looked at.
    TrustForeignLog,
    /// What the log lost is acknowledged and forgotten.
    IgnoreGap,
}

/// Random numbers from a seed (splitmix64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

/// What happened in a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub messages: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub crashes_while_opening: u64,
    pub clean_stops: u64,
    pub rebalances: u64,
    pub repeated: u64,
    pub store_failures: u64,
    pub store_writes: u64,
    pub dead_letters: u64,
    pub disks_lost: u64,
    pub disks_rolled_back: u64,
    pub disks_rotten: u64,
    pub missing_at_start: u64,
    pub fetched_again: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.crashes_while_opening += other.crashes_while_opening;
        self.clean_stops += other.clean_stops;
        self.rebalances += other.rebalances;
        self.repeated += other.repeated;
        self.store_failures += other.store_failures;
        self.store_writes += other.store_writes;
        self.dead_letters += other.dead_letters;
        self.disks_lost += other.disks_lost;
        self.disks_rolled_back += other.disks_rolled_back;
        self.disks_rotten += other.disks_rotten;
        self.missing_at_start += other.missing_at_start;
        self.fetched_again += other.fetched_again;
    }
}

/// Everything there is.
pub struct World {
    dice: Dice,
    bug: Bug,
    now: Duration,
    kafka: Kafka,
    store: Store,
    /// The log and the dead letters: crashes take both.
    disks: [SimDisk; 2],
    /// A copy of the log's disk that somebody made.
    backup: Option<SimDisk>,
    /// The log's disk has rotten bytes.
    rotten: bool,
    sequence: u32,
    store_up: bool,
    tally: Tally,
}

/// Zero of the wall clock of every run.
const EPOCH_MS: i64 = 1_700_000_000_000;

impl World {
    pub fn new(seed: u64, bug: Bug) -> Self {
        let mut dice = Dice(seed);
        let partitions = 1 + dice.index(3);
        let disks = [SimDisk::new(dice.next()), SimDisk::new(dice.next())];
        Self {
            dice,
            bug,
            now: Duration::ZERO,
            kafka: Kafka::new(partitions),
            store: Store::default(),
            disks,
            backup: None,
            rotten: false,
            sequence: 0,
            store_up: true,
            tally: Tally::default(),
        }
    }

    fn now_ms(&self) -> i64 {
        EPOCH_MS + i64::try_from(self.now.as_millis()).unwrap()
    }

    /// Lives and deaths, then a last life without faults that must come to rest; then the final check.
    pub fn run(mut self) -> Tally {
        for _ in 0..1 + self.dice.below(4) {
            self.live();
        }
        self.come_to_rest();
        self.tally.messages = self.kafka.messages().count() as u64;
        self.tally.store_writes = self.store.writes;
        self.tally.dead_letters = oracle::check_final(&self.kafka, &self.store, &self.disks);
        self.tally
    }

    /// Faults of an earlier life do not reach into this one.
    fn heal_disks(&self) {
        for disk in &self.disks {
            disk.fail_after(1 << 40);
        }
    }

    fn live(&mut self) {
        self.heal_disks();
        if self.dice.one_in(3) {
            // Dies at some operation of a disk, perhaps while it is opening.
            let operations = 1 + self.dice.below(120);
            let disk = self.dice.index(2);
            self.disks[disk].fail_after(operations);
        }
        let started = self.start();
        let Ok(mut process) = started else {
            self.tally.crashes_while_opening += 1;
            self.crash();
            return;
        };
        for _ in 0..20 + self.dice.below(150) {
            if self.step(&mut process).is_err() {
                break;
            }
        }
        let stopped = self.dice.one_in(5) && self.stop(process).is_ok();
        // A disk may die with the very last operation.
        if stopped && !self.disks.iter().any(SimDisk::is_stopped) {
            self.tally.clean_stops += 1;
            return;
        }
        self.crash();
    }

    fn start(&mut self) -> Result<Process, crate::process::Died> {
        let Self { disks, kafka, now, dice, bug, rotten, .. } = self;
        Process::start(disks, kafka, *now, dice, *bug, *rotten)
    }

    fn stop(&mut self, process: Process) -> Result<(), crate::process::Died> {
        process.stop(&mut self.kafka, self.now, &mut self.dice, &mut self.tally)
    }

    fn step(&mut self, process: &mut Process) -> Result<(), crate::process::Died> {
        self.now += Duration::from_millis(self.dice.below(120));
        let now_ms = self.now_ms();
        match self.dice.below(24) {
            0..=2 => self.produce(),
            3..=6 => {
                process.poll(&self.kafka, self.now, now_ms, &mut self.dice, &mut self.tally)?
            }
            7..=8 => process.sync()?,
            9 => process.turn_with(self.now, self.bug)?,
            10..=11 => process.answer_commit(&mut self.kafka, self.now, &mut self.dice),
            12..=13 => process.deliver(self.now, now_ms, false)?,
            14..=17 => {
                for _ in 0..4 {
                    process.answer_request(
                        &mut self.store,
                        self.now,
                        &mut self.dice,
                        self.store_up,
                        &mut self.tally,
                    )?;
                }
            }
            18 => process.checkpoint(self.now)?,
            19..=21 => {
                process.keep_ledger(&mut self.kafka, self.now, &mut self.dice, &mut self.tally)?
            }
            22 => process.fetch_owed(&self.kafka, now_ms, &mut self.dice, &mut self.tally)?,
            _ if self.dice.one_in(2) => {
                self.tally.rebalances += 1;
                process.rebalance(&mut self.kafka, self.now, &mut self.dice, &mut self.tally)?;
            }
            _ => self.store_up = !self.dice.one_in(3),
        }
        Ok(())
    }

    fn produce(&mut self) {
        for _ in 0..self.dice.below(25) {
            self.sequence += 1;
            let partition = self.dice.index(self.kafka.partitions.len());
            // Unique, so that the winner of a key is decided.
            let timestamp_ms = self.now_ms() - 30_000 + i64::from(self.sequence);
            let series = u32::try_from(self.dice.below(6)).unwrap();
            let time_ms = EPOCH_MS + i64::try_from(self.dice.below(40)).unwrap() * 1000;
            let (payload, fate) = match self.dice.below(30) {
                // Longer than a record of the log can be.
                0 if self.dice.one_in(8) => {
                    let length = 17_000 + self.dice.index(20_000);
                    (Some(vec![b'x'; length]), Fate::Poison)
                }
                0 => (Some(b"{\"metric\":".to_vec()), Fate::Poison),
                1 => (None, Fate::Poison),
                2 => (Some(metric_message(series, time_ms, self.sequence, true)), Fate::Refused),
                _ => (
                    Some(metric_message(series, time_ms, self.sequence, false)),
                    Fate::Stored { series, time_ms, sequence: self.sequence },
                ),
            };
            self.kafka.partitions[partition].push(Message { payload, timestamp_ms, fate });
        }
    }

    /// The process is gone; the disks keep what they keep, and recovery shows it.
    fn crash(&mut self) {
        let level = if self.dice.one_in(2) { CrashLevel::Kill } else { CrashLevel::PowerCut };
        self.tally.crashes += 1;
        self.tally.power_cuts += u64::from(level == CrashLevel::PowerCut);
        let disks = [self.disks[0].crash(level), self.disks[1].crash(level)];
        self.disks = disks;
        self.harm_the_log();
        if self.rotten {
            // What is missing shows when a reader comes to it; the end of the run tells.
            return;
        }
        // What recovery makes of it is what counts; it runs on a copy, the real one comes with the next start.
        let copy = [self.disks[0].fork(), self.disks[1].fork()];
        let started =
            Process::start(&copy, &self.kafka, self.now, &mut Dice(1), self.bug, self.rotten);
        let owed = started.and_then(|mut process| {
            process.open_ledger(&self.kafka, &mut Tally::default())?;
            Ok(process.owed())
        });
        let owed =
            owed.unwrap_or_else(|died| panic!("a healthy disk cannot be opened: {}", died.0));
        oracle::check_committed(&self.kafka, &self.store, &copy, &owed);
    }

    /// Sometimes the disk with the log is lost, an older copy is put back, or bytes rot. Its next start must notice.
    fn harm_the_log(&mut self) {
        match self.dice.below(12) {
            0 => {
                self.tally.disks_lost += 1;
                self.disks[0] = SimDisk::new(self.dice.next());
                self.rotten = false;
            }
            1 => {
                if let Some(backup) = self.backup.take() {
                    self.tally.disks_rolled_back += 1;
                    self.disks[0] = backup;
                }
            }
            2 | 3 if !self.rotten => self.backup = Some(self.disks[0].fork()),
            // Once: rot that meets what was fetched again because of rot is one fault more than is provided for.
            4 if !self.rotten => {
                self.tally.disks_rotten += 1;
                self.rotten = true;
                self.backup = None;
                let names = self.disks[0].file_names();
                if let Some(name) = names.get(self.dice.index(names.len())) {
                    let mut bytes = self.disks[0].read_file(name).unwrap_or_default();
                    // Files are prepared ahead, and most of what was not written is zero: there rot changes nothing.
                    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                    let at = self.dice.index(written + 1);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.dice.below(8);
                        self.disks[0].write_file(name, &bytes);
                    }
                }
            }
            _ => {}
        }
    }

    fn come_to_rest(&mut self) {
        self.store_up = true;
        self.heal_disks();
        let mut process = self
            .start()
            .unwrap_or_else(|died| panic!("a healthy disk cannot be opened: {}", died.0));
        // I9: without faults everything is delivered within bounded time.
        for _ in 0..20_000 {
            self.now += Duration::from_millis(50);
            let now_ms = self.now_ms();
            let alive = process
                .poll(&self.kafka, self.now, now_ms, &mut self.dice, &mut self.tally)
                .and_then(|()| process.turn(self.now))
                .and_then(|()| process.sync())
                .and_then(|()| process.deliver(self.now, now_ms, false))
                .and_then(|()| process.checkpoint(self.now));
            alive.unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
            process
                .keep_ledger(&mut self.kafka, self.now, &mut self.dice, &mut self.tally)
                .and_then(|()| {
                    process.fetch_owed(&self.kafka, now_ms, &mut self.dice, &mut self.tally)
                })
                .unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
            process.answer_commit(&mut self.kafka, self.now, &mut self.dice);
            for _ in 0..8 {
                let answered = process.answer_request(
                    &mut self.store,
                    self.now,
                    &mut self.dice,
                    true,
                    &mut self.tally,
                );
                answered.unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
            }
            if process.is_done(&self.kafka) {
                self.stop(process)
                    .unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
                return;
            }
        }
        panic!(
            "I9: not at rest after 1,000 s without faults: committed {:?}, ledger {:?}, {}",
            self.kafka.committed,
            self.kafka.ledger,
            process.describe()
        );
    }
}
