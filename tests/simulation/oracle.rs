//! What must hold, whatever happened.
//!
//! - I1: no acknowledged record of a log is missing after a crash (the logs report gaps; see `process.rs`).
//! - I3 and I4: every message before a committed offset is in a log, in the store or in dead letters, or owed by a log,
//!   or by the ledger of an instance that is lost. Checked on what the disks would really keep, so it finds a commit
//!   that came too early as well as a segment that was reclaimed too early.
//! - I13: the same without any one of the instances, but with what its ledger owes.
//! - I5: at the end every message of the topic is in the store or in the dead letters, and of a deleted topic or a lost
//!   end everything that was committed, apart from what was reported as lost (R1, in `surroundings.rs`: nothing is that
//!   Kafka has).
//! - I6: recovering twice, or after a crash while recovering, gives the same.
//! - I8: at the end the store holds per key the message with the highest write time and nothing else, every series in
//!   it is described, and each bad message is a dead letter, with its own bytes, and no good one, unless a table had
//!   changed.
//! - I10: while the store is away, memory and log are bounded, and so are dead letters while it refuses everything; see
//!   `process.rs`.
//! - I9: without faults everything comes to rest; see `world.rs`. G1 and G2: see `group.rs`.
//!
//! Dead letters share their disk's fate: those of a lost one need not be anywhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use monasca_persister::dead_letters::DeadLetter;
use monasca_persister::envelope::Envelope;
use monasca_persister::keeper::Written;
use monasca_persister::offset_note::LogOffsets;
use monasca_persister::offset_ranges::OffsetRange;
use storage::{IdScheme, MetricId};
use wal::Scanned;
use wal::sim::{CrashLevel, SimDisk};

use crate::dice::Dice;
use crate::kafka::{Fate, Kafka, Message, Topic, value_meta};
use crate::ledger_keeper::owed_of_topics;
use crate::process::{Died, Process, RECORD_BYTES_MAX};
use crate::store::{Store, TABLE_CHANGED};
use crate::surroundings::Surroundings;

type Offset = (i32, i64);

/// The id that a series of the simulation has.
fn id(series: u32) -> MetricId {
    let host = format!("host-{series}");
    storage::metric_id::metric_id(
        IdScheme::Sha256,
        "region",
        "tenant",
        &format!("metric-{series}"),
        [("hostname", host.as_str())].into_iter(),
    )
}

/// Every record of a log with its position.
fn records(disk: &SimDisk, mut each: impl FnMut(u64, &[u8])) {
    wal::scan(disk, |scanned| {
        if let Scanned::Record { position, bytes, .. } = scanned {
            each(position.get(), bytes);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
}

fn dead_letters(disk: &SimDisk) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    records(disk, |_, record| letters.push(DeadLetter::decode(record).unwrap()));
    letters
}

/// Messages in a log of dead letters, by their timestamps: no two messages have the same.
pub fn dead_messages(disk: &SimDisk) -> BTreeSet<i64> {
    dead_letters(disk).iter().filter_map(|letter| letter.timestamp_ms).collect()
}

/// Messages in a log, by their timestamps.
pub fn messages_in(disk: &SimDisk) -> BTreeSet<i64> {
    let mut messages = BTreeSet::new();
    records(disk, |_, record| {
        messages.insert(Envelope::decode(record).unwrap().timestamp_ms);
    });
    messages
}

/// Whether the store's row for the message is at least as new as the message.
fn is_stored(store: &Store, message: &Message) -> bool {
    let Fate::Stored { series, time_ms, .. } = message.fate else { return false };
    store
        .rows
        .get(&(id(series), time_ms))
        .is_some_and(|row| row.value.write_time_us >= message.timestamp_ms * 1000)
}

/// Offsets of one topic.
type Owed = Vec<(String, OffsetRange)>;

fn is_in(owed: &Owed, topic: &str, (partition, offset): Offset) -> bool {
    owed.iter().any(|(of, range)| {
        of == topic && range.partition == partition && (range.from..range.to).contains(&offset)
    })
}

/// What one instance answers for.
#[derive(Debug)]
pub struct Holding {
    records: BTreeSet<i64>,
    dead: BTreeSet<i64>,
    owed: Owed,
    ledger: Owed,
}

impl Holding {
    /// Nothing but what the ledger says.
    pub fn of_ledger(ledger: &BTreeMap<i32, Written>) -> Self {
        let ledger = owed_of_topics(ledger);
        Self { records: BTreeSet::new(), dead: BTreeSet::new(), owed: ledger.clone(), ledger }
    }

    /// As well as what is on disks of which the first has rotten bytes.
    pub fn with_rest_of(mut self, disks: &[SimDisk; 2]) -> Self {
        self.records = messages_in(&disks[0]);
        self.dead = dead_messages(&disks[1]);
        self
    }

    /// What is on disks that were recovered, and known to be owed, or to be lost.
    pub fn of_disks(disks: &[SimDisk; 2], owed: Owed, ledger: &BTreeMap<i32, Written>) -> Self {
        let records = messages_in(&disks[0]);
        Self { records, dead: dead_messages(&disks[1]), owed, ledger: owed_of_topics(ledger) }
    }

    fn has(&self, topic: &str, offset: Offset, timestamp_ms: i64) -> bool {
        self.records.contains(&timestamp_ms)
            || self.dead.contains(&timestamp_ms)
            || is_in(&self.owed, topic, offset)
    }

    /// What is left of it when its machine is lost.
    fn has_when_lost(&self, topic: &str, offset: Offset, timestamp_ms: i64) -> bool {
        self.dead.contains(&timestamp_ms) || is_in(&self.ledger, topic, offset)
    }
}

/// A message that was committed.
struct Committed<'a> {
    topic: &'a Topic,
    offset: Offset,
    message: &'a Message,
    /// Kafka could have been asked for it until it was consumed: it lost neither the topic nor the partition's end.
    is_of_present: bool,
}

/// Messages that were committed; nobody need have fetched the others of a deleted topic or a lost end.
fn committed(kafka: &Kafka) -> impl Iterator<Item = Committed<'_>> {
    kafka.topics().flat_map(move |topic| {
        let present = topic.messages().filter_map(move |(partition, offset, message)| {
            let claimed = topic.claims.get(&partition).is_some_and(|claim| offset < *claim);
            claimed.then_some(Committed {
                topic,
                offset: (partition, offset),
                message,
                is_of_present: topic.id == kafka.topic.id,
            })
        });
        let torn = topic.torn().filter(|(_, torn)| torn.was_committed);
        present.chain(torn.map(move |(partition, torn)| Committed {
            topic,
            offset: (partition, torn.offset),
            message: &torn.message,
            is_of_present: false,
        }))
    })
}

/// I3 and I4, and I13 for each instance.
pub fn check_committed(at: &Surroundings, holdings: &[Holding]) {
    for Committed { topic, offset: this, message, is_of_present } in committed(&at.kafka) {
        let (partition, offset) = this;
        let timestamp_ms = message.timestamp_ms;
        if at.buried.contains(&timestamp_ms)
            || is_stored(&at.store, message)
            || at.reported.contains(&timestamp_ms)
        {
            continue;
        }
        let has = |number: &usize| holdings[*number].has(&topic.id, this, timestamp_ms);
        let holders: Vec<usize> = (0..holdings.len()).filter(has).collect();
        assert!(
            !holders.is_empty(),
            "I3/I4: {}: {partition}/{offset} is before the committed offset {:?}, and neither in a log nor in the \
             store nor in the dead letters, and nobody owes it: {:?}",
            topic.id,
            topic.claims.get(&partition),
            message.fate
        );
        // Of two that have it one may be lost. What only one has and Kafka lost goes with it: nobody can give it again. Nor
        // can anybody give what the store lost, until the one that delivered it has done so again.
        let may_be_lost = at.settings.ledger && !at.settings.store_loses && is_of_present;
        if let ([only], true) = (&holders[..], may_be_lost) {
            assert!(
                holdings[*only].has_when_lost(&topic.id, this, timestamp_ms),
                "I13: {partition}/{offset} was committed; only instance {only} has it, and its ledger does not say so"
            );
        }
    }
}

/// What recovery makes of a disk.
fn recovered(
    disks: &[SimDisk; 2],
    process: &Process,
) -> (Vec<u8>, [u64; 2], BTreeMap<u64, Vec<u8>>) {
    let (delivered, durable) = (process.wal.delivered(), process.wal.durable().through());
    let mut kept = BTreeMap::new();
    records(&disks[0], |position, record| {
        if position >= delivered.get() {
            kept.insert(position, record.to_vec());
        }
    });
    (process.wal.carry(), [delivered.get(), durable.get()], kept)
}

/// I6, on copies of disks that nobody has open. After a kill the last records may be in the page cache only: a recovery
/// keeps them, and a power cut in the middle of it may take them. Everything else is the same however often it is tried.
pub fn check_recovery(
    disks: &[SimDisk; 2],
    start: impl Fn(&[SimDisk; 2], &mut Dice) -> Result<Process, Died>,
    level: CrashLevel,
    seed: u64,
) {
    let mut dice = Dice(seed);
    let copy = || disks.each_ref().map(SimDisk::fork);
    let open = |disks: &[SimDisk; 2], dice: &mut Dice| {
        let process = start(disks, dice)
            .unwrap_or_else(|died| panic!("a healthy disk cannot be opened: {}", died.0));
        recovered(disks, &process)
    };
    let once = copy();
    let first = open(&once, &mut dice);
    let twice = once.map(|disk| disk.crash(CrashLevel::PowerCut));
    let second = open(&twice, &mut dice);
    assert!(
        second == first,
        "I6: recovering twice gives something else: delivered and durable {:?}, not {:?}; {} records, not {}; offsets {:?}, \
         not {:?}",
        second.1,
        first.1,
        second.2.len(),
        first.2.len(),
        LogOffsets::decode(&second.0),
        LogOffsets::decode(&first.0)
    );
    let broken = copy();
    broken[dice.index(2)].fail_after(1 + dice.below(30));
    drop(start(&broken, &mut dice));
    let broken = broken.map(|disk| disk.crash(CrashLevel::PowerCut));
    let again = open(&broken, &mut dice);
    let is_same = if level == CrashLevel::Kill {
        let ([_, durable], [_, durable_first]) = (again.1, first.1);
        let mut kept_first = first.2.clone();
        kept_first.retain(|position, _| *position < durable);
        durable <= durable_first && again.2 == kept_first
    } else {
        again == first
    };
    assert!(
        is_same,
        "I6: recovering after a crash while recovering gives something else: delivered and durable {:?}, not {:?}; {} \
         records, not {}",
        again.1,
        first.1,
        again.2.len(),
        first.2.len()
    );
}

/// I5 and I8, when everything has come to rest. Returns the dead letters that must be, and those that need not be.
pub fn check_final<'a>(
    at: &Surroundings,
    dead_letter_disks: impl Iterator<Item = &'a SimDisk>,
) -> (u64, u64) {
    let store = &at.store;
    // What may be there, and what must.
    let mut sent: BTreeMap<(MetricId, i64), BTreeMap<i64, u32>> = BTreeMap::new();
    let mut payloads: BTreeMap<i64, &Message> = BTreeMap::new();
    let all = at.kafka.topics().flat_map(Topic::messages).map(|(_, _, message)| message);
    let torn = at.kafka.topics().flat_map(Topic::torn).map(|(_, torn)| &torn.message);
    for message in all.chain(torn) {
        payloads.insert(message.timestamp_ms, message);
        if let Fate::Stored { series, time_ms, sequence } = message.fate {
            let key = (id(series), time_ms);
            sent.entry(key).or_default().insert(message.timestamp_ms, sequence);
        }
    }
    let mut found: BTreeMap<i64, DeadLetter> = BTreeMap::new();
    for letter in dead_letter_disks.flat_map(dead_letters) {
        // A message delivered again after a crash may be here twice, with the same bytes.
        let key = letter.timestamp_ms.unwrap();
        if let Some(before) = found.get(&key) {
            assert_eq!(before.payload, letter.payload, "I8: a dead letter changed");
        }
        found.insert(key, letter);
    }
    let mut winners: BTreeMap<(MetricId, i64), i64> = BTreeMap::new();
    let mut bad: BTreeSet<i64> = BTreeSet::new();
    let topic = &at.kafka.topic;
    let current = topic.messages().map(|(partition, offset, message)| Committed {
        topic,
        offset: (partition, offset),
        message,
        is_of_present: true,
    });
    for Committed { message, is_of_present, .. } in committed(&at.kafka).chain(current) {
        let excused = !is_of_present && at.buried.contains(&message.timestamp_ms)
            || at.reported.contains(&message.timestamp_ms);
        match message.fate {
            _ if excused => {}
            Fate::Stored { .. } if found.contains_key(&message.timestamp_ms) => {}
            Fate::Stored { series, time_ms, .. } => {
                let winner = winners.entry((id(series), time_ms)).or_insert(message.timestamp_ms);
                *winner = (*winner).max(message.timestamp_ms);
            }
            Fate::Refused | Fate::Poison => {
                bad.insert(message.timestamp_ms);
            }
        }
    }
    for (key, timestamp_ms) in &winners {
        let row = store.rows.get(key).unwrap_or_else(|| panic!("I5: {key:?} was never stored"));
        assert!(
            row.value.write_time_us >= timestamp_ms * 1000,
            "I8: write time of {key:?}: {} is older than {timestamp_ms} ms",
            row.value.write_time_us
        );
    }
    for (key, row) in &store.rows {
        let sequence = sent.get(key).and_then(|sent| sent.get(&(row.value.write_time_us / 1000)));
        let sequence = *sequence.unwrap_or_else(|| panic!("I8: {key:?} {row:?}: nobody sent that"));
        let value = row.value.value;
        assert!((value - f64::from(sequence)).abs() < f64::EPSILON, "I8: value of {key:?}");
        assert_eq!(row.meta.value, value_meta(sequence), "I8: another message's meta at {key:?}");
        assert!(
            store.definitions.contains_key(&key.0),
            "I8: series {} has rows but no definition",
            key.0
        );
    }
    for key in &bad {
        let there = found.contains_key(key) || at.buried.contains(key);
        assert!(there, "I5: the message of {key} ms is not in the dead letters");
    }
    let mut given_up = 0;
    for (key, letter) in &found {
        let Message { payload, fate, .. } = payloads[key];
        let is_good = matches!(fate, Fate::Stored { .. });
        assert!(
            !is_good || letter.code == TABLE_CHANGED,
            "I8: the good message of {key} ms is in the dead letters"
        );
        given_up += u64::from(is_good);
        let whole = payload.as_ref().is_none_or(|payload| payload.len() <= RECORD_BYTES_MAX);
        let kept =
            payload.as_ref().map(|payload| if whole { &payload[..] } else { &payload[..4096] });
        assert_eq!(letter.payload.as_deref(), kept, "I8: bytes of the dead letter of {key} ms");
    }
    (bad.len() as u64, given_up)
}
