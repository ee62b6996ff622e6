//! `wal`: looks at a log's directory, and gets out of a damaged one what is whole.
//!
//! All of it reads without the log's lock and changes nothing, so it works beside a running persister; `salvage`
//! writes to a new directory only.

mod dump;
mod info;
mod offsets;
mod progress;
pub(super) mod record;
mod salvage;
mod verify;

use std::path::{Path, PathBuf};

use ::wal::{DiskFs, Flaw};
use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::exit;

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// What a log is and holds: watermarks, segments, Kafka offsets, and how it ended.
    #[command(
        after_help = "Example:\n  monasca-persister wal info /var/lib/monasca-persister/wal/metrics"
    )]
    Info(LogArgs),
    /// Read every byte and check every checksum: exit 0 when all confirmed bytes are whole, 74 when not.
    #[command(
        after_help = "Says every damaged place, the exact positions that are missing, and the Kafka offsets that \
cover them.\n\nExample:\n  monasca-persister wal verify /var/lib/monasca-persister/wal/metrics"
    )]
    Verify(LogArgs),
    /// Print records, one line each.
    Dump(dump::DumpArgs),
    /// Copy every whole record of a damaged log into a new one that the persister can run on.
    Salvage(salvage::SalvageArgs),
}

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// A log's directory: wal/metrics, wal/alarms or dead-letters in the data directory.
    directory: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn wal(command: &WalCommand) -> anyhow::Result<u8> {
    let outcome = match command {
        WalCommand::Info(args) => info::info(args),
        WalCommand::Verify(args) => verify::verify(args),
        WalCommand::Dump(args) => dump::dump(args),
        WalCommand::Salvage(args) => salvage::salvage(args),
    };
    match outcome {
        Err(error) if error.is::<NotALog>() => {
            eprintln!("monasca-persister: {error}");
            Ok(exit::USAGE)
        }
        Err(error) if is_broken_pipe(&error) => Ok(exit::OK),
        outcome => outcome,
    }
}

/// Whoever read the output has seen enough.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The arguments name no directory this command can work on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotALog(String);

/// An existing log directory.
struct Log {
    fs: DiskFs,
    path: PathBuf,
}

impl Log {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if !path.is_dir() {
            return Err(NotALog(format!("{shown} is no directory")).into());
        }
        if !is_log(path)? {
            let inside = logs_below(path)?;
            let hint = if inside.is_empty() {
                "it has neither a segment-*.wal nor a CURSOR".to_owned()
            } else {
                let inside: Vec<String> =
                    inside.iter().map(|log| format!("\n  {}", log.display())).collect();
                format!("name one of the logs in it:{}", inside.concat())
            };
            return Err(NotALog(format!("{shown} is not a log's directory: {hint}")).into());
        }
        let fs = DiskFs::open_existing(path).with_context(|| format!("open {shown}"))?;
        Ok(Self { fs, path: path.to_owned() })
    }

    /// Whether its records are dead letters. They and messages have different records, and the directory's name is
    /// what tells them apart.
    fn holds_dead_letters(&self) -> bool {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.file_name().is_some_and(|name| name == "dead-letters")
    }
}

fn is_log(path: &Path) -> anyhow::Result<bool> {
    let failed = || format!("list {}", path.display());
    for entry in path.read_dir().with_context(failed)? {
        let name = entry.with_context(failed)?.file_name();
        let name = name.to_string_lossy();
        if name == ::wal::CURSOR_NAME || ::wal::parse_segment_name(&name).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The log directories where a data directory has them.
fn logs_below(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for inner in ["wal/metrics", "wal/alarms", "dead-letters", "metrics", "alarms"] {
        let candidate = path.join(inner);
        if candidate.is_dir() && is_log(&candidate)? {
            found.push(candidate);
        }
    }
    Ok(found)
}

/// A damaged place for people.
fn place(flaw: &Flaw) -> String {
    let Flaw { file, byte_at, reason, acknowledged, .. } = flaw;
    let weight = if *acknowledged { "" } else { " (never confirmed, or no record with it)" };
    format!("{file} at byte {byte_at}: {reason}{weight}")
}

/// A damaged place for programs.
fn flaw_json(flaw: &Flaw) -> serde_json::Value {
    serde_json::json!({
        "file": flaw.file,
        "segment": flaw.segment.get(),
        "byte": flaw.byte_at,
        "reason": flaw.reason.to_string(),
        "acknowledged": flaw.acknowledged,
    })
}
