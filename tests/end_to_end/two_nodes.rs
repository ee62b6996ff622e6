//! Two nodes without copies of each other's rows, and one of them is away.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use harness::Kafka;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

use crate::audit;
use crate::load::{Expected, Load, Plan, Sent};
use crate::persister::{Persister, Site};

const SERIES: usize = 150;
/// Rows that may be held in memory: a small part of what the node that is away is to be sent.
const ROWS_HELD: u64 = 4_000;

/// Hosts whose series the nodes that are not at `away` keep.
fn hosts_elsewhere(site: &Site, away: IpAddr) -> BTreeSet<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session: Session =
            SessionBuilder::new().known_node(&site.contact_point).build().await.unwrap();
        let query = format!("SELECT metric_id, dimensions FROM {}.metrics", site.keyspace);
        let rows = session.query_iter(query, ()).await.unwrap();
        let series: Vec<(Vec<u8>, Vec<String>)> =
            rows.rows_stream().unwrap().try_collect().await.unwrap();
        let cluster = session.get_cluster_state();
        let is_elsewhere = |id: &Vec<u8>| {
            let replicas = cluster.get_endpoints(&site.keyspace, "measurements", &(id,)).unwrap();
            replicas.iter().all(|(node, _)| node.address.ip() != away)
        };
        let host = |dimension: &String| dimension.strip_prefix("hostname\t").map(str::to_owned);
        let elsewhere = series.iter().filter(|(id, _)| is_elsewhere(id));
        elsewhere.filter_map(|(_, dimensions)| dimensions.iter().find_map(host)).collect()
    })
}

#[test]
fn rows_of_a_node_that_is_away_do_not_hold_up_those_of_the_other_however_long_it_takes() {
    let kafka = Kafka::start().unwrap();
    let first = crate::syncing_cassandra();
    let mut second = crate::syncing().beside(&first).start().unwrap();
    let site = Site::prepare(&kafka, &first, 4);
    let rows_held = ROWS_HELD.to_string();
    let settings = [("MONASCA_PERSISTER__METRICS__GATHER_ROWS_MAX", rows_held.as_str())];
    let persister = Persister::start(&site, "one", &settings);
    // All series are described while both are there.
    let plan = Plan { metrics: 3_000, series: SERIES, alarms: 0, per_s: 2_000, later_ms: 0 };
    let before = Load::start(&kafka, &site, plan).finish();
    persister.wait_delivered(Duration::from_secs(60)).unwrap();
    let away: std::net::SocketAddr = second.contact_point().parse().unwrap();
    let elsewhere = hosts_elsewhere(&site, away.ip());
    // Each series has a host of its own.
    assert!((SERIES / 10..=SERIES * 9 / 10).contains(&elsewhere.len()), "{elsewhere:?}");

    // The descriptions of series are delivered again with what the hold-back covers, and some of them go to that node.
    std::thread::sleep(Duration::from_secs(6));
    second.kill();
    let written_before = persister.rows_written();
    let plan = Plan { metrics: 39_000, alarms: 0, per_s: 2_500, later_ms: 100_000, ..plan };
    let during = Load::start(&kafka, &site, plan).finish();
    let is_measured = |sent: &&Sent| matches!(sent.expected, Expected::Measurement { .. });
    let is_elsewhere = |sent: &&Sent| match &sent.expected {
        Expected::Measurement { host, .. } => elsewhere.contains(host),
        _ => false,
    };
    let all = during.values().filter(is_measured).count() as u64;
    let wanted = during.values().filter(is_elsewhere).count() as u64;
    eprintln!("{wanted} of {all} rows are for the other node");
    let written = |persister: &Persister| persister.rows_written() - written_before;
    persister.wait("delivered to the other node", Duration::from_secs(60), |persister| {
        written(persister) >= wanted
    });
    let away_rows = all - wanted;
    assert!(away_rows > 3 * ROWS_HELD, "{away_rows} rows of the node that is away");
    let aside = persister.metric("rows_set_aside_total", "metrics").unwrap();
    assert!(aside > 0.0);
    let (_, what) = persister.health();
    let reasons = persister.reasons();
    second.restart().unwrap();
    persister.wait_delivered(Duration::from_secs(120)).unwrap();
    let stats = format!(
        "{} rows written meanwhile, {aside} rows set aside, {reasons:?}, {what}",
        written(&persister),
    );
    persister.stop().unwrap();
    let audit = audit::audit_all(&site, &kafka, &[&before, &during])
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{stats}: {audit}");
}
