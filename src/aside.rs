//! Stretches of the log that are left out for now: records of replicas that are away, put behind all others. Pure.
//!
//! The deliver thread adds to them, the reader steps over them. When the replicas answer again all of them are read
//! like anything else that is not delivered. A restart forgets them, and so reads them at once.

use std::collections::BTreeMap;
use std::ops::Range;

use wal::Position;

/// Stretches by their start; they do not overlap.
#[derive(Debug, Default)]
pub struct Aside {
    stretches: BTreeMap<Position, Position>,
    is_wanted: bool,
}

impl Aside {
    /// Leaves out these positions too.
    pub fn add(&mut self, positions: Range<Position>) {
        match self.stretches.last_entry() {
            Some(mut last) if *last.get() == positions.start => *last.get_mut() = positions.end,
            _ => {
                self.stretches.insert(positions.start, positions.end);
            }
        }
    }

    /// The first stretch that ends behind `next`.
    #[must_use]
    pub fn from(&self, next: Position) -> Option<Range<Position>> {
        let of = |(start, end): (&Position, &Position)| *start..*end;
        let around = self.stretches.range(..=next).next_back().map(of);
        around
            .filter(|stretch| stretch.end > next)
            .or_else(|| self.stretches.range(next..).next().map(of))
    }

    /// How many records are left out.
    #[must_use]
    pub fn records(&self) -> u64 {
        let lengths = self.stretches.iter().filter_map(|(start, end)| end.distance_from(*start));
        lengths.sum()
    }

    /// True when nothing is left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// What is left out before `end`; the caller moves it elsewhere.
    pub fn take_before(&mut self, end: Position) -> Vec<Range<Position>> {
        let mut taken = Vec::new();
        while let Some(stretch) = self.stretches.first_entry() {
            let (start, stretch_end) = (*stretch.key(), *stretch.get());
            if start >= end {
                break;
            }
            stretch.remove();
            taken.push(start..stretch_end.min(end));
            if stretch_end > end {
                self.stretches.insert(end, stretch_end);
            }
        }
        taken
    }

    /// The reader is to begin anew with what is not delivered.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// True once after [`Aside::want`].
    pub fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.is_wanted)
    }

    /// Nothing is left out any more.
    pub fn clear(&mut self) {
        self.stretches.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(start: u64, end: u64) -> Range<Position> {
        Position::new(start)..Position::new(end)
    }

    #[test]
    fn a_stretch_is_found_from_before_it_and_from_within_and_not_from_behind() {
        let mut aside = Aside::default();
        aside.add(positions(10, 20));
        aside.add(positions(20, 25));
        aside.add(positions(40, 50));
        assert_eq!(aside.records(), 25);
        for (next, found) in [
            (0, Some(positions(10, 25))),
            (10, Some(positions(10, 25))),
            (24, Some(positions(10, 25))),
            (25, Some(positions(40, 50))),
            (49, Some(positions(40, 50))),
            (50, None),
        ] {
            assert_eq!(aside.from(Position::new(next)), found, "from {next}");
        }
    }

    #[test]
    fn what_lies_before_a_position_is_taken_and_the_rest_of_a_stretch_stays() {
        let mut aside = Aside::default();
        aside.add(positions(10, 20));
        aside.add(positions(40, 50));
        assert_eq!(aside.take_before(Position::new(45)), [positions(10, 20), positions(40, 45)]);
        assert_eq!(aside.from(Position::new(0)), Some(positions(45, 50)));
        assert_eq!(aside.take_before(Position::new(45)), []);
    }
}
