//! What must hold, whatever happened.
//!
//! - I1: no acknowledged record of a log is missing after a crash (the logs report gaps; see `process.rs`).
//! - I3 and I4: every message before a committed offset is in the log, in the store or in the dead letters. Checked
//!   after every crash on what the disk really kept, so it finds a commit that came too early as well as a segment
//!   that was reclaimed too early.
//! - I5: at the end every message is in the store or in the dead letters.
//! - I8: at the end the store holds per key the message with the highest write time and nothing else, every series in
//!   it is described, and each bad message is a dead letter, with its own bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use monasca_persister::dead_letters::DeadLetter;
use monasca_persister::envelope::Envelope;
use monasca_persister::offset_ranges::OffsetRanges;
use storage::{IdScheme, MetricId};
use wal::Scanned;
use wal::sim::SimDisk;

use crate::kafka::{Fate, Kafka};
use crate::process::RECORD_BYTES_MAX;
use crate::store::Store;

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

/// Every record of a log.
fn records(disk: &SimDisk, mut each: impl FnMut(&[u8])) {
    wal::scan(disk, |scanned| {
        if let Scanned::Record { bytes, .. } = scanned {
            each(bytes);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
}

fn dead_letters(disk: &SimDisk) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    records(disk, |record| letters.push(DeadLetter::decode(record).unwrap()));
    letters
}

/// Whether the store's row for the message is at least as new as the message.
fn is_stored(store: &Store, series: u32, time_ms: i64, timestamp_ms: i64) -> bool {
    store
        .rows
        .get(&(id(series), time_ms))
        .is_some_and(|cell| cell.write_time_us >= timestamp_ms * 1000)
}

/// I3 and I4, on disks that have just been recovered.
///
/// A disk that was lost or rolled back is made up for by what the next start knows to be owed.
pub fn check_committed(kafka: &Kafka, store: &Store, disks: &[SimDisk; 2], owed: &OffsetRanges) {
    let is_owed = |partition: i32, offset: i64| {
        owed.iter()
            .any(|range| range.partition == partition && (range.from..range.to).contains(&offset))
    };
    let mut in_log = BTreeSet::new();
    records(&disks[0], |record| {
        let envelope = Envelope::decode(record).unwrap();
        in_log.insert((envelope.partition, envelope.offset));
    });
    let dead: BTreeSet<(i32, i64)> =
        dead_letters(&disks[1]).iter().map(|letter| (letter.partition, letter.offset)).collect();
    for (partition, offset, message) in kafka.messages() {
        let committed = kafka.committed.get(&partition).copied().unwrap_or(0);
        if offset >= committed
            || in_log.contains(&(partition, offset))
            || dead.contains(&(partition, offset))
            || is_owed(partition, offset)
        {
            continue;
        }
        let stored = match message.fate {
            Fate::Stored { series, time_ms, .. } => {
                is_stored(store, series, time_ms, message.timestamp_ms)
            }
            Fate::Refused | Fate::Poison => false,
        };
        assert!(
            stored,
            "I3/I4: {partition}/{offset} is before the committed offset {committed}, and neither in the log nor in \
             the store nor in the dead letters, and nobody owes it"
        );
    }
}

/// I5 and I8, when everything has come to rest.
pub fn check_final(kafka: &Kafka, store: &Store, disks: &[SimDisk; 2]) -> u64 {
    let mut winners: BTreeMap<(MetricId, i64), (i64, u32)> = BTreeMap::new();
    let mut bad: BTreeMap<(i32, i64), &Option<Vec<u8>>> = BTreeMap::new();
    for (partition, offset, message) in kafka.messages() {
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
    for letter in dead_letters(&disks[1]) {
        // A message delivered again after a crash may be here twice, with the same bytes.
        if let Some(before) =
            found.insert((letter.partition, letter.offset), letter.payload.clone())
        {
            assert_eq!(before, letter.payload, "I8: a dead letter changed");
        }
    }
    for (key, payload) in &bad {
        let letter =
            found.remove(key).unwrap_or_else(|| panic!("I5: {key:?} is not in the dead letters"));
        let whole = payload.as_ref().is_none_or(|payload| payload.len() <= RECORD_BYTES_MAX);
        let kept =
            payload.as_ref().map(|payload| if whole { &payload[..] } else { &payload[..4096] });
        assert_eq!(letter.as_deref(), kept, "I8: bytes of dead letter {key:?}");
    }
    assert!(found.is_empty(), "I8: good messages in the dead letters: {:?}", found.keys());
    bad.len() as u64
}
