//! Message bytes to typed values. Pure: no clock, no I/O, nothing kept.
//!
//! What cannot be stored is an error with a code; what is odd but storable is noted and counted.
//!
//! | code | meaning |
//! |---|---|
//! | `NOT_UTF8` | the bytes are no text |
//! | `NOT_JSON` | the text is no JSON, or ends early |
//! | `TOO_DEEP` | more than 32 levels |
//! | `DUPLICATE_KEY` | a known key or a dimension twice |
//! | `MISSING_FIELD` | a field that every message has is absent or empty |
//! | `WRONG_TYPE` | a field has another type |
//! | `NOT_FINITE` | the value is NaN, infinite, or no number at all |
//! | `BAD_TIMESTAMP` | before 1970 or after the year 9999 |
//! | `BAD_STATE` | an alarm state other than UNDETERMINED, OK, ALARM |
//! | `EMPTY_ARRAY` | an array without any metric |

mod alarm;
mod json;
mod metric;

pub use alarm::{AlarmView, alarm};
pub use metric::{MetricView, metrics};

/// Why a message can never be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct DecodeError {
    /// Stable code; see the table of this module.
    pub code: &'static str,
    /// The place in the message and what was found there, cut to 256 bytes.
    pub detail: String,
}

impl DecodeError {
    fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        let mut end = detail.len().min(256);
        while !detail.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        detail.truncate(end);
        Self { code, detail }
    }
}

/// What was odd about a message that is stored all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notes(u8);

impl Notes {
    /// The message names no tenant: stored with an empty one.
    pub const TENANT_MISSING: Self = Self(1);
    /// The message names no region: stored with an empty one.
    pub const REGION_MISSING: Self = Self(2);
    /// `value_meta` is over 2048 characters: stored without it.
    pub const VALUE_META_TOO_LONG: Self = Self(4);
    /// The alarm's metrics are too long for their column: stored as an empty list.
    pub const METRIC_LIST_TOO_LONG: Self = Self(8);
    /// The sub-alarms are too long for their column: stored as an empty list.
    pub const SUB_ALARMS_TOO_LONG: Self = Self(16);

    /// Whether all of `other` are noted.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
