//! Two nodes without copies of each other's rows, and one of them is away.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use harness::Kafka;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;

use crate::audit;
use crate::load::{Load, Plan};
use crate::persister::{Persister, Site};

const SERIES: usize = 150;
/// Rows that may be held in memory: a small part of what the node that is away is to be sent.
const ROWS_HELD: u64 = 4_000;

/// Which part of the series the nodes that are not at `away` keep.
fn share_elsewhere(site: &Site, away: IpAddr) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session: Session =
            SessionBuilder::new().known_node(&site.contact_point).build().await.unwrap();
        let query = format!("SELECT DISTINCT metric_id FROM {}.measurements", site.keyspace);
        let rows = session.query_iter(query, ()).await.unwrap();
        let ids: Vec<(Vec<u8>,)> = rows.rows_stream().unwrap().try_collect().await.unwrap();
        assert!(ids.len() >= SERIES, "{} of {SERIES}", ids.len());
        let cluster = session.get_cluster_state();
        let is_elsewhere = |id: &Vec<u8>| {
            let replicas = cluster.get_endpoints(&site.keyspace, "measurements", &(id,)).unwrap();
            replicas.iter().all(|(node, _)| node.address.ip() != away)
        };
        let elsewhere = ids.iter().filter(|(id,)| is_elsewhere(id)).count();
        elsewhere as f64 / ids.len() as f64
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
    let elsewhere = share_elsewhere(&site, away.ip());
    assert!((0.1..=0.9).contains(&elsewhere), "{elsewhere}");

    // The descriptions of series are delivered again with what the hold-back covers, and some of them go to that node.
    std::thread::sleep(Duration::from_secs(6));
    second.kill();
    let written_before = persister.rows_written();
    let plan = Plan { metrics: 39_000, alarms: 0, per_s: 2_500, later_ms: 100_000, ..plan };
    let during = Load::start(&kafka, &site, plan).finish();
    // One in a hundred is poison. What is sent in the same request as a row that fails may wait too.
    let all = u64::try_from(plan.metrics).unwrap();
    let wanted = all as f64 * elsewhere * 0.98;
    eprintln!("{elsewhere:.2} of the series elsewhere: {wanted:.0} rows");
    let written = |persister: &Persister| persister.rows_written() - written_before;
    persister.wait("delivered to the other node", Duration::from_secs(60), |persister| {
        written(persister) as f64 >= wanted
    });
    let away_rows = all as f64 - wanted;
    assert!(away_rows > 3.0 * ROWS_HELD as f64, "{away_rows:.0} rows of the node that is away");
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
