//! The old persister's `/metrics`, for scripts that people have built on it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::gather::Kind;
use crate::inspect::Inspect;
use crate::rates::float;

/// The JSON document with the names that the Java persister used: one set per writer thread.
pub(super) fn render(inspect: &Inspect) -> Value {
    let mut meters = Map::new();
    let mut counters = Map::new();
    let mut gauges = Map::new();
    let mut timers = Map::new();
    let uptime_s = inspect.status().uptime_s.max(1);
    // Threads are counted over all pipelines of a kind, as one process of the old persister would.
    let mut threads = BTreeMap::new();
    let mut persisted = (0_u64, 0_u64);
    let mut requests = 0_u64;
    let definitions = inspect.status().definitions;
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
            timers.insert(format!("{prefix}.flush-timer"), timer(writer.requests, uptime_s));
        }
        if is_metrics {
            persisted.0 = persisted.0.saturating_add(pipeline.delivered.rows_written);
            persisted.1 = persisted.1.saturating_add(pipeline.delivered.rows_rejected);
            requests = requests.saturating_add(pipeline.delivered.requests_ok);
        }
    }
    let repository = "monasca.persister.repository.cassandra.CassandraMetricRepo";
    let (written, rejected) = persisted;
    counters.insert(format!("{repository}.metrics-persisted-counter"), json!({"count": written}));
    counters.insert(format!("{repository}.metrics-failed-counter"), json!({"count": rejected}));
    meters.insert(format!("{repository}.measurement-meter"), meter(written, uptime_s));
    timers.insert(format!("{repository}.commit-timer"), timer(requests, uptime_s));
    // A value whose series was described already has found it in the memory of definitions.
    let misses = definitions.written;
    for (cache, count) in [("hit", written.saturating_sub(misses)), ("miss", misses)] {
        for kind in ["definition", "dimension", "metric-dimension"] {
            meters
                .insert(format!("{repository}.{kind}-cache-{cache}-meter"), meter(count, uptime_s));
        }
    }
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
        "timers": timers,
    })
}

/// A timer with its count and the mean rate; how long requests take is Prometheus' business.
fn timer(count: u64, uptime_s: u64) -> Value {
    json!({"count": count, "mean_rate": float(count) / float(uptime_s), "rate_units": "calls/second"})
}

/// A meter with its count and the mean rate; rates of the last minutes are Prometheus' business.
fn meter(count: u64, uptime_s: u64) -> Value {
    json!({"count": count, "mean_rate": float(count) / float(uptime_s), "units": "events/second"})
}
