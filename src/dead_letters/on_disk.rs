//! Dead letters as a directory has them, read without its lock: a persister may be running on it.

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use anyhow::Context as _;
use wal::{DiskFs, Position, Scanned};

use super::{DeadLetter, tombstone};

/// What lies in a directory, without the letters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Found {
    /// Position behind the last record.
    pub end: Position,
    /// Records that this program cannot read.
    pub unreadable: u64,
}

/// Calls `each` with every letter that was neither dropped nor tried again, oldest first, until it breaks off; of
/// repetitions with the first.
///
/// # Errors
/// The directory cannot be read.
pub fn read_directory(
    dir: &Path,
    mut each: impl FnMut(Position, DeadLetter) -> ControlFlow<()>,
) -> anyhow::Result<Found> {
    let failed = || format!("read dead letters in {}", dir.display());
    let fs = DiskFs::open_existing(dir).with_context(failed)?;
    let inventory = wal::inventory(&fs).with_context(failed)?;
    let mut gone = inventory.acked;
    if let Some(log) = inventory.log_id {
        gone.extend(tombstone::gone(&fs, log).with_context(failed)?);
    }
    let gone = Gone::of(inventory.delivered, gone);
    let mut found = Found { end: inventory.delivered, ..Found::default() };
    let mut seen = HashSet::new();
    wal::scan(&fs, |scanned| {
        let Scanned::Record { position, bytes } = scanned else {
            return ControlFlow::Continue(());
        };
        found.end = found.end.max(position.next());
        if gone.has(position) {
            return ControlFlow::Continue(());
        }
        match DeadLetter::decode(bytes) {
            Ok(letter) if seen.insert(letter.key()) => each(position, letter),
            Ok(_) => ControlFlow::Continue(()),
            Err(_) => {
                found.unreadable = found.unreadable.saturating_add(1);
                ControlFlow::Continue(())
            }
        }
    })
    .with_context(failed)?;
    Ok(found)
}

/// Positions that are gone.
struct Gone {
    before: Position,
    /// Ascending, apart from each other.
    ranges: Vec<Range<Position>>,
}

impl Gone {
    fn of(before: Position, mut ranges: Vec<Range<Position>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<Position>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Self { before, ranges: joined }
    }

    fn has(&self, position: Position) -> bool {
        let behind = self.ranges.partition_point(|range| range.start <= position);
        position < self.before
            || behind
                .checked_sub(1)
                .and_then(|last| self.ranges.get(last))
                .is_some_and(|range| position < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_may_be_told_twice_and_in_any_order() {
        let range = |from, to| Position::new(from)..Position::new(to);
        let gone = Gone::of(Position::new(3), vec![range(8, 12), range(5, 6), range(9, 10)]);
        let here: Vec<u64> = (0..14).filter(|at| !gone.has(Position::new(*at))).collect();
        assert_eq!(here, [3, 4, 6, 7, 12, 13]);
    }
}
