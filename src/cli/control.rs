//! `control`: orders to a running persister over HTTP.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ask::AskArgs;
use crate::control::Stage;
use crate::exit;

#[derive(Debug, Subcommand)]
pub(crate) enum ControlCommand {
    /// Pause consumption, delivery or both, until `resume`; a restart does not end it.
    Pause(StageArgs),
    /// Go on.
    Resume(StageArgs),
    /// Take nothing more from Kafka and deliver what waits, until `resume`.
    Drain(PipelineArgs),
    /// Note durably what is delivered, and give back the space that the hold-back allows.
    Checkpoint(PipelineArgs),
    /// Take note of gaps and of what is lost, so that the status forgets them.
    Acknowledge(PipelineArgs),
    /// Go on with partitions that stopped at a gap.
    Accept(PipelineArgs),
    /// Change what is logged, until the next start.
    LogLevel(LevelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {
    /// Only this pipeline; all unless said.
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// Only this stage; both unless said.
    #[arg(long, value_enum)]
    stage: Option<Stage>,
    #[command(flatten)]
    which: PipelineArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LevelArgs {
    /// As logging.level: info, or info,monasca_persister=debug.
    level: String,
    #[command(flatten)]
    ask: AskArgs,
}

pub(super) fn control(command: &ControlCommand) -> anyhow::Result<u8> {
    let (verb, ask, body) = match command {
        ControlCommand::Pause(args) => ("pause", &args.which.ask, of_stage(args)),
        ControlCommand::Resume(args) => ("resume", &args.which.ask, of_stage(args)),
        ControlCommand::Drain(args) => ("drain", &args.ask, of_pipeline(args)),
        ControlCommand::Checkpoint(args) => ("checkpoint", &args.ask, of_pipeline(args)),
        ControlCommand::Acknowledge(args) => ("acknowledge", &args.ask, of_pipeline(args)),
        ControlCommand::Accept(args) => ("accept", &args.ask, of_pipeline(args)),
        ControlCommand::LogLevel(args) => ("log-level", &args.ask, json!({"level": args.level})),
    };
    order(ask, &format!("/api/v1/control/{verb}"), &body)
}

fn of_pipeline(args: &PipelineArgs) -> Value {
    args.pipeline.as_ref().map_or_else(|| json!({}), |name| json!({"pipeline": name}))
}

fn of_stage(args: &StageArgs) -> Value {
    let mut body = of_pipeline(&args.which);
    if let (Some(stage), Some(fields)) = (args.stage, body.as_object_mut()) {
        fields.insert("stage".to_owned(), json!(stage));
    }
    body
}

fn order(ask: &AskArgs, path: &str, body: &Value) -> anyhow::Result<u8> {
    let answer = ask.running()?.post(path, body)?;
    let status = answer.status;
    let answer: Value = serde_json::from_str(&answer.body).context("read the answer")?;
    if status == 200 {
        super::print_json(&answer)?;
        return Ok(exit::OK);
    }
    let said = |field: &str| answer.get(field).and_then(Value::as_str).unwrap_or_default();
    eprintln!("monasca-persister: {}: {}", said("title"), said("detail"));
    Ok(match status {
        401 | 403 => exit::PERMISSION,
        400..=499 => exit::USAGE,
        _ => exit::UNAVAILABLE,
    })
}
