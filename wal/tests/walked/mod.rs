//! A log to damage, and a walk through it that checks what must always hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use wal::sim::SimDisk;
use wal::{
    Batch, Compression, Flaw, Loss, NoCarry, SalvageSummary, Salvaged, Wal, WalConfig,
    parse_segment_name, salvage,
};

pub const PER_BATCH: u64 = 7;

pub fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 20 * 1024,
        max_bytes: 4 << 20,
        min_free_bytes: 0,
        compression: Compression::None,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

pub fn record(n: u64) -> Vec<u8> {
    let length = 40 + (n * 37) % 200;
    (0..length).map(|at| (n * 31 + at * 7) as u8).collect()
}

pub fn open(disk: &SimDisk) -> Wal<SimDisk> {
    Wal::open(disk.clone(), config(), Box::new(NoCarry), Duration::ZERO).unwrap().0
}

pub fn batch(records: Range<u64>) -> Batch {
    let mut batch = Batch::new();
    for n in records.clone() {
        batch.push(&record(n)).unwrap();
    }
    batch.annotate(&records.end.to_le_bytes());
    batch
}

pub fn append(wal: &Wal<SimDisk>, records: Range<u64>) {
    for first in records.step_by(PER_BATCH as usize) {
        wal.append(batch(first..first + PER_BATCH)).unwrap().wait().unwrap();
    }
}

pub fn segments(disk: &SimDisk) -> Vec<String> {
    disk.file_names().into_iter().filter(|name| parse_segment_name(name).is_some()).collect()
}

/// What came out.
pub struct Outcome {
    pub records: BTreeMap<u64, Vec<u8>>,
    pub missing: Vec<(Range<u64>, Loss)>,
    /// Carries and annotations in order.
    pub notes: Vec<Vec<u8>>,
    pub summary: SalvageSummary,
}

impl Outcome {
    pub fn lost(&self, wanted: Loss) -> BTreeSet<u64> {
        let ranges = self.missing.iter().filter(|(_, loss)| *loss == wanted);
        ranges.flat_map(|(range, _)| range.clone()).collect()
    }

    pub fn acknowledged_flaws(&self) -> Vec<&Flaw> {
        self.summary.flaws.iter().filter(|flaw| flaw.acknowledged).collect()
    }
}

/// Walks, and checks what holds always: order, nothing twice, every position shown or told.
pub fn walk(disk: &SimDisk, context: &str) -> Outcome {
    let before = disk.fork();
    let mut records = BTreeMap::new();
    let mut missing = Vec::new();
    let mut notes = Vec::new();
    let mut next = None;
    let summary = salvage(disk, |salvaged| {
        match salvaged {
            Salvaged::Frame(frame) => {
                for (position, bytes) in frame.records() {
                    let position = position.get();
                    let wanted = *next.get_or_insert(position);
                    assert_eq!(position, wanted, "{context}: out of order, or not told");
                    next = Some(position + 1);
                    records.insert(position, bytes.to_vec());
                }
                notes.extend(frame.annotation.map(<[u8]>::to_vec));
            }
            Salvaged::Missing { range, loss } => {
                let range = range.start.get()..range.end.get();
                let wanted = *next.get_or_insert(range.start);
                assert_eq!(range.start, wanted, "{context}: {range:?} does not follow");
                assert!(range.end > range.start, "{context}");
                next = Some(range.end);
                missing.push((range, loss));
            }
            Salvaged::Annotation(note) => notes.push(note.to_vec()),
            Salvaged::Carry { .. } => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(summary.records, records.len() as u64, "{context}");
    assert_eq!(disk.file_names(), before.file_names(), "{context}: files changed");
    for name in disk.file_names() {
        assert_eq!(disk.read_file(&name), before.read_file(&name), "{context}: {name} changed");
    }
    Outcome { records, missing, notes, summary }
}
