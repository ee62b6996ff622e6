//! The old persister's `/metrics`, for scripts that people have built on it.

use serde_json::{Map, Value, json};

use crate::gather::Kind;
use crate::inspect::Inspect;

/// The JSON document with the names that the Java persister used: one set per writer thread.
pub(super) fn render(inspect: &Inspect) -> Value {
    let mut meters = Map::new();
    let mut counters = Map::new();
    let mut gauges = Map::new();
    let uptime_s = inspect.status().uptime_s.max(1);
    for (name, pipeline) in inspect.status().pipelines {
        let (handler, thread, added) = if name == Kind::Metrics.name() {
            ("MetricHandler", "metric", "metrics-added-to-batch-counter")
        } else {
            (
                "AlarmStateTransitionHandler",
                "alarm-state-transition",
                "alarm-state-transitions-added-to-batch-counter",
            )
        };
        for (index, writer) in pipeline.writers.iter().enumerate() {
            let prefix = format!("monasca.persister.pipeline.event.{handler}[{thread}-{index}]");
            meters.insert(format!("{prefix}.events-processed-meter"), meter(writer.rows, uptime_s));
            meters.insert(format!("{prefix}.flush-meter"), meter(writer.rows, uptime_s));
            counters.insert(format!("{prefix}.{added}"), json!({"count": writer.rows}));
        }
        if name == Kind::Metrics.name() {
            let repository = "monasca.persister.repository.cassandra.CassandraMetricRepo";
            counters.insert(
                format!("{repository}.metrics-persisted-counter"),
                json!({"count": pipeline.delivered.rows_written}),
            );
            counters.insert(
                format!("{repository}.metrics-failed-counter"),
                json!({"count": pipeline.delivered.rows_rejected}),
            );
            meters.insert(
                format!("{repository}.measurement-meter"),
                meter(pipeline.delivered.rows_written, uptime_s),
            );
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
        "timers": {},
    })
}

/// A meter with its count and the mean rate; rates of the last minutes are Prometheus' business.
fn meter(count: u64, uptime_s: u64) -> Value {
    json!({"count": count, "mean_rate": count / uptime_s, "units": "events/second"})
}
