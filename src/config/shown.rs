//! The configuration as people may see it: every value with where it comes from, and no secret.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::Loaded;

/// What stands for a secret.
const HIDDEN: &str = "***";

/// Every value in effect.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ShownConfig {
    /// The file read, if any.
    pub file: Option<PathBuf>,
    /// Values by dotted key.
    pub values: BTreeMap<String, ShownValue>,
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ShownValue {
    /// The value; `***` for a secret.
    pub value: Value,
    /// `default`, `file`, `profile NAME` or `environment NAME`.
    pub origin: String,
    /// A reload changes it while the program runs; otherwise it needs a restart.
    pub live: bool,
}

/// Keys that a reload changes.
pub const LIVE: [&str; 5] = [
    "logging.level",
    "shutdown.mode",
    "shutdown.drain_timeout",
    "dead_letters.warn_after",
    "store.max_write_bytes_per_second",
];

impl ShownConfig {
    /// Shows it.
    #[must_use]
    pub fn of(loaded: &Loaded) -> Self {
        let mut values = BTreeMap::new();
        let tree = serde_json::to_value(&loaded.config).unwrap_or_default();
        leaves("", &redacted(tree), &mut |key, value| {
            let origin = loaded.origins.get(key).cloned().unwrap_or_else(|| "default".to_owned());
            let live = LIVE.contains(&key);
            values.insert(key.to_owned(), ShownValue { value: value.clone(), origin, live });
        });
        Self { file: loaded.file.clone(), values }
    }
}

/// Calls `each` with every value that is no section. Lists are values.
pub(super) fn leaves(key: &str, value: &Value, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                leaves(&key, field, each);
            }
        }
        value => each(key, value),
    }
}

/// Without what somebody may have put into librdkafka's properties, or into a URL. All other secrets are in files and
/// variables of their own.
#[must_use]
pub fn redacted(mut tree: Value) -> Value {
    const SECRET: [&str; 7] = [
        "password",
        "secret",
        "key.pem",
        "token",
        "sasl.oauthbearer.config",
        "sasl.jaas",
        "credential",
    ];
    let properties = tree.pointer_mut("/kafka/properties").and_then(Value::as_object_mut);
    for (property, value) in properties.into_iter().flatten() {
        if SECRET.iter().any(|word| property.contains(word)) {
            *value = HIDDEN.into();
        }
    }
    for place in ["/kafka/security/sasl/oauthbearer/token_url"] {
        if let Some(Value::String(url)) = tree.pointer_mut(place)
            && let Some((scheme, rest)) = url.split_once("://")
            && let Some((_, host)) = rest.rsplit_once('@')
        {
            *url = format!("{scheme}://{HIDDEN}@{host}");
        }
    }
    tree
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_value_has_its_origin_and_secrets_are_hidden() {
        let mut config = Config::default();
        for property in ["ssl.key.password", "sasl.oauthbearer.client.secret", "client.rack"] {
            config.kafka.properties.insert(property.to_owned(), "canary".to_owned());
        }
        config.kafka.security.sasl.oauthbearer.token_url = "https://u:canary@idp/t".to_owned();
        let mut loaded = Loaded::of(config);
        loaded.origins.insert("metrics.writers".to_owned(), "file".to_owned());
        let shown = ShownConfig::of(&loaded);
        assert_eq!(shown.values["metrics.writers"].origin, "file");
        assert_eq!(shown.values["alarms.writers"].origin, "default");
        assert!(shown.values["logging.level"].live && !shown.values["data_dir"].live);
        let text = serde_json::to_string(&shown).unwrap();
        assert_eq!(text.matches("canary").count(), 1, "{text}");
        assert!(text.contains("https://***@idp/t"));
    }

    #[test]
    fn every_key_that_is_live_exists() {
        let shown = ShownConfig::of(&Loaded::of(Config::default()));
        for key in LIVE {
            assert!(shown.values.contains_key(key), "{key}");
        }
    }
}
