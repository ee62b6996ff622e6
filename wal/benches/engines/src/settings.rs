//! What can be set from outside, and what the run was on.

use std::path::{Path, PathBuf};

use bench_wal::corpus::{RECORD_BYTES, RECORDS};
use bench_wal::usage::Device;
use serde_json::{Value, json};

/// Fewer rounds are good for trying the benchmark out.
pub const ROUNDS_TO_PUBLISH: usize = 5;

/// All settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rounds of every engine in every shape, and openings of every backlog.
    pub rounds: usize,
    /// How long a round measures.
    pub seconds: f64,
    /// Everything is written below it, and removed again.
    pub dir: PathBuf,
    /// Where the result goes.
    pub result: PathBuf,
    /// Sizes of the backlogs to open, in 10^9 bytes of payload.
    pub backlogs_gb: Vec<f64>,
}

impl Settings {
    /// From the environment, with what it does not say filled in.
    pub fn from_environment() -> Self {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| project.join("target"), PathBuf::from);
        let bench = target.join("bench");
        let dir = std::env::var_os("BENCH_DIR").map_or_else(|| bench.clone(), PathBuf::from);
        let sizes = variable("BENCH_OPEN_GB").unwrap_or_else(|| "1,10".to_owned());
        Self {
            rounds: number("BENCH_ROUNDS").unwrap_or(ROUNDS_TO_PUBLISH as f64).max(1.0) as usize,
            seconds: number("BENCH_SECONDS").unwrap_or(2.0),
            dir: dir.join("wal-data"),
            result: bench.join("wal.json"),
            backlogs_gb: sizes
                .split(',')
                .map(|size| parse("BENCH_OPEN_GB", size.trim()))
                .filter(|size| *size > 0.0)
                .collect(),
        }
    }

    /// For the result.
    pub fn json(&self, rocksdb: Option<&str>) -> Value {
        json!({
            "rounds": self.rounds,
            "seconds": self.seconds,
            "record_bytes": RECORD_BYTES,
            "records": RECORDS,
            "rocksdb": rocksdb,
            "machine": machine(&self.dir),
        })
    }
}

/// Cores, kernel and device, because numbers of another machine mean little.
pub fn machine(dir: &Path) -> Value {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": kernel.trim(),
        "device": Device::of(dir).map(Device::name),
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<f64> {
    variable(name).map(|text| parse(name, &text))
}

fn parse(name: &str, text: &str) -> f64 {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.unwrap_or_else(|| panic!("{name}: `{text}` is not a number that can be used"))
}
