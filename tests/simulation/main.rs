//! The whole pipeline in one thread: the real log on a simulated disk, the real machines, a model Kafka, a model store.
//!
//! Up to three instances of one consumer group, each with its own disks, come, go, die, stand still and come back;
//! partitions move between them, and some machines are lost for ever.
//!
//! One seed decides everything: what is produced, in which order things happen, what fails, when a process dies and
//! what its disks keep of unsynced data (level L0: all of it, as after `kill -9`; level L2: any subset of its sectors,
//! as after a power cut). After every crash and at the end the oracle checks what must hold; see `oracle.rs`.
//!
//! A failing seed prints the command that replays it: `SIM_SEED=<seed> cargo test --test simulation seeds`; with
//! `SIM_BUG=<name>` it has one of the deliberate bugs of `mutants.rs`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod consumer;
mod dice;
mod group;
mod instance;
mod kafka;
mod ledger_keeper;
mod mutants;
mod oracle;
mod process;
mod store;
mod surroundings;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use mutants::{Bug, MUTANTS, Mutant};
use tally::Tally;
use world::World;

/// Seeds of one CI run.
const SEEDS: u64 = 20_000;
/// Seeds in which each deliberate bug must be noticed.
const HUNTED_SEEDS: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs one seed and returns what was found wrong.
fn run(seed: u64, bug: Bug, is_loud: bool) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, bug, is_loud).run())).map_err(|panic| {
        panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "panic without a message".to_owned())
    })
}

#[test]
fn seeds_lose_nothing_and_repeat_nothing() {
    if let Some(seed) = number("SIM_SEED") {
        let name = std::env::var("SIM_BUG").unwrap_or_default();
        let mutant = MUTANTS.iter().find(|mutant| format!("{:?}", mutant.bug) == name);
        assert!(name.is_empty() || mutant.is_some(), "SIM_BUG={name} is no bug that is known");
        let tally = run(seed, mutant.map_or(Bug::None, |mutant| mutant.bug), true)
            .unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        eprintln!("seed {seed}: {tally:?}");
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let total = std::sync::Mutex::new(Tally::default());
    let failures = std::sync::Mutex::new(Vec::new());
    // Failures are reported below, each once.
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    match run(seed, Bug::None, false) {
                        Ok(tally) => total.lock().unwrap().add(&tally),
                        Err(wrong) => failures.lock().unwrap().push((seed, wrong)),
                    }
                }
            });
        }
    });
    std::panic::set_hook(quiet);
    let total = total.into_inner().unwrap();
    let failures = failures.into_inner().unwrap();
    eprintln!("{seeds} seeds: {total:?}");
    for (seed, wrong) in failures.iter().take(5) {
        eprintln!(
            "seed {seed}: {wrong}\n  replay: SIM_SEED={seed} cargo test --test simulation seeds"
        );
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed", failures.len());
    // A simulator that never crashes or never fails proves nothing.
    if seeds >= 100 {
        assert!(total.crashes > seeds && total.power_cuts > seeds / 2, "{total:?}");
        assert!(total.clean_stops > seeds && total.freezes > seeds, "{total:?}");
        assert!(total.store_failures > seeds && total.dead_letters > seeds / 10, "{total:?}");
        assert!(
            total.store_losses > seeds / 10 && total.rows_lost_by_store > seeds / 4,
            "{total:?}"
        );
        assert!(
            total.delivered_again > seeds / 10 && total.losses_unwatched > seeds / 20,
            "{total:?}"
        );
        // 20,000 seeds have more than a thousand outages.
        assert!(total.outages > seeds / 20, "{total:?}");
        assert!(total.overloads > seeds && total.tables_changed > seeds / 10, "{total:?}");
        assert!(total.half_away > seeds && total.rows_set_aside > seeds, "{total:?}");
        assert!(total.came_back > seeds / 100, "{total:?}");
        assert!(total.given_up > seeds / 100, "{total:?}");
        assert!(total.rebalances > seeds && total.repeated > seeds / 10, "{total:?}");
        assert!(total.asked_back > seeds / 4 && total.changed_hands > seeds / 2, "{total:?}");
        assert!(total.partitions_lost > seeds / 4 && total.expired > seeds, "{total:?}");
        assert!(total.commits_refused > seeds / 4 && total.commits_lost > seeds, "{total:?}");
        assert!(total.committed_unknown > seeds / 50, "{total:?}");
        assert!(
            total.disks_lost > seeds / 20 && total.disks_rolled_back > seeds / 100,
            "{total:?}"
        );
        assert!(total.missing_at_start > seeds / 50 && total.fetched_again > seeds, "{total:?}");
        assert!(total.machines_lost > seeds / 10 && total.taken_over > seeds / 20, "{total:?}");
        assert!(total.recreated > seeds / 8 && total.recreations_noticed > seeds / 8, "{total:?}");
        assert!(total.recreations_accepted > seeds / 50, "{total:?}");
        assert!(total.commits_stale > seeds / 100, "{total:?}");
        assert!(total.reported_lost > seeds / 50, "{total:?}");
        assert!(total.retained > seeds && total.retention_gaps > seeds / 20, "{total:?}");
        assert!(total.ends_lost > seeds / 8 && total.truncated_gaps > seeds / 25, "{total:?}");
        assert!(total.losses_checked > seeds && total.recovered_twice > seeds / 10, "{total:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 77, 4_321] {
        assert_eq!(
            run(seed, Bug::None, false).unwrap(),
            run(seed, Bug::None, false).unwrap(),
            "seed {seed}"
        );
    }
}

/// The seed at which a bug is noticed by the oracle that must notice it.
fn hunt(mutant: &Mutant) -> Result<String, String> {
    let Mutant { bug, oracle, others } = mutant;
    for seed in 0..HUNTED_SEEDS {
        let Err(wrong) = run(seed, *bug, false) else { continue };
        let by = |oracle: &str| wrong.starts_with(oracle) || wrong.contains(&format!(": {oracle}"));
        if by(oracle) {
            return Ok(format!("{bug:?} caught at seed {seed}: {wrong}"));
        }
        if !others.iter().any(|oracle| by(oracle)) {
            return Err(format!("{bug:?} was caught at seed {seed} for another reason: {wrong}"));
        }
    }
    Err(format!("{HUNTED_SEEDS} seeds did not make {oracle} notice {bug:?}: the oracle is blind"))
}

#[test]
fn every_deliberate_bug_is_caught() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let hunted = MUTANTS.map(|mutant| hunt(&mutant));
    std::panic::set_hook(quiet);
    for hunted in &hunted {
        let (Ok(text) | Err(text)) = hunted;
        eprintln!("{text}");
    }
    let missed: Vec<_> = hunted.iter().filter_map(|hunted| hunted.as_ref().err()).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}
