//! The tables people read and the file programs read, from the same rows.

use std::fs;

use bench_wal::corpus::RECORD_BYTES;
use serde_json::{Value, json};

use crate::backlog::OpenRow;
use crate::engines::Role;
use crate::rows::{Row, best};
use crate::settings::Settings;
use crate::targets::Target;

/// The table of one shape.
pub fn print_shape(rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let floor_1 = best(rows, first.shape.name, |role| role == Role::Raw(1));
    println!(
        "\n{:<30} {:>8} {:>17} {:>6} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7}",
        first.shape.name,
        "k rec/s",
        "min..max",
        "spread",
        "floor",
        "MB/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "CPU s/M",
        "disk",
        "RSS MiB"
    );
    for row in rows {
        let rate = row.rate();
        let thousands = |rate: f64| format!("{:.1}", rate / 1e3);
        println!(
            "{:<30} {:>8} {:>17} {:>5.0}% {:>6} {:>7.1} {:>8.0} {:>8.0} {:>8.0} {:>8.3} {:>7} {:>7.1}",
            row.engine.name,
            thousands(rate.median),
            format!("{}..{}", thousands(rate.min), thousands(rate.max)),
            rate.spread() * 100.0,
            floor_1.map_or_else(String::new, |floor| format!("{:.2}", rate.median / floor)),
            megabytes_per_s(row),
            row.median(|round| round.p50_us),
            row.median(|round| round.p99_us),
            row.median(|round| round.p999_us),
            row.median(|round| round.cpu_s_per_million),
            row.disk_bytes_per_payload_byte()
                .map_or_else(|| "-".to_owned(), |bytes| format!("{bytes:.3}")),
            row.rss_mib_peak(),
        );
    }
}

/// The second table.
pub fn print_opened(rows: &[OpenRow]) {
    println!("\n{:<30} {:>10} {:>21} {:>10}", "open time, cold", "seconds", "min..max", "RSS MiB");
    for row in rows {
        let seconds = &row.open_s;
        println!(
            "{:<30} {:>10.4} {:>21} {:>10.1}",
            row.name(),
            seconds.median,
            format!("{:.4}..{:.4}", seconds.min, seconds.max),
            row.rss_mib_peak,
        );
    }
}

/// The promises.
pub fn print_targets(targets: &[Target]) {
    println!("\n{:<58} {:>8}   {:>12}", "target", "want", "got");
    for target in targets {
        println!("{}", target.line());
    }
}

/// The same for programs.
pub fn write(
    settings: &Settings,
    rocksdb: Option<&str>,
    rows: &[Row],
    opened: &[OpenRow],
    targets: &[Target],
    remarks: &[String],
) {
    let all: Vec<Value> =
        rows.iter().map(row_json).chain(opened.iter().map(OpenRow::json)).collect();
    let result = json!({
        "name": "wal",
        "settings": settings.json(rocksdb),
        "rows": all,
        "targets": targets.iter().map(Target::json).collect::<Vec<_>>(),
        "remarks": remarks,
    });
    fs::create_dir_all(settings.result.parent().unwrap()).unwrap();
    fs::write(&settings.result, serde_json::to_string_pretty(&result).unwrap() + "\n").unwrap();
    println!("\nwritten to {}", settings.result.display());
}

fn row_json(row: &Row) -> Value {
    json!({
        "shape": row.shape.name,
        "engine": row.engine.name,
        "records_per_s": row.rate().json(),
        "mb_per_s": megabytes_per_s(row),
        "commit_us": {
            "p50": row.median(|round| round.p50_us),
            "p99": row.median(|round| round.p99_us),
            "p999": row.median(|round| round.p999_us),
        },
        "cpu_s_per_million": row.median(|round| round.cpu_s_per_million),
        "disk_bytes_per_payload_byte": row.disk_bytes_per_payload_byte(),
        "rss_mib_peak": row.rss_mib_peak(),
    })
}

fn megabytes_per_s(row: &Row) -> f64 {
    row.rate().median * RECORD_BYTES as f64 / 1e6
}
