//! Kafka and Cassandra for people: starts both, says how to reach them, stops both.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "people read it")]

use std::io::Read as _;
use std::process::{Command, ExitCode};

use harness::{Cassandra, HarnessError, Kafka};

const USAGE: &str = "\
usage: services            start Kafka and Cassandra, stop them on Ctrl-C
       services --exec CMD run CMD with KAFKA_BOOTSTRAP and CASSANDRA_CONTACT set, then stop them";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        None => stay(),
        Some((flag, command)) if flag == "--exec" && !command.is_empty() => exec(command),
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("services: {error}");
        ExitCode::FAILURE
    })
}

fn stay() -> Result<ExitCode, HarnessError> {
    println!("starting Kafka and Cassandra; the first time their jars are fetched …");
    let kafka = Kafka::start()?;
    let cassandra = Cassandra::start()?;
    kafka.create_topic("metrics", 4)?;
    kafka.create_topic("alarm-state-transitions", 4)?;
    let (bootstrap, contact) = (kafka.bootstrap(), cassandra.contact_point());
    println!("Kafka      {bootstrap}   topics metrics, alarm-state-transitions");
    println!("Cassandra  {contact}");
    println!("\nuse them in another terminal:\n");
    println!("  export MONASCA_PERSISTER__KAFKA__BOOTSTRAP_SERVERS={bootstrap}");
    println!("  export MONASCA_PERSISTER__STORE__CASSANDRA__CONTACT_POINTS={contact}");
    println!("  export MONASCA_PERSISTER__DATA_DIR=/tmp/monasca-persister");
    println!("  cargo run --release -- schema apply && cargo run --release -- run");
    println!("\nCtrl-C stops both.");
    // The services die with this process; a closed standard input ends it like Ctrl-C does.
    let mut nothing = Vec::new();
    let ended = std::io::stdin().read_to_end(&mut nothing);
    if ended.is_err() {
        eprintln!("services: standard input cannot be read");
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(command: &[String]) -> Result<ExitCode, HarnessError> {
    let kafka = Kafka::start()?;
    let cassandra = Cassandra::start()?;
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitCode::FAILURE) };
    let status = Command::new(program)
        .args(arguments)
        .env("KAFKA_BOOTSTRAP", kafka.bootstrap())
        .env("CASSANDRA_CONTACT", cassandra.contact_point())
        .status()
        .map_err(|source| HarnessError::Io { what: format!("run {program}"), source })?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
