//! `dead-letters list`: messages that can never be stored, from a running persister or from its directory.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use wal::{DiskFs, Scanned};

use super::{ConfigFile, ask};
use crate::dead_letters::DeadLetter;
use crate::exit;

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

pub(super) fn dead_letters(command: &DeadLettersCommand) -> anyhow::Result<u8> {
    let DeadLettersCommand::List(args) = command;
    match &args.url {
        Some(url) => list_running(url)?,
        None => list_directory(&args.file)?,
    }
    Ok(exit::OK)
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

/// Reads the directory, and only reads; a persister may be running on it.
fn list_directory(file: &ConfigFile) -> anyhow::Result<()> {
    let config = file.load()?.config;
    let dir = crate::service::dead_letters_dir(&config);
    anyhow::ensure!(dir.is_dir(), "{} is no directory: nothing was ever kept there", dir.display());
    let fs = DiskFs::open_existing(&dir).with_context(|| format!("open {}", dir.display()))?;
    let mut seen = BTreeSet::new();
    let mut failed = None;
    wal::scan(&fs, |scanned| {
        let Scanned::Record { position, bytes } = scanned else { return ControlFlow::Continue(()) };
        let line = DeadLetter::decode(bytes)
            .with_context(|| format!("read dead letter at position {position}"))
            .and_then(|letter| {
                Ok(seen
                    .insert(letter.key())
                    .then_some(serde_json::to_string(&letter).context("write dead letter")?))
            });
        match line {
            Ok(Some(line)) => println!("{line}"),
            Ok(None) => {}
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })
    .with_context(|| format!("read {}", dir.display()))?;
    failed.map_or(Ok(()), Err)
}
