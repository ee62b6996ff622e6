//! Every metric name, in one place. `docs/metrics.md` documents them; a test compares it with real output.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::breaker::BreakerState;
use crate::inspect::{Backlog, Inspect, LogActivity, Status};
use crate::offset_ranges::OffsetRange;

/// Prefix of every name.
const PREFIX: &str = "monasca_persister";

/// The text that Prometheus scrapes.
///
/// # Errors
/// The text cannot be written; that is a fault of this program.
pub fn render(inspect: &Inspect) -> Result<String, Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Snapshot {
        status: inspect.status(),
        backlog: inspect.backlog(),
    }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    status: Status,
    backlog: Backlog,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPipeline {
    pipeline: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPartition {
    pipeline: &'static str,
    partition: i64,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfCode {
    pipeline: &'static str,
    code: String,
}

type Samples<L, V> = Vec<(L, V)>;

fn counter<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Samples<L, u64>,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Samples<L, f64>,
) -> Result<(), Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn double(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
fn offset(next: i64) -> f64 {
    next as f64
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.encode_process(&mut encoder)?;
        self.encode_ingest(&mut encoder)?;
        self.encode_log(&mut encoder)?;
        self.encode_log_work(&mut encoder)?;
        self.encode_partitions(&mut encoder)?;
        self.encode_delivery(&mut encoder)
    }
}

impl Snapshot {
    /// One value per pipeline, taken from its status.
    fn of_status<V>(
        &self,
        value: impl Fn(&crate::inspect::PipelineStatus) -> V,
    ) -> Samples<OfPipeline, V> {
        self.status
            .pipelines
            .iter()
            .map(|(pipeline, status)| (OfPipeline { pipeline }, value(status)))
            .collect()
    }

    /// One value per pipeline, taken from its backlog.
    fn of_backlog<V>(
        &self,
        value: impl Fn(&crate::inspect::PipelineBacklog) -> V,
    ) -> Samples<OfPipeline, V> {
        self.backlog
            .pipelines
            .iter()
            .map(|(pipeline, backlog)| (OfPipeline { pipeline }, value(backlog)))
            .collect()
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let up = if self.status.state == "failing" { 0.0 } else { 1.0 };
        gauge(encoder, "up", "1 unless the process is failing", vec![(NO_LABELS, up)])?;
        gauge(
            encoder,
            "uptime_seconds",
            "Time since the start",
            vec![(NO_LABELS, double(self.status.uptime_s))],
        )?;
        gauge(
            encoder,
            "dead_letters",
            "Dead letters kept, repetitions included",
            vec![(NO_LABELS, double(self.backlog.dead_letters))],
        )?;
        self.encode_dead_letters(encoder)?;
        self.encode_definitions(encoder)
    }

    fn encode_definitions(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let definitions = self.status.definitions;
        for (name, help, value) in [
            (
                "definitions_remembered",
                "Series whose definition the store has",
                definitions.remembered,
            ),
            ("definitions_memory_bytes", "Bytes of memory that takes", definitions.memory_bytes),
            ("definitions_kept", "Entries kept for the next start", definitions.kept),
        ] {
            gauge(encoder, name, help, vec![(NO_LABELS, whole(value))])?;
        }
        for (name, help, value) in [
            (
                "definitions_written",
                "Definitions of series that the store has confirmed",
                definitions.written,
            ),
            (
                "definitions_loaded",
                "Definitions remembered from before the start",
                definitions.loaded,
            ),
            (
                "definitions_forgotten",
                "Definitions forgotten because the memory was full, to be written again",
                definitions.forgotten,
            ),
        ] {
            counter(encoder, name, help, vec![(NO_LABELS, value)])?;
        }
        Ok(())
    }

    fn encode_dead_letters(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let log = &self.backlog.dead_letter_log;
        gauge(
            encoder,
            "dead_letters_oldest_age_seconds",
            "For how long the oldest dead letter has been one; 0 without any",
            vec![(NO_LABELS, double(log.oldest_age_s.unwrap_or(0)))],
        )?;
        gauge(
            encoder,
            "dead_letters_used_bytes",
            "Bytes that dead letters take, those that were dropped and have not left the disk included",
            vec![(NO_LABELS, double(log.used_bytes))],
        )?;
        gauge(
            encoder,
            "dead_letters_capacity_bytes",
            "Most bytes that dead letters may take",
            vec![(NO_LABELS, double(log.capacity_bytes))],
        )?;
        counter(
            encoder,
            "dead_letters_dropped",
            "Dead letters dropped by order, repetitions included",
            vec![(NO_LABELS, log.dropped)],
        )?;
        counter(
            encoder,
            "dead_letters_forwarded",
            "Dead letters that the brokers acknowledged for their topic, repetitions included",
            vec![(NO_LABELS, log.forwarded)],
        )?;
        counter(
            encoder,
            "dead_letters_retried",
            "Dead letters tried again by order, repetitions included",
            vec![(NO_LABELS, log.retried)],
        )
    }

    fn encode_ingest(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        counter(
            encoder,
            "messages",
            "Messages taken from Kafka",
            self.of_status(|status| status.intake.messages),
        )?;
        counter(
            encoder,
            "message_bytes",
            "Bytes of their payloads",
            self.of_status(|status| status.intake.payload_bytes),
        )?;
        counter(
            encoder,
            "messages_repeated",
            "Messages that Kafka sent again and the log had already",
            self.of_status(|status| status.intake.repeated),
        )?;
        counter(
            encoder,
            "log_appends",
            "Batches appended to the log",
            self.of_status(|status| status.intake.batches),
        )?;
        gauge(
            encoder,
            "kafka_connected",
            "1 while a broker answers",
            self.of_status(|status| if status.kafka_connected { 1.0 } else { 0.0 }),
        )?;
        gauge(
            encoder,
            "paused",
            "1 while consumption is paused because the log is full",
            self.of_status(|status| if status.paused { 1.0 } else { 0.0 }),
        )?;
        self.encode_ledger(encoder)
    }

    fn encode_ledger(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        counter(
            encoder,
            "ledger_entries",
            "Entries of the ledger that Kafka confirmed",
            self.of_status(|status| status.ledger.counts.ledger_entries),
        )?;
        counter(
            encoder,
            "messages_fetched_again",
            "Messages that were owed and are in the log again",
            self.of_status(|status| status.ledger.counts.fetched_again),
        )?;
        gauge(
            encoder,
            "owed_offsets",
            "Offsets that were taken and lost, and are being fetched again",
            self.of_status(|status| double(offsets(&status.ledger.owed))),
        )?;
        gauge(
            encoder,
            "lost_offsets",
            "Owed offsets that Kafka does not have any more, until a person takes note",
            self.of_status(|status| double(offsets(&status.ledger.lost))),
        )?;
        gauge(
            encoder,
            "kafka_gaps",
            "Gaps between Kafka's history and ours that no person has taken note of",
            self.of_status(|status| whole(status.ledger.gaps.len())),
        )?;
        gauge(
            encoder,
            "partitions_stopped",
            "Partitions that stopped at such a gap and wait for a person",
            self.of_status(|status| whole(status.stopped.len())),
        )?;
        let mut samples = Vec::new();
        for (pipeline, status) in &self.status.pipelines {
            for (partition, left) in &status.ledger.retention {
                let labels = OfPartition { pipeline, partition: i64::from(*partition) };
                samples.push((labels, double(left.seconds)));
            }
        }
        gauge(
            encoder,
            "retention_left_seconds",
            "Until Kafka's retention reaches the first message not consumed, of partitions that are behind",
            samples,
        )
    }

    fn encode_log(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        gauge(
            encoder,
            "backlog_records",
            "Durable records that are not delivered",
            self.of_backlog(|backlog| double(backlog.records)),
        )?;
        gauge(
            encoder,
            "backlog_bytes",
            "Their bytes on disk, estimated",
            self.of_backlog(|backlog| double(backlog.bytes)),
        )?;
        gauge(
            encoder,
            "log_allocated_bytes",
            "Bytes of all files of the log",
            self.of_backlog(|backlog| double(backlog.allocated_bytes)),
        )?;
        gauge(
            encoder,
            "log_capacity_bytes",
            "Most bytes the log may take",
            self.of_backlog(|backlog| double(backlog.capacity_bytes)),
        )?;
        for (name, help, value) in [
            ("log_appended_position", "Position after the last record appended", 0_usize),
            ("log_durable_position", "Everything before it is durable", 1),
            (
                "log_delivered_position",
                "Everything before it is in the store or the dead letters",
                2,
            ),
            ("log_reclaimed_position", "Everything before it has left the disk", 3),
        ] {
            let samples = self.of_backlog(|backlog| {
                double(match value {
                    0 => backlog.appended,
                    1 => backlog.durable,
                    2 => backlog.delivered,
                    _ => backlog.reclaimed,
                })
            });
            gauge(encoder, name, help, samples)?;
        }
        Ok(())
    }

    /// The log's own work since it was opened.
    fn encode_log_work(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        gauge(
            encoder,
            "log_used_bytes",
            "Bytes of the log's files that records lie in",
            self.of_status(|status| double(status.log.used_bytes)),
        )?;
        gauge(
            encoder,
            "log_segments",
            "Segment files with records",
            self.of_status(|status| double(u64::try_from(status.log.segments).unwrap_or(u64::MAX))),
        )?;
        counter(
            encoder,
            "log_written_bytes",
            "Bytes that the log gave to the disk",
            self.of_status(|status| status.log.bytes_written),
        )?;
        counter(
            encoder,
            "log_payload_bytes",
            "Uncompressed bytes of the records among them",
            self.of_status(|status| status.log.payload_bytes_written),
        )?;
        counter(
            encoder,
            "log_groups",
            "Writes that were made durable, each with everything that had queued",
            self.of_status(|status| status.log.groups),
        )?;
        type Value = fn(&LogActivity) -> &wal::Latency;
        let values: [(&str, &str, Value); 3] = [
            ("log_append_seconds", "From append to durable, per batch", |log| &log.append_latency),
            ("log_write_seconds", "Write of a group, durable with direct writes", |log| {
                &log.write_latency
            }),
            ("log_sync_seconds", "Sync of a group", |log| &log.sync_latency),
        ];
        for (name, help, value) in values {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (pipeline, status) in &self.status.pipelines {
                let latency = value(&status.log);
                metric.encode_family(&OfPipeline { pipeline })?.encode_histogram::<NoLabels>(
                    latency.sum.as_secs_f64(),
                    latency.count(),
                    &buckets(latency),
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn encode_partitions(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        type Value = fn(&crate::inspect::PartitionBacklog) -> Option<i64>;
        let values: [(&str, &str, Value); 4] = [
            ("partition_consumed_offset", "Next offset to take from Kafka", |partition| {
                partition.consumed
            }),
            ("partition_durable_offset", "Everything before it is durable here", |partition| {
                partition.durable
            }),
            ("partition_committed_offset", "What Kafka confirmed for the group", |partition| {
                partition.committed
            }),
            ("partition_lag", "Messages in Kafka that are not consumed", |partition| partition.lag),
        ];
        for (name, help, value) in values {
            let mut samples = Vec::new();
            for (pipeline, backlog) in &self.backlog.pipelines {
                for (partition, progress) in &backlog.partitions {
                    if let Some(next) = value(progress) {
                        samples.push((
                            OfPartition { pipeline, partition: i64::from(*partition) },
                            offset(next),
                        ));
                    }
                }
            }
            gauge(encoder, name, help, samples)?;
        }
        Ok(())
    }

    fn encode_delivery(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        type Value = fn(&crate::inspect::PipelineStatus) -> u64;
        let values: [(&str, &str, Value); 12] = [
            ("rows_written", "Rows that the store has confirmed", |status| {
                status.delivered.rows_written
            }),
            ("store_requests", "Requests that the store answered with success", |status| {
                status.delivered.requests_ok
            }),
            ("store_retries", "Requests that are sent again", |status| status.delivered.retries),
            ("store_splits", "Requests that were cut in halves", |status| status.delivered.splits),
            ("rows_rejected", "Rows that the store will never take", |status| {
                status.delivered.rows_rejected
            }),
            (
                "rows_set_aside",
                "Rows put behind others in the log because their replicas were away and memory was short",
                |status| status.delivered.rows_set_aside,
            ),
            (
                "rows_superseded",
                "Rows that a later one with the same key replaced before writing",
                |status| status.gathered.superseded,
            ),
            ("rows_expired", "Rows older than the retention, not written", |status| {
                status.gathered.expired
            }),
            ("timestamps_replaced", "Messages whose Kafka timestamp could not be used", |status| {
                status.gathered.time_replaced
            }),
            (
                "redeliveries",
                "Times that the last hold-back was delivered again, because nodes of the store restarted or were away",
                |status| status.redelivered.times,
            ),
            (
                "redelivered_records",
                "Records of the log that were delivered again for that reason",
                |status| status.redelivered.records,
            ),
            ("values_shortened", "Rows stored without a part that was too long", |status| {
                status.gathered.shortened
            }),
        ];
        for (name, help, value) in values {
            counter(encoder, name, help, self.of_status(value))?;
        }
        counter(
            encoder,
            "meta_missing",
            "Messages without tenant or region",
            self.of_status(|status| status.gathered.meta_missing),
        )?;
        let dead = self.status.pipelines.iter().flat_map(|(pipeline, status)| {
            status
                .dead_lettered
                .iter()
                .map(|(code, count)| (OfCode { pipeline, code: code.clone() }, *count))
        });
        counter(
            encoder,
            "dead_lettered",
            "Messages put into the dead letters, by reason",
            dead.collect(),
        )?;
        gauge(
            encoder,
            "store_in_flight",
            "Requests in flight",
            self.of_status(|status| whole(status.in_flight)),
        )?;
        gauge(
            encoder,
            "store_breaker_open",
            "1 while the store is not asked",
            self.of_status(|status| match status.breaker {
                Some(BreakerState::Open | BreakerState::HalfOpen) => 1.0,
                Some(BreakerState::Closed) | None => 0.0,
            }),
        )
    }
}

fn whole(count: usize) -> f64 {
    double(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Upper bounds in seconds, and how many fell into each bucket.
fn offsets(ranges: &[OffsetRange]) -> u64 {
    ranges.iter().map(OffsetRange::offsets).fold(0, u64::saturating_add)
}

fn buckets(latency: &wal::Latency) -> Vec<(f64, u64)> {
    let bounds = wal::BUCKET_MICROS.iter().map(|micros| double(*micros) / 1e6);
    bounds.chain(std::iter::once(f64::MAX)).zip(latency.counts).collect()
}

/// No exemplars.
type NoLabels = [(&'static str, &'static str); 0];

/// Labels of a value that belongs to the whole process.
const NO_LABELS: [(&str, &str); 0] = [];
