//! One round: one engine under one load, in a process and a directory of its own, so that memory
//! and processor time are its own and nothing of the engine before it is left.
//!
//! It begins with a warm-up that is long enough to come to recycled files, and what a consumer that
//! keeps up does is done all the time: every quarter of a second what is durable is given back.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::corpus::{RECORD_BYTES, Record, corpus};
use crate::shape::{Load, Shape};
use crate::usage::{self, Device};

/// How often what is durable is given back.
const RECLAIM_EVERY: Duration = Duration::from_millis(250);
/// Payload after which every engine has gone through some of its files.
const WARM_UP_BYTES: u64 = 256 * 1024 * 1024;

/// An engine with an open, empty directory.
pub trait Log: Sync {
    /// What producer number `thread` commits with.
    fn writer(&self, thread: usize) -> Box<dyn Writer + '_>;

    /// Gives back everything that is durable, as far as the engine knows how to. The default is for
    /// those that do not.
    fn reclaim(&self) {}
}

/// One producer's side of a log.
pub trait Writer {
    /// Commits a batch and notes in `durable` what is on the disk: this batch, or for a pipelining
    /// writer some earlier ones.
    fn commit(&mut self, batch: &[Record], durable: &mut Durable);

    /// Waits for what is on its way.
    fn finish(&mut self, _durable: &mut Durable) {}
}

/// What a producer knows to be on the disk.
#[derive(Debug, Default)]
pub struct Durable {
    records: u64,
    commits: Vec<Duration>,
}

impl Durable {
    /// A commit of so many records, begun then, has ended.
    pub fn note(&mut self, records: usize, begun: Instant) {
        self.records += records as u64;
        self.commits.push(begun.elapsed());
    }
}

/// What a child process tells its parent: one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Durable records per second.
    pub records_per_s: f64,
    /// How long half of the commits took at most, in microseconds.
    pub p50_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1,000.
    pub p999_us: f64,
    /// The process's processor time.
    pub cpu_s_per_million: f64,
    /// `None` where the kernel does not count the device's bytes.
    pub disk_bytes_per_payload_byte: Option<f64>,
    /// Warm-up and corpus included.
    pub rss_mib_peak: f64,
}

/// Warms up, then measures for so many seconds.
#[must_use]
pub fn run(log: &dyn Log, load: Load, seconds: f64, device: Option<Device>) -> Measured {
    let corpus = corpus();
    let second = Duration::from_secs_f64(seconds);
    let (begun, mut warmed_bytes) = (Instant::now(), 0);
    while begun.elapsed() < second / 2
        || (warmed_bytes < WARM_UP_BYTES && begun.elapsed() < second * 3 / 2)
    {
        let (durable, _) = produce(log, load, &corpus, second / 4);
        warmed_bytes += durable.records * RECORD_BYTES as u64;
    }
    log.reclaim();

    let disk_before = device.map(Device::written_bytes);
    let cpu_before = usage::cpu();
    let (mut durable, elapsed) = produce(log, load, &corpus, second);
    let cpu = usage::cpu() - cpu_before;
    let disk_after = device.map(Device::written_bytes);

    durable.commits.sort_unstable();
    let payload_bytes = durable.records as f64 * RECORD_BYTES as f64;
    Measured {
        records_per_s: durable.records as f64 / elapsed.as_secs_f64(),
        p50_us: quantile_us(&durable.commits, 0.5),
        p99_us: quantile_us(&durable.commits, 0.99),
        p999_us: quantile_us(&durable.commits, 0.999),
        cpu_s_per_million: cpu.as_secs_f64() / durable.records as f64 * 1e6,
        disk_bytes_per_payload_byte: disk_before
            .zip(disk_after)
            .map(|(before, after)| (after - before) as f64 / payload_bytes),
        rss_mib_peak: usage::rss_mib_peak(),
    }
}

/// The smallest time that so large a part of the commits did not exceed.
fn quantile_us(sorted: &[Duration], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1].as_secs_f64() * 1e6
}

/// All producers at work for so long; how long it was until the last of them knew its records safe.
fn produce(log: &dyn Log, load: Load, corpus: &[Record], time: Duration) -> (Durable, Duration) {
    let begun = Instant::now();
    let (stop, stopped) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while stopped.recv_timeout(RECLAIM_EVERY) == Err(RecvTimeoutError::Timeout) {
                log.reclaim();
            }
        });
        let producers: Vec<_> = (0..load.threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut writer = log.writer(thread);
                    let mut durable = Durable::default();
                    // Each at a place of its own, so that they do not write the same at once.
                    let mut at = thread * corpus.len() / load.threads;
                    while begun.elapsed() < time {
                        if at + load.batch > corpus.len() {
                            at = 0;
                        }
                        writer.commit(&corpus[at..at + load.batch], &mut durable);
                        at += load.batch;
                    }
                    writer.finish(&mut durable);
                    durable
                })
            })
            .collect();
        let mut all = Durable::default();
        for producer in producers {
            let durable = producer.join().unwrap();
            all.records += durable.records;
            all.commits.extend(durable.commits);
        }
        let elapsed = begun.elapsed();
        drop(stop);
        (all, elapsed)
    })
}

/// The whole life of a child process: `SHAPE ENGINE DIR SECONDS`, one line of JSON.
pub fn child(arguments: &[String], open: impl FnOnce(&str, &Path, &Shape) -> (Box<dyn Log>, Load)) {
    let [shape, engine, dir, seconds] = arguments else {
        panic!("a round wants SHAPE ENGINE DIR SECONDS, not {arguments:?}")
    };
    let (shape, dir) = (Shape::named(shape).unwrap(), Path::new(dir));
    let (log, load) = open(engine, dir, shape);
    // What an engine prepared without a sync of its own would be written while it is measured.
    rustix::fs::syncfs(File::open(dir).unwrap()).unwrap();
    let measured = run(log.as_ref(), load, seconds.parse().unwrap(), Device::of(dir));
    println!("{}", serde_json::to_string(&measured).unwrap());
}
