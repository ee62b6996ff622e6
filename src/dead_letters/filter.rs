//! Which dead letters are meant.

use serde::{Deserialize, Serialize};
use wal::Position;

use super::DeadLetter;

/// Conditions that must all hold; none means every letter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LetterFilter {
    /// One of these reason codes.
    pub codes: Vec<String>,
    /// This topic.
    pub topic: Option<String>,
    /// This partition.
    pub partition: Option<i32>,
    /// From this offset on.
    pub offset_from: Option<i64>,
    /// Before this offset.
    pub offset_to: Option<i64>,
    /// One of these positions, as listings name them.
    pub positions: Vec<u64>,
    /// A dead letter since before this time, milliseconds since the epoch.
    pub since_before_ms: Option<i64>,
}

impl LetterFilter {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this letter is meant.
    #[must_use]
    pub fn matches(&self, position: Position, letter: &DeadLetter) -> bool {
        (self.codes.is_empty() || self.codes.contains(&letter.code))
            && self.topic.as_ref().is_none_or(|topic| *topic == letter.topic)
            && self.partition.is_none_or(|partition| partition == letter.partition)
            && self.offset_from.is_none_or(|from| letter.offset >= from)
            && self.offset_to.is_none_or(|to| letter.offset < to)
            && (self.positions.is_empty() || self.positions.contains(&position.get()))
            && self.since_before_ms.is_none_or(|before| letter.since_ms() < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::EnvelopeError;

    #[test]
    fn every_condition_must_hold() {
        let letter = DeadLetter {
            topic: "metrics".to_owned(),
            partition: 3,
            offset: 41,
            since_ms: Some(1000),
            ..DeadLetter::unreadable(b"", &EnvelopeError::Empty)
        };
        let at = Position::new(7);
        let wanted = LetterFilter {
            codes: vec!["NOT_JSON".to_owned(), "UNREADABLE_RECORD".to_owned()],
            topic: Some("metrics".to_owned()),
            partition: Some(3),
            offset_from: Some(41),
            offset_to: Some(42),
            positions: vec![6, 7],
            since_before_ms: Some(1001),
        };
        assert!(wanted.matches(at, &letter));
        assert!(LetterFilter::default().matches(at, &letter));
        assert!(LetterFilter::default().is_everything() && !wanted.is_everything());
        let others = [
            LetterFilter { codes: vec!["NOT_JSON".to_owned()], ..wanted.clone() },
            LetterFilter { topic: Some("alarms".to_owned()), ..wanted.clone() },
            LetterFilter { partition: Some(4), ..wanted.clone() },
            LetterFilter { offset_from: Some(42), ..wanted.clone() },
            LetterFilter { offset_to: Some(41), ..wanted.clone() },
            LetterFilter { positions: vec![6], ..wanted.clone() },
            LetterFilter { since_before_ms: Some(1000), ..wanted },
        ];
        for other in others {
            assert!(!other.matches(at, &letter), "{other:?}");
        }
    }
}
