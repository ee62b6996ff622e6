//! Metrics as agents send them, the same in every run.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::STEP_WAIT;

pub const SERIES: usize = 10_000;
/// Each series sends one value in this time.
const PERIOD_MS: i64 = 10_000;

/// Everything that is sent; the same to every engine.
#[derive(Clone, Copy)]
pub struct Traffic {
    pub messages: usize,
    pub newest_ms: i64,
}

impl Traffic {
    pub fn time_ms(self, series: usize, tick: usize) -> i64 {
        let ticks = self.messages.div_ceil(SERIES);
        self.newest_ms - PERIOD_MS * (ticks - tick) as i64 + series as i64 % PERIOD_MS
    }

    pub fn value(series: usize, tick: usize) -> f64 {
        let mixed = ((series * 7919 + tick) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 44) as f64 / 10_000.0
    }

    /// As agents send them: four dimensions, about 316 bytes.
    pub fn message(self, series: usize, tick: usize) -> String {
        let (metric, host) = (series % 50, series / 50);
        let (time_ms, value) = (self.time_ms(series, tick), Self::value(series, tick));
        format!(
            r#"{{"metric":{{"name":"cpu.idle_perc_{metric:02}","dimensions":{{"hostname":"compute-{host:04}.region-one.example","service":"monitoring","component":"hypervisor","zone":"nova-az-{}"}},"timestamp":{time_ms},"value":{value},"value_meta":{{}}}},"meta":{{"tenantId":"0123456789abcdef0123456789abcdef","region":"RegionOne"}},"creation_time":{}}}"#,
            host % 4,
            time_ms / 1000
        )
    }

    /// So many, the newest of now.
    pub fn until_now(messages: usize) -> Self {
        let newest_ms = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        Self { messages, newest_ms }
    }

    /// Fills the topic; returns the mean length of a message.
    pub fn produce(self, bootstrap: &str, topic: &str, partitions: usize) -> f64 {
        self.produce_at(None, bootstrap, topic, partitions)
    }

    /// Sends so many messages a second, or as many as go; returns the mean length of a message.
    pub fn produce_at(
        self,
        rate: Option<usize>,
        bootstrap: &str,
        topic: &str,
        partitions: usize,
    ) -> f64 {
        let begun = Instant::now();
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "20")
            .create()
            .unwrap();
        let mut bytes = 0;
        for number in 0..self.messages {
            let series = number % SERIES;
            let message = self.message(series, number / SERIES);
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(number as f64 / rate as f64);
                let ahead = due.saturating_sub(begun.elapsed());
                if ahead > Duration::from_millis(10) {
                    producer.poll(ahead);
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                }
            }
            bytes += message.len();
            let mut record = BaseRecord::<(), str>::to(topic)
                .partition((series % partitions) as i32)
                .payload(&message);
            while let Err((error, back)) = producer.send(record) {
                assert_eq!(
                    error,
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull),
                    "produce"
                );
                producer.poll(Duration::from_millis(50));
                record = back;
            }
        }
        producer.flush(STEP_WAIT).unwrap();
        bytes as f64 / self.messages as f64
    }
}
