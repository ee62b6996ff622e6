//! A store with the one property that matters: per key the highest write time stays.

use std::collections::BTreeMap;

use storage::{Measurement, MetricId, Write};

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
        match write {
            Write::Measurements { series, .. } => series.tenant_id == "refused",
            Write::Runs(runs) => runs.iter().any(|run| run.series.tenant_id == "refused"),
            Write::Definitions(_) | Write::Alarms(_) => false,
        }
    }

    pub fn apply(&mut self, write: &Write<'_>) {
        match write {
            Write::Definitions(definitions) => {
                for definition in *definitions {
                    self.definitions.insert(definition.series.id, definition.series.name.clone());
                }
            }
            Write::Measurements { series, rows } => self.write(series.id, rows),
            Write::Runs(runs) => runs.iter().for_each(|run| self.write(run.series.id, &run.rows)),
            Write::Alarms(_) => unreachable!("the simulation sends metrics"),
        }
    }

    fn write(&mut self, id: MetricId, rows: &[Measurement]) {
        for row in rows {
            self.writes += 1;
            let new = Cell { value: row.value, write_time_us: row.stamp.write_time_us };
            let cell = self.rows.entry((id, row.time_ms)).or_insert_with(|| new.clone());
            if new.write_time_us > cell.write_time_us {
                *cell = new;
            }
        }
    }
}
