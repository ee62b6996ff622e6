//! `wal info`: a log at a glance, from headers, links and the newest segment.

use anyhow::Context as _;
use bytesize::ByteSize;
use serde_json::json;
use wal::{Inventory, Position, SegmentEntry, inventory};

use super::record::rfc3339;
use super::{Log, LogArgs, flaw_json, place};
use crate::exit;
use crate::offset_note::{LogOffsets, NextOffsets, OffsetNote};

pub(super) fn info(args: &LogArgs) -> anyhow::Result<u8> {
    let log = Log::open(&args.directory)?;
    let inventory = inventory(&log.fs).with_context(|| format!("read {}", log.path.display()))?;
    let offsets = if log.holds_dead_letters() { None } else { offsets(&inventory)? };
    if args.json {
        super::super::print_json(&as_json(&log, &inventory, offsets.as_ref()))?;
    } else {
        print(&log, &inventory, offsets.as_ref());
    }
    Ok(exit::OK)
}

/// Next offsets at the end of the log: the newest link's carry and what the newest segment adds. `None` if that link
/// is damaged; then `verify` folds everything.
fn offsets(inventory: &Inventory) -> anyhow::Result<Option<NextOffsets>> {
    let Some(saved) = inventory.segments.last().and_then(|newest| newest.carry.as_ref()) else {
        return Ok(None);
    };
    let mut offsets = LogOffsets::decode(saved).context("read the log's memory of offsets")?;
    for annotation in &inventory.tail.annotations {
        offsets.fold(OffsetNote::decode(annotation).context("read the offsets of a batch")?);
    }
    Ok(Some(offsets.next))
}

fn backlog(inventory: &Inventory) -> u64 {
    let end = inventory.tail.end.max(inventory.proven);
    let acked: u64 =
        inventory.acked.iter().filter_map(|range| range.end.distance_from(range.start)).sum();
    end.distance_from(inventory.delivered).unwrap_or(0).saturating_sub(acked)
}

fn records(segment: &SegmentEntry) -> Option<u64> {
    segment.last.and_then(|last| last.distance_from(segment.base))
}

fn created(segment: &SegmentEntry) -> Option<String> {
    segment.created_ms.and_then(|ms| i64::try_from(ms).ok()).map(rfc3339)
}

fn ended(inventory: &Inventory) -> (&'static str, String) {
    let tail = &inventory.tail;
    let unproven = tail.end.distance_from(inventory.proven).unwrap_or(0);
    if inventory.segments.is_empty() {
        ("empty", "no segment".to_owned())
    } else if tail.torn_bytes > 0 {
        (
            "torn",
            format!(
                "torn: {} bytes behind the last whole frame (a crash, or a write in progress), {unproven} records \
without proof",
                tail.torn_bytes
            ),
        )
    } else if tail.clean {
        ("clean", "clean: everything in it is proven durable".to_owned())
    } else {
        (
            "open",
            format!(
                "open: the last {unproven} records have no proof behind them (a crash, or a persister is running); \
the next start keeps them"
            ),
        )
    }
}

fn as_json(log: &Log, inventory: &Inventory, offsets: Option<&NextOffsets>) -> serde_json::Value {
    let segment = |segment: &SegmentEntry| {
        json!({
            "number": segment.number.get(),
            "file": segment.file,
            "from": segment.base.get(),
            "to": segment.last.map(Position::get),
            "records": records(segment),
            "bytes": segment.bytes,
            "created": created(segment),
            "incarnation": segment.incarnation.get(),
        })
    };
    let pairs = |next: &NextOffsets| -> Vec<_> {
        next.iter()
            .map(|(partition, next)| json!({ "partition": partition, "next": next }))
            .collect()
    };
    json!({
        "directory": log.path,
        "log_id": inventory.log_id.map(|id| id.to_string()),
        "format_version": inventory.format_version,
        "incarnation": inventory.incarnation.get(),
        "appended": inventory.tail.end.max(inventory.proven).get(),
        "proven": inventory.proven.get(),
        "durable_at_checkpoint": inventory.cursor.durable.map(Position::get),
        "delivered": inventory.delivered.get(),
        "delivered_at_checkpoint": inventory.cursor.delivered.map(Position::get),
        "acked_beyond_delivered": inventory.acked.iter().map(|range| [range.start.get(), range.end.get()]).collect::<Vec<_>>(),
        "backlog_records": backlog(inventory),
        "bytes": inventory.segments.iter().map(|segment| segment.bytes).sum::<u64>(),
        "ended": ended(inventory).0,
        "torn_bytes": inventory.tail.torn_bytes,
        "next_offsets": offsets.map(pairs),
        "segments": inventory.segments.iter().map(segment).collect::<Vec<_>>(),
        "unused_files": inventory.unused,
        "flaws": inventory.flaws.iter().map(flaw_json).collect::<Vec<_>>(),
    })
}

fn print(log: &Log, inventory: &Inventory, offsets: Option<&NextOffsets>) {
    let unknown = || "unknown".to_owned();
    let id = inventory.log_id.map_or_else(unknown, |id| id.to_string());
    println!("directory   {}", log.path.display());
    println!("log         {id}, format version {}", inventory.format_version);
    println!("incarnation {}", inventory.incarnation);
    let at_checkpoint = |position: Option<Position>| {
        position
            .map_or_else(|| "no checkpoint".to_owned(), |at| format!("{at} at the last checkpoint"))
    };
    println!("appended    {}", inventory.tail.end.max(inventory.proven));
    println!(
        "durable     {} proven, {}",
        inventory.proven,
        at_checkpoint(inventory.cursor.durable)
    );
    println!("delivered   {}, {}", inventory.delivered, at_checkpoint(inventory.cursor.delivered));
    let bytes = inventory.segments.iter().map(|segment| segment.bytes).sum();
    println!("backlog     {} records; files of {}", backlog(inventory), ByteSize(bytes));
    println!("ended       {}", ended(inventory).1);
    if let Some(offsets) = offsets {
        println!("offsets     next to take from Kafka:");
        for (partition, next) in offsets.iter() {
            println!("              partition {partition}: {next}");
        }
    }
    println!("segments    {}", inventory.segments.len());
    for segment in &inventory.segments {
        let to = segment.last.map_or_else(|| "?".to_owned(), |last| last.to_string());
        let records =
            records(segment).map_or_else(|| "?".to_owned(), |records| records.to_string());
        let created = created(segment).unwrap_or_else(unknown);
        println!(
            "              {:>6}  positions {}..{to}  {records} records  {}  made {created}",
            segment.number,
            segment.base,
            ByteSize(segment.bytes),
        );
    }
    for flaw in &inventory.flaws {
        println!("damage      {}", place(flaw));
    }
    if !inventory.flaws.is_empty() {
        println!(
            "            `monasca-persister wal verify {}` reads all of it",
            log.path.display()
        );
    }
}
