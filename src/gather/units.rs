//! Units of work for the store: rows that travel together, and the messages behind them.

use std::sync::Arc;

use storage::{AlarmTransition, Definition, Measurement, Run, Series, Write};

/// One message of a gather: its place behind the gather's first position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordRef {
    /// Distance from the gather's first position.
    pub index: u32,
    /// Index of the element in a message that holds several; 0 otherwise.
    pub element: u32,
}

/// The messages behind the rows of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// For each row the message it was made from.
    pub(super) rows: Vec<RecordRef>,
    /// A row's number, and a message with the same key that the row supersedes.
    superseded: Vec<(usize, RecordRef)>,
}

impl Records {
    /// All of them, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef> + '_ {
        self.rows.iter().copied().chain(self.superseded.iter().map(|(_, record)| *record))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len().saturating_add(self.superseded.len())
    }

    /// True for a definition: no message waits for it directly.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last row is made of `record` now, and stands for what it was made of before.
    pub(super) fn supersede(&mut self, record: RecordRef) {
        let row = self.rows.len().saturating_sub(1);
        if let Some(last) = self.rows.last_mut() {
            self.superseded.push((row, std::mem::replace(last, record)));
        }
    }

    pub(super) fn append(&mut self, mut other: Self) {
        let first = self.rows.len();
        self.rows.append(&mut other.rows);
        self.superseded.extend(
            other.superseded.into_iter().map(|(row, record)| (row.saturating_add(first), record)),
        );
    }

    /// Those of the rows before `middle`, and the others.
    fn split_at(&self, middle: usize) -> (Self, Self) {
        let (first, second) = halves(&self.rows, middle);
        let (before, behind): (Vec<_>, Vec<_>) =
            self.superseded.iter().copied().partition(|(row, _)| *row < middle);
        let behind = behind.into_iter().map(|(row, record)| (row.saturating_sub(middle), record));
        (
            Self { rows: first, superseded: before },
            Self { rows: second, superseded: behind.collect() },
        )
    }
}

/// Rows that travel to the store together, with the messages they stand for.
#[derive(Debug, Clone)]
pub enum Unit {
    /// Definitions of series: written before the measurements that wait for them.
    Definitions(Vec<Definition>),
    /// Measurements of one series, each time at most once.
    Measurements {
        /// The series.
        series: Arc<Series>,
        /// The rows.
        rows: Vec<Measurement>,
        /// The messages they stand for.
        records: Records,
    },
    /// A few measurements each of several series that the same replicas keep.
    Runs {
        /// The rows by series.
        runs: Vec<Run>,
        /// The messages they stand for, in the order of the rows.
        records: Records,
    },
    /// Alarm transitions.
    Alarms {
        /// The rows.
        rows: Vec<AlarmTransition>,
        /// The messages they stand for.
        records: Records,
    },
}

impl Unit {
    /// The rows as the store takes them.
    #[must_use]
    pub fn as_write(&self) -> Write<'_> {
        match self {
            Self::Definitions(definitions) => Write::Definitions(definitions),
            Self::Measurements { series, rows, .. } => Write::Measurements { series, rows },
            Self::Runs { runs, .. } => Write::Runs(runs),
            Self::Alarms { rows, .. } => Write::Alarms(rows),
        }
    }

    /// The messages behind its rows; none for definitions.
    pub fn records(&self) -> impl Iterator<Item = RecordRef> + '_ {
        match self {
            Self::Definitions(_) => None,
            Self::Measurements { records, .. }
            | Self::Runs { records, .. }
            | Self::Alarms { records, .. } => Some(records),
        }
        .into_iter()
        .flat_map(Records::iter)
    }

    /// Number of rows; a definition is one.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.as_write().len()
    }

    /// Bytes of memory that it takes, with what others note of it, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        /// A row with its place in lists: its messages twice, and what each of them waits for.
        const ROW_BYTES: usize = size_of::<Measurement>() + 2 * size_of::<RecordRef>() + 8;
        /// A unit without its rows, here and in the lists of those who know it.
        const UNIT_BYTES: usize = 384;
        let meta =
            |rows: &[Measurement]| -> usize { rows.iter().map(|row| row.value_meta.len()).sum() };
        let texts: usize = match self {
            Self::Definitions(definitions) => {
                definitions.len().saturating_mul(size_of::<Definition>())
            }
            Self::Measurements { rows, .. } => meta(rows),
            Self::Runs { runs, .. } => {
                runs.iter().map(|run| meta(&run.rows).saturating_add(size_of::<Run>())).sum()
            }
            Self::Alarms { rows, .. } => rows
                .iter()
                .map(|row| {
                    row.metric
                        .len()
                        .saturating_add(row.sub_alarms.len())
                        .saturating_add(row.reason.len())
                        .saturating_add(size_of::<AlarmTransition>())
                })
                .sum(),
        };
        texts.saturating_add(self.rows().saturating_mul(ROW_BYTES)).saturating_add(UNIT_BYTES)
    }

    /// Two halves of a unit with more than one row; `None` for a single row. The first half has half of the rows, rounded
    /// down.
    #[must_use]
    pub fn split(&self) -> Option<(Self, Self)> {
        let middle = self.rows() / 2;
        if middle == 0 {
            return None;
        }
        Some(match self {
            Self::Definitions(definitions) => {
                let (first, second) = halves(definitions, middle);
                (Self::Definitions(first), Self::Definitions(second))
            }
            Self::Measurements { series, rows, records } => {
                let (first, second) = halves(rows, middle);
                let (first_records, second_records) = records.split_at(middle);
                let half = |rows, records| Self::Measurements {
                    series: Arc::clone(series),
                    rows,
                    records,
                };
                (half(first, first_records), half(second, second_records))
            }
            Self::Runs { runs, records } => {
                let (mut first, mut second, mut left) = (Vec::new(), Vec::new(), middle);
                for run in runs {
                    let (before, behind) = halves(&run.rows, left.min(run.rows.len()));
                    left = left.saturating_sub(before.len());
                    for (half, rows) in [(&mut first, before), (&mut second, behind)] {
                        if !rows.is_empty() {
                            half.push(Run { series: Arc::clone(&run.series), rows });
                        }
                    }
                }
                let (first_records, second_records) = records.split_at(middle);
                (
                    Self::Runs { runs: first, records: first_records },
                    Self::Runs { runs: second, records: second_records },
                )
            }
            Self::Alarms { rows, records } => {
                let (first, second) = halves(rows, middle);
                let (first_records, second_records) = records.split_at(middle);
                (
                    Self::Alarms { rows: first, records: first_records },
                    Self::Alarms { rows: second, records: second_records },
                )
            }
        })
    }
}

fn halves<T: Clone>(of: &[T], middle: usize) -> (Vec<T>, Vec<T>) {
    let (first, second) = of.split_at(middle);
    (first.to_vec(), second.to_vec())
}

/// A unit and what must succeed before it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The work.
    pub unit: Unit,
    /// The definition it waits for: an index into [`super::Gathered::units`], and the definition's number in that unit.
    pub after: Option<(usize, usize)>,
    /// The replicas that it goes to; see [`storage::Store::replicas`].
    pub replicas: Option<u64>,
}
