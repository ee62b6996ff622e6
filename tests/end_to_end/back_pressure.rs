//! A log at its high mark, and dead letters without room: consumption waits, the group does not notice, nothing is
//! skipped, and work goes on when there is room.

use std::time::{Duration, Instant};

use harness::Kafka;

use crate::audit;
use crate::load::{self, Load};
use crate::persister::{Persister, Site};

/// The smallest log there can be, with the shortest patience of the group.
const SMALL_LOG: [(&str, &str); 3] = [
    ("MONASCA_PERSISTER__WAL__ALARMS_BYTES_MAX", "16 MiB"),
    ("MONASCA_PERSISTER__KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS", "6000"),
    // What stays in the log at a stop is delivered after the next start.
    ("MONASCA_PERSISTER__SHUTDOWN__MODE", "persist"),
];

fn is_paused(persister: &Persister) -> bool {
    persister.backlog("alarms")["paused"].as_bool().unwrap()
}

/// Next offset to take of each partition.
fn consumed(persister: &Persister) -> Vec<(String, i64)> {
    let backlog = persister.backlog("alarms");
    let partitions = backlog["partitions"].as_object().unwrap();
    partitions
        .iter()
        .map(|(partition, at)| (partition.clone(), at["consumed"].as_i64().unwrap_or(0)))
        .collect()
}

/// Rebalances that the log of the process tells of.
fn rebalances(persister: &Persister, topic: &str) -> usize {
    let log = persister.log();
    let is_one =
        |line: &&str| line.contains("partitions assigned") || line.contains("partitions given up");
    log.lines().filter(|line| line.contains(topic)).filter(is_one).count()
}

#[test]
fn a_full_log_pauses_for_as_long_as_it_takes_and_the_group_does_not_notice() {
    let kafka = Kafka::start().unwrap();
    let mut cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    cassandra.kill();
    // Messages are sent with timestamps of about 16 minutes ago: little is left of 19.
    kafka.configure_topic(&site.alarms_topic, "retention.ms", "1140000").unwrap();
    let sent = Load::of(&kafka, &site, load::long_transitions(36_000, 1_500), 20_000).finish();
    let one = Persister::start(&site, "one", &SMALL_LOG);
    one.wait("paused", Duration::from_secs(120), is_paused);
    let (group, _) = &site.groups()[1];
    let generation = kafka.generation(group).unwrap();
    let seen = rebalances(&one, &site.alarms_topic);
    let stands_at = consumed(&one);
    assert!(one.backlog("alarms")["fill"].as_f64().unwrap() >= 0.7);
    assert!(one.reasons().contains(&"WAL_FULL".to_owned()), "{:?}", one.reasons());

    // Before Kafka removes what cannot be consumed, somebody is told.
    one.wait("forecast", Duration::from_secs(60), |one| {
        one.reasons().contains(&"KAFKA_RETENTION_NEAR".to_owned())
    });
    let left = one.metric("retention_left_seconds", "alarms").unwrap();
    assert!((1.0..285.0).contains(&left), "{left} s of 19 minutes less about 16");
    kafka.configure_topic(&site.alarms_topic, "retention.ms", "604800000").unwrap();

    // Five times as long as a member may be silent.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(32) {
        std::thread::sleep(Duration::from_secs(2));
        assert!(is_paused(&one) && one.is_alive() && one.is_ready());
    }
    assert_eq!(consumed(&one), stands_at, "a paused partition moved");
    assert_eq!(kafka.generation(group).unwrap(), generation, "the group had to rebalance");
    assert_eq!(rebalances(&one, &site.alarms_topic), seen);

    // Another one takes half, and dies: what comes back arrives paused.
    let mut two = Persister::start(&site, "two", &SMALL_LOG);
    two.wait_partitions("alarms", 2, Duration::from_secs(60));
    two.wait("paused", Duration::from_secs(120), is_paused);
    two.kill();
    one.wait_partitions("alarms", 4, Duration::from_secs(60));
    assert!(is_paused(&one));
    let came_back = consumed(&one);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(consumed(&one), came_back, "a partition that came back while paused moved");
    assert!(
        kafka.generation(group).unwrap() > generation,
        "the generation is read from the wrong place"
    );

    cassandra.restart().unwrap();
    one.wait("resumed", Duration::from_secs(120), |one| !is_paused(one));
    let two = Persister::start(&site, "two", &SMALL_LOG);
    site.wait_committed(&kafka, Duration::from_secs(120)).unwrap();
    for persister in [&one, &two] {
        persister.wait_delivered(Duration::from_secs(120)).unwrap();
    }
    let lines = one.log().lines().count();
    assert!(lines < 200, "{lines} lines in a few minutes:\n{}", one.log());
    for persister in [one, two] {
        persister.stop().unwrap();
    }
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}

#[test]
fn dead_letters_without_room_hold_up_delivery_and_nothing_is_skipped() {
    const SMALL: (&str, &str) = ("MONASCA_PERSISTER__WAL__DEAD_LETTERS_BYTES_MAX", "16 MiB");
    let kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let one = Persister::start(&site, "one", &[SMALL, SMALL_LOG[2]]);
    let sent = Load::of(&kafka, &site, load::long_poison(500, 60_000), 2_000).finish();
    one.wait("blocked", Duration::from_secs(120), |one| {
        one.reasons().contains(&"DEAD_LETTERS_FULL".to_owned())
    });
    // Consumption goes on, and so does the rest of the process; only what is not kept is not acknowledged.
    site.wait_committed(&kafka, Duration::from_secs(120)).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    assert!(one.is_alive());
    let kept = one.json("/api/v1/backlog")["dead_letters"].as_u64().unwrap();
    assert!((100..500).contains(&kept), "{kept} of 500 found room in 16 MiB");
    let waiting = one.backlog("metrics")["records"].as_u64().unwrap();
    assert!(waiting >= 500 - kept, "{waiting} wait, {kept} are kept");
    let said = one.log().lines().filter(|line| line.contains("DEAD_LETTERS_FULL")).count();
    assert_eq!(said, 1, "said once, and once only:\n{}", one.log());
    one.stop().unwrap();

    let one = Persister::start(
        &site,
        "one",
        &[("MONASCA_PERSISTER__WAL__DEAD_LETTERS_BYTES_MAX", "64 MiB")],
    );
    one.wait_delivered(Duration::from_secs(120)).unwrap();
    assert!(!one.reasons().contains(&"DEAD_LETTERS_FULL".to_owned()));
    one.stop().unwrap();
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}
