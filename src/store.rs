//! Opens the configured store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use storage::cassandra::{CassandraConfig, CassandraStore, CassandraTls, Secret, Verify};
use storage::sled_store::{SledConfig, SledStore};
use storage::{Read, Store};

use crate::config::{CassandraSection, Config, CqlCompression, KafkaProtocol, KafkaTls, StoreKind};
use crate::secrets::{self, SecretError};

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
/// The embedded store's files, a certificate or a password cannot be read.
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

/// The driver's configuration. Files and secrets are read again for each session; here they are looked at once, so that
/// what is wrong with them is said before anything begins.
///
/// # Errors
/// [`SecretError`]: one of them cannot be read, or by too many.
pub fn cassandra_config(section: &CassandraSection) -> anyhow::Result<CassandraConfig> {
    let tls = &section.tls;
    let encrypted = section.protocol == KafkaProtocol::Tls;
    if encrypted {
        for (key, file) in [("ca_file", &tls.ca_file), ("certificate_file", &tls.certificate_file)]
        {
            if let Some(path) = file {
                secrets::check_readable(&format!("store.cassandra.tls.{key}"), path)?;
            }
        }
        for (key, file) in [("key_file", &tls.key_file), ("keystore_file", &tls.keystore_file)] {
            if let Some(path) = file {
                secrets::check_private(&format!("store.cassandra.tls.{key}"), path)?;
            }
        }
    }
    Ok(CassandraConfig {
        contact_points: section.contact_points.clone(),
        keyspace: section.keyspace.clone(),
        user: (!section.user.is_empty()).then(|| section.user.clone()),
        password: secret(
            "store.cassandra.password",
            section.password_file.as_ref(),
            section.password_env.as_ref(),
        )?,
        tls: if encrypted { Some(cassandra_tls(tls)?) } else { None },
        lz4: section.compression == CqlCompression::Lz4,
        local_data_center: (!section.local_data_center.is_empty())
            .then(|| section.local_data_center.clone()),
        consistency: section.consistency.clone(),
        request_timeout: section.request_timeout,
    })
}

fn cassandra_tls(tls: &KafkaTls) -> Result<CassandraTls, SecretError> {
    Ok(CassandraTls {
        ca_file: tls.ca_file.clone(),
        certificate_file: tls.certificate_file.clone(),
        key_file: tls.key_file.clone(),
        key_password: secret(
            "store.cassandra.tls.key_password",
            tls.key_password_file.as_ref(),
            tls.key_password_env.as_ref(),
        )?,
        keystore_file: tls.keystore_file.clone(),
        keystore_password: secret(
            "store.cassandra.tls.keystore_password",
            tls.keystore_password_file.as_ref(),
            tls.keystore_password_env.as_ref(),
        )?,
        verify: if tls.insecure_skip_verification {
            Verify::Nothing
        } else if tls.insecure_skip_hostname_verification {
            Verify::NotTheName
        } else {
            Verify::Everything
        },
    })
}

/// A secret that can be read now, and is read again when it is used.
fn secret(
    key: &'static str,
    file: Option<&PathBuf>,
    variable: Option<&String>,
) -> Result<Option<Secret>, SecretError> {
    let (file, variable) = (file.cloned(), variable.cloned());
    let read = move || secrets::read(key, file.as_deref(), variable.as_deref());
    if read()?.is_none() {
        return Ok(None);
    }
    Ok(Some(Secret::read_by(move || match read() {
        Ok(secret) => Ok(secret.map_or(String::new(), |secret| secret.expose_secret().to_owned())),
        Err(error) => Err(error.to_string()),
    })))
}
