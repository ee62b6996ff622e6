//! `wal verify`: every byte read, every checksum checked.

use std::ops::ControlFlow;

use anyhow::Context as _;
use serde_json::json;
use wal::{Loss, SalvageSummary, Salvaged};

use super::offsets::{describe, describe_hole, hole_json};
use super::progress::Progress;
use super::{Log, LogArgs, flaw_json, place};
use crate::exit;
use crate::offset_trail::{Hole, LogTrail};

pub(super) fn verify(args: &LogArgs) -> anyhow::Result<u8> {
    let log = Log::open(&args.directory)?;
    let failed = || format!("read {}", log.path.display());
    let mut progress = Progress::new("verify", &wal::inventory(&log.fs).with_context(failed)?);
    let dead_letters = log.holds_dead_letters();
    let mut trail = LogTrail::default();
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
    Ok(if whole { exit::OK } else { exit::DISK })
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
