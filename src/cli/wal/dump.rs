//! `wal dump`: records, one line each.

use std::io::{BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wal::{Loss, Position, Salvaged};

use super::Log;
use super::offsets::describe_hole;
use super::record::Shown;
use crate::exit;
use crate::offset_trail::Hole;

#[derive(Debug, Args)]
#[command(
    after_help = "What is missing is said on standard error; exit 74 when something confirmed is missing in what was \
asked for.\n\nExamples:\n  monasca-persister wal dump /var/lib/monasca-persister/wal/metrics --from 1000 --limit 5\n  \
monasca-persister wal dump /var/lib/monasca-persister/wal/alarms --from 7 --limit 1 --raw > message.json"
)]
pub(crate) struct DumpArgs {
    /// A log's directory: wal/metrics, wal/alarms or dead-letters in the data directory.
    directory: PathBuf,
    /// First position to print; without it, the oldest that is there, delivered or not.
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    from: u64,
    /// Most records to print.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object per line; key and payload as text where they are UTF-8, else in hexadecimal, which
    /// `key_encoding` and `payload_encoding` say.
    #[arg(long)]
    json: bool,
    /// The messages' bytes alone, a newline between two of them.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

pub(super) fn dump(args: &DumpArgs) -> anyhow::Result<u8> {
    let log = Log::open(&args.directory)?;
    let dead_letters = log.holds_dead_letters();
    let from = Position::new(args.from);
    let limit = args.limit.unwrap_or(u64::MAX);
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut printed = 0_u64;
    let mut lost = false;
    let mut failed = None;
    wal::salvage(&log.fs, |salvaged| {
        match salvaged {
            _ if printed >= limit => return ControlFlow::Break(()),
            Salvaged::Frame(frame) => {
                for (position, record) in frame.records().filter(|(at, _)| *at >= from) {
                    if printed >= limit {
                        return ControlFlow::Break(());
                    }
                    let shown = Shown::of(position, record, dead_letters);
                    let written = if args.raw {
                        let between: &[u8] = if printed > 0 { b"\n" } else { b"" };
                        out.write_all(between).and_then(|()| out.write_all(shown.raw()))
                    } else if args.json {
                        writeln!(out, "{}", shown.json())
                    } else {
                        writeln!(out, "{}", shown.line())
                    };
                    if let Err(error) = written {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                    printed = printed.saturating_add(1);
                }
            }
            Salvaged::Missing { range, loss } if range.end > from && loss != Loss::Delivered => {
                lost |= loss == Loss::Acknowledged;
                let hole = Hole { positions: range, loss, ranges: Vec::new() };
                eprintln!("missing: {}", describe_hole(&hole));
            }
            Salvaged::Carry { .. } | Salvaged::Annotation(_) | Salvaged::Missing { .. } => {}
        }
        ControlFlow::Continue(())
    })
    .with_context(|| format!("read {}", log.path.display()))?;
    failed.map_or(Ok(()), Err).and_then(|()| out.flush()).context("write records")?;
    Ok(if lost { exit::DISK } else { exit::OK })
}
