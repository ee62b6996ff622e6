//! What happens after a clean close: bytes rot, files get lost, and a disk turns out to have lied.
//! Nothing of it may go unnoticed, and nothing else may get lost.

use std::collections::BTreeMap;

use wal::sim::{CrashLevel, SimDisk};
use wal::{Attestation, Chunk, GapReason, Position, ReadOutcome, Wal};

use super::{Failure, Highest, Run};

/// What a reader finds: records, and what it calls missing.
struct Seen {
    records: BTreeMap<u64, Vec<u8>>,
    gaps: Vec<std::ops::Range<u64>>,
}

fn read(wal: &Wal<SimDisk>) -> Result<Seen, Failure> {
    let mut seen = Seen { records: BTreeMap::new(), gaps: Vec::new() };
    let mut reader = wal.reader(Position::ZERO);
    let mut chunk = Chunk::new();
    loop {
        match reader.next(&mut chunk, 4096).map_err(|error| error.to_string())? {
            ReadOutcome::Records => {
                seen.records.extend(chunk.iter().map(|(at, bytes)| (at.get(), bytes.to_vec())));
            }
            ReadOutcome::Gap(_, GapReason::Reclaimed) => {}
            ReadOutcome::Gap(range, _) => seen.gaps.push(range.start.get()..range.end.get()),
            ReadOutcome::CaughtUp => return Ok(seen),
        }
    }
}

impl Seen {
    /// I2 and I5: what is there is right, and what is not there is reported.
    fn check(&self, run: &Run, delivered: u64, end: u64, what: &str) -> Result<(), Failure> {
        for position in delivered..end {
            let at = usize::try_from(position).unwrap();
            match self.records.get(&position) {
                Some(bytes) => {
                    claim!(*bytes == run.model.submitted[at], "{what}: record {position} altered");
                }
                None => claim!(
                    self.gaps.iter().any(|gap| gap.contains(&position)),
                    "I5: {what}: record {position} is gone in silence"
                ),
            }
        }
        Ok(())
    }
}

/// Damages a closed log in one place and reads it back, twice.
pub fn check(run: &mut Run, sound: &SimDisk) -> Result<(), Failure> {
    let end = run.model.submitted.len() as u64;
    let names: Vec<String> =
        sound.file_names().into_iter().filter(|name| name.starts_with("segment-")).collect();
    let name = names[usize::try_from(run.random.below(names.len() as u64)).unwrap()].clone();
    let Some(mut bytes) = sound.read_file(&name) else {
        return Ok(());
    };
    let disk = sound.fork();
    let sector = usize::try_from(run.random.below((bytes.len() / 512) as u64)).unwrap() * 512;
    let what = match run.random.below(7) {
        4 => {
            // A misdirected write: a block of the same file where another belongs.
            let from = usize::try_from(run.random.below((bytes.len() / 4096) as u64)).unwrap();
            let to = sector / 4096 * 4096;
            let length = (bytes.len() - to).min(4096);
            bytes.copy_within(from * 4096..from * 4096 + length, to);
            disk.write_file(&name, &bytes);
            format!("{name}: block {from} at {to}")
        }
        0 => {
            disk.remove_file(&name);
            format!("{name} lost")
        }
        1 => {
            disk.write_file(&name, &bytes[..sector]);
            format!("{name} cut at {sector}")
        }
        2 => {
            bytes[sector..sector + 512].fill(0);
            disk.write_file(&name, &bytes);
            format!("{name} zeros at {sector}")
        }
        3 => {
            let other = &names[usize::try_from(run.random.below(names.len() as u64)).unwrap()];
            disk.write_file(&name, &sound.read_file(other).unwrap_or_default());
            format!("{name} replaced by {other}")
        }
        _ => {
            let at = sector + usize::try_from(run.random.below(512)).unwrap();
            bytes[at] ^= 1 << run.random.below(8);
            disk.write_file(&name, &bytes);
            format!("{name} flipped at {at}")
        }
    };
    run.tally.rotten += 1;
    let mut first_gaps = None;
    for _ in 0..2 {
        let opened =
            Wal::open(disk.fork(), run.config.clone(), Box::new(Highest::default()), run.now);
        let (wal, report) = opened.map_err(|error| format!("{what}: open: {error}"))?;
        claim!(report.end.get() >= end, "{what}: ends at {} of {end}", report.end);
        let seen = read(&wal)?;
        seen.check(run, wal.delivered().get(), end, &what)?;
        let gaps = first_gaps.get_or_insert_with(|| seen.gaps.clone());
        claim!(*gaps == seen.gaps, "{what}: the second opening finds other gaps");
    }
    Ok(())
}

/// L4: the last syncs never happened. What is lost must be known to a witness, or be reported.
pub fn check_lies(run: &mut Run, sound: &SimDisk) -> Result<(), Failure> {
    let disk = sound.fork();
    disk.lie();
    let carry = Box::new(Highest::default());
    let (wal, report) = Wal::open(disk.clone(), run.config.clone(), carry, run.now)
        .map_err(|error| format!("open: {error}"))?;
    let witness = report.incarnation;
    let before = run.model.submitted.len();
    for _ in 0..1 + run.random.below(6) {
        let (batch, records, _) = run.batch();
        if let Ok(ticket) = wal.append(batch) {
            ticket.wait().map_err(|error| error.to_string())?;
            run.model.submitted.extend(records);
        }
    }
    if run.random.one_in(2) {
        wal.checkpoint(run.now).map_err(|error| error.to_string())?;
    }
    let promised = wal.durable().through();
    drop(wal);
    let disk = disk.crash(CrashLevel::LostSyncs);
    run.tally.lies += 1;
    let carry = Box::new(Highest::default());
    let (wal, report) = match Wal::open(disk, run.config.clone(), carry, run.now) {
        Ok(opened) => opened,
        // It says so instead of opening: that is not silent.
        Err(_) => {
            run.tally.lies_noticed += 1;
            run.model.submitted.truncate(before);
            return Ok(());
        }
    };
    let seen = read(&wal)?;
    let end = report.end.get().min(promised.get());
    seen.check(run, wal.delivered().get(), end, "after a lie")?;
    if report.end < promised {
        let told = wal.attest(witness, promised);
        claim!(
            matches!(told, Attestation::Missing(_)),
            "a lie about {}..{promised} is not noticed",
            report.end
        );
    }
    let noticed = !seen.gaps.is_empty() || report.end < promised;
    run.tally.lies_noticed += u64::from(noticed);
    run.model.submitted.truncate(before);
    Ok(())
}
