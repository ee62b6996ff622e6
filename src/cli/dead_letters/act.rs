//! `retry` and `drop`: by ourselves while nobody holds the directory, else by an order to the persister that does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use wal::{DiskFs, Position, WalError};

use super::Which;
use crate::cli::{ConfigFile, print_json};
use crate::clock::wall_ms;
use crate::config::Config;
use crate::dead_letters::{
    DeadLetters, LetterFilter, LetterOrder, LetterOrders, Outcome, RetryTarget, Verb,
    read_directory,
};
use crate::{dead_letters, exit, pipeline, service};

/// How long a running persister has for an order before we say that it is still at it.
const ORDER_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    act: ActArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DropArgs {
    #[command(flatten)]
    act: ActArgs,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct ActArgs {
    /// Positions, as `list` names them.
    #[arg(value_name = "POSITION")]
    positions: Vec<u64>,
    #[command(flatten)]
    which: Which,
    /// All there are; without it some condition is needed.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    file: ConfigFile,
    /// The outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// What the conditions mean right now.
struct Meant {
    filter: LetterFilter,
    end: Position,
    letters: u64,
    by_code: BTreeMap<String, u64>,
    topics: BTreeSet<String>,
}

impl Meant {
    fn by_code(&self) -> String {
        let counts = self.by_code.iter().map(|(code, count)| format!("{count} {code}"));
        counts.collect::<Vec<_>>().join(", ")
    }
}

pub(super) fn retry(args: &RetryArgs) -> anyhow::Result<u8> {
    let config = args.act.file.load()?.config;
    match meant(&args.act, &config)? {
        Some(meant) => act(Verb::Retry, &args.act, &config, &meant),
        None => Ok(exit::USAGE),
    }
}

pub(super) fn drop_letters(args: &DropArgs) -> anyhow::Result<u8> {
    let config = args.act.file.load()?.config;
    let Some(meant) = meant(&args.act, &config)? else { return Ok(exit::USAGE) };
    if !args.yes && meant.letters > 0 {
        eprintln!("{} dead letters: {}", meant.letters, meant.by_code());
        if !std::io::stdin().is_terminal() {
            eprintln!("monasca-persister: nobody is there to ask: --yes drops them for good");
            return Ok(exit::USAGE);
        }
        eprint!("drop them for good? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            eprintln!("nothing was dropped");
            return Ok(exit::OK);
        }
    }
    act(Verb::Drop, &args.act, &config, &meant)
}

/// `None`: the arguments do not say which.
fn meant(args: &ActArgs, config: &Config) -> anyhow::Result<Option<Meant>> {
    let filter = args.which.filter(&args.positions);
    if filter.is_everything() != args.all {
        let why = if args.all { "--all goes without conditions" } else { "which? --all for all" };
        eprintln!("monasca-persister: {why}; see `dead-letters list`");
        return Ok(None);
    }
    let dir = service::dead_letters_dir(config);
    anyhow::ensure!(dir.is_dir(), "{} is no directory: nothing was ever kept there", dir.display());
    let (mut letters, mut by_code, mut topics) = (0_u64, BTreeMap::new(), BTreeSet::new());
    let found = read_directory(&dir, |position, letter| {
        if filter.matches(position, &letter) {
            letters = letters.saturating_add(1);
            let count: &mut u64 = by_code.entry(letter.code).or_default();
            *count = count.saturating_add(1);
            topics.insert(letter.topic);
        }
        ControlFlow::Continue(())
    })?;
    Ok(Some(Meant { filter, end: found.end, letters, by_code, topics }))
}

fn act(verb: Verb, args: &ActArgs, config: &Config, meant: &Meant) -> anyhow::Result<u8> {
    let outcome = if meant.letters == 0 {
        Outcome::default()
    } else {
        let started = Instant::now();
        match service::open_dead_letters(config, started) {
            Ok(letters) => by_ourselves(verb, config, meant, &letters, started)?,
            Err(error) if is_locked(&error) => match by_order(verb, config, meant)? {
                Some(outcome) => outcome,
                None => {
                    eprintln!(
                        "monasca-persister: the persister was told, and has not done it after {} s; it does it as soon \
                         as it can, also after a restart",
                        ORDER_WAIT.as_secs()
                    );
                    return Ok(exit::TEMPORARY);
                }
            },
            Err(error) => return Err(error),
        }
    };
    if args.json {
        print_json(&outcome)?;
    } else {
        let done = match verb {
            Verb::Drop => "dropped",
            Verb::Retry => "on their way to be delivered anew",
        };
        println!("{} dead letters {done}, repetitions included", outcome.removed);
        for (why, count) in &outcome.left {
            println!("{count} stay: {why}");
        }
        if let Some(why) = &outcome.stopped {
            println!("stopped early: {why}");
        }
    }
    Ok(if outcome.stopped.is_some() { exit::TEMPORARY } else { exit::OK })
}

fn is_locked(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| matches!(cause.downcast_ref::<WalError>(), Some(WalError::Locked { .. })))
}

fn by_order(verb: Verb, config: &Config, meant: &Meant) -> anyhow::Result<Option<Outcome>> {
    let orders = LetterOrders::of(&config.data_dir);
    let failed = || format!("leave an order in {}", config.data_dir.display());
    let order = LetterOrder { verb, filter: meant.filter.clone(), end: meant.end.get() };
    let name = orders.give(&order).with_context(failed)?;
    let deadline = Instant::now() + ORDER_WAIT;
    while Instant::now() < deadline {
        if let Some(outcome) = orders.outcome(&name).with_context(failed)? {
            return Ok(Some(outcome));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(None)
}

fn by_ourselves(
    verb: Verb,
    config: &Config,
    meant: &Meant,
    letters: &DeadLetters<DiskFs>,
    started: Instant,
) -> anyhow::Result<Outcome> {
    let dir = service::dead_letters_dir(config);
    let fs = DiskFs::open_existing(&dir).with_context(|| format!("open {}", dir.display()))?;
    letters.recall(&fs).with_context(|| format!("read notes in {}", dir.display()))?;
    let Meant { filter, end, .. } = meant;
    let outcome = match verb {
        Verb::Drop => {
            let removed = letters.drop_letters(filter, *end, started.elapsed())?;
            Outcome { removed, ..Outcome::default() }
        }
        Verb::Retry => {
            let mut targets = Vec::new();
            let enabled = config.pipelines().filter(|spec| spec.pipeline.enabled);
            for spec in enabled.filter(|spec| meant.topics.contains(&spec.pipeline.topic)) {
                let wal = pipeline::open_log(&spec, config, started)?;
                targets.push(RetryTarget { topic: spec.pipeline.topic.clone(), wal });
            }
            let now = started.elapsed();
            let outcome = dead_letters::retry(
                letters,
                &targets,
                filter,
                *end,
                config.retention,
                now,
                wall_ms(),
            )?;
            for target in targets {
                target.wal.close(started.elapsed()).context("close log")?;
            }
            outcome
        }
    };
    letters.wal().close(started.elapsed()).context("close dead letters")?;
    Ok(outcome)
}
