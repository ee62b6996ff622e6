//! Which Kafka offsets cover what is missing, in words and as JSON.

use wal::Loss;

use crate::offset_trail::{Hole, Span};

/// A span of offsets for people.
pub(super) fn describe(range: &Span) -> String {
    let from = range.from.map_or_else(|| "the first".to_owned(), |from| from.to_string());
    match range.to {
        Some(to) => {
            format!("partition {}: offsets {from} up to, not including, {to}", range.partition)
        }
        None => format!(
            "partition {}: offsets {from} and all after it that were taken",
            range.partition
        ),
    }
}

/// The line that says what is missing.
pub(super) fn describe_hole(hole: &Hole) -> String {
    let (from, to) = (hole.positions.start, hole.positions.end);
    let count = to.distance_from(from).unwrap_or(0);
    let confirmed = match hole.loss {
        Loss::Acknowledged | Loss::Delivered => "",
        Loss::Unconfirmed => ", never confirmed as durable: Kafka still has them",
    };
    format!("{count} records at positions {from}..{to}{confirmed}")
}

/// A hole for programs.
pub(super) fn hole_json(hole: &Hole) -> serde_json::Value {
    serde_json::json!({
        "from": hole.positions.start.get(),
        "to": hole.positions.end.get(),
        "acknowledged": hole.loss == Loss::Acknowledged,
        "kafka": hole.ranges,
    })
}
