//! A store with the one property that matters: per key the highest write time stays. It confirms before it syncs, as
//! Cassandra does: when it loses power, what it confirmed last is gone.

use std::collections::BTreeMap;
use std::time::Duration;

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
    /// How often it has started again.
    pub life: i64,
    synced: Synced,
}

/// What it has after a loss of power.
#[derive(Debug, Default)]
struct Synced {
    at: Duration,
    rows: BTreeMap<(MetricId, i64), Cell>,
    definitions: BTreeMap<MetricId, String>,
}

/// How often it syncs.
const SYNC_PERIOD: Duration = Duration::from_secs(2);

impl Store {
    /// Whether the store would ever take these rows.
    pub fn refuses(write: &Write<'_>) -> bool {
        match write {
            Write::Measurements { series, .. } => series.tenant_id == "refused",
            Write::Runs(runs) => runs.iter().any(|run| run.series.tenant_id == "refused"),
            Write::Definitions(_) | Write::Alarms(_) => false,
        }
    }

    /// Time passes.
    pub fn sync_when_due(&mut self, now: Duration) {
        if now.saturating_sub(self.synced.at) >= SYNC_PERIOD {
            let (rows, definitions) = (self.rows.clone(), self.definitions.clone());
            self.synced = Synced { at: now, rows, definitions };
        }
    }

    /// It loses power, and is there again at once. Returns the rows that it lost.
    pub fn lose_power(&mut self) -> usize {
        let synced = &self.synced.rows;
        let lost = self.rows.iter().filter(|(key, cell)| synced.get(key) != Some(cell)).count();
        self.rows.clone_from(&self.synced.rows);
        self.definitions.clone_from(&self.synced.definitions);
        self.life += 1;
        lost
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
