//! Disks that are lost, put back from an older copy, or damaged, and a machine that does not come back: what Kafka
//! considers consumed is fetched again. Cassandra is away while messages are taken, so that everything is owed.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Cassandra, Kafka};

use crate::audit;
use crate::load::{Ledger, Load, Plan};
use crate::persister::{Persister, Site};

const PLAN: Plan = Plan { metrics: 6_000, series: 200, alarms: 60, per_s: 4_000, later_ms: 0 };

/// Starts, takes everything that `load` sends, and is killed.
fn take_and_die(kafka: &Kafka, site: &Site, load: Load) -> Ledger {
    let mut persister = Persister::start(site, "one", &[]);
    let sent = load.finish();
    site.wait_committed(kafka, Duration::from_secs(60)).unwrap();
    persister.kill();
    sent
}

/// Starts again, delivers everything, stops, and compares. Returns how many messages were fetched again.
fn deliver_and_audit(kafka: &Kafka, site: &Site, sent: &Ledger) -> u64 {
    let persister = Persister::start(site, "one", &[]);
    site.wait_committed(kafka, Duration::from_secs(60)).unwrap();
    persister.wait_nothing_owed(Duration::from_secs(60)).unwrap();
    persister.wait_delivered(Duration::from_secs(60)).unwrap();
    let fetched = persister.fetched_again();
    persister.stop().unwrap();
    let audit = audit::audit(site, kafka, sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{fetched} messages fetched again; {audit}");
    fetched
}

/// Flips a bit of a message a third of the way into the log.
///
/// Of a message: a bit in the zeros that pad groups to whole blocks damages nothing. Messages are compressed, and
/// hardly a byte of them is zero.
fn damage_a_message(log: &Path) {
    const OF_A_MESSAGE_BYTES: usize = 256;
    // The first one: files made ahead have higher numbers.
    let first = std::fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("segment-"))
        .min()
        .unwrap();
    let mut bytes = std::fs::read(&first).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let third = written / 3;
    let message = bytes[third..written]
        .windows(OF_A_MESSAGE_BYTES)
        .position(|window| window.iter().filter(|byte| **byte == 0).count() < 16)
        .expect("a message after the first third of the log");
    bytes[third + message + OF_A_MESSAGE_BYTES / 2] ^= 0x10;
    std::fs::write(&first, bytes).unwrap();
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_log_that_is_lost_rolled_back_or_damaged_is_made_up_for_from_kafka() {
    let kafka = Kafka::start().unwrap();
    let mut cassandra = crate::syncing_cassandra();
    let sites = [(); 3].map(|()| Site::prepare(&kafka, &cassandra, 4));
    cassandra.kill();
    let [lost, rolled_back, damaged] = &sites;

    let sent_to_lost = take_and_die(&kafka, lost, Load::start(&kafka, lost, PLAN));
    std::fs::remove_dir_all(lost.log_dir("one")).unwrap();

    let mut sent_to_rolled_back =
        take_and_die(&kafka, rolled_back, Load::start(&kafka, rolled_back, PLAN));
    let (log, backup) = (rolled_back.log_dir("one"), rolled_back.log_dir("backup"));
    copy(&log, &backup);
    sent_to_rolled_back.extend(take_and_die(
        &kafka,
        rolled_back,
        Load::start(&kafka, rolled_back, Plan { later_ms: 20_000, ..PLAN }),
    ));
    std::fs::remove_dir_all(&log).unwrap();
    copy(&backup, &log);

    let sent_to_damaged = take_and_die(&kafka, damaged, Load::start(&kafka, damaged, PLAN));
    damage_a_message(&damaged.log_dir("one").join("metrics"));

    cassandra.restart().unwrap();
    let fetched = deliver_and_audit(&kafka, lost, &sent_to_lost);
    assert!(fetched >= 6_000, "everything was in the lost log: {fetched}");
    let fetched = deliver_and_audit(&kafka, rolled_back, &sent_to_rolled_back);
    assert!(fetched >= 6_000, "half of it was not in the old copy: {fetched}");
    let fetched = deliver_and_audit(&kafka, damaged, &sent_to_damaged);
    assert!((1..6_000).contains(&fetched), "one frame was damaged: {fetched}");
}

/// Two share the work; the first dies, its directory is removed, and it never comes back. Returns the other one.
fn one_of_two_is_gone(
    kafka: &Kafka,
    site: &Site,
    environment: &[(&str, &str)],
) -> (Persister, Ledger) {
    let mut one = Persister::start(site, "one", environment);
    let two = Persister::start(site, "two", environment);
    // Each has its share before there is anything to take.
    for persister in [&one, &two] {
        persister.wait_assigned(2, Duration::from_secs(60));
    }
    let sent = Load::start(kafka, site, PLAN).finish();
    site.wait_committed(kafka, Duration::from_secs(60)).unwrap();
    one.kill();
    std::fs::remove_dir_all(site.log_dir("one")).unwrap();
    (two, sent)
}

/// What the first one owes by its ledger.
fn owed_by_one(site: &Site) -> i64 {
    let (listed, text) = site.command("two", &["offsets", "show", "--json"]);
    assert!(listed, "{text}");
    let ledgers: serde_json::Value = serde_json::from_str(&text).unwrap();
    let partitions = ledgers["metrics"]["one"].as_object().unwrap();
    partitions.values().map(|partition| partition["owed"].as_i64().unwrap()).sum()
}

/// The other one delivers everything, and stops.
fn two_makes_up_for_one(kafka: &Kafka, site: &Site, two: Persister, sent: &Ledger) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while owed_by_one(site) > 0 {
        assert!(Instant::now() < deadline, "not taken over after a minute");
        std::thread::sleep(Duration::from_millis(500));
    }
    two.wait_nothing_owed(Duration::from_secs(60)).unwrap();
    two.wait_delivered(Duration::from_secs(60)).unwrap();
    let fetched = two.fetched_again();
    two.stop().unwrap();
    let audit = audit::audit(site, kafka, sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{fetched} messages taken over; {audit}");
    assert!((1..6_060).contains(&fetched), "the first one's share was not everything");
}

#[test]
fn what_a_machine_owes_that_does_not_come_back_is_taken_over_by_another() {
    let kafka = Kafka::start().unwrap();
    let mut cassandra: Cassandra = crate::syncing_cassandra();
    let [by_order, by_itself] = [(); 2].map(|()| Site::prepare(&kafka, &cassandra, 4));
    cassandra.kill();
    let (two, sent) = one_of_two_is_gone(&kafka, &by_order, &[]);
    let takeover_after = ("MONASCA_PERSISTER__KAFKA__TAKEOVER_AFTER", "10s");
    let (two_by_itself, sent_by_itself) = one_of_two_is_gone(&kafka, &by_itself, &[takeover_after]);

    assert!(owed_by_one(&by_order) > 0, "the first one took its share of the messages");
    let (ordered, text) = by_order.command("two", &["offsets", "rewind", "--instance", "nobody"]);
    assert!(!ordered && text.contains("there are: one, two"), "{text}");
    let (ordered, text) = by_order.command("two", &["offsets", "rewind", "--instance", "one"]);
    assert!(ordered, "{text}");

    cassandra.restart().unwrap();
    two.wait_order_carried_out(&by_order, "two", Duration::from_secs(30)).unwrap();
    two_makes_up_for_one(&kafka, &by_order, two, &sent);
    two_makes_up_for_one(&kafka, &by_itself, two_by_itself, &sent_by_itself);
}
