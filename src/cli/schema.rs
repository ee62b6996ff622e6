//! `schema print|apply|check`: Cassandra's tables.

use anyhow::Context as _;
use clap::Subcommand;
use storage::cassandra::schema;

use super::ConfigFile;
use crate::exit;
use crate::store::cassandra_config;

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// The statements that create the keyspace and its tables.
    Print(ConfigFile),
    /// Create what is missing; what is there stays as it is.
    Apply(ConfigFile),
    /// Say what is missing; exit 78 when something is.
    Check(ConfigFile),
}

pub(super) fn schema(command: &SchemaCommand) -> anyhow::Result<u8> {
    let (SchemaCommand::Print(file) | SchemaCommand::Apply(file) | SchemaCommand::Check(file)) =
        command;
    let config = file.load()?.config;
    let section = &config.store.cassandra;
    let statements = schema::schema_statements(&section.keyspace, &section.replication)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start async runtime")?;
    match command {
        SchemaCommand::Print(_) => {
            for statement in statements {
                println!("{statement};\n");
            }
        }
        SchemaCommand::Apply(_) => {
            runtime
                .block_on(schema::apply(&cassandra_config(section)?, &section.replication))
                .context("create the tables")?;
            println!("keyspace {} has every table", section.keyspace);
        }
        SchemaCommand::Check(_) => {
            let missing = runtime
                .block_on(schema::check(&cassandra_config(section)?))
                .context("read the schema")?;
            if !missing.is_empty() {
                for what in missing {
                    println!("missing: {what}");
                }
                return Ok(exit::CONFIGURATION);
            }
            println!("keyspace {} has every table and column", section.keyspace);
        }
    }
    Ok(exit::OK)
}
