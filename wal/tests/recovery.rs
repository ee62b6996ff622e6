//! The rows of the recovery table that follow a crash, one by one. Damage has a file of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{
    Attestation, Batch, CURSOR_NAME, Chunk, Compression, Incarnation, NoCarry, Position,
    ReadOutcome, RecoveryReport, RecoveryRow, SegmentNumber, Wal, WalConfig, segment_name,
};

fn config() -> WalConfig {
    WalConfig { segment_bytes: 64 * 1024, compression: Compression::None, ..WalConfig::default() }
}

fn open(disk: &SimDisk) -> (Wal<SimDisk>, RecoveryReport) {
    Wal::open(disk.clone(), config(), Box::new(NoCarry), Duration::ZERO).unwrap()
}

/// One frame of three records.
fn append(wal: &Wal<SimDisk>, text: &str) {
    let mut batch = Batch::new();
    for n in 0..3 {
        batch.push(format!("{text} {n}").as_bytes()).unwrap();
    }
    wal.append(batch).unwrap().wait().unwrap();
}

fn read(wal: &Wal<SimDisk>) -> Vec<String> {
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    let mut all = Vec::new();
    while reader.next(&mut chunk, 1).unwrap() == ReadOutcome::Records {
        all.extend(chunk.iter().map(|(_, record)| String::from_utf8(record.to_vec()).unwrap()));
    }
    all
}

fn first() -> String {
    segment_name(SegmentNumber::new(1))
}

#[test]
fn row_a_an_empty_directory_is_a_new_log() {
    let (wal, report) = open(&SimDisk::new(1));
    assert_eq!(report.rows, [RecoveryRow::NewLog]);
    assert_eq!((report.end, report.incarnation), (Position::ZERO, Incarnation::new(1)));
    assert_eq!(read(&wal), [""; 0]);
}

#[test]
fn row_b_after_a_close_nothing_is_unproven() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk);
    append(&wal, "a");
    wal.close(Duration::ZERO).unwrap();
    // Even without the CURSOR the mark proves the last batch.
    let disk = disk.crash(CrashLevel::PowerCut);
    disk.remove_file(CURSOR_NAME);
    let (wal, report) = open(&disk);
    assert!(report.rows.contains(&RecoveryRow::CleanEnd), "{report:?}");
    assert_eq!((report.proven, report.reappended_records), (Position::new(3), 0));
    assert_eq!(read(&wal), ["a 0", "a 1", "a 2"]);
}

#[test]
fn row_c_a_torn_tail_is_cut_at_the_last_whole_frame_and_counted() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk);
    append(&wal, "a");
    append(&wal, "b");
    let whole = disk.read_file(&first()).unwrap();
    append(&wal, "c");
    let mut torn = disk.read_file(&first()).unwrap();
    let disk = disk.crash(CrashLevel::Kill);
    let third = whole.len() + 70;
    torn.iter_mut().skip(third).for_each(|byte| *byte = 0);
    disk.write_file(&first(), &torn);
    let (wal, report) = open(&disk);
    assert!(report.rows.contains(&RecoveryRow::TornTail), "{report:?}");
    assert_eq!(report.torn_bytes, (torn.len() - whole.len()) as u64);
    assert_eq!((report.end, report.gaps.len()), (Position::new(6), 0));
    assert_eq!(read(&wal), ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]);
    // The file is kept as it is, and its torn end is never seen again.
    assert_eq!(disk.read_file(&first()).unwrap(), torn);
    append(&wal, "d");
    drop(wal);
    let (wal, report) = open(&disk);
    assert!(!report.rows.contains(&RecoveryRow::TornTail));
    assert_eq!(read(&wal).last().unwrap(), "d 2");
}

#[test]
fn row_d_unproven_records_are_durable_again_before_open_returns() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk);
    append(&wal, "a");
    append(&wal, "b");
    append(&wal, "c");
    let before = disk.read_file(&first()).unwrap();
    let disk = disk.crash(CrashLevel::Kill);
    let (wal, report) = open(&disk);
    assert!(report.rows.contains(&RecoveryRow::Unproven), "{report:?}");
    // The frame of c says that a and b were durable; nothing says so of c.
    assert_eq!((report.proven, report.end), (Position::new(6), Position::new(9)));
    assert_eq!(report.reappended_records, 3);
    assert_eq!(disk.read_file(&first()).unwrap(), before, "an old file is never written");
    assert_eq!(wal.durable().through(), Position::new(9));
    drop(wal);
    // Should the old page cache go now, the copy is there.
    let (wal, _) = open(&disk.crash(CrashLevel::TornSectors));
    assert_eq!(read(&wal).len(), 9);
}

#[test]
fn row_d_holds_after_a_failed_sync_too() {
    let mut in_doubt = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let (wal, _) = open(&disk);
        append(&wal, "a");
        let mut batch = Batch::new();
        batch.push(b"in doubt").unwrap();
        let ticket = wal.append(batch).unwrap();
        // The write, then the sync; where a write is short, the rest of it fails instead.
        disk.inject(2, wal::sim::Injected::Eio);
        assert!(ticket.wait().is_err());
        let disk = disk.crash(CrashLevel::Kill);
        let (wal, report) = open(&disk);
        assert!(report.end >= Position::new(3));
        // Whatever was found is really on the disk now.
        let found = read(&wal);
        in_doubt += usize::from(found.len() == 4);
        drop(wal);
        let (wal, _) = open(&disk.crash(CrashLevel::PowerCut));
        assert_eq!(read(&wal), found);
    }
    assert!(in_doubt > 5, "only {in_doubt} runs found the record");
}

#[test]
fn row_l_what_an_interrupted_recovery_left_is_removed() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk);
    append(&wal, "a");
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    // The second segment stays empty, so the third takes its place; put it back, as a power cut
    // may that comes before the directory is synced.
    drop(open(&disk));
    let second = segment_name(SegmentNumber::new(2));
    let empty = disk.read_file(&second).unwrap();
    drop(open(&disk));
    assert!(!disk.file_names().contains(&second));
    disk.write_file(&second, &empty);
    disk.write_file("segment-00000000000000000004.wal.new", b"half made");
    let (wal, report) = open(&disk);
    assert!(report.rows.contains(&RecoveryRow::Superseded), "{report:?}");
    assert!(report.removed_files.contains(&second));
    assert!(!disk.file_names().iter().any(|name| name.ends_with(".new")));
    assert_eq!(read(&wal), ["a 0", "a 1", "a 2"]);
}

#[test]
fn positions_given_out_again_belong_to_another_incarnation() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk);
    append(&wal, "a");
    let witness = wal.status().incarnation;
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    // The disk is set back: what this opening confirms is unknown to the next one.
    let earlier = disk.fork();
    let (wal, report) = open(&disk);
    append(&wal, "lost");
    assert_eq!(wal.attest(witness, Position::new(3)), Attestation::Intact);
    let lost = report.incarnation;
    drop(wal);
    drop(open(&earlier));
    let (wal, _) = open(&earlier);
    append(&wal, "other");
    let missing = Attestation::Missing(Position::new(3)..Position::new(6));
    assert_eq!(wal.attest(lost, Position::new(6)), missing);
}

#[test]
fn hold_back_keeps_a_delivered_segment_for_its_time() {
    let disk = SimDisk::new(1);
    let hold_back = Duration::from_secs(60);
    let config = WalConfig { segment_bytes: 16 * 1024, hold_back, ..config() };
    let at = Duration::from_secs;
    let (wal, _) = Wal::open(disk, config, Box::new(NoCarry), at(100)).unwrap();
    for n in 0..20 {
        append(&wal, &format!("{n} {}", "x".repeat(1000)));
    }
    let segments = wal.status().segments;
    assert!(segments > 3);
    wal.ack(Position::ZERO..Position::new(60));
    assert_eq!(wal.status().reclaimed, Position::ZERO);
    for (now, left) in [(110, segments), (169, segments), (170, 1)] {
        wal.checkpoint(at(now)).unwrap();
        assert_eq!(wal.status().segments, left, "at {now} s");
    }
}

#[test]
fn hold_back_counts_from_the_checkpoint_that_found_the_segment_delivered() {
    let hold_back = Duration::from_secs(60);
    let config = WalConfig { segment_bytes: 16 * 1024, hold_back, ..config() };
    let at = Duration::from_secs;
    let (wal, _) = Wal::open(SimDisk::new(1), config, Box::new(NoCarry), at(0)).unwrap();
    for n in 0..20 {
        append(&wal, &format!("{n} {}", "x".repeat(1000)));
    }
    let segments = wal.status().segments;
    wal.checkpoint(at(10)).unwrap();
    wal.ack(Position::ZERO..Position::new(60));
    wal.checkpoint(at(50)).unwrap();
    wal.checkpoint(at(100)).unwrap();
    assert_eq!(wal.status().segments, segments, "acked before 10 s is not what was written then");
    wal.checkpoint(at(110)).unwrap();
    assert_eq!(wal.status().segments, 1);
}

#[test]
fn acks_beyond_what_is_durable_are_left_out() {
    let (wal, _) = open(&SimDisk::new(1));
    append(&wal, "a");
    wal.ack(Position::ZERO..Position::new(100));
    assert_eq!(wal.delivered(), Position::new(3));
    append(&wal, "b");
    assert!(!wal.is_acked(Position::new(3)));
}

#[test]
fn a_full_log_that_is_opened_again_and_again_takes_a_note_and_hardly_grows() {
    let disk = SimDisk::new(1);
    let config = WalConfig {
        segment_bytes: 64 * 1024,
        max_bytes: 256 * 1024,
        max_record_bytes: 8192,
        ..config()
    };
    let open =
        || Wal::open(disk.clone(), config.clone(), Box::new(NoCarry), Duration::ZERO).unwrap().0;
    let record = || {
        let mut batch = Batch::new();
        batch.push(&[7; 1000]).unwrap();
        batch
    };
    let wal = open();
    while let Ok(ticket) = wal.append(record()) {
        ticket.wait().unwrap();
    }
    drop(wal);
    for _ in 0..10 {
        let wal = open();
        let before = wal.status().allocated_bytes;
        assert!(wal.append(record()).is_err(), "there is no room for records");
        let mut note = Batch::new();
        note.annotate(b"owed");
        wal.append(note).unwrap().wait().unwrap();
        let grown = wal.status().allocated_bytes - before;
        assert!(grown <= 4096, "{grown} bytes for a note");
    }
    let wal = open();
    let mut notes = 0;
    loop {
        let mut note = Batch::new();
        note.annotate(b"owed");
        let Ok(ticket) = wal.append(note) else { break };
        ticket.wait().unwrap();
        notes += 1;
    }
    assert!((1..10).contains(&notes), "{notes} notes: they have a bound too");
}
