//! `size`: how large a log absorbs how long an outage, from what records really take.

use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::Args;
use serde_json::{Value, json};

use super::running::{Running, TokenArgs};
use crate::exit;
use crate::rates::float;

/// Consumption pauses when this part of the log is full.
const USABLE: f64 = wal::WalStatus::HIGH_MARK;
/// Without a persister to ask: a metric of 400 bytes, compressed to three tenths, with what the log adds.
const RECORD_BYTES: f64 = 140.0;

#[derive(Debug, Args)]
#[command(
    after_help = "A record's bytes are those on disk, compressed: measured in a running persister with --url, else \
--record-bytes, else 140 (a metric of 400 bytes).\n\nExamples:\n  monasca-persister size --rate 5000 --hours 72\n  \
monasca-persister size --rate 5000 --bytes 20GiB\n  monasca-persister size --rate 800 --hours 24 --record-bytes 95 --json"
)]
pub(crate) struct SizeArgs {
    /// Messages per second; with --url the present rate unless said.
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,
    /// How long an outage is to be absorbed: says how many bytes that takes.
    #[arg(long, conflicts_with = "bytes", required_unless_present = "bytes")]
    hours: Option<f64>,
    /// How large the log may be: says for how long that is enough.
    #[arg(long)]
    bytes: Option<ByteSize>,
    /// Bytes of a record on disk.
    #[arg(long, conflicts_with = "url")]
    record_bytes: Option<f64>,
    /// Measure in the persister that answers here.
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    token: TokenArgs,
    /// Which pipeline of it.
    #[arg(long, default_value = "metrics")]
    pipeline: String,
    /// JSON instead of a sentence.
    #[arg(long)]
    json: bool,
}

pub(super) fn size(args: &SizeArgs) -> anyhow::Result<u8> {
    let mut rate = args.rate;
    let mut record_bytes = args.record_bytes;
    let mut source = if record_bytes.is_some() { "given" } else { "assumed" };
    if let Some(url) = &args.url {
        let answer = Running::at(url, &args.token)?.get("/api/v1/overview")?;
        anyhow::ensure!(answer.status == 200, "{url} answered {}: {}", answer.status, answer.body);
        let overview: Value = serde_json::from_str(&answer.body).context("read the answer")?;
        let of = |part: &str, key: &str| {
            overview
                .pointer(&format!("{part}/pipelines/{}/{key}", args.pipeline))
                .and_then(Value::as_f64)
        };
        let in_log =
            of("/backlog", "appended").unwrap_or(0.0) - of("/backlog", "reclaimed").unwrap_or(0.0);
        if in_log >= 100.0 {
            record_bytes = of("/status", "log/used_bytes").map(|used| used / in_log);
            source = "measured";
        }
        rate = rate.or_else(|| of("/backlog", "in_per_s"));
    }
    let record_bytes = record_bytes.unwrap_or(RECORD_BYTES);
    let Some(rate) = rate.filter(|rate| *rate > 0.0) else {
        eprintln!("monasca-persister: how many messages per second? --rate");
        return Ok(exit::USAGE);
    };
    anyhow::ensure!(record_bytes > 0.0, "a record takes some bytes");
    let (seconds, bytes) = match (args.hours, args.bytes) {
        (Some(hours), _) => (hours * 3600.0, hours * 3600.0 * rate * record_bytes / USABLE),
        (None, bytes) => {
            let bytes = float(bytes.unwrap_or_default().as_u64());
            (bytes * USABLE / (rate * record_bytes), bytes)
        }
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size, rounded")]
    let shown = ByteSize(bytes.ceil() as u64);
    if args.json {
        super::print_json(&json!({
            "rate_per_s": rate, "record_bytes": record_bytes, "record_bytes_are": source,
            "outage_s": seconds, "log_bytes": shown.as_u64(),
        }))?;
    } else {
        let outage = Duration::try_from_secs_f64(seconds.floor()).context("that long")?;
        println!(
            "{shown} of log absorb an outage of {} at {rate:.1} messages/s of {record_bytes:.0} bytes on disk ({source}); \
             consumption pauses at {:.0} %",
            humantime::format_duration(outage),
            USABLE * 100.0
        );
    }
    Ok(exit::OK)
}
