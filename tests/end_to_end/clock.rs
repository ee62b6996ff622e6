//! Wall clocks that are wrong: one member's is a day ahead, the other's a day behind. Nothing is decided by them, and
//! nothing is lost.
//!
//! The test build adds the error where the program reads the clock. libfaketime does not do here: it leaves out C11's
//! `cnd_timedwait`, which the Kafka client waits with, and so mixes two clocks in one wait.

use std::time::Duration;

use harness::Kafka;

use crate::audit;
use crate::load::{Load, Plan};
use crate::persister::{Persister, Site};

fn taken_over(persister: &Persister) -> usize {
    persister.log().lines().filter(|line| line.contains("LEDGER_TAKEN_OVER")).count()
}

#[test]
fn clocks_that_are_two_days_apart_lose_nothing_and_nobody_takes_over_who_is_there() {
    let kafka = Kafka::start().unwrap();
    let mut cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    // Both owe something for as long as they are looked at.
    cassandra.kill();
    let start = |instance, offset| {
        let environment = [
            ("MONASCA_PERSISTER_CLOCK_ERROR_MS", offset),
            ("MONASCA_PERSISTER__KAFKA__TAKEOVER_AFTER", "10s"),
        ];
        Persister::start(&site, instance, &environment)
    };
    let mut ahead = start("ahead", "86400000");
    let behind = start("behind", "-86400000");
    for persister in [&ahead, &behind] {
        persister.wait_assigned(2, Duration::from_secs(60));
    }
    let plan = Plan { metrics: 8_000, series: 200, alarms: 80, per_s: 4_000, later_ms: 0 };
    let sent = Load::start(&kafka, &site, plan).finish();
    site.wait_committed(&kafka, Duration::from_secs(60)).unwrap();

    let others = |persister: &Persister| {
        persister.json("/api/v1/status")["pipelines"]["metrics"]["ledger"]["others"].clone()
    };
    for persister in [&ahead, &behind] {
        // Each has looked at the other, whose clock is two days off and who owes something.
        persister.wait("a look at the other", Duration::from_secs(60), |persister| {
            others(persister)[0]["owed_offsets"].as_u64().is_some_and(|owed| owed > 0)
        });
    }
    let heard_ms = |persister: &Persister| others(persister)[0]["heard_ms"].as_i64().unwrap();
    let apart_ms = heard_ms(&behind) - heard_ms(&ahead);
    assert!((170_000_000..176_000_000).contains(&apart_ms), "the clocks are {apart_ms} ms apart");
    // Twice as long as a silence may last.
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!((taken_over(&ahead), taken_over(&behind)), (0, 0), "taken over while it lives");

    // One is gone; the other, by whose clock it was heard of tomorrow, makes up for it.
    ahead.kill();
    std::fs::remove_dir_all(site.log_dir("ahead")).unwrap();
    behind.wait("taken over", Duration::from_secs(90), |behind| taken_over(behind) > 0);
    cassandra.restart().unwrap();
    site.wait_committed(&kafka, Duration::from_secs(60)).unwrap();
    behind.wait_nothing_owed(Duration::from_secs(60)).unwrap();
    behind.wait_delivered(Duration::from_secs(60)).unwrap();
    behind.stop().unwrap();
    // Write times too: the audit compares them with the messages' times.
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}
