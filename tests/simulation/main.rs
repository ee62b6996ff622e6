//! The whole pipeline in one thread: the real log on a simulated disk, the real machines, a model Kafka, a model store.
//!
//! One seed decides everything: what is produced, in which order things happen, what fails, when the process dies and
//! what the disk keeps of unsynced data (level L0: all of it, as after `kill -9`; level L2: any subset of its sectors,
//! as after a power cut). After every crash and at the end the oracle checks what must hold; see `oracle.rs`.
//!
//! A failing seed prints the command that replays it: `SIM_SEED=<seed> cargo test --test simulation seeds`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod kafka;
mod oracle;
mod process;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Bug, Tally, World};

/// Seeds of one CI run.
const SEEDS: u64 = 20_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs one seed and returns what was found wrong.
fn run(seed: u64, bug: Bug) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed, bug).run())).map_err(|panic| {
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
        let tally = run(seed, Bug::None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
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
                    match run(seed, Bug::None) {
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
        assert!(total.crashes > seeds / 2 && total.power_cuts > seeds / 10, "{total:?}");
        assert!(total.store_failures > seeds && total.dead_letters > seeds / 10, "{total:?}");
        assert!(total.rebalances > seeds / 10 && total.repeated > seeds / 10, "{total:?}");
        assert!(
            total.disks_lost > seeds / 20 && total.disks_rolled_back > seeds / 100,
            "{total:?}"
        );
        assert!(total.missing_at_start > seeds / 50 && total.fetched_again > seeds, "{total:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 77, 4_321] {
        assert_eq!(run(seed, Bug::None).unwrap(), run(seed, Bug::None).unwrap(), "seed {seed}");
    }
}

/// Each deliberate bug, and the oracles one of which must notice it.
const BUGS: [(Bug, &[&str]); 4] = [
    (Bug::CommitBeforeDurable, &["I3"]),
    (Bug::CommitBeforeLedger, &["I3", "I5"]),
    (Bug::TrustForeignLog, &["I3", "I5"]),
    // What is not fetched again is missing, or leaves an older value standing.
    (Bug::IgnoreGap, &["I5", "I8"]),
];

#[test]
fn every_deliberate_bug_is_caught() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let caught = BUGS.map(|(bug, oracles)| {
        let caught = (0..1000).find_map(|seed| run(seed, bug).err().map(|wrong| (seed, wrong)));
        (bug, oracles, caught)
    });
    std::panic::set_hook(quiet);
    for (bug, oracles, caught) in caught {
        let (seed, wrong) = caught
            .unwrap_or_else(|| panic!("1,000 seeds did not notice {bug:?}: the oracle is blind"));
        eprintln!("{bug:?} caught at seed {seed}: {wrong}");
        assert!(
            oracles.iter().any(|oracle| wrong.contains(oracle)),
            "{bug:?} was caught for another reason: {wrong}"
        );
    }
}
