//! What can be configured: plain fields, each default beside its reason. `load.rs` reads it, `check.rs` finds what is
//! wrong with it.

mod check;
pub mod convert;
mod load;
mod profile;
mod schema;
mod security;
mod shown;
mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use storage::IdScheme;

pub use check::ConfigProblem;
pub use load::{ConfigError, ENVIRONMENT_PREFIX, Loaded, load, load_with};
pub use profile::Profile;
pub use schema::{DurationText, SizeText, json_schema};
pub use security::{KafkaOauth, KafkaProtocol, KafkaSasl, KafkaSecurity, KafkaTls, SaslMechanism};
pub use shown::{LIVE, ShownConfig, ShownValue, redacted};

use crate::gather::Kind;
use crate::ingest::{CommitAfter, InitialOffset};
use crate::kafka_gap::GapPolicies;

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of the logs, the dead letters and the embedded store.
    pub data_dir: PathBuf,
    /// Stable name of this persister, for example the host's or the pod's: the name of its ledger in Kafka. Empty: made
    /// of the machine's id and the path of the data directory.
    pub instance: String,
    /// How long rows are kept in the store. Upstream's default.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub retention: Duration,
    /// What is done about a backlog of which more than a hundredth is older than that by this machine's clock.
    pub expired_backlog: ExpiredBacklog,
    /// How series get their ids. A site that switches from an older persister must keep its scheme.
    #[schemars(with = "String", extend("enum" = ["sha256", "sha1-nul", "sha1-concat"]))]
    pub metric_id_scheme: IdScheme,
    /// The brokers.
    pub kafka: KafkaConfig,
    /// The metrics pipeline.
    pub metrics: PipelineConfig,
    /// The pipeline of alarm state transitions.
    pub alarms: PipelineConfig,
    /// Further pipelines by name: more topics of either kind, each with a consumer, a log and writers of its own.
    pub more_pipelines: BTreeMap<String, MorePipeline>,
    /// The write-ahead logs.
    pub wal: LogConfig,
    /// Messages that can never be stored.
    pub dead_letters: DeadLettersConfig,
    /// Where rows go.
    pub store: StoreConfig,
    /// The operators' surface.
    pub http: HttpConfig,
    /// Stopping.
    pub shutdown: ShutdownConfig,
    /// Log lines.
    pub logging: LoggingConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/monasca-persister"),
            instance: String::new(),
            retention: Duration::from_secs(45 * 24 * 60 * 60),
            expired_backlog: ExpiredBacklog::default(),
            metric_id_scheme: IdScheme::default(),
            kafka: KafkaConfig::default(),
            metrics: PipelineConfig::metrics(),
            alarms: PipelineConfig::alarms(),
            more_pipelines: BTreeMap::new(),
            wal: LogConfig::default(),
            dead_letters: DeadLettersConfig::default(),
            store: StoreConfig::default(),
            http: HttpConfig::default(),
            shutdown: ShutdownConfig::default(),
            logging: LoggingConfig::default(),
        }
    }
}

/// What is done about a backlog that is older than the retention.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, schemars::JsonSchema, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ExpiredBacklog {
    /// Delivery waits: more often than not the clock is wrong.
    #[default]
    Wait,
    /// It is counted and not written.
    Drop,
}

/// The brokers and how to talk to them.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// `host:port` of one or more brokers.
    pub bootstrap_servers: Vec<String>,
    /// Name shown in the brokers' logs.
    pub client_id: String,
    /// Name of this member in its groups: one that returns within its session has its partitions back, and the other
    /// members do not notice. Each member needs its own. Empty: the instance's name, unless that had to be made up.
    pub group_instance_id: String,
    /// A member that is silent for so long loses its partitions, also one that was stopped. Long enough for a restart.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub session_timeout: Duration,
    /// Where a group without any offset and an empty log begins.
    pub initial_offset: InitialOffset,
    /// Shortest time between two commits.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub commit_interval: Duration,
    /// Another instance that owes something and was not heard of for so long is taken over without being asked. The same
    /// for all instances of a group: each says something three times in it. None: an operator decides.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<DurationText>")]
    pub takeover_after: Option<Duration>,
    /// How often a ledger that Kafka forbids is tried again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub ledger_retry: Duration,
    /// What must have happened to a message before its offset is committed: `wal` (durable in the log) or `delivery`
    /// (in the store or the dead letters as well).
    pub commit_after: CommitAfter,
    /// What is done where Kafka does not have, or does not have any more, what we expect.
    pub gaps: GapPolicies,
    /// TLS and SASL.
    pub security: KafkaSecurity,
    /// Further librdkafka properties. Those that carry the guarantee or have a key of their own cannot be set.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap_servers: vec!["127.0.0.1:9092".to_owned()],
            client_id: "monasca-persister".to_owned(),
            group_instance_id: String::new(),
            session_timeout: Duration::from_secs(45),
            initial_offset: InitialOffset::Earliest,
            commit_interval: Duration::from_secs(1),
            takeover_after: None,
            ledger_retry: Duration::from_secs(60),
            commit_after: CommitAfter::Wal,
            gaps: GapPolicies::default(),
            security: KafkaSecurity::default(),
            properties: BTreeMap::new(),
        }
    }
}

/// One pipeline: a topic, a consumer, a log and its writers.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    /// False leaves the topic alone.
    pub enabled: bool,
    /// Topic to consume.
    pub topic: String,
    /// Consumer group; the old persister's default, so that a site that switches goes on where it stopped.
    pub group_id: String,
    /// Writer threads.
    pub writers: usize,
    /// Most requests in flight per writer.
    pub in_flight_per_writer: usize,
    /// Most rows in one request.
    pub batch_rows_max: usize,
    /// Most bytes in one request, about; Cassandra warns at 5 KiB for several partitions only.
    #[schemars(with = "SizeText")]
    pub batch_bytes_max: ByteSize,
    /// How long rows wait for others of their series when there is no backlog. What waits is already safe.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub freshness: Duration,
    /// Most rows looked at together; with a backlog more of them share a series.
    pub gather_rows_max: usize,
    /// Longer messages become dead letters.
    #[schemars(with = "SizeText")]
    pub message_bytes_max: ByteSize,
}

impl PipelineConfig {
    fn metrics() -> Self {
        Self {
            enabled: true,
            topic: "metrics".to_owned(),
            group_id: "1_metrics".to_owned(),
            writers: 2,
            in_flight_per_writer: 32,
            batch_rows_max: 100,
            batch_bytes_max: ByteSize::kib(64),
            freshness: Duration::from_secs(1),
            gather_rows_max: 500_000,
            message_bytes_max: ByteSize::mib(1),
        }
    }

    fn alarms() -> Self {
        Self {
            topic: "alarm-state-transitions".to_owned(),
            group_id: "1_alarm-state-transitions".to_owned(),
            writers: 1,
            gather_rows_max: 5_000,
            ..Self::metrics()
        }
    }
}

impl Default for PipelineConfig {
    /// The metrics pipeline's; the alarms' own defaults are filled in when the section is read.
    fn default() -> Self {
        Self::metrics()
    }
}

/// A pipeline beside the two that there always are.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MorePipeline {
    /// What its topic carries.
    pub kind: Kind,
    /// Most bytes of its log.
    #[serde(default = "MorePipeline::log_bytes_max")]
    #[schemars(with = "SizeText")]
    pub log_bytes_max: ByteSize,
    /// The rest, as for the two others. Topic and group must be its own.
    pub pipeline: PipelineConfig,
}

impl MorePipeline {
    fn log_bytes_max() -> ByteSize {
        LogConfig::default().metrics_bytes_max
    }
}

/// One pipeline of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct PipelineSpec<'a> {
    /// Its name in paths, metrics and log lines.
    pub name: &'a str,
    /// What its topic carries.
    pub kind: Kind,
    /// Most bytes of its log.
    pub log_bytes_max: u64,
    /// The rest.
    pub pipeline: &'a PipelineConfig,
}

impl Config {
    /// All pipelines, those that are not enabled included.
    pub fn pipelines(&self) -> impl Iterator<Item = PipelineSpec<'_>> {
        let named = [
            (Kind::Metrics, &self.metrics, self.wal.metrics_bytes_max),
            (Kind::Alarms, &self.alarms, self.wal.alarms_bytes_max),
        ];
        let named = named.into_iter().map(|(kind, pipeline, log_bytes_max)| PipelineSpec {
            name: kind.name(),
            kind,
            log_bytes_max: log_bytes_max.as_u64(),
            pipeline,
        });
        named.chain(self.more_pipelines.iter().map(|(name, more)| PipelineSpec {
            name,
            kind: more.kind,
            log_bytes_max: more.log_bytes_max.as_u64(),
            pipeline: &more.pipeline,
        }))
    }
}

/// The write-ahead logs.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Most bytes of the metrics log: how long an outage it absorbs.
    #[schemars(with = "SizeText")]
    pub metrics_bytes_max: ByteSize,
    /// Most bytes of the alarms log.
    #[schemars(with = "SizeText")]
    pub alarms_bytes_max: ByteSize,
    /// Most bytes of the dead letters.
    #[schemars(with = "SizeText")]
    pub dead_letters_bytes_max: ByteSize,
    /// Free space that must be left on the file system of the logs: below it, they take no more of it and consumption
    /// pauses.
    #[schemars(with = "SizeText")]
    pub min_free_bytes: ByteSize,
    /// How long delivered records are kept, to be delivered again when a node of Cassandra restarts or is away: it
    /// acknowledges before its own commit log is synced.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub hold_back: Duration,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            metrics_bytes_max: ByteSize::gib(10),
            alarms_bytes_max: ByteSize::mib(512),
            dead_letters_bytes_max: ByteSize::gib(1),
            min_free_bytes: ByteSize::mib(256),
            hold_back: Duration::from_secs(60),
        }
    }
}

/// Messages that can never be stored. How many bytes they may take is `wal.dead_letters_bytes_max`.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLettersConfig {
    /// The status warns about one that is older: somebody should look. None: it never does.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<DurationText>")]
    pub warn_after: Option<Duration>,
    /// While the oldest one is older, no others are kept: delivery waits at the next bad message until somebody has dealt
    /// with it. None: age holds up nothing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<DurationText>")]
    pub age_max: Option<Duration>,
    /// A topic that they are sent to. They leave the log when the brokers have acknowledged them. None: they stay.
    pub topic: Option<String>,
}

impl Default for DeadLettersConfig {
    fn default() -> Self {
        Self {
            // A week has a working day in it.
            warn_after: Some(Duration::from_secs(7 * 24 * 60 * 60)),
            // A site must want that delivery waits for a person.
            age_max: None,
            topic: None,
        }
    }
}

/// Which store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Apache Cassandra or ScyllaDB.
    Cassandra,
    /// The embedded store for trying it out.
    Sled,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Which one.
    pub kind: StoreKind,
    /// Used when `kind` is `cassandra`.
    pub cassandra: CassandraSection,
    /// Used when `kind` is `sled`.
    pub sled: SledSection,
    /// How often a series' definition is written again, so that it outlives its data; its time to live is the retention
    /// and two of these.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub definition_refresh: Duration,
    /// Most series remembered as written; about 22 bytes each, taken as they appear.
    pub definitions_max: usize,
    /// Most bytes a second that are sent to the store, all pipelines together, about; `None`: no limit.
    #[schemars(with = "Option<SizeText>")]
    pub max_write_bytes_per_second: Option<ByteSize>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            kind: StoreKind::Cassandra,
            cassandra: CassandraSection::default(),
            sled: SledSection::default(),
            definition_refresh: Duration::from_secs(24 * 60 * 60),
            definitions_max: 2_000_000,
            max_write_bytes_per_second: None,
        }
    }
}

/// Whether what is sent to Cassandra is compressed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CqlCompression {
    /// As it is: on a fast network compression costs more time than it saves.
    #[default]
    None,
    /// With LZ4, for slow or paid links.
    Lz4,
}

/// A Cassandra or ScyllaDB cluster.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CassandraSection {
    /// `host:port` of one or more nodes. Names are looked up again after an outage.
    pub contact_points: Vec<String>,
    /// Keyspace with Monasca's tables.
    pub keyspace: String,
    /// Data centre whose nodes are used; empty: all.
    pub local_data_center: String,
    /// Replicas that must confirm a write. The old persister's default was `ONE`.
    pub consistency: String,
    /// User name; empty: no authentication.
    pub user: String,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Variable that holds the password.
    pub password_env: Option<String>,
    /// Plaintext is the default because that is what an older persister spoke; it is never fallen back to.
    pub protocol: KafkaProtocol,
    /// Used when `protocol` is `tls`.
    pub tls: KafkaTls,
    /// Of requests and answers.
    pub compression: CqlCompression,
    /// How long a request may take, all attempts of the driver together.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub request_timeout: Duration,
    /// Replication of the keyspace as `schema apply` creates it, in CQL.
    pub replication: String,
}

impl CassandraSection {
    /// What an operator should know at every start, because it is allowed and yet not safe.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.tls.insecure_skip_verification {
            warnings.push(
                "store.cassandra.tls.insecure_skip_verification: anybody can pretend to be a node",
            );
        } else if self.tls.insecure_skip_hostname_verification {
            warnings.push(
                "store.cassandra.tls.insecure_skip_hostname_verification: anybody with a certificate of this CA can pretend to be a node",
            );
        }
        if self.protocol == KafkaProtocol::Plaintext && !self.user.is_empty() {
            warnings.push(
                "store.cassandra.protocol is plaintext: the password and all rows can be read on their way",
            );
        }
        warnings
    }
}

impl Default for CassandraSection {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "monasca".to_owned(),
            local_data_center: String::new(),
            consistency: "LOCAL_QUORUM".to_owned(),
            user: String::new(),
            password_file: None,
            password_env: None,
            protocol: KafkaProtocol::default(),
            tls: KafkaTls::default(),
            compression: CqlCompression::default(),
            request_timeout: Duration::from_secs(10),
            replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        }
    }
}

/// The embedded store for trying it out.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SledSection {
    /// Memory for its cache.
    #[schemars(with = "SizeText")]
    pub cache: ByteSize,
    /// Most bytes on disk.
    #[schemars(with = "SizeText")]
    pub bytes_max: ByteSize,
}

impl Default for SledSection {
    fn default() -> Self {
        Self { cache: ByteSize::mib(64), bytes_max: ByteSize::gib(4) }
    }
}

/// The operators' surface.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port. TLS is the work of a proxy in front. An address other than loopback needs `token_file`.
    pub bind: std::net::SocketAddr,
    /// File with the token, at least 32 bytes, that allows to change something (`Authorization: Bearer ...`); only its
    /// owner can read it. At an address other than loopback it is needed for reading as well. None: nothing can be
    /// changed over TCP.
    pub token_file: Option<PathBuf>,
    /// A unix socket beside the address: who may open it (its owner and its group) may change things without a token.
    pub socket: Option<PathBuf>,
    /// Host names by which it may be asked, beside IP addresses and `localhost`: a page of another name that a browser
    /// was lured to is refused.
    pub allowed_hosts: Vec<String>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            bind: std::net::SocketAddr::from(([127, 0, 0, 1], 8091)),
            token_file: None,
            socket: None,
            allowed_hosts: Vec::new(),
        }
    }
}

/// What happens on a stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownMode {
    /// Deliver what is in the log, as far as the time allows.
    Drain,
    /// Leave it in the log.
    Persist,
}

/// Stopping.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownConfig {
    /// What to do with the backlog.
    pub mode: ShutdownMode,
    /// How long draining may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub drain_timeout: Duration,
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { mode: ShutdownMode::Drain, drain_timeout: Duration::from_secs(20) }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Log lines.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// Filter, for example `info` or `info,monasca_persister=debug`.
    pub level: String,
    /// Form.
    pub format: LogFormat,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}
