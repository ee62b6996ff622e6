//! What the benchmarks of the program share.

mod consume;
mod figures;
mod report;
mod traffic;

use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::process::ProcessBuilder;

pub use consume::consume;
pub use figures::{Figures, Moment, settle};
pub use report::{Line, print, write};
pub use traffic::{SERIES, Traffic};

pub const STEP_WAIT: Duration = Duration::from_secs(600);

pub fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}=`{text}` cannot be used")))
}

/// Where the client runs when servers and client have a core of their own.
pub fn client_cpu() -> Option<usize> {
    let cores = std::thread::available_parallelism().unwrap().get();
    (cores >= 2 && variable("BENCH_PIN") != Some(0)).then_some(0)
}

/// Where logs and what processes print go: below `BENCH_DIR`, or the system's temporary directory.
pub fn directory() -> tempfile::TempDir {
    let parent = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::TempDir::with_prefix_in("bench-", parent).unwrap()
}

/// A bare client is this program again, with a role: its memory and CPU are then its own, and so is its core.
pub fn child(dir: &Path, role: &str, environment: &[(&str, String)]) -> Figures {
    let log = dir.join(harness::unique(role));
    let mut builder =
        ProcessBuilder::new(std::env::current_exe().unwrap(), &log).env("BENCH_ROLE", role);
    for (name, value) in environment {
        builder = builder.env(*name, value);
    }
    let mut process = builder.cpu(client_cpu()).start().unwrap();
    let ended = process.wait(STEP_WAIT);
    let text = process.log();
    assert!(ended.is_some_and(|status| status.success()), "{role}: {ended:?}\n{text}");
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}
