//! Several members of one group: whatever becomes of one of them, the others make up for it, and whoever does not belong
//! to the group is told so.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Cassandra, Kafka};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::audit;
use crate::load::{Ledger, Load, Plan};
use crate::persister::{Persister, Site};

const WAIT: Duration = Duration::from_secs(90);
const PLAN: Plan = Plan { metrics: 12_000, series: 300, alarms: 120, per_s: 600, later_ms: 0 };
/// Long enough for a restart on a busy machine.
const LONG_SESSION: [(&str, &str); 1] = [("MONASCA_PERSISTER__KAFKA__SESSION_TIMEOUT", "30s")];

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {WAIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends a few thousand messages, other ones for each `round`, and waits until Kafka has them.
fn send(kafka: &Kafka, site: &Site, round: i64) -> Ledger {
    let plan = Plan { metrics: 4_000, alarms: 40, per_s: 2_000, later_ms: round * 20_000, ..PLAN };
    Load::start(kafka, site, plan).finish()
}

/// Waits until everything is committed and delivered, stops all, and compares.
fn audited(what: &str, site: &Site, kafka: &Kafka, persisters: Vec<Persister>, sent: &Ledger) {
    site.wait_committed(kafka, WAIT).unwrap();
    for persister in &persisters {
        persister.wait_delivered(WAIT).unwrap();
    }
    let rows_written = persisters.into_iter().map(|persister| persister.stop().unwrap()).sum();
    let audit = audit::audit(site, kafka, sent).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    eprintln!("{what}: {}", audit::Audit { rows_written, ..audit });
}

#[test]
fn a_member_that_is_frozen_restarted_doubled_or_of_another_kind_costs_no_message() {
    let kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    // Each has a group of its own.
    let parts = [
        a_frozen_member_goes_on_where_others_left_it,
        a_named_member_that_returns_in_time_is_noticed_by_nobody,
        of_two_processes_with_one_name_the_older_ends,
        an_old_persister_in_the_group_is_waited_for_and_kept_out_later,
    ]
    .map(|part: fn(&Kafka, &Site)| (part, Site::prepare(&kafka, &cassandra, 4)));
    std::thread::scope(|scope| {
        for (part, site) in &parts {
            scope.spawn(|| part(&kafka, site));
        }
    });
}

/// Looks at what the group has committed until told to stop: no partition may ever go back.
fn watch_commits(kafka: &Kafka, site: &Site, stop: &AtomicBool) -> usize {
    let mut before = BTreeMap::new();
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = kafka.committed(&site.metrics_group, &site.metrics_topic).unwrap_or_default();
        for (partition, next) in &now {
            let last = before.get(partition).copied().unwrap_or(0);
            assert!(*next >= last, "partition {partition} went back from {last} to {next}");
        }
        before.extend(now);
        looks += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    looks
}

fn a_frozen_member_goes_on_where_others_left_it(kafka: &Kafka, site: &Site) {
    let one = Persister::start(site, "one", &[]);
    let two = Persister::start(site, "two", &[]);
    one.wait_assigned(2, WAIT);
    two.wait_assigned(2, WAIT);
    let load = Load::start(kafka, site, PLAN);
    one.wait_taken(500, WAIT);
    let stop = AtomicBool::new(false);
    let mut sent = Ledger::new();
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch_commits(kafka, site, &stop));
        // At full speed, so that it has taken what it has not committed yet.
        one.freeze();
        two.wait_assigned(4, WAIT);
        // More than its own half.
        two.wait_taken(6_100, WAIT);
        one.thaw();
        two.wait_assigned(2, WAIT);
        one.wait_assigned(2, WAIT);
        let taken = one.metrics_taken();
        sent.extend(load.finish());
        sent.extend(send(kafka, site, 1));
        one.wait_taken(taken + 100, WAIT);
        stop.store(true, Ordering::Relaxed);
        assert!(watch.join().unwrap() > 10);
    });
    let log = one.log();
    assert!(log.contains("lost=true"), "it noticed that its partitions were lost:\n{log}");
    audited("frozen", site, kafka, vec![one, two], &sent);
}

fn a_named_member_that_returns_in_time_is_noticed_by_nobody(kafka: &Kafka, site: &Site) {
    let mut one = Persister::start(site, "one", &LONG_SESSION);
    let two = Persister::start(site, "two", &LONG_SESSION);
    one.wait_assigned(2, WAIT);
    two.wait_assigned(2, WAIT);
    let mut sent = send(kafka, site, 0);
    two.wait_taken(100, WAIT);
    let before = two.rebalances();
    one.kill();
    one = Persister::start(site, "one", &LONG_SESSION);
    one.wait_assigned(2, WAIT);
    sent.extend(send(kafka, site, 1));
    one.wait_taken(500, WAIT);
    one.stop().unwrap();
    one = Persister::start(site, "one", &LONG_SESSION);
    one.wait_assigned(2, WAIT);
    sent.extend(send(kafka, site, 2));
    one.wait_taken(500, WAIT);
    assert_eq!(two.rebalances(), before, "the other one has noticed");
    // A newcomer is noticed: the number counts something.
    let before = before + one.rebalances();
    let three = Persister::start(site, "three", &LONG_SESSION);
    three.wait_assigned(1, WAIT);
    until("the number of rebalances grows", || one.rebalances() + two.rebalances() > before);
    audited("restarted", site, kafka, vec![one, two, three], &sent);
}

fn of_two_processes_with_one_name_the_older_ends(kafka: &Kafka, site: &Site) {
    let mut older = Persister::start(site, "one", &[]);
    older.wait_assigned(4, WAIT);
    let load = Load::start(kafka, site, PLAN);
    older.wait_taken(500, WAIT);
    // Another data directory, the same name: a mistake.
    let same_name = [("MONASCA_PERSISTER__INSTANCE", "one")];
    let newer = Persister::start(site, "copy-of-one", &same_name);
    assert_eq!(older.wait_exit(WAIT), Some(78), "{}", older.log());
    let log = older.log();
    assert!(log.contains("KAFKA_FENCED") && log.contains("an `instance`"), "{log}");
    newer.wait_assigned(4, WAIT);
    let mut sent = load.finish();
    let taken = newer.metrics_taken();
    sent.extend(send(kafka, site, 1));
    newer.wait_taken(taken + 100, WAIT);
    site.wait_committed(kafka, WAIT).unwrap();
    newer.wait_delivered(WAIT).unwrap();
    newer.stop().unwrap();
    // What the older one had taken is still in its log.
    let older = Persister::start(site, "one", &[]);
    audited("doubled", site, kafka, vec![older], &sent);
}

/// A member as the old persister is one: partitions are shared by range.
fn old_member(kafka: &Kafka, site: &Site) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", &site.metrics_group)
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .set("log_level", "0")
        .create()
        .unwrap();
    consumer.subscribe(&[&site.metrics_topic]).unwrap();
    consumer
}

fn an_old_persister_in_the_group_is_waited_for_and_kept_out_later(kafka: &Kafka, site: &Site) {
    const CODE: &str = "KAFKA_GROUP_PROTOCOL";
    let old = old_member(kafka, site);
    until("the old member has its partitions", || {
        drop(old.poll(Duration::from_millis(100)));
        old.assignment().unwrap().count() == 4
    });
    let persister = Persister::launch(site, "one", &[]);
    until("the status says why nothing is consumed", || {
        drop(old.poll(Duration::from_millis(10)));
        !persister.hints(CODE).is_empty()
    });
    let hints = persister.hints(CODE);
    assert!(
        hints[0].contains("stop all members of the old persister, then start"),
        "what to do is said: {hints:?}"
    );
    assert!(!persister.is_ready(), "only an operator ends that");
    // It goes on trying; the log does not grow with it.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        drop(old.poll(Duration::from_millis(100)));
        assert_eq!(persister.hints(CODE).len(), 1, "it lasts");
    }
    let said = persister.log().matches(CODE).count();
    assert!((1..=2).contains(&said), "once a minute, not {said} times:\n{}", persister.log());

    drop(old);
    persister.wait_assigned(4, WAIT);
    until("the status is clean again", || persister.hints(CODE).is_empty());
    assert!(persister.is_ready());
    let load = Load::start(kafka, site, Plan { metrics: 4_000, alarms: 40, ..PLAN });
    persister.wait_taken(200, WAIT);
    let before = persister.rebalances();
    let late = old_member(kafka, site);
    let deadline = Instant::now() + WAIT;
    loop {
        assert!(Instant::now() < deadline, "an old member that comes later is not refused");
        match late.poll(Duration::from_millis(100)) {
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::InconsistentGroupProtocol,
            ))) => break,
            Some(Ok(message)) => {
                panic!("an old member consumes {}", rdkafka::Message::offset(&message))
            }
            _ => {}
        }
    }
    assert_eq!(persister.rebalances(), before, "nobody is disturbed by one that is refused");
    drop(late);
    audited("of another kind", site, kafka, vec![persister], &load.finish());
}
