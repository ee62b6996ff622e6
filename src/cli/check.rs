//! `check-config`, also of what it connects to, and `config print`.

use anyhow::Context as _;
use clap::Args;
use storage::cassandra::inspection;
use storage::{Finding, Grade};

use super::ConfigFile;
use crate::config::{Config, ShownConfig, StoreKind, redacted};
use crate::exit;
use crate::kafka;
use crate::store::cassandra_config;

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Also connect to Kafka and Cassandra, and say what is missing there: topics, tables, rights. Changes nothing.
    #[arg(long)]
    connect: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  monasca-persister config print\n  monasca-persister config print --origins"
)]
pub(crate) struct PrintArgs {
    #[command(flatten)]
    file: ConfigFile,
    /// Each value with where it comes from (default, file, environment), and whether a reload changes it.
    #[arg(long)]
    origins: bool,
}

pub(super) fn check(args: &CheckArgs) -> anyhow::Result<u8> {
    let loaded = args.file.load()?;
    match &loaded.file {
        Some(path) => println!("{} can be used", path.display()),
        None => println!("no file given; the defaults can be used"),
    }
    for variable in &loaded.variables {
        println!("overridden by {variable}");
    }
    if args.connect { connect(&loaded.config) } else { Ok(exit::OK) }
}

/// Says line by line what is found.
fn connect(config: &Config) -> anyhow::Result<u8> {
    let mut all = kafka::inspection::inspect(config)?;
    say("kafka", &all);
    if config.store.kind == StoreKind::Cassandra {
        let section = &config.store.cassandra;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start async runtime")?;
        let found = runtime.block_on(inspection::inspect(
            &cassandra_config(section)?,
            &section.replication,
            config.metric_id_scheme,
        ));
        say("cassandra", &found);
        all.extend(found);
    }
    Ok(code(&all))
}

fn say(service: &str, findings: &[Finding]) {
    for finding in findings {
        let grade = match finding.grade {
            Grade::Fine => "ok",
            Grade::Unchecked => "not checked",
            Grade::Away => "no answer",
            Grade::Wrong => "WRONG",
            Grade::Forbidden => "FORBIDDEN",
        };
        println!("{grade:<12} {service}: {}", finding.what);
        if let Some(remedy) = &finding.remedy {
            println!("{:<12} {remedy}", "  ->");
        }
    }
}

/// What only a person repairs comes before what passes.
fn code(findings: &[Finding]) -> u8 {
    let has = |grade| findings.iter().any(|finding| finding.grade == grade);
    if has(Grade::Wrong) {
        exit::CONFIGURATION
    } else if has(Grade::Forbidden) {
        exit::PERMISSION
    } else if has(Grade::Away) {
        exit::UNAVAILABLE
    } else {
        exit::OK
    }
}

pub(super) fn print(args: &PrintArgs) -> anyhow::Result<u8> {
    let loaded = args.file.load()?;
    if args.origins {
        super::print_json(&ShownConfig::of(&loaded))?;
    } else {
        let tree = serde_json::to_value(&loaded.config).context("show the configuration")?;
        super::print_json(&redacted(tree))?;
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_worst_finding() {
        let finding = |grade| Finding::new(grade, "", "");
        for (grades, expected) in [
            (vec![Grade::Fine, Grade::Unchecked], exit::OK),
            (vec![Grade::Fine, Grade::Away], exit::UNAVAILABLE),
            (vec![Grade::Away, Grade::Forbidden], exit::PERMISSION),
            (vec![Grade::Forbidden, Grade::Wrong, Grade::Away], exit::CONFIGURATION),
        ] {
            let findings: Vec<Finding> = grades.into_iter().map(finding).collect();
            assert_eq!(code(&findings), expected, "{findings:?}");
        }
    }
}
