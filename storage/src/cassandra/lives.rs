//! Which life each node is in: its gossip generation, another one after each of its starts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use scylla::client::session::Session;
use scylla::cluster::Node;
use scylla::errors::{ExecutionError, RequestAttemptError};
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;

use super::session::CassandraConfig;
use crate::lives::NodeLife;

/// A node that takes longer does not answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// Asks each node that takes part in confirming our rows; those that do not answer are left out.
pub(super) async fn ask(session: &Session, config: &CassandraConfig) -> Vec<NodeLife> {
    let state = session.get_cluster_state();
    let takes_part = |node: &&Arc<Node>| match &config.local_data_center {
        Some(local) if config.consistency.starts_with("LOCAL_") => {
            node.datacenter.as_ref().is_none_or(|data_center| data_center == local)
        }
        _ => true,
    };
    let nodes = state.get_nodes_info().iter().filter(takes_part);
    join_all(nodes.map(|node| ask_one(session, node))).await.into_iter().flatten().collect()
}

async fn ask_one(session: &Session, node: &Arc<Node>) -> Option<NodeLife> {
    let mut statement =
        Statement::new("SELECT gossip_generation FROM system.local WHERE key = 'local'");
    let only = NodeIdentifier::Node(Arc::clone(node));
    statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(only, None)));
    statement.set_consistency(Consistency::One);
    statement.set_request_timeout(Some(ANSWER_WAIT));
    let life = match session.query_unpaged(statement, ()).await {
        Ok(rows) => {
            let row = rows.into_rows_result().ok()?;
            row.maybe_first_row::<(Option<i32>,)>().ok().flatten().and_then(|(life,)| life)
        }
        // It is there, and has no such column or does not let us read it.
        Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(..))) => None,
        Err(_) => return None,
    };
    Some(NodeLife { node: node.host_id.to_string(), life: life.map(i64::from) })
}
