//! strace: kills a victim at exactly the N-th system call of a kind, or lets that call fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::victim::{self, EXIT_FAILED, End, Victim};

/// Calls that change something, or say something.
const CALLS: [&str; 8] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "openat",
    "renameat,renameat2",
    "unlinkat",
    "ftruncate",
    "write",
];

pub fn is_there() -> bool {
    let there = std::process::Command::new("strace").arg("-V").output();
    there.is_ok_and(|output| output.status.success())
}

fn wrapper(call: &str, injected: &str, nth: u64, log: &str) -> Vec<String> {
    let inject = format!("inject={call}:{injected}:when={nth}");
    let trace = format!("trace={call}");
    ["strace", "-f", "-qq", "-o", log, "-e", &trace, "-e", &inject].map(str::to_owned).to_vec()
}

/// The first calls of this kind are those of the dynamic loader and of the test harness.
fn first(call: &str) -> u64 {
    match call {
        "openat" => 8,
        "write" => 3,
        _ => 1,
    }
}

/// One victim per call, 1, 2, 3 … until one lives to its end; all kinds of calls, then other
/// seeds, until there were so many kills or the time is over. Returns how many.
pub fn kill_everywhere(kills_wanted: u64, time: Duration) -> u64 {
    let begun = Instant::now();
    let kills = AtomicU64::new(0);
    let enough = || kills.load(Ordering::Relaxed) >= kills_wanted || begun.elapsed() >= time;
    let tasks = Mutex::new((0..).flat_map(|seed| CALLS.map(|call| (seed, call))));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !enough() {
                    let Some((seed, call)) = tasks.lock().unwrap().next() else { return };
                    let mut nth = first(call);
                    while !enough() {
                        let dir = super::directory();
                        let wrapper = wrapper(call, "signal=KILL", nth, "/dev/null");
                        let mut victim = Victim::start(dir.path(), seed * 100, 24, &wrapper);
                        let end = victim.wait();
                        let what = format!("killed at {call} {nth}, seed {seed}");
                        victim::check(dir.path(), victim.promised, &what);
                        if victim.done {
                            break;
                        }
                        assert_eq!(end, End::Killed, "{what}: {:?}", victim.failed);
                        kills.fetch_add(1, Ordering::Relaxed);
                        nth += 1;
                    }
                }
            });
        }
    });
    kills.load(Ordering::Relaxed)
}

/// Lets the N-th call of a kind (in each thread) fail, for N from 1 on; says how many calls failed,
/// how many victims met one, and how many of them ended.
pub fn fail_everywhere(call: &str, error: &str, most: u64) -> (usize, u64, u64) {
    let (mut failures, mut met, mut ended) = (0, 0, 0);
    for nth in 1..=most {
        let dir = super::directory();
        let log = dir.path().join("calls");
        let wrapper = wrapper(call, &format!("error={error}"), nth, log.to_str().unwrap());
        let mut victim = Victim::start(&dir.path().join("log"), 7, 12, &wrapper);
        let end = victim.wait();
        let what = format!("{call} {nth} fails with {error}");
        assert!(
            victim.done || end == End::Exit(EXIT_FAILED),
            "{what}: {end:?}, said {:?}",
            victim.failed
        );
        victim::check(&dir.path().join("log"), victim.promised, &what);
        let injected = std::fs::read_to_string(&log).unwrap().matches("(INJECTED)").count();
        failures += injected;
        met += u64::from(injected > 0);
        ended += u64::from(victim.failed.is_some());
    }
    (failures, met, ended)
}
