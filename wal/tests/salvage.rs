//! Whatever happens to a log's files, every record in a whole frame comes out once and byte-equal,
//! and every other position is told as missing.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod walked;

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{
    CURSOR_NAME, Flaw, FlawReason, FrameKind, Loss, Malformed, NoCarry, Position, Scanned,
    SegmentNumber, Wal, WalConfig, WalError, inventory, salvage, scan, segment_name,
};
use walked::{PER_BATCH, append, batch, open, record, segments, walk};

const RECORDS: u64 = 26 * PER_BATCH;

/// Several segments, a crash in the middle after which records were appended again, a prepared
/// file, closed at the end.
fn sound() -> SimDisk {
    let disk = SimDisk::new(5);
    let wal = open(&disk);
    append(&wal, 0..10 * PER_BATCH);
    drop(wal);
    let disk = disk.crash(CrashLevel::Kill);
    let wal = open(&disk);
    append(&wal, 10 * PER_BATCH..20 * PER_BATCH);
    wal.prepare().unwrap();
    append(&wal, 20 * PER_BATCH..RECORDS);
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    disk
}

/// A frame of the sound log.
#[derive(Clone, Debug)]
struct Placed {
    file: String,
    bytes: Range<u64>,
    kind: FrameKind,
    positions: Range<u64>,
}

fn frames(disk: &SimDisk) -> Vec<Placed> {
    let mut frames = Vec::new();
    scan(disk, |scanned| {
        if let Scanned::Frame { segment, byte_at, kind, first, records, stored_bytes, .. } = scanned
        {
            frames.push(Placed {
                file: segment_name(segment),
                bytes: byte_at..byte_at + stored_bytes,
                kind,
                positions: first.get()..first.get() + u64::from(records),
            });
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    frames
}

/// Checks that exactly the records of whole frames came out, of this log and byte-equal.
fn check(disk: &SimDisk, frames: &[Placed], is_whole: impl Fn(&Placed) -> bool, context: &str) {
    let outcome = walk(disk, context);
    let whole: BTreeSet<u64> =
        frames.iter().filter(|frame| is_whole(frame)).flat_map(|f| f.positions.clone()).collect();
    let shown: BTreeSet<u64> = outcome.records.keys().copied().collect();
    let kept_back: Vec<_> = whole.difference(&shown).collect();
    assert!(kept_back.is_empty(), "{context}: kept back {kept_back:?}");
    // More than that can only be a second copy that recovery had made.
    for (position, bytes) in &outcome.records {
        assert_eq!(*bytes, record(*position), "{context}: record {position}");
    }
    let lost: BTreeSet<u64> = (0..RECORDS).filter(|position| !shown.contains(position)).collect();
    assert_eq!(outcome.lost(Loss::Acknowledged), lost, "{context}: {:?}", outcome.missing);
    if !lost.is_empty() {
        assert!(!outcome.acknowledged_flaws().is_empty(), "{context}: no place is named");
    }
}

#[test]
fn a_sound_log_has_no_flaws_and_is_shown_whole() {
    let disk = sound();
    let outcome = walk(&disk, "sound");
    assert_eq!(outcome.records.len() as u64, RECORDS);
    assert!((0..RECORDS).all(|n| outcome.records[&n] == record(n)));
    assert_eq!((outcome.missing, outcome.summary.flaws), (vec![], vec![]));
    let wanted: Vec<_> =
        (1..=RECORDS / PER_BATCH).map(|n| (n * PER_BATCH).to_le_bytes().to_vec()).collect();
    assert_eq!(outcome.notes, wanted, "annotations in order, each once");
    let inventory = outcome.summary.inventory;
    assert!(inventory.tail.clean && inventory.tail.torn_bytes == 0);
    assert_eq!(inventory.proven, Position::new(RECORDS));
    assert_eq!(inventory.incarnation.get(), 2);
    assert!(inventory.segments.len() >= 4, "{}", inventory.segments.len());
    for pair in inventory.segments.windows(2) {
        assert_eq!(pair[0].last, Some(pair[1].base));
    }
}

#[test]
fn a_flipped_bit_costs_its_frame_at_most() {
    let sound = sound();
    let frames = frames(&sound);
    let mut costly = 0;
    for name in segments(&sound) {
        let bytes = sound.read_file(&name).unwrap();
        let in_headers = (0..4096).step_by(97).chain((4080..4096).step_by(3));
        for at in in_headers.chain((4096..bytes.len()).step_by(43)) {
            let disk = sound.fork();
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x10;
            disk.write_file(&name, &rotten);
            let context = format!("{name} byte {at}");
            let hit = |frame: &Placed| frame.file == name && frame.bytes.contains(&(at as u64));
            check(&disk, &frames, |frame| !hit(frame), &context);
            let told = walk(&disk, &context).summary.flaws;
            let protected = at < 4096 || frames.iter().any(hit);
            let newest_mark =
                frames.iter().any(|frame| hit(frame) && frame.kind == FrameKind::Mark)
                    && Some(&name) == segments(&sound).last();
            assert_eq!(!told.is_empty(), protected && !newest_mark, "{context}: {told:?}");
            costly += u64::from(frames.iter().any(|f| hit(f) && f.kind == FrameKind::Data));
        }
    }
    assert!(costly > 200, "the sweep hit only {costly} data frames");
}

#[test]
fn a_lost_block_costs_the_frames_in_it() {
    let sound = sound();
    let frames = frames(&sound);
    for fill in [0x00, 0xff] {
        for name in segments(&sound) {
            let bytes = sound.read_file(&name).unwrap();
            for block in (0..bytes.len()).step_by(4096) {
                let disk = sound.fork();
                let mut rotten = bytes.clone();
                let end = bytes.len().min(block + 4096);
                rotten[block..end].fill(fill);
                disk.write_file(&name, &rotten);
                let lost = block as u64..end as u64;
                let hit = |frame: &Placed| {
                    frame.file == name
                        && frame.bytes.start < lost.end
                        && lost.start < frame.bytes.end
                };
                check(&disk, &frames, |frame| !hit(frame), &format!("{name} block {block}"));
            }
        }
    }
}

#[test]
fn a_cut_file_costs_what_was_behind_the_cut() {
    let sound = sound();
    let frames = frames(&sound);
    for name in segments(&sound) {
        let bytes = sound.read_file(&name).unwrap();
        for cut in (0..bytes.len()).step_by(1000).chain((0..bytes.len()).step_by(4096)) {
            let disk = sound.fork();
            disk.write_file(&name, &bytes[..cut]);
            let is_whole = |frame: &Placed| frame.file != name || frame.bytes.end <= cut as u64;
            check(&disk, &frames, is_whole, &format!("{name} cut at {cut}"));
        }
    }
}

#[test]
fn missing_and_swapped_files_cost_what_is_not_there() {
    let sound = sound();
    let frames = frames(&sound);
    let names = segments(&sound);
    for (n, one) in names.iter().enumerate() {
        for other in &names[n..] {
            let disk = sound.fork();
            disk.remove_file(one);
            disk.remove_file(other);
            let is_whole = |frame: &Placed| frame.file != *one && frame.file != *other;
            check(&disk, &frames, is_whole, &format!("without {one} and {other}"));

            let disk = sound.fork();
            disk.write_file(one, &sound.read_file(other).unwrap());
            disk.write_file(other, &sound.read_file(one).unwrap());
            let context = format!("{one} and {other} swapped");
            check(&disk, &frames, |_| true, &context);
            let told = walk(&disk, &context).summary.flaws;
            assert_eq!(told.len(), if one == other { 0 } else { 2 }, "{context}: {told:?}");
            let wanted = |flaw: &Flaw| matches!(flaw.reason, FlawReason::OtherSegment(_));
            assert!(told.iter().all(wanted), "{context}: {told:?}");
        }
    }
    let disk = sound.fork();
    let last = names.last().unwrap();
    disk.write_file(&segment_name(SegmentNumber::new(77)), &sound.read_file(last).unwrap());
    check(&disk, &frames, |_| true, "a second copy of the newest segment");
}

#[test]
fn any_mixture_of_damage_keeps_every_whole_frame() {
    let sound = sound();
    let frames = frames(&sound);
    let names = segments(&sound);
    for seed in 0..600_u64 {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            (state >> 33) as usize % below
        };
        let disk = sound.fork();
        // Bytes that were changed or cut off.
        let mut hit: Vec<(String, Range<u64>)> = Vec::new();
        for _ in 0..1 + random(6) {
            let name = names[random(names.len())].clone();
            let Some(mut bytes) = disk.read_file(&name) else { continue };
            if bytes.is_empty() {
                continue;
            }
            let at = random(bytes.len());
            match random(5) {
                0 => {
                    disk.remove_file(&name);
                    hit.push((name, 0..u64::MAX));
                    continue;
                }
                1 => {
                    bytes.truncate(at);
                    hit.push((name.clone(), at as u64..u64::MAX));
                }
                2 => {
                    let end = bytes.len().min(at + random(6000));
                    bytes[at..end].fill(0xaa);
                    hit.push((name.clone(), at as u64..end as u64));
                }
                3 => {
                    // Header and link.
                    bytes[at % 4096] ^= 0x20;
                    if let Some(byte) = bytes.get_mut(4096 + at % 64) {
                        *byte ^= 0x20;
                    }
                    hit.push((name.clone(), 4096..4160));
                }
                _ => {
                    bytes[at] ^= 0x02;
                    hit.push((name.clone(), at as u64..at as u64 + 1));
                }
            }
            disk.write_file(&name, &bytes);
        }
        if random(3) == 0 {
            disk.write_file(CURSOR_NAME, &[0x55; 8192]);
        }
        let is_whole = |frame: &Placed| {
            !hit.iter().any(|(file, range)| {
                *file == frame.file
                    && range.start < frame.bytes.end
                    && frame.bytes.start < range.end
            })
        };
        let context = format!("seed {seed}: {hit:?}");
        let outcome = walk(&disk, &context);
        for frame in frames.iter().filter(|frame| is_whole(frame)) {
            for position in frame.positions.clone() {
                assert!(outcome.records.contains_key(&position), "{context}: {frame:?}");
            }
        }
        assert!(outcome.records.iter().all(|(n, bytes)| *bytes == record(*n)), "{context}");
    }
}

#[test]
fn without_any_segment_everything_the_cursor_proves_is_missing() {
    let disk = sound();
    for name in segments(&disk) {
        disk.remove_file(&name);
    }
    let outcome = walk(&disk, "no segment");
    assert_eq!(outcome.missing, [(0..RECORDS, Loss::Acknowledged)]);
    let nothing = walk(&SimDisk::new(1), "empty directory");
    assert_eq!((nothing.missing, nothing.summary.flaws), (vec![], vec![]));
}

#[test]
fn a_lost_cursor_is_told_and_costs_no_record() {
    for bytes in [None, Some(vec![0x55; 8192]), Some(vec![7; 100])] {
        let disk = sound();
        match &bytes {
            None => disk.remove_file(CURSOR_NAME),
            Some(bytes) => disk.write_file(CURSOR_NAME, bytes),
        }
        let outcome = walk(&disk, "no cursor");
        assert_eq!(outcome.records.len() as u64, RECORDS);
        assert!(outcome.acknowledged_flaws().iter().all(|flaw| flaw.file == CURSOR_NAME));
        assert!(!outcome.acknowledged_flaws().is_empty());
    }
}

#[test]
fn the_copy_that_recovery_made_is_made_up_for_by_the_original() {
    let sound = sound();
    // The first frame of the second opening was appended again from the first one.
    let frames = frames(&sound);
    let second = inventory(&sound).unwrap().segments;
    let second = second.iter().find(|segment| segment.incarnation.get() == 2).unwrap();
    let copy = frames
        .iter()
        .find(|frame| frame.file == second.file && frame.kind == FrameKind::Data)
        .unwrap();
    assert!(copy.positions.start < 10 * PER_BATCH, "nothing was appended again");
    let disk = sound.fork();
    let mut bytes = disk.read_file(&second.file).unwrap();
    bytes[copy.bytes.start as usize + 100] ^= 1;
    disk.write_file(&second.file, &bytes);
    let outcome = walk(&disk, "rotten copy");
    assert_eq!(outcome.records.len() as u64, RECORDS);
    assert_eq!(outcome.missing, []);
    assert_eq!(outcome.acknowledged_flaws().len(), 1);
}

#[test]
fn what_a_crash_left_behind_a_hole_does_not_stand_for_what_came_after_it() {
    let disk = SimDisk::new(8);
    let open = |disk: &SimDisk| {
        let config = WalConfig { segment_bytes: 64 * 1024, ..walked::config() };
        Wal::open(disk.clone(), config, Box::new(NoCarry), Duration::ZERO).unwrap()
    };
    let (wal, _) = open(&disk);
    wal.prepare().unwrap();
    append(&wal, 0..2 * PER_BATCH);
    let first = 2 * PER_BATCH;
    // Of two groups in flight, only the second reaches the disk.
    drop(wal.append(batch(first..first + PER_BATCH)).unwrap());
    let _lost = wal.begin_group().unwrap().unwrap();
    drop(wal.append(batch(first + PER_BATCH..first + 2 * PER_BATCH)).unwrap());
    let mut left = wal.begin_group().unwrap().unwrap();
    left.write();
    left.sync();
    let disk = disk.crash(CrashLevel::PowerCut);
    let before = segments(&disk);
    // Their positions are given out again, and then that segment is lost.
    let (wal, _) = open(&disk);
    append(&wal, first..first + 3 * PER_BATCH);
    wal.close(Duration::ZERO).unwrap();
    drop(wal);
    for name in segments(&disk).iter().filter(|name| !before.contains(name)) {
        disk.remove_file(name);
    }
    let acknowledged: BTreeSet<u64> = (first..first + 3 * PER_BATCH).collect();
    let outcome = walk(&disk, "behind a hole");
    assert_eq!(outcome.lost(Loss::Acknowledged), acknowledged);
    assert!(!outcome.acknowledged_flaws().is_empty());
    let gaps = open(&disk).1.gaps;
    let lost: BTreeSet<u64> =
        gaps.iter().flat_map(|gap| gap.range.start.get()..gap.range.end.get()).collect();
    assert_eq!(lost, acknowledged, "{gaps:?}");
}

#[test]
fn a_segment_of_another_log_is_named_and_not_used() {
    let disk = sound();
    let other = SimDisk::new(99);
    let wal = open(&other);
    append(&wal, 0..PER_BATCH);
    drop(wal);
    let first = segment_name(SegmentNumber::new(1));
    disk.write_file(&first, &other.read_file(&first).unwrap());
    let frames = frames(&sound());
    check(&disk, &frames, |frame| frame.file != first, "foreign");
    let told = walk(&disk, "foreign").summary.flaws;
    assert!(told.iter().any(|flaw| matches!(flaw.reason, FlawReason::OtherLog(_))), "{told:?}");

    // The other log's CURSOR says that all of it was delivered.
    let wal = open(&other);
    wal.ack(Position::ZERO..Position::new(PER_BATCH));
    wal.close(Duration::ZERO).unwrap();
    let disk = sound();
    disk.write_file(CURSOR_NAME, &other.read_file(CURSOR_NAME).unwrap());
    check(&disk, &frames, |_| true, "foreign CURSOR");
    let outcome = walk(&disk, "foreign CURSOR");
    assert_eq!(outcome.summary.inventory.delivered, Position::ZERO);
    assert_eq!(outcome.acknowledged_flaws().len(), 1);
}

#[test]
fn a_newer_version_is_refused() {
    let disk = sound();
    let name = segments(&disk)[0].clone();
    let mut bytes = disk.read_file(&name).unwrap();
    bytes[8] = 9;
    let crc = crc32fast::hash(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    disk.write_file(&name, &bytes);
    let outcome = salvage(&disk, |_| ControlFlow::Continue(()));
    assert!(matches!(outcome, Err(WalError::NewerVersion { found: 9, .. })));
}

#[test]
fn a_flaw_reads_like_a_sentence() {
    assert_eq!(FlawReason::Bytes(Malformed::Checksum).to_string(), "wrong checksum");
    assert_eq!(FlawReason::OtherSegment(SegmentNumber::new(4)).to_string(), "is segment 4");
}
