//! Connecting, and staying connected: the service starts and takes messages while no node is reachable.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::Consistency;

use super::errors;
use crate::error::{StoreError, Verdict};

/// How to reach the cluster.
#[derive(Clone)]
pub struct CassandraConfig {
    /// `host:port` of one or more nodes.
    pub contact_points: Vec<String>,
    /// Keyspace with Monasca's tables.
    pub keyspace: String,
    /// User name, if the cluster asks for one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// Data centre whose nodes are used; `None`: all.
    pub local_data_center: Option<String>,
    /// Replicas that must confirm a write, as CQL names it.
    pub consistency: String,
    /// How long a request may take.
    pub request_timeout: Duration,
}

impl Default for CassandraConfig {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "monasca".to_owned(),
            user: None,
            password: None,
            local_data_center: None,
            consistency: "LOCAL_QUORUM".to_owned(),
            // Longer than the server's own write time-out of 2 s, so that its answer comes first.
            request_timeout: Duration::from_secs(10),
        }
    }
}

impl std::fmt::Debug for CassandraConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CassandraConfig")
            .field("contact_points", &self.contact_points)
            .field("keyspace", &self.keyspace)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("local_data_center", &self.local_data_center)
            .field("consistency", &self.consistency)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

fn consistency(name: &str) -> Result<Consistency, StoreError> {
    Ok(match name {
        "ANY" => Consistency::Any,
        "ONE" => Consistency::One,
        "TWO" => Consistency::Two,
        "THREE" => Consistency::Three,
        "QUORUM" => Consistency::Quorum,
        "ALL" => Consistency::All,
        "LOCAL_QUORUM" => Consistency::LocalQuorum,
        "EACH_QUORUM" => Consistency::EachQuorum,
        "LOCAL_ONE" => Consistency::LocalOne,
        other => {
            return Err(StoreError::new(
                Verdict::Wait,
                "DB_CONFIG",
                format!("`{other}` is no consistency level"),
            ));
        }
    })
}

/// Connects once.
pub(super) async fn connect(config: &CassandraConfig) -> Result<Session, StoreError> {
    let mut policy = DefaultPolicy::builder().token_aware(true);
    if let Some(data_center) = &config.local_data_center {
        policy = policy.prefer_datacenter(data_center.clone());
    }
    let profile = ExecutionProfile::builder()
        .consistency(consistency(&config.consistency)?)
        .request_timeout(Some(config.request_timeout))
        // Repeating is the caller's business: it knows what it may repeat, and for how long.
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .load_balancing_policy(policy.build())
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(Duration::from_secs(5))
        // Half-open links are noticed within ten seconds.
        .keepalive_interval(Duration::from_secs(5))
        .keepalive_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .keyspaces_to_fetch([config.keyspace.as_str()])
        .driver_config_reporting(false);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.user(user, password);
    }
    builder.build().await.map_err(|error| errors::of_new_session(&error))
}
