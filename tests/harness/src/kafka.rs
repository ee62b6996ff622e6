//! A real Kafka broker: one node, KRaft.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use crate::process::{Process, ProcessBuilder};
use crate::{HarnessError, Link, free_port, jars};

const NAME: &str = "kafka-4.3.1";
const READY_WAIT: Duration = Duration::from_secs(120);
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// What a broker is started with.
#[derive(Debug, Clone, Default)]
pub struct KafkaBuilder {
    advertised: Option<String>,
    port: Option<u16>,
    properties: String,
    cpu: Option<usize>,
    listeners: Vec<(String, String)>,
    links: Vec<String>,
    users: Vec<String>,
    system_properties: Vec<String>,
}

impl KafkaBuilder {
    /// Adds a listener with one of Kafka's protocols, for example `SASL_SSL`; see [`Kafka::listener`]. Its own
    /// properties begin with `listener.name.` and the name in small letters.
    #[must_use]
    pub fn listener(mut self, name: &str, protocol: &str) -> Self {
        self.listeners.push((name.to_owned(), protocol.to_owned()));
        self
    }

    /// Adds a plaintext listener that clients reach through a link only; see [`Kafka::link`].
    #[must_use]
    pub fn link(mut self, name: &str) -> Self {
        self.links.push(name.to_owned());
        self
    }

    /// Adds a user for a SCRAM mechanism.
    #[must_use]
    pub fn scram_user(mut self, mechanism: &str, name: &str, password: &str) -> Self {
        self.users.push(format!("{mechanism}=[name={name},password={password}]"));
        self
    }

    /// Clients are told to connect to this `host:port`, for example a [`crate::Link`]'s.
    #[must_use]
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.advertised = Some(address.into());
        self
    }

    /// Listens on this port instead of any free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Adds a line to `server.properties`.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push_str(&format!("{name}={value}\n"));
        self
    }

    /// Sets a property of its Java machine.
    #[must_use]
    pub fn system_property(mut self, name: &str, value: &str) -> Self {
        self.system_properties.push(format!("-D{name}={value}"));
        self
    }

    /// Pins it to one core: for benchmarks.
    #[must_use]
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// [`HarnessError`].
    pub fn start(self) -> Result<Kafka, HarnessError> {
        let lib = jars::directory(NAME, include_str!("../services/kafka/pom.xml"))?;
        let dir = TempDir::with_prefix("kafka-").map_err(HarnessError::io("create directory"))?;
        let port = match self.port {
            Some(port) => port,
            None => free_port()?,
        };
        let bootstrap = self.advertised.unwrap_or_else(|| format!("127.0.0.1:{port}"));
        let mut listeners = BTreeMap::new();
        for (name, _) in &self.listeners {
            // By name, because certificates are made for names.
            listeners.insert(name.clone(), format!("localhost:{}", free_port()?));
        }
        let mut links = BTreeMap::new();
        for name in &self.links {
            let at = format!("127.0.0.1:{}", free_port()?);
            links.insert(name.clone(), Linked { link: Link::to(&at)?, at });
        }
        let named = |list: &mut dyn Iterator<Item = (&String, String)>| {
            list.map(|(name, at)| format!(",{name}://{at}")).collect::<String>()
        };
        let unlinked = || listeners.iter().map(|(name, at)| (name, at.clone()));
        let properties = include_str!("../services/kafka/server.properties")
            .replace(
                "@LISTENERS@",
                &named(&mut unlinked().chain(links.iter().map(|(name, to)| (name, to.at.clone())))),
            )
            .replace(
                "@ADVERTISED_LISTENERS@",
                &named(
                    &mut unlinked().chain(links.iter().map(|(name, to)| (name, to.link.addr()))),
                ),
            )
            .replace(
                "@PROTOCOLS@",
                &self
                    .listeners
                    .iter()
                    .map(|(name, protocol)| format!(",{name}:{protocol}"))
                    .chain(self.links.iter().map(|name| format!(",{name}:PLAINTEXT")))
                    .collect::<String>(),
            )
            .replace("@PORT@", &port.to_string())
            .replace("@CONTROLLER_PORT@", &free_port()?.to_string())
            .replace("@ADVERTISED@", &bootstrap)
            .replace("@DIR@", &dir.path().to_string_lossy());
        let config = dir.path().join("server.properties");
        std::fs::write(&config, properties + &self.properties)
            .map_err(HarnessError::io("write properties"))?;
        let logging = dir.path().join("log4j2.properties");
        std::fs::write(&logging, include_str!("../services/kafka/log4j2.properties"))
            .map_err(HarnessError::io("write log4j2.properties"))?;
        let class_path = format!("{}/*", lib.display());
        let formatted = Command::new("java")
            .args([
                "-cp",
                &class_path,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                "bW9uYXNjYS1wZXJzaXN0Zw",
                "-c",
            ])
            .arg(&config)
            .args(self.users.iter().flat_map(|user| ["--add-scram", user]))
            .output()
            .map_err(HarnessError::io("format Kafka's storage"))?;
        if !formatted.status.success() {
            let said = String::from_utf8_lossy(&formatted.stderr).into_owned();
            return Err(HarnessError::Kafka { what: "format storage".to_owned(), reason: said });
        }
        let builder = ProcessBuilder::new("java", dir.path().join("kafka.log"))
            .args(["-Xms256m", "-Xmx512m", "-cp", &class_path])
            .args([format!("-Dlog4j2.configurationFile={}", logging.display())])
            .args(self.system_properties)
            .args(["kafka.Kafka".to_owned(), config.to_string_lossy().into_owned()])
            .cpu(self.cpu);
        let process = builder.start()?;
        let kafka = Kafka {
            process,
            builder,
            bootstrap,
            local: format!("127.0.0.1:{port}"),
            listeners,
            links,
            dir: Some(dir),
        };
        kafka.wait_ready()?;
        Ok(kafka)
    }
}

/// A running broker. Dropping it ends it.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    builder: ProcessBuilder,
    bootstrap: String,
    local: String,
    listeners: BTreeMap<String, String>,
    links: BTreeMap<String, Linked>,
    dir: Option<TempDir>,
}

/// A listener, and the link that clients reach it through.
#[derive(Debug)]
struct Linked {
    link: Link,
    at: String,
}

impl Kafka {
    /// Starts a broker with the defaults.
    ///
    /// # Errors
    /// [`HarnessError`].
    pub fn start() -> Result<Self, HarnessError> {
        Self::builder().start()
    }

    /// What can be chosen.
    #[must_use]
    pub fn builder() -> KafkaBuilder {
        KafkaBuilder::default()
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// `localhost:port` of a listener that [`KafkaBuilder::listener`] added.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&str> {
        self.listeners.get(name).map(String::as_str)
    }

    /// The link of a listener that [`KafkaBuilder::link`] added; its address is the one for clients.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.get(name).map(|linked| &linked.link)
    }

    /// Starts it again, after a kill or a stop, with this listener on another port behind `link`: clients are told to
    /// come there. The old link leads to the new port as well, as a name does that is still looked up.
    ///
    /// # Errors
    /// As [`Kafka::start`], or there is no such listener.
    pub fn restart_behind(&mut self, name: &str, link: &Link) -> Result<(), HarnessError> {
        let (Some(linked), Some(dir)) = (self.links.get_mut(name), self.dir.as_ref()) else {
            return Err(HarnessError::Missing(format!("no listener {name} behind a link")));
        };
        let path = dir.path().join("server.properties");
        let properties =
            std::fs::read_to_string(&path).map_err(HarnessError::io("read properties"))?;
        let at = format!("127.0.0.1:{}", free_port()?);
        let moved = properties
            .replace(&format!("{name}://{}", linked.at), &format!("{name}://{at}"))
            .replace(
                &format!("{name}://{}", linked.link.addr()),
                &format!("{name}://{}", link.addr()),
            );
        std::fs::write(&path, moved).map_err(HarnessError::io("write properties"))?;
        linked.link.retarget(&at);
        link.retarget(&at);
        linked.at = at;
        self.restart()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// SIGTERM, and waits until it ended.
    pub fn stop(&mut self) {
        self.process.terminate();
        if self.process.wait(Duration::from_secs(30)).is_none() {
            self.process.kill();
        }
    }

    /// Starts it again on its data, after a kill or a stop.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn restart(&mut self) -> Result<(), HarnessError> {
        self.process.kill();
        self.process = self.builder.start()?;
        self.wait_ready()
    }

    /// True until it ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    fn wait_ready(&self) -> Result<(), HarnessError> {
        // Asked behind any link: a cut link must not look like a broker that does not start.
        let deadline = Instant::now() + READY_WAIT;
        let consumer = consumer(&self.local, "readiness")?;
        while Instant::now() < deadline {
            if consumer
                .fetch_metadata(None, Duration::from_secs(1))
                .is_ok_and(|found| !found.brokers().is_empty())
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(HarnessError::NotReady {
            name: "Kafka",
            seconds: READY_WAIT.as_secs(),
            log: self.process.log_path().to_owned(),
            tail: self.process.log_tail(),
        })
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, HarnessError> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().map_err(|error| {
            HarnessError::Kafka {
                what: "create admin client".to_owned(),
                reason: error.to_string(),
            }
        })
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), HarnessError> {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let outcome = block_on(self.admin()?.create_topics([&topic], &options()));
        self.check("create topic", outcome)?;
        self.wait_partitions(name, partitions)
    }

    fn wait_partitions(&self, name: &str, partitions: i32) -> Result<(), HarnessError> {
        // A producer that asks too early gets `unknown topic` and caches it.
        let deadline = Instant::now() + REQUEST_WAIT;
        while Instant::now() < deadline {
            let consumer = consumer(&self.bootstrap, "metadata")?;
            let known = consumer.fetch_metadata(Some(name), REQUEST_WAIT).is_ok_and(|found| {
                found.topics().iter().any(|topic| {
                    topic.partitions().iter().filter(|partition| partition.leader() >= 0).count()
                        == usize::try_from(partitions).unwrap_or(0)
                })
            });
            if known {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(HarnessError::Kafka {
            what: format!("partitions of topic {name}"),
            reason: "no leader".to_owned(),
        })
    }

    /// Gives a topic more partitions: so many in all.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn grow_topic(&self, name: &str, partitions: i32) -> Result<(), HarnessError> {
        let count = usize::try_from(partitions).unwrap_or(0);
        let grown = NewPartitions::new(name, count);
        let outcome = block_on(self.admin()?.create_partitions([&grown], &options()));
        self.check("add partitions", outcome)?;
        self.wait_partitions(name, partitions)
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn delete_topic(&self, name: &str) -> Result<(), HarnessError> {
        let outcome = block_on(self.admin()?.delete_topics(&[name], &options()));
        self.check("delete topic", outcome)
    }

    /// Removes all messages of a partition before an offset, as retention does.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn delete_records(
        &self,
        topic: &str,
        partition: i32,
        before: i64,
    ) -> Result<(), HarnessError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(before))
            .map_err(failed("delete records"))?;
        let deleted = block_on(self.admin()?.delete_records(&list, &options()))
            .map_err(failed("delete records"))?;
        deleted
            .elements()
            .iter()
            .try_for_each(|element| element.error().map_err(failed("delete records")))
    }

    /// Sets a property of a topic.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn configure_topic(
        &self,
        topic: &str,
        name: &str,
        value: &str,
    ) -> Result<(), HarnessError> {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
        let altered = block_on(self.admin()?.alter_configs([&change], &options()))
            .map_err(failed("configure topic"))?;
        for result in altered {
            result.map_err(|(_, code)| HarnessError::Kafka {
                what: format!("configure topic {topic}"),
                reason: code.to_string(),
            })?;
        }
        Ok(())
    }

    /// The directory of a partition. While the broker is down, putting back an older copy of it does what a power cut
    /// does to a broker that had not synced: the partition loses its end.
    #[must_use]
    pub fn partition_dir(&self, topic: &str, partition: i32) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.path().join("data").join(format!("{topic}-{partition}")))
    }

    fn check(
        &self,
        what: &str,
        outcome: rdkafka::error::KafkaResult<Vec<rdkafka::admin::TopicResult>>,
    ) -> Result<(), HarnessError> {
        let failed = |reason: String| HarnessError::Kafka { what: what.to_owned(), reason };
        for result in outcome.map_err(|error| failed(error.to_string()))? {
            result.map_err(|(topic, code)| failed(format!("{topic}: {code}")))?;
        }
        Ok(())
    }

    /// Next offset of each partition.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn end_offsets(&self, topic: &str) -> Result<BTreeMap<i32, i64>, HarnessError> {
        let consumer = consumer(&self.bootstrap, "end-offsets")?;
        let mut ends = BTreeMap::new();
        for partition in partitions(&consumer, topic)? {
            let (_, end) = consumer
                .fetch_watermarks(topic, partition, REQUEST_WAIT)
                .map_err(failed("end offsets"))?;
            ends.insert(partition, end);
        }
        Ok(ends)
    }

    /// The generation of a group: it grows with every rebalance. Read from where the broker keeps it.
    ///
    /// # Errors
    /// The broker does not answer, or has never heard of the group's members.
    pub fn generation(&self, group: &str) -> Result<i32, HarnessError> {
        const TOPIC: &str = "__consumer_offsets";
        let consumer = consumer(&self.bootstrap, "generation")?;
        let mut ends = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for partition in partitions(&consumer, TOPIC)? {
            let (_, end) = consumer
                .fetch_watermarks(TOPIC, partition, REQUEST_WAIT)
                .map_err(failed("end offsets"))?;
            if end > 0 {
                ends.insert(partition, end);
                list.add_partition_offset(TOPIC, partition, Offset::Beginning)
                    .map_err(failed("assign"))?;
            }
        }
        consumer.assign(&list).map_err(failed("assign"))?;
        let deadline = Instant::now() + READY_WAIT;
        let mut generation = None;
        // The last record may be a transaction's mark, which nobody gets: a long silence is an end, too.
        let mut quiet_s = 0;
        while !ends.is_empty() && quiet_s < 10 && Instant::now() < deadline {
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(message)) => {
                    quiet_s = 0;
                    generation = generation_of(group, &message).or(generation);
                    if ends
                        .get(&message.partition())
                        .is_some_and(|end| message.offset() + 1 >= *end)
                    {
                        ends.remove(&message.partition());
                    }
                }
                Some(Err(_)) | None => quiet_s += 1,
            }
        }
        generation.ok_or_else(|| HarnessError::Kafka {
            what: format!("generation of {group}"),
            reason: "the broker has no record of its members".to_owned(),
        })
    }

    /// What `group` has committed for each partition of `topic` that it has committed anything for.
    ///
    /// # Errors
    /// The broker does not answer.
    pub fn committed(&self, group: &str, topic: &str) -> Result<BTreeMap<i32, i64>, HarnessError> {
        let consumer = consumer(&self.bootstrap, group)?;
        let mut asked = TopicPartitionList::new();
        for partition in partitions(&consumer, topic)? {
            asked.add_partition(topic, partition);
        }
        let committed =
            consumer.committed_offsets(asked, REQUEST_WAIT).map_err(failed("committed offsets"))?;
        Ok(committed
            .elements()
            .iter()
            .filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            })
            .collect())
    }
}

/// A record of `__consumer_offsets` that tells of a group's members: 2 and the group's name as key; version, kind of
/// protocol and generation as the value begins.
fn generation_of(group: &str, message: &rdkafka::message::BorrowedMessage<'_>) -> Option<i32> {
    let key = message.key()?;
    let (kind, name) = key.split_first_chunk::<2>()?;
    if i16::from_be_bytes(*kind) != 2 || name.get(2..)? != group.as_bytes() {
        return None;
    }
    let (_version, value) = message.payload()?.split_first_chunk::<2>()?;
    let (length, value) = value.split_first_chunk::<2>()?;
    let value = value.get(usize::try_from(i16::from_be_bytes(*length)).ok()?..)?;
    Some(i32::from_be_bytes(*value.first_chunk::<4>()?))
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.process.kill();
        keep_when_panicking(self.dir.take());
    }
}

/// A test that fails keeps what it left, and says where.
pub(crate) fn keep_when_panicking(dir: Option<TempDir>) {
    if let (Some(dir), true) = (dir, std::thread::panicking()) {
        let path = dir.keep();
        #[expect(
            clippy::print_stderr,
            reason = "for the person who reads the failed test's output"
        )]
        {
            eprintln!("kept for inspection: {}", path.display());
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(REQUEST_WAIT)).request_timeout(Some(REQUEST_WAIT))
}

fn failed(what: &'static str) -> impl FnOnce(rdkafka::error::KafkaError) -> HarnessError {
    move |error| HarnessError::Kafka { what: what.to_owned(), reason: error.to_string() }
}

fn consumer(bootstrap: &str, group: &str) -> Result<BaseConsumer, HarnessError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("log_level", "0")
        .create()
        .map_err(failed("create consumer"))
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, HarnessError> {
    let metadata =
        consumer.fetch_metadata(Some(topic), REQUEST_WAIT).map_err(failed("read metadata"))?;
    Ok(metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect())
}

/// Waits for a future of the admin client, which a thread of the client library completes.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
