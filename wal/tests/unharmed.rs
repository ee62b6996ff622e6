//! Nothing that a crash, a running owner or the preparing of files leaves is called damage.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod walked;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{Batch, Flaw, Loss, Position, Scanned, scan};
use walked::{PER_BATCH, append, open, record, segments, walk};

#[test]
fn prepared_recycled_and_unfinished_files_are_no_damage() {
    let disk = SimDisk::new(8);
    let wal = open(&disk);
    let mut written = 0;
    let mut recycled = 0;
    for round in 0..30 {
        append(&wal, written..written + 5 * PER_BATCH);
        written += 5 * PER_BATCH;
        wal.prepare().unwrap();
        wal.ack(Position::ZERO..Position::new(written - PER_BATCH * 8.min(written / PER_BATCH)));
        wal.checkpoint(Duration::from_secs(round)).unwrap();
        // The owner is still at work.
        let context = format!("round {round}");
        let outcome = walk(&disk, &context);
        assert_eq!(outcome.summary.flaws, [], "{context}");
        assert_eq!(outcome.lost(Loss::Acknowledged), BTreeSet::new(), "{context}");
        let note = |note: &Vec<u8>| u64::from_le_bytes(note.as_slice().try_into().unwrap());
        assert!(outcome.notes.iter().map(note).is_sorted(), "{context}: notes out of order");
        let delivered = outcome.summary.inventory.delivered.get();
        for n in delivered..written {
            assert_eq!(outcome.records[&n], record(n), "{context}");
        }
        let scanned = scan(&disk, |scanned| {
            if let Scanned::Segment { header: Some(header), .. } = scanned {
                recycled += u64::from(header.recycled);
            }
            assert!(!matches!(scanned, Scanned::Damage(_)), "{context}: {scanned:?}");
            ControlFlow::Continue(())
        });
        assert_eq!(scanned.unwrap().damage, [], "{context}");
    }
    assert!(recycled > 0, "no file was used again");
    assert!(disk.file_names().len() > segments(&disk).len());
}

#[test]
fn no_crash_leaves_what_is_taken_for_damage() {
    let mut crashes = 0;
    for seed in 0..250_u64 {
        let mut state = seed.wrapping_mul(77);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 33) % below
        };
        let mut disk = SimDisk::new(seed);
        // Records by position; those from `confirmed` on may vanish in a crash.
        let mut log: Vec<Vec<u8>> = Vec::new();
        let mut acked = 0;
        let mut serial = 0;
        for _ in 0..3 {
            let wal = open(&disk);
            let end = wal.status().durable.get() as usize;
            log.truncate(end);
            let mut confirmed = end;
            for _ in 0..random(25) {
                let mut batch = Batch::new();
                for _ in 0..1 + random(9) {
                    serial += 1;
                    batch.push(&record(serial)).unwrap();
                    log.push(record(serial));
                }
                let ticket = wal.append(batch).unwrap();
                if random(3) > 0 {
                    ticket.wait().unwrap();
                    confirmed = log.len();
                }
                if random(6) == 0 {
                    wal.prepare().unwrap();
                }
                if random(8) == 0 {
                    acked = acked.max(random(1 + confirmed as u64));
                    wal.ack(Position::ZERO..Position::new(acked));
                    wal.checkpoint(Duration::from_secs(serial)).unwrap();
                }
            }
            let level = [CrashLevel::Kill, CrashLevel::PowerCut, CrashLevel::TornSectors]
                [random(3) as usize];
            if random(4) == 0 {
                wal.close(Duration::from_secs(serial)).unwrap();
                confirmed = log.len();
            } else if random(2) == 0 {
                disk.fail_after(1 + random(6));
                let mut batch = Batch::new();
                batch.push(&record(serial + 1)).unwrap();
                drop(wal.append(batch).map(|ticket| ticket.wait()));
                serial += 1;
                log.push(record(serial));
            }
            drop(wal);
            disk = disk.crash(level);
            crashes += 1;
            let context = format!("seed {seed}, {level:?}");
            let outcome = walk(&disk, &context);
            assert_eq!(outcome.acknowledged_flaws(), Vec::<&Flaw>::new(), "{context}");
            assert_eq!(outcome.lost(Loss::Acknowledged), BTreeSet::new(), "{context}");
            let delivered = outcome.summary.inventory.delivered.get() as usize;
            for (n, bytes) in log.iter().enumerate().take(confirmed).skip(delivered) {
                assert_eq!(outcome.records.get(&(n as u64)), Some(bytes), "{context}: {n}");
            }
            for (n, bytes) in &outcome.records {
                assert_eq!(Some(bytes), log.get(*n as usize), "{context}: {n} is not ours");
            }
        }
    }
    assert_eq!(crashes, 750);
}
