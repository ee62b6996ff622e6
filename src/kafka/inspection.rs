//! A look at the brokers, as the configuration says: whether they answer, have the topics, and let us do our work.
//! Nothing is joined, committed, consumed or sent.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use storage::{Finding, Grade};

use super::identity::{self, Resource};
use super::properties::connection;
use super::token::Tokens;
use crate::config::{Config, KafkaConfig, KafkaProtocol, KafkaTls};
use crate::kafka_certificate;
use crate::kafka_trouble::{self, Class, Trouble};
use crate::ledger;
use crate::sync::lock;

/// How long the brokers may take for a first answer.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// How long for each question.
const WAIT: Duration = Duration::from_secs(5);
/// How often it is looked whether they have refused us meanwhile.
const TURN: Duration = Duration::from_secs(1);

/// Remembers what only an operator can repair.
struct Context {
    tls: KafkaTls,
    trouble: Mutex<Option<Trouble>>,
    last_error: Mutex<Option<String>>,
}

impl Context {
    fn hear(&self, class: Class, text: &str) {
        let Some(trouble) = kafka_trouble::classify(class, text) else { return };
        let mut heard = lock(&self.trouble);
        // What is known for sure stays.
        if heard.as_ref().is_none_or(|heard| heard.suspected) {
            *heard = Some(trouble);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, message: &str) {
        self.hear(Class::Other, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let class = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::SSL) => Class::Ssl,
            Some(RDKafkaErrorCode::Authentication) => Class::Authentication,
            _ => Class::Other,
        };
        self.hear(class, reason);
        *lock(&self.last_error) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Context {}

/// Looks at everything that the enabled pipelines need.
///
/// # Errors
/// A secret or a certificate of ours cannot be read, or the client library does not take the configuration: nobody was
/// asked.
pub fn inspect(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let kafka = &config.kafka;
    let mut properties = connection(kafka)?;
    properties
        .set("group.id", &config.metrics.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("allow.auto.create.topics", "false")
        .set("session.timeout.ms", kafka.session_timeout.as_millis().to_string());
    let client: BaseConsumer<Context> = properties.create_with_context(Context {
        tls: kafka.security.tls.clone(),
        trouble: Mutex::new(None),
        last_error: Mutex::new(None),
    })?;
    if let Err(error) = Tokens::new(kafka).keep(client.client(), Duration::ZERO) {
        return Ok(vec![Finding::new(
            Grade::Forbidden,
            format!("{}: {error}", kafka_trouble::TOKEN),
            "check kafka.security.sasl.oauthbearer",
        )]);
    }
    let specs: Vec<_> = config.pipelines().filter(|spec| spec.pipeline.enabled).collect();
    let Some(first) = specs.first() else { return Ok(Vec::new()) };
    let brokers = match reach(&client, &first.pipeline.topic) {
        Ok(brokers) => brokers,
        Err(finding) => return Ok(vec![finding]),
    };
    let mut found = vec![of_brokers(&brokers, kafka)];
    let look = Look { client: &client, kafka };
    // The name is only known where it is configured or was used before; any will do to see whether ledgers are allowed.
    let instance = match config.instance.as_str() {
        "" => std::fs::read_to_string(config.data_dir.join("instance")).unwrap_or_default(),
        name => name.to_owned(),
    };
    let instance = if instance.trim().is_empty() { "check" } else { instance.trim() };
    for spec in specs {
        let (topic, group) = (&spec.pipeline.topic, &spec.pipeline.group_id);
        found.extend(look.topic(topic, "Read"));
        found.push(look.group(group, group, "literal"));
        let every = ledger::group_of(group, "");
        found.push(look.group(&ledger::group_of(group, instance), &every, "prefixed"));
    }
    if let Some(topic) = &config.dead_letters.topic {
        found.extend(look.topic(topic, "Write"));
    }
    Ok(found)
}

/// The first answer, or why there is none.
fn reach(client: &BaseConsumer<Context>, topic: &str) -> Result<Metadata, Finding> {
    let begun = Instant::now();
    loop {
        let answer = client.fetch_metadata(Some(topic), TURN);
        // Serves the callbacks; nothing is subscribed to.
        drop(client.poll(Duration::ZERO));
        let error = match answer {
            Ok(metadata) if !metadata.brokers().is_empty() => return Ok(metadata),
            Ok(_) => "the answer names no broker".to_owned(),
            Err(error) => error.to_string(),
        };
        let context = client.context();
        let trouble = lock(&context.trouble).clone();
        let is_late = begun.elapsed() >= FIRST_WAIT;
        if let Some(trouble) = trouble.filter(|trouble| is_late || !trouble.suspected) {
            let trouble = kafka_certificate::explain(trouble, &context.tls);
            let grade = match trouble.code {
                kafka_trouble::AUTH | kafka_trouble::TOKEN => Grade::Forbidden,
                _ => Grade::Wrong,
            };
            return Err(Finding::new(
                grade,
                format!("{}: {}", trouble.code, trouble.message),
                trouble.hint,
            ));
        }
        if is_late {
            let why = lock(&context.last_error).clone().unwrap_or(error);
            return Err(Finding::new(
                Grade::Away,
                format!("no broker answers: {why}"),
                "check kafka.bootstrap_servers, the brokers and the network",
            ));
        }
    }
}

fn of_brokers(metadata: &Metadata, kafka: &KafkaConfig) -> Finding {
    let names: Vec<String> = metadata
        .brokers()
        .iter()
        .map(|broker| format!("{}:{}", broker.host(), broker.port()))
        .collect();
    let protocol = match kafka.security.protocol {
        KafkaProtocol::Plaintext => "plain text",
        KafkaProtocol::Tls => "TLS",
    };
    let user = match kafka.security.sasl.mechanism {
        None => String::new(),
        Some(mechanism) => format!(", known by {}", mechanism.kafka_name()),
    };
    Finding::fine(format!("answers in {protocol}{user}; brokers: {}", names.join(" ")))
}

struct Look<'a> {
    client: &'a BaseConsumer<Context>,
    kafka: &'a KafkaConfig,
}

impl Look<'_> {
    /// The topic is there, and we may do with it what we have to.
    fn topic(&self, topic: &str, right: &str) -> Vec<Finding> {
        use RDKafkaErrorCode as Code;
        let partitions = match self.client.fetch_metadata(Some(topic), WAIT) {
            Err(error) => return vec![away(&format!("topic {topic}: {error}"))],
            Ok(metadata) => metadata
                .topics()
                .iter()
                .find(|found| found.name() == topic)
                .map_or(0, |found| found.partitions().len()),
        };
        let held = match identity::operations(self.client.client(), Resource::Topic(topic), WAIT) {
            Err(Code::TopicAuthorizationFailed) => {
                return vec![self.lacks(
                    &format!("topic {topic} may not be seen"),
                    right,
                    "topic",
                    topic,
                    "literal",
                )];
            }
            Err(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                let servers = self.kafka.bootstrap_servers.join(",");
                return vec![Finding::new(
                    Grade::Wrong,
                    format!("topic {topic} is not there"),
                    format!(
                        "kafka-topics.sh --bootstrap-server {servers} --create --topic {topic}"
                    ),
                )];
            }
            Err(code) => return vec![away(&format!("topic {topic}: {code}"))],
            Ok(held) => held,
        };
        let there = Finding::fine(format!("topic {topic} has {partitions} partitions"));
        let has = held.map(|held| if right == "Write" { held.write } else { held.read });
        vec![there, self.right(has, &format!("topic {topic}"), right, "topic", topic, "literal")]
    }

    /// We may join and commit; `granted` is what an ACL names, exactly or as the beginning of names.
    fn group(&self, group: &str, granted: &str, pattern: &str) -> Finding {
        match identity::operations(self.client.client(), Resource::Group(group), WAIT) {
            Err(RDKafkaErrorCode::GroupAuthorizationFailed) => self.lacks(
                &format!("group {group} may not be used"),
                "Read",
                "group",
                granted,
                pattern,
            ),
            Err(code) => away(&format!("group {group}: {code}")),
            Ok(held) => {
                let has = held.map(|held| held.read);
                self.right(has, &format!("group {group}"), "Read", "group", granted, pattern)
            }
        }
    }

    fn right(
        &self,
        has: Option<bool>,
        on: &str,
        right: &str,
        kind: &str,
        name: &str,
        pattern: &str,
    ) -> Finding {
        match has {
            Some(true) => Finding::fine(format!("{right} on {on}")),
            Some(false) => {
                self.lacks(&format!("{right} on {on} is missing"), right, kind, name, pattern)
            }
            None => Finding::new(
                Grade::Unchecked,
                format!("{right} on {on}: the brokers do not tell"),
                self.command(right, kind, name, pattern),
            ),
        }
    }

    fn lacks(&self, what: &str, right: &str, kind: &str, name: &str, pattern: &str) -> Finding {
        Finding::new(Grade::Forbidden, what, self.command(right, kind, name, pattern))
    }

    fn command(&self, right: &str, kind: &str, name: &str, pattern: &str) -> String {
        let servers = self.kafka.bootstrap_servers.join(",");
        let principal = match self.kafka.security.sasl.username.as_str() {
            // A certificate's or a token's: the brokers map it as they are configured.
            "" => "PRINCIPAL",
            user => user,
        };
        format!(
            "kafka-acls.sh --bootstrap-server {servers} --add --allow-principal 'User:{principal}' --operation {right} --{kind} '{name}' --resource-pattern-type {pattern}"
        )
    }
}

fn away(what: &str) -> Finding {
    Finding::new(Grade::Away, what, "")
}
