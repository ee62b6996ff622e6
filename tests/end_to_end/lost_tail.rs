//! A node that loses what it acknowledged: its commit log is synced now and then, and what was not synced is taken away.

use std::path::Path;
use std::time::Duration;

use harness::{Cassandra, Kafka};

use crate::audit;
use crate::load::{Ledger, Load, Plan};
use crate::persister::{Persister, Site};

const WAIT: Duration = Duration::from_secs(120);

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // A spare segment may be renamed meanwhile; nothing is in it.
        if let Err(error) = std::fs::copy(entry.path(), to.join(entry.file_name())) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

/// Sends, and waits until all of it is delivered.
fn deliver(kafka: &Kafka, site: &Site, persisters: &[&Persister], plan: Plan) -> Ledger {
    let ledger = Load::start(kafka, site, plan).finish();
    site.wait_committed(kafka, WAIT).unwrap();
    for persister in persisters {
        persister.wait_delivered(WAIT).unwrap();
    }
    ledger
}

#[test]
fn what_a_node_acknowledged_and_lost_is_delivered_again() {
    let kafka = Kafka::start().unwrap();
    // Not once between the copy and the kill.
    let mut cassandra =
        Cassandra::builder().setting("commitlog_sync_period", "600000ms").start().unwrap();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let environment = [("MONASCA_PERSISTER__WAL__HOLD_BACK", "10m")];
    let one = Persister::start(&site, "one", &environment);
    let mut two = Persister::start(&site, "two", &environment);
    for persister in [&one, &two] {
        persister.wait_assigned(2, Duration::from_secs(60));
    }
    let plan = Plan { metrics: 4_000, series: 200, alarms: 100, per_s: 4_000, later_ms: 0 };
    let kept = deliver(&kafka, &site, &[&one, &two], plan);
    std::thread::sleep(Duration::from_secs(1));
    let (commit_log, before) =
        (cassandra.commit_log(), cassandra.commit_log().with_extension("was"));
    copy(&commit_log, &before);

    // Series that are new among them: their definitions are lost too.
    let lost =
        deliver(&kafka, &site, &[&one, &two], Plan { series: 400, later_ms: 50_000, ..plan });
    // One sees nothing of it but a node that lives; the other is killed with it, and starts when all is over.
    one.freeze();
    two.kill();
    cassandra.kill();
    copy(&before, &commit_log);
    cassandra.restart().unwrap();
    let ledgers = [&kept, &lost];
    let missing = audit::audit_all(&site, &kafka, &ledgers).unwrap_err();
    assert!(missing.contains("neither stored nor in the dead letters"), "{missing}");
    eprintln!("lost by Cassandra: {missing}");

    one.thaw();
    let two = Persister::start(&site, "two", &environment);
    for persister in [&one, &two] {
        persister.wait("delivering again", WAIT, |one| {
            ["metrics", "alarms"].iter().all(|pipeline| {
                one.metric("redeliveries_total", pipeline).is_some_and(|times| times >= 1.0)
            })
        });
        assert!(persister.log().contains("DB_NODE_LOST_ROWS"));
        let records = persister.metric("redelivered_records_total", "metrics").unwrap();
        assert!(records > 0.0, "nothing was delivered again");
        eprintln!("delivered again: {records} metrics");
    }
    site.wait_committed(&kafka, WAIT).unwrap();
    for persister in [&one, &two] {
        persister.wait_delivered(WAIT).unwrap();
    }
    for persister in [one, two] {
        persister.stop().unwrap();
    }
    let audit = audit::audit_all(&site, &kafka, &ledgers).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}
