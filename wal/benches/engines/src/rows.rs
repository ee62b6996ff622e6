//! The first table: every engine in every shape, in rounds that are interleaved, so that whatever
//! else changes on the machine meets all of them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bench_wal::round::Measured;
use bench_wal::shape::{SHAPES, Shape};
use serde_json::{Value, json};

use crate::children;
use crate::engines::{ENGINES, Engine, ROCKSDB, Role};
use crate::settings::Settings;

/// What several rounds gave.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// In the order of the rounds.
    pub runs: Vec<f64>,
}

impl Summary {
    /// `None` if there is nothing to summarise.
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let median = (sorted[(sorted.len() - 1) / 2] + sorted[upper]) / 2.0;
        Some(Self { median, min, max, runs })
    }

    /// From the least to the most, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.max - self.min) / self.median
    }

    /// For the result.
    pub fn json(&self) -> Value {
        let Self { median, min, max, runs } = self;
        json!({"median": median, "min": min, "max": max, "spread": self.spread(), "runs": runs})
    }
}

/// One engine in one shape.
#[derive(Clone, Debug)]
pub struct Row {
    /// The load.
    pub shape: &'static Shape,
    /// What carried it.
    pub engine: Engine,
    /// One or more rounds.
    pub rounds: Vec<Measured>,
}

impl Row {
    /// Durable records per second.
    pub fn rate(&self) -> Summary {
        Summary::of(self.rounds.iter().map(|round| round.records_per_s).collect()).unwrap()
    }

    /// Of any figure that every round has.
    pub fn median(&self, figure: impl Fn(&Measured) -> f64) -> f64 {
        Summary::of(self.rounds.iter().map(figure).collect()).unwrap().median
    }

    /// `None` where the device's bytes are not counted.
    pub fn disk_bytes_per_payload_byte(&self) -> Option<f64> {
        let rounds = self.rounds.iter().filter_map(|round| round.disk_bytes_per_payload_byte);
        Some(Summary::of(rounds.collect())?.median)
    }

    /// The most of all rounds.
    pub fn rss_mib_peak(&self) -> f64 {
        self.rounds.iter().map(|round| round.rss_mib_peak).fold(0.0, f64::max)
    }
}

/// All rounds of all shapes. What an engine could not do goes to `remarks`, in words.
pub fn measure(
    settings: &Settings,
    has_rocksdb: bool,
    remarks: &mut Vec<String>,
    mut finished: impl FnMut(&[Row]),
) -> Vec<Row> {
    let mut all = Vec::new();
    for shape in &SHAPES {
        let mut rows: Vec<Row> = ENGINES
            .iter()
            .filter(|engine| engine.takes(shape) && (has_rocksdb || engine.name != ROCKSDB))
            .map(|engine| Row { shape, engine: *engine, rounds: Vec::new() })
            .collect();
        for round in 0..settings.rounds {
            // Everyone has other neighbours in time in every round.
            rows.rotate_left(usize::from(round > 0));
            for row in &mut rows {
                match one_round(settings, shape, &row.engine) {
                    Ok(measured) => row.rounds.push(measured),
                    Err(problem) => remarks.push(format!(
                        "{}, {}, round {}: {problem}",
                        shape.name,
                        row.engine.name,
                        round + 1
                    )),
                }
            }
        }
        rows.retain(|row| !row.rounds.is_empty());
        rows.sort_by_key(|row| ENGINES.iter().position(|engine| engine.name == row.engine.name));
        finished(&rows);
        all.extend(rows);
    }
    all
}

fn one_round(settings: &Settings, shape: &Shape, engine: &Engine) -> Result<Measured, String> {
    let dir = settings.dir.join("round");
    fs::create_dir(&dir).unwrap();
    let seconds = settings.seconds.to_string();
    // Warm-up, preparing of files and a slow disk included.
    let time = Duration::from_secs_f64(settings.seconds * 10.0 + 120.0);
    let path = dir.to_str().unwrap();
    let measured = if engine.name == ROCKSDB {
        let arguments = [shape.name, engine.name, path, &seconds];
        children::ask(&children::rocksdb_program(), &arguments, time)
    } else {
        let arguments = ["round", shape.name, engine.name, path, &seconds];
        children::ask(&children::this_program(), &arguments, time)
    };
    fs::remove_dir_all(&dir).unwrap();
    settle(&settings.dir);
    measured
}

/// Lets the file system finish what the last child left, so that the next one does not pay for it.
pub fn settle(dir: &Path) {
    rustix::fs::syncfs(fs::File::open(dir).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
}

/// The best of some rows of one shape.
pub fn best(rows: &[Row], shape: &str, is_one: impl Fn(Role) -> bool) -> Option<f64> {
    rows.iter()
        .filter(|row| row.shape.name == shape && is_one(row.engine.role))
        .map(|row| row.rate().median)
        .max_by(f64::total_cmp)
}
