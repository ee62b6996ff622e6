//! What must hold, whatever happened.
//!
//! - I1: no acknowledged record of a log is missing after a crash (the logs report gaps; see `process.rs`).
//! - I3 and I4: every message before a committed offset is in a log, in the store or in dead letters, or owed by a log,
//!   or by the ledger of an instance that is lost. Checked on what the disks would really keep, so it finds a commit
//!   that came too early as well as a segment that was reclaimed too early.
//! - I13: the same without any one of the instances, but with what its ledger owes.
//! - I5: at the end every message is in the store or in the dead letters.
//! - I6: recovering twice, or after a crash while recovering, gives the same.
//! - I8: at the end the store holds per key the message with the highest write time and nothing else, every series in
//!   it is described, and each bad message is a dead letter, with its own bytes.
//! - I9: without faults everything comes to rest; see `world.rs`. G1 and G2: see `group.rs`.
//!
//! Dead letters share their disk's fate: those of a lost one need not be anywhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use monasca_persister::dead_letters::DeadLetter;
use monasca_persister::envelope::Envelope;
use monasca_persister::keeper::Written;
use monasca_persister::offset_ranges::OffsetRanges;
use storage::{IdScheme, MetricId};
use wal::Scanned;
use wal::sim::{CrashLevel, SimDisk};

use crate::dice::Dice;
use crate::kafka::{Fate, Message, Topic};
use crate::ledger_keeper::owed_by;
use crate::process::{Died, Process, RECORD_BYTES_MAX};
use crate::store::Store;
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

/// Messages in a log of dead letters.
pub fn dead_offsets(disk: &SimDisk) -> BTreeSet<Offset> {
    dead_letters(disk).iter().map(|letter| (letter.partition, letter.offset)).collect()
}

/// Whether the store's row for the message is at least as new as the message.
fn is_stored(store: &Store, message: &Message) -> bool {
    let Fate::Stored { series, time_ms, .. } = message.fate else { return false };
    store
        .rows
        .get(&(id(series), time_ms))
        .is_some_and(|cell| cell.write_time_us >= message.timestamp_ms * 1000)
}

fn is_in(ranges: &OffsetRanges, (partition, offset): Offset) -> bool {
    ranges
        .iter()
        .any(|range| range.partition == partition && (range.from..range.to).contains(&offset))
}

/// What one instance answers for.
#[derive(Debug)]
pub struct Holding {
    records: BTreeSet<Offset>,
    dead: BTreeSet<Offset>,
    owed: OffsetRanges,
    ledger: OffsetRanges,
}

impl Holding {
    /// Nothing but what the ledger says.
    pub fn of_ledger(ledger: &BTreeMap<i32, Written>) -> Self {
        let ledger: OffsetRanges = owed_by(ledger).into_iter().collect();
        Self { records: BTreeSet::new(), dead: BTreeSet::new(), owed: ledger.clone(), ledger }
    }

    /// As well as what is on a disk with dead letters.
    pub fn with_dead_letters(mut self, disk: &SimDisk) -> Self {
        self.dead = dead_offsets(disk);
        self
    }

    /// What is on disks that were recovered, and known to be owed.
    pub fn of_disks(
        disks: &[SimDisk; 2],
        owed: OffsetRanges,
        ledger: &BTreeMap<i32, Written>,
    ) -> Self {
        let mut in_log = BTreeSet::new();
        records(&disks[0], |_, record| {
            let envelope = Envelope::decode(record).unwrap();
            in_log.insert((envelope.partition, envelope.offset));
        });
        let dead = dead_offsets(&disks[1]);
        Self { records: in_log, dead, owed, ledger: owed_by(ledger).into_iter().collect() }
    }

    fn has(&self, offset: Offset) -> bool {
        self.records.contains(&offset) || self.dead.contains(&offset) || is_in(&self.owed, offset)
    }

    /// What is left of it when its machine is lost.
    fn has_when_lost(&self, offset: Offset) -> bool {
        self.dead.contains(&offset) || is_in(&self.ledger, offset)
    }
}

/// I3 and I4, and I13 for each instance.
pub fn check_committed(at: &Surroundings, holdings: &[Holding]) {
    for (partition, offset, message) in at.kafka.topic.messages() {
        let committed = at.kafka.group.committed().get(&partition).copied().unwrap_or(0);
        let this = (partition, offset);
        if offset >= committed || at.buried.contains(&this) || is_stored(&at.store, message) {
            continue;
        }
        let holders: Vec<usize> =
            (0..holdings.len()).filter(|number| holdings[*number].has(this)).collect();
        assert!(
            !holders.is_empty(),
            "I3/I4: {partition}/{offset} is before the committed offset {committed}, and neither in a log nor in the \
             store nor in the dead letters, and nobody owes it: {:?}",
            message.fate
        );
        // Of two that have it one may be lost.
        if let ([only], true) = (&holders[..], at.ledger) {
            assert!(
                holdings[*only].has_when_lost(this),
                "I13: {partition}/{offset} is before the committed offset {committed}; only instance {only} has it, \
                 and its ledger does not say so"
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
    assert!(open(&twice, &mut dice) == first, "I6: recovering twice gives something else");
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

/// I5 and I8, when everything has come to rest.
pub fn check_final<'a>(
    topic: &Topic,
    store: &Store,
    dead_letter_disks: impl Iterator<Item = &'a SimDisk>,
    buried: &BTreeSet<Offset>,
) -> u64 {
    let mut winners: BTreeMap<(MetricId, i64), (i64, u32)> = BTreeMap::new();
    let mut bad: BTreeMap<Offset, &Option<Vec<u8>>> = BTreeMap::new();
    for (partition, offset, message) in topic.messages() {
        match message.fate {
            Fate::Stored { series, time_ms, sequence } => {
                let winner = winners
                    .entry((id(series), time_ms))
                    .or_insert((message.timestamp_ms, sequence));
                *winner = (*winner).max((message.timestamp_ms, sequence));
            }
            Fate::Refused | Fate::Poison => {
                bad.insert((partition, offset), &message.payload);
            }
        }
    }
    for (key, (timestamp_ms, sequence)) in &winners {
        let cell = store.rows.get(key).unwrap_or_else(|| panic!("I5: {key:?} was never stored"));
        assert_eq!(cell.write_time_us, timestamp_ms * 1000, "I8: write time of {key:?}");
        assert!((cell.value - f64::from(*sequence)).abs() < f64::EPSILON, "I8: value of {key:?}");
        assert!(
            store.definitions.contains_key(&key.0),
            "I8: series {} has rows but no definition",
            key.0
        );
    }
    assert_eq!(store.rows.len(), winners.len(), "I8: rows that nobody sent");
    let mut found = BTreeMap::new();
    for letter in dead_letter_disks.flat_map(dead_letters) {
        // A message delivered again after a crash may be here twice, with the same bytes.
        if let Some(before) =
            found.insert((letter.partition, letter.offset), letter.payload.clone())
        {
            assert_eq!(before, letter.payload, "I8: a dead letter changed");
        }
    }
    for (key, payload) in &bad {
        let Some(letter) = found.remove(key) else {
            assert!(buried.contains(key), "I5: {key:?} is not in the dead letters");
            continue;
        };
        let whole = payload.as_ref().is_none_or(|payload| payload.len() <= RECORD_BYTES_MAX);
        let kept =
            payload.as_ref().map(|payload| if whole { &payload[..] } else { &payload[..4096] });
        assert_eq!(letter.as_deref(), kept, "I8: bytes of dead letter {key:?}");
    }
    assert!(found.is_empty(), "I8: good messages in the dead letters: {:?}", found.keys());
    bad.len() as u64
}
