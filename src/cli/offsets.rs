//! `offsets`: what each instance has taken from Kafka and not delivered, and what to do about one that will not.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{ConfigFile, print_json};
use crate::clock::wall_ms;
use crate::config::{Config, PipelineConfig, PipelineSpec};
use crate::exit;
use crate::kafka::ledger;
use crate::keeper::Written;
use crate::orders::{Order, Orders};

#[derive(Debug, Subcommand)]
pub(crate) enum OffsetsCommand {
    /// Every instance's ledger as Kafka has it: delivered, taken, and what is owed in between.
    #[command(after_help = "Example:\n  monasca-persister offsets show --config persister.yaml")]
    Show(ShowArgs),
    /// Fetch what another instance owes, because it will not come back.
    #[command(
        after_help = "The persister with this data directory does it within seconds, or at its next start. What the \
other one had taken and not delivered is taken again from Kafka, which still needs to have it. If it comes back after \
all, rows are written twice with the same content.\n\nExample:\n  monasca-persister offsets rewind --instance edge-7"
    )]
    Rewind(RewindArgs),
    /// Take note of messages that are lost and of gaps: the status stops warning about them.
    #[command(
        after_help = "Example:\n  monasca-persister offsets acknowledge --config persister.yaml"
    )]
    Acknowledge(ConfigFile),
    /// Go on with partitions that stopped at a gap, with what Kafka has.
    #[command(
        after_help = "The status names the gaps (KAFKA_RECREATED, KAFKA_TRUNCATED, KAFKA_GAP). A topic that was created \
again is consumed from its beginning.\n\nExample:\n  monasca-persister offsets accept --config persister.yaml"
    )]
    Accept(ConfigFile),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RewindArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// The instance that will not come back, as `offsets show` names it.
    #[arg(long, value_name = "NAME")]
    instance: String,
}

pub(super) fn offsets(command: &OffsetsCommand) -> anyhow::Result<u8> {
    match command {
        OffsetsCommand::Show(args) => show(args),
        OffsetsCommand::Rewind(args) => rewind(args),
        OffsetsCommand::Acknowledge(file) => order(
            file,
            &Order::Acknowledge,
            "the status stops warning about what is lost until now",
        ),
        OffsetsCommand::Accept(file) => order(
            file,
            &Order::Accept,
            "partitions that stopped at a gap go on within seconds, or when the persister is started",
        ),
    }
}

fn pipelines(config: &Config) -> impl Iterator<Item = PipelineSpec<'_>> {
    config.pipelines().filter(|spec| spec.pipeline.enabled)
}

type Ledgers = BTreeMap<String, BTreeMap<i32, Written>>;

fn ledgers(config: &Config, pipeline: &PipelineConfig) -> anyhow::Result<Ledgers> {
    let names = ledger::instances(&config.kafka, &pipeline.group_id)
        .with_context(|| format!("list groups at {}", config.kafka.bootstrap_servers.join(",")))?;
    let mut ledgers = Ledgers::new();
    for name in names {
        let ledger = ledger::read_of(&config.kafka, &pipeline.topic, &pipeline.group_id, &name)
            .with_context(|| format!("read the ledger of {name} for topic {}", pipeline.topic))?;
        if !ledger.is_empty() {
            ledgers.insert(name, ledger);
        }
    }
    Ok(ledgers)
}

fn owed(written: &Written) -> i64 {
    written.entry.next.saturating_sub(written.delivered).max(0)
}

fn show(args: &ShowArgs) -> anyhow::Result<u8> {
    let config = args.file.load()?.config;
    let mut all = BTreeMap::new();
    for spec in pipelines(&config) {
        all.insert(spec.name, ledgers(&config, spec.pipeline)?);
    }
    if args.json {
        let listed = |(pipeline, ledgers): (&&str, &Ledgers)| {
            let instances = ledgers.iter().map(|(name, ledger)| {
                let partitions = ledger.iter().map(|(partition, written)| {
                    (
                        partition.to_string(),
                        json!({
                            "delivered": written.delivered,
                            "owed": owed(written),
                            "ledger": written.entry,
                        }),
                    )
                });
                (name.clone(), partitions.collect::<serde_json::Value>())
            });
            ((*pipeline).to_owned(), instances.collect::<serde_json::Value>())
        };
        print_json(&all.iter().map(listed).collect::<serde_json::Value>())?;
        return Ok(exit::OK);
    }
    println!(
        "{:<8} {:<32} {:>9} {:>14} {:>14} {:>12}  last heard of",
        "pipeline", "instance", "partition", "delivered", "taken", "owed"
    );
    for (pipeline, ledgers) in &all {
        for (name, ledger) in ledgers {
            for (partition, written) in ledger {
                let age_s = wall_ms().saturating_sub(written.entry.at_ms).max(0) / 1000;
                let age = Duration::from_secs(u64::try_from(age_s).unwrap_or(0));
                let taken_over = match written.entry.taken_over_by.as_str() {
                    "" => String::new(),
                    by => format!(", taken over by {by}"),
                };
                println!(
                    "{pipeline:<8} {name:<32} {partition:>9} {:>14} {:>14} {:>12}  {} ago{taken_over}",
                    written.delivered,
                    written.entry.next,
                    owed(written),
                    humantime::format_duration(age),
                );
            }
        }
    }
    Ok(exit::OK)
}

fn rewind(args: &RewindArgs) -> anyhow::Result<u8> {
    let config = args.file.load()?.config;
    let mut known = Vec::new();
    let mut total = 0;
    for spec in pipelines(&config) {
        let ledgers = ledgers(&config, spec.pipeline)?;
        let Some(ledger) = ledgers.get(&args.instance) else {
            known.extend(ledgers.into_keys());
            continue;
        };
        let owed: i64 = ledger.values().map(owed).sum();
        total += 1;
        Orders::of(&config.data_dir, spec.name)
            .give(&Order::Rewind { instance: args.instance.clone() })
            .with_context(|| format!("leave an order in {}", config.data_dir.display()))?;
        println!("{}: {} owes {owed} messages: ordered", spec.name, args.instance);
    }
    if total == 0 {
        known.sort();
        known.dedup();
        eprintln!(
            "monasca-persister: no ledger of an instance `{}`; there are: {}",
            args.instance,
            known.join(", ")
        );
        return Ok(exit::USAGE);
    }
    println!(
        "the persister with data directory {} fetches them within seconds, or when it is started",
        config.data_dir.display()
    );
    Ok(exit::OK)
}

fn order(file: &ConfigFile, order: &Order, effect: &str) -> anyhow::Result<u8> {
    let config = file.load()?.config;
    for spec in pipelines(&config) {
        Orders::of(&config.data_dir, spec.name)
            .give(order)
            .with_context(|| format!("leave an order in {}", config.data_dir.display()))?;
    }
    println!("ordered: {effect}");
    Ok(exit::OK)
}
