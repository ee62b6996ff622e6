//! The demonstration's broker and the producer that feeds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::host_metrics::{DemoAlarm, HostMetrics};
use crate::clock::wall_ms;

/// How often the machine is looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Names of the topics that are fed.
#[derive(Debug, Clone)]
pub struct Topics {
    /// For metrics.
    pub metrics: String,
    /// For alarm transitions.
    pub alarms: String,
}

/// A broker in this process, and a thread that feeds it.
pub struct DemoBroker {
    // Dropped last: the producer must be gone before its broker.
    feeder: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    bootstrap: String,
    _cluster: MockCluster<'static, rdkafka::producer::DefaultProducerContext>,
}

impl DemoBroker {
    /// Starts both.
    ///
    /// # Errors
    /// The client library cannot start a broker or a producer.
    pub fn start(topics: Topics) -> anyhow::Result<Self> {
        let cluster = MockCluster::new(1).context("start in-process broker")?;
        cluster.create_topic(&topics.metrics, 4, 1).context("create topic")?;
        cluster.create_topic(&topics.alarms, 1, 1).context("create topic")?;
        let bootstrap = cluster.bootstrap_servers();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap)
            .set("linger.ms", "20")
            .create()
            .context("create producer")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let feeder = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::Builder::new()
                .name("demo-feeder".to_owned())
                .spawn(move || feed(&producer, &topics, &stop, &sent))
                .context("start feeder")?
        };
        Ok(Self { feeder: Some(feeder), stop, sent, bootstrap, _cluster: cluster })
    }

    /// `host:port` of the broker.
    #[must_use]
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Messages sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the feeding; the broker stays.
    pub fn stop_feeding(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(feeder) = self.feeder.take()
            && feeder.join().is_err()
        {
            tracing::error!(code = "PANIC", "the demo's feeder panicked");
        }
    }
}

fn feed(producer: &BaseProducer, topics: &Topics, stop: &AtomicBool, sent: &AtomicU64) {
    let mut host = HostMetrics::new();
    let mut alarm = DemoAlarm::new();
    while !stop.load(Ordering::Relaxed) {
        let now_ms = wall_ms();
        host.sample(now_ms, &mut |message| send(producer, &topics.metrics, &message, sent));
        if let Some(utilization) = host.cpu_utilization_perc()
            && let Some(message) = alarm.observe(utilization, now_ms)
        {
            send(producer, &topics.alarms, &message, sent);
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(SAMPLE_INTERVAL);
    }
    if let Err(error) = producer.flush(Duration::from_secs(2)) {
        tracing::warn!(%error, "flush the demo's producer");
    }
}

fn send(producer: &BaseProducer, topic: &str, message: &[u8], sent: &AtomicU64) {
    let record: BaseRecord<'_, (), [u8]> = BaseRecord::to(topic).payload(message);
    match producer.send(record) {
        Ok(()) => {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        Err((error, _)) => tracing::warn!(%error, "send to the demo's broker"),
    }
}
