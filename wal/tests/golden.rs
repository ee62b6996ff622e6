//! The bytes of format version 1, as they ship: what is written today equals the kept files, and
//! the kept files can be read. `WAL_GOLDEN_WRITE=1` makes them anew, for a new format version only.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wal::sim::SimDisk;
use wal::{
    Batch, Carry, Chunk, Compression, DiskFs, FrameKind, NoCarry, Position, ReadOutcome, Scanned,
    Wal, WalConfig, scan,
};

/// The last annotation.
#[derive(Default)]
struct Last(Vec<u8>);

impl Carry for Last {
    fn absorb(&mut self, annotation: &[u8]) {
        self.0 = annotation.to_vec();
    }

    fn save(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), String> {
        self.0 = saved.to_vec();
        Ok(())
    }
}

fn golden_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

fn config(compression: Compression) -> WalConfig {
    WalConfig { segment_bytes: 16 * 1024, max_bytes: 4 << 20, compression, ..WalConfig::default() }
}

fn record(n: u64) -> Vec<u8> {
    format!("record {n}: {}", "metric ".repeat(usize::try_from(n % 7).unwrap() * 30)).into_bytes()
}

const RECORDS: u64 = 60;

/// Two openings, three kinds of frames, a change of segment, sparse acks.
fn write_log(disk: &SimDisk, compression: Compression) {
    let mut written = 0;
    for opening in 0..2 {
        let carry = Box::new(Last::default());
        let (wal, _) = Wal::open(disk.clone(), config(compression), carry, Duration::ZERO).unwrap();
        for n in 0..3 {
            let mut batch = Batch::new();
            for _ in 0..RECORDS / 6 {
                batch.push(&record(written)).unwrap();
                written += 1;
            }
            batch.annotate(format!("opening {opening}, batch {n}").as_bytes());
            wal.append(batch).unwrap().wait().unwrap();
        }
        wal.ack(Position::new(0)..Position::new(5));
        wal.ack(Position::new(8)..Position::new(9));
        if opening == 0 {
            wal.checkpoint(Duration::ZERO).unwrap();
        } else {
            wal.close(Duration::ZERO).unwrap();
        }
    }
    assert_eq!(written, RECORDS);
}

fn check(name: &str, compression: Compression, equal: bool) {
    let disk = SimDisk::new(7);
    write_log(&disk, compression);
    let dir = golden_dir(name);
    if std::env::var_os("WAL_GOLDEN_WRITE").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for file in disk.file_names() {
            std::fs::write(dir.join(&file), disk.read_file(&file).unwrap()).unwrap();
        }
    }
    let mut kept: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    if equal {
        assert_eq!(kept, disk.file_names());
        for file in &kept {
            let (now, then) =
                (disk.read_file(file).unwrap(), std::fs::read(dir.join(file)).unwrap());
            if let Some(at) = now.iter().zip(&then).position(|(now, then)| now != then) {
                panic!("{file} differs from its golden file at byte {at}");
            }
            assert_eq!(now.len(), then.len(), "{file}");
        }
    }
    read_back(&dir);
}

/// The kept files, opened by today's program, on a disk of their own.
fn read_back(dir: &Path) {
    let disk = SimDisk::new(8);
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        disk.write_file(entry.file_name().to_str().unwrap(), &bytes);
    }
    let carry = Box::new(Last::default());
    let (wal, report) = Wal::open(disk, config(Compression::Lz4), carry, Duration::ZERO).unwrap();
    assert_eq!(report.end, Position::new(RECORDS));
    assert_eq!((report.gaps.len(), report.damage.len()), (0, 0));
    assert_eq!(wal.delivered(), Position::new(5));
    assert!(wal.is_acked(Position::new(8)) && !wal.is_acked(Position::new(7)));
    assert_eq!(wal.carry(), b"opening 1, batch 2");
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    let mut next = 0;
    while reader.next(&mut chunk, 1000).unwrap() == ReadOutcome::Records {
        for (position, bytes) in &chunk {
            assert_eq!((position.get(), bytes), (next, record(next).as_slice()));
            next += 1;
        }
    }
    assert_eq!(next, RECORDS);
}

#[test]
fn plain_frames_are_written_byte_for_byte_as_they_were() {
    check("plain", Compression::None, true);
}

#[test]
fn compressed_frames_of_an_earlier_release_can_be_read() {
    // Another compressor may find a shorter form, so only reading is compared.
    check("lz4", Compression::Lz4, false);
}

#[test]
fn the_golden_files_show_every_kind_of_frame() {
    let fs = DiskFs::open_existing(golden_dir("plain")).unwrap();
    let mut kinds = Vec::new();
    let mut records = 0;
    let summary = scan(&fs, |scanned| {
        match scanned {
            Scanned::Frame { kind, .. } if !kinds.contains(&kind) => kinds.push(kind),
            Scanned::Record { position, bytes } => {
                assert_eq!((position.get(), bytes), (records, record(records).as_slice()));
                records += 1;
            }
            Scanned::Damage(damage) => panic!("{damage:?}"),
            Scanned::Segment { .. } | Scanned::Frame { .. } => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    let all = [FrameKind::Link, FrameKind::Data, FrameKind::Seal, FrameKind::Mark];
    assert!(all.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    assert_eq!(summary.records, RECORDS);
    assert_eq!(summary.delivered, Some(Position::new(5)));
}

#[test]
fn a_directory_without_a_log_scans_as_empty() {
    let summary = scan(&SimDisk::new(1), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((summary.segments, summary.records), (0, 0));
    let empty = SimDisk::new(1);
    let (wal, _) =
        Wal::open(empty, WalConfig::default(), Box::new(NoCarry), Duration::ZERO).unwrap();
    assert_eq!(wal.status().appended, Position::ZERO);
}
