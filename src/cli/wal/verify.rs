//! `wal verify`: every byte read, every checksum checked.

use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use wal::{Loss, SalvageSummary, Salvaged, SalvagedFrame};

use super::offsets::{Hole, OffsetTrail, describe, describe_hole, hole_json};
use super::progress::Progress;
use super::{Log, LogArgs, flaw_json, place};
use crate::envelope::{Envelope, NextOffsets};
use crate::exit;

/// Folds what a walk shows into an [`OffsetTrail`]. Annotations that cannot be read say nothing: records do.
#[derive(Default)]
pub(super) struct Trail {
    pub offsets: OffsetTrail,
    /// The topic that the records name.
    pub topic: Option<String>,
}

impl Trail {
    pub fn note(&mut self, salvaged: &Salvaged<'_>) {
        match salvaged {
            Salvaged::Carry { saved, .. } => {
                if let Ok(next) = NextOffsets::decode(saved) {
                    self.offsets.carry(&next);
                }
            }
            Salvaged::Annotation(annotation) => {
                if let Ok(next) = NextOffsets::decode(annotation) {
                    self.offsets.annotation(&next);
                }
            }
            Salvaged::Missing { range, loss } => self.offsets.missing(range.clone(), *loss),
            Salvaged::Frame(frame) => self.frame(frame),
        }
    }

    fn frame(&mut self, frame: &SalvagedFrame<'_>) {
        let annotation = frame.annotation.and_then(|bytes| NextOffsets::decode(bytes).ok());
        if annotation.is_none() || self.topic.is_none() || self.offsets.wants_records() {
            for (_, record) in frame.records() {
                if let Ok(message) = Envelope::decode(record) {
                    self.offsets.record(message.partition, message.offset);
                    self.topic.get_or_insert_with(|| message.topic.to_owned());
                }
            }
        }
        if let Some(next) = annotation {
            self.offsets.annotation(&next);
        }
    }
}

pub(super) fn verify(args: &LogArgs) -> anyhow::Result<ExitCode> {
    let log = Log::open(&args.directory)?;
    let failed = || format!("read {}", log.path.display());
    let mut progress = Progress::new("verify", &wal::inventory(&log.fs).with_context(failed)?);
    let dead_letters = log.holds_dead_letters();
    let mut trail = Trail::default();
    let summary = wal::salvage(&log.fs, |salvaged| {
        if let Salvaged::Frame(frame) = &salvaged {
            progress.at(frame.segment, frame.byte_at);
        }
        match &salvaged {
            Salvaged::Missing { range, loss } if dead_letters => {
                trail.offsets.missing(range.clone(), *loss);
            }
            // Dead letters come from all partitions of both topics: they say nothing about offsets.
            _ if dead_letters => {}
            _ => trail.note(&salvaged),
        }
        ControlFlow::Continue(())
    })
    .with_context(failed)?;
    drop(progress);
    let topic = trail.topic.take();
    let holes = trail.offsets.finish();
    let whole = is_whole(&summary, &holes);
    if args.json {
        super::super::print_json(&as_json(&log, &summary, &holes, topic.as_deref()))?;
    } else {
        print(&log, &summary, &holes, topic.as_deref());
    }
    Ok(ExitCode::from(if whole { exit::OK } else { exit::DISK }))
}

fn is_whole(summary: &SalvageSummary, holes: &[Hole]) -> bool {
    !summary.flaws.iter().any(|flaw| flaw.acknowledged)
        && !holes.iter().any(|hole| hole.loss == Loss::Acknowledged)
}

fn as_json(
    log: &Log,
    summary: &SalvageSummary,
    holes: &[Hole],
    topic: Option<&str>,
) -> serde_json::Value {
    json!({
        "directory": log.path,
        "log_id": summary.inventory.log_id.map(|id| id.to_string()),
        "whole": is_whole(summary, holes),
        "segments": summary.inventory.segments.len(),
        "frames": summary.frames,
        "records": summary.records,
        "proven": summary.inventory.proven.get(),
        "delivered": summary.inventory.delivered.get(),
        "torn_bytes": summary.inventory.tail.torn_bytes,
        "topic": topic,
        "flaws": summary.flaws.iter().map(flaw_json).collect::<Vec<_>>(),
        "missing": holes.iter().map(hole_json).collect::<Vec<_>>(),
    })
}

fn print(log: &Log, summary: &SalvageSummary, holes: &[Hole], topic: Option<&str>) {
    let inventory = &summary.inventory;
    println!(
        "{}: {} segments, {} frames, {} records are whole",
        log.path.display(),
        inventory.segments.len(),
        summary.frames,
        summary.records
    );
    for flaw in &summary.flaws {
        println!("damaged: {}", place(flaw));
    }
    print_holes(holes, topic);
    if inventory.tail.torn_bytes > 0 {
        println!(
            "{} bytes behind the last whole frame were never confirmed: a crash, or a write in progress",
            inventory.tail.torn_bytes
        );
    }
    if is_whole(summary, holes) {
        println!("everything that was confirmed is whole");
        return;
    }
    if holes.iter().any(|hole| hole.loss == Loss::Acknowledged) {
        println!(
            "NOT whole. Stop the persister, copy the directory, and get out what is left: \
`monasca-persister wal salvage {} --to NEW`",
            log.path.display()
        );
    } else {
        println!(
            "NOT whole, but no record is missing: what is damaged was delivered, or held none. The persister can run \
on it; look after the disk"
        );
    }
}

/// What is missing, and where Kafka has it.
pub(super) fn print_holes(holes: &[Hole], topic: Option<&str>) {
    for hole in holes {
        println!("missing: {}", describe_hole(hole));
        for range in &hole.ranges {
            println!("  in Kafka, topic {}, {}", topic.unwrap_or("unknown"), describe(range));
        }
    }
}
