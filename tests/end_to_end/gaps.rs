//! Where Kafka's history and ours part: retention was faster, a partition lost its end, the topic was created again.
//! Each is recognised and named with its offsets; nothing that Kafka still has is missing afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::Kafka;

use crate::audit::{audit, audit_all};
use crate::ledger::copy;
use crate::load::{Ledger, Load, Plan};
use crate::persister::{Persister, Site};

const FIRST: Plan = Plan { metrics: 4_000, series: 200, alarms: 40, per_s: 4_000, later_ms: 0 };
const SECOND: Plan = Plan { later_ms: 20_000, ..FIRST };
const THIRD: Plan = Plan { later_ms: 40_000, ..FIRST };
const WAIT: Duration = Duration::from_secs(60);

/// Consumes and delivers everything.
fn rest(kafka: &Kafka, site: &Site, persister: &Persister) {
    let committed = site.wait_committed(kafka, WAIT);
    committed.unwrap_or_else(|wrong| panic!("{wrong}\n{}", persister.log_tail()));
    persister.wait_delivered(WAIT).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// Waits until the status gives a reason with this code in the metrics pipeline, and returns all of its messages.
fn wait_reason(persister: &Persister, code: &str) -> Vec<String> {
    let deadline = Instant::now() + WAIT;
    loop {
        let status = persister.json("/api/v1/status");
        let reasons = status["reasons"].as_array().unwrap().iter();
        let messages: Vec<String> = reasons
            .filter(|reason| reason["code"] == code)
            .map(|reason| reason["message"].as_str().unwrap().to_owned())
            .collect();
        if !messages.is_empty() {
            return messages;
        }
        assert!(Instant::now() < deadline, "no {code} after {WAIT:?}: {status}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// The gaps that nobody has taken note of: kind, partition, first offset, offset after the last.
fn gaps(persister: &Persister) -> Vec<(String, i64, i64, i64)> {
    let status = persister.json("/api/v1/status");
    let gaps = status["pipelines"]["metrics"]["ledger"]["gaps"].as_array().unwrap().iter();
    gaps.map(|gap| {
        let number = |key: &str| gap[key].as_i64().unwrap();
        let kind = gap["kind"].as_str().unwrap().to_owned();
        (kind, number("partition"), number("from"), number("to"))
    })
    .collect()
}

fn order(site: &Site, persister: &Persister, order: &str) {
    let (given, text) = site.command("one", &["offsets", order]);
    assert!(given, "{text}");
    persister.wait_order_carried_out(site, "one", WAIT).unwrap();
}

#[test]
fn what_retention_took_is_named_by_its_offsets_and_everything_else_is_stored() {
    let kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let persister = Persister::start(&site, "one", &[]);
    let mut sent = Load::start(&kafka, &site, FIRST).finish();
    rest(&kafka, &site, &persister);
    persister.stop().unwrap();

    let begun = kafka.end_offsets(&site.metrics_topic).unwrap();
    sent.extend(Load::start(&kafka, &site, SECOND).finish());
    let mut expected = Vec::new();
    for (partition, from) in begun {
        let to = from + 200 + 10 * i64::from(partition);
        kafka.delete_records(&site.metrics_topic, partition, to).unwrap();
        sent.retain(|(topic, at, offset), _| {
            *topic != site.metrics_topic || *at != partition || !(from..to).contains(offset)
        });
        expected.push(("retention".to_owned(), i64::from(partition), from, to));
    }
    // One that wants to be asked stops, and says where.
    let stopping = [("MONASCA_PERSISTER__KAFKA__GAPS__RETENTION", "stop")];
    let persister = Persister::start(&site, "one", &stopping);
    let said = wait_reason(&persister, "KAFKA_GAP");
    assert!(said.iter().any(|message| message.contains("is not consumed")), "{said:?}");
    assert_eq!(persister.json("/api/v1/status")["state"], "failing");
    persister.stop().unwrap();

    let persister = Persister::start(&site, "one", &[]);
    rest(&kafka, &site, &persister);
    let mut found = gaps(&persister);
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(wait_reason(&persister, "KAFKA_GAP").len(), 4);
    assert_eq!(persister.metric("kafka_gaps", "metrics"), Some(4.0));
    // It is remembered until somebody takes note.
    persister.stop().unwrap();
    let persister = Persister::start(&site, "one", &[]);
    wait_reason(&persister, "KAFKA_GAP");
    order(&site, &persister, "acknowledge");
    let deadline = Instant::now() + WAIT;
    while !gaps(&persister).is_empty() {
        assert!(Instant::now() < deadline, "not forgotten: {:?}", gaps(&persister));
        std::thread::sleep(Duration::from_millis(100));
    }
    persister.stop().unwrap();
    eprintln!("{}", audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}")));
}

#[test]
fn a_topic_that_is_created_again_stops_until_that_is_accepted_and_is_then_consumed_whole() {
    let kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let persister = Persister::start(&site, "one", &[]);
    let first = Load::start(&kafka, &site, FIRST).finish();
    rest(&kafka, &site, &persister);

    // While it is consumed, and longer than before: the client library goes on in the middle of it as if nothing was.
    recreate(&kafka, &site);
    let second = Load::start(&kafka, &site, Plan { metrics: 6_000, alarms: 0, ..SECOND }).finish();
    let said = wait_reason(&persister, "KAFKA_RECREATED");
    eprintln!("{said:?}");
    assert_eq!(persister.json("/api/v1/status")["state"], "failing");
    assert!(said.iter().all(|message| message.contains("is not consumed")), "{said:?}");
    // A restart does not forget it.
    persister.stop().unwrap();
    let persister = Persister::start(&site, "one", &[]);
    wait_reason(&persister, "KAFKA_RECREATED");
    order(&site, &persister, "accept");
    rest(&kafka, &site, &persister);
    assert_eq!(gaps(&persister).len(), 4);
    assert_ne!(persister.json("/api/v1/status")["state"], "failing");
    persister.stop().unwrap();

    // While nobody consumes, and nobody wants to be asked.
    recreate(&kafka, &site);
    let third = Load::start(&kafka, &site, Plan { alarms: 0, ..THIRD }).finish();
    let going_on = [("MONASCA_PERSISTER__KAFKA__GAPS__RECREATED", "continue")];
    let persister = Persister::start(&site, "one", &going_on);
    rest(&kafka, &site, &persister);
    assert_eq!(gaps(&persister).len(), 8);
    persister.stop().unwrap();
    let audited = audit_all(&site, &kafka, &[&first, &second, &third]);
    eprintln!("{}", audited.unwrap_or_else(|wrong| panic!("{wrong}")));
}

fn recreate(kafka: &Kafka, site: &Site) {
    kafka.delete_topic(&site.metrics_topic).unwrap();
    let deadline = Instant::now() + WAIT;
    // The name is free a little later.
    while let Err(error) = kafka.create_topic(&site.metrics_topic, 4) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Puts the directory of partition 0 back as it was copied, while the broker is down.
fn lose_the_end(kafka: &mut Kafka, site: &Site, backup: &Path) {
    let partition = kafka.partition_dir(&site.metrics_topic, 0).unwrap();
    kafka.stop();
    std::fs::remove_dir_all(&partition).unwrap();
    copy(backup, &partition);
    kafka.restart().unwrap();
}

#[test]
fn a_partition_that_loses_its_end_is_consumed_from_where_its_history_goes_on() {
    let mut kafka = Kafka::start().unwrap();
    let cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let persister = Persister::start(&site, "one", &[]);
    let load = |kafka: &Kafka, plan: Plan| Load::start(kafka, &site, plan).finish();
    let first = load(&kafka, FIRST);
    rest(&kafka, &site, &persister);
    kafka.stop();
    let backup = site.log_dir("kafka-backup");
    copy(&kafka.partition_dir(&site.metrics_topic, 0).unwrap(), &backup);
    kafka.restart().unwrap();
    let kept = kafka.end_offsets(&site.metrics_topic).unwrap()[&0];
    let second = load(&kafka, SECOND);
    rest(&kafka, &site, &persister);
    let before = kafka.end_offsets(&site.metrics_topic).unwrap()[&0];

    lose_the_end(&mut kafka, &site, &backup);
    wait_reason(&persister, "KAFKA_TRUNCATED");
    assert_eq!(gaps(&persister), [("truncated".to_owned(), 0, kept, before)]);
    let third = load(&kafka, THIRD);
    rest(&kafka, &site, &persister);
    persister.stop().unwrap();

    // While nobody looks, and written to again, but less than was lost: what is before our offset now is not what was.
    let next = kafka.end_offsets(&site.metrics_topic).unwrap()[&0];
    lose_the_end(&mut kafka, &site, &backup);
    let short = load(&kafka, Plan { metrics: 400, alarms: 0, later_ms: 200_000, ..FIRST });
    let end = kafka.end_offsets(&site.metrics_topic).unwrap()[&0];
    assert!(kept < end && end < next, "{kept} {end} {next}");
    let persister = Persister::start(&site, "one", &[]);
    rest(&kafka, &site, &persister);
    assert_eq!(gaps(&persister).last(), Some(&("truncated".to_owned(), 0, 0, next)));
    persister.stop().unwrap();

    // Once more while nobody looks, and it has grown past our offset meanwhile: only the leader's epoch tells.
    lose_the_end(&mut kafka, &site, &backup);
    let fourth = load(&kafka, Plan { metrics: 6_000, later_ms: 60_000, ..FIRST });
    assert!(kafka.end_offsets(&site.metrics_topic).unwrap()[&0] > before);
    let persister = Persister::start(&site, "one", &[]);
    rest(&kafka, &site, &persister);
    assert_eq!(gaps(&persister).len(), 3, "{:?}", gaps(&persister));
    persister.stop().unwrap();

    // And for an instance whose log knows nothing of it: the group's offset says which leader it is about.
    let [(group, _), _] = site.groups();
    let committed = kafka.committed(&group, &site.metrics_topic).unwrap()[&0];
    lose_the_end(&mut kafka, &site, &backup);
    let fifth = load(&kafka, Plan { metrics: 12_000, later_ms: 90_000, ..FIRST });
    assert!(kafka.end_offsets(&site.metrics_topic).unwrap()[&0] > committed);
    let persister = Persister::start(&site, "two", &[]);
    rest(&kafka, &site, &persister);
    assert_eq!(gaps(&persister), [("truncated".to_owned(), 0, 0, committed)]);
    persister.stop().unwrap();
    let sent = [&first, &second, &third, &short, &fourth, &fifth];
    let audited = audit_all(&site, &kafka, &sent);
    eprintln!("{}", audited.unwrap_or_else(|wrong| panic!("{wrong}")));
}

#[test]
fn an_offset_is_committed_after_delivery_if_that_is_wanted() {
    let kafka = Kafka::start().unwrap();
    let mut cassandra = crate::syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    cassandra.kill();
    let after_delivery = [("MONASCA_PERSISTER__KAFKA__COMMIT_AFTER", "delivery")];
    let mut persister = Persister::start(&site, "one", &after_delivery);
    let sent: Ledger = Load::start(&kafka, &site, FIRST).finish();
    persister.wait_taken(4_000, WAIT);
    std::thread::sleep(Duration::from_secs(3));
    for (group, topic) in site.groups() {
        let committed = kafka.committed(&group, topic).unwrap();
        assert!(committed.values().all(|next| *next == 0), "{topic}: {committed:?}");
    }
    persister.kill();
    cassandra.restart().unwrap();
    let persister = Persister::start(&site, "one", &after_delivery);
    rest(&kafka, &site, &persister);
    persister.stop().unwrap();
    eprintln!("{}", audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}")));
}
