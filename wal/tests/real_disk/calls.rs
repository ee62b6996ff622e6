//! strace: kills a victim at exactly the N-th system call of a kind, or lets that call fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::victim::{self, EXIT_FAILED, Victim};

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

fn wrapper(call: &str, injected: &str, nth: u64) -> Vec<String> {
    let inject = format!("inject={call}:{injected}:when={nth}");
    let trace = format!("trace={call}");
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]
        .map(str::to_owned)
        .to_vec()
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
                    let mut nth = 1;
                    while !enough() {
                        let dir = tempfile::tempdir().unwrap();
                        let wrapper = wrapper(call, "signal=KILL", nth);
                        let mut victim = Victim::start(dir.path(), seed * 100, 24, &wrapper);
                        victim.wait();
                        let what = format!("killed at {call} {nth}, seed {seed}");
                        victim::check(dir.path(), victim.promised, &what);
                        if victim.done {
                            break;
                        }
                        assert!(victim.failed.is_none(), "{what}: {:?}", victim.failed);
                        kills.fetch_add(1, Ordering::Relaxed);
                        nth += 1;
                    }
                }
            });
        }
    });
    kills.load(Ordering::Relaxed)
}

/// Lets every call of a kind fail once; says how many failed, and how many victims noticed.
pub fn fail_everywhere(call: &str, error: &str, most: u64) -> (u64, u64) {
    let (mut failures, mut noticed) = (0, 0);
    for nth in 1..=most {
        let dir = tempfile::tempdir().unwrap();
        let wrapper = wrapper(call, &format!("error={error}"), nth);
        let mut victim = Victim::start(dir.path(), 7, 12, &wrapper);
        let code = victim.wait();
        let what = format!("{call} {nth} fails with {error}");
        assert!(
            victim.done || code == Some(EXIT_FAILED),
            "{what}: ends with {code:?}, said {:?}",
            victim.failed
        );
        victim::check(dir.path(), victim.promised, &what);
        failures += 1;
        noticed += u64::from(victim.failed.is_some());
    }
    (failures, noticed)
}
