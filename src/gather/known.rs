//! Series that were seen lately: those of the next stretch of the log are mostly the same, and making one anew costs a
//! dozen allocations. Bounded.

use std::collections::HashMap;
use std::sync::Arc;

use storage::{MetricId, Series};

use super::requests::series_bytes;

/// Most bytes of series that are remembered, about: ten to twenty thousand of them.
const BYTES_MAX: usize = 8 << 20;

/// The series, by id.
#[derive(Debug, Default)]
pub struct KnownSeries {
    series: HashMap<MetricId, Arc<Series>>,
    bytes: usize,
}

impl KnownSeries {
    /// The series with this id, made if it was not seen lately.
    pub(super) fn get(&mut self, id: MetricId, make: impl FnOnce() -> Series) -> Arc<Series> {
        if let Some(series) = self.series.get(&id) {
            return Arc::clone(series);
        }
        let series = Arc::new(make());
        // Which of them come again nobody knows; those that do are soon here again.
        if self.bytes >= BYTES_MAX {
            *self = Self::default();
        }
        self.bytes = self.bytes.saturating_add(series_bytes(&series));
        self.series.insert(id, Arc::clone(&series));
        series
    }
}

#[cfg(test)]
mod tests {
    use storage::IdScheme;

    use super::*;

    fn series(number: usize) -> Series {
        Series::new(IdScheme::Sha256, "", "", format!("m{number}"), Vec::new())
    }

    #[test]
    fn a_series_that_was_seen_is_not_made_again_and_memory_is_bounded() {
        let mut known = KnownSeries::default();
        let first = known.get(series(0).id, || series(0));
        let again = known.get(first.id, || panic!("it is known"));
        assert!(Arc::ptr_eq(&first, &again));
        for number in 1..100_000 {
            known.get(series(number).id, || series(number));
            assert!(known.bytes < BYTES_MAX + 1000);
        }
        assert!(known.series.len() < 50_000, "{}", known.series.len());
    }
}
