//! The table, and the same for programs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Figures;

/// One line of the table: an engine doing one thing, once per round.
pub struct Line {
    pub shape: String,
    pub engine: String,
    pub figures: Vec<Figures>,
}

impl Line {
    /// Smallest, middle and largest of a figure.
    pub fn spread(&self, figure: impl Fn(&Figures) -> f64) -> [f64; 3] {
        let mut values: Vec<f64> = self.figures.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        [values[0], values[values.len() / 2], values[values.len() - 1]]
    }

    pub fn median(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        self.spread(figure)[1]
    }

    /// Middle of a figure that not every engine has.
    fn optional(&self, figure: impl Fn(&Figures) -> Option<f64>) -> Option<f64> {
        figure(&self.figures[0])?;
        Some(self.median(|figures| figure(figures).unwrap_or_default()))
    }

    fn print(&self) {
        let text = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let [min, median, max] = self.spread(|figures| figures.records_per_s);
        println!(
            "{:<18} {:<30} {median:>9.0} {:>22} {:>7.2} {:>7.2} {:>6.0} {:>6.0} {:>6} {:>6}",
            self.shape,
            self.engine,
            format!("({min:.0} .. {max:.0})"),
            self.median(|figures| figures.cpu_s_per_million),
            self.median(|figures| figures.server_cpu_s_per_million),
            self.median(|figures| figures.rss_mib),
            self.spread(|figures| figures.rss_mib_peak)[2],
            text(self.optional(|figures| figures.rows_per_request), 1),
            text(self.optional(|figures| figures.disk_bytes_per_payload_byte), 2),
        );
    }

    fn json(&self) -> Value {
        let [min, median, max] = self.spread(|figures| figures.records_per_s);
        json!({
            "shape": self.shape,
            "engine": self.engine,
            "records_per_s": {
                "median": median, "min": min, "max": max, "runs": self.figures.len(),
            },
            "cpu_s_per_million": self.median(|figures| figures.cpu_s_per_million),
            "server_cpu_s_per_million": self.median(|figures| figures.server_cpu_s_per_million),
            "rss_mib": self.median(|figures| figures.rss_mib),
            "rss_mib_peak": self.spread(|figures| figures.rss_mib_peak)[2],
            "rows_per_request": self.optional(|figures| figures.rows_per_request),
            "disk_bytes_per_payload_byte":
                self.optional(|figures| figures.disk_bytes_per_payload_byte),
        })
    }
}

/// Prints the table.
pub fn print(lines: &[Line]) {
    println!(
        "{:<18} {:<30} {:>9} {:>22} {:>7} {:>7} {:>6} {:>6} {:>6} {:>6}",
        "", "", "records/s", "(min .. max)", "CPU", "server", "MiB", "peak", "rows", "disk"
    );
    lines.iter().for_each(Line::print);
    println!(
        "CPU: seconds per million records, client's and server's. rows: per request. disk: bytes per payload byte."
    );
}

/// Writes `bench/NAME.json` in Cargo's target directory.
pub fn write(name: &str, lines: &[Line], targets: &[Value]) {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let file = target.join("bench").join(format!("{name}.json"));
    let rows: Vec<Value> = lines.iter().map(Line::json).collect();
    let text = serde_json::to_string_pretty(&json!({
        "name": name, "rows": rows, "targets": targets,
    }));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, text.unwrap()).unwrap();
    println!("written to {}", file.display());
}
