//! One session with the cluster: what it is made with, and making it.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::Compression;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::{OpenSsl010Config, Session};
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::Consistency;

use sha2::{Digest as _, Sha256};

use super::secret::Secret;
use super::tls::{CassandraTls, Refusal, names_of};
use super::{errors, probe};
use crate::error::{StoreError, Verdict};

/// How to reach the cluster.
#[derive(Debug, Clone)]
pub struct CassandraConfig {
    /// `host:port` of one or more nodes.
    pub contact_points: Vec<String>,
    /// Keyspace with Monasca's tables.
    pub keyspace: String,
    /// User name, if the cluster asks for one.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Certificates; `None`: everything is sent in plain text.
    pub tls: Option<CassandraTls>,
    /// Whether requests and answers are compressed with LZ4, where the nodes can.
    pub lz4: bool,
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
            tls: None,
            lz4: false,
            local_data_center: None,
            consistency: "LOCAL_QUORUM".to_owned(),
            // Longer than the server's own write time-out of 2 s, so that its answer comes first.
            request_timeout: Duration::from_secs(10),
        }
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

impl CassandraConfig {
    /// A digest of every file and secret that a session is made with: another one, and the next session would be made
    /// with others. `None` while one of them cannot be read.
    pub(super) fn fingerprint(&self) -> Option<[u8; 32]> {
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        };
        for file in self.tls.iter().flat_map(CassandraTls::files) {
            add(&std::fs::read(file).ok()?);
        }
        let of_tls = self.tls.iter().flat_map(|tls| [&tls.key_password, &tls.keystore_password]);
        for secret in of_tls.chain([&self.password]).flatten() {
            add(secret.get().ok()?.as_bytes());
        }
        Some(digest.finalize().into())
    }
}

/// Connects once, with what files and secrets hold now. An error says what is the matter with each contact point.
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
        .compression(config.lz4.then_some(Compression::Lz4))
        .keyspaces_to_fetch([config.keyspace.as_str()])
        .driver_config_reporting(false);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.user(user, password.get()?);
    }
    if let Some(tls) = &config.tls {
        let context = tls.context(names_of(&config.contact_points), Refusal::default())?;
        // A resumed session of TLS would skip the verification, and there are few connections.
        let context = OpenSsl010Config::new(context).set_use_tls_tickets(false);
        builder = builder.tls_context(Some(context));
    }
    match builder.build().await {
        Ok(session) => Ok(session),
        Err(error) => {
            let error = errors::of_new_session(&error);
            if error.code == "DB_AUTH" {
                let nodes = config.contact_points.join(", ");
                return Err(StoreError::new(
                    error.verdict,
                    error.code,
                    format!(
                        "{nodes}: {}: check store.cassandra.user and its password, which is read again at each attempt",
                        error.detail
                    ),
                ));
            }
            Err(probe::explain(config, error).await)
        }
    }
}
