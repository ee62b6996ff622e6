//! Several topics of each kind in one process: each has a group, a log and a ledger of its own.

use std::time::Duration;

use harness::Kafka;

use crate::audit::audit_all;
use crate::load::{Load, Plan};
use crate::persister::{Persister, Site};

const WAIT: Duration = Duration::from_secs(120);
const PLAN: Plan = Plan { metrics: 6_000, series: 200, alarms: 100, per_s: 1_000, later_ms: 0 };
const OTHERS: [&str; 2] = ["metrics-eu", "alarms-eu"];

fn wait_delivered(persister: &Persister) {
    persister.wait_delivered(WAIT).unwrap();
    persister.wait("the other topics are delivered", WAIT, |persister| {
        OTHERS.iter().all(|name| persister.backlog(name)["records"] == 0)
    });
}

#[test]
fn further_topics_have_a_pipeline_each_and_a_kill_costs_none_of_them_a_message() {
    let kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let eu = site.with_other_topics(&kafka, 4);
    let more = format!(
        "{{metrics-eu: {{kind: metrics, pipeline: {{topic: {}, group_id: {}}}}}, \
          alarms-eu: {{kind: alarms, log_bytes_max: 64 MiB, pipeline: {{topic: {}, group_id: {}}}}}}}",
        eu.metrics_topic, eu.metrics_group, eu.alarms_topic, eu.alarms_group
    );
    let environment = [("MONASCA_PERSISTER__MORE_PIPELINES", more.as_str())];
    let loads = [
        Load::start(&kafka, &site, PLAN),
        // Other rows of the same tables.
        Load::start(&kafka, &eu, Plan { metrics: 9_000, later_ms: 60_000, ..PLAN }),
    ];
    let mut persister = Persister::start(&site, "one", &environment);
    let taken = |persister: &Persister| {
        ["metrics", OTHERS[0]]
            .iter()
            .all(|name| persister.backlog(name)["appended"].as_u64() > Some(1_000))
    };
    persister.wait("both topics flow", WAIT, taken);
    persister.kill();
    let persister = Persister::start(&site, "one", &environment);
    let sent = loads.map(Load::finish);
    for site in [&site, &eu] {
        site.wait_committed(&kafka, WAIT).unwrap();
    }
    wait_delivered(&persister);
    persister.wait("nothing comes any more in any of them", WAIT, |persister| {
        ["metrics", OTHERS[0]]
            .iter()
            .all(|name| persister.backlog(name)["in_per_s"].as_f64().unwrap() < 1.0)
    });
    assert!(persister.metric("log_delivered_position", OTHERS[0]) > Some(5_000.0));
    persister.stop().unwrap();
    for site in [&site, &eu] {
        let audited = audit_all(site, &kafka, &[&sent[0], &sent[1]]);
        eprintln!("{}", audited.unwrap_or_else(|wrong| panic!("{wrong}")));
    }
}
