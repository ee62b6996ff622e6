//! The keyspace and its six tables, as monasca-api reads them.

use std::collections::{BTreeMap, BTreeSet};

use scylla::client::session::Session;
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use scylla::value::CqlValue;

use super::errors;
use super::session::{CassandraConfig, connect};
use crate::error::{StoreError, Verdict};

/// A table: name, columns with types, key.
type Table = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const TABLES: [Table; 6] = [
    (
        "measurements",
        &[
            ("metric_id", "blob"),
            ("region", "text static"),
            ("tenant_id", "text static"),
            ("metric_name", "text static"),
            ("dimensions", "frozen<list<text>> static"),
            ("time_stamp", "timestamp"),
            ("value", "double"),
            ("value_meta", "text"),
        ],
        "(metric_id, time_stamp)",
    ),
    (
        "metrics",
        &[
            ("region", "text"),
            ("tenant_id", "text"),
            ("metric_name", "text"),
            ("dimensions", "frozen<list<text>>"),
            ("dimension_names", "frozen<list<text>>"),
            ("metric_id", "blob"),
            ("created_at", "timestamp"),
            ("updated_at", "timestamp"),
        ],
        "((region, tenant_id, metric_name), dimensions, dimension_names)",
    ),
    (
        "dimensions",
        &[("region", "text"), ("tenant_id", "text"), ("name", "text"), ("value", "text")],
        "((region, tenant_id, name), value)",
    ),
    (
        "dimensions_metrics",
        &[
            ("region", "text"),
            ("tenant_id", "text"),
            ("dimension_name", "text"),
            ("dimension_value", "text"),
            ("metric_name", "text"),
        ],
        "((region, tenant_id, dimension_name, dimension_value), metric_name)",
    ),
    (
        "metrics_dimensions",
        &[
            ("region", "text"),
            ("tenant_id", "text"),
            ("dimension_name", "text"),
            ("dimension_value", "text"),
            ("metric_name", "text"),
        ],
        "((region, tenant_id, metric_name), dimension_name, dimension_value)",
    ),
    (
        "alarm_state_history",
        &[
            ("tenant_id", "text"),
            ("alarm_id", "text"),
            ("time_stamp", "timestamp"),
            ("metric", "text"),
            ("old_state", "text"),
            ("new_state", "text"),
            ("reason", "text"),
            ("reason_data", "text"),
            ("sub_alarms", "text"),
        ],
        "((tenant_id, alarm_id), time_stamp)",
    ),
];

/// Their names.
pub(super) const TABLE_NAMES: [&str; 6] =
    [TABLES[0].0, TABLES[1].0, TABLES[2].0, TABLES[3].0, TABLES[4].0, TABLES[5].0];

fn check_identifier(keyspace: &str) -> Result<(), StoreError> {
    let mut characters = keyspace.chars();
    let fine = characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && keyspace.len() <= 48
        && characters.all(|next| next.is_ascii_lowercase() || next.is_ascii_digit() || next == '_');
    if fine {
        Ok(())
    } else {
        Err(StoreError::new(
            Verdict::Wait,
            "DB_CONFIG",
            format!("`{keyspace}` is no keyspace name"),
        ))
    }
}

/// The statements that create what is missing, in order, without a semicolon.
///
/// # Errors
/// `keyspace` is no plain name.
pub fn schema_statements(keyspace: &str, replication: &str) -> Result<Vec<String>, StoreError> {
    check_identifier(keyspace)?;
    let mut statements =
        vec![format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication}")];
    for (table, columns, key) in TABLES {
        let columns: Vec<String> =
            columns.iter().map(|(name, of_type)| format!("  {name} {of_type}")).collect();
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS {keyspace}.{table} (\n{},\n  PRIMARY KEY {key}\n)",
            columns.join(",\n")
        ));
    }
    Ok(statements)
}

/// Creates what is missing and waits until all nodes agree.
///
/// # Errors
/// The cluster is not reachable or refuses.
pub async fn apply(config: &CassandraConfig, replication: &str) -> Result<(), StoreError> {
    let statements = schema_statements(&config.keyspace, replication)?;
    let session = connect(config).await?;
    for statement in statements {
        session.query_unpaged(statement, ()).await.map_err(|error| errors::of_execution(&error))?;
    }
    Ok(())
}

/// Tables and columns that are missing.
///
/// # Errors
/// The cluster is not reachable or refuses.
pub async fn check(config: &CassandraConfig) -> Result<Vec<String>, StoreError> {
    check_identifier(&config.keyspace)?;
    missing(&connect(config).await?, &config.keyspace).await
}

pub(super) async fn missing(session: &Session, keyspace: &str) -> Result<Vec<String>, StoreError> {
    let rows = session
        .query_unpaged(
            of_one_node(
                "SELECT table_name, column_name FROM system_schema.columns WHERE keyspace_name = ?",
            ),
            (keyspace,),
        )
        .await
        .map_err(|error| errors::of_execution(&error))?;
    let rows = rows
        .into_rows_result()
        .map_err(|error| StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string()))?;
    let mut found = BTreeSet::new();
    let typed = rows
        .rows::<(String, String)>()
        .map_err(|error| StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string()))?;
    for row in typed {
        found.insert(
            row.map_err(|error| StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string()))?,
        );
    }
    let mut missing = Vec::new();
    for (table, columns, _) in TABLES {
        if !found.iter().any(|(name, _)| name == table) {
            missing.push(format!("table {keyspace}.{table}"));
            continue;
        }
        for (column, _) in columns {
            if !found.contains(&(table.to_owned(), (*column).to_owned())) {
                missing.push(format!("column {column} of {keyspace}.{table}"));
            }
        }
    }
    Ok(missing)
}

/// What each node knows alone is asked so, whatever is asked for writes: with `ANY` nothing can be read.
pub(super) fn of_one_node(text: &str) -> Statement {
    let mut statement = Statement::new(text);
    statement.set_consistency(Consistency::One);
    statement
}

/// The cluster's name and the ids of the tables that describe series: dropped and created again, a table has another one.
pub(super) async fn identity(session: &Session, keyspace: &str) -> Result<String, StoreError> {
    let odd = |error: &dyn std::fmt::Display| {
        StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string())
    };
    let rows = session
        .query_unpaged(of_one_node("SELECT cluster_name FROM system.local"), ())
        .await
        .map_err(|error| errors::of_execution(&error))?
        .into_rows_result()
        .map_err(|error| odd(&error))?;
    let (cluster,) = rows.first_row::<(String,)>().map_err(|error| odd(&error))?;
    let rows = session
        .query_unpaged(
            of_one_node("SELECT table_name, id FROM system_schema.tables WHERE keyspace_name = ?"),
            (keyspace,),
        )
        .await
        .map_err(|error| errors::of_execution(&error))?
        .into_rows_result()
        .map_err(|error| odd(&error))?;
    let mut ids = BTreeMap::new();
    for row in rows.rows::<(String, CqlValue)>().map_err(|error| odd(&error))? {
        let (table, id) = row.map_err(|error| odd(&error))?;
        ids.insert(table, id);
    }
    let mut identity = format!("cassandra {cluster} {keyspace}");
    for (table, ..) in TABLES.iter().filter(|(table, ..)| *table != "alarm_state_history") {
        let id = ids.get(*table).ok_or_else(|| {
            StoreError::new(Verdict::Wait, "DB_SCHEMA", format!("no table {keyspace}.{table}"))
        })?;
        identity.push_str(&format!(" {table}={id:?}"));
    }
    Ok(identity)
}
