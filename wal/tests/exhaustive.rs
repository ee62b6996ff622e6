//! Small cases, all of them: every short sequence of operations with a crash at every operation of
//! the disk, and two groups in flight whose steps come in every order with a crash after each.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking and prints how much it did"
)]

use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{Batch, Chunk, GapReason, NoCarry, Position, ReadOutcome, Wal, WalConfig};

const LEVELS: [CrashLevel; 3] = [CrashLevel::Kill, CrashLevel::PowerCut, CrashLevel::TornSectors];

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 16 * 1024,
        max_bytes: 4 << 20,
        min_free_bytes: 0,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

fn open(disk: &SimDisk) -> Result<Wal<SimDisk>, wal::WalError> {
    open_with(disk, config())
}

fn open_with(disk: &SimDisk, config: WalConfig) -> Result<Wal<SimDisk>, wal::WalError> {
    Wal::open(disk.clone(), config, Box::new(NoCarry), Duration::ZERO).map(|(wal, _)| wal)
}

/// Noise, so that the sizes are what they say: one frame of `bytes`.
fn batch(n: u64, bytes: u64) -> (Batch, Vec<u8>) {
    let mut state = n + 1;
    let record: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            state.to_le_bytes()[7]
        })
        .collect();
    let mut batch = Batch::new();
    batch.push(&record).unwrap();
    (batch, record)
}

/// What was submitted and what was promised.
#[derive(Default)]
struct Promised {
    records: Vec<Vec<u8>>,
    durable: u64,
    acked: u64,
}

impl Promised {
    fn check(&self, disk: &SimDisk, what: &dyn Fn() -> String) {
        let wal = open(disk).unwrap_or_else(|error| panic!("{}: open: {error}", what()));
        let mut reader = wal.reader(Position::ZERO);
        let (mut chunk, mut next) = (Chunk::new(), 0);
        loop {
            match reader.next(&mut chunk, usize::MAX).unwrap() {
                ReadOutcome::Records => {
                    for (position, record) in &chunk {
                        assert_eq!(position.get(), next, "{}", what());
                        let at = usize::try_from(next).unwrap();
                        assert!(
                            self.records.get(at).is_some_and(|sent| sent == record),
                            "{}",
                            what()
                        );
                        next += 1;
                    }
                }
                ReadOutcome::Gap(range, GapReason::Reclaimed) if range.end.get() <= self.acked => {
                    next = range.end.get();
                }
                ReadOutcome::Gap(range, reason) => panic!("{}: {range:?} {reason:?}", what()),
                ReadOutcome::CaughtUp => break,
            }
        }
        assert!(next >= self.durable, "{}: {} durable, {next} left", what(), self.durable);
    }
}

const OPERATIONS: u64 = 6;

/// One step of a sequence; an error is the planned stop.
fn apply(wal: &Wal<SimDisk>, operation: u64, promised: &mut Promised) -> Result<(), wal::WalError> {
    match operation {
        // A small one, one over a block boundary, one that changes the segment.
        0..3 => {
            let (batch, record) =
                batch(promised.records.len() as u64, [100, 5000, 9000][operation as usize]);
            if let Ok(ticket) = wal.append(batch) {
                promised.records.push(record);
                promised.durable = promised.durable.max(ticket.wait()?.through().get());
            }
            Ok(())
        }
        3 => wal.prepare().map(|_| ()),
        4 => {
            let durable = wal.durable().through();
            wal.ack(Position::ZERO..durable);
            promised.acked = durable.get();
            wal.checkpoint(Duration::ZERO)
        }
        _ => {
            // Queued, and left to whoever comes next.
            let (batch, record) = batch(promised.records.len() as u64, 200);
            if wal.append(batch).is_ok() {
                promised.records.push(record);
            }
            Ok(())
        }
    }
}

/// Runs a sequence up to the planned stop; returns the operations of the disk.
fn run(disk: &SimDisk, sequence: &[u64], promised: &mut Promised) -> u64 {
    let begun = disk.operations();
    if let Ok(wal) = open(disk) {
        for operation in sequence {
            if apply(&wal, *operation, promised).is_err() {
                break;
            }
            promised.durable = promised.durable.max(wal.durable().through().get());
        }
    }
    disk.operations() - begun
}

#[test]
fn every_short_sequence_survives_a_crash_at_every_operation() {
    let depth: u32 = std::env::var("WAL_EXHAUSTIVE").map_or(4, |depth| depth.parse().unwrap());
    let workers = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let all = OPERATIONS.pow(depth);
    let cycles: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    (worker..all)
                        .step_by(workers as usize)
                        .map(|n| sequence_cycles(n, depth))
                        .sum::<u64>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    println!("{all} sequences of {depth}, {cycles} crashes");
    assert!(cycles > all * 20);
}

fn sequence_cycles(n: u64, depth: u32) -> u64 {
    let sequence: Vec<u64> = (0..depth).map(|at| n / OPERATIONS.pow(at) % OPERATIONS).collect();
    let operations = run(&SimDisk::new(n), &sequence, &mut Promised::default());
    let mut cycles = 0;
    for stop in 1..=operations {
        for (index, level) in LEVELS.iter().enumerate() {
            let disk = SimDisk::new(n * 1000 + stop * 10 + index as u64);
            disk.fail_after(stop);
            let mut promised = Promised::default();
            run(&disk, &sequence, &mut promised);
            let what = || format!("sequence {sequence:?}, stop {stop}, {level:?}");
            promised.check(&disk.crash(*level), &what);
            cycles += 1;
        }
    }
    cycles
}

/// All orders of three steps of each of two groups.
fn orders() -> Vec<Vec<usize>> {
    (0..1u32 << 6)
        .filter(|bits| bits.count_ones() == 3)
        .map(|bits| (0..6).map(|at| usize::from(bits >> at & 1 == 1)).collect())
        .collect()
}

#[test]
fn two_groups_in_flight_keep_their_promises_in_every_order_and_at_every_crash() {
    let mut cycles = 0;
    for order in orders() {
        for steps in 0..=order.len() {
            for level in LEVELS {
                for seed in 0..25 {
                    let disk = SimDisk::new(seed);
                    let roomy = WalConfig { segment_bytes: 64 * 1024, ..config() };
                    let wal = open_with(&disk, roomy).unwrap();
                    let mut promised = Promised::default();
                    // Into a prepared segment: only there two can be in flight.
                    wal.prepare().unwrap();
                    apply(&wal, 0, &mut promised).unwrap();
                    let mut groups = Vec::new();
                    for _ in 0..2 {
                        let (batch, record) = batch(promised.records.len() as u64, 4500);
                        drop(wal.append(batch).unwrap());
                        promised.records.push(record);
                        groups.push((Some(wal.begin_group().unwrap().unwrap()), 0));
                    }
                    for which in order.iter().take(steps) {
                        let (group, step) = groups.get_mut(*which).unwrap();
                        *step += 1;
                        match *step {
                            1 => group.as_mut().unwrap().write(),
                            2 => group.as_mut().unwrap().sync(),
                            _ => group.take().unwrap().land().unwrap(),
                        }
                    }
                    promised.durable = wal.durable().through().get();
                    let synced =
                        |which: usize| groups.get(which).is_some_and(|(_, step)| *step > 2);
                    let expected = if !synced(0) {
                        1
                    } else if synced(1) {
                        3
                    } else {
                        2
                    };
                    assert_eq!(promised.durable, expected, "{order:?} after {steps}");
                    let what = || format!("order {order:?}, {steps} steps, {level:?}, seed {seed}");
                    promised.check(&disk.crash(level), &what);
                    cycles += 1;
                }
            }
        }
    }
    println!("{cycles} crashes");
}
