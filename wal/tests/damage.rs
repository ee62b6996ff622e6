//! Rot in acknowledged bytes, missing and foreign files: always reported, as exact positions, and
//! never more than what is damaged; and the refusals that leave everything untouched.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use wal::sim::{CrashLevel, SimDisk};
use wal::{
    Batch, CURSOR_NAME, Carry, Chunk, Compression, GapReason, NoCarry, Position, ReadOutcome,
    RecoveryReport, RecoveryRow, SegmentNumber, Wal, WalConfig, WalError, segment_name,
};

const RECORDS: u64 = 120;
const PER_BATCH: u64 = 10;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 20 * 1024,
        max_bytes: 4 << 20,
        compression: Compression::None,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

fn record(n: u64) -> Vec<u8> {
    let length = 40 + (n * 37) % 200;
    (0..length).map(|at| (n * 31 + at * 7) as u8).collect()
}

#[derive(Default)]
struct Count(u64);

impl Carry for Count {
    fn absorb(&mut self, annotation: &[u8]) {
        self.0 = self.0.max(u64::from_le_bytes(annotation.try_into().unwrap()));
    }

    fn save(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), String> {
        self.0 = u64::from_le_bytes(saved.try_into().map_err(|_| "not eight bytes")?);
        Ok(())
    }
}

fn open(disk: &SimDisk) -> Result<(Wal<SimDisk>, RecoveryReport), WalError> {
    Wal::open(disk.clone(), config(), Box::new(Count::default()), Duration::ZERO)
}

/// A closed log of several segments; returns the powered-off disk.
fn closed_log() -> SimDisk {
    let disk = SimDisk::new(3);
    let (wal, _) = open(&disk).unwrap();
    append(&wal, 0..RECORDS);
    wal.close(Duration::ZERO).unwrap();
    disk.crash(CrashLevel::PowerCut)
}

fn append(wal: &Wal<SimDisk>, records: Range<u64>) {
    for first in records.step_by(PER_BATCH as usize) {
        let mut batch = Batch::new();
        for n in first..first + PER_BATCH {
            batch.push(&record(n)).unwrap();
        }
        batch.annotate(&(first + PER_BATCH).to_le_bytes());
        wal.append(batch).unwrap().wait().unwrap();
    }
}

type Gaps = Vec<(Range<u64>, GapReason)>;

/// What a reader finds from the start: good records, and gaps.
fn read_all(wal: &Wal<SimDisk>) -> (BTreeMap<u64, Vec<u8>>, Gaps) {
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    let (mut records, mut gaps) = (BTreeMap::new(), Vec::new());
    let mut next = 0;
    loop {
        match reader.next(&mut chunk, 3000).unwrap() {
            ReadOutcome::Records => {
                for (position, bytes) in &chunk {
                    assert_eq!(position.get(), next, "records are consecutive");
                    records.insert(next, bytes.to_vec());
                    next += 1;
                }
            }
            ReadOutcome::Gap(range, reason) => {
                assert_eq!(range.start.get(), next);
                assert!(range.end > range.start);
                next = range.end.get();
                gaps.push((range.start.get()..range.end.get(), reason));
            }
            ReadOutcome::CaughtUp => return (records, gaps),
        }
    }
}

/// Every record is there and right, or in a gap; returns how many are missing.
fn check_nothing_is_silent(wal: &Wal<SimDisk>, context: &str) -> u64 {
    let (records, gaps) = read_all(wal);
    let mut missing = 0;
    for n in 0..RECORDS {
        match records.get(&n) {
            Some(bytes) => assert_eq!(*bytes, record(n), "{context}: record {n} is altered"),
            None => {
                assert!(
                    gaps.iter().any(|(gap, _)| gap.contains(&n)),
                    "{context}: record {n} vanished silently"
                );
                missing += 1;
            }
        }
    }
    missing
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.file_names().into_iter().filter(|name| name.starts_with("segment-")).collect()
}

#[test]
fn one_flipped_bit_costs_at_most_its_frame_and_is_never_silent() {
    let sound = closed_log();
    let mut costly = 0;
    for name in segments(&sound) {
        let bytes = sound.read_file(&name).unwrap();
        for at in (0..bytes.len()).step_by(61) {
            let disk = sound.fork();
            let mut rotten = bytes.clone();
            rotten[at] ^= 0x04;
            disk.write_file(&name, &rotten);
            let context = format!("{name} byte {at}");
            let (wal, _) = open(&disk).unwrap();
            let missing = check_nothing_is_silent(&wal, &context);
            assert!(missing <= PER_BATCH, "{context} cost {missing} records");
            costly += u64::from(missing > 0);
            // And it stays so: a second opening finds the same.
            append(&wal, RECORDS..RECORDS + PER_BATCH);
            drop(wal);
            let (wal, _) = open(&disk).unwrap();
            assert_eq!(check_nothing_is_silent(&wal, &context), missing);
            assert_eq!(wal.status().durable, Position::new(RECORDS + PER_BATCH));
        }
    }
    assert!(costly > 50, "the sweep hit only {costly} frames");
}

#[test]
fn a_lost_block_is_reported_and_what_follows_is_kept() {
    let sound = closed_log();
    for name in segments(&sound) {
        let bytes = sound.read_file(&name).unwrap();
        for block in 0..bytes.len() / 4096 {
            let disk = sound.fork();
            let mut rotten = bytes.clone();
            rotten[block * 4096..(block + 1) * 4096].fill(0);
            disk.write_file(&name, &rotten);
            let (wal, _) = open(&disk).unwrap();
            let missing = check_nothing_is_silent(&wal, &format!("{name} block {block}"));
            assert!(missing <= 2 * PER_BATCH);
        }
    }
}

#[test]
fn a_missing_middle_segment_is_a_gap_between_its_neighbours() {
    let disk = closed_log();
    disk.remove_file(&segments(&disk)[1]);
    let (wal, report) = open(&disk).unwrap();
    assert!(report.rows.contains(&RecoveryRow::MissingSegment));
    let (_, gaps) = read_all(&wal);
    assert_eq!(gaps.len(), 1);
    let reported = &report.gaps[0].range;
    assert_eq!(gaps[0].0, reported.start.get()..reported.end.get());
    assert!(check_nothing_is_silent(&wal, "middle") > 0);
}

#[test]
fn a_missing_oldest_segment_is_a_gap_unless_it_was_delivered() {
    let disk = closed_log();
    disk.remove_file(&segments(&disk)[0]);
    let (wal, report) = open(&disk).unwrap();
    assert_eq!(report.gaps[0].range.start, Position::ZERO);
    let (_, gaps) = read_all(&wal);
    assert_eq!(gaps[0].1, GapReason::MissingSegment);

    let disk = closed_log();
    let (wal, _) = open(&disk).unwrap();
    wal.ack(Position::ZERO..Position::new(RECORDS));
    wal.checkpoint(Duration::ZERO).unwrap();
    drop(wal);
    let (_, report) = open(&disk).unwrap();
    assert_eq!(report.gaps, []);
}

#[test]
fn a_lost_newest_segment_leaves_a_gap_up_to_what_the_cursor_proves() {
    let disk = closed_log();
    let names = segments(&disk);
    disk.remove_file(names.last().unwrap());
    let (wal, report) = open(&disk).unwrap();
    assert!(report.rows.contains(&RecoveryRow::LostEnd), "{report:?}");
    assert_eq!(report.gaps[0].range.end, Position::new(RECORDS));
    assert_eq!(wal.status().appended, Position::new(RECORDS), "positions are not used again");
    assert!(check_nothing_is_silent(&wal, "newest") > 0);
}

#[test]
fn a_cut_segment_is_damage_and_not_the_end() {
    for index in 0..2 {
        let disk = closed_log();
        let name = &segments(&disk)[index];
        let bytes = disk.read_file(name).unwrap();
        disk.write_file(name, &bytes[..bytes.len() / 2]);
        let (wal, _) = open(&disk).unwrap();
        assert!(check_nothing_is_silent(&wal, name) > 0);
    }
}

#[test]
fn without_any_segment_the_cursor_tells_what_is_lost() {
    let disk = closed_log();
    for name in segments(&disk) {
        disk.remove_file(&name);
    }
    let (wal, report) = open(&disk).unwrap();
    assert!(report.rows.contains(&RecoveryRow::LostEverything));
    assert_eq!(report.gaps[0].range, Position::ZERO..Position::new(RECORDS));
    assert_eq!(check_nothing_is_silent(&wal, "all"), RECORDS);
    append(&wal, RECORDS..RECORDS + PER_BATCH);
    assert_eq!(wal.status().durable, Position::new(RECORDS + PER_BATCH));
}

#[test]
fn one_bad_cursor_slot_costs_nothing_but_repetition() {
    let disk = closed_log();
    let (wal, _) = open(&disk).unwrap();
    for end in [10, 20, 30] {
        wal.ack(Position::ZERO..Position::new(end));
        wal.checkpoint(Duration::ZERO).unwrap();
    }
    drop(wal);
    let cursor = disk.read_file(CURSOR_NAME).unwrap();
    let mut delivered = Vec::new();
    for slot in 0..2 {
        let copy = disk.fork();
        let mut rotten = cursor.clone();
        rotten[slot * 4096 + 100] ^= 1;
        copy.write_file(CURSOR_NAME, &rotten);
        let (wal, report) = open(&copy).unwrap();
        assert!(report.rows.contains(&RecoveryRow::CursorSlotBad));
        check_nothing_is_silent(&wal, "slot");
        delivered.push(wal.delivered().get());
    }
    delivered.sort_unstable();
    assert_eq!(delivered, [20, 30]);
}

#[test]
fn without_a_cursor_everything_left_is_delivered_again() {
    for broken in [true, false] {
        let disk = closed_log();
        let (wal, _) = open(&disk).unwrap();
        wal.ack(Position::ZERO..Position::new(RECORDS / 2));
        wal.checkpoint(Duration::ZERO).unwrap();
        let reclaimed = wal.status().reclaimed;
        assert!(reclaimed > Position::ZERO);
        drop(wal);
        if broken {
            disk.write_file(CURSOR_NAME, &[0x55; 8192]);
        } else {
            disk.remove_file(CURSOR_NAME);
        }
        let (wal, report) = open(&disk).unwrap();
        assert!(report.rows.contains(&RecoveryRow::CursorLost));
        assert_eq!((report.gaps.len(), wal.delivered()), (0, reclaimed));
    }
}

#[test]
fn the_carry_survives_rotten_links() {
    let sound = closed_log();
    for name in segments(&sound) {
        let disk = sound.fork();
        let mut bytes = disk.read_file(&name).unwrap();
        bytes[4096 + 70] ^= 1;
        disk.write_file(&name, &bytes);
        let (wal, report) = open(&disk).unwrap();
        assert!(report.rows.contains(&RecoveryRow::RottenHead));
        assert_eq!(wal.carry(), RECORDS.to_le_bytes(), "{name}");
        assert_eq!(check_nothing_is_silent(&wal, &name), 0);
    }
}

#[test]
fn swapped_files_are_noticed() {
    let disk = closed_log();
    let names = segments(&disk);
    let (first, second) = (disk.read_file(&names[0]).unwrap(), disk.read_file(&names[1]).unwrap());
    disk.write_file(&names[0], &second);
    disk.write_file(&names[1], &first);
    let (wal, report) = open(&disk).unwrap();
    assert_eq!(report.damage.len(), 2);
    assert!(check_nothing_is_silent(&wal, "swapped") > 0);
}

#[test]
fn a_rotten_file_under_another_segments_name_hides_nothing() {
    let sound = closed_log();
    let names = segments(&sound);
    // A later segment's content under the oldest name, an older one's under a later name.
    for (name, content) in [(0, names.len() - 2), (names.len() - 2, 0)] {
        let disk = sound.fork();
        let mut bytes = sound.read_file(&names[content]).unwrap();
        bytes[..4096 + 64].fill(0xa5);
        disk.write_file(&names[name], &bytes);
        disk.remove_file(CURSOR_NAME);
        let (wal, report) = open(&disk).unwrap();
        assert_eq!(report.removed_files[0], names[name]);
        let first = wal.delivered().get();
        let whole: Vec<u64> = (0..RECORDS).filter(|n| *n >= first).collect();
        let (records, gaps) = read_all(&wal);
        let lost = |n: &u64| gaps.iter().any(|(gap, _)| gap.contains(n));
        assert!(whole.iter().all(|n| records.contains_key(n) || lost(n)), "{gaps:?}");
        assert!(first < RECORDS / 2, "only what the oldest segment held is taken for delivered");
        let kept = format!("quarantine/{}", names[name]);
        assert!(disk.file_names().contains(&kept), "{:?}", disk.file_names());
        drop(wal);
        let (wal, _) = open(&disk).unwrap();
        assert_eq!(read_all(&wal), (records, gaps), "the second opening differs");
    }
}

#[test]
fn an_unreadable_newest_segment_does_not_lend_its_incarnation() {
    let disk = closed_log();
    drop(open(&disk).unwrap());
    let (wal, second) = open(&disk).unwrap();
    append(&wal, RECORDS..RECORDS + PER_BATCH);
    drop(wal);
    let newest = segments(&disk).pop().unwrap();
    disk.write_file(&newest, &[0xa5; 20_000]);
    let (wal, report) = open(&disk).unwrap();
    assert!(report.incarnation > second.incarnation);
    assert_eq!(report.damage.len(), 1, "nothing proves its records, but its damage is told");
    assert_eq!(check_nothing_is_silent(&wal, "newest"), 0);
    assert!(disk.file_names().contains(&newest), "the file is kept");
}

fn unchanged(disk: &SimDisk, before: &SimDisk) {
    assert_eq!(disk.file_names(), before.file_names());
    for name in disk.file_names() {
        assert_eq!(disk.read_file(&name), before.read_file(&name), "{name}");
    }
}

#[test]
fn a_newer_version_is_refused_and_untouched() {
    let disk = closed_log();
    for (name, block) in [(segments(&disk)[0].clone(), 0), (CURSOR_NAME.to_owned(), 0)] {
        let disk = disk.fork();
        let mut bytes = disk.read_file(&name).unwrap();
        bytes[block + 8] = 9;
        let crc = crc32fast::hash(&bytes[block..block + 4092]);
        bytes[block + 4092..block + 4096].copy_from_slice(&crc.to_le_bytes());
        disk.write_file(&name, &bytes);
        disk.write_file("segment-00000000000000000099.wal.new", b"left behind");
        let before = disk.fork();
        let outcome = open(&disk);
        assert!(
            matches!(outcome, Err(WalError::NewerVersion { found: 9, known: 1, .. })),
            "{name}"
        );
        unchanged(&disk, &before);
    }
}

#[test]
fn a_segment_of_another_log_is_refused_and_untouched() {
    let disk = closed_log();
    let other = SimDisk::new(99);
    drop(open(&other).unwrap());
    let foreign = other.read_file(&segment_name(SegmentNumber::new(1))).unwrap();
    disk.write_file(&segment_name(SegmentNumber::new(1)), &foreign);
    let before = disk.fork();
    assert!(matches!(open(&disk), Err(WalError::ForeignSegment { .. })));
    unchanged(&disk, &before);
}

#[test]
fn a_locked_directory_is_refused() {
    let disk = SimDisk::new(1);
    let (wal, _) = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(WalError::Locked { .. })));
    drop(wal);
    assert!(open(&disk).is_ok());
}

#[test]
fn a_refused_carry_leaves_everything_untouched() {
    let disk = closed_log();
    let (wal, _) = Wal::open(disk.fork(), config(), Box::new(NoCarry), Duration::ZERO).unwrap();
    drop(wal);
    struct Picky;
    impl Carry for Picky {
        fn absorb(&mut self, _annotation: &[u8]) {}
        fn save(&self) -> Vec<u8> {
            Vec::new()
        }
        fn load(&mut self, _saved: &[u8]) -> Result<(), String> {
            Err("not mine".into())
        }
    }
    let before = disk.fork();
    let outcome = Wal::open(disk.clone(), config(), Box::new(Picky), Duration::ZERO);
    assert!(matches!(outcome, Err(WalError::CarryRefused { .. })));
    unchanged(&disk, &before);
}

#[test]
fn openings_without_appends_do_not_pile_up_files() {
    let disk = closed_log();
    let before = segments(&disk).len();
    for _ in 0..20 {
        drop(open(&disk).unwrap());
    }
    assert!(segments(&disk).len() <= before + 1);
    let (wal, _) = open(&disk).unwrap();
    assert_eq!(check_nothing_is_silent(&wal, "reopened"), 0);
    assert_eq!(wal.status().incarnation.get(), 22);
}

#[test]
fn a_damaged_segment_is_kept_in_quarantine_and_its_file_is_not_used_again() {
    let disk = closed_log();
    let name = segments(&disk)[0].clone();
    let mut bytes = disk.read_file(&name).unwrap();
    bytes[9000] ^= 1;
    disk.write_file(&name, &bytes);
    let (wal, _) = open(&disk).unwrap();
    assert!(check_nothing_is_silent(&wal, "flipped") > 0);
    let kept = format!("quarantine/{name}");
    assert_eq!(disk.read_file(&kept).unwrap(), bytes);
    wal.ack(Position::ZERO..Position::new(RECORDS));
    wal.checkpoint(Duration::ZERO).unwrap();
    assert!(!disk.file_names().contains(&name), "reclaimed");
    assert_eq!(disk.read_file(&kept).unwrap(), bytes, "its copy stays");
    // And it counts, until somebody takes it away.
    let with_copy = wal.status().allocated_bytes;
    drop(wal);
    disk.remove_file(&kept);
    let (wal, _) = open(&disk).unwrap();
    assert!(wal.status().allocated_bytes < with_copy);
}

#[test]
fn free_space_below_the_floor_is_pressure_that_ends_by_itself() {
    let disk = SimDisk::new(5);
    let floor = WalConfig { min_free_bytes: 1 << 20, ..config() };
    let (wal, _) =
        Wal::open(disk.clone(), floor, Box::new(Count::default()), Duration::ZERO).unwrap();
    append(&wal, 0..PER_BATCH);
    disk.set_capacity(Some(disk.used_bytes() + (1 << 20) - 1));
    wal.checkpoint(Duration::ZERO).unwrap();
    assert!(wal.status().out_of_space);
    let mut batch = Batch::new();
    batch.push(&[7; 1000]).unwrap();
    let Err(wal::AppendError::Full(batch)) = wal.append(batch) else {
        panic!("taken below the floor");
    };
    disk.set_capacity(None);
    wal.checkpoint(Duration::ZERO).unwrap();
    assert!(!wal.status().out_of_space);
    wal.append(batch).unwrap().wait().unwrap();
}
