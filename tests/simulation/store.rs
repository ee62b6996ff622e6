//! A store with the one property that matters: per key the highest write time stays.

use std::collections::BTreeMap;

use storage::{MetricId, Write};

/// A stored value and its write time.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    pub value: f64,
    pub write_time_us: i64,
}

/// The store. It survives every crash of the persister.
#[derive(Debug, Default)]
pub struct Store {
    pub rows: BTreeMap<(MetricId, i64), Cell>,
    /// Names of described series by id.
    pub definitions: BTreeMap<MetricId, String>,
    /// Rows written, repetitions included.
    pub writes: u64,
}

impl Store {
    /// Whether the store would ever take these rows.
    pub fn refuses(write: &Write<'_>) -> bool {
        matches!(write, Write::Measurements { series, .. } if series.tenant_id == "refused")
    }

    pub fn apply(&mut self, write: &Write<'_>) {
        match write {
            Write::Definition(definition) => {
                self.definitions.insert(definition.series.id, definition.series.name.clone());
            }
            Write::Measurements { series, rows } => {
                for row in *rows {
                    self.writes += 1;
                    let new = Cell { value: row.value, write_time_us: row.stamp.write_time_us };
                    let cell =
                        self.rows.entry((series.id, row.time_ms)).or_insert_with(|| new.clone());
                    if new.write_time_us > cell.write_time_us {
                        *cell = new;
                    }
                }
            }
            Write::Alarms(_) => unreachable!("the simulation sends metrics"),
        }
    }
}
