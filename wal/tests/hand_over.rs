//! Hand-overs between threads, in every order that a model checker finds within its bounds. Waits
//! never time out here, so a lost wake-up is a deadlock, which it reports. `make loom` runs them.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use loom::thread::spawn;
use wal::sim::SimDisk;
use wal::{
    AppendError, Batch, Chunk, Committer, Compression, NoCarry, Position, ReadOutcome, Wal,
    WalConfig,
};

type Log = Wal<SimDisk>;

const LONG: Duration = Duration::from_secs(3600);

/// A log whose next groups may fly side by side if it is `prepared`.
fn open(disk: &SimDisk, prepared: bool) -> Log {
    let config = WalConfig {
        segment_bytes: 64 * 1024,
        compression: Compression::None,
        hold_back: Duration::ZERO,
        min_free_bytes: 0,
        ..WalConfig::default()
    };
    let (wal, _) = Wal::open(disk.clone(), config, Box::new(NoCarry), Duration::ZERO).unwrap();
    if prepared {
        wal.prepare().unwrap();
        append_and_wait(&wal);
    }
    wal
}

fn batch() -> Batch {
    let mut batch = Batch::new();
    batch.push(b"record").unwrap();
    batch
}

fn append_and_wait(wal: &Log) {
    let ticket = wal.append(batch()).unwrap();
    assert!(ticket.wait().unwrap().through() >= ticket.range().end);
}

/// Tries the orders with at most so many switches that no thread asked for.
fn check(switches: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.max_branches = 100_000;
    let tried = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = std::sync::Arc::clone(&tried);
    model.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        body();
    });
    let tried = tried.load(std::sync::atomic::Ordering::Relaxed);
    println!("{tried} orders");
    assert!(tried > 100, "hardly anything was tried");
}

#[test]
fn every_caller_that_waits_is_told_while_one_leads_for_all() {
    for prepared in [false, true] {
        check(3, move || {
            let disk = SimDisk::new(1);
            let wal = open(&disk, prepared);
            let other = wal.clone();
            let thread = spawn(move || append_and_wait(&other));
            append_and_wait(&wal);
            thread.join().unwrap();
            assert_eq!(wal.status().appended, wal.durable().through());
        });
    }
}

#[test]
fn three_callers_share_two_groups_in_flight() {
    check(2, || {
        let disk = SimDisk::new(1);
        let wal = open(&disk, true);
        let threads = [(); 2].map(|()| {
            let wal = wal.clone();
            spawn(move || append_and_wait(&wal))
        });
        append_and_wait(&wal);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(wal.durable().through(), Position::new(4));
    });
}

#[test]
fn who_waits_for_durability_hears_of_it() {
    check(3, || {
        let disk = SimDisk::new(1);
        let wal = open(&disk, true);
        let threads = [(); 2].map(|()| {
            let wal = wal.clone();
            spawn(move || append_and_wait(&wal))
        });
        assert!(wal.wait_durable(Position::new(2), LONG).through() > Position::new(2));
        let mut reader = wal.reader(Position::new(1));
        assert_eq!(reader.next(&mut Chunk::new(), 1).unwrap(), ReadOutcome::Records);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_committer_writes_for_callers_that_do_not_wait_and_stops() {
    check(2, || {
        let disk = SimDisk::new(1);
        let wal = open(&disk, true);
        let committer = Committer::spawn(wal.clone()).unwrap();
        drop(wal.append(batch()).unwrap());
        wal.wait_durable(Position::new(1), LONG);
        committer.stop();
        assert_eq!(wal.durable().through(), Position::new(2));
    });
}

#[test]
fn the_last_caller_to_wait_hands_what_is_left_to_the_committer() {
    check(2, || {
        let disk = SimDisk::new(1);
        let wal = open(&disk, true);
        let committer = Committer::spawn(wal.clone()).unwrap();
        let other = wal.clone();
        let thread = spawn(move || append_and_wait(&other));
        drop(wal.append(batch()).unwrap());
        wal.wait_durable(Position::new(2), LONG);
        thread.join().unwrap();
        committer.stop();
        assert_eq!(wal.durable().through(), Position::new(3));
    });
}

#[test]
fn a_close_takes_what_was_appended_before_it_and_refuses_the_rest() {
    check(3, || {
        let disk = SimDisk::new(1);
        let wal = open(&disk, true);
        let other = wal.clone();
        let thread = spawn(move || match other.append(batch()) {
            Ok(ticket) => {
                ticket.wait().unwrap();
                1
            }
            Err(error) => {
                assert!(matches!(error, AppendError::Closed));
                0
            }
        });
        wal.close(Duration::ZERO).unwrap();
        let appended = thread.join().unwrap();
        assert_eq!(wal.durable().through(), Position::new(1 + appended));
    });
}
