//! A configuration of an older persister as ours, with what became of every key of it.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

/// What became of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Under this key, with the same meaning.
    Taken(String),
    /// Not needed, or done otherwise; and why.
    Dropped(&'static str),
    /// A person has to do something; and what.
    Yours(&'static str),
}

/// One key of the old configuration; or, with an empty one, what was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The old key, dotted.
    pub key: String,
    /// What became of it.
    pub fate: Fate,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, fate } = self;
        match fate {
            Fate::Taken(new) if key.is_empty() => write!(f, "added    {new}"),
            Fate::Taken(new) => write!(f, "taken    {key} -> {new}"),
            Fate::Dropped(why) => write!(f, "dropped  {key}: {why}"),
            Fate::Yours(what) => write!(f, "YOURS    {key}: {what}"),
        }
    }
}

/// The result.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// Our configuration, only what differs from the defaults or was said.
    pub tree: Value,
    /// Every key of the old one.
    pub report: Vec<Line>,
}

/// An old configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Neither of the two.
    #[error(
        "neither the Java persister's YAML (metricConfiguration, cassandraDbConfiguration) nor the Python persister's INI ([kafka_metrics], [cassandra])"
    )]
    Unknown,
    /// It looks like YAML and is none.
    #[error("the file is no YAML: {0}")]
    Yaml(String),
}

const BATCHES: &str = "requests are grouped by series and by what waits; metrics.batch_rows_max is a limit for one request";
const WAITS: &str = "messages are durable before they are grouped; metrics.freshness is how long rows wait for others";
const COMMITS: &str = "offsets are committed once messages are durable in the log, at most every kafka.commit_interval";
const ADAPTS: &str = "the number of requests in flight adapts to what the nodes take";
const FOR_EVER: &str =
    "what may succeed later is sent again for as long as it takes; nothing is given up";
const NAMES: &str = "members are named by `instance` and kafka.group_instance_id";
const NO_ZOOKEEPER: &str = "ZooKeeper is not asked for brokers any more: set kafka.bootstrap_servers to host:port of one or more";
const PASSWORD: &str = "a password does not stand in the configuration: write it to the file that store.cassandra.password_file names, chmod 600";
const FETCHES: &str = "memory is bounded at the fetch (docs/memory.md); kafka.properties can set what librdkafka knows";
const OTHER_STORE: &str = "rows go to Cassandra or to an embedded store";
const STANDARD_ERROR: &str = "the log goes to standard error; see logging.level and logging.format";
const UNKNOWN: &str = "it has no counterpart here";

/// Builds our configuration.
#[derive(Default)]
struct Builder {
    tree: Value,
    report: Vec<Line>,
}

impl Builder {
    fn set(&mut self, key: &str, value: Value) {
        let mut place = &mut self.tree;
        for part in key.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            let Some(fields) = place.as_object_mut() else { return };
            place = fields.entry(part).or_insert(Value::Null);
        }
        *place = value;
    }

    fn taken(&mut self, old: &str, new: &str, value: Value) {
        self.set(new, value);
        self.report.push(Line { key: old.to_owned(), fate: Fate::Taken(new.to_owned()) });
    }

    fn dropped(&mut self, old: &str, why: &'static str) {
        self.report.push(Line { key: old.to_owned(), fate: Fate::Dropped(why) });
    }

    fn yours(&mut self, old: &str, what: &'static str) {
        self.report.push(Line { key: old.to_owned(), fate: Fate::Yours(what) });
    }

    /// What both had, under names made alike.
    fn common(&mut self, old: &str, name: &str, value: &Value, all: &BTreeMap<String, Value>) {
        match name {
            "cassandra.contact_points" => {
                let port = all.get("cassandra.port").map_or_else(|| "9042".to_owned(), plain);
                let points = list(value).into_iter().map(|host| format!("{host}:{port}"));
                self.taken(old, "store.cassandra.contact_points", points.collect());
            }
            "cassandra.port" => {
                let new = "store.cassandra.contact_points".to_owned();
                self.report.push(Line { key: old.to_owned(), fate: Fate::Taken(new) });
            }
            "cassandra.keyspace" => {
                self.taken(old, "store.cassandra.keyspace", json!(plain(value)))
            }
            "cassandra.user" if plain(value).is_empty() => {
                self.dropped(old, "it is empty: no password is asked for")
            }
            "cassandra.user" => self.taken(old, "store.cassandra.user", json!(plain(value))),
            "cassandra.password" if plain(value).is_empty() => self.dropped(old, "it is empty"),
            "cassandra.password" => {
                self.set(
                    "store.cassandra.password_file",
                    json!("/etc/monasca-persister/cassandra-password"),
                );
                self.yours(old, PASSWORD);
            }
            "cassandra.local_data_center" => {
                self.taken(old, "store.cassandra.local_data_center", json!(plain(value)))
            }
            "cassandra.consistency_level" => {
                self.taken(old, "store.cassandra.consistency", json!(plain(value).to_uppercase()))
            }
            "cassandra.retention_policy" => {
                self.taken(old, "retention", json!(format!("{}d", plain(value))))
            }
            "cassandra.max_definition_cache_size" => {
                self.taken(old, "store.definitions_max", number(value));
            }
            "cassandra.max_write_retries" => self.dropped(old, FOR_EVER),
            "cassandra.max_connections" | "cassandra.max_requests" | "cassandra.max_batches" => {
                self.dropped(old, ADAPTS);
            }
            "cassandra.connection_timeout" => {
                self.dropped(old, "connections are tried again for as long as it takes");
            }
            _ => self.pipeline(old, name, value),
        }
    }

    fn pipeline(&mut self, old: &str, name: &str, value: &Value) {
        let Some((pipeline, what)) = name.split_once('.') else {
            return self.dropped(old, UNKNOWN);
        };
        let key = |ours: &str| format!("{pipeline}.{ours}");
        match what {
            _ if pipeline != "metrics" && pipeline != "alarms" => self.dropped(old, UNKNOWN),
            "topic" => self.taken(old, &key("topic"), json!(plain(value))),
            "group_id" => self.taken(old, &key("group_id"), json!(plain(value))),
            "enabled" => {
                let enabled = plain(value).eq_ignore_ascii_case("true");
                self.taken(old, &key("enabled"), json!(enabled));
            }
            // None had writers of their own; a thread did everything.
            "threads" => self.taken(old, &key("writers"), number(value)),
            "batch_size" => self.dropped(old, BATCHES),
            "max_batch_time" => self.dropped(old, WAITS),
            "commit_batch_time" => self.dropped(old, COMMITS),
            "consumer_id" | "client_id" => self.dropped(old, NAMES),
            "fetch_size_bytes" | "buffer_size" | "max_buffer_size" => self.dropped(old, FETCHES),
            _ => self.dropped(old, UNKNOWN),
        }
    }

    fn finish(mut self, scheme: &str, keys: &BTreeMap<String, Value>) -> Converted {
        self.set("metric_id_scheme", json!(scheme));
        let added = |what: String| Line { key: String::new(), fate: Fate::Taken(what) };
        self.report.push(added(format!(
            "metric_id_scheme: {scheme}, so that every series keeps its id (`schema check` tells)"
        )));
        if !keys.contains_key("cassandra.consistency_level") {
            self.set("store.cassandra.consistency", json!("ONE"));
            self.report.push(added(
                "store.cassandra.consistency: ONE, the old default; LOCAL_QUORUM is safer"
                    .to_owned(),
            ));
        }
        if self.tree.pointer("/kafka/bootstrap_servers").is_none() {
            self.yours("kafka.bootstrap_servers", NO_ZOOKEEPER);
        }
        Converted { tree: self.tree, report: self.report }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn number(value: &Value) -> Value {
    plain(value).trim().parse::<u64>().map_or_else(|_| value.clone(), Value::from)
}

fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().map(plain).collect(),
        other => plain(other)
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect(),
    }
}

/// Converts the text of an old configuration, whichever it is.
///
/// # Errors
/// [`ConvertError`]: it is neither.
pub fn convert(text: &str) -> Result<Converted, ConvertError> {
    let is_ini = text.lines().any(|line| {
        matches!(line.trim(), "[kafka_metrics]" | "[cassandra]" | "[kafka_alarm_history]")
    });
    if is_ini {
        return Ok(from_python(text));
    }
    if !text.contains("metricConfiguration") && !text.contains("cassandraDbConfiguration") {
        return Err(ConvertError::Unknown);
    }
    let tree: Value = serde_saphyr::from_str(text)
        // Without the lines around the place: a password may stand there.
        .map_err(|error| ConvertError::Yaml(error.without_snippet().to_string()))?;
    Ok(from_java(&tree))
}

/// A key of an old configuration.
struct Old {
    key: String,
    /// The same for both persisters where they mean the same.
    name: String,
    value: Value,
}

impl Old {
    fn new(
        key: String,
        value: Value,
        sections: &[(&str, &'static str)],
        rename: impl Fn(&str) -> String,
    ) -> Self {
        let (section, rest) = key.split_once('.').unwrap_or((&key, ""));
        let alike = sections.iter().find(|(old, _)| *old == section);
        let name = format!("{}.{}", alike.map_or(section, |(_, alike)| alike), rename(rest));
        Self { key, name, value }
    }
}

/// `maxBatchTime` as `max_batch_time`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

fn from_java(tree: &Value) -> Converted {
    let mut old = Vec::new();
    super::shown::leaves("", tree, &mut |key, value| old.push((key.to_owned(), value.clone())));
    const SECTIONS: [(&str, &str); 3] = [
        ("metricConfiguration", "metrics"),
        ("alarmHistoryConfiguration", "alarms"),
        ("cassandraDbConfiguration", "cassandra"),
    ];
    let old: Vec<Old> =
        old.into_iter().map(|(key, value)| Old::new(key, value, &SECTIONS, snake)).collect();
    let all: BTreeMap<String, Value> =
        old.iter().map(|one| (one.name.clone(), one.value.clone())).collect();
    let mut builder = Builder::default();
    for Old { key, name, value } in &old {
        match name.as_str() {
            "metrics.num_threads" | "alarms.num_threads" => {
                let name = name.replace("num_threads", "threads");
                builder.common(key, &name, value, &all);
            }
            "cassandra.read_timeout" => {
                builder.taken(
                    key,
                    "store.cassandra.request_timeout",
                    json!(format!("{}ms", plain(value))),
                );
            }
            "kafkaConfig.zookeeper_connect" => builder.yours(key, NO_ZOOKEEPER),
            "kafkaConfig.bootstrap_servers" => {
                builder.taken(key, "kafka.bootstrap_servers", json!(list(value)));
            }
            "kafkaConfig.auto_offset_reset" => {
                let start = if plain(value).starts_with("large") || plain(value) == "latest" {
                    "latest"
                } else {
                    "earliest"
                };
                builder.taken(key, "kafka.initial_offset", json!(start));
            }
            "logging.level" => {
                builder.taken(key, "logging.level", json!(plain(value).to_lowercase()))
            }
            "databaseConfiguration.database_type" => builder.dropped(key, OTHER_STORE),
            _ if key.starts_with("kafkaConfig.fetch") || key.contains("socket") => {
                builder.dropped(key, FETCHES)
            }
            _ if key.starts_with("kafkaConfig.") => builder.dropped(key, COMMITS),
            "server.admin_connectors" => {
                let port = value.pointer("/0/port").and_then(Value::as_u64).unwrap_or(8091);
                builder.taken(key, "http.bind", json!(format!("127.0.0.1:{port}")));
            }
            _ if key.starts_with("server.") => {
                builder.dropped(
                    key,
                    "there is one port, http.bind, with the old paths of the admin port",
                );
            }
            _ if key.starts_with("logging.") => {
                builder.dropped(key, STANDARD_ERROR);
            }
            _ => builder.common(key, name, value, &all),
        }
    }
    builder.finish("sha1-concat", &all)
}

fn from_python(text: &str) -> Converted {
    let mut section = "DEFAULT".to_owned();
    let mut old = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once(['=', ':'])
        {
            old.push((format!("{section}.{}", name.trim()), json!(value.trim())));
        }
    }
    const SECTIONS: [(&str, &str); 2] =
        [("kafka_metrics", "metrics"), ("kafka_alarm_history", "alarms")];
    let old: Vec<Old> = old
        .into_iter()
        .map(|(key, value)| Old::new(key, value, &SECTIONS, str::to_owned))
        .collect();
    let all: BTreeMap<String, Value> =
        old.iter().map(|one| (one.name.clone(), one.value.clone())).collect();
    let mut builder = Builder::default();
    for Old { key, name, value } in &old {
        match name.as_str() {
            "metrics.uri" | "alarms.uri" | "kafka.uri" => {
                builder.taken(key, "kafka.bootstrap_servers", json!(list(value)));
            }
            "metrics.num_processors" | "alarms.num_processors" => {
                let name = name.replace("num_processors", "threads");
                builder.common(key, &name, value, &all);
            }
            "metrics.max_wait_time_seconds" | "alarms.max_wait_time_seconds" => {
                builder.dropped(key, WAITS)
            }
            "metrics.legacy_kafka_client_enabled" | "alarms.legacy_kafka_client_enabled" => {
                builder.dropped(
                    key,
                    "there is one client; stop all old members before this program starts",
                );
            }
            "cassandra.read_timeout" => {
                builder.taken(
                    key,
                    "store.cassandra.request_timeout",
                    json!(format!("{}s", plain(value))),
                );
            }
            "DEFAULT.debug" => {
                let level =
                    if plain(value).eq_ignore_ascii_case("true") { "debug" } else { "info" };
                builder.taken(key, "logging.level", json!(level));
            }
            _ if key.starts_with("repositories.") || key.starts_with("influxdb.") => {
                builder.dropped(key, OTHER_STORE)
            }
            _ if key.starts_with("DEFAULT.") => {
                builder.dropped(key, STANDARD_ERROR);
            }
            _ if key.starts_with("zookeeper.") => builder.dropped(key, NO_ZOOKEEPER),
            _ => builder.common(key, name, value, &all),
        }
    }
    builder.finish("sha1-nul", &all)
}

/// A tree of sections and values as YAML.
#[must_use]
pub fn to_yaml(tree: &Value) -> String {
    fn write(value: &Value, depth: usize, into: &mut String) {
        for (key, value) in value.as_object().into_iter().flatten() {
            into.push_str(&"  ".repeat(depth));
            into.push_str(key);
            into.push(':');
            if value.is_object() {
                into.push('\n');
                write(value, depth.saturating_add(1), into);
            } else {
                // JSON is YAML.
                into.push(' ');
                into.push_str(&value.to_string());
                into.push('\n');
            }
        }
    }
    let mut text = String::new();
    write(tree, 0, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, load};
    use crate::ingest::InitialOffset;

    const JAVA: &str = "
name: monasca-persister
alarmHistoryConfiguration: {batchSize: 100, numThreads: 1, maxBatchTime: 15, topic: alarm-state-transitions, groupId: 1_alarm-state-transitions, consumerId: persister, clientId: 1}
metricConfiguration: {batchSize: 20000, numThreads: 4, maxBatchTime: 15, commitBatchTime: 0, topic: metrics, groupId: site_metrics, consumerId: persister, clientId: 1}
kafkaConfig: {zookeeperConnect: 'zk:2181', autoOffsetReset: largest, fetchMessageMaxBytes: 1048576, fetchMinBytes: 1, socketTimeoutMs: 30000}
databaseConfiguration: {databaseType: cassandra}
cassandraDbConfiguration: {contactPoints: 'db1, db2', port: 9142, user: mon, password: canary, keyspace: mon, localDataCenter: dc1, maxConnections: 5, readTimeout: 60000, maxWriteRetries: 5, maxDefinitionCacheSize: 20000, consistencyLevel: ONE, retentionPolicy: 30}
server: {applicationConnectors: [{type: http, port: 8090}], adminConnectors: [{type: http, port: 9091}]}
logging: {level: WARN, loggers: {monasca: DEBUG}}
";
    const PYTHON: &str = "
[DEFAULT]
debug = False
# a remark = nothing
[repositories]
metrics_driver = monasca_persister.repositories.cassandra.metrics_repository:MetricCassandraRepository
[kafka_metrics]
enabled = true
uri = k1:9092, k2:9092
group_id = 1_metrics
topic = metrics
num_processors = 3
batch_size = 1000
max_wait_time_seconds = 30
[kafka_alarm_history]
enabled = false
uri = k1:9092, k2:9092
[cassandra]
contact_points = 10.0.0.1,10.0.0.2
port = 9042
keyspace = monasca
user = u
password = canary
read_timeout = 7
retention_policy = 60
max_batches = 250
";

    fn loaded(converted: &Converted) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), to_yaml(&converted.tree)).unwrap();
        load(Some(file.path()), std::iter::empty()).unwrap().config
    }

    fn keys(converted: &Converted) -> Vec<&str> {
        converted.report.iter().map(|line| line.key.as_str()).collect()
    }

    #[test]
    fn the_java_persisters_configuration_is_taken_over_with_a_line_for_every_key() {
        let converted = convert(JAVA).unwrap();
        let config = loaded(&converted);
        assert_eq!(config.metrics.group_id, "site_metrics");
        assert_eq!((config.metrics.writers, config.alarms.writers), (4, 1));
        assert_eq!(config.store.cassandra.contact_points, ["db1:9142", "db2:9142"]);
        assert_eq!(config.store.cassandra.request_timeout.as_secs(), 60);
        assert_eq!(config.store.definitions_max, 20_000);
        assert_eq!(config.retention.as_secs(), 30 * 86_400);
        assert_eq!(config.kafka.initial_offset, InitialOffset::Latest);
        assert_eq!(config.metric_id_scheme.name(), "sha1-concat");
        assert_eq!((config.http.bind.port(), config.logging.level.as_str()), (9091, "warn"));
        let mut missing = Vec::new();
        let tree: Value = serde_saphyr::from_str(JAVA).unwrap();
        super::super::shown::leaves("", &tree, &mut |key, _| {
            if !keys(&converted).contains(&key) {
                missing.push(key.to_owned());
            }
        });
        assert!(missing.is_empty(), "{missing:?}");
        assert!(!format!("{converted:?}").contains("canary"));
        let yours = converted.report.iter().filter(|line| matches!(line.fate, Fate::Yours(_)));
        assert_eq!(yours.count(), 3, "{:?}", converted.report);
    }

    #[test]
    fn the_python_persisters_configuration_is_taken_over_with_a_line_for_every_key() {
        let converted = convert(PYTHON).unwrap();
        let config = loaded(&converted);
        assert_eq!(config.kafka.bootstrap_servers, ["k1:9092", "k2:9092"]);
        assert_eq!((config.metrics.writers, config.alarms.enabled), (3, false));
        assert_eq!(config.store.cassandra.contact_points, ["10.0.0.1:9042", "10.0.0.2:9042"]);
        assert_eq!(config.store.cassandra.request_timeout.as_secs(), 7);
        assert_eq!(config.store.cassandra.consistency, "ONE");
        assert_eq!(config.metric_id_scheme.name(), "sha1-nul");
        assert_eq!(
            PYTHON.matches(" = ").count() - 1,
            keys(&converted).iter().filter(|key| !key.is_empty()).count()
        );
        assert!(!format!("{converted:?}").contains("canary"));
    }

    #[test]
    fn something_else_is_refused() {
        assert!(matches!(convert("kafka: {}\n"), Err(ConvertError::Unknown)));
        let error = convert("metricConfiguration: {password: canary\n").unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
