//! A process that works on a log and says what was promised to it, until somebody kills it: this
//! very test binary, started again with a directory in its environment.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use wal::{
    Batch, Chunk, Committer, DiskFs, NoCarry, Position, ReadOutcome, RecoveryReport, Ticket, Wal,
    WalConfig,
};

const DIR: &str = "WAL_VICTIM_DIR";
const SEED: &str = "WAL_VICTIM_SEED";
const STEPS: &str = "WAL_VICTIM_STEPS";
/// It delivers nothing, so that its log grows, and writes through the page cache.
const HOARDS: &str = "WAL_VICTIM_HOARDS";
/// How the victim ends when the log failed.
pub const EXIT_FAILED: i32 = 3;

pub fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 32 * 1024,
        max_bytes: 2 << 20,
        max_record_bytes: 64 * 1024,
        min_free_bytes: 0,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

/// The record at a position: noise of a length that varies.
pub fn record(position: u64) -> Vec<u8> {
    let mut state = position.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..50 + position * 37 % 900)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            state.to_le_bytes()[7]
        })
        .collect()
}

/// The victim's life, if this process is one.
pub fn live() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (seed, steps) = (number(SEED), number(STEPS));
    let outcome = (0..2).try_for_each(|half| work(Path::new(&dir), seed + half, steps / 2));
    if let Err(error) = outcome {
        say(&format!("FAILED {error}"));
        std::process::exit(EXIT_FAILED);
    }
    say("DONE");
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// One opening of the log. After a failure the log is asked once more: it must not say yes.
fn work(dir: &Path, seed: u64, steps: u64) -> Result<(), String> {
    let fs = DiskFs::open(dir).map_err(|error| error.to_string())?;
    let hoards = std::env::var_os(HOARDS).is_some();
    // Past the page cache a lack of space is told at once, and waited out; through it, a sync fails.
    let fs = if hoards { fs.buffered() } else { fs };
    let max_bytes = if hoards { 1 << 30 } else { config().max_bytes };
    let config = WalConfig { max_bytes, ..config() };
    let (wal, _) = Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO)
        .map_err(|error| format!("open: {error}"))?;
    let committer = Committer::spawn(wal.clone()).map_err(|error| error.to_string())?;
    for step in 0..steps {
        if let Err(failure) = one_step(&wal, seed + step, hoards) {
            if wal.status().poisoned.is_none() {
                // A full disk is pressure; the next step finds out whether it is over.
                continue;
            }
            if one_step(&wal, seed, hoards).is_ok() {
                say("PROMISED AFTER A FAILURE");
            }
            return Err(failure);
        }
    }
    wal.close(Duration::ZERO).map_err(|error| format!("close: {error}"))?;
    committer.stop();
    Ok(())
}

fn one_step(wal: &Wal, dice: u64, hoards: bool) -> Result<(), String> {
    let mut next = wal.status().appended.get();
    let mut last: Option<Ticket<DiskFs>> = None;
    for _ in 0..1 + dice % 3 {
        let mut batch = Batch::new();
        for _ in 0..1 + dice % 7 {
            batch.push(&record(next)).unwrap();
            next += 1;
        }
        last = Some(wal.append(batch).map_err(|error| format!("append: {error}"))?);
    }
    if let Some(ticket) = last {
        let durable = ticket.wait().map_err(|error| format!("wait: {error}"))?;
        say(&format!("DURABLE {}", durable.through()));
    }
    if dice.is_multiple_of(4) && !hoards {
        let delivered = wal.durable().through().get().saturating_sub(20);
        wal.ack(Position::ZERO..Position::new(delivered));
        wal.checkpoint(Duration::ZERO).map_err(|error| format!("checkpoint: {error}"))?;
    }
    Ok(())
}

/// How a victim came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Killed,
    Exit(i32),
}

/// A running victim.
pub struct Victim {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// What was promised so far: everything before it is durable.
    pub promised: u64,
    pub failed: Option<String>,
    pub done: bool,
}

impl Victim {
    /// Starts one, under `wrapper` (a program and its arguments) if there is one.
    pub fn start(dir: &Path, seed: u64, steps: u64, wrapper: &[String]) -> Self {
        Self::start_with(dir, seed, steps, wrapper, &[])
    }

    /// Starts one that delivers nothing, so that its log grows until the disk is full.
    pub fn start_hoarding(dir: &Path, seed: u64, steps: u64) -> Self {
        Self::start_with(dir, seed, steps, &[], &[(HOARDS, "1")])
    }

    fn start_with(
        dir: &Path,
        seed: u64,
        steps: u64,
        wrapper: &[String],
        environment: &[(&str, &str)],
    ) -> Self {
        let program: PathBuf = std::env::current_exe().unwrap();
        let mut command = match wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(SEED, seed.to_string())
            .env(STEPS, steps.to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, promised: 0, failed: None, done: false }
    }

    /// The process to stop or kill.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Reads its next word; false when it has ended.
    pub fn listen(&mut self) -> bool {
        let mut line = String::new();
        if self.lines.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        // The test harness writes its own words without ends of lines before ours.
        if let Some((_, durable)) = line.split_once("DURABLE ") {
            assert!(self.failed.is_none(), "a promise after a failure");
            // A word that was cut by the kill promises nothing.
            if let (Ok(durable), true) = (durable.trim().parse(), line.ends_with('\n')) {
                self.promised = durable;
            }
        } else if let Some((_, failure)) = line.split_once("FAILED ") {
            self.failed = Some(failure.trim().to_owned());
        } else if line.contains("DONE") {
            self.done = true;
        }
        assert!(!line.contains("PROMISED AFTER"), "a failed log promises");
        true
    }

    /// Listens to its end.
    pub fn wait(&mut self) -> End {
        while self.listen() {}
        let status = self.child.wait().unwrap();
        match (status.signal(), status.code()) {
            (Some(9), _) | (_, Some(137)) => End::Killed,
            (_, code) => End::Exit(code.unwrap_or(-1)),
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Opens what a victim left: what was promised is there, byte for byte, and a crash is no damage.
pub fn check(dir: &Path, promised: u64, what: &str) {
    let report = check_promised(dir, promised, what);
    assert!(report.damage.is_empty(), "{what}: {report:?}");
}

/// The same after a disk that failed: it may have spoilt what nobody was promised.
pub fn check_promised(dir: &Path, promised: u64, what: &str) -> RecoveryReport {
    let fs = DiskFs::open(dir).unwrap();
    let (wal, report) = Wal::open(fs, config(), Box::new(NoCarry), Duration::ZERO)
        .unwrap_or_else(|error| panic!("{what}: open: {error}"));
    assert!(report.gaps.is_empty(), "{what}: {report:?}");
    assert!(report.end.get() >= promised, "{what}: {promised} promised, {} left", report.end);
    let mut reader = wal.reader(report.delivered);
    let mut next = report.delivered.get();
    let mut chunk = Chunk::new();
    loop {
        match reader.next(&mut chunk, 64 * 1024).unwrap() {
            ReadOutcome::Records => {
                for (position, bytes) in &chunk {
                    assert_eq!(position.get(), next, "{what}");
                    assert_eq!(bytes, record(next), "{what}: record {next}");
                    next += 1;
                }
            }
            ReadOutcome::Gap(range, reason) => panic!("{what}: {range:?} {reason:?}"),
            ReadOutcome::CaughtUp => break,
        }
    }
    assert_eq!(next, report.end.get(), "{what}");
    report
}
