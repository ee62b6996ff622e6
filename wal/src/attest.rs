//! Whether the log still holds what a witness outside remembers. Pure.
//!
//! Every opening of the log notes the first position that is new in it. What an earlier opening
//! had beyond that position is gone, even if the positions have been given out again since.

use std::ops::Range;

use crate::format::link::Resumed;
use crate::position::{Incarnation, Position};

/// The answer to a witness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attestation {
    /// Everything the witness remembers is in the log, or was delivered from it.
    Intact,
    /// These positions, as the witness remembers them, are not in the log.
    Missing(Range<Position>),
}

/// `history` ends with the current incarnation.
///
/// A witness of the current incarnation is believed to have heard from this very opening. One that
/// remembers the current number, or a higher one, from *before* it proves that the directory was
/// rolled back; compare the numbers at start-up to see that.
pub(crate) fn attest(
    history: &[Resumed],
    durable: Position,
    incarnation: Incarnation,
    position: Position,
) -> Attestation {
    let current = history.last().map_or(Incarnation::default(), |last| last.incarnation);
    let held = if incarnation == current {
        durable
    } else if incarnation > current {
        // Written by an opening that this directory does not know: common is what was there before
        // the present one.
        history.last().map_or(Position::ZERO, |last| last.at)
    } else {
        // The first opening after the witness's one decides: the later ones resumed no earlier.
        history
            .iter()
            .find(|resumed| resumed.incarnation > incarnation)
            .map_or(durable, |resumed| resumed.at)
    };
    if position <= held { Attestation::Intact } else { Attestation::Missing(held..position) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resumed(incarnation: u64, at: u64) -> Resumed {
        Resumed { incarnation: Incarnation::new(incarnation), at: Position::new(at) }
    }

    fn ask(incarnation: u64, position: u64) -> Attestation {
        let history = [resumed(1, 0), resumed(2, 100), resumed(3, 150)];
        let durable = Position::new(400);
        attest(&history, durable, Incarnation::new(incarnation), Position::new(position))
    }

    fn missing(start: u64, end: u64) -> Attestation {
        Attestation::Missing(Position::new(start)..Position::new(end))
    }

    #[test]
    fn what_a_later_opening_could_not_read_is_missing() {
        assert_eq!(ask(1, 100), Attestation::Intact);
        assert_eq!(ask(1, 130), missing(100, 130));
        assert_eq!(ask(2, 150), Attestation::Intact);
        assert_eq!(ask(2, 151), missing(150, 151));
        assert_eq!(ask(3, 400), Attestation::Intact);
        assert_eq!(ask(3, 401), missing(400, 401));
    }

    #[test]
    fn an_opening_the_directory_does_not_know_shares_only_what_was_before() {
        assert_eq!(ask(9, 150), Attestation::Intact);
        assert_eq!(ask(9, 200), missing(150, 200));
    }
}
