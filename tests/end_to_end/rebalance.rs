//! Members come and go, partitions are added and brokers restart while messages flow.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use harness::{Cassandra, Kafka};

use crate::load::{Ledger, Load, Plan};
use crate::persister::{Persister, Site};
use crate::{Dice, settle_and_audit};

const WAIT: Duration = Duration::from_secs(90);
const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];

/// The members that run, and those that were told to stop and have not ended yet.
#[derive(Default)]
struct Members {
    running: BTreeMap<&'static str, Persister>,
    ending: BTreeMap<&'static str, Persister>,
}

impl Members {
    fn start(&mut self, site: &Site, name: &'static str) {
        if let Some(mut ending) = self.ending.remove(name) {
            assert_eq!(ending.wait_exit(Duration::from_secs(40)), Some(0), "{}", ending.log());
        }
        self.running.insert(name, Persister::start(site, name, &[]));
    }
}

#[test]
fn two_to_five_members_come_and_go_at_random_and_nothing_is_lost() {
    let (mut dice, seed) = Dice::new();
    eprintln!("AUDIT_SEED={seed}");
    let kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let plan = Plan { metrics: 40_000, series: 500, alarms: 800, per_s: 1_000, later_ms: 0 };
    let load = Load::start(&kafka, &site, plan);
    let mut members = Members::default();
    members.start(&site, "one");
    members.start(&site, "two");
    let (mut stops, mut kills, mut starts) = (0, 0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(40) {
        dice.pause(200, 3_000);
        let name = NAMES[usize::try_from(dice.below(5)).unwrap()];
        match members.running.remove(name) {
            None => {
                members.start(&site, name);
                starts += 1;
            }
            Some(member) if members.running.is_empty() => {
                members.running.insert(name, member);
            }
            Some(member) if dice.below(2) == 0 => {
                member.terminate();
                members.ending.insert(name, member);
                stops += 1;
            }
            Some(mut member) => {
                member.kill();
                kills += 1;
                // Sooner or later than its session ends.
                if dice.below(2) == 0 {
                    members.start(&site, name);
                    starts += 1;
                }
            }
        }
    }
    eprintln!("{starts} starts, {stops} stops, {kills} kills");
    assert!(stops + kills >= 4, "that was no storm");
    // Each has a log of its own, and something in it perhaps.
    for name in NAMES {
        if !members.running.contains_key(name) {
            members.start(&site, name);
        }
    }
    let running = members.running.into_values().collect();
    let audit = settle_and_audit(&site, &kafka, running, load)
        .unwrap_or_else(|wrong| panic!("AUDIT_SEED={seed}: {wrong}"));
    eprintln!("AUDIT_SEED={seed}: {audit}");
}

#[test]
fn added_partitions_are_consumed_from_their_beginning_and_brokers_may_restart_again_and_again() {
    let mut kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    partitions_are_added(&kafka, &cassandra);
    brokers_restart(&mut kafka, &cassandra);
}

fn partitions_are_added(kafka: &Kafka, cassandra: &Cassandra) {
    let site = Site::prepare(kafka, cassandra, 4);
    let environment = [
        // Of the partitions that are there at first only: those that come later are new from their first message on.
        ("MONASCA_PERSISTER__KAFKA__INITIAL_OFFSET", "latest"),
        ("MONASCA_PERSISTER__KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "5000"),
    ];
    let persister = Persister::start(&site, "one", &environment);
    persister.wait_assigned(4, WAIT);
    let plan = Plan { metrics: 3_000, series: 100, alarms: 60, per_s: 2_000, later_ms: 0 };
    for topic in [&site.metrics_topic, &site.alarms_topic] {
        kafka.grow_topic(topic, 8).unwrap();
    }
    // The client hears of the new partitions after messages are in them.
    let mut sent = Load::start_on(kafka, &site, plan, 4..8).finish();
    persister.wait_assigned(8, WAIT);
    site.wait_committed(kafka, WAIT).unwrap();
    // And the old ones go on.
    let load = Load::start_on(kafka, &site, Plan { later_ms: 20_000, ..plan }, 0..8);
    sent.extend(load.finish());
    site.wait_committed(kafka, WAIT).unwrap();
    persister.wait_delivered(WAIT).unwrap();
    persister.stop().unwrap();
    let audit = crate::audit::audit(&site, kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("partitions added: {audit}");
}

fn brokers_restart(kafka: &mut Kafka, cassandra: &Cassandra) {
    let site = Site::prepare(kafka, cassandra, 4);
    let one = Persister::start(&site, "one", &[]);
    let two = Persister::start(&site, "two", &[]);
    one.wait_assigned(2, WAIT);
    two.wait_assigned(2, WAIT);
    let mut sent = Ledger::new();
    let mut later_ms = 0;
    // The last time longer than a session.
    for away_s in [0, 1, 8] {
        let plan = Plan { metrics: 6_000, series: 300, alarms: 60, per_s: 1_000, later_ms };
        later_ms += 20_000;
        let load = Load::start(kafka, &site, plan);
        std::thread::sleep(Duration::from_secs(2));
        kafka.stop();
        std::thread::sleep(Duration::from_secs(away_s));
        kafka.restart().unwrap();
        sent.extend(load.finish());
        site.wait_committed(kafka, WAIT).unwrap();
    }
    for persister in [one, two] {
        persister.wait_delivered(WAIT).unwrap();
        persister.stop().unwrap();
    }
    let audit = crate::audit::audit(&site, kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("brokers restarted: {audit}");
}
