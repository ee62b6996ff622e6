//! The log beside the logs people use today: one run, the same records, the same durability.
//!
//! Every engine has its data on the disk before a commit returns, by its own means. Each round of
//! each engine is a process of its own in an empty directory; rounds are interleaved, warmed up, and
//! told as medians with their spread. Of the raw file, written with the page cache and fdatasync or
//! past it, the better is *floor 1* with one write in flight and *floor 2* with two. The column
//! `floor` is the part of floor 1 that an engine reaches.
//!
//! What to bear in mind. RocksDB, fjall and sled are stores: they also insert into a tree in memory,
//! which they cannot leave out. They are spared giving anything back during a round; the others,
//! ours included, do so all the time. Latencies are those of the commit call; the pipelined
//! producer's are from append to when it next looked. Disk bytes are the whole device's, so nothing
//! else may write to it. Memory is the whole process, its 6 MiB of records included.
//!
//! Settings, all by environment: `BENCH_ROUNDS` (5), `BENCH_SECONDS` (2, of measuring per round),
//! `BENCH_DIR` (a directory `wal-data` in it is emptied and used; default: `bench/` in Cargo's
//! target directory; must not be memory), `BENCH_OPEN_GB` (`1,10`: backlogs to open; 0 for none).
//! RocksDB takes part where its headers were found at build time (Debian: `librocksdb-dev`). The
//! result is also written to `bench/wal.json` in Cargo's target directory.

mod backlog;
mod children;
mod engines;
mod report;
mod rows;
mod settings;
mod targets;

use std::fs::{self, File};

use bench_wal::round;
use bench_wal::usage::Device;

use crate::engines::Role;
use crate::rows::Row;
use crate::settings::{ROUNDS_TO_PUBLISH, Settings};

/// A flush that is faster than this reached no disk and no protected memory of one.
const FLUSH_US_MIN: f64 = 20.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => bench(),
        ["round", ..] => round::child(&arguments[1..], engines::open),
        ["grow", dir, records] => backlog::grow(dir, records),
        ["open", dir] => backlog::open(dir, false),
        ["open-and-close", dir] => backlog::open(dir, true),
        _ => panic!("{words:?}: takes no arguments; settings are in the environment"),
    }
}

fn bench() {
    let settings = Settings::from_environment();
    let _lock = take(&settings);
    let mut remarks = Vec::new();
    let rocksdb = children::rocksdb_version();
    println!(
        "{} rounds of {} s in {}, {}",
        settings.rounds,
        settings.seconds,
        settings.dir.display(),
        settings::machine(&settings.dir)
    );
    match &rocksdb {
        Ok(version) => println!("with RocksDB {version}"),
        Err(reason) => remarks.push(format!("rocksdb: {reason}")),
    }
    if Device::of(&settings.dir).is_none() {
        remarks.push("disk bytes: the kernel keeps no counters for this file system".to_owned());
    }
    if settings.rounds < ROUNDS_TO_PUBLISH {
        println!("fewer than {ROUNDS_TO_PUBLISH} rounds: to try it out, not to publish");
    }

    let rows = rows::measure(&settings, rocksdb.is_ok(), &mut remarks, report::print_shape);
    if let Some(flush_us) = fastest_flush_us(&rows).filter(|flush_us| *flush_us < FLUSH_US_MIN) {
        remarks.push(format!(
            "durability: half of the raw file's syncs took less than {flush_us:.0} us, no disk does"
        ));
    }
    let opened = backlog::measure(&settings, &mut remarks);
    report::print_opened(&opened);
    let targets = targets::all(&rows, &opened);
    report::print_targets(&targets);
    for remark in &remarks {
        println!("remark: {remark}");
    }
    report::write(&settings, rocksdb.as_deref().ok(), &rows, &opened, &targets, &remarks);
    fs::remove_dir_all(&settings.dir).unwrap();
}

/// Makes sure that no other run uses the directory, and removes what one that was broken off has
/// left.
fn take(settings: &Settings) -> File {
    fs::create_dir_all(&settings.dir).unwrap();
    let lock = File::create(settings.dir.with_extension("lock")).unwrap();
    if let Err(error) = lock.try_lock() {
        panic!("{} is used by another run: {error}", settings.dir.display());
    }
    fs::remove_dir_all(&settings.dir).unwrap();
    fs::create_dir(&settings.dir).unwrap();
    lock
}

fn fastest_flush_us(rows: &[Row]) -> Option<f64> {
    rows.iter()
        .filter(|row| row.shape.batch == 1 && matches!(row.engine.role, Role::Raw(_)))
        .map(|row| row.median(|round| round.p50_us))
        .min_by(f64::total_cmp)
}
