//! Which replicas keep a row: as a number that is the same for the same nodes.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use scylla::client::session::Session;
use scylla::cluster::ClusterState;
use scylla::routing::Token;
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;

/// The nodes that keep the token's rows of a table; `None` where the driver does not know any.
pub(super) fn of_token(
    cluster: &ClusterState,
    keyspace: &str,
    table: &str,
    token: Token,
) -> Option<u64> {
    let mut nodes: Vec<_> = cluster
        .get_token_endpoints(keyspace, table, token)
        .into_iter()
        .map(|(node, _)| node.host_id)
        .collect();
    if nodes.is_empty() {
        return None;
    }
    // The ring begins with another one of them at each token.
    nodes.sort_unstable();
    let mut hash = DefaultHasher::new();
    nodes.hash(&mut hash);
    Some(hash.finish())
}

/// The nodes that keep a row that is about to be written.
pub(super) fn of_row(
    session: &Session,
    statement: &PreparedStatement,
    row: &impl SerializeRow,
) -> Option<u64> {
    let token = statement.calculate_token(row).ok()??;
    let table = statement.get_table_spec()?;
    of_token(&session.get_cluster_state(), table.ks_name(), table.table_name(), token)
}
