//! What makes no sense in a configuration that reads well: every problem at once, each with its key.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;

use super::{Config, PipelineConfig, security};
use crate::gather::Kind;

/// One value that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Key, dotted.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

/// librdkafka properties that carry the guarantee or have a key of their own.
const RESERVED_PROPERTIES: [(&str, &str); 14] = [
    ("enable.auto.commit", "offsets are committed by this program, after the log is durable"),
    ("enable.auto.offset.store", "offsets are committed by this program, after the log is durable"),
    ("auto.commit.interval.ms", "use kafka.commit_interval"),
    ("auto.offset.reset", "use kafka.initial_offset; gaps are never skipped silently"),
    ("isolation.level", "aborted transactions are never stored"),
    ("partition.assignment.strategy", "it is cooperative-sticky"),
    ("group.protocol", "it is classic"),
    ("group.id", "use metrics.group_id and alarms.group_id"),
    ("group.instance.id", "use kafka.group_instance_id"),
    ("bootstrap.servers", "use kafka.bootstrap_servers"),
    ("metadata.broker.list", "use kafka.bootstrap_servers"),
    ("client.id", "use kafka.client_id"),
    ("session.timeout.ms", "use kafka.session_timeout"),
    ("statistics.interval.ms", "the health check depends on it"),
];

const CONSISTENCIES: [&str; 8] =
    ["ANY", "ONE", "TWO", "THREE", "QUORUM", "ALL", "LOCAL_QUORUM", "EACH_QUORUM"];

impl Config {
    /// Every value that makes no sense; empty when the configuration can be used.
    #[must_use]
    pub fn problems(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, problem: String| {
            problems.push(ConfigProblem { key: key.to_owned(), problem })
        };
        if self.retention < Duration::from_secs(60) {
            wrong("retention", "must be at least one minute, for example 45d".to_owned());
        }
        if self.retention > Duration::from_secs(20 * 365 * 86_400) {
            wrong("retention", "must be less than twenty years, Cassandra's limit".to_owned());
        }
        if !self.instance.is_empty() && !crate::instance::is_name(&self.instance) {
            wrong(
                "instance",
                format!("`{}` is no name: up to 100 of A-Z a-z 0-9 . _ -", self.instance),
            );
        }
        if self.kafka.bootstrap_servers.is_empty() {
            wrong("kafka.bootstrap_servers", "needs at least one host:port".to_owned());
        }
        for server in &self.kafka.bootstrap_servers {
            if !has_port(server) {
                wrong("kafka.bootstrap_servers", format!("`{server}` is not host:port"));
            }
        }
        for (property, instead) in RESERVED_PROPERTIES {
            if self.kafka.properties.contains_key(property) {
                wrong(&format!("kafka.properties.{property}"), format!("cannot be set: {instead}"));
            }
        }
        for property in self.kafka.properties.keys() {
            if let Some(instead) = security::instead_of_property(property) {
                wrong(&format!("kafka.properties.{property}"), format!("cannot be set: {instead}"));
            }
        }
        self.kafka
            .security
            .problems(|key, problem| wrong(&format!("kafka.security.{key}"), problem));
        if self.kafka.session_timeout < Duration::from_secs(6) {
            wrong(
                "kafka.session_timeout",
                "must be at least 6s, the brokers' own lower limit".to_owned(),
            );
        }
        if self.kafka.session_timeout > SESSION_TIMEOUT_MOST {
            wrong(
                "kafka.session_timeout",
                "must be at most 30m, the brokers' own upper limit".to_owned(),
            );
        }
        let member = &self.kafka.group_instance_id;
        // With room for what tells two pipelines apart.
        if !member.is_empty() && (member.len() > 240 || !crate::instance::is_member_name(member)) {
            wrong(
                "kafka.group_instance_id",
                format!("`{member}` is no name: up to 240 of A-Z a-z 0-9 . _ -"),
            );
        }
        if self.kafka.takeover_after.is_some_and(|after| after < TAKEOVER_AFTER_LEAST) {
            wrong(
                "kafka.takeover_after",
                "must be at least 10s; a restart should be over by then, so rather 30m".to_owned(),
            );
        }
        if !self.pipelines().any(|spec| spec.pipeline.enabled) {
            wrong("metrics.enabled", "metrics and alarms are both off: nothing to do".to_owned());
        }
        self.pipeline_problems(&mut wrong);
        if self.store.definition_refresh < Duration::from_secs(60) {
            wrong("store.definition_refresh", "must be at least one minute, rather 1d".to_owned());
        }
        if self.store.definition_refresh > Duration::from_secs(365 * 86_400) {
            wrong("store.definition_refresh", "must be at most a year, rather 1d".to_owned());
        }
        if self.store.max_write_bytes_per_second.is_some_and(|rate| rate < WRITE_RATE_LEAST) {
            wrong(
                "store.max_write_bytes_per_second",
                format!("must be at least {WRITE_RATE_LEAST}, or null for no limit"),
            );
        }
        let cassandra = &self.store.cassandra;
        if cassandra.contact_points.is_empty() {
            wrong("store.cassandra.contact_points", "needs at least one host:port".to_owned());
        }
        for node in &cassandra.contact_points {
            if !has_port(node) {
                wrong("store.cassandra.contact_points", format!("`{node}` is not host:port"));
            }
        }
        if !CONSISTENCIES.contains(&cassandra.consistency.as_str())
            && cassandra.consistency != "LOCAL_ONE"
        {
            let known = format!("{}, LOCAL_ONE", CONSISTENCIES.join(", "));
            wrong(
                "store.cassandra.consistency",
                format!("`{}` is none of {known}", cassandra.consistency),
            );
        }
        if !is_keyspace(&cassandra.keyspace) {
            wrong(
                "store.cassandra.keyspace",
                format!(
                    "`{}` is no keyspace name: a lower-case letter, then letters, digits and _",
                    cassandra.keyspace
                ),
            );
        }
        let has_password = cassandra.password_file.is_some() || cassandra.password_env.is_some();
        if cassandra.user.is_empty() == has_password {
            wrong(
                "store.cassandra.password_file",
                "user and a password, in password_file or password_env, belong together".to_owned(),
            );
        }
        let mut within = |key: &str, problem| wrong(&format!("store.cassandra.{key}"), problem);
        cassandra.tls.problems(cassandra.protocol, "store.cassandra.protocol", &mut within);
        security::one_place(
            "password",
            "user",
            true,
            cassandra.password_file.as_ref(),
            cassandra.password_env.as_ref(),
            &mut within,
        );
        let letters = &self.dead_letters;
        if letters.age_max.is_some_and(|age| age < LETTER_AGE_LEAST) {
            wrong(
                "dead_letters.age_max",
                format!("must be at least {}", humantime::format_duration(LETTER_AGE_LEAST)),
            );
        }
        if let Some(topic) = &letters.topic {
            let is_consumed = self.pipelines().any(|spec| spec.pipeline.topic == *topic);
            // They have the same rules for both names.
            if !crate::instance::is_member_name(topic) {
                wrong(
                    "dead_letters.topic",
                    format!("`{topic}` is no topic's name: up to 249 of A-Z a-z 0-9 . _ -"),
                );
            } else if is_consumed {
                wrong(
                    "dead_letters.topic",
                    format!(
                        "`{topic}` is consumed by a pipeline: each letter would come back as one"
                    ),
                );
            }
        }
        if !self.http.bind.ip().is_loopback() && self.http.token_file.is_none() {
            wrong(
                "http.bind",
                format!(
                    "{} is not a loopback address: http.token_file is needed, and a proxy that speaks TLS in front",
                    self.http.bind
                ),
            );
        }
        problems
    }
}

impl Config {
    fn pipeline_problems(&self, wrong: &mut impl FnMut(&str, String)) {
        let mut least_bytes = vec![(
            "wal.dead_letters_bytes_max".to_owned(),
            self.wal.dead_letters_bytes_max.as_u64(),
            SMALL_LOG_BYTES_LEAST,
        )];
        let mut topics = BTreeSet::new();
        let mut groups = BTreeSet::new();
        for spec in self.pipelines() {
            let is_more = self.more_pipelines.contains_key(spec.name);
            let (section, bytes_key) = if is_more {
                let at = format!("more_pipelines.{}", spec.name);
                if !is_pipeline_name(spec.name) {
                    wrong(
                        &at,
                        "is no name: up to 64 of a-z 0-9 - _, not metrics or alarms".to_owned(),
                    );
                }
                (format!("{at}.pipeline"), format!("{at}.log_bytes_max"))
            } else {
                (spec.name.to_owned(), format!("wal.{}_bytes_max", spec.name))
            };
            let least = match spec.kind {
                Kind::Metrics => METRICS_LOG_BYTES_LEAST,
                Kind::Alarms => SMALL_LOG_BYTES_LEAST,
            };
            least_bytes.push((bytes_key, spec.log_bytes_max, least));
            spec.pipeline.problems(|key, problem| wrong(&format!("{section}.{key}"), problem));
            if spec.pipeline.enabled {
                let shared = "another pipeline has the same; each needs its own".to_owned();
                if !topics.insert(&spec.pipeline.topic) {
                    wrong(&format!("{section}.topic"), shared.clone());
                }
                if !groups.insert(&spec.pipeline.group_id) {
                    wrong(&format!("{section}.group_id"), shared);
                }
            }
        }
        for (key, bytes, least) in least_bytes {
            if bytes < least {
                let least = bytesize::ByteSize(least);
                wrong(&key, format!("must be at least {least}: four segments"));
            }
        }
    }
}

fn is_pipeline_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (1..=64).contains(&name.len())
        && name.chars().all(allowed)
        && ![Kind::Metrics.name(), Kind::Alarms.name()].contains(&name)
}

/// What brokers allow unless they are told otherwise.
const SESSION_TIMEOUT_MOST: Duration = Duration::from_secs(30 * 60);
/// Slower, a full batch would take longer than a minute.
const WRITE_RATE_LEAST: ByteSize = ByteSize::kib(1);
/// A shorter silence says nothing.
const TAKEOVER_AFTER_LEAST: Duration = Duration::from_secs(10);
/// Nobody looks sooner.
const LETTER_AGE_LEAST: Duration = Duration::from_secs(1);
/// Four segments of a log with 64 MiB segments.
const METRICS_LOG_BYTES_LEAST: u64 = 4 * 64 * 1024 * 1024;
/// Four segments of a log with 4 MiB segments.
const SMALL_LOG_BYTES_LEAST: u64 = 4 * 4 * 1024 * 1024;

impl PipelineConfig {
    fn problems(&self, mut wrong: impl FnMut(&str, String)) {
        let mut within = |key: &str, value: usize, least: usize, most: usize| {
            if !(least..=most).contains(&value) {
                wrong(key, format!("{value} is not between {least} and {most}"));
            }
        };
        within("writers", self.writers, 1, 256);
        within("in_flight_per_writer", self.in_flight_per_writer, 1, 4096);
        within("batch_rows_max", self.batch_rows_max, 1, 10_000);
        within("gather_rows_max", self.gather_rows_max, 1, 10_000_000);
        if self.topic.is_empty() {
            wrong("topic", "must not be empty".to_owned());
        }
        if self.group_id.is_empty() {
            wrong("group_id", "must not be empty".to_owned());
        }
        if self.freshness > Duration::from_secs(3600) {
            wrong("freshness", "must be at most 1h".to_owned());
        }
        if self.message_bytes_max.as_u64() > MESSAGE_BYTES_MOST {
            wrong(
                "message_bytes_max",
                format!("must be at most {}", bytesize::ByteSize(MESSAGE_BYTES_MOST)),
            );
        }
    }
}

/// A message must fit into one record of the log.
const MESSAGE_BYTES_MOST: u64 = 64 * 1024 * 1024;

fn has_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn is_keyspace(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && name.len() <= 48
        && characters.all(|next| next.is_ascii_lowercase() || next.is_ascii_digit() || next == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_problem() {
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn properties_that_carry_the_guarantee_cannot_be_set() {
        let mut config = Config::default();
        config.kafka.properties.insert("auto.offset.reset".to_owned(), "latest".to_owned());
        assert_eq!(config.problems()[0].key, "kafka.properties.auto.offset.reset");
    }

    #[test]
    fn a_name_that_brokers_refuse_is_refused_before_they_are_asked() {
        let mut config = Config::default();
        for name in ["edge 7", "..", &"x".repeat(241)] {
            config.kafka.group_instance_id = name.to_owned();
            assert_eq!(config.problems()[0].key, "kafka.group_instance_id", "{name}");
        }
        config.kafka.group_instance_id = "edge-7".to_owned();
        assert_eq!(config.problems(), []);
    }

    #[test]
    fn a_session_that_brokers_refuse_is_refused_before_they_are_asked() {
        let mut config = Config::default();
        for seconds in [5, 1801] {
            config.kafka.session_timeout = Duration::from_secs(seconds);
            assert_eq!(config.problems()[0].key, "kafka.session_timeout", "{seconds}");
        }
        config.kafka.session_timeout = Duration::from_secs(1800);
        assert_eq!(config.problems(), []);
    }

    #[test]
    fn dead_letters_are_not_sent_to_where_they_come_from() {
        let mut config = Config::default();
        config.dead_letters.topic = Some(config.metrics.topic.clone());
        assert_eq!(config.problems()[0].key, "dead_letters.topic");
        for name in ["", "..", "dead letters"] {
            config.dead_letters.topic = Some(name.to_owned());
            assert_eq!(config.problems()[0].key, "dead_letters.topic", "{name}");
        }
        config.dead_letters.topic = Some("dead-letters".to_owned());
        assert_eq!(config.problems(), []);
    }

    #[test]
    fn an_address_that_others_can_reach_is_refused() {
        let mut config = Config::default();
        config.http.bind = std::net::SocketAddr::from(([0, 0, 0, 0], 8091));
        assert_eq!(config.problems()[0].key, "http.bind");
    }
}
