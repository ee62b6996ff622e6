//! `dead-letters`: messages that can never be stored; looks at them, saves them, has them tried again, drops them.
//!
//! Reading works beside a running persister, from its directory or over HTTP. `retry` and `drop` do the work themselves
//! while nobody holds the directory, and leave an order for the persister while it runs.

mod act;
mod source;
mod view;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{ConfigFile, running::TokenArgs, wal::is_broken_pipe};
use crate::clock::wall_ms;
use crate::dead_letters::{Bytes, LetterFilter};
use crate::exit;
use source::Source;

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// Which there are, oldest first, repetitions collapsed.
    #[command(
        after_help = "The first column is the position: the letter's name for show, retry and drop.\n\nExample:\n  \
monasca-persister dead-letters list --code MESSAGE_TOO_LARGE --limit 20"
    )]
    List(ListArgs),
    /// One of them, whole.
    #[command(
        after_help = "Example:\n  monasca-persister dead-letters show 17\n  monasca-persister dead-letters show 17 --raw \
> message.json"
    )]
    Show(ShowArgs),
    /// Save them to a file, one line of JSON each, with all bytes (base64 beside the text).
    #[command(
        after_help = "Example:\n  monasca-persister dead-letters export --to letters.jsonl --topic metrics"
    )]
    Export(ExportArgs),
    /// Have their messages delivered anew, after the cause was mended.
    #[command(
        after_help = "The messages go to the log of their pipeline with their offsets and times, and are durable there \
before the dead letters go. One that fails again becomes a dead letter again. Run it as the user that the persister runs \
as.\n\nExample:\n  monasca-persister dead-letters retry --code MESSAGE_TOO_LARGE --config persister.yaml"
    )]
    Retry(act::RetryArgs),
    /// Remove them for good.
    #[command(
        after_help = "Run it as the user that the persister runs as; `export` saves them first.\n\nExample:\n  \
monasca-persister dead-letters drop 17 18 --yes\n  monasca-persister dead-letters drop --older-than 30d"
    )]
    Drop(act::DropArgs),
}

/// Whom to ask.
#[derive(Debug, Args)]
pub(crate) struct From {
    /// Ask a running persister instead of reading its directory.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    file: ConfigFile,
}

/// Which letters; all conditions must hold.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Reason code; may be given several times.
    #[arg(long, value_name = "CODE")]
    code: Vec<String>,
    /// Topic.
    #[arg(long)]
    topic: Option<String>,
    /// Partition.
    #[arg(long)]
    partition: Option<i32>,
    /// One offset, or FROM..TO without TO; either end may be left out.
    #[arg(long, value_name = "OFFSET", value_parser = offsets)]
    offset: Option<(Option<i64>, Option<i64>)>,
    /// A dead letter for longer than this, for example 7d.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
}

fn offsets(text: &str) -> Result<(Option<i64>, Option<i64>), String> {
    let number = |text: &str| {
        text.parse::<i64>().map_err(|_| format!("`{text}` is neither an offset nor FROM..TO"))
    };
    let end = |text: &str| if text.is_empty() { Ok(None) } else { number(text).map(Some) };
    match text.split_once("..") {
        Some((from, to)) => Ok((end(from)?, end(to)?)),
        None => {
            let offset = number(text)?;
            Ok((Some(offset), Some(offset.saturating_add(1))))
        }
    }
}

impl Which {
    fn filter(&self, positions: &[u64]) -> LetterFilter {
        let (offset_from, offset_to) = self.offset.unwrap_or_default();
        LetterFilter {
            codes: self.code.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            offset_from,
            offset_to,
            positions: positions.to_vec(),
            since_before_ms: self.older_than.map(|age| {
                wall_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
            }),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    which: Which,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One line of JSON each.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Its position, as `list` names it.
    position: u64,
    #[command(flatten)]
    from: From,
    /// JSON, with base64 beside the text.
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The message's bytes and nothing else.
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A new file; `-` for standard output.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    which: Which,
}

pub(super) fn dead_letters(command: &DeadLettersCommand) -> anyhow::Result<u8> {
    let outcome = match command {
        DeadLettersCommand::List(args) => list(args),
        DeadLettersCommand::Show(args) => show(args),
        DeadLettersCommand::Export(args) => export(args),
        DeadLettersCommand::Retry(args) => act::retry(args),
        DeadLettersCommand::Drop(args) => act::drop_letters(args),
    };
    match outcome {
        Err(error) if is_broken_pipe(&error) => Ok(exit::OK),
        outcome => outcome,
    }
}

fn list(args: &ListArgs) -> anyhow::Result<u8> {
    let mut out = std::io::stdout().lock();
    let mut listed = 0_u64;
    let limit = args.limit.unwrap_or(u64::MAX);
    if limit == 0 {
        return Ok(exit::OK);
    }
    let filter = args.which.filter(&[]);
    Source::of(&args.from)?.each(&filter, Bytes::Readable, |letter| {
        let written = if args.json {
            writeln!(out, "{letter}")
        } else {
            if listed == 0 {
                writeln!(out, "{}", view::HEADING)?;
            }
            writeln!(out, "{}", view::line(letter))
        };
        written.context("print dead letters")?;
        listed = listed.saturating_add(1);
        Ok(listed < limit)
    })?;
    if listed == 0 && !args.json {
        writeln!(out, "no dead letters").context("print dead letters")?;
    }
    Ok(exit::OK)
}

fn show(args: &ShowArgs) -> anyhow::Result<u8> {
    let mut out = std::io::stdout().lock();
    let Some(letter) = Source::of(&args.from)?.one(args.position)? else {
        eprintln!(
            "monasca-persister: no dead letter at position {}: see `dead-letters list`",
            args.position
        );
        return Ok(exit::USAGE);
    };
    let written = if args.raw {
        out.write_all(&view::bytes(&letter)?)
    } else if args.json {
        let text = serde_json::to_string_pretty(&letter).context("write JSON")?;
        writeln!(out, "{text}")
    } else {
        writeln!(out, "{}", view::whole(&letter))
    };
    written.context("print a dead letter")?;
    Ok(exit::OK)
}

fn export(args: &ExportArgs) -> anyhow::Result<u8> {
    let shown = args.to.display();
    let source = Source::of(&args.from)?;
    let to_stdout = args.to.as_os_str() == "-";
    let mut file = None;
    let mut out: Box<dyn std::io::Write> = if to_stdout {
        Box::new(std::io::stdout().lock())
    } else {
        // Never written over.
        let new = std::fs::File::create_new(&args.to).with_context(|| format!("make {shown}"))?;
        file = Some(new.try_clone().with_context(|| format!("make {shown}"))?);
        Box::new(std::io::BufWriter::new(new))
    };
    let mut exported = 0_u64;
    source.each(&args.which.filter(&[]), Bytes::Lossless, |letter: &Value| {
        writeln!(out, "{letter}").with_context(|| format!("write {shown}"))?;
        exported = exported.saturating_add(1);
        Ok(true)
    })?;
    out.flush().with_context(|| format!("write {shown}"))?;
    if let Some(file) = file {
        // Somebody may drop them next.
        file.sync_all().with_context(|| format!("write {shown}"))?;
        println!("{exported} dead letters in {shown}");
    }
    Ok(exit::OK)
}
