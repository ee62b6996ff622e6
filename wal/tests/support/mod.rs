//! The model the log is compared with: a list of records, and what was promised about them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use wal::sim::{CrashLevel, Injected, SimDisk};
use wal::{
    AppendError, Attestation, Batch, CURSOR_NAME, Carry, Chunk, Compression, GapReason,
    Incarnation, Mutant, Position, ReadOutcome, Reader, RecoveryReport, Ticket, Wal, WalConfig,
    WalError,
};

/// SplitMix64: the same sequence everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Keeps the highest number seen: idempotent, as a carry has to be.
#[derive(Default)]
pub struct Highest(pub u64);

impl Carry for Highest {
    fn absorb(&mut self, annotation: &[u8]) {
        self.0 = self.0.max(number(annotation));
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), String> {
        self.0 = number(saved);
        Ok(())
    }
}

pub fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// A claim that did not hold.
pub type Failure = String;

macro_rules! claim {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!("{} [{}:{}]", format!($($message)+), file!(), line!()));
        }
    };
}

pub mod rot;

/// What was submitted, and what the log promised about it.
#[derive(Clone, Default)]
pub struct Model {
    pub submitted: Vec<Vec<u8>>,
    /// (position after it, annotation) of every batch.
    pub annotations: Vec<(u64, u64)>,
    /// The log said that everything before it is durable.
    pub confirmed: u64,
    /// Highest annotation of a batch whose ticket resolved.
    pub confirmed_annotation: u64,
    pub acked: BTreeSet<u64>,
    /// Taken back, but perhaps still noted on the disk.
    pub withdrawn: BTreeSet<u64>,
    /// Acked before the last checkpoint that succeeded.
    pub checkpointed: BTreeSet<u64>,
    /// *Delivered* when the log was opened; it may be reclaimed a hold-back later.
    pub delivered_at_open: u64,
    /// The furthest *delivered* that any checkpoint was asked to note, even if it failed.
    pub attempted: u64,
    pub incarnation: u64,
    pub next_annotation: u64,
}

impl Model {
    pub fn delivered(&self) -> u64 {
        contiguous(&self.acked)
    }

    /// The CURSOR could not be written. What a read shows of it may not be on the disk then, and if
    /// the next recovery crashes while it writes the other slot, older acks are what is left:
    /// records come twice.
    fn forget_checkpoints(&mut self) {
        self.checkpointed.clear();
    }

    /// Everything a freshly opened log must agree with; afterwards the model is what the log is.
    pub fn check_opened(
        &mut self,
        wal: &Wal<SimDisk>,
        report: &RecoveryReport,
    ) -> Result<(), Failure> {
        let end = report.end.get();
        claim!(end >= self.confirmed, "I1: {} were durable, {end} are left", self.confirmed);
        claim!(
            end <= self.submitted.len() as u64,
            "I2: {} were submitted, {end} are there",
            self.submitted.len()
        );
        claim!(report.gaps.is_empty(), "a crash is no damage: {:?}", report.gaps);
        claim!(report.damage.is_empty(), "a crash is no damage: {:?}", report.damage);
        claim!(
            report.incarnation.get() > self.incarnation,
            "incarnation {} after {}",
            report.incarnation,
            self.incarnation
        );
        let witness = Incarnation::new(self.incarnation);
        if self.incarnation > 0 {
            let intact = wal.attest(witness, Position::new(self.confirmed));
            claim!(intact == Attestation::Intact, "I1 for a witness: {intact:?}");
            let beyond = wal.attest(witness, Position::new(end + 5));
            let missing = Position::new(end)..Position::new(end + 5);
            claim!(beyond == Attestation::Missing(missing), "witness of lost records: {beyond:?}");
        }
        self.incarnation = report.incarnation.get();
        self.submitted.truncate(usize::try_from(end).unwrap());
        self.acked.retain(|position| *position < end);
        self.confirmed = end;

        // A crash may undo that acks were taken back.
        self.acked.extend(std::mem::take(&mut self.withdrawn).into_iter().filter(|at| *at < end));
        let delivered = wal.delivered().get();
        claim!(
            delivered <= self.delivered(),
            "delivered {delivered} was never acked, only up to {}",
            self.delivered()
        );
        claim!(
            delivered >= contiguous(&self.checkpointed),
            "delivered {delivered} after a checkpoint of {}",
            contiguous(&self.checkpointed)
        );
        for position in 0..end {
            let acked = wal.is_acked(Position::new(position));
            claim!(!acked || self.acked.contains(&position), "{position} was never acked");
            claim!(
                acked || !self.checkpointed.contains(&position),
                "the ack of {position} is lost"
            );
        }
        self.delivered_at_open = delivered;
        // What was acked but not checkpointed is delivered again.
        self.acked = (0..end).filter(|at| wal.is_acked(Position::new(*at))).collect();

        let carry = number(&wal.carry());
        let most = self
            .annotations
            .iter()
            .filter(|(after, _)| *after <= end)
            .map(|(_, annotation)| *annotation)
            .max()
            .unwrap_or(0);
        claim!(carry >= self.confirmed_annotation, "carry {carry} < {}", self.confirmed_annotation);
        claim!(carry <= most, "carry {carry} > {most}");
        // What is gone is submitted anew under other numbers.
        self.annotations.retain(|(after, annotation)| *after <= end && *annotation <= carry);
        self.confirmed_annotation = carry;
        self.check_content(wal)
    }

    /// Everything durable reads back equal, exactly once, in order.
    pub fn check_content(&self, wal: &Wal<SimDisk>) -> Result<(), Failure> {
        let status = wal.status();
        claim!(
            status.appended >= status.durable
                && status.durable >= status.delivered
                && status.delivered >= status.reclaimed,
            "watermarks out of order: {status:?}"
        );
        let mut reader = wal.reader(Position::ZERO);
        let mut chunk = Chunk::new();
        let mut expected = 0;
        loop {
            match reader.next(&mut chunk, 4096).map_err(|error| error.to_string())? {
                ReadOutcome::Records => {
                    for (position, record) in &chunk {
                        claim!(position.get() == expected, "read {position}, not {expected}");
                        let at = usize::try_from(expected).unwrap();
                        claim!(
                            self.submitted.get(at).is_some_and(|submitted| submitted == record),
                            "I1: record {position} is another one"
                        );
                        expected += 1;
                    }
                }
                ReadOutcome::Gap(range, GapReason::Reclaimed) => {
                    claim!(range.start.get() == expected, "gap {range:?} after {expected}");
                    claim!(
                        range.end.get() <= self.attempted,
                        "I4: {range:?} reclaimed, checkpointed {}",
                        self.attempted
                    );
                    expected = range.end.get();
                }
                ReadOutcome::Gap(range, reason) => {
                    return Err(format!("gap {range:?}: {reason:?}"));
                }
                ReadOutcome::CaughtUp => break,
            }
        }
        claim!(expected >= self.confirmed, "I1: read up to {expected} of {}", self.confirmed);
        Ok(())
    }
}

pub fn contiguous(acked: &BTreeSet<u64>) -> u64 {
    (0..).find(|position| !acked.contains(position)).unwrap_or(0)
}

/// What a run may do. Everything else follows from its seed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub mutant: Mutant,
    pub crash_levels: &'static [CrashLevel],
    /// Operations of the disk may fail.
    pub faults: bool,
    /// No more steps than these, over all lives: for shrinking.
    pub steps_max: u64,
}

/// Everything that may happen to a log.
pub const ANYTHING: Plan = Plan {
    mutant: Mutant::None,
    crash_levels: &[CrashLevel::Kill, CrashLevel::PowerCut, CrashLevel::TornSectors],
    faults: true,
    steps_max: u64::MAX,
};

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Crashes, each with a recovery that was checked.
    pub crashes: u64,
    /// Crashes in the middle of a recovery.
    pub in_recovery: u64,
    pub records: u64,
    pub faults: u64,
    pub rotten: u64,
    pub lies: u64,
    pub lies_noticed: u64,
    /// Stuck records that were moved to the head.
    pub moved: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.crashes += other.crashes;
        self.in_recovery += other.in_recovery;
        self.records += other.records;
        self.faults += other.faults;
        self.rotten += other.rotten;
        self.lies += other.lies;
        self.lies_noticed += other.lies_noticed;
        self.moved += other.moved;
    }
}

/// One life of a log after the other on one disk, everything decided by the seed.
pub struct Run {
    pub random: Random,
    pub model: Model,
    pub config: WalConfig,
    pub now: Duration,
    pub tally: Tally,
    /// What was acked when a checkpoint noted it: for the hold-back.
    pub held: Vec<(Duration, u64)>,
    /// There is no space until the next crash.
    pub disk_stays_full: bool,
    /// Operations of the disk may fail.
    pub faults: bool,
}

pub struct Life {
    pub wal: Wal<SimDisk>,
    pub tickets: Vec<(Ticket<SimDisk>, u64)>,
    pub reader: Reader<SimDisk>,
    pub chunk: Chunk,
    pub read: u64,
    pub opened_bytes: u64,
    pub disk: SimDisk,
}

impl Run {
    pub fn new(seed: u64, mutant: Mutant) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let segment_bytes = [16, 24, 48, 128][random.below(4) as usize] * 1024;
        let config = WalConfig {
            segment_bytes,
            max_bytes: if random.one_in(3) { 6 * segment_bytes } else { 64 << 20 },
            min_free_bytes: 0,
            max_record_bytes: 48 * 1024,
            queue_bytes_max: 256 * 1024,
            hold_back: Duration::from_secs(random.below(3) * 5),
            compression: if random.one_in(2) { Compression::Lz4 } else { Compression::None },
            sync_policy: wal::SyncPolicy::EachGroup,
            mutant,
        };
        let (tally, held) = (Tally::default(), Vec::new());
        Self {
            random,
            model: Model::default(),
            config,
            now: Duration::ZERO,
            tally,
            held,
            disk_stays_full: false,
            faults: false,
        }
    }

    /// Opens the log; `None` if the disk failed in the middle of it.
    pub fn open(&mut self, disk: &SimDisk) -> Result<Option<Life>, Failure> {
        let carry = Box::new(Highest::default());
        match Wal::open(disk.clone(), self.config.clone(), carry, self.now) {
            Ok((wal, report)) => {
                let fired = disk.injected_fired();
                let outcome = self.model.check_opened(&wal, &report);
                // A check that met the planned stop or an injected error proves nothing.
                if outcome.is_err() && (disk.is_stopped() || disk.injected_fired() > fired) {
                    return Ok(None);
                }
                outcome?;
                let read = self.model.delivered();
                let reader = wal.reader(Position::new(read));
                let opened_bytes = wal.status().allocated_bytes;
                let (tickets, chunk) = (Vec::new(), Chunk::new());
                let disk = disk.clone();
                Ok(Some(Life { wal, tickets, reader, chunk, read, opened_bytes, disk }))
            }
            Err(WalError::Io { .. } | WalError::NoSpace { .. }) => {
                if disk.injected_fired() > 0 {
                    self.model.forget_checkpoints();
                }
                Ok(None)
            }
            Err(error) => Err(format!("open: {error}")),
        }
    }

    pub fn batch(&mut self) -> (Batch, Vec<Vec<u8>>, u64) {
        let mut batch = Batch::new();
        let mut records = Vec::new();
        let count = match self.random.below(12) {
            0 => 0,
            1 => 1 + self.random.below(60),
            _ => 1 + self.random.below(8),
        };
        for _ in 0..count {
            let length = match self.random.below(40) {
                0 => self.random.below(40 * 1024),
                1..5 => 0,
                _ => self.random.below(700),
            };
            let id = self.random.next();
            let noise = self.random.one_in(2);
            let record: Vec<u8> = (0..length)
                .map(|at| {
                    let word =
                        if noise { id.wrapping_mul(at * 2 + 1) >> 17 } else { id >> (at % 8) };
                    word.to_le_bytes()[0]
                })
                .collect();
            if batch.push(&record).is_err() {
                break;
            }
            records.push(record);
        }
        let mut annotation = 0;
        if count == 0 || self.random.one_in(2) {
            self.model.next_annotation += 1;
            annotation = self.model.next_annotation;
            batch.annotate(&annotation.to_le_bytes());
        }
        (batch, records, annotation)
    }

    pub fn append(&mut self, life: &mut Life) -> Result<(), Failure> {
        let (batch, records, annotation) = self.batch();
        let same = batch.clone();
        match life.wal.append(batch) {
            Ok(ticket) => {
                let range = ticket.range();
                claim!(
                    range.start.get() == self.model.submitted.len() as u64,
                    "appended at {range:?} after {}",
                    self.model.submitted.len()
                );
                self.model.submitted.extend(records);
                claim!(range.end.get() == self.model.submitted.len() as u64, "{range:?}");
                if annotation > 0 {
                    self.model.annotations.push((range.end.get(), annotation));
                }
                life.tickets.push((ticket, annotation));
            }
            Err(AppendError::Full(back)) => claim!(back == same, "Full changed the batch"),
            Err(AppendError::Poisoned { .. }) => {}
            Err(error) => return Err(format!("append: {error}")),
        }
        let status = life.wal.status();
        // Opening a full log takes a new segment, and a copy of what was unproven. Notes may take a little more.
        let notes = (self.config.segment_bytes / 16).max(2 * 4096) + 2 * 4096;
        let allowed = self.config.max_bytes.max(life.opened_bytes) + notes;
        claim!(status.allocated_bytes <= allowed, "I9: {} > {allowed}", status.allocated_bytes);
        Ok(())
    }

    /// Takes note of every ticket that has resolved; they resolve in order.
    pub fn settle(&mut self, life: &mut Life) -> Result<(), Failure> {
        let mut waiting = Vec::new();
        for (ticket, annotation) in std::mem::take(&mut life.tickets) {
            match ticket.poll() {
                Some(Ok(durable)) => {
                    claim!(waiting.is_empty(), "a ticket overtook an earlier one");
                    claim!(durable.through() >= ticket.range().end, "durable is behind its ticket");
                    self.model.confirmed = self.model.confirmed.max(durable.through().get());
                    self.model.confirmed_annotation =
                        self.model.confirmed_annotation.max(annotation);
                }
                Some(Err(_)) => {}
                None => waiting.push((ticket, annotation)),
            }
        }
        life.tickets = waiting;
        self.model.confirmed = self.model.confirmed.max(life.wal.durable().through().get());
        Ok(())
    }

    /// One random step. `Ok(false)`: the log is poisoned.
    pub fn step(&mut self, life: &mut Life) -> Result<bool, Failure> {
        let outcome = match self.random.below(24) {
            0..8 => {
                self.append(life)?;
                Ok(())
            }
            8..12 => life.wal.commit(),
            // A ticket waits as long as there is no space.
            12 => match life.tickets.last() {
                Some((ticket, _)) if !self.disk_stays_full => ticket.wait().map(|_| ()),
                Some(_) | None => Ok(()),
            },
            13..15 => {
                let durable = life.wal.durable().through().get();
                let delivered = self.model.delivered();
                let start = delivered + self.random.below(5) * self.random.below(4);
                let end = start + self.random.below(40);
                let acks: Range<u64> = start..end.min(durable);
                life.wal.ack(Position::new(start)..Position::new(end));
                // A lying log must not teach the model acks of what it does not have.
                let real = self.real_durable(life);
                self.model.acked.extend(acks.filter(|position| *position < real));
                Ok(())
            }
            15..17 => {
                self.now += Duration::from_secs(self.random.below(4));
                let before = self.model.acked.clone();
                self.model.attempted = self.model.attempted.max(self.model.delivered());
                let outcome = life.wal.checkpoint(self.now);
                // One that only could not remove a file has noted the acks all the same.
                let of_cursor = |error: &WalError| error.to_string().contains(CURSOR_NAME);
                if !outcome.as_ref().is_err_and(of_cursor) {
                    self.held.push((self.now, self.model.delivered()));
                }
                if outcome.is_ok() {
                    self.model.checkpointed = before;
                    self.model.withdrawn.clear();
                } else {
                    self.model.forget_checkpoints();
                }
                self.check_hold_back(life)?;
                outcome
            }
            17..19 => self.read(life)?,
            19 => {
                self.settle(life)?;
                Ok(())
            }
            20 => life.wal.prepare().map(|_| ()),
            21 | 22 => self.side_by_side(life),
            _ => self.rarely(life)?,
        };
        match outcome {
            Ok(()) | Err(WalError::NoSpace { .. }) => Ok(true),
            Err(_) => Ok(false),
        }
    }

    /// Leaves a few records stuck.
    fn ack_most(&mut self, life: &Life) {
        let durable = self.real_durable(life);
        let mut start = self.model.delivered();
        while start < durable {
            let end = (start + 20 + self.random.below(60)).min(durable);
            life.wal.ack(Position::new(start)..Position::new(end));
            self.model.acked.extend(start..end);
            start = end + 1;
        }
    }

    /// Nothing is reclaimed that was not acked a whole hold-back ago.
    fn check_hold_back(&self, life: &Life) -> Result<(), Failure> {
        let hold_back = self.config.hold_back;
        let old = |at: Duration| self.now.saturating_sub(at) >= hold_back;
        let allowed = self.held.iter().filter(|(at, _)| old(*at)).map(|(_, to)| *to).max();
        let allowed = allowed.unwrap_or(0).max(self.model.delivered_at_open);
        let reclaimed = life.wal.status().reclaimed.get();
        claim!(reclaimed <= allowed, "the hold-back of {allowed} does not hold: {reclaimed}");
        Ok(())
    }

    /// One or two groups, their steps in any order.
    fn side_by_side(&mut self, life: &mut Life) -> Result<(), WalError> {
        if self.faults && self.random.one_in(12) {
            life.disk.inject(1 + self.random.below(6), Injected::Eio);
        }
        let mut flights = Vec::new();
        let mut outcome = Ok(());
        for _ in 0..1 + self.random.below(2) {
            self.append(life).ok();
            match life.wal.begin_group() {
                Ok(Some(flight)) => flights.push((flight, 0)),
                Ok(None) => {}
                Err(error) => outcome = Err(error),
            }
        }
        while !flights.is_empty() {
            let index = usize::try_from(self.random.below(flights.len() as u64)).unwrap();
            let (flight, step) = &mut flights[index];
            *step += 1;
            match *step {
                1 => flight.write(),
                2 => flight.sync(),
                _ => {
                    let landed = flights.remove(index).0.land();
                    outcome = outcome.and(landed);
                }
            }
        }
        outcome
    }

    /// Stuck records are moved, or a store has lost what it acknowledged.
    fn rarely(&mut self, life: &mut Life) -> Result<Result<(), WalError>, Failure> {
        if self.random.one_in(2) {
            if self.random.one_in(2) {
                self.ack_most(life);
            }
            let mut left: Vec<u64> = (self.model.delivered()..self.model.submitted.len() as u64)
                .filter(|position| !self.model.acked.contains(position))
                .collect();
            let outcome = if self.random.one_in(2) {
                life.wal.relocate_stuck()
            } else {
                // Any stretch, also before it is durable: then it stays. One stretch, because a CURSOR has room for so many
                // ranges and no more.
                let first = self.random.below(left.len() as u64 + 1);
                let count = self.random.below(left.len() as u64 + 1);
                left = left.into_iter().skip(first as usize).take(count as usize).collect();
                let ranges: Vec<_> = left
                    .iter()
                    .map(|position| Position::new(*position)..Position::new(position + 1))
                    .collect();
                life.wal.move_to_head(&ranges).map(|moved| moved.records)
            };
            let copies = life.wal.status().appended.get() - self.model.submitted.len() as u64;
            for position in left.iter().take(usize::try_from(copies).unwrap()) {
                let copy = self.model.submitted[usize::try_from(*position).unwrap()].clone();
                self.model.submitted.push(copy);
                if life.wal.is_acked(Position::new(*position)) {
                    let durable = self.real_durable(life);
                    let end = self.model.submitted.len() as u64;
                    claim!(end <= durable, "{position} is acked, its copy is not durable");
                    self.model.acked.insert(*position);
                    self.tally.moved += 1;
                }
            }
            return Ok(outcome.map(|_| ()));
        }
        self.now += Duration::from_secs(self.random.below(8));
        for range in life.wal.redeliver(self.now) {
            for position in range.start.get()..range.end.get() {
                claim!(self.model.acked.remove(&position), "{position} was not acked");
                self.model.checkpointed.remove(&position);
                self.model.withdrawn.insert(position);
            }
        }
        for position in &self.model.acked {
            claim!(life.wal.is_acked(Position::new(*position)), "redelivery lost {position}");
        }
        let delivered = life.wal.delivered();
        life.read = delivered.get();
        life.reader = life.wal.reader(delivered);
        Ok(Ok(()))
    }

    fn real_durable(&self, life: &Life) -> u64 {
        life.wal.wait_durable(Position::ZERO, Duration::ZERO).through().get()
    }

    fn read(&mut self, life: &mut Life) -> Result<Result<(), WalError>, Failure> {
        let max_bytes = 1 << self.random.below(16);
        match life.reader.next(&mut life.chunk, max_bytes) {
            Ok(ReadOutcome::Records) => {
                for (position, record) in &life.chunk {
                    claim!(position.get() == life.read, "read {position}, not {}", life.read);
                    let at = usize::try_from(life.read).unwrap();
                    let equal =
                        self.model.submitted.get(at).is_some_and(|submitted| submitted == record);
                    claim!(equal, "record {position} is another one");
                    life.read += 1;
                }
                Ok(Ok(()))
            }
            Ok(ReadOutcome::CaughtUp) => {
                let durable = self.real_durable(life);
                claim!(life.read >= durable, "caught up at {} of {durable}", life.read);
                Ok(Ok(()))
            }
            Ok(ReadOutcome::Gap(range, GapReason::Reclaimed)) => {
                let reclaimed = self.model.attempted;
                claim!(range.end.get() <= reclaimed, "I4: gap {range:?}, checkpointed {reclaimed}");
                life.read = range.end.get();
                Ok(Ok(()))
            }
            Ok(ReadOutcome::Gap(range, reason)) => Err(format!("gap {range:?}: {reason:?}")),
            Err(error) => Ok(Err(error)),
        }
    }

    /// I7: after a failure nothing succeeds in this process.
    pub fn check_poisoned(&mut self, life: &mut Life) -> Result<(), Failure> {
        let (batch, _, _) = self.batch();
        claim!(
            matches!(life.wal.append(batch), Err(AppendError::Poisoned { .. })),
            "I7: a poisoned log takes appends"
        );
        claim!(life.wal.commit().is_err(), "I7: a poisoned log commits");
        claim!(life.wal.checkpoint(self.now).is_err(), "I7: a poisoned log checkpoints");
        for (ticket, _) in &life.tickets {
            claim!(matches!(ticket.poll(), Some(Err(_))), "I7: a ticket of a poisoned log");
            claim!(ticket.wait().is_err(), "I7: waiting on a poisoned log");
        }
        Ok(())
    }
}

/// One life in which the `nth` file operation fails once; `Ok(false)` if there was no such one.
pub fn run_with_failure(seed: u64, nth: u64, error: Injected) -> Result<bool, Failure> {
    let mut run = Run::new(seed, Mutant::None);
    let disk = SimDisk::new(seed);
    disk.inject(nth, error);
    let mut opened = run.open(&disk)?;
    if opened.is_none() {
        // The failure is over, and whatever was half done must not be in the way.
        opened = run.open(&disk)?;
    }
    let Some(mut life) = opened else {
        return Err("the log does not open after one failure".into());
    };
    for _ in 0..80 {
        if !run.step(&mut life)? {
            break;
        }
    }
    run.settle(&mut life)?;
    if life.wal.status().poisoned.is_some() {
        run.check_poisoned(&mut life)?;
    } else {
        // I9: with the failure over, everything queued becomes durable.
        let committed = life.wal.commit().and_then(|()| life.wal.commit());
        if let Err(failure) = committed {
            claim!(
                life.wal.status().poisoned.is_some() || error == Injected::NoSpace,
                "commit fails without poison: {failure}"
            );
        } else {
            run.settle(&mut life)?;
            claim!(life.tickets.is_empty(), "a ticket does not resolve");
            run.model.check_content(&life.wal).or_else(|failure| {
                // The failure may hit this very read.
                if disk.injected_fired() == 1 {
                    run.model.check_content(&life.wal)
                } else {
                    Err(failure)
                }
            })?;
        }
    }
    let fired = disk.injected_fired() > 0;
    let level = if nth.is_multiple_of(2) { CrashLevel::Kill } else { CrashLevel::PowerCut };
    let disk = disk.crash(level);
    drop(life);
    claim!(run.open(&disk)?.is_some(), "the log does not open after the crash");
    Ok(fired)
}

/// A whole run: lives, crashes, recoveries; at last rot, and a disk that lied.
pub fn run(seed: u64, plan: Plan) -> Result<Tally, Failure> {
    wal::mutants::set(plan.mutant);
    let outcome = run_lives(seed, plan);
    wal::mutants::set(Mutant::None);
    outcome
}

fn run_lives(seed: u64, plan: Plan) -> Result<Tally, Failure> {
    let mut run = Run::new(seed, plan.mutant);
    run.faults = plan.faults;
    let mut disk = SimDisk::new(seed);
    let mut steps_left = plan.steps_max;
    if run.random.one_in(8) {
        disk.set_copy_on_write(true);
    }
    for _ in 0..2 + run.random.below(4) {
        // Crashes in the middle of recovery, up to five in a row.
        for _ in 0..5 {
            if !run.random.one_in(4) {
                break;
            }
            disk.fail_after(1 + run.random.below(60));
            let opened = run.open(&disk)?;
            run.tally.in_recovery += u64::from(opened.is_none());
            disk = run.crash(disk, plan)?;
        }
        if run.random.one_in(2) {
            disk.fail_after(40 + run.random.below(400));
        }
        if plan.faults && run.random.one_in(3) {
            let error = if run.random.one_in(2) { Injected::Eio } else { Injected::NoSpace };
            let after = 1 + run.random.below(300);
            if run.random.one_in(8) {
                disk.break_after(after, error);
                run.disk_stays_full = matches!(error, Injected::NoSpace);
            } else {
                disk.inject(after, error);
            }
        }
        let steps = run.random.below(120).min(steps_left);
        steps_left -= steps;
        let fired = disk.injected_fired();
        if let Some(life) = run.open(&disk)? {
            run.live(&disk, life, steps)?;
        }
        run.tally.faults += disk.injected_fired() - fired;
        disk = run.crash(disk, plan)?;
    }
    // At last a whole recovery, whatever came before.
    let opened = run.open(&disk)?;
    claim!(opened.is_some(), "the log does not open on a sound disk");
    if let Some(life) = opened {
        run.tally.records += run.model.submitted.len() as u64;
        life.wal.close(run.now).map_err(|error| format!("close: {error}"))?;
    }
    disk = disk.crash(CrashLevel::PowerCut);
    rot::check(&mut run, &disk)?;
    rot::check_lies(&mut run, &disk)?;
    Ok(run.tally)
}

impl Run {
    fn crash(&mut self, disk: SimDisk, plan: Plan) -> Result<SimDisk, Failure> {
        let level = plan.crash_levels[self.random.below(plan.crash_levels.len() as u64) as usize];
        let disk = disk.crash(level);
        self.disk_stays_full = false;
        self.tally.crashes += 1;
        if self.random.one_in(4) {
            self.tally.in_recovery += 5;
            check_recovery_repeats(self, &disk)?;
        }
        Ok(disk)
    }

    /// One life up to its crash.
    fn live(&mut self, disk: &SimDisk, mut life: Life, steps: u64) -> Result<(), Failure> {
        self.held.clear();
        let mut alive = true;
        for _ in 0..steps {
            let fired = disk.injected_fired();
            alive = match self.step(&mut life) {
                Ok(alive) => alive,
                // A check that met an injected error or the planned stop proves nothing.
                Err(_) if disk.is_stopped() || disk.injected_fired() > fired => return Ok(()),
                Err(failure) => return Err(failure),
            };
            if !alive || disk.is_stopped() {
                break;
            }
        }
        self.settle(&mut life)?;
        let poisoned = life.wal.status().poisoned.is_some();
        if poisoned {
            return self.check_poisoned(&mut life);
        }
        if alive && self.random.one_in(3) {
            let before = self.model.acked.clone();
            self.model.attempted = self.model.attempted.max(self.model.delivered());
            if life.wal.close(self.now).is_ok() {
                self.model.checkpointed = before;
                self.model.withdrawn.clear();
            } else {
                self.model.forget_checkpoints();
            }
            let (batch, _, _) = self.batch();
            claim!(life.wal.append(batch).is_err(), "a closed log takes appends");
            return self.settle(&mut life);
        }
        let fired = disk.injected_fired();
        let outcome = self.model.check_content(&life.wal);
        // The planned stop, or an injected error, may come in the middle of the check.
        if disk.is_stopped() || disk.injected_fired() > fired { Ok(()) } else { outcome }
    }
}

/// Where two recoveries part, in a few words.
fn difference(first: &[(u64, Vec<u8>)], second: &[(u64, Vec<u8>)]) -> String {
    let at = first.iter().zip(second).position(|(one, other)| one != other);
    let show = |all: &[(u64, Vec<u8>)]| at.and_then(|at| all.get(at).cloned());
    format!(
        "{} and {} entries, first difference {at:?}: {:?} {:?}",
        first.len(),
        second.len(),
        show(first).map(|(at, bytes)| (at, bytes.len())),
        show(second).map(|(at, bytes)| (at, bytes.len()))
    )
}

/// I6: recovering once, twice, or after a crash in the middle of recovery gives the same log.
fn check_recovery_repeats(run: &Run, disk: &SimDisk) -> Result<(), Failure> {
    let content = |disk: &SimDisk| -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        let carry = Box::new(Highest::default());
        let (wal, _) = Wal::open(disk.clone(), run.config.clone(), carry, run.now)
            .map_err(|error| format!("open: {error}"))?;
        let mut reader = wal.reader(wal.delivered());
        let mut chunk = Chunk::new();
        let mut all = vec![(wal.delivered().get(), wal.carry())];
        loop {
            match reader.next(&mut chunk, usize::MAX).map_err(|error| error.to_string())? {
                ReadOutcome::Records => {
                    all.extend(chunk.iter().map(|(at, record)| (at.get(), record.to_vec())));
                }
                ReadOutcome::CaughtUp => return Ok(all),
                ReadOutcome::Gap(range, reason) => return Err(format!("{range:?} {reason:?}")),
            }
        }
    };
    let once = disk.fork();
    let first = content(&once)?;
    let again = once.crash(CrashLevel::PowerCut);
    let second = content(&again)?;
    claim!(second == first, "I6: a second recovery differs: {}", difference(&first, &second));
    for stop in [2, 5, 9, 14, 20] {
        let interrupted = disk.fork();
        interrupted.fail_after(stop);
        if content(&interrupted).is_err() {
            // Only a power cut may differ, in what was never synced; a kill keeps everything.
            let rest = interrupted.crash(CrashLevel::Kill);
            claim!(content(&rest)? == first, "I6: recovery after a stop at {stop} differs");
        }
    }
    Ok(())
}
