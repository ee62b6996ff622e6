//! `dead-letters list`: messages that can never be stored, from a running persister or from its directory.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use wal::{DiskFs, NoCarry, Position, Wal, WalConfig};

use super::{ConfigFile, ask};
use crate::dead_letters::{DeadLetter, DeadLetters};

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// One line of JSON per dead letter, repetitions collapsed.
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Ask a running persister.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<String>,
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn dead_letters(command: &DeadLettersCommand) -> anyhow::Result<ExitCode> {
    let DeadLettersCommand::List(args) = command;
    match &args.url {
        Some(url) => list_running(url)?,
        None => list_directory(&args.file)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list_running(url: &str) -> anyhow::Result<()> {
    let mut next = 0_u64;
    loop {
        let answer = ask::get(url, &format!("/api/v1/dead-letters?from={next}&limit=1000"))?;
        anyhow::ensure!(answer.status == 200, "{}", answer.body);
        let page: serde_json::Value =
            serde_json::from_str(&answer.body).context("read dead letters")?;
        let letters = page
            .get("dead_letters")
            .and_then(serde_json::Value::as_array)
            .cloned()
            .unwrap_or_default();
        for letter in &letters {
            println!("{letter}");
        }
        let after = page.get("next").and_then(serde_json::Value::as_u64).unwrap_or(next);
        if letters.is_empty() || after == next {
            return Ok(());
        }
        next = after;
    }
}

/// Reads the directory of a persister that does not run.
fn list_directory(file: &ConfigFile) -> anyhow::Result<()> {
    let config = file.load()?.config;
    let dir = crate::service::dead_letters_dir(&config);
    anyhow::ensure!(dir.is_dir(), "{} is no directory: nothing was ever kept there", dir.display());
    let fs = DiskFs::open(&dir).with_context(|| format!("open {}", dir.display()))?;
    let (wal, _report) = Wal::open(fs, WalConfig::default(), Box::new(NoCarry), Duration::ZERO)
        .with_context(|| {
            format!("open {} (a running persister holds it: use --url)", dir.display())
        })?;
    let letters = DeadLetters::new(wal);
    let mut seen = BTreeSet::new();
    let mut lines: Vec<DeadLetter> = Vec::new();
    let mut next = Position::ZERO;
    loop {
        let after = letters.read(next, 1000, |_, letter| {
            if seen.insert(letter.key()) {
                lines.push(letter);
            }
        })?;
        for letter in lines.drain(..) {
            println!("{}", serde_json::to_string(&letter).context("write dead letter")?);
        }
        if after == next {
            return Ok(());
        }
        next = after;
    }
}
