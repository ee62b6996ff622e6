//! `monasca-persister wal …` on real directories: what it says is so, and it changes nothing.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use monasca_persister::dead_letters::{DeadLetter, DeadLetters};
use monasca_persister::envelope::{Envelope, TimestampType};
use monasca_persister::offset_note::{NextOffsets, OffsetCarry};
use serde_json::{Value, json};
use wal::{Batch, Chunk, DiskFs, NoCarry, Position, ReadOutcome, Wal, WalConfig};

/// Messages of two partitions in turn, three to a frame.
const MESSAGES: i64 = 300;
const PER_FRAME: i64 = 3;

fn config() -> WalConfig {
    WalConfig {
        segment_bytes: 64 * 1024,
        max_bytes: 16 << 20,
        min_free_bytes: 0,
        compression: wal::Compression::None,
        hold_back: Duration::ZERO,
        ..WalConfig::default()
    }
}

fn open(dir: &Path) -> Wal {
    let fs = DiskFs::open(dir).unwrap();
    Wal::open(fs, config(), Box::<OffsetCarry>::default(), Duration::ZERO).unwrap().0
}

/// Partition and offset of the message with this number.
fn place(n: i64) -> (i32, i64) {
    (i32::from(n % 2 == 1), 1000 + n / 2)
}

fn payload(n: i64) -> Vec<u8> {
    format!("{{\"message\":{n},\"filler\":\"{}\"}}", "x".repeat(200)).into_bytes()
}

fn envelope(n: i64, payload: &[u8]) -> Envelope<'_> {
    let (partition, offset) = place(n);
    Envelope {
        topic: "metrics",
        partition,
        offset,
        leader_epoch: -1,
        timestamp_ms: 1_700_000_000_000 + n,
        timestamp_type: TimestampType::Created,
        received_ms: 1_700_000_000_500,
        key: None,
        payload: Some(payload),
    }
}

fn record(n: i64) -> Vec<u8> {
    let mut out = Vec::new();
    envelope(n, &payload(n)).encode_into(&mut out).unwrap();
    out
}

fn append(wal: &Wal, messages: std::ops::Range<i64>) {
    for first in messages.step_by(usize::try_from(PER_FRAME).unwrap()) {
        let mut batch = Batch::new();
        let mut next = NextOffsets::default();
        for n in first..first + PER_FRAME {
            batch.push(&record(n)).unwrap();
            let (partition, offset) = place(n);
            next.set(partition, offset + 1);
        }
        batch.annotate(&next.encode().unwrap());
        wal.append(batch).unwrap().wait().unwrap();
    }
}

/// A data directory as the persister lays it out, with a closed log of messages in it.
fn data_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("wal/metrics");
    let wal = open(&log);
    append(&wal, 0..MESSAGES);
    wal.close(Duration::ZERO).unwrap();
    (dir, log)
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_monasca-persister")).args(args).output().unwrap()
}

fn wal(command: &str, dir: &Path, rest: &[&str]) -> Output {
    let mut args = vec!["wal", command, dir.to_str().unwrap()];
    args.extend(rest);
    run(&args)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", stdout(output), stderr(output)))
}

/// The bytes of all files.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = dir.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.to_string_lossy().ends_with(".wal");
    contents(dir).into_keys().filter(is_segment).collect()
}

/// Changes a byte of the record with this message, and returns the file.
fn rot(dir: &Path, n: i64) -> PathBuf {
    let needle = payload(n);
    for path in segments(dir) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return path;
        }
    }
    panic!("message {n} is nowhere");
}

/// All records with their positions.
fn read(wal: &Wal) -> Vec<Vec<u8>> {
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    let mut records = Vec::new();
    loop {
        match reader.next(&mut chunk, 1 << 20).unwrap() {
            ReadOutcome::Records => records.extend(chunk.iter().map(|(_, bytes)| bytes.to_vec())),
            ReadOutcome::Gap(range, reason) => panic!("{range:?} {reason:?}"),
            ReadOutcome::CaughtUp => return records,
        }
    }
}

fn offsets(wal: &Wal) -> Vec<(i32, i64)> {
    NextOffsets::decode(&wal.carry()).unwrap().iter().collect()
}

#[test]
fn info_says_what_a_log_holds() {
    let (_dir, log) = data_dir();
    let before = contents(&log);
    let output = wal("info", &log, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let info = json(&output);
    assert_eq!(info["appended"], MESSAGES);
    assert_eq!(info["proven"], MESSAGES);
    assert_eq!(info["delivered"], 0);
    assert_eq!(info["backlog_records"], MESSAGES);
    assert_eq!((&info["incarnation"], &info["ended"]), (&json!(1), &json!("clean")));
    let wanted = json!([{ "partition": 0, "next": 1150 }, { "partition": 1, "next": 1150 }]);
    assert_eq!(info["next_offsets"], wanted);
    let segments = info["segments"].as_array().unwrap();
    assert!(segments.len() > 2, "{info}");
    assert_eq!((&segments[0]["from"], &segments[0]["to"]), (&json!(0), &segments[1]["from"]));
    let records: i64 = segments.iter().map(|segment| segment["records"].as_i64().unwrap()).sum();
    assert_eq!(records, MESSAGES);
    assert!(segments[0]["created"].as_str().unwrap().starts_with("20"), "{info}");
    assert_eq!(info["flaws"], json!([]));

    let text = stdout(&wal("info", &log, &[]));
    for part in ["partition 1: 1150", "backlog     300 records", "ended       clean"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(contents(&log), before);
}

#[test]
fn a_data_directory_is_answered_with_the_logs_in_it() {
    let (dir, log) = data_dir();
    let nested = dir.path().join("wal");
    for given in [dir.path(), nested.as_path()] {
        for command in ["info", "verify", "dump"] {
            let output = wal(command, given, &[]);
            assert_eq!(output.status.code(), Some(64));
            assert!(stderr(&output).contains(log.to_str().unwrap()), "{}", stderr(&output));
        }
    }
    let output = wal("info", &dir.path().join("nothing"), &[]);
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
}

#[test]
fn verify_is_content_with_a_whole_log_beside_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let owner = open(dir.path());
    append(&owner, 0..MESSAGES);
    owner.prepare().unwrap();
    owner.ack(Position::ZERO..Position::new(200));
    owner.checkpoint(Duration::from_secs(5)).unwrap();
    let output = wal("verify", dir.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let verified = json(&output);
    assert_eq!((&verified["whole"], &verified["delivered"]), (&json!(true), &json!(200)));
    assert_eq!((&verified["flaws"], &verified["missing"]), (&json!([]), &json!([])));
    assert_eq!(stderr(&output), "", "no progress line where nobody looks");
    assert_eq!(wal("info", dir.path(), &[]).status.code(), Some(0));
    append(&owner, MESSAGES..MESSAGES + 3);
}

#[test]
fn verify_names_the_place_the_positions_and_the_kafka_offsets() {
    let (_dir, log) = data_dir();
    // Messages 30, 31, 32: offset 1015 and 1016 of partition 0, 1015 of partition 1.
    let file = rot(&log, 31);
    let output = wal("verify", &log, &["--json"]);
    assert_eq!(output.status.code(), Some(74));
    let verified = json(&output);
    assert_eq!(verified["whole"], false);
    assert_eq!(verified["records"], MESSAGES - PER_FRAME);
    let flaws = verified["flaws"].as_array().unwrap();
    assert_eq!(flaws.len(), 1, "{verified}");
    assert_eq!(flaws[0]["file"], file.file_name().unwrap().to_str().unwrap());
    assert_eq!(flaws[0]["reason"], "wrong checksum");
    let wanted = json!([{ "from": 30, "to": 33, "acknowledged": true, "kafka": [
        { "partition": 0, "from": 1015, "to": 1017 },
        { "partition": 1, "from": 1015, "to": 1016 },
    ] }]);
    assert_eq!(verified["missing"], wanted);

    let text = stdout(&wal("verify", &log, &[]));
    let says = "topic metrics, partition 0: offsets 1015 up to, not including, 1017";
    assert!(text.contains(says), "{text}");
    assert!(text.contains("wal salvage"), "{text}");
}

#[test]
fn a_missing_segment_is_told_with_its_offsets() {
    let (_dir, log) = data_dir();
    let info = json(&wal("info", &log, &["--json"]));
    let (from, to) = (&info["segments"][1]["from"], &info["segments"][1]["to"]);
    std::fs::remove_file(&segments(&log)[1]).unwrap();
    let output = wal("verify", &log, &["--json"]);
    assert_eq!(output.status.code(), Some(74));
    let missing = &json(&output)["missing"];
    assert_eq!((&missing[0]["from"], &missing[0]["to"]), (from, to));
    let offset = |position: &Value, partition: i64| {
        let n = position.as_i64().unwrap();
        1000 + (n + 1 - partition) / 2
    };
    for partition in 0..2 {
        let range = &missing[0]["kafka"][usize::try_from(partition).unwrap()];
        assert_eq!(range["from"], offset(from, partition), "{missing}");
        assert_eq!(range["to"], offset(to, partition), "{missing}");
    }
}

#[test]
fn dump_prints_records_as_lines_json_or_bytes() {
    let (_dir, log) = data_dir();
    let output = wal("dump", &log, &["--from", "7", "--limit", "2"]);
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].starts_with(
            "7  metrics partition 1 offset 1003  2023-11-14T22:13:20.007Z  key -  payload {\"message\":7,"
        ),
        "{text}"
    );
    let object = json(&wal("dump", &log, &["--from", "7", "--limit", "1", "--json"]));
    assert_eq!(object["payload"], String::from_utf8(payload(7)).unwrap());
    assert_eq!((&object["payload_encoding"], &object["key"]), (&json!("utf-8"), &Value::Null));
    let raw = wal("dump", &log, &["--from", "7", "--limit", "1", "--raw"]);
    assert_eq!(raw.stdout, payload(7));
    assert_eq!(stdout(&wal("dump", &log, &[])).lines().count(), 300);

    rot(&log, 31);
    let output = wal("dump", &log, &["--from", "28"]);
    assert_eq!(output.status.code(), Some(74));
    assert!(stderr(&output).contains("3 records at positions 30..33"), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 269);
    assert_eq!(wal("dump", &log, &["--from", "40"]).status.code(), Some(0));
}

#[test]
fn dead_letters_are_dumped_and_salvaged_too() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("dead-letters");
    let fs = DiskFs::open(&log).unwrap();
    let (inner, _) = Wal::open(fs, config(), Box::new(NoCarry), Duration::ZERO).unwrap();
    let letters = DeadLetters::new(inner);
    let bytes = [0xff, 0x01];
    let letter = DeadLetter::of(&envelope(4, &bytes), 0, "NOT_JSON", "no object");
    letters.keep([&letter]).unwrap();
    letters.wal().close(Duration::ZERO).unwrap();
    let object = json(&wal("dump", &log, &["--json"]));
    assert_eq!((&object["code"], &object["payload"]), (&json!("NOT_JSON"), &json!("ff01")));
    assert_eq!(object["payload_encoding"], "hex");

    let new = dir.path().join("new");
    let output = wal("salvage", &log, &["--to", new.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let fs = DiskFs::open(&new).unwrap();
    let (copy, _) = Wal::open(fs, config(), Box::new(NoCarry), Duration::ZERO).unwrap();
    let records = read(&copy);
    assert_eq!(records.len(), 1);
    assert_eq!(DeadLetter::decode(&records[0]).unwrap(), letter);
}

#[test]
fn salvage_makes_a_log_that_the_persister_goes_on_with() {
    let (dir, log) = data_dir();
    {
        let wal = open(&log);
        wal.ack(Position::ZERO..Position::new(100));
        wal.close(Duration::ZERO).unwrap();
    }
    let before = contents(&log);
    for (all, first) in [(false, 100), (true, 0)] {
        let new = dir.path().join(format!("new-{all}"));
        let mut rest = vec!["--to", new.to_str().unwrap(), "--json"];
        rest.extend(all.then_some("--all"));
        let output = wal("salvage", &log, &rest);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report = json(&output);
        assert_eq!(report["complete"], true);
        let taken = report["records"].as_i64().unwrap();
        assert!(if all { taken > 200 } else { taken == 200 }, "{report}");
        let copy = open(&new);
        let records = read(&copy);
        let wanted: Vec<_> = (first..MESSAGES).map(record).collect();
        // With --all the segments that were reclaimed are gone all the same.
        assert_eq!(records, wanted[wanted.len() - records.len()..]);
        assert_eq!(offsets(&copy), [(0, 1150), (1, 1150)]);
        append(&copy, MESSAGES..MESSAGES + 3);
        assert_eq!(wal("verify", &new, &[]).status.code(), Some(0));
        assert_ne!(report["log_id"], report["new_log_id"]);
    }
    assert_eq!(contents(&log), before, "the old log was changed");
}

#[test]
fn behind_a_hole_the_new_log_keeps_records_and_claims_no_offsets() {
    let (dir, log) = data_dir();
    rot(&log, 31);
    let new = dir.path().join("new");
    let output = wal("salvage", &log, &["--to", new.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(74));
    assert!(stdout(&output).contains("consumer group's offsets back"), "{}", stdout(&output));
    let copy = open(&new);
    let wanted: Vec<_> = (0..30).chain(33..MESSAGES).map(record).collect();
    assert_eq!(read(&copy), wanted);
    // So that offsets set back to 1015 are not overruled.
    assert_eq!(offsets(&copy), [(0, 1015), (1, 1015)]);
}

#[test]
fn salvage_writes_over_nothing() {
    let (dir, log) = data_dir();
    let occupied = dir.path().join("occupied");
    std::fs::create_dir(&occupied).unwrap();
    std::fs::write(occupied.join("somebody's"), "file").unwrap();
    let inside = log.join("new");
    for to in [occupied.as_path(), log.as_path(), inside.as_path()] {
        let output = wal("salvage", &log, &["--to", to.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(64), "{}: {}", to.display(), stderr(&output));
    }
    assert_eq!(contents(&occupied).len(), 1);
    assert!(!inside.exists());
    // An empty directory is as good as none.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let output = wal("salvage", &log, &["--to", empty.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn whatever_is_left_of_the_frames_is_salvaged() {
    let (dir, log) = data_dir();
    std::fs::remove_file(log.join("CURSOR")).unwrap();
    let files = segments(&log);
    // Headers and links gone everywhere, two files swapped.
    for path in &files {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[..8192].fill(0xaa);
        std::fs::write(path, bytes).unwrap();
    }
    let (first, second) = (std::fs::read(&files[0]).unwrap(), std::fs::read(&files[1]).unwrap());
    std::fs::write(&files[0], second).unwrap();
    std::fs::write(&files[1], first).unwrap();
    let new = dir.path().join("new");
    let output = wal("salvage", &log, &["--to", new.to_str().unwrap()]);
    assert!(output.status.code().is_some_and(|code| code == 0), "{}", stdout(&output));
    assert_eq!(read(&open(&new)), (0..MESSAGES).map(record).collect::<Vec<_>>());
}

#[test]
fn damage_in_what_was_delivered_costs_nothing_and_is_told() {
    let (_dir, log) = data_dir();
    {
        let wal = open(&log);
        wal.ack(Position::ZERO..Position::new(33));
        wal.close(Duration::ZERO).unwrap();
    }
    rot(&log, 31);
    let output = wal("verify", &log, &[]);
    assert_eq!(output.status.code(), Some(74));
    assert!(stdout(&output).contains("no record is missing"), "{}", stdout(&output));
}

#[test]
fn a_log_of_a_newer_version_is_left_to_that_version() {
    let (_dir, log) = data_dir();
    let file = &segments(&log)[0];
    let mut bytes = std::fs::read(file).unwrap();
    bytes[8] = 9;
    let crc = crc32(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
    for command in ["info", "verify", "dump"] {
        let output = wal(command, &log, &[]);
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains("version 9"), "{}", stderr(&output));
    }
}

/// CRC-32 (IEEE), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn every_command_explains_itself_with_an_example() {
    for command in ["info", "verify", "dump", "salvage"] {
        let help = stdout(&run(&["wal", command, "--help"]));
        assert!(help.contains("Example"), "{help}");
        assert!(help.contains(&format!("monasca-persister wal {command} /")), "{help}");
    }
}

#[test]
fn output_that_nobody_reads_to_the_end_is_no_failure() {
    let (_dir, log) = data_dir();
    let dump = ["wal", "dump", log.to_str().unwrap()];
    let [schema, man, completions] =
        [["config", "schema"].as_slice(), &["man"], &["completions", "bash"]];
    for arguments in [&dump, schema, man, completions] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_monasca-persister"))
            .args(arguments)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let ended = (output.status.code(), stderr(&output));
        assert_eq!(ended, (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn whoever_asks_a_persister_that_is_not_there_ends_with_69() {
    let asking: [&[&str]; 8] = [
        &["status"],
        &["backlog"],
        &["healthcheck"],
        &["top", "--once"],
        &["size", "--hours", "1"],
        &["control", "pause"],
        &["query"],
        &["dead-letters", "list"],
    ];
    for arguments in asking {
        for url in ["http://127.0.0.1:9", "unix:/nowhere"] {
            let output = run(&[arguments, &["--url", url]].concat());
            assert_eq!(output.status.code(), Some(69), "{arguments:?} {url}: {output:?}");
            assert!(stderr(&output).contains(&format!("ask {url}")), "{output:?}");
        }
    }
}
