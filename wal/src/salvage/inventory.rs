//! Which files there are, whose they are, and what they say about each other.

use std::ops::Range;

use crate::error::WalError;
use crate::format::link::{Link, SegmentEnd};
use crate::format::{FORMAT_VERSION, Malformed, SEGMENT_HEADER_BYTES, parse_segment_name};
use crate::fs::Fs;
use crate::position::{Incarnation, LogId, Position, SegmentNumber};
use crate::salvage::cursor::{Cursor, cursor_flaws, read_cursor};
use crate::salvage::identity::{Identified, Identity, identify};
use crate::salvage::tail::{Tail, read_tail};
use crate::salvage::{Flaw, FlawReason};

/// One segment of the log.
#[derive(Clone, Debug)]
pub struct SegmentEntry {
    /// Its number.
    pub number: SegmentNumber,
    /// The opening that made it.
    pub incarnation: Incarnation,
    /// Position of its first record.
    pub base: Position,
    /// After its last record, if its successor's link can be read; of the newest, what was found.
    pub last: Option<Position>,
    /// Size of its file.
    pub bytes: u64,
    /// Milliseconds since 1970 at which it was made, if its header can be read.
    pub created_ms: Option<u64>,
    /// The carry it began with, if its link can be read.
    pub carry: Option<Vec<u8>>,
    /// Its file.
    pub file: String,
    pub(super) nonce: u64,
    pub(super) header_crc: Option<u32>,
    /// Stale bytes may look like anything.
    pub(super) recycled: bool,
    pub(super) end: Option<SegmentEnd>,
}

/// A log's directory at a glance: headers, links and CURSOR, and the newest segment in full.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The log, if anything readable names it.
    pub log_id: Option<LogId>,
    /// Version of the bytes.
    pub format_version: u32,
    /// The highest opening seen.
    pub incarnation: Incarnation,
    /// The CURSOR.
    pub cursor: Cursor,
    /// Everything before it was acked, as far as CURSOR and links tell.
    pub delivered: Position,
    /// Ranges acked beyond `delivered`.
    pub acked: Vec<Range<Position>>,
    /// Everything before it was durable: the highest proof in CURSOR, links and the newest segment.
    pub proven: Position,
    /// The segments in log order. What a later one passes over is left out.
    pub segments: Vec<SegmentEntry>,
    /// How the newest segment ends.
    pub tail: Tail,
    /// Files that hold no records: prepared and never used, or passed over.
    pub unused: Vec<String>,
    /// What is wrong with headers, links, names and the CURSOR. [`salvage`](super::salvage) finds
    /// the rest.
    pub flaws: Vec<Flaw>,
}

impl Inventory {
    /// The first position that should be there.
    pub(super) fn start(&self) -> Position {
        let oldest = self.segments.first().map(|oldest| oldest.base);
        match (oldest, self.cursor.delivered) {
            (Some(oldest), Some(_)) => oldest.min(self.delivered),
            // Without a CURSOR nobody knows whether what is before the oldest was delivered.
            (Some(oldest), None) => oldest,
            (None, _) => self.delivered,
        }
    }

    /// The CURSOR knows of a segment later than any that is there.
    pub(super) fn lost_newest(&self) -> bool {
        self.segments.last().is_some_and(|newest| newest.number < self.cursor.segment)
    }
}

/// Looks at the directory.
///
/// # Errors
/// It cannot be listed, a file cannot be opened, or a file is of a newer version of this program.
pub fn inventory<F: Fs>(fs: &F) -> Result<Inventory, WalError> {
    // Read before the files are listed, so that what it calls durable is in them; and again
    // afterwards, so that what is gone from them is known to be delivered.
    let before = read_cursor(fs)?;
    let mut names = fs.list().map_err(|error| WalError::io("list", fs.path_of("."), error))?;
    names.sort_unstable();
    let mut files = Vec::new();
    for name in names {
        if let Some(named) = parse_segment_name(&name)
            && let Some(identity) = identify(fs, &name, named)?
        {
            files.push((name, named, identity));
        }
    }
    let now = read_cursor(fs)?;
    // A CURSOR that no segment agrees with is a file of another log.
    let of_cursor = now.log_id.filter(|id| names_log(&files, *id));
    let log_id = of_cursor.or_else(|| commonest(&files)).or(now.log_id);
    let cursor = Cursor { durable: before.of(log_id).durable, ..now.of(log_id) };
    let mut flaws = Vec::new();
    let mut found = Vec::new();
    let mut headers_only = Vec::new();
    for (file, named, identity) in files {
        let flaw = |segment, byte_at, reason| Flaw {
            file: file.clone(),
            segment,
            byte_at,
            reason,
            acknowledged: true,
        };
        match identity {
            Identity::Segment(segment) => {
                match segment.log_id.filter(|found| log_id.is_some_and(|own| own != *found)) {
                    Some(other) => flaws.push(flaw(named, 0, FlawReason::OtherLog(other))),
                    None => found.push(*segment),
                }
            }
            Identity::HeaderOnly(number) => headers_only.push((file, number)),
            Identity::Nothing(reason) => flaws.push(flaw(named, 0, FlawReason::Bytes(reason))),
        }
    }
    assemble(fs, found, headers_only, cursor, log_id, flaws)
}

fn names_log(files: &[(String, SegmentNumber, Identity)], id: LogId) -> bool {
    files.iter().any(|(_, _, identity)| match identity {
        Identity::Segment(segment) => segment.log_id == Some(id),
        Identity::HeaderOnly(_) | Identity::Nothing(_) => false,
    })
}

fn commonest(files: &[(String, SegmentNumber, Identity)]) -> Option<LogId> {
    let of_file = |(_, _, identity): &(String, SegmentNumber, Identity)| match identity {
        Identity::Segment(segment) => segment.log_id,
        Identity::HeaderOnly(_) | Identity::Nothing(_) => None,
    };
    let ids: Vec<LogId> = files.iter().filter_map(of_file).collect();
    // Of equally common ones the newest: `max_by_key` returns the last.
    ids.iter().max_by_key(|id| ids.iter().filter(|other| other == id).count()).copied()
}

fn assemble<F: Fs>(
    fs: &F,
    mut found: Vec<Identified>,
    headers_only: Vec<(String, SegmentNumber)>,
    cursor: Cursor,
    log_id: Option<LogId>,
    mut flaws: Vec<Flaw>,
) -> Result<Inventory, WalError> {
    found.sort_by_key(|segment| (segment.entry.base, segment.entry.number));
    let links: Vec<(Link, Position)> =
        found.iter().filter_map(|segment| segment.link.clone()).collect();
    let passed_over = |number: SegmentNumber| {
        links.iter().any(|(link, _)| link.predecessor < number && number < link.number)
    };
    let noted = links.iter().map(|(link, _)| link.delivered).max().unwrap_or_default();
    let delivered = cursor.delivered.unwrap_or_default().max(noted);
    let mut unused = Vec::new();
    found.retain(|segment| {
        let counts = !passed_over(segment.entry.number);
        if !counts {
            unused.push(segment.entry.file.clone());
        }
        counts
    });
    let mut segments: Vec<SegmentEntry> = Vec::with_capacity(found.len());
    let mut head_flaws = Vec::new();
    for Identified { mut entry, flaws, .. } in found {
        let successor = links.iter().rev().find(|(link, _)| link.predecessor == entry.number);
        entry.end = successor.map(|(link, _)| link.predecessor_end);
        entry.last = entry.end.map(|end| end.position);
        head_flaws.extend(flaws.into_iter().map(|(byte_at, reason)| Flaw {
            file: entry.file.clone(),
            segment: entry.number,
            byte_at,
            reason,
            acknowledged: true,
        }));
        segments.push(entry);
    }
    for (file, number) in headers_only {
        let named = links.iter().any(|(link, _)| link.predecessor == number);
        if !passed_over(number) && (named || number <= cursor.segment) {
            let reason = FlawReason::Bytes(Malformed::Zeros);
            let byte_at = SEGMENT_HEADER_BYTES;
            flaws.push(Flaw { file, segment: number, byte_at, reason, acknowledged: true });
        } else {
            unused.push(file);
        }
    }
    let tail = match segments.last() {
        Some(newest) => read_tail(fs, newest)?,
        None => Tail::default(),
    };
    if let Some(newest) = segments.last_mut() {
        newest.last = Some(tail.end);
    }
    let proofs = links.iter().flat_map(|(link, at)| [*at, link.predecessor_end.position]);
    let own = cursor.durable.into_iter().chain([delivered, tail.proven]);
    let proven = proofs.chain(own).max().unwrap_or_default();
    // What follows the newest link is proven by others only.
    let newest = segments.last().map(|newest| (newest.number, newest.base));
    for mut flaw in head_flaws {
        let of_newest = newest.filter(|(number, _)| *number == flaw.segment);
        flaw.acknowledged = flaw.byte_at == 0 || of_newest.is_none_or(|(_, base)| base < proven);
        flaws.push(flaw);
    }
    flaws.extend(missing_files(&links, &segments, &flaws, &cursor, delivered));
    flaws.extend(cursor_flaws(&cursor, !segments.is_empty()));
    let of_segments = segments.iter().map(|segment| segment.incarnation);
    let incarnation = of_segments.chain([cursor.incarnation]).max().unwrap_or_default();
    Ok(Inventory {
        log_id,
        format_version: FORMAT_VERSION,
        incarnation,
        delivered,
        acked: cursor.acked.clone(),
        cursor,
        proven,
        segments,
        tail,
        unused,
        flaws,
    })
}

/// Segments that a link or the CURSOR names, that were not delivered, and that are not there.
fn missing_files(
    links: &[(Link, Position)],
    segments: &[SegmentEntry],
    flaws: &[Flaw],
    cursor: &Cursor,
    delivered: Position,
) -> Vec<Flaw> {
    let known = |number: SegmentNumber| {
        segments.iter().any(|segment| segment.number == number)
            || flaws.iter().any(|flaw| flaw.segment == number)
    };
    let newest = segments.last().map_or(SegmentNumber::NONE, |newest| newest.number);
    let named = links
        .iter()
        .filter(|(link, _)| link.predecessor_end.position > delivered)
        .map(|(link, _)| link.predecessor)
        .chain(Some(cursor.segment).filter(|number| *number > newest));
    named
        .filter(|number| *number != SegmentNumber::NONE && !known(*number))
        .map(|segment| Flaw {
            file: crate::format::segment_name(segment),
            segment,
            byte_at: 0,
            reason: FlawReason::Bytes(Malformed::Missing),
            acknowledged: true,
        })
        .collect()
}
