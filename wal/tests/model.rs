//! The log against a list: random operations, crashes at any operation (recovery included, five
//! deep), failing operations, rot, and disks that lie. A failing seed is shrunk and printed with the
//! command that repeats it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test fails by panicking, prints what it did, and its numbers are small"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use support::{ANYTHING, Failure, Plan, Tally, run, run_with_failure};
use wal::Mutant;
use wal::sim::Injected;

/// Seeds that once failed; every run repeats them first.
const KEPT_SEEDS: &str = include_str!("seeds.txt");

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let digits = text.strip_prefix("0x").map(|hex| u64::from_str_radix(hex, 16));
    Some(digits.unwrap_or_else(|| text.parse()).unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Runs seeds on all cores until so many crashes were survived; the first failure is shrunk.
fn campaign(plan: Plan, crashes: u64) -> Result<Tally, Failure> {
    if let Some(seed) = number("WAL_SIM_SEED") {
        let steps_max = number("WAL_SIM_STEPS").unwrap_or(u64::MAX);
        let faults = number("WAL_SIM_FAULTS") != Some(0);
        return run(seed, Plan { steps_max, faults, ..plan });
    }
    let kept = KEPT_SEEDS.lines().filter_map(|line| line.split('#').next()?.trim().parse().ok());
    let kept: Vec<u64> = kept.collect();
    let base = number("WAL_SIM_BASE").unwrap_or(0);
    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Tally::default());
    let failed: Mutex<Option<Failure>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let seed = match kept.get(index as usize) {
                        Some(seed) => *seed,
                        None => base.wrapping_add(index - kept.len() as u64),
                    };
                    match run(seed, plan) {
                        Ok(tally) => {
                            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                            total.add(tally);
                            if total.crashes + total.in_recovery >= crashes {
                                done.store(true, Ordering::Relaxed);
                            }
                        }
                        Err(failure) => {
                            done.store(true, Ordering::Relaxed);
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.get_or_insert_with(|| shrink(seed, plan, failure));
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The same failure with fewer steps and without injected faults, as far as that goes.
fn shrink(seed: u64, plan: Plan, failure: Failure) -> Failure {
    let mut smallest = (plan, failure);
    let without = Plan { faults: false, ..plan };
    if let Err(failure) = run(seed, without) {
        smallest = (without, failure);
    }
    for steps_max in [0, 1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 55, 75, 100, 130, 170, 220, 300, 400] {
        let fewer = Plan { steps_max, ..smallest.0 };
        if let Err(failure) = run(seed, fewer) {
            smallest = (fewer, failure);
            break;
        }
    }
    let (plan, failure) = smallest;
    format!(
        "{failure}\nrepeat: WAL_SIM_SEED={seed} WAL_SIM_STEPS={} WAL_SIM_FAULTS={} \
         cargo test -p wal --test model no_crash",
        plan.steps_max,
        u64::from(plan.faults)
    )
}

#[test]
fn no_crash_loses_alters_or_invents_a_durable_record() {
    let crashes = number("WAL_SIM_CRASHES").unwrap_or(30_000);
    let begun = std::time::Instant::now();
    match campaign(ANYTHING, crashes) {
        Ok(tally) => println!("{tally:?} in {:.0?}", begun.elapsed()),
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_failing_seed_is_reported_shrunk_with_its_command() {
    let lying = Plan { mutant: Mutant::NoSyncOfGroups, ..ANYTHING };
    let failure = campaign(lying, u64::MAX).unwrap_err();
    assert!(failure.contains("repeat: WAL_SIM_SEED="), "{failure}");
    assert!(!failure.contains(&format!("WAL_SIM_STEPS={}", u64::MAX)), "not shrunk: {failure}");
}

/// Each mutant must be noticed within this many seeds.
const SEEDS_PER_MUTANT: u64 = 4000;

#[test]
fn every_deliberate_bug_is_noticed() {
    let mut survivors = Vec::new();
    for mutant in Mutant::ALL {
        let plan = Plan { mutant: *mutant, ..ANYTHING };
        let noticed = (0..SEEDS_PER_MUTANT).find_map(|seed| {
            let outcome = std::panic::catch_unwind(|| run(seed, plan));
            wal::mutants::set(Mutant::None);
            match outcome {
                Ok(Ok(_)) => None,
                Ok(Err(failure)) => Some((seed, failure)),
                Err(_) => Some((seed, "panicked".to_owned())),
            }
        });
        match noticed {
            Some((seed, failure)) => {
                let first = failure.lines().next().unwrap_or_default();
                println!("{:<28} seeds {:>5}  {first:.100}", format!("{mutant:?}"), seed + 1);
            }
            None => survivors.push(mutant),
        }
    }
    println!("{} of {} noticed", Mutant::ALL.len() - survivors.len(), Mutant::ALL.len());
    assert!(survivors.is_empty(), "not noticed in {SEEDS_PER_MUTANT} seeds: {survivors:?}");
}

/// Fails call 1, 2, 3 ... until a run ends without meeting the failure.
fn every_operation_fails_once(error: Injected) {
    // A log that is full soon leaves a short workload: it is tried, and does not count.
    let mut long_workloads = 0;
    for seed in 0..20 {
        let mut nth = 1;
        loop {
            match run_with_failure(seed, nth, error) {
                Ok(true) => nth += 1,
                Ok(false) => break,
                Err(failure) => panic!("{failure}\nseed {seed}, operation {nth}, {error:?}"),
            }
        }
        long_workloads += u32::from(nth > 40);
        if long_workloads == 6 {
            return;
        }
    }
    panic!("only {long_workloads} of 20 workloads have more than 40 operations");
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
        run.open(&disk.crash(wal::sim::CrashLevel::PowerCut)).unwrap().unwrap();
    }
}
