//! `query`: what an embedded store holds, from a running persister or from its directory.

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use storage::{MeasurementQuery, Read as _, SeriesFilter};

use super::ask;
use super::running::{Running, TokenArgs};
use crate::config::Config;
use crate::exit;

/// Bars of a sparkline, lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  monasca-persister query\n  monasca-persister query cpu.utilization_perc\n  \
monasca-persister query --json mem.free_mb\n  \
monasca-persister query --data-dir demo-data"
)]
pub(crate) struct QueryArgs {
    /// Metric name; without one all series are listed.
    name: Option<String>,
    /// Ask a running persister.
    #[arg(long, default_value = "http://127.0.0.1:8091", value_name = "URL")]
    url: String,
    #[command(flatten)]
    token: TokenArgs,
    /// Read the store in the data directory of a persister that does not run.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<std::path::PathBuf>,
    /// Most measurements per series.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Where rows are read from.
enum Source {
    Running(Running),
    Directory(std::sync::Arc<storage::sled_store::SledStore>),
}

impl Source {
    fn series(&self, name: Option<&str>) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Running(running) => {
                let filter =
                    name.map(|name| format!("&name={}", ask::encoded(name))).unwrap_or_default();
                rows(running, &format!("/api/v1/query/series?limit=10000{filter}"))
            }
            Self::Directory(store) => {
                let filter =
                    SeriesFilter { name: name.map(str::to_owned), ..SeriesFilter::default() };
                values(store.series(&filter, 10_000)?)
            }
        }
    }

    fn measurements(&self, metric_id: &str, limit: usize) -> anyhow::Result<Vec<Value>> {
        match self {
            Self::Running(running) => rows(
                running,
                &format!(
                    "/api/v1/query/measurements?metric_id={metric_id}&limit={limit}&newest_first=true"
                ),
            ),
            Self::Directory(store) => {
                let metric_id =
                    storage::MetricId::from_hex(metric_id).context("metric id of the store")?;
                let query = MeasurementQuery {
                    metric_id,
                    from_ms: i64::MIN,
                    to_ms: i64::MAX,
                    limit,
                    newest_first: true,
                };
                values(store.measurements(&query)?)
            }
        }
    }
}

fn rows(running: &Running, path: &str) -> anyhow::Result<Vec<Value>> {
    let answer = running.get(path)?;
    let url = &running.url;
    anyhow::ensure!(answer.status == 200, "{url} answered {}: {}", answer.status, answer.body);
    serde_json::from_str(&answer.body).context("read the answer")
}

fn values<T: serde::Serialize>(rows: Vec<T>) -> anyhow::Result<Vec<Value>> {
    rows.iter().map(|row| serde_json::to_value(row).context("write row")).collect()
}

pub(super) fn query(args: &QueryArgs) -> anyhow::Result<u8> {
    let source = match &args.data_dir {
        Some(dir) => {
            anyhow::ensure!(
                dir.join("store").is_dir(),
                "{} holds no embedded store",
                dir.display()
            );
            let config = Config { data_dir: dir.clone(), ..Config::default() };
            let store = crate::store::open_sled(&config).context(
                "a running persister holds its store: ask it with --url instead of --data-dir",
            )?;
            Source::Directory(store)
        }
        None => Source::Running(Running::at(&args.url, &args.token)?),
    };
    let mut series = source.series(args.name.as_deref())?;
    series.sort_by_key(|one| (text(one, "name"), dimensions(one)));
    if args.json {
        for one in &mut series {
            let measurements = source.measurements(&text(one, "metric_id"), args.limit)?;
            if let Some(fields) = one.as_object_mut() {
                fields.insert("measurements".to_owned(), Value::Array(measurements));
            }
        }
        super::print_json(&series)?;
        return Ok(exit::OK);
    }
    if series.is_empty() {
        println!(
            "nothing stored{}",
            args.name.as_ref().map(|name| format!(" for {name}")).unwrap_or_default()
        );
        return Ok(exit::OK);
    }
    let width = series.iter().map(|one| text(one, "name").len()).max().unwrap_or(0);
    for one in &series {
        let mut measurements = source.measurements(&text(one, "metric_id"), args.limit)?;
        measurements.reverse();
        let numbers: Vec<f64> = measurements
            .iter()
            .filter_map(|row| row.get("value").and_then(Value::as_f64))
            .collect();
        let last = numbers.last().map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
        println!(
            "{:width$}  {last:>14}  {}  {}",
            text(one, "name"),
            sparkline(&numbers),
            dimensions(one)
        );
    }
    Ok(exit::OK)
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn dimensions(series: &Value) -> String {
    let pairs = series.get("dimensions").and_then(Value::as_array).cloned().unwrap_or_default();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|pair| format!("{}={}", text(pair, "name"), text(pair, "value")))
        .collect();
    pairs.join(" ")
}

/// Values as bars between the lowest and the highest of them.
fn sparkline(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = high - low;
    values
        .iter()
        .map(|value| {
            let level = if span > 0.0 { (value - low) / span * 7.0 } else { 0.0 };
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and 7"
            )]
            let index = level.round() as usize;
            BARS.get(index).copied().unwrap_or('█')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_spans_the_values_it_shows() {
        assert_eq!(sparkline(&[0.0, 7.0, 3.5]), "▁█▅");
        assert_eq!(sparkline(&[5.0, 5.0]), "▁▁");
        assert_eq!(sparkline(&[]), "");
    }
}
