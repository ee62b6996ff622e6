//! The second table: how long the log takes to open with a backlog, and in how much memory.
//!
//! The backlog is real: records that were appended and never acknowledged. Before every opening a
//! child appends some more and is killed in the middle of it, so that recovery finds a segment that
//! was never finished and records whose durability is not proven; then the files are thrown out of
//! the page cache. A second opening follows a clean close. Each is a process of its own, whose
//! whole memory counts.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bench_wal::corpus::{RECORD_BYTES, corpus};
use bench_wal::round::{Durable, Writer as _};
use bench_wal::usage;
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wal::{Committer, Compression, DiskFs, NoCarry, Wal, WalConfig};

use crate::children;
use crate::engines::{PLAIN, wal_log::Pipelining};
use crate::rows::{Summary, settle};
use crate::settings::Settings;

/// Between two openings: most of a segment, so that recovery has one to read.
const GROW_BYTES: u64 = 48 * 1024 * 1024;
const BATCH: usize = 1000;
/// Filling takes longest.
const STEP: Duration = Duration::from_secs(900);

/// What was done before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// A kill in the middle of a write.
    Kill,
    /// An orderly end.
    Close,
}

impl After {
    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            After::Kill => "after a kill",
            After::Close => "after a close",
        }
    }
}

/// What a child says of its opening.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Opened {
    open_s: f64,
    rss_mib_peak: f64,
    backlog_records: u64,
}

/// One size, opened in one way.
#[derive(Clone, Debug)]
pub struct OpenRow {
    /// 10^9 bytes of payload.
    pub gigabytes: f64,
    /// How the log was left.
    pub after: After,
    /// Seconds.
    pub open_s: Summary,
    /// The most of all openings.
    pub rss_mib_peak: f64,
}

impl OpenRow {
    /// As the first column of a table.
    pub fn name(&self) -> String {
        format!("open {} GB {}", self.gigabytes, self.after.name())
    }

    /// For the result.
    pub fn json(&self) -> Value {
        json!({
            "shape": self.name(),
            "engine": PLAIN,
            "open_s": self.open_s.json(),
            "rss_mib_peak": self.rss_mib_peak,
        })
    }
}

/// All sizes. One for which there is no room goes to `remarks`.
pub fn measure(settings: &Settings, remarks: &mut Vec<String>) -> Vec<OpenRow> {
    let mut rows = Vec::new();
    for gigabytes in &settings.backlogs_gb {
        let needed = (gigabytes * 1.1 + 2.0) * 1e9;
        let space = rustix::fs::statvfs(&settings.dir).unwrap();
        if (space.f_bavail * space.f_frsize) as f64 > needed {
            rows.extend(measure_one(settings, *gigabytes));
        } else {
            let needed_gb = needed / 1e9;
            remarks.push(format!("open {gigabytes} GB: needs {needed_gb:.1} GB of free disk"));
        }
    }
    rows
}

fn measure_one(settings: &Settings, gigabytes: f64) -> [OpenRow; 2] {
    let dir = settings.dir.join("backlog");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    let mut records = (gigabytes * 1e9) as u64 / RECORD_BYTES as u64;
    let (mut killed, mut closed) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        records += GROW_BYTES / RECORD_BYTES as u64;
        children::kill_after_a_line(
            &children::this_program(),
            &["grow", path, &records.to_string()],
        );
        killed.push(open_cold(&dir, "open", records));
        // This one ends by closing; the next finds a closed log.
        open_cold(&dir, "open-and-close", records);
        closed.push(open_cold(&dir, "open", records));
    }
    fs::remove_dir_all(&dir).unwrap();
    settle(&settings.dir);
    [(After::Kill, killed), (After::Close, closed)].map(|(after, opened)| OpenRow {
        gigabytes,
        after,
        open_s: Summary::of(opened.iter().map(|opened| opened.open_s).collect()).unwrap(),
        rss_mib_peak: opened.iter().map(|opened| opened.rss_mib_peak).fold(0.0, f64::max),
    })
}

fn open_cold(dir: &Path, verb: &str, records: u64) -> Opened {
    settle(dir);
    for entry in dir.read_dir().unwrap() {
        let file = File::open(entry.unwrap().path()).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
    let arguments = [verb, dir.to_str().unwrap()];
    let opened: Opened = children::ask(&children::this_program(), &arguments, STEP).unwrap();
    assert!(
        opened.backlog_records >= records,
        "{} of {records} records are left in the backlog",
        opened.backlog_records
    );
    opened
}

/// Never full: the size is set by who appends.
fn open_log(dir: &str) -> Wal {
    let config = WalConfig {
        compression: Compression::None,
        max_bytes: 1 << 40,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    };
    let fs = DiskFs::open(Path::new(dir)).unwrap();
    Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO).unwrap().0
}

/// A child that appends until so many records are durable, says so, and goes on until it is killed.
pub fn grow(dir: &str, records: &str) {
    let records: u64 = records.parse().unwrap();
    let wal = open_log(dir);
    let _committer = Committer::spawn(wal.clone()).unwrap();
    let corpus = corpus();
    let (mut writer, mut durable) = (Pipelining::new(&wal), Durable::default());
    let mut told = false;
    loop {
        for batch in corpus.chunks_exact(BATCH) {
            writer.commit(batch, &mut durable);
        }
        if !told && wal.durable().through().get() >= records {
            println!("{records} records are durable");
            std::io::stdout().flush().unwrap();
            told = true;
        }
    }
}

/// A child that opens the log, says what that took, and ends with or without closing it.
pub fn open(dir: &str, close: bool) {
    let begun = Instant::now();
    let wal = open_log(dir);
    let opened = Opened {
        open_s: begun.elapsed().as_secs_f64(),
        rss_mib_peak: usage::rss_mib_peak(),
        backlog_records: wal.status().backlog_records,
    };
    println!("{}", serde_json::to_string(&opened).unwrap());
    if close {
        wal.close(begun.elapsed()).unwrap();
    }
}
