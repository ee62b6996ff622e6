//! Commands that ask a running persister over HTTP.

use clap::Args;

use super::running::{Running, TokenArgs};
use crate::exit;

/// Which persister to ask.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Where it answers: http://HOST:PORT, or unix:PATH of its http.socket.
    #[arg(long, default_value = "http://127.0.0.1:8091", value_name = "URL")]
    url: String,
    #[command(flatten)]
    token: TokenArgs,
}

impl AskArgs {
    pub(super) fn running(&self) -> anyhow::Result<Running> {
        Running::at(&self.url, &self.token)
    }
}

/// What of the backlog.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  monasca-persister backlog\n  monasca-persister backlog --by tenant --top 5\n  \
monasca-persister backlog --records --pipeline alarms --limit 3"
)]
pub(crate) struct BacklogArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Also count what waits by this.
    #[arg(long, value_parser = ["tenant", "metric", "age"], conflicts_with = "records")]
    by: Option<String>,
    /// Most groups.
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Only this pipeline's groups; the pipeline whose records are shown, metrics unless said.
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// The waiting records themselves, decoded, oldest first.
    #[arg(long)]
    records: bool,
    /// From this position on.
    #[arg(long, value_name = "POSITION", requires = "records", default_value_t = 0)]
    from: u64,
    /// Most records.
    #[arg(long, value_name = "N", requires = "records", default_value_t = 20)]
    limit: usize,
}

pub(super) fn backlog(args: &BacklogArgs) -> anyhow::Result<u8> {
    let pipeline = args.pipeline.as_ref();
    let pipeline = pipeline.map(|name| format!("&pipeline={}", encoded(name))).unwrap_or_default();
    let path = if args.records {
        format!("/api/v1/backlog/records?from={}&limit={}{pipeline}", args.from, args.limit)
    } else {
        match &args.by {
            Some(by) => format!("/api/v1/backlog?by={by}&top={}{pipeline}", args.top),
            None => "/api/v1/backlog".to_owned(),
        }
    };
    print(&args.ask, &path)
}

/// A value as part of a path's query.
pub(super) fn encoded(value: &str) -> String {
    form_urlencoded::byte_serialize(value.as_bytes()).collect()
}

/// Prints what the path answers.
pub(super) fn print(args: &AskArgs, path: &str) -> anyhow::Result<u8> {
    let and = if path.contains('?') { '&' } else { '?' };
    let answer = args.running()?.get(&format!("{path}{and}pretty=true"))?;
    println!("{}", answer.body);
    Ok(if answer.status == 200 { exit::OK } else { exit::UNAVAILABLE })
}

/// Prints the health check and ends with it.
pub(super) fn healthcheck(args: &AskArgs) -> anyhow::Result<u8> {
    print(args, "/healthcheck")
}
