//! A store with the two properties that matter: per cell the highest write time stays; and it confirms before it syncs, as
//! Cassandra does: when it loses power, what it confirmed last is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use monasca_persister::gather::Unit;
use storage::{Measurement, MetricId, StoreError, Verdict, Write};

use crate::dice::Dice;
use crate::mutants::Bug;

/// A stored value and its write time.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell<T> {
    pub value: T,
    pub write_time_us: i64,
}

impl<T> Cell<T> {
    fn write(&mut self, value: T, write_time_us: i64) {
        if write_time_us > self.write_time_us {
            *self = Self { value, write_time_us };
        }
    }
}

/// Two columns, each with a write time of its own: one that is not written keeps what it has.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub value: Cell<f64>,
    pub meta: Cell<String>,
}

/// What it does with requests while it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// It sheds most of them.
    Overloaded,
    /// One of its two sets of replicas is away.
    HalfAway,
    /// Somebody changed a table: all measurements are refused, and no answer says that it is not their fault.
    RefusesAll,
}

/// Which of its sets of replicas keeps a series.
pub fn replicas(series: &MetricId) -> u64 {
    u64::from(series.as_bytes()[0] % 2)
}

/// Whether something of it goes to the second set of replicas.
fn is_for_the_second(write: &Write<'_>) -> bool {
    let is_second = |id: &MetricId| replicas(id) == 1;
    match write {
        Write::Definitions(definitions) => {
            definitions.iter().any(|definition| is_second(&definition.series.id))
        }
        Write::Measurements { series, .. } => is_second(&series.id),
        Write::Runs(runs) => runs.iter().any(|run| is_second(&run.series.id)),
        Write::Alarms(_) => false,
    }
}

/// The code of an answer about all rows.
pub const TABLE_CHANGED: &str = "DB_TABLE_CHANGED";

/// The store. It survives every crash of the persister.
#[derive(Debug, Default)]
pub struct Store {
    pub rows: BTreeMap<(MetricId, i64), Row>,
    /// Names of described series by id.
    pub definitions: BTreeMap<MetricId, String>,
    /// Rows written, repetitions included.
    pub writes: u64,
    /// How often it has started again.
    pub life: i64,
    pub is_up: bool,
    pub mood: Mood,
    bug: Option<Bug>,
    synced: Synced,
    /// Requests that were timed out, and may be carried out any time later.
    late: Vec<Arc<Unit>>,
}

/// What it has after a loss of power.
#[derive(Debug, Default)]
struct Synced {
    at: Duration,
    rows: BTreeMap<(MetricId, i64), Row>,
    definitions: BTreeMap<MetricId, String>,
}

/// How often it syncs.
const SYNC_PERIOD: Duration = Duration::from_secs(2);

impl Store {
    /// One that is empty, and there.
    pub fn new(bug: Bug) -> Self {
        Self { is_up: true, bug: Some(bug), ..Self::default() }
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
        let lost = self.rows.iter().filter(|(key, row)| synced.get(key) != Some(row)).count();
        self.rows.clone_from(&self.synced.rows);
        self.definitions.clone_from(&self.synced.definitions);
        self.late.clear();
        self.life += 1;
        lost
    }

    /// A request of which nobody heard any more is carried out after all.
    pub fn apply_late(&mut self, dice: &mut Dice) {
        if !self.late.is_empty() {
            let unit = self.late.swap_remove(dice.index(self.late.len()));
            self.apply(&unit.as_write());
        }
    }

    /// Carries a request out, or not, and answers truthfully or by a time-out after which nobody knows.
    pub fn answer(&mut self, unit: &Arc<Unit>, dice: &mut Dice) -> Result<(), StoreError> {
        let write = unit.as_write();
        if !self.is_up {
            return Err(match dice.below(3) {
                0 => StoreError::new(Verdict::Retry, "DB_UNREACHABLE", "down"),
                1 => StoreError::new(Verdict::Retry, "DB_UNAVAILABLE", "no replica"),
                _ => StoreError::new(Verdict::Wait, "DB_SCHEMA", "no table"),
            });
        }
        let is_measured = matches!(write, Write::Measurements { .. } | Write::Runs(_));
        if self.mood == Mood::RefusesAll && is_measured {
            return Err(StoreError::new(Verdict::Reject, TABLE_CHANGED, "a column").unsure());
        }
        if refuses(&write) {
            return Err(StoreError::new(Verdict::Reject, "DB_INVALID_ROW", "refused"));
        }
        if self.mood == Mood::HalfAway && is_for_the_second(&write) {
            return Err(StoreError::new(Verdict::Retry, "DB_UNAVAILABLE", "no replica"));
        }
        let is_shed = self.mood == Mood::Overloaded && !dice.one_in(4);
        if is_shed && dice.one_in(2) {
            return Err(StoreError::new(Verdict::Retry, "DB_OVERLOADED", "shed"));
        }
        if is_shed || dice.one_in(12) {
            match dice.below(4) {
                0 | 1 => self.apply(&write),
                2 => self.late.push(Arc::clone(unit)),
                _ => {}
            }
            return Err(StoreError::new(Verdict::Retry, "DB_TIMEOUT", "unknown outcome"));
        }
        if write.len() > 3 && dice.one_in(12) {
            return Err(StoreError::new(Verdict::Split, "DB_BATCH_TOO_LARGE", "too large"));
        }
        self.apply(&write);
        Ok(())
    }

    fn apply(&mut self, write: &Write<'_>) {
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
        for Measurement { time_ms, value, value_meta, stamp } in rows {
            self.writes += 1;
            let row = self.rows.entry((id, *time_ms)).or_insert_with(|| Row {
                value: Cell { value: 0.0, write_time_us: i64::MIN },
                meta: Cell { value: String::new(), write_time_us: i64::MIN },
            });
            row.value.write(*value, stamp.write_time_us);
            if !(self.bug == Some(Bug::LeaveMetaOut) && value_meta.is_empty()) {
                row.meta.write(value_meta.clone(), stamp.write_time_us);
            }
        }
    }
}

/// Whether the store would ever take these rows.
fn refuses(write: &Write<'_>) -> bool {
    match write {
        Write::Measurements { series, .. } => series.tenant_id == "refused",
        Write::Runs(runs) => runs.iter().any(|run| run.series.tenant_id == "refused"),
        Write::Definitions(_) | Write::Alarms(_) => false,
    }
}
