//! Defaults, then the file, then the environment: later ones win. Unknown keys are errors that name the place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::shown::leaves;
use super::text;
use super::{Config, ConfigProblem, Profile};

/// Environment variables that begin so override the file: `MONASCA_PERSISTER__HTTP__BIND=127.0.0.1:9000`.
pub const ENVIRONMENT_PREFIX: &str = "MONASCA_PERSISTER__";

/// A configuration that cannot be used, with every reason found.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}", .reasons.iter().map(|reason| format!("{}: {reason}", path.display())).collect::<Vec<_>>().join("\n"))]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, each with line and column.
        reasons: Vec<String>,
    },
    /// An environment variable names no key or has no usable value.
    #[error("environment variable {variable}: {reason}")]
    Environment {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `${NAME}` in a value names a variable that is not set.
    #[error("{key}: environment variable {variable} is not set")]
    Unset {
        /// The key whose value refers to it.
        key: String,
        /// The variable.
        variable: String,
    },
    /// Values that make no sense, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<ConfigProblem>),
}

/// A configuration and where it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file read, if any.
    pub file: Option<PathBuf>,
    /// Environment variables that overrode something.
    pub variables: Vec<String>,
    /// Where each value that is not the default comes from, by dotted key.
    pub origins: BTreeMap<String, String>,
}

impl Loaded {
    /// A configuration that was made and not read.
    #[must_use]
    pub fn of(config: Config) -> Self {
        Self { config, file: None, variables: Vec::new(), origins: BTreeMap::new() }
    }
}

/// Reads `file` (or only the defaults) and applies the variables in `environment` that begin with
/// [`ENVIRONMENT_PREFIX`].
///
/// # Errors
/// [`ConfigError`]: nothing was opened or changed yet; repair the file.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    load_with(None, file, environment)
}

/// As [`load`], with a profile's defaults.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    profile: Option<Profile>,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded, ConfigError> {
    let environment: Vec<(String, String)> = environment.into_iter().collect();
    let mut tree = defaults()?;
    let mut origins = BTreeMap::new();
    if let Some(profile) = profile {
        let values = profile.values();
        leaves("", &values, &mut |key, _| {
            origins.insert(key.to_owned(), format!("profile {}", profile.name()));
        });
        merge(&mut tree, values);
    }
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut values = text::parse(&text)
            .map_err(|reasons| ConfigError::Syntax { path: path.to_owned(), reasons })?;
        resolve(&mut values, "", &environment)?;
        leaves("", &values, &mut |key, _| {
            origins.insert(key.to_owned(), "file".to_owned());
        });
        merge(&mut tree, values);
    }
    let mut variables = Vec::new();
    for (variable, text) in &environment {
        if let Some(key) = variable.strip_prefix(ENVIRONMENT_PREFIX) {
            let place = set_from_environment(&mut tree, variable, key, text)?;
            origins.retain(|key, _| {
                key.strip_prefix(&place).is_none_or(|rest| !rest.starts_with('.'))
            });
            origins.insert(place, format!("environment {variable}"));
            variables.push(variable.clone());
        }
    }
    let config: Config = serde_json::from_value(tree).map_err(|error| {
        ConfigError::Environment { variable: variables.join(", "), reason: error.to_string() }
    })?;
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(ConfigError::Problems(problems));
    }
    Ok(Loaded { config, file: file.map(Path::to_owned), variables, origins })
}

fn defaults() -> Result<Value, ConfigError> {
    serde_json::to_value(Config::default()).map_err(|error| ConfigError::Environment {
        variable: "defaults".to_owned(),
        reason: error.to_string(),
    })
}

/// The known key that was probably meant.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|key| (strsim::damerau_levenshtein(unknown, key), key))
        .filter(|(distance, key)| *distance <= key.len().max(3) / 2)
        .min()
        .map(|(_, key)| key)
}

/// Replaces `${NAME}` in every text value.
fn resolve(
    value: &mut Value,
    key: &str,
    environment: &[(String, String)],
) -> Result<(), ConfigError> {
    match value {
        Value::String(text) => {
            while let Some((before, rest)) = text.split_once("${") {
                let Some((name, after)) = rest.split_once('}') else { break };
                let found = environment.iter().find(|(variable, _)| variable == name);
                let Some((_, replacement)) = found else {
                    return Err(ConfigError::Unset {
                        key: key.to_owned(),
                        variable: name.to_owned(),
                    });
                };
                if replacement.contains("${") {
                    // A value is put in as it is; text in it that looks like a reference would never end.
                    return Err(ConfigError::Unset {
                        key: key.to_owned(),
                        variable: name.to_owned(),
                    });
                }
                *text = format!("{before}{replacement}{after}");
            }
            Ok(())
        }
        Value::Array(items) => {
            items.iter_mut().try_for_each(|item| resolve(item, key, environment))
        }
        Value::Object(entries) => entries.iter_mut().try_for_each(|(name, entry)| {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            resolve(entry, &key, environment)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        // An empty section, as YAML's `kafka:` without anything below it.
        (Value::Object(_), Value::Null) => {}
        (base, over) => *base = over,
    }
}

fn set_from_environment(
    tree: &mut Value,
    variable: &str,
    key: &str,
    text: &str,
) -> Result<String, ConfigError> {
    let wrong = |reason: String| ConfigError::Environment { variable: variable.to_owned(), reason };
    let parts: Vec<String> = key.split("__").map(str::to_lowercase).collect();
    let mut place = tree;
    let mut name = Vec::new();
    for (depth, part) in parts.iter().enumerate() {
        let free_form =
            depth == 2 && parts.starts_with(&["kafka".to_owned(), "properties".to_owned()]);
        let entries = place
            .as_object_mut()
            .ok_or_else(|| wrong(format!("`{part}` is below a key that is not a section")))?;
        if free_form {
            // Properties have dots in their names; variables cannot: `CLIENT_RACK` is `client.rack`.
            name.push(part.replace('_', "."));
            place = entries.entry(part.replace('_', ".")).or_insert(Value::Null);
            continue;
        }
        if !entries.contains_key(part) {
            let near = nearest(part, entries.keys().map(String::as_str));
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            return Err(wrong(format!("there is no key `{part}`{hint}")));
        }
        name.push(part.clone());
        place = entries.entry(part.clone()).or_insert(Value::Null);
    }
    *place = match place {
        // Text stays text even where it looks like a number.
        Value::String(_) => Value::String(text.to_owned()),
        Value::Array(_) if !text.trim_start().starts_with('[') => Value::Array(
            text.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
        ),
        _ if parts.first().is_some_and(|first| first == "kafka") && parts.len() == 3 => {
            Value::String(text.to_owned())
        }
        _ => serde_saphyr::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    };
    Ok(name.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(file.path()), environment)
            .map(|loaded| loaded.config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_profile_stands_between_the_defaults_and_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "metrics: {writers: 7}\n").unwrap();
        for profile in [Profile::Edge, Profile::Server] {
            let loaded = load_with(Some(profile), Some(file.path()), std::iter::empty()).unwrap();
            assert_eq!(loaded.config.metrics.writers, 7);
            assert_ne!(loaded.config.wal, Config::default().wal);
            let origin = |key: &str| loaded.origins.get(key).map(String::as_str);
            assert_eq!(origin("metrics.writers"), Some("file"));
            let profile = format!("profile {}", profile.name());
            assert_eq!(origin("wal.metrics_bytes_max"), Some(profile.as_str()));
        }
    }

    #[test]
    fn a_credential_that_systemd_has_put_somewhere_is_found_there() {
        let text = "http:\n  token_file: ${CREDENTIALS_DIRECTORY}/token\n";
        let directory = "/run/credentials/monasca-persister.service";
        let config = from_text(text, &[("CREDENTIALS_DIRECTORY", directory)]).unwrap();
        assert_eq!(config.http.token_file, Some(Path::new(directory).join("token")));
        assert!(from_text(text, &[]).unwrap_err().contains("CREDENTIALS_DIRECTORY"));
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(from_text("# nothing\n\n", &[]).unwrap(), Config::default());
    }

    #[test]
    fn a_section_given_in_part_keeps_its_own_defaults() {
        let config = from_text("alarms:\n  writers: 3\n", &[]).unwrap();
        assert_eq!(
            (config.alarms.writers, config.alarms.topic.as_str()),
            (3, "alarm-state-transitions")
        );
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_key() {
        let error =
            from_text("http:\n  bind: 127.0.0.1:1\nmetrics:\n  writrs: 3\n", &[]).unwrap_err();
        assert!(error.contains("writrs") && error.contains("Did you mean `writers`?"), "{error}");
        assert!(error.contains("line 4") || error.contains(":4:"), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let config = from_text(
            "http: {bind: '127.0.0.1:1'}\n",
            &[
                ("MONASCA_PERSISTER__HTTP__BIND", "127.0.0.1:2"),
                ("MONASCA_PERSISTER__METRICS__WRITERS", "7"),
                ("MONASCA_PERSISTER__KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2"),
                ("MONASCA_PERSISTER__KAFKA__PROPERTIES__CLIENT_RACK", "7"),
                ("MONASCA_PERSISTER__KAFKA__SECURITY__PROTOCOL", "tls"),
                ("MONASCA_PERSISTER__KAFKA__SECURITY__TLS__CA_FILE", "/ca"),
                ("MONASCA_PERSISTER__KAFKA__SECURITY__SASL__MECHANISM", "scram-sha-512"),
                ("MONASCA_PERSISTER__KAFKA__SECURITY__SASL__USERNAME", "persister"),
                ("MONASCA_PERSISTER__KAFKA__SECURITY__SASL__PASSWORD_ENV", "PASSWORD"),
                ("MONASCA_PERSISTER__WAL__HOLD_BACK", "5s"),
                ("MONASCA_PERSISTER__STORE__CASSANDRA__PASSWORD_FILE", "/run/secret"),
                ("MONASCA_PERSISTER__STORE__CASSANDRA__USER", "persister"),
                ("OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.http.bind.port(), 2);
        assert_eq!(config.metrics.writers, 7);
        assert_eq!(config.kafka.bootstrap_servers, ["a:1", "b:2"]);
        assert_eq!(config.kafka.properties.get("client.rack").map(String::as_str), Some("7"));
        assert_eq!(config.kafka.security.tls.ca_file, Some(PathBuf::from("/ca")));
        assert_eq!(config.kafka.security.sasl.password_env.as_deref(), Some("PASSWORD"));
        assert_eq!(config.wal.hold_back, std::time::Duration::from_secs(5));
        assert_eq!(config.store.cassandra.password_file, Some(PathBuf::from("/run/secret")));
    }

    #[test]
    fn a_variable_that_names_no_key_is_refused_with_the_nearest_one() {
        let error = from_text("", &[("MONASCA_PERSISTER__METRICS__WRITER", "7")]).unwrap_err();
        assert!(
            error.contains("MONASCA_PERSISTER__METRICS__WRITER") && error.contains("`writers`"),
            "{error}"
        );
    }

    #[test]
    fn references_to_variables_are_filled_in_after_parsing() {
        let text = "kafka:\n  client_id: \"p-${HOST}\"\n";
        let config = from_text(text, &[("HOST", "a: b # c")]).unwrap();
        assert_eq!(config.kafka.client_id, "p-a: b # c");
        assert!(from_text(text, &[]).unwrap_err().contains("kafka.client_id"));
    }

    #[test]
    fn a_password_written_into_the_configuration_is_refused_and_not_repeated() {
        let error = from_text(
            "kafka:\n  security:\n    sasl:\n      password: canary-in-file\n      username: u\n",
            &[],
        )
        .unwrap_err();
        assert!(error.contains("password_file") && !error.contains("canary"), "{error}");
        let error =
            from_text("", &[("MONASCA_PERSISTER__KAFKA__SECURITY__SASL__PASSWORD", "canary")])
                .unwrap_err();
        assert!(error.contains("password_") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn every_mistake_in_a_file_is_reported_at_once_with_its_line() {
        let file = "metricss: {}\nwal:\n  min_free_bites: 3\n\nhttp:\n  bind: 5\nkafka:\n  bootstrap_servers: \"a:1\"\n  \
                    ledger: maybe\nmetrics:\n  writrs: 3\n  freshness: 2s\n";
        let error = from_text(file, &[]).unwrap_err();
        let places = ["line 1,", "line 3,", "line 6,", "line 8,", "line 9,", "line 11,"];
        for place in places {
            assert!(error.contains(place), "{place}: {error}");
        }
        for near in ["metrics", "min_free_bytes", "writers"] {
            assert!(error.contains(&format!("Did you mean `{near}`?")), "{near}: {error}");
        }
        assert_eq!(error.matches(" at line ").count(), places.len(), "{error}");
        // What cannot be read any further ends the list, and the program goes on looking at nothing.
        let error = from_text("metricss: {}\nwal: [\n", &[]).unwrap_err();
        assert!(error.contains("line"), "{error}");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error =
            from_text("metrics: {writers: 0}\nkafka: {bootstrap_servers: []}\n", &[]).unwrap_err();
        assert!(
            error.contains("metrics.writers") && error.contains("kafka.bootstrap_servers"),
            "{error}"
        );
    }
}
