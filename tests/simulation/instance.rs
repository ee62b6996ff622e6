//! One persister on a machine of its own: two disks, and a process as long as it lives.

use std::collections::{BTreeMap, BTreeSet};

use monasca_persister::offset_ranges::OffsetRange;
use wal::Fs as _;
use wal::sim::{CrashLevel, SimDisk};

use crate::dice::Dice;
use crate::kafka::Topic;
use crate::ledger_keeper::owed_of_topics;
use crate::oracle::{self, Holding};
use crate::process::{Died, Process};
use crate::surroundings::Surroundings;

/// The machine.
pub struct Instance {
    pub number: usize,
    /// The log and the dead letters: crashes take both.
    pub disks: [SimDisk; 2],
    /// A copy of the log's disk that somebody made.
    backup: Option<SimDisk>,
    /// The log's disk has rotten bytes.
    pub rotten: bool,
    /// Records were moved in the log. Rot is one fault more than is provided for then: nothing tells which offsets a
    /// damaged place held that holds moved records.
    has_moved: bool,
    pub process: Option<Process>,
    /// The process stands still.
    pub is_frozen: bool,
    /// Machine and disks are lost for ever.
    pub is_gone: bool,
    /// Instances that it is to take over from.
    pub orders: BTreeSet<usize>,
    /// The store's nodes and their lives, in a file of its own; until they are known, one that never answers.
    lives: Option<BTreeMap<String, i64>>,
}

impl Instance {
    pub fn new(number: usize, dice: &mut Dice) -> Self {
        Self {
            number,
            disks: [SimDisk::new(dice.next()), SimDisk::new(dice.next())],
            backup: None,
            rotten: false,
            has_moved: false,
            process: None,
            is_frozen: false,
            is_gone: false,
            orders: BTreeSet::new(),
            lives: None,
        }
    }

    pub fn is_awake(&self) -> bool {
        self.process.is_some() && !self.is_frozen
    }

    /// No process, or one that stands still.
    pub fn is_away(&self) -> bool {
        !self.is_gone && !self.is_awake()
    }

    /// Somebody starts the process, or lets it go on.
    pub fn come_back(&mut self, at: &mut Surroundings) {
        if self.process.is_some() {
            self.is_frozen = false;
        } else {
            self.start(at);
        }
    }

    /// Somebody has looked at the copies of damaged files, and makes room, while no process runs.
    pub fn empty_quarantine(&mut self) {
        if self.process.take().is_some() {
            self.disks = self.disks.each_ref().map(|disk| disk.crash(CrashLevel::Kill));
        }
        let log = &self.disks[0];
        for (name, _) in log.quarantined().unwrap() {
            log.unlink(&format!("quarantine/{name}")).unwrap();
        }
    }

    /// Faults of an earlier life do not reach into this one.
    pub fn heal_disks(&self) {
        for disk in &self.disks {
            disk.fail_after(1 << 40);
        }
    }

    /// A process begins. It may die with some operation of a disk, perhaps while it is opening.
    pub fn start(&mut self, at: &mut Surroundings) {
        self.heal_disks();
        if at.dice.one_in(3) {
            let operations = 1 + at.dice.below(120);
            let disk = at.dice.index(2);
            self.disks[disk].fail_after(operations);
        }
        if self.open(at).is_err() {
            at.tally.crashes_while_opening += 1;
            self.crash(at);
        }
    }

    /// Opens the logs and joins the group.
    pub fn open(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        let Surroundings { now, dice, settings, .. } = at;
        let mut process = Process::start(
            self.number,
            &self.disks,
            *now,
            dice,
            *settings,
            self.rotten,
            &self.lives.clone().unwrap_or_default(),
        )?;
        self.lives.get_or_insert_with(|| BTreeMap::from([("unknown".to_owned(), 0)]));
        if at.settings.store_loses {
            // It asks before anything is delivered.
            process.watch(at)?;
        }
        process.tell_gaps(at);
        process.join(at);
        at.tell(|| {
            format!("{}: started, log knows {:?}", self.number, process.keeper.log_offsets())
        });
        self.process = Some(process);
        Ok(())
    }

    /// Something that the process does by itself, or is answered.
    pub fn act(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        // A thread of its own: it looks, or something else comes first.
        if at.dice.one_in(2) {
            self.watch(at)?;
        }
        let Some(process) = &mut self.process else { return Ok(()) };
        match at.dice.below(25) {
            0..=3 => process.poll(at),
            4..=5 => process.sync(),
            6 => process.turn(at),
            7..=8 => {
                process.answer_commit(at);
                Ok(())
            }
            9..=10 => process.deliver(at),
            11..=14 => (0..4).try_for_each(|_| process.answer_request(at)),
            15 => {
                self.has_moved |= process.checkpoint(!self.rotten, at)?;
                Ok(())
            }
            16..=18 => process.keep_ledger(at).map(|_| ()),
            19 => process.fetch_owed(at),
            20 => process.heed(at),
            21 => process.look_at_topic(at),
            22 if at.dice.one_in(6) => process.accept(at),
            22 => Ok(()),
            _ => process.take_over(&mut self.orders, at),
        }
    }

    fn watch(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        if let Some(process) = self.process.as_mut().filter(|_| at.settings.store_loses)
            && let Some(present) = process.watch(at)?
            // The file may not be written now.
            && !present.is_empty()
            && !at.dice.one_in(8)
        {
            self.lives = Some(present);
        }
        Ok(())
    }

    /// Everything that a process does, once.
    pub fn act_in_turn(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        self.watch(at)?;
        let Some(process) = &mut self.process else { return Ok(()) };
        process.heed(at)?;
        if at.dice.one_in(20) {
            process.look_at_topic(at)?;
            process.accept(at)?;
        }
        process.poll(at)?;
        process.turn(at)?;
        process.sync()?;
        process.deliver(at)?;
        self.has_moved |= process.checkpoint(!self.rotten, at)?;
        process.keep_ledger(at)?;
        process.take_over(&mut self.orders, at)?;
        process.fetch_owed(at)?;
        process.answer_commit(at);
        (0..8).try_for_each(|_| process.answer_request(at))
    }

    /// A clean stop, unless a disk dies with the last operation.
    pub fn stop(&mut self, at: &mut Surroundings) -> Result<(), Died> {
        if let Some(process) = self.process.take() {
            process.stop(at)?;
        }
        if self.disks.iter().any(SimDisk::is_stopped) {
            return Err(Died("a disk died last".to_owned()));
        }
        at.tally.clean_stops += 1;
        Ok(())
    }

    /// The process is gone; the disks keep what they keep.
    pub fn crash(&mut self, at: &mut Surroundings) {
        at.tell(|| self.process.as_ref().map(Process::describe).unwrap_or_default());
        self.process = None;
        self.is_frozen = false;
        let level = level(&mut at.dice);
        at.tally.crashes += 1;
        at.tell(|| format!("{}: {level:?}", self.number));
        at.tally.power_cuts += u64::from(level == CrashLevel::PowerCut);
        self.disks = self.disks.each_ref().map(|disk| disk.crash(level));
        if !self.rotten && at.dice.one_in(8) {
            at.tally.recovered_twice += 1;
            let seed = at.dice.next();
            oracle::check_recovery(
                &self.disks,
                |disks, dice| {
                    let lives = &self.lives.clone().unwrap_or_default();
                    Process::start(self.number, disks, at.now, dice, at.settings, false, lives)
                },
                level,
                seed,
            );
        }
        self.harm_the_log(at);
    }

    /// The machine does not come back, and nobody sees its disks again.
    pub fn lose(&mut self, at: &mut Surroundings) {
        self.process = None;
        self.is_frozen = false;
        self.is_gone = true;
        self.orders.clear();
        at.tally.machines_lost += 1;
        at.tell(|| format!("{}: lost for ever", self.number));
        // A process that has the disk open may have died of it a moment ago.
        let disks = self.disks.each_ref().map(|disk| disk.fork().crash(CrashLevel::Kill));
        at.buried.extend(oracle::dead_messages(&disks[1]));
        bury(at, &disks[0]);
        self.disks = [0, 1].map(|_| SimDisk::new(at.dice.next()));
    }

    /// Sometimes the disk with the log is lost, an older copy is put back, or bytes rot. Its next start must notice.
    fn harm_the_log(&mut self, at: &mut Surroundings) {
        if !at.settings.ledger || at.settings.store_loses {
            return;
        }
        match at.dice.below(12) {
            0 => {
                at.tally.disks_lost += 1;
                at.tell(|| format!("{}: disk lost", self.number));
                bury(at, &self.disks[0]);
                self.disks[0] = SimDisk::new(at.dice.next());
                self.rotten = false;
                if at.dice.one_in(3) {
                    at.buried.extend(oracle::dead_messages(&self.disks[1]));
                    self.disks[1] = SimDisk::new(at.dice.next());
                }
            }
            1 => {
                if let Some(backup) = self.backup.take() {
                    at.tally.disks_rolled_back += 1;
                    at.tell(|| format!("{}: disk rolled back", self.number));
                    bury(at, &self.disks[0]);
                    self.disks[0] = backup;
                }
            }
            2 | 3 if !self.rotten => self.backup = Some(self.disks[0].fork()),
            // Once: rot that meets what was fetched again because of rot is one fault more than is provided for.
            4 if !self.rotten && !self.has_moved => {
                at.tally.disks_rotten += 1;
                at.tell(|| format!("{}: disk rots", self.number));
                bury(at, &self.disks[0]);
                self.rotten = true;
                self.backup = None;
                let names = self.disks[0].file_names();
                if let Some(name) = names.get(at.dice.index(names.len())) {
                    let mut bytes = self.disks[0].read_file(name).unwrap_or_default();
                    // Files are prepared ahead, and most of what was not written is zero: there rot changes nothing.
                    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                    let position = at.dice.index(written + 1);
                    if let Some(byte) = bytes.get_mut(position) {
                        *byte ^= 1 << at.dice.below(8);
                        self.disks[0].write_file(name, &bytes);
                    }
                }
            }
            _ => {}
        }
    }

    /// A process on copies of the disks reads the ledger: what the next start will know to be owed, or to be lost.
    fn start_on(
        &self,
        disks: &[SimDisk; 2],
        at: &Surroundings,
        dice: &mut Dice,
    ) -> Result<Vec<(String, OffsetRange)>, Died> {
        let mut process = Process::start(
            self.number,
            disks,
            at.now,
            dice,
            at.settings,
            self.rotten,
            &self.lives.clone().unwrap_or_default(),
        )?;
        let mut owed = Vec::new();
        if at.settings.ledger {
            let ledger = &at.kafka.ledgers[self.number];
            owed = process.compare_ledger(&at.kafka.topic.id, ledger)?.1;
            // What it cannot note yet it reads again.
            if !process.keeper.is_open() {
                owed.extend(owed_of_topics(ledger));
            }
        }
        let topic = process.topic_of_log(at);
        owed.extend(process.owed().iter().map(|range| (topic.clone(), range)));
        Ok(owed)
    }

    /// What would be there if the process ended now and began again.
    pub fn holding(&self, at: &Surroundings, dice: &mut Dice) -> Holding {
        let ledger = &at.kafka.ledgers[self.number];
        if self.is_gone {
            return Holding::of_ledger(ledger);
        }
        let level = level(dice);
        let disks = self.disks.each_ref().map(|disk| {
            let copy = disk.fork();
            // A fault that is planned for the original is none of the copy's.
            copy.fail_after(1 << 40);
            if self.process.is_some() { copy.crash(level) } else { copy }
        });
        // What is missing shows when a reader comes to it; the end of the run tells.
        if self.rotten {
            return Holding::of_ledger(ledger).with_rest_of(&disks);
        }
        let owed = self
            .start_on(&disks, at, dice)
            .unwrap_or_else(|died| panic!("a healthy disk cannot be opened: {}", died.0));
        Holding::of_disks(&disks, owed, ledger)
    }
}

/// What a disk that is lost has of deleted topics and of the lost ends of partitions was there only.
fn bury(at: &mut Surroundings, disk: &SimDisk) {
    let former = at.kafka.former.iter().flat_map(Topic::messages);
    let torn = at.kafka.topics().flat_map(Topic::torn).map(|(_, torn)| &torn.message);
    let messages = former.map(|(_, _, message)| message).chain(torn);
    let gone: BTreeSet<i64> = messages.map(|message| message.timestamp_ms).collect();
    if !gone.is_empty() {
        at.buried.extend(oracle::messages_in(disk).intersection(&gone));
    }
}

fn level(dice: &mut Dice) -> CrashLevel {
    if dice.one_in(2) { CrashLevel::Kill } else { CrashLevel::PowerCut }
}
