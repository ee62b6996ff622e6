//! Staying connected: the service starts and takes messages while no node is reachable, and what was wrong with a
//! certificate or a password needs no restart when it is mended.
//!
//! The driver keeps the connections of a session by itself, always with the certificates and the password that the
//! session was made with. A new one is made when these have changed on disk, and when no node is connected any more.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::session::Session;

use super::session::connect;
use super::store::Shared;
use crate::error::{StoreError, Verdict};

/// First and longest wait between two attempts to connect.
const WAIT: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether another session is needed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Has a session until the store is closed.
pub(super) async fn keep_connected(shared: Arc<Shared>) {
    let mut wait = WAIT;
    let mut made_with = None;
    let mut said = None;
    while !shared.state(|state| state.closed) {
        let old = shared.state(|state| state.session.clone());
        // Read before they are used: what changes in between is noticed at the next look.
        let now = shared.config.fingerprint();
        if let Some(session) = &old
            && (now.is_none() || now == made_with)
            && !is_cut_off(session)
        {
            wait = WAIT;
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        match connect(&shared.config).await {
            Ok(session) => {
                tracing::info!(nodes = ?shared.config.contact_points, "connected to Cassandra");
                let session = Arc::new(session);
                shared.change(|state| {
                    // Closed meanwhile: the connections end here instead of outliving the store.
                    state.session = (!state.closed).then_some(session);
                    state.statements = None;
                });
                (made_with, wait, said) = (now, WAIT, None);
                continue;
            }
            Err(error) => {
                say(&error, &mut said);
                // One that is cut off for a reason that does not pass hides it.
                let is_useless = error.verdict == Verdict::Wait
                    && old.as_ref().is_some_and(|session| is_cut_off(session));
                shared.change(|state| {
                    state.reason = error;
                    if is_useless {
                        state.session = None;
                        state.statements = None;
                    }
                });
            }
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(WAIT_MAX);
    }
}

/// No node has a connection: the driver tries again, but only with what the session was made with.
fn is_cut_off(session: &Session) -> bool {
    session.get_cluster_state().get_nodes_info().iter().all(|node| !node.is_connected())
}

/// What only a person repairs is said once, until it is another thing.
fn say(error: &StoreError, said: &mut Option<(&'static str, String)>) {
    let this = (error.code, error.detail.clone());
    if error.verdict == Verdict::Wait && said.as_ref() != Some(&this) {
        tracing::warn!(
            code = error.code,
            detail = error.detail,
            "Cassandra cannot be talked to: rows stay in the log, and it is tried again"
        );
        *said = Some(this);
    } else {
        tracing::debug!(
            code = error.code,
            detail = error.detail,
            "connect to Cassandra; tried again"
        );
    }
}
