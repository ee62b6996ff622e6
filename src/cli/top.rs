//! `top`: a running persister at a glance, live.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::Args;
use serde_json::Value;

use super::ask::AskArgs;
use super::wal::record::escaped;
use crate::exit;

#[derive(Debug, Args)]
#[command(
    after_help = "Shows state, log fill, rates, forecasts, breaker and what is the matter, once a second until Ctrl-C; \
once when nobody looks at a terminal. Exit codes: 0, or 69 without an answer.\n\nExamples:\n  monasca-persister top\n  \
monasca-persister top --once --json"
)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Once, and end.
    #[arg(long)]
    once: bool,
    /// What the persister says, as JSON.
    #[arg(long, requires = "once")]
    json: bool,
}

pub(super) fn top(args: &TopArgs) -> anyhow::Result<u8> {
    let running = args.ask.running()?;
    let url = &running.url;
    if args.once || !std::io::stdout().is_terminal() {
        let answer = running.get("/api/v1/overview")?;
        if answer.status != 200 {
            eprintln!("monasca-persister: {url} answered {}: {}", answer.status, answer.body);
            return Ok(exit::UNAVAILABLE);
        }
        let overview: Value = serde_json::from_str(&answer.body).context("read the answer")?;
        if args.json {
            super::print_json(&overview)?;
        } else {
            print!("{}", screen(&overview));
        }
        return Ok(exit::OK);
    }
    loop {
        let text = match running.get("/api/v1/overview") {
            Ok(answer) if answer.status == 200 => {
                screen(&serde_json::from_str(&answer.body).context("read the answer")?)
            }
            Ok(answer) => format!("{url} answered {}\n", answer.status),
            Err(error) => format!("no contact: {error:#}\n"),
        };
        let mut out = std::io::stdout().lock();
        // Home, then each line over the old one and the rest of it gone: without flicker.
        let lines = text.replace('\n', "\x1b[K\n");
        write!(out, "\x1b[H{lines}\x1b[J").and_then(|()| out.flush()).context("write")?;
        drop(out);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
}

fn span(value: Option<f64>) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |seconds| {
            let whole = Duration::try_from_secs_f64(seconds.round()).unwrap_or(Duration::MAX);
            let text = humantime::format_duration(whole).to_string();
            // The two largest units say enough.
            text.split(' ').take(2).collect::<Vec<_>>().join(" ")
        },
    )
}

/// Everything on one screen.
fn screen(overview: &Value) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _infallible = writeln!(
        out,
        "{}  {}  up {}  dead letters {}",
        text(overview, "/status/state").to_uppercase(),
        escaped(text(overview, "/status/instance")),
        span(overview.pointer("/status/uptime_s").and_then(Value::as_f64)),
        number(overview, "/backlog/dead_letters"),
    );
    let _infallible = writeln!(
        out,
        "\n{:<12} {:>7} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  breaker",
        "pipeline",
        "fill",
        "waiting",
        "on disk",
        "in/s",
        "out/s",
        "oldest",
        "full in",
        "drained in"
    );
    let pipelines = overview.pointer("/backlog/pipelines").and_then(Value::as_object);
    for (name, waits) in pipelines.into_iter().flatten() {
        let does = overview.pointer(&format!("/status/pipelines/{name}")).unwrap_or(&Value::Null);
        let seconds = |key: &str| span(waits.get(key).and_then(Value::as_f64));
        let bytes = waits.get("bytes").and_then(Value::as_u64).unwrap_or(0);
        let _infallible = writeln!(
            out,
            "{:<12} {:>6.1}% {:>12} {:>10} {:>10.1} {:>10.1} {:>10} {:>10} {:>10}  {}",
            escaped(name),
            number(waits, "/fill") * 100.0,
            number(waits, "/records"),
            ByteSize(bytes).to_string(),
            number(waits, "/in_per_s"),
            number(waits, "/out_per_s"),
            seconds("oldest_waits_s"),
            seconds("seconds_to_full"),
            seconds("seconds_to_drained"),
            text(does, "/breaker"),
        );
        let partitions = waits.get("partitions").and_then(Value::as_object);
        for (id, partition) in partitions.into_iter().flatten() {
            let offset = |key: &str| {
                partition
                    .get(key)
                    .and_then(Value::as_i64)
                    .map_or_else(|| "-".to_owned(), |n| n.to_string())
            };
            let _infallible = writeln!(
                out,
                "  {id:>4}  taken {} durable {} committed {} delivered {} lag {}{}",
                offset("consumed"),
                offset("durable"),
                offset("committed"),
                offset("delivered"),
                offset("lag"),
                partition
                    .get("paused_why")
                    .and_then(Value::as_str)
                    .map(|why| format!("  paused: {why}"))
                    .unwrap_or_default(),
            );
        }
    }
    let reasons = overview.pointer("/status/reasons").and_then(Value::as_array);
    for reason in reasons.into_iter().flatten() {
        let _infallible = writeln!(
            out,
            "\n{}  {}\n    {}",
            text(reason, "/code"),
            escaped(text(reason, "/message")),
            escaped(text(reason, "/hint"))
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_screen_has_the_state_the_numbers_and_what_is_the_matter() {
        let overview = json!({
            "status": {"state": "degraded", "instance": "edge-7", "uptime_s": 90,
                "reasons": [{"code": "WAL_FULL", "message": "m\u{1b}[2J", "hint": "h"}],
                "pipelines": {"metrics": {"breaker": "open"}}},
            "backlog": {"dead_letters": 3, "pipelines": {"metrics": {"fill": 0.815, "records": 12,
                "bytes": 4096, "in_per_s": 1.0, "out_per_s": 0.0, "seconds_to_full": 7300.0,
                "seconds_to_drained": null, "partitions": {"0": {"consumed": 9, "paused_why": "log full"}}}}},
        });
        let screen = screen(&overview);
        for part in [
            "DEGRADED  edge-7",
            "81.5%",
            "2h 1m",
            "open",
            "taken 9 durable -",
            "paused: log full",
            "WAL_FULL",
        ] {
            assert!(screen.contains(part), "{part} in\n{screen}");
        }
        assert!(!screen.contains('\u{1b}'));
    }
}
