//! `config schema` and `config convert`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::config::convert::{Fate, convert, to_yaml};
use crate::{config, exit};

#[derive(Debug, Args)]
#[command(
    after_help = "The new configuration goes to standard output, what became of every old key to standard error. Exit \
codes: 0 done, 78 the file is neither of the two.\n\nExample:\n  monasca-persister config convert \
/etc/monasca/persister-config.yml > persister.yaml"
)]
pub(crate) struct ConvertArgs {
    /// The Java persister's YAML or the Python persister's INI.
    file: PathBuf,
    /// New configuration and report as one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) fn schema() -> anyhow::Result<u8> {
    super::print_json(&config::json_schema())?;
    Ok(exit::OK)
}

pub(super) fn run(args: &ConvertArgs) -> anyhow::Result<u8> {
    let path = args.file.display();
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("read {path}"))?;
    let converted = match convert(&text) {
        Ok(converted) => converted,
        Err(error) => {
            eprintln!("monasca-persister: {path}: {error}");
            return Ok(exit::CONFIGURATION);
        }
    };
    if args.json {
        let report = converted.report.iter().map(|line| {
            let (fate, detail) = match &line.fate {
                Fate::Taken(new) => ("taken", new.as_str()),
                Fate::Dropped(why) => ("dropped", *why),
                Fate::Yours(what) => ("yours", *what),
            };
            serde_json::json!({"key": line.key, "fate": fate, "detail": detail})
        });
        let report: Vec<_> = report.collect();
        super::print_json(&serde_json::json!({"config": converted.tree, "report": report}))?;
    } else {
        print!("{}", to_yaml(&converted.tree));
        for line in &converted.report {
            eprintln!("{line}");
        }
    }
    Ok(exit::OK)
}
