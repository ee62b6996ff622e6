//! Opens the configured store.

use std::sync::Arc;

use anyhow::Context as _;
use storage::cassandra::{CassandraConfig, CassandraStore};
use storage::sled_store::{SledConfig, SledStore};
use storage::{Read, Store};

use crate::config::{CassandraSection, Config, StoreKind};

/// A store, and its read side when it is embedded.
pub struct OpenStore {
    /// Takes rows.
    pub store: Arc<dyn Store>,
    /// Gives them back.
    pub read: Option<Arc<dyn Read>>,
}

/// Opens the configured store. Cassandra need not be reachable: it is connected to in the background.
///
/// # Errors
/// The embedded store's files or the password file cannot be read.
pub fn open(config: &Config, runtime: &tokio::runtime::Handle) -> anyhow::Result<OpenStore> {
    match config.store.kind {
        StoreKind::Cassandra => {
            let store =
                CassandraStore::new(cassandra_config(&config.store.cassandra)?, runtime.clone());
            Ok(OpenStore { store: Arc::new(store), read: None })
        }
        StoreKind::Sled => {
            let store = open_sled(config)?;
            Ok(OpenStore { store: store.clone(), read: Some(store) })
        }
    }
}

/// Opens the embedded store; fails while a running persister holds it.
///
/// # Errors
/// The directory cannot be opened.
pub fn open_sled(config: &Config) -> anyhow::Result<Arc<SledStore>> {
    let dir = config.data_dir.join("store");
    let sled = SledConfig {
        cache_bytes: config.store.sled.cache.as_u64(),
        max_bytes: config.store.sled.bytes_max.as_u64(),
    };
    let store =
        SledStore::open(&dir, sled).with_context(|| format!("open store {}", dir.display()))?;
    Ok(Arc::new(store))
}

/// The driver's configuration, with the password read from its file.
///
/// # Errors
/// The password file cannot be read.
pub fn cassandra_config(section: &CassandraSection) -> anyhow::Result<CassandraConfig> {
    let password = match &section.password_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!("read store.cassandra.password_file {}", path.display())
            })?;
            Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
        }
    };
    Ok(CassandraConfig {
        contact_points: section.contact_points.clone(),
        keyspace: section.keyspace.clone(),
        user: (!section.user.is_empty()).then(|| section.user.clone()),
        password,
        local_data_center: (!section.local_data_center.is_empty())
            .then(|| section.local_data_center.clone()),
        consistency: section.consistency.clone(),
        request_timeout: section.request_timeout,
    })
}
