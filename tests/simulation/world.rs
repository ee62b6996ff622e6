//! One run: instances of one group, and dice that decide what happens next.

use std::collections::BTreeSet;
use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};

use crate::dice::Dice;
use crate::instance::Instance;
use crate::kafka::{Fate, Kafka, Message, Topic, metric_message};
use crate::ledger_keeper::owed_by;
use crate::mutants::Bug;
use crate::oracle::{self, Holding};
use crate::process::{self, HOLD_BACK, Process, Settings};
use crate::store::{Mood, Store};
use crate::surroundings::{EPOCH_MS, Surroundings};
use crate::tally::Tally;

/// Everything there is.
pub struct World {
    at: Surroundings,
    instances: Vec<Instance>,
    sequence: u32,
    /// Until then the store is away.
    outage_until: Duration,
}

impl World {
    pub fn new(seed: u64, bug: Bug, is_loud: bool) -> Self {
        let mut dice = Dice(seed);
        let partitions = 1 + dice.index(3);
        let count = 1 + dice.index(3);
        let instances = (0..count).map(|number| Instance::new(number, &mut dice)).collect();
        // A process that commits too early must not be rescued by its ledger.
        let ledger = bug != Bug::CommitBeforeDurable && !dice.one_in(20);
        let goes_on = dice.one_in(2);
        let store_loses = dice.one_in(4) || bug.is_about_losses();
        let at = Surroundings {
            dice,
            settings: Settings { bug, ledger, goes_on, store_loses },
            now: Duration::ZERO,
            kafka: Kafka::new(partitions, count),
            store: Store::new(bug),
            is_delicate: false,
            buried: BTreeSet::new(),
            reported: BTreeSet::new(),
            tally: Tally::default(),
            is_loud,
        };
        Self { at, instances, sequence: 0, outage_until: Duration::ZERO }
    }

    /// Anything may happen; then, without faults, everything must come to rest; then the final check.
    pub fn run(mut self) -> Tally {
        for instance in &mut self.instances {
            instance.start(&mut self.at);
        }
        let outage = self.at.dice.one_in(12);
        for _ in 0..80 + self.at.dice.below(360) {
            self.step(Duration::from_millis(120));
        }
        if outage {
            self.be_without_store(Duration::from_secs(72 * 3600));
        }
        self.come_to_rest();
        let Self { mut at, instances, .. } = self;
        at.tally.instances = instances.len() as u64;
        at.tally.messages = at.kafka.topics().flat_map(Topic::messages).count() as u64;
        at.tally.store_writes = at.store.writes;
        let disks = instances.iter().filter(|instance| !instance.is_gone);
        (at.tally.dead_letters, at.tally.given_up) =
            oracle::check_final(&at, disks.map(|instance| &instance.disks[1]));
        at.tally
    }

    /// The database is away for days, and the persisters live on, or not.
    fn be_without_store(&mut self, time: Duration) {
        self.outage_until = self.at.now + time;
        self.at.store.is_up = false;
        self.at.tally.outages += 1;
        if self.at.settings.store_loses && self.at.dice.one_in(2) {
            self.lose_power();
        }
        while self.at.now < self.outage_until {
            let is_quiet = self.at.dice.one_in(2);
            self.step(Duration::from_secs(if is_quiet { 3600 } else { 1 }));
            let processes = self.instances.iter().filter_map(|instance| instance.process.as_ref());
            processes.for_each(Process::check_bounds);
        }
    }

    fn step(&mut self, time_max: Duration) {
        let time_max_ms = u64::try_from(time_max.as_millis()).unwrap();
        self.at.now += Duration::from_millis(self.at.dice.below(time_max_ms));
        let now = self.at.now;
        self.at.store.sync_when_due(now);
        let chosen = self.at.dice.index(self.instances.len());
        match self.at.dice.below(40) {
            0..=3 => self.produce(),
            4..=6 => self.turn_the_group(),
            7 => self.change_the_store(),
            12 if self.at.settings.store_loses && self.at.dice.one_in(3) => self.lose_power(),
            12 => self.at.store.apply_late(&mut self.at.dice),
            8..=9 => self.live_or_die(chosen),
            10 if self.at.dice.one_in(6) => self.check(),
            11 if self.at.dice.one_in(16) => self.recreate(),
            11 if self.at.dice.one_in(8) => self.retain(),
            11 if self.at.dice.one_in(8) => self.lose_end(),
            _ => {
                let instance = &mut self.instances[chosen];
                if instance.is_away() && self.at.dice.one_in(8) {
                    instance.come_back(&mut self.at);
                } else if instance.is_awake() && instance.act(&mut self.at).is_err() {
                    self.crash(chosen);
                } else if std::mem::take(&mut self.at.is_delicate) && self.at.dice.one_in(2) {
                    self.check();
                }
            }
        }
    }

    /// The store goes, comes, or changes its mood.
    fn change_the_store(&mut self) {
        let Surroundings { store, dice, settings, tally, now, .. } = &mut self.at;
        store.is_up = *now >= self.outage_until && !dice.one_in(3);
        store.mood = match dice.below(10) {
            0 | 1 => Mood::Overloaded,
            // Then what it could not take is a dead letter, and no disk with dead letters may be lost.
            2 if settings.store_loses => Mood::RefusesAll,
            3 | 4 => Mood::HalfAway,
            _ => Mood::Well,
        };
        tally.overloads += u64::from(store.mood == Mood::Overloaded);
        tally.half_away += u64::from(store.mood == Mood::HalfAway);
        tally.tables_changed += u64::from(store.mood == Mood::RefusesAll);
    }

    /// The store loses power. Sometimes all processes stand still meanwhile and after it, as on machines that are
    /// suspended: longer than the hold-back, and nobody looked at the store.
    fn lose_power(&mut self) {
        let is_unwatched = self.at.dice.one_in(2);
        if is_unwatched {
            for instance in self.instances.iter_mut().filter(|instance| instance.is_awake()) {
                self.at.tally.freezes += 1;
                instance.is_frozen = true;
            }
        }
        let lost = self.at.store.lose_power();
        self.at.tally.store_losses += 1;
        self.at.tally.losses_unwatched += u64::from(is_unwatched);
        self.at.tally.rows_lost_by_store += u64::try_from(lost).unwrap();
        self.at
            .tell(|| format!("the store loses power, and {lost} rows; unwatched: {is_unwatched}"));
        self.check();
        if is_unwatched {
            self.at.now += HOLD_BACK / 2 + Duration::from_millis(self.at.dice.below(10_000));
        }
    }

    /// The group counts a member as dead, or begins a rebalance.
    fn turn_the_group(&mut self) {
        let awake: Vec<bool> = self.instances.iter().map(Instance::is_awake).collect();
        let Surroundings { dice, kafka, tally, .. } = &mut self.at;
        let members: Vec<_> = kafka.group.members().collect();
        for (member, instance) in members {
            // One that is well is cut off now and then, or does not poll for too long.
            if dice.one_in(if awake[instance] { 12 } else { 3 }) {
                kafka.group.remove(member);
                tally.expired += 1;
            }
        }
        if let Some(moves) = kafka.group.rebalance(|instance| awake[instance], false, dice) {
            tally.rebalances += 1;
            tally.asked_back += moves.asked_back;
            tally.changed_hands += moves.changed_hands;
        }
    }

    fn live_or_die(&mut self, chosen: usize) {
        let survivors = self.instances.iter().filter(|instance| !instance.is_gone).count();
        let (at, instance) = (&mut self.at, &mut self.instances[chosen]);
        if instance.is_gone {
            return;
        }
        let may_be_lost = survivors > 1 && at.settings.ledger && !at.settings.store_loses;
        if may_be_lost && at.dice.one_in(24) {
            return self.lose(chosen);
        }
        if instance.is_away() {
            return instance.come_back(at);
        }
        match at.dice.below(12) {
            0..=4 => self.crash(chosen),
            5..=6 if instance.stop(at).is_err() => self.crash(chosen),
            7..=9 => {
                at.tally.freezes += 1;
                instance.is_frozen = true;
            }
            _ => {}
        }
    }

    fn crash(&mut self, chosen: usize) {
        self.instances[chosen].crash(&mut self.at);
        self.check();
    }

    /// A machine is lost for ever; somebody tells one or two of the others to take over.
    fn lose(&mut self, chosen: usize) {
        self.instances[chosen].lose(&mut self.at);
        self.check();
        for _ in 0..1 + self.at.dice.below(2) {
            let by = self.at.dice.index(self.instances.len());
            if !self.instances[by].is_gone {
                self.instances[by].orders.insert(chosen);
            }
        }
    }

    /// The topic is deleted and created again; nobody is told.
    fn recreate(&mut self) {
        // What was damaged and not looked at yet nobody can give again.
        if self.instances.iter().any(|instance| instance.rotten) {
            let all = self.at.kafka.topic.messages();
            self.bury(&all.map(|(_, _, message)| message.timestamp_ms).collect());
        }
        let at = &mut self.at;
        at.tell(|| "the topic is created again".to_owned());
        at.tally.recreated += 1;
        at.kafka.recreate();
        // Brokers forget them some time after the topic, unless one restarts in between.
        if at.dice.one_in(2) {
            at.kafka.group.forget_committed();
        }
        self.check();
    }

    /// Retention takes the oldest messages of a partition, perhaps all of them.
    fn retain(&mut self) {
        let Surroundings { dice, kafka, tally, .. } = &mut self.at;
        let chosen = dice.index(kafka.topic.partitions.len());
        let (low, end) = kafka.topic.partitions[chosen].bounds();
        let from = match u64::try_from(end - low).unwrap() {
            left if dice.one_in(4) => left,
            left => dice.below(left + 1),
        };
        tally.retained += from;
        let (partition, from) =
            (i32::try_from(chosen).unwrap(), low + i64::try_from(from).unwrap());
        kafka.retain(partition, from);
        self.at.tell(|| format!("retention takes {partition}/{low} to {from}"));
        self.check();
    }

    /// The leader of a partition is lost, and the next one has less. What was consumed of the rest is in a log, or nowhere.
    fn lose_end(&mut self) {
        let at = &mut self.at;
        let chosen = at.dice.index(at.kafka.topic.partitions.len());
        let (low, end) = at.kafka.topic.partitions[chosen].bounds();
        let lost = match at.dice.below(u64::try_from(end - low).unwrap() + 1) {
            // What nobody has consumed yet shows nothing.
            lost if at.dice.one_in(2) => lost,
            lost => lost.min(at.dice.below(60)),
        };
        let partition = i32::try_from(chosen).unwrap();
        let kept = end - i64::try_from(lost).unwrap();
        at.kafka.lose_end(partition, kept);
        at.tally.ends_lost += u64::from(lost > 0);
        at.tell(|| format!("{partition} loses its end: {end} is now {kept}"));
        let torn = at.kafka.topic.torn().map(|(_, torn)| torn.message.timestamp_ms);
        let torn = torn.collect();
        self.bury(&torn);
        self.check();
    }

    /// Kafka does not have these any more: those that are on no disk are nowhere.
    fn bury(&mut self, messages: &BTreeSet<i64>) {
        let mut held = BTreeSet::new();
        for instance in &self.instances {
            let disks =
                instance.disks.each_ref().map(|disk| disk.fork().crash(CrashLevel::PowerCut));
            held.extend(oracle::messages_in(&disks[0]));
            held.extend(oracle::dead_messages(&disks[1]));
        }
        self.at.buried.extend(messages.difference(&held));
    }

    /// Looks at what would be left if all processes ended now, with and without any one of the disks.
    fn check(&mut self) {
        self.at.tally.losses_checked += self.instances.len() as u64;
        let mut dice = Dice(self.at.dice.next());
        let holdings: Vec<Holding> =
            self.instances.iter().map(|instance| instance.holding(&self.at, &mut dice)).collect();
        oracle::check_committed(&self.at, &holdings);
    }

    fn produce(&mut self) {
        let at = &mut self.at;
        for _ in 0..at.dice.below(25) {
            self.sequence += 1;
            // Unique, so that the winner of a key is decided.
            let timestamp_ms = at.now_ms() - 30_000 + i64::from(self.sequence);
            let partition = at.dice.index(at.kafka.topic.partitions.len());
            let series = u32::try_from(at.dice.below(6)).unwrap();
            let time_ms = EPOCH_MS + i64::try_from(at.dice.below(40)).unwrap() * 1000;
            let (payload, fate) = match at.dice.below(30) {
                // Longer than a record of the log can be.
                0 if at.dice.one_in(8) => {
                    let length = 17_000 + at.dice.index(20_000);
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
            at.kafka.topic.partitions[partition].push(Message { payload, timestamp_ms, fate });
        }
    }

    /// I9: without faults everything is delivered within bounded time.
    fn come_to_rest(&mut self) {
        let Self { at, instances, sequence, .. } = self;
        at.store.is_up = true;
        at.store.mood = Mood::Well;
        for instance in instances.iter_mut().filter(|instance| !instance.is_gone) {
            // A process may not have noticed yet that a disk died under it.
            if instance.process.is_some() && instance.disks.iter().any(SimDisk::is_stopped) {
                instance.crash(at);
            }
            instance.heal_disks();
            instance.is_frozen = false;
            if instance.rotten {
                instance.empty_quarantine();
            }
            if instance.process.is_none() {
                instance
                    .open(at)
                    .unwrap_or_else(|died| panic!("a healthy disk cannot be opened: {}", died.0));
            }
        }
        let gone: Vec<usize> = (0..instances.len()).filter(|n| instances[*n].is_gone).collect();
        let silent: Vec<_> =
            at.kafka.group.members().filter(|(_, instance)| gone.contains(instance)).collect();
        silent.iter().for_each(|(member, _)| at.kafka.group.remove(*member));
        for turn in 0..20_000 {
            at.now += Duration::from_millis(50);
            // Whether a partition has lost the very last message that was taken shows when the next one is written.
            if turn % 100 == 99 {
                for partition in at.kafka.behind_their_offsets() {
                    *sequence += 1;
                    let timestamp_ms = at.now_ms() - 30_000 + i64::from(*sequence);
                    let message = Message { payload: None, timestamp_ms, fate: Fate::Poison };
                    at.kafka.topic.partitions[partition].push(message);
                }
            }
            if at.kafka.group.is_uneven() {
                at.kafka.group.rebalance(|_| true, true, &mut at.dice);
            }
            // Somebody looks at what the lost ones owe.
            for lost in gone.iter().filter(|lost| !owed_by(&at.kafka.ledgers[**lost]).is_empty()) {
                let by = at.dice.index(instances.len());
                if !instances[by].is_gone && at.dice.one_in(50) {
                    instances[by].orders.insert(*lost);
                }
            }
            for instance in instances.iter_mut() {
                instance
                    .act_in_turn(at)
                    .unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
            }
            at.store.apply_late(&mut at.dice);
            if is_done(at, instances) {
                // What retention took before anybody consumed anything nobody can have noticed.
                let unconsumed = at.kafka.unconsumed();
                unconsumed.into_iter().for_each(|partition| _ = at.begins_at_oldest(partition));
                self.check();
                for instance in &mut self.instances {
                    instance
                        .stop(&mut self.at)
                        .unwrap_or_else(|died| panic!("a healthy disk failed: {}", died.0));
                }
                return;
            }
        }
        panic!(
            "I9: not at rest after 1,000 s without faults: committed {:?}, ledgers {:?}, {}",
            at.kafka.group.committed(),
            at.kafka.ledgers,
            instances
                .iter()
                .filter_map(|instance| instance.process.as_ref())
                .map(Process::describe)
                .collect::<Vec<_>>()
                .join("; ")
        );
    }
}

/// Nothing left to do, here or in Kafka.
fn is_done(at: &Surroundings, instances: &[Instance]) -> bool {
    process::is_consumed(&at.kafka)
        && instances.iter().all(|instance| match &instance.process {
            Some(process) => process.is_idle(at) && instance.orders.is_empty(),
            None => owed_by(&at.kafka.ledgers[instance.number]).is_empty(),
        })
}
