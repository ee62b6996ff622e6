//! A link that others need too, and a backlog behind it: the rate is kept, and alarms go before metrics.

use std::time::{Duration, Instant};

use harness::Kafka;

use crate::audit;
use crate::load::{Load, Plan};
use crate::persister::{Persister, Site};

const BYTES_PER_S: f64 = 300_000.0;

#[test]
fn a_backlog_is_sent_no_faster_than_allowed_and_alarms_go_before_metrics() {
    let kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let plan = Plan { metrics: 10_000, series: 200, alarms: 10_000, per_s: 20_000, later_ms: 0 };
    let sent = Load::start(&kafka, &site, plan).finish();
    let nobody = format!("127.0.0.1:{}", harness::free_port().unwrap());
    let collecting = Persister::start(
        &site,
        "one",
        &[
            ("MONASCA_PERSISTER__STORE__CASSANDRA__CONTACT_POINTS", &nobody),
            ("MONASCA_PERSISTER__SHUTDOWN__MODE", "persist"),
        ],
    );
    site.wait_committed(&kafka, Duration::from_secs(120)).unwrap();
    collecting.stop().unwrap();

    let rate = format!("{BYTES_PER_S}");
    let one = Persister::start(
        &site,
        "one",
        &[("MONASCA_PERSISTER__STORE__MAX_WRITE_BYTES_PER_SECOND", &rate)],
    );
    let records = |pipeline: &str| one.backlog(pipeline)["records"].as_u64().unwrap();
    one.wait("sending", Duration::from_secs(60), |one| one.rows_written() > 0);
    let begun = Instant::now();
    let written_before = one.rows_written();
    one.wait("rid of alarms", Duration::from_secs(120), |_| records("alarms") == 0);
    let metrics_left = records("metrics");
    assert!(
        metrics_left > 7_500,
        "{metrics_left} of 10000 metrics were left when the last of 10000 alarms was stored"
    );
    one.wait_delivered(Duration::from_secs(120)).unwrap();
    // Two thirds of what the rows take as CQL carries them, all texts of alarms left out.
    let bytes = (20_000.0 - written_before as f64) * 75.0;
    let took = begun.elapsed().as_secs_f64();
    assert!(bytes / took <= BYTES_PER_S, "{bytes} bytes in {took} s");
    eprintln!("{metrics_left} metrics left after the alarms, all sent after {took:.1} s");
    one.stop().unwrap();
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}
