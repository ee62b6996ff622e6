//! The old persister's `/metrics`, for scripts that people have built on it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::gather::Kind;
use crate::inspect::Inspect;

/// The JSON document with the names that the Java persister used: one set per writer thread.
pub(super) fn render(inspect: &Inspect) -> Value {
    let mut meters = Map::new();
    let mut counters = Map::new();
    let mut gauges = Map::new();
    let uptime_s = inspect.status().uptime_s.max(1);
    // Threads are counted over all pipelines of a kind, as one process of the old persister would.
    let mut threads = BTreeMap::new();
    let mut persisted = (0_u64, 0_u64);
    for pipeline in inspect.status().pipelines.into_values() {
        let is_metrics = pipeline.kind == Kind::Metrics;
        let (handler, thread, added) = if is_metrics {
            ("MetricHandler", "metric", "metrics-added-to-batch-counter")
        } else {
            (
                "AlarmStateTransitionHandler",
                "alarm-state-transition",
                "alarm-state-transitions-added-to-batch-counter",
            )
        };
        for writer in &pipeline.writers {
            let index = threads.entry(thread).and_modify(|index| *index += 1).or_insert(0_usize);
            let prefix = format!("monasca.persister.pipeline.event.{handler}[{thread}-{index}]");
            meters.insert(format!("{prefix}.events-processed-meter"), meter(writer.rows, uptime_s));
            meters.insert(format!("{prefix}.flush-meter"), meter(writer.rows, uptime_s));
            counters.insert(format!("{prefix}.{added}"), json!({"count": writer.rows}));
        }
        if is_metrics {
            persisted.0 = persisted.0.saturating_add(pipeline.delivered.rows_written);
            persisted.1 = persisted.1.saturating_add(pipeline.delivered.rows_rejected);
        }
    }
    let repository = "monasca.persister.repository.cassandra.CassandraMetricRepo";
    let (written, rejected) = persisted;
    counters.insert(format!("{repository}.metrics-persisted-counter"), json!({"count": written}));
    counters.insert(format!("{repository}.metrics-failed-counter"), json!({"count": rejected}));
    meters.insert(format!("{repository}.measurement-meter"), meter(written, uptime_s));
    for (name, backlog) in inspect.backlog().pipelines {
        gauges.insert(
            format!("monasca.persister.{name}.backlog-records"),
            json!({"value": backlog.records}),
        );
    }
    json!({
        "version": "4.0.0",
        "gauges": gauges,
        "counters": counters,
        "histograms": {},
        "meters": meters,
        "timers": {},
    })
}

/// A meter with its count and the mean rate; rates of the last minutes are Prometheus' business.
fn meter(count: u64, uptime_s: u64) -> Value {
    json!({"count": count, "mean_rate": count / uptime_s, "units": "events/second"})
}
