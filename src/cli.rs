//! The command line: one file per group of commands. The only place that prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "people read the command line's output"
)]

mod ask;
mod check;
mod control;
mod convert;
mod dead_letters;
mod demo;
mod generate;
mod offsets;
mod query;
mod run;
mod running;
mod schema;
mod size;
mod top;
mod wal;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

pub(crate) use self::running::NoAnswer;
use crate::config::{self, Config, Loaded};
use crate::exit;
use crate::log_level::LogLevel;
use crate::seldom;

/// Takes Monasca's metrics and alarm transitions from Kafka, keeps them in a durable local log, and delivers them to
/// Cassandra or an embedded store.
#[derive(Debug, Parser)]
#[command(name = "monasca-persister", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 stopped as asked, 64 usage, 69 no answer, 70 fault of the program, \
74 disk, 75 locked or temporary, 77 permission, 78 configuration or data version."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the persister until SIGTERM or SIGINT; a second signal skips the drain.
    Run(run::RunArgs),
    /// Try it out: an in-process broker fed with this machine's own metrics, the log, the embedded store.
    Demo(demo::DemoArgs),
    /// Say whether a configuration can be used, and everything that is wrong with it; with --connect, whether Kafka and
    /// Cassandra are as it needs them.
    #[command(
        after_help = "With --connect one line each for brokers, topics, groups, nodes, tables and rights, below a missing \
one what to type or to set. Exit codes: 0 all is well, 69 somebody does not answer, 77 a right or a password is missing, \
78 the configuration or what it names is wrong.\n\nExample:\n  monasca-persister check-config --connect --config persister.yaml"
    )]
    CheckConfig(check::CheckArgs),
    /// Show the configuration in effect.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print, create or check Cassandra's tables.
    #[command(subcommand)]
    Schema(schema::SchemaCommand),
    /// What a running persister is doing and what is the matter.
    Status(ask::AskArgs),
    /// What waits in a running persister's log.
    Backlog(ask::BacklogArgs),
    /// A running persister at a glance, live.
    Top(top::TopArgs),
    /// Tell a running persister to pause, to go on, and the like.
    #[command(
        subcommand,
        after_help = "Orders need the token of http.token_file, from --token-file or MONASCA_PERSISTER_TOKEN_FILE. Each is \
said in the persister's log. Exit codes: 0 done, 64 the order makes no sense, 69 no answer, 77 the token is missing or \
wrong.\n\nExamples:\n  monasca-persister control pause --stage delivery --token-file /etc/monasca-persister/token\n  \
monasca-persister control resume --token-file /etc/monasca-persister/token"
    )]
    Control(control::ControlCommand),
    /// How large a log absorbs how long an outage.
    Size(size::SizeArgs),
    /// Exit 0 when every part of a running persister works, 69 otherwise: for containers.
    Healthcheck(ask::AskArgs),
    /// Messages that can never be stored.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// What each instance has taken from Kafka and not delivered, and taking over from one that will not.
    #[command(subcommand)]
    Offsets(offsets::OffsetsCommand),
    /// Look at a log's directory, and save what is whole in a damaged one.
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// Print what an embedded store holds.
    Query(query::QueryArgs),
    /// Print a script that completes commands in a shell.
    Completions(generate::CompletionArgs),
    /// Print the manual.
    Man(generate::ManArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// All keys with their values, as JSON; what a file and the environment set is filled in.
    Print(check::PrintArgs),
    /// The JSON Schema of a configuration file, for editors and for checks.
    Schema,
    /// An older persister's configuration as ours, with what became of every key.
    Convert(convert::ConvertArgs),
}

/// Where the configuration is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFile {
    /// Configuration file; without one the defaults and the environment (MONASCA_PERSISTER__SECTION__KEY) count.
    #[arg(short, long, env = "MONASCA_PERSISTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Defaults for a small machine at the edge, or for a large one; file and environment win over them.
    #[arg(long, value_enum, env = "MONASCA_PERSISTER_PROFILE")]
    profile: Option<config::Profile>,
}

impl ConfigFile {
    fn load(&self) -> anyhow::Result<Loaded> {
        Ok(config::load_with(self.profile, self.config.as_deref(), std::env::vars())?)
    }
}

/// Whether arguments, without the program's name, make sense; for tests of what help texts and documents say.
///
/// # Errors
/// Why not, for people.
pub fn understands(arguments: &[&str]) -> Result<(), String> {
    let arguments = ["monasca-persister"].iter().chain(arguments);
    Cli::try_parse_from(arguments).map(|_| ()).map_err(|error| error.to_string())
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors; printing can only fail when nobody reads.
            drop(error.print());
            return if error.use_stderr() { exit::USAGE } else { exit::OK };
        }
    };
    end_when_nobody_reads();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::CheckConfig(args) => check::check(&args),
        Command::Config(ConfigCommand::Print(args)) => check::print(&args),
        Command::Config(ConfigCommand::Schema) => convert::schema(),
        Command::Config(ConfigCommand::Convert(args)) => convert::run(&args),
        Command::Schema(command) => schema::schema(&command),
        Command::Status(args) => ask::print(&args, "/api/v1/status"),
        Command::Backlog(args) => ask::backlog(&args),
        Command::Top(args) => top::top(&args),
        Command::Control(command) => control::control(&command),
        Command::Size(args) => size::size(&args),
        Command::Healthcheck(args) => ask::healthcheck(&args),
        Command::DeadLetters(command) => dead_letters::dead_letters(&command),
        Command::Offsets(command) => offsets::offsets(&command),
        Command::Wal(command) => wal::wal(&command),
        Command::Query(args) => query::query(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("monasca-persister: {error:#}");
            exit::code(&error)
        }
    }
}

/// Writes JSON for people and programs alike.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value).context("write JSON")?);
    Ok(())
}

fn init_logging(config: &Config) -> anyhow::Result<LogLevel> {
    use tracing_subscriber::filter::{FilterExt as _, LevelFilter, dynamic_filter_fn};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    use tracing_subscriber::{Layer as _, fmt, registry};
    let (filter, log_level) = LogLevel::new(&config.logging.level)?;
    let seldom = seldom::Seldom::default();
    let is_everything = log_level.clone();
    let seldom = dynamic_filter_fn(move |place, _| {
        is_everything.is_everything() || seldom.is_due(place, std::time::Instant::now())
    });
    // The first filter says what is wanted at most; this one must not make it everything.
    let filter = filter.and(seldom.with_max_level_hint(LevelFilter::TRACE));
    // Colours are for a terminal: in a file they come between a key and its value.
    let lines = fmt::layer()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let installed = match config.logging.format {
        config::LogFormat::Text => registry().with(lines.with_filter(filter)).try_init(),
        config::LogFormat::Json => registry().with(lines.json().with_filter(filter)).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("install log output: {error}"))?;
    Ok(log_level)
}

/// Whoever read the output has seen enough, as `head` has: that is no fault. `println!` takes it for one.
fn end_when_nobody_reads() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        if said.starts_with("failed printing to stdout") && said.contains("Broken pipe") {
            exit::leave_unflushed(exit::OK);
        }
        print(panic);
    }));
}

/// A panic in any thread ends the process: no half-dead service.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}
