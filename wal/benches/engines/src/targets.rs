//! What the log promises to reach, as ratios of figures from the same run. A target that is missed,
//! or that this run did not measure, stays in the list as not reached.

use bench_wal::shape::{SHAPES, Shape};
use serde_json::{Value, json};

use crate::backlog::OpenRow;
use crate::engines::{LZ4, PLAIN, Role};
use crate::rows::{Row, best};

/// The backlog that the last targets are about.
const BACKLOG_GB: f64 = 10.0;

/// Which side of the bound is the right one.
#[derive(Clone, Copy, Debug)]
enum Want {
    AtLeast(f64),
    AtMost(f64),
}

/// One promise.
#[derive(Clone, Debug)]
pub struct Target {
    name: String,
    want: Want,
    got: Option<f64>,
}

impl Target {
    fn at_least(name: impl Into<String>, bound: f64, got: Option<f64>) -> Self {
        Self { name: name.into(), want: Want::AtLeast(bound), got }
    }

    fn at_most(name: impl Into<String>, bound: f64, got: Option<f64>) -> Self {
        Self { name: name.into(), want: Want::AtMost(bound), got }
    }

    /// Whether it is kept.
    pub fn ok(&self) -> bool {
        self.got.is_some_and(|got| match self.want {
            Want::AtLeast(bound) => got >= bound,
            Want::AtMost(bound) => got <= bound,
        })
    }

    fn want(&self) -> String {
        match self.want {
            Want::AtLeast(bound) => format!(">= {bound}"),
            Want::AtMost(bound) => format!("<= {bound}"),
        }
    }

    /// For the table.
    pub fn line(&self) -> String {
        let got = self.got.map_or_else(|| "not measured".to_owned(), |got| format!("{got:.3}"));
        let verdict = if self.ok() { "ok" } else { "MISSED" };
        format!("{:<58} {:>8}   {got:>12}   {verdict}", self.name, self.want())
    }

    /// For the result.
    pub fn json(&self) -> Value {
        json!({"name": self.name, "want": self.want(), "got": self.got, "ok": self.ok()})
    }
}

/// All of them.
pub fn all(rows: &[Row], opened: &[OpenRow]) -> Vec<Target> {
    let [one, hundred, thousand, large, threads, pipelined] = &SHAPES;
    let to_raw = |shape: &Shape, in_flight: usize| {
        Some(
            rate(rows, shape, PLAIN)?
                / best(rows, shape.name, |role| role == Role::Raw(in_flight))?,
        )
    };
    let to_others = |shape: &Shape| {
        Some(rate(rows, shape, PLAIN)? / best(rows, shape.name, |role| role == Role::Other)?)
    };
    let mut targets = vec![
        Target::at_least("1 x 1: records/s, of floor 1", 0.9, to_raw(one, 1)),
        Target::at_least("1 x 100: records/s, of the best other", 1.05, to_others(hundred)),
        Target::at_least("1 x 1,000: records/s, of the best other", 1.5, to_others(thousand)),
        Target::at_least("1 x 2,560: records/s, of the best other", 1.5, to_others(large)),
        Target::at_least("8 x 100: records/s, of the best other", 1.4, to_others(threads)),
        Target::at_most("1 x 1,000: CPU per record, of the thriftiest other", 0.5, {
            thriftiest_other(rows, thousand)
                .zip(row(rows, thousand, PLAIN))
                .map(|(other, ours)| cpu(ours) / other)
        }),
        Target::at_least("1 x 1,000, pipelined: records/s, of floor 2", 0.85, to_raw(pipelined, 2)),
    ];
    for (engine, bound) in [(PLAIN, 1.05), (LZ4, 0.35)] {
        targets.push(Target::at_most(
            format!("{engine}: disk bytes per payload byte, batches from 100 on"),
            bound,
            most_disk_bytes(rows, engine),
        ));
    }
    let of_backlog = |figure: fn(&OpenRow) -> f64| {
        opened.iter().filter(|row| row.gigabytes == BACKLOG_GB).map(figure).max_by(f64::total_cmp)
    };
    let seconds = of_backlog(|row| row.open_s.median);
    targets.push(Target::at_most("open with a backlog of 10 GB: seconds", 0.2, seconds));
    let mib = of_backlog(|row| row.rss_mib_peak);
    targets.push(Target::at_most("open with a backlog of 10 GB: MiB of memory", 16.0, mib));
    targets
}

fn row<'a>(rows: &'a [Row], shape: &Shape, engine: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.shape == shape && row.engine.name == engine)
}

fn rate(rows: &[Row], shape: &Shape, engine: &str) -> Option<f64> {
    row(rows, shape, engine).map(|row| row.rate().median)
}

fn cpu(row: &Row) -> f64 {
    row.median(|round| round.cpu_s_per_million)
}

fn thriftiest_other(rows: &[Row], shape: &Shape) -> Option<f64> {
    rows.iter()
        .filter(|row| row.shape == shape && row.engine.role == Role::Other)
        .map(cpu)
        .min_by(f64::total_cmp)
}

/// The worst of the shapes; `None` if one of them was not measured.
fn most_disk_bytes(rows: &[Row], engine: &str) -> Option<f64> {
    SHAPES
        .iter()
        .filter(|shape| shape.batch >= 100)
        .map(|shape| row(rows, shape, engine)?.disk_bytes_per_payload_byte())
        .try_fold(0.0, |most: f64, bytes| Some(most.max(bytes?)))
}
