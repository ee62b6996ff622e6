//! The log on the real disk, with real threads.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wal::{
    AppendError, Batch, Chunk, Committer, DiskFs, FrameKind, NoCarry, Position, ReadOutcome,
    Scanned, Wal, WalConfig, WalError, scan,
};

const THREADS: u64 = 8;
const BATCHES: u64 = 40;
const PER_BATCH: u64 = 25;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 256 * 1024,
        max_bytes: 64 << 20,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

fn open(dir: &std::path::Path) -> Wal {
    let fs = DiskFs::open(dir).unwrap();
    Wal::open(fs, config(), Box::new(NoCarry), Duration::ZERO).unwrap().0
}

/// Thread, number, and something to fill the frame.
fn record(thread: u64, n: u64) -> Vec<u8> {
    let mut bytes = thread.to_le_bytes().to_vec();
    bytes.extend_from_slice(&n.to_le_bytes());
    bytes.resize(400, b'.');
    bytes
}

fn parse(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(record(number(0), number(8)), bytes);
    (number(0), number(8))
}

#[test]
fn eight_threads_append_and_a_live_reader_sees_every_record_once() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    let total = THREADS * BATCHES * PER_BATCH;
    let seen = std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let wal = wal.clone();
            scope.spawn(move || {
                for n in 0..BATCHES {
                    let mut batch = Batch::new();
                    for k in 0..PER_BATCH {
                        batch.push(&record(thread, n * PER_BATCH + k)).unwrap();
                    }
                    let ticket = wal.append(batch).unwrap();
                    let durable = ticket.wait().unwrap();
                    assert!(durable.through() >= ticket.range().end);
                }
            });
        }
        let wal = wal.clone();
        scope
            .spawn(move || {
                let mut seen = Vec::new();
                let mut reader = wal.reader(Position::ZERO);
                let mut chunk = Chunk::new();
                while (seen.len() as u64) < total {
                    match reader.next(&mut chunk, 64 * 1024).unwrap() {
                        ReadOutcome::Records => {
                            seen.extend(chunk.iter().map(|(_, bytes)| parse(bytes)));
                        }
                        ReadOutcome::CaughtUp => {
                            let at = reader.position();
                            let durable = wal.wait_durable(at, Duration::from_secs(20));
                            assert!(durable.through() > at, "nothing came in 20 s");
                        }
                        ReadOutcome::Gap(range, reason) => panic!("{range:?}: {reason:?}"),
                    }
                }
                seen
            })
            .join()
            .unwrap()
    });
    assert_eq!(seen.len() as u64, total);
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len() as u64, total, "each exactly once");
    for thread in 0..THREADS {
        let of_thread = seen.iter().filter(|(from, _)| *from == thread).map(|(_, n)| *n);
        assert!(of_thread.eq(0..BATCHES * PER_BATCH), "a thread's own order is kept");
    }
    let status = wal.status();
    assert_eq!(status.durable, Position::new(total));
    assert!(status.groups < THREADS * BATCHES, "{}: no group was shared", status.groups);
    assert!(status.segments > 1);

    // And all of it is there for the next process.
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    let wal = open(dir.path());
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    let mut again = Vec::new();
    while reader.next(&mut chunk, usize::MAX).unwrap() == ReadOutcome::Records {
        again.extend(chunk.iter().map(|(_, bytes)| parse(bytes)));
    }
    assert_eq!(again, seen);
}

#[test]
fn a_committer_leads_for_callers_that_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    let committer = Committer::spawn(wal.clone()).unwrap();
    let mut tickets = Vec::new();
    for n in 0..200 {
        let mut batch = Batch::new();
        batch.push(&record(0, n)).unwrap();
        tickets.push(wal.append(batch).unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !tickets.iter().all(|ticket| matches!(ticket.poll(), Some(Ok(_)))) {
        assert!(Instant::now() < deadline, "the committer does not commit");
        wal.wait_durable(Position::new(199), Duration::from_millis(10));
    }
    // An idle log proves its last batch by a mark, once.
    let fs = DiskFs::open(dir.path()).unwrap();
    let marks = || {
        let mut marks = 0;
        let count = |found: Scanned<'_>| {
            marks += usize::from(matches!(found, Scanned::Frame { kind: FrameKind::Mark, .. }));
            ControlFlow::Continue(())
        };
        scan(&fs, count).unwrap();
        marks
    };
    while marks() == 0 {
        assert!(Instant::now() < deadline, "no mark");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(marks(), 1);
    committer.stop();
    assert!(wal.status().groups < 200);
}

#[test]
fn several_batches_at_once_have_one_ticket_and_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    let mut batches: std::collections::VecDeque<Batch> = (0..5)
        .map(|n| {
            let mut batch = Batch::new();
            batch.push(&record(0, n)).unwrap();
            batch
        })
        .collect();
    let ticket = wal.append_all(&mut batches).unwrap();
    assert!(batches.is_empty());
    assert_eq!(ticket.range(), Position::new(4)..Position::new(5));
    assert_eq!(ticket.wait().unwrap().through(), Position::new(5));
    assert!(wal.append_all(&mut batches).unwrap().wait().is_ok(), "nothing is durable at once");
    let mut chunk = Chunk::new();
    assert_eq!(
        wal.reader(Position::ZERO).next(&mut chunk, usize::MAX).unwrap(),
        ReadOutcome::Records
    );
    assert!(chunk.iter().map(|(_, bytes)| parse(bytes).1).eq(0..5));
}

#[test]
fn a_buffered_log_syncs_at_most_once_per_interval_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let interval = Duration::from_millis(200);
    let policy = wal::SyncPolicy::Interval(interval);
    let fs = DiskFs::open(dir.path()).unwrap().buffered();
    let config = WalConfig { sync_policy: policy, ..config() };
    let (wal, _) = Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO).unwrap();
    let committer = Committer::spawn(wal.clone()).unwrap();
    let begun = Instant::now();
    for n in 0..50 {
        let mut batch = Batch::new();
        batch.push(&record(0, n)).unwrap();
        drop(wal.append(batch).unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    committer.stop();
    let intervals = begun.elapsed().as_millis() / interval.as_millis();
    let groups = u128::from(wal.status().groups);
    assert!(groups <= intervals + 2, "{groups} groups in {intervals} intervals");
    assert_eq!(wal.status().durable, Position::new(50));
}

#[test]
fn what_is_queued_when_the_committer_stops_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    let committer = Committer::spawn(wal.clone()).unwrap();
    let mut batch = Batch::new();
    batch.push(b"last words").unwrap();
    let ticket = wal.append(batch).unwrap();
    committer.stop();
    assert!(matches!(ticket.poll(), Some(Ok(_))));
}

#[test]
fn delivered_segments_are_reclaimed_while_a_reader_and_appenders_work() {
    let dir = tempfile::tempdir().unwrap();
    let small = WalConfig { max_bytes: 4 << 20, segment_bytes: 64 * 1024, ..config() };
    let fs = DiskFs::open(dir.path()).unwrap();
    let (wal, _) = Wal::open(fs, small, Box::new(NoCarry), Duration::ZERO).unwrap();
    let done = AtomicBool::new(false);
    let total = 60_000;
    std::thread::scope(|scope| {
        let (appender, reading) = (wal.clone(), wal.clone());
        let done = &done;
        scope.spawn(move || {
            let mut next = 0;
            let mut batch = Batch::new();
            while next < total {
                while batch.len() < 100 {
                    // Noise, so that it takes real space.
                    let mut state: u64 = next;
                    let noise: Vec<u8> = (0..200)
                        .map(|_| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(11);
                            state.to_le_bytes()[7]
                        })
                        .collect();
                    batch.push(&noise).unwrap();
                    next += 1;
                }
                match appender.append(batch) {
                    Ok(ticket) => {
                        ticket.wait().unwrap();
                        batch = Batch::new();
                    }
                    // More than the quota goes through the log: it has to be full at times.
                    Err(AppendError::Full(back)) => {
                        batch = back;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(move || {
            let mut reader = reading.reader(Position::ZERO);
            let mut chunk = Chunk::new();
            let mut next = 0;
            while next < total {
                match reader.next(&mut chunk, 256 * 1024).unwrap() {
                    ReadOutcome::Records => {
                        assert_eq!(chunk.range().start.get(), next);
                        next = chunk.range().end.get();
                        reading.ack(chunk.range());
                        reading.checkpoint(Duration::ZERO).unwrap();
                    }
                    ReadOutcome::CaughtUp => {
                        reading.wait_durable(reader.position(), Duration::from_secs(5));
                    }
                    ReadOutcome::Gap(range, reason) => panic!("{range:?}: {reason:?}"),
                }
                assert!(reading.status().allocated_bytes <= 4 << 20);
            }
        });
    });
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(wal.delivered(), Position::new(total));
    assert!(wal.status().reclaimed > Position::new(total / 2));
    assert!(wal.status().segments < 5);
}

#[test]
fn a_second_opener_is_told_and_the_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/log");
    let wal = open(&path);
    let second =
        Wal::open(DiskFs::open(&path).unwrap(), config(), Box::new(NoCarry), Duration::ZERO);
    assert!(matches!(second, Err(WalError::Locked { .. })));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in std::fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    drop(wal);
    drop(open(&path));
}

#[test]
fn a_symbolic_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("elsewhere");
    std::fs::write(&target, b"precious").unwrap();
    let log = dir.path().join("log");
    std::fs::create_dir(&log).unwrap();
    std::os::unix::fs::symlink(&target, log.join("CURSOR")).unwrap();
    let outcome =
        Wal::open(DiskFs::open(&log).unwrap(), config(), Box::new(NoCarry), Duration::ZERO);
    assert!(matches!(outcome, Err(WalError::Io { .. })));
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");
}
