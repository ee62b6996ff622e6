//! The wall clock. Everything that decides by time takes it as an argument; this is where it comes from.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch; 0 on a clock that is set before it.
#[must_use]
pub fn wall_ms() -> i64 {
    let ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    #[cfg(feature = "mutants")]
    let ms = ms.saturating_add(crate::mutants::clock_error_ms());
    ms
}
