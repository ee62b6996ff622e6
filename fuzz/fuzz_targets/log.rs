//! A small sound log, and what must hold whatever is done to its files.

use std::collections::BTreeMap;
use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{Batch, Chunk, GapReason, NoCarry, Position, ReadOutcome, Wal, WalConfig, WalError};

const RECORDS: u64 = 24;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 16 * 1024,
        max_bytes: 1 << 20,
        max_record_bytes: 64 * 1024,
        min_free_bytes: 0,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

fn open(disk: &SimDisk) -> Result<Wal<SimDisk>, WalError> {
    Wal::open(disk.clone(), config(), Box::new(NoCarry), Duration::ZERO).map(|(wal, _)| wal)
}

fn record(n: u64) -> Vec<u8> {
    let mut state = n + 1;
    (0..100 + n * 97 % 3000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            state.to_le_bytes()[7]
        })
        .collect()
}

/// Several segments, prepared and recycled ones among them, closed; some acks.
pub fn sound() -> SimDisk {
    let disk = SimDisk::new(3);
    let wal = open(&disk).unwrap();
    for n in 0..RECORDS {
        let mut batch = Batch::new();
        batch.push(&record(n)).unwrap();
        batch.annotate(&n.to_le_bytes());
        wal.append(batch).unwrap().wait().unwrap();
        if n % 5 == 0 {
            wal.prepare().unwrap();
        }
        if n == 8 {
            wal.ack(Position::ZERO..Position::new(6));
            wal.checkpoint(Duration::ZERO).unwrap();
        }
    }
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    disk.crash(CrashLevel::PowerCut)
}

type Seen = (BTreeMap<u64, Vec<u8>>, Vec<std::ops::Range<u64>>);

fn read(wal: &Wal<SimDisk>) -> Seen {
    let mut reader = wal.reader(Position::ZERO);
    let (mut chunk, mut records, mut gaps) = (Chunk::new(), BTreeMap::new(), Vec::new());
    // Each step moves on; more of them than there are bytes would be an endless loop.
    for _ in 0..1_000_000 {
        match reader.next(&mut chunk, 4096).unwrap() {
            ReadOutcome::Records => {
                records.extend(chunk.iter().map(|(at, bytes)| (at.get(), bytes.to_vec())));
            }
            ReadOutcome::Gap(_, GapReason::Reclaimed) => {}
            ReadOutcome::Gap(range, _) => gaps.push(range.start.get()..range.end.get()),
            ReadOutcome::CaughtUp => return (records, gaps),
        }
    }
    panic!("the reader does not come to an end");
}

/// Opens the disk twice: no panic, the same both times, and every record of the sound log that is
/// not reported missing is what it was. `forged` allows for other records too, because the input
/// may be a whole frame. Without a `cursor` nothing in the directory tells of a newest segment that
/// is lost: then records behind the end may be missing in silence, and only a witness outside knows.
pub fn check(disk: &SimDisk, forged: bool, cursor: bool) {
    let before = disk.file_names();
    let first = match open(disk) {
        Ok(wal) => {
            let delivered = wal.delivered().get();
            let end = wal.durable().through().get();
            let seen = read(&wal);
            for n in delivered..RECORDS {
                match seen.0.get(&n) {
                    Some(bytes) => assert!(forged || *bytes == record(n), "record {n} altered"),
                    None => assert!(
                        forged
                            || (!cursor && n >= end)
                            || seen.1.iter().any(|gap| gap.contains(&n)),
                        "record {n} vanished"
                    ),
                }
            }
            seen
        }
        // Refused: then nothing is touched.
        Err(WalError::NewerVersion { .. } | WalError::ForeignSegment { .. }) => {
            assert_eq!(before, disk.file_names());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let wal = open(disk).unwrap();
    assert_eq!(read(&wal), first, "the second opening differs");
}

/// Takes numbers off the input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn number(&mut self) -> usize {
        let (head, rest) = self.0.split_at(self.0.len().min(3));
        self.0 = rest;
        head.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = self.number() % (most + 1);
        let (head, rest) = self.0.split_at(self.0.len().min(length));
        self.0 = rest;
        head
    }
}

/// Changes a file as the input says: overwrites, flips, cuts, copies blocks. True if bytes of the
/// input went into it as they are.
pub fn mutate(bytes: &mut Vec<u8>, input: &mut Input<'_>) -> bool {
    let mut forged = false;
    for _ in 0..1 + input.number() % 4 {
        if bytes.is_empty() {
            return forged;
        }
        let at = input.number() % bytes.len();
        match input.number() % 5 {
            0 => bytes[at] ^= 1 << (input.number() % 8),
            1 => bytes.truncate(at),
            2 => {
                let from = input.number() % bytes.len() / 4096 * 4096;
                let to = at / 4096 * 4096;
                let end = (from + 4096).min(bytes.len());
                let length = (end - from).min(bytes.len() - to);
                bytes.copy_within(from..from + length, to);
            }
            3 => {
                let end = (at + input.number() % 8192).min(bytes.len());
                bytes[at..end].fill(0);
            }
            _ => {
                let new = input.bytes(600);
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
                forged |= new.len() > 60;
            }
        }
    }
    forged
}
