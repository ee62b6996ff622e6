//! The log against a list: random operations, crashes at any operation (recovery included), and
//! every single file operation failing once. A failing seed is printed with the command that
//! repeats it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod support;

use support::{Plan, run, run_with_failure};
use wal::Mutant;
use wal::sim::{CrashLevel, Injected};

const SOUND: Plan = Plan {
    mutant: Mutant::None,
    crash_levels: &[CrashLevel::Kill, CrashLevel::PowerCut, CrashLevel::TornSectors],
};

/// One seed from the environment, or the first `count`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("WAL_SIM_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => {
            let factor = std::env::var("WAL_SIM_FACTOR").map_or(1, |n| n.parse().unwrap());
            0..count * factor
        }
    }
}

#[test]
fn no_crash_loses_alters_or_invents_a_durable_record() {
    for seed in seeds(3000) {
        if let Err(failure) = run(seed, SOUND) {
            panic!(
                "{failure}\nrepeat: WAL_SIM_SEED={seed} cargo test -p wal --test model no_crash"
            );
        }
    }
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let lying = Plan { mutant: Mutant::AckBeforeSync, ..SOUND };
    let caught = (0..50).find_map(|seed| run(seed, lying).err());
    assert!(caught.is_some(), "50 seeds did not notice the mutant");
}

/// Fails call 1, 2, 3 ... until a run ends without meeting the failure.
fn every_operation_fails_once(error: Injected) {
    for seed in 0..6 {
        let mut nth = 1;
        loop {
            match run_with_failure(seed, nth, error) {
                Ok(true) => nth += 1,
                Ok(false) => break,
                Err(failure) => panic!("{failure}\nseed {seed}, operation {nth}, {error:?}"),
            }
        }
        assert!(nth > 40, "the workload of seed {seed} has only {nth} operations");
    }
}

#[test]
fn any_operation_may_report_an_io_error() {
    every_operation_fails_once(Injected::Eio);
}

#[test]
fn any_operation_may_find_no_space() {
    every_operation_fails_once(Injected::NoSpace);
}

#[test]
fn a_full_disk_is_pressure_that_ends_by_itself() {
    for seed in 0..40 {
        let mut run = support::Run::new(seed, Mutant::None);
        let disk = wal::sim::SimDisk::new(seed);
        let mut life = run.open(&disk).unwrap().unwrap();
        disk.set_capacity(Some(disk.used_bytes() + 1000 + seed * 700));
        let mut pressed = false;
        for _ in 0..200 {
            run.append(&mut life).unwrap();
            pressed |= life.wal.commit().is_err();
            run.settle(&mut life).unwrap();
        }
        let status = life.wal.status();
        assert!(pressed && status.out_of_space && status.poisoned.is_none(), "seed {seed}");
        let mut batch = wal::Batch::new();
        batch.push(b"refused").unwrap();
        let refused = life.wal.append(batch.clone());
        assert!(matches!(refused, Err(wal::AppendError::Full(back)) if back == batch));
        // A checkpoint needs no new space.
        life.wal.checkpoint(run.now).unwrap();

        disk.set_capacity(None);
        life.wal.commit().unwrap();
        run.settle(&mut life).unwrap();
        assert!(life.tickets.is_empty(), "seed {seed}: a ticket is stuck");
        assert!(!life.wal.status().out_of_space);
        run.append(&mut life).unwrap();
        life.wal.commit().unwrap();
        run.model.check_content(&life.wal).unwrap();
        drop(life);
        run.open(&disk.crash(CrashLevel::PowerCut)).unwrap().unwrap();
    }
}
