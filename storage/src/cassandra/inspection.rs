//! A look at the cluster, as the configuration says: whether it answers, has the tables, and lets us write. It reads
//! only.

use std::collections::{BTreeMap, BTreeSet};

use scylla::client::session::Session;
use scylla::value::{CqlValue, Row};

use super::probe::{self, Answer};
use super::schema::{self, TABLE_NAMES};
use super::session::{CassandraConfig, connect};
use super::{errors, tls};
use crate::error::{StoreError, Verdict};
use crate::finding::{Finding, Grade};
use crate::metric_id::{IdScheme, MetricId, metric_id};

/// Series looked at to find out the scheme of their ids.
const SERIES_LOOKED_AT: i32 = 20;

/// Looks at everything; `replication` is that of `schema apply`.
pub async fn inspect(
    config: &CassandraConfig,
    replication: &str,
    scheme: IdScheme,
) -> Vec<Finding> {
    let mut found: Vec<Finding> = match probe::ask(config).await {
        Ok(answers) => answers.into_iter().map(of_answer).collect(),
        Err(error) => return vec![of_error("certificates", &error)],
    };
    let session = match connect(config).await {
        Ok(session) => session,
        Err(error) => {
            // Where the nodes have said it already, once is enough.
            if found.iter().all(|finding| finding.grade == Grade::Fine) {
                found.push(of_error("session", &error));
            }
            return found;
        }
    };
    found.push(version(&session).await);
    found.extend(data_centre(&session, config));
    let tables = tables(&session, config, replication).await;
    let has_tables = tables.iter().all(|finding| finding.grade == Grade::Fine);
    found.extend(tables);
    found.extend(rights(&session, config).await);
    if has_tables {
        found.push(ids(&session, config, scheme).await);
    }
    found
}

fn of_answer((point, answer): (String, Answer)) -> Finding {
    match answer {
        Answer::Speaks(Some(version)) => Finding::fine(format!("{point} answers, in {version}")),
        Answer::Speaks(None) => Finding::fine(format!("{point} answers, in plain text")),
        Answer::Away(why) => Finding::new(
            Grade::Away,
            format!("{point}: {why}"),
            "check store.cassandra.contact_points, the node and the network",
        ),
        Answer::Refuses(why) => {
            Finding::new(Grade::Wrong, format!("{point}: {}: {why}", tls::CODE), "")
        }
    }
}

fn of_error(what: &str, error: &StoreError) -> Finding {
    let grade = match (error.verdict, error.code) {
        (_, "DB_AUTH") => Grade::Forbidden,
        (Verdict::Retry, _) => Grade::Away,
        _ => Grade::Wrong,
    };
    Finding::new(grade, format!("{what}: {error}"), "")
}

async fn rows(session: &Session, query: String) -> Result<Vec<Vec<Option<CqlValue>>>, StoreError> {
    let odd = |error: &dyn std::fmt::Display| {
        StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string())
    };
    let answer =
        session.query_unpaged(query, ()).await.map_err(|error| errors::of_execution(&error))?;
    // Of nothing to list, a node makes no rows at all.
    if !answer.is_rows() {
        return Ok(Vec::new());
    }
    let answer = answer.into_rows_result().map_err(|error| odd(&error))?;
    let rows = answer.rows::<Row>().map_err(|error| odd(&error))?;
    rows.map(|row| row.map(|row| row.columns).map_err(|error| odd(&error))).collect()
}

fn text(column: Option<&Option<CqlValue>>) -> String {
    column.and_then(Option::as_ref).and_then(CqlValue::as_text).cloned().unwrap_or_default()
}

async fn version(session: &Session) -> Finding {
    let query = "SELECT release_version, cluster_name FROM system.local".to_owned();
    match rows(session, query).await {
        Ok(rows) => {
            let row = rows.first().map(Vec::as_slice).unwrap_or_default();
            let (version, cluster) = (text(row.first()), text(row.get(1)));
            Finding::fine(format!("cluster `{cluster}`, version {version}"))
        }
        Err(error) => of_error("version", &error),
    }
}

fn data_centre(session: &Session, config: &CassandraConfig) -> Vec<Finding> {
    let state = session.get_cluster_state();
    let mut nodes: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for node in state.get_nodes_info() {
        let count = nodes.entry(node.datacenter.clone().unwrap_or_default()).or_default();
        count.0 = count.0.saturating_add(1);
        count.1 = count.1.saturating_add(usize::from(node.is_connected()));
    }
    let known: Vec<&str> = nodes.keys().map(String::as_str).collect();
    let mut found = Vec::new();
    match &config.local_data_center {
        Some(local) if !nodes.contains_key(local) => found.push(Finding::new(
            Grade::Wrong,
            format!("data centre `{local}` has no node"),
            format!("set store.cassandra.local_data_center to one of: {}", known.join(", ")),
        )),
        None if nodes.len() > 1 => found.push(Finding::new(
            Grade::Wrong,
            format!(
                "there are {} data centres and none is chosen: rows go through all",
                nodes.len()
            ),
            format!("set store.cassandra.local_data_center to one of: {}", known.join(", ")),
        )),
        _ => {}
    }
    for (name, (all, connected)) in &nodes {
        let what = format!("data centre `{name}`: {connected} of {all} nodes connected");
        let matters = config.local_data_center.as_ref().is_none_or(|local| local == name);
        found.push(if connected == all || !matters {
            Finding::fine(what)
        } else {
            Finding::new(
                Grade::Away,
                what,
                "each node's address for clients, and its certificate, must be right",
            )
        });
    }
    found
}

async fn tables(session: &Session, config: &CassandraConfig, replication: &str) -> Vec<Finding> {
    let keyspace = &config.keyspace;
    match schema::missing(session, keyspace).await {
        Ok(missing) if missing.is_empty() => {
            vec![Finding::fine(format!("keyspace {keyspace} has every table and column"))]
        }
        Ok(missing) => {
            let all = missing.len() == TABLE_NAMES.len();
            let statement = schema::schema_statements(keyspace, replication)
                .ok()
                .and_then(|statements| statements.into_iter().next())
                .filter(|_| all && session.get_cluster_state().get_keyspace(keyspace).is_none());
            let mut remedy = "`monasca-persister schema apply` creates what is missing, `schema print` prints it".to_owned();
            if let Some(create) = statement {
                remedy.push_str(&format!("; it begins with: {create};"));
            }
            let mut found: Vec<Finding> = missing
                .into_iter()
                .map(|what| Finding::new(Grade::Wrong, format!("{what} is missing"), ""))
                .collect();
            if let Some(last) = found.last_mut() {
                last.remedy = Some(remedy);
            }
            found
        }
        Err(error) => vec![of_error("schema", &error)],
    }
}

/// What a role may do, as far as it may be asked.
enum Rights {
    /// Nobody's rights are checked, or this role's are not.
    All(String),
    /// These: resource and permission.
    Listed(BTreeSet<(String, String)>),
    /// The cluster does not say.
    Unknown(String),
}

async fn rights(session: &Session, config: &CassandraConfig) -> Vec<Finding> {
    let (keyspace, user) = (&config.keyspace, config.user.as_deref().unwrap_or_default());
    let role = format!("\"{}\"", user.replace('"', "\"\""));
    let modify = TABLE_NAMES.map(|table| (table, "MODIFY"));
    // A series keeps the creation time that the table has.
    let needed = modify.into_iter().chain([("metrics", "SELECT")]);
    let grant =
        |(table, right): (&str, &str)| format!("GRANT {right} ON {keyspace}.{table} TO {role};");
    let held = if user.is_empty() {
        Rights::All("no user is configured, and the cluster asks for none".to_owned())
    } else {
        ask_rights(session, &role).await
    };
    match held {
        Rights::All(why) => vec![Finding::fine(format!("rights: {why}"))],
        Rights::Unknown(why) => {
            let grants: Vec<String> = needed.map(grant).collect();
            vec![Finding::new(
                Grade::Unchecked,
                format!("rights of {role}: {why}"),
                grants.join(" "),
            )]
        }
        Rights::Listed(held) => needed
            .map(|(table, right)| {
                let resources = [
                    "<all keyspaces>".to_owned(),
                    format!("<keyspace {keyspace}>"),
                    format!("<all tables in {keyspace}>"),
                    format!("<table {keyspace}.{table}>"),
                ];
                let has = resources.into_iter().any(|on| held.contains(&(on, right.to_owned())));
                if has {
                    Finding::fine(format!("{role} has {right} on {keyspace}.{table}"))
                } else {
                    Finding::new(
                        Grade::Forbidden,
                        format!("{role} lacks {right} on {keyspace}.{table}"),
                        grant((table, right)),
                    )
                }
            })
            .collect(),
    }
}

/// A role may list its own roles and rights.
async fn ask_rights(session: &Session, role: &str) -> Rights {
    let roles = rows(session, format!("LIST ROLES OF {role}")).await.unwrap_or_default();
    let is_super =
        |row: &Vec<Option<CqlValue>>| matches!(row.get(1), Some(Some(CqlValue::Boolean(true))));
    if roles.iter().any(is_super) {
        return Rights::All(format!(
            "{role} is a superuser: it has all of them, and more than it needs"
        ));
    }
    match rows(session, format!("LIST ALL PERMISSIONS OF {role}")).await {
        Ok(rows) => {
            let right = |row: &Vec<Option<CqlValue>>| (text(row.get(2)), text(row.get(3)));
            Rights::Listed(rows.iter().map(right).collect())
        }
        // Said by an authorizer that allows everything.
        Err(error) if error.detail.contains("AllowAll") => {
            Rights::All("the cluster checks none (AllowAllAuthorizer)".to_owned())
        }
        Err(error) => Rights::Unknown(format!("the cluster does not tell ({error})")),
    }
}

/// Whether the ids in the tables are made as ours will be: with another scheme each series would get a second id.
async fn ids(session: &Session, config: &CassandraConfig, scheme: IdScheme) -> Finding {
    let query = format!(
        "SELECT region, tenant_id, metric_name, dimensions, metric_id FROM {}.metrics LIMIT {SERIES_LOOKED_AT}",
        config.keyspace
    );
    let rows = match rows(session, query).await {
        Ok(rows) => rows,
        Err(error) => {
            return Finding::new(
                Grade::Unchecked,
                format!("metric_id_scheme {scheme}: series cannot be read ({error})"),
                "",
            );
        }
    };
    if rows.is_empty() {
        return Finding::fine(format!("metric_id_scheme {scheme}: no series yet, any is right"));
    }
    let fits = |scheme: IdScheme| rows.iter().filter(|row| is_of(row, scheme)).count();
    let (ours, all) = (fits(scheme), rows.len());
    if ours == all {
        return Finding::fine(format!(
            "metric_id_scheme {scheme}: as in {all} series of the table"
        ));
    }
    let best = IdScheme::ALL.into_iter().max_by_key(|other| fits(*other));
    let remedy = match best.filter(|best| *best != scheme && fits(*best) > ours) {
        Some(best) => format!("set metric_id_scheme to {best}, which {} of them have", fits(best)),
        None => "another program writes ids of its own into this table".to_owned(),
    };
    Finding::new(
        Grade::Wrong,
        format!(
            "metric_id_scheme {scheme}: only {ours} of {all} series of the table have such ids"
        ),
        remedy,
    )
}

fn is_of(row: &[Option<CqlValue>], scheme: IdScheme) -> bool {
    let (region, tenant, name) = (text(row.first()), text(row.get(1)), text(row.get(2)));
    let dimensions: Vec<String> = match row.get(3) {
        Some(Some(CqlValue::List(list))) => {
            list.iter().filter_map(CqlValue::as_text).cloned().collect()
        }
        _ => Vec::new(),
    };
    let pairs = dimensions.iter().filter_map(|pair| pair.split_once('\t'));
    let id = metric_id(scheme, &region, &tenant, &name, pairs);
    match row.get(4) {
        Some(Some(CqlValue::Blob(bytes))) => {
            MetricId::try_from(bytes.as_slice()).is_ok_and(|found| found == id)
        }
        _ => false,
    }
}
