use std::sync::atomic::{AtomicI64, Ordering};

use wal::sim::{CrashLevel, SimDisk};
use wal::{Compression, NoCarry, WalConfig};

use super::*;
use crate::envelope::{Envelope, EnvelopeError, TimestampType};

const ZERO: Duration = Duration::ZERO;

/// Four small segments.
fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 256 * 1024,
        max_bytes: 1024 * 1024,
        max_record_bytes: 32 * 1024,
        queue_bytes_max: 256 * 1024,
        min_free_bytes: 0,
        hold_back: ZERO,
        compression: Compression::None,
        ..WalConfig::default()
    }
}

fn open_wal(disk: &SimDisk) -> Wal<SimDisk> {
    Wal::open(disk.clone(), config(), Box::new(NoCarry), ZERO).unwrap().0
}

fn limits(now_ms: fn() -> i64) -> LetterLimits {
    LetterLimits { age_max: None, headroom_bytes: config().segment_bytes, now_ms }
}

fn open(disk: &SimDisk) -> DeadLetters<SimDisk> {
    DeadLetters::new(open_wal(disk)).with_limits(limits(|| 1))
}

fn letter(offset: i64) -> DeadLetter {
    DeadLetter {
        topic: "metrics".to_owned(),
        partition: 3,
        offset,
        timestamp_ms: Some(1_000 + offset),
        received_ms: 2_000,
        code: if offset % 2 == 0 { "EVEN" } else { "ODD" }.to_owned(),
        payload: Some(format!("payload {offset}").into_bytes()),
        ..DeadLetter::unreadable(b"", &EnvelopeError::Empty)
    }
}

fn keep(letters: &DeadLetters<SimDisk>, offsets: std::ops::Range<i64>) {
    letters.keep(&offsets.map(letter).collect::<Vec<_>>()).unwrap();
}

fn offsets(letters: &DeadLetters<SimDisk>) -> Vec<i64> {
    let mut found = Vec::new();
    letters
        .walk(Position::ZERO, |_, letter| {
            found.push(letter.offset);
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn code(code: &str) -> LetterFilter {
    LetterFilter { codes: vec![code.to_owned()], ..LetterFilter::default() }
}

fn end(letters: &DeadLetters<SimDisk>) -> Position {
    letters.wal().durable().through()
}

fn drop_code(letters: &DeadLetters<SimDisk>, dropped: &str) -> u64 {
    letters.drop_letters(&code(dropped), end(letters), ZERO).unwrap()
}

/// Letters of 1 KiB until there is no room; how many were kept.
fn fill(letters: &DeadLetters<SimDisk>) -> i64 {
    for offset in 0.. {
        let long = DeadLetter { key: Some(vec![b'k'; 1024]), ..letter(offset) };
        match letters.keep([&long]) {
            Ok(()) => {}
            Err(DeadLetterError::Full) => return offset,
            Err(error) => panic!("{error}"),
        }
    }
    0
}

#[test]
fn a_letter_longer_than_its_log_allows_is_kept_cut_and_says_so() {
    let config = WalConfig { max_record_bytes: 20_000, ..WalConfig::default() };
    let (wal, _) = Wal::open(SimDisk::new(1), config, Box::new(NoCarry), ZERO).unwrap();
    let letters = DeadLetters::new(wal);
    let letter = |payload: usize| DeadLetter {
        payload: Some(vec![b'p'; payload]),
        ..DeadLetter::unreadable(b"", &EnvelopeError::Empty)
    };
    letters.keep([&letter(10), &letter(30_000), &letter(19_900)]).unwrap();
    let mut found = Vec::new();
    letters
        .walk(Position::ZERO, |_, letter| {
            found.push(letter);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(found[0], letter(10));
    assert_eq!(found[1].payload, letter(4096).payload);
    assert!(found[1].detail.contains("its 30000 bytes do not fit"), "{}", found[1].detail);
    assert_eq!((found[1].cut_from, found[1].is_cut()), (Some(30_000), true));
    assert_eq!(found[2].payload, letter(4096).payload, "without room for the rest of it");
}

#[test]
fn what_was_dropped_stays_gone_after_a_power_cut_however_scattered_it_lay() {
    let disk = SimDisk::new(1);
    let letters = open(&disk);
    keep(&letters, 0..1200);
    assert_eq!(drop_code(&letters, "ODD"), 600);
    let even: Vec<i64> = (0..1200).step_by(2).collect();
    assert_eq!(offsets(&letters), even);
    assert_eq!(letters.count(), 600);
    drop(letters);
    let disk = disk.crash(CrashLevel::PowerCut);
    let letters = open(&disk);
    assert!(offsets(&letters).len() > even.len(), "the log's own acks would do: no test of notes");
    letters.recall(&disk).unwrap();
    assert_eq!(offsets(&letters), even);
    assert_eq!(drop_code(&letters, "ODD"), 0);
}

#[test]
fn a_letter_that_comes_again_after_it_was_dropped_is_there_again() {
    let disk = SimDisk::new(1);
    let letters = open(&disk);
    keep(&letters, 0..4);
    let named = LetterFilter { positions: vec![2], ..LetterFilter::default() };
    // Delivered twice, because of a crash: both go.
    keep(&letters, 2..3);
    assert_eq!(letters.drop_letters(&named, end(&letters), ZERO).unwrap(), 2);
    assert_eq!(offsets(&letters), [0, 1, 3]);
    keep(&letters, 2..3);
    assert_eq!(offsets(&letters), [0, 1, 3, 2]);
    drop(letters);
    let disk = disk.crash(CrashLevel::PowerCut);
    let letters = open(&disk);
    letters.recall(&disk).unwrap();
    assert_eq!(offsets(&letters), [0, 1, 3, 2]);
}

#[test]
fn an_order_leaves_letters_alone_that_nobody_had_seen_when_it_was_given() {
    let letters = open(&SimDisk::new(1));
    keep(&letters, 0..4);
    let seen = end(&letters);
    keep(&letters, 4..6);
    let all = LetterFilter::default();
    assert_eq!(letters.drop_letters(&all, seen, ZERO).unwrap(), 4);
    assert_eq!(offsets(&letters), [4, 5]);
}

#[test]
fn a_full_log_takes_letters_again_when_some_were_dropped_and_without_being_opened_again() {
    let letters = open(&SimDisk::new(1));
    let kept = fill(&letters);
    assert!(kept > 20, "{kept}");
    assert_eq!(fill(&letters), 0);
    let all = LetterFilter::default();
    assert_eq!(letters.drop_letters(&all, end(&letters), ZERO).unwrap(), kept.unsigned_abs());
    assert!(fill(&letters) > 20);
}

#[test]
fn space_between_letters_that_stay_comes_back_too() {
    let letters = open(&SimDisk::new(1));
    let kept = fill(&letters);
    assert_eq!(drop_code(&letters, "ODD"), (kept / 2).unsigned_abs());
    assert_eq!(fill(&letters), 0, "nothing can go as long as every file has a letter that stays");
    let mut moved = 0;
    loop {
        let now = letters.make_room().unwrap();
        letters.checkpoint(ZERO).unwrap();
        if now == 0 {
            break;
        }
        moved += now;
    }
    assert!(moved > 0);
    let mut found = offsets(&letters);
    found.sort_unstable();
    assert_eq!(found, (0..kept).step_by(2).collect::<Vec<_>>(), "each once");
    assert!(fill(&letters) > 10);
}

#[test]
fn while_the_oldest_is_too_old_no_others_are_kept() {
    static NOW_MS: AtomicI64 = AtomicI64::new(10_000);
    let age_max = Some(Duration::from_secs(60));
    let limits = LetterLimits { age_max, ..limits(|| NOW_MS.load(Ordering::Relaxed)) };
    let letters = DeadLetters::new(open_wal(&SimDisk::new(1))).with_limits(limits);
    let stamped = |offset| {
        let mut letter = letter(offset);
        letters.stamp(&mut letter);
        letter
    };
    letters.keep([&stamped(0)]).unwrap();
    NOW_MS.store(60_000, Ordering::Relaxed);
    letters.keep([&stamped(1)]).unwrap();
    assert_eq!(letters.oldest_since_ms(), Some(10_000));
    NOW_MS.store(70_001, Ordering::Relaxed);
    assert!(matches!(letters.keep([&stamped(2)]), Err(DeadLetterError::Old)));
    assert_eq!(drop_code(&letters, "EVEN"), 1);
    assert_eq!(letters.oldest_since_ms(), Some(60_000));
    letters.keep([&stamped(2)]).unwrap();
    assert_eq!(offsets(&letters), [1, 2]);
}

fn retry_all(letters: &DeadLetters<SimDisk>, pipeline: &Wal<SimDisk>, now_ms: i64) -> Outcome {
    let targets = [RetryTarget { topic: "metrics".to_owned(), wal: pipeline.clone() }];
    let retention = Duration::from_secs(3600);
    let all = LetterFilter::default();
    retry(letters, &targets, &all, end(letters), retention, ZERO, now_ms).unwrap()
}

fn messages(pipeline: &Wal<SimDisk>) -> Vec<Vec<u8>> {
    let mut reader = pipeline.reader(Position::ZERO);
    let mut chunk = Chunk::default();
    let mut records = Vec::new();
    while let ReadOutcome::Records = reader.next(&mut chunk, 1 << 20).unwrap() {
        records.extend(chunk.iter().map(|(_, record)| record.to_vec()));
    }
    records
}

#[test]
fn what_is_tried_again_is_in_the_pipelines_log_as_it_came() {
    let letters = open(&SimDisk::new(1));
    let pipeline = open_wal(&SimDisk::new(2));
    let message = letter(7);
    let second = DeadLetter { element: 1, ..letter(7) };
    let cut = DeadLetter { cut_from: Some(9), ..letter(8) };
    let foreign = DeadLetter { topic: "other".to_owned(), ..letter(9) };
    let unreadable = DeadLetter::unreadable(b"?", &EnvelopeError::Empty);
    letters.keep([&message, &second, &cut, &foreign, &unreadable]).unwrap();
    let outcome = retry_all(&letters, &pipeline, 5_000);
    assert_eq!((outcome.removed, outcome.left.len(), &outcome.stopped), (2, 3, &None));
    let records = messages(&pipeline);
    assert_eq!(records.len(), 1, "two elements of one message");
    let wanted = Envelope {
        topic: "metrics",
        partition: 3,
        offset: 7,
        leader_epoch: -1,
        timestamp_ms: 1_007,
        timestamp_type: TimestampType::Created,
        received_ms: 2_000,
        key: None,
        payload: Some(b"payload 7"),
    };
    assert_eq!(Envelope::decode(&records[0]).unwrap(), wanted);
    assert!(Envelope::is_again(&records[0]));
    assert_eq!(offsets(&letters), [8, 9, -1]);
}

#[test]
fn what_the_store_would_not_keep_stays_a_letter() {
    let letters = open(&SimDisk::new(1));
    let pipeline = open_wal(&SimDisk::new(2));
    keep(&letters, 0..2);
    let outcome = retry_all(&letters, &pipeline, 3_601_000 + 500);
    assert_eq!(outcome.removed, 0, "{outcome:?}");
    assert_eq!(outcome.left.values().sum::<u64>(), 2, "{outcome:?}");
    assert_eq!((messages(&pipeline).len(), offsets(&letters).len()), (0, 2));
}

#[test]
fn a_letter_goes_only_after_its_message_is_durable_in_the_pipelines_log() {
    for fail_after in 0..60 {
        let (disk, pipeline_disk) = (SimDisk::new(1), SimDisk::new(2));
        let (letters, pipeline) = (open(&disk), open_wal(&pipeline_disk));
        keep(&letters, 0..100);
        disk.fail_after(fail_after / 2);
        pipeline_disk.fail_after(fail_after);
        let targets = [RetryTarget { topic: "metrics".to_owned(), wal: pipeline.clone() }];
        let hour = Duration::from_secs(3600);
        let all = LetterFilter::default();
        drop(retry(&letters, &targets, &all, end(&letters), hour, ZERO, 5_000));
        drop((letters, targets, pipeline));
        let (disk, pipeline_disk) =
            (disk.crash(CrashLevel::PowerCut), pipeline_disk.crash(CrashLevel::PowerCut));
        let (letters, pipeline) = (open(&disk), open_wal(&pipeline_disk));
        letters.recall(&disk).unwrap();
        let mut found = offsets(&letters);
        let tried = messages(&pipeline);
        found.extend(tried.iter().map(|record| Envelope::decode(record).unwrap().offset));
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, (0..100).collect::<Vec<_>>(), "fails after {fail_after}");
    }
}

#[test]
fn a_pipeline_without_room_takes_nothing_and_the_letters_stay() {
    let letters = open(&SimDisk::new(1));
    let pipeline = open_wal(&SimDisk::new(2));
    while pipeline.status().is_below_low_mark() {
        let mut batch = Batch::new();
        batch.push(&[0; 1024]).unwrap();
        pipeline.append(batch).unwrap().wait().unwrap();
    }
    keep(&letters, 0..3);
    let outcome = retry_all(&letters, &pipeline, 5_000);
    assert_eq!((outcome.removed, outcome.stopped.is_some()), (0, true));
    assert_eq!(offsets(&letters), [0, 1, 2]);
}
