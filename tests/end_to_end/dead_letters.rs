//! What the database or the decoder refuses is kept; once the cause is removed and somebody says so, it arrives, once.

use std::collections::BTreeMap;
use std::time::Duration;

use harness::{Cassandra, Kafka};
use scylla::client::session_builder::SessionBuilder;
use serde_json::Value;

use crate::audit;
use crate::load::{self, Expected, Load, Sent};
use crate::persister::{Persister, Site};

const GOOD: usize = 100;
/// They are refused twice: more would look as if the cause were the schema's, and stop delivery.
const REFUSED: usize = 5;
const LONG: usize = 5;
const GARBAGE: usize = 3;
const LONG_BYTES: usize = 5_000;

fn execute(site: &Site, statement: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let session = SessionBuilder::new().known_node(&site.contact_point).build().await.unwrap();
        session.use_keyspace(&site.keyspace, false).await.unwrap();
        session.query_unpaged(statement, ()).await.unwrap();
    });
}

fn run(site: &Site, arguments: &[&str]) -> String {
    let (succeeded, text) = site.command("one", &[&["dead-letters"], arguments].concat());
    assert!(succeeded, "{arguments:?}: {text}");
    text
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn listed(site: &Site, arguments: &[&str]) -> Vec<Value> {
    lines(&run(site, &[&["list", "--json"], arguments].concat()))
}

/// How many there are of each reason.
fn codes(site: &Site) -> BTreeMap<String, usize> {
    let mut codes = BTreeMap::new();
    for letter in listed(site, &[]) {
        *codes.entry(letter["code"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    codes
}

/// How many `retry` or `drop` removed, and that it could all of them.
fn removed(site: &Site, arguments: &[&str]) -> u64 {
    let outcome: Value =
        serde_json::from_str(&run(site, &[arguments, &["--json"]].concat())).unwrap();
    assert!(outcome["left"].as_object().is_none_or(|left| left.is_empty()), "{outcome}");
    outcome["removed"].as_u64().unwrap()
}

fn wait_rows(persister: &Persister, rows: usize) {
    let rows = u64::try_from(rows).unwrap();
    persister.wait("written", Duration::from_secs(60), |one| one.rows_written() >= rows);
    persister.wait_delivered(Duration::from_secs(60)).unwrap();
}

#[test]
fn what_was_refused_arrives_once_when_the_cause_is_removed_and_it_is_tried_again() {
    let kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    let site = Site::prepare(&kafka, &cassandra, 4);
    // While there is an index, no reason is taken that is longer than what it can hold.
    execute(&site, "CREATE INDEX reasons ON alarm_state_history (reason)");

    let refused = load::long_transitions(REFUSED, 66_000);
    let garbage = (0..GARBAGE).map(|number| Sent {
        payload: [b"\xff\xfe ".as_slice(), number.to_string().as_bytes()].concat(),
        timestamp_ms: refused[0].timestamp_ms + i64::try_from(number).unwrap(),
        expected: Expected::DeadLetter,
    });
    let mut messages = load::long_metrics(GOOD, 400);
    let mut long = load::long_metrics(LONG, LONG_BYTES);
    for sent in &mut long {
        sent.expected = match sent.expected.clone() {
            Expected::Measurement { name, host, time_ms, value, value_meta } => {
                let long_name = format!("long.{name}");
                let text = String::from_utf8(std::mem::take(&mut sent.payload)).unwrap();
                sent.payload = text.replacen(&name, &long_name, 1).into_bytes();
                Expected::Measurement { name: long_name, host, time_ms, value, value_meta }
            }
            other => other,
        };
    }
    messages.extend(refused.iter().cloned().chain(garbage).chain(long));
    let sent = Load::of(&kafka, &site, messages, 2_000).finish();

    let short = [("MONASCA_PERSISTER__METRICS__MESSAGE_BYTES_MAX", "4 KiB")];
    let one = Persister::start(&site, "one", &short);
    site.wait_committed(&kafka, Duration::from_secs(120)).unwrap();
    wait_rows(&one, GOOD);
    let kept = BTreeMap::from([
        ("DB_INVALID_ROW".to_owned(), REFUSED),
        ("MESSAGE_TOO_LARGE".to_owned(), LONG),
        ("NOT_UTF8".to_owned(), GARBAGE),
    ]);
    assert_eq!(codes(&site), kept, "{}", one.log_tail());
    assert_eq!(one.rows_written(), u64::try_from(GOOD).unwrap());

    // Each can be seen, whole, and saved.
    let refusals = listed(&site, &["--code", "DB_INVALID_ROW"]);
    let letter = &refusals[0];
    let position = letter["position"].as_u64().unwrap().to_string();
    let key = (
        letter["topic"].as_str().unwrap().to_owned(),
        i32::try_from(letter["partition"].as_i64().unwrap()).unwrap(),
        letter["offset"].as_i64().unwrap(),
    );
    let original = &sent[&key].payload;
    assert_eq!(run(&site, &["show", &position, "--raw"]).as_bytes(), original);
    let shown = run(&site, &["show", &position]);
    assert!(shown.contains("Cannot index value of size"), "the database's own words: {shown:.500}");
    let file = site.log_dir("one").with_file_name("letters.jsonl");
    run(&site, &["export", "--to", file.to_str().unwrap()]);
    let exported = lines(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(exported.len(), REFUSED + LONG + GARBAGE);
    for letter in &exported {
        let key = (
            letter["topic"].as_str().unwrap().to_owned(),
            i32::try_from(letter["partition"].as_i64().unwrap()).unwrap(),
            letter["offset"].as_i64().unwrap(),
        );
        assert_eq!(letter["payload"], audit::shown(&sent[&key].payload), "{key:?}");
    }

    // Nothing was mended: the same again, and nobody has less.
    let refused_only = ["retry", "--code", "DB_INVALID_ROW"];
    assert_eq!(removed(&site, &refused_only), u64::try_from(REFUSED).unwrap());
    one.wait("refused again", Duration::from_secs(60), |_| codes(&site) == kept);
    one.wait_delivered(Duration::from_secs(60)).unwrap();

    // What the database refused, while the persister runs.
    execute(&site, "DROP INDEX reasons");
    assert_eq!(removed(&site, &refused_only), u64::try_from(REFUSED).unwrap());
    wait_rows(&one, GOOD + REFUSED);
    assert_eq!(one.rows_written(), u64::try_from(GOOD + REFUSED).unwrap(), "each once");
    one.stop().unwrap();

    // What was too long, while none runs.
    let long_only = ["retry", "--code", "MESSAGE_TOO_LARGE"];
    assert_eq!(removed(&site, &long_only), u64::try_from(LONG).unwrap());
    let mut one = Persister::start(&site, "one", &[]);
    wait_rows(&one, LONG);
    assert_eq!(removed(&site, &long_only), 0, "they are gone");
    // What is kept of all that outlives a kill.
    one.kill();
    let one = Persister::start(&site, "one", &[]);
    one.wait_delivered(Duration::from_secs(60)).unwrap();
    assert_eq!(codes(&site), BTreeMap::from([("NOT_UTF8".to_owned(), GARBAGE)]));
    one.stop().unwrap();
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!((audit.transitions, audit.measurements), (REFUSED, GOOD + LONG));
    assert_eq!((audit.dead_letters, audit.dead_letter_repetitions), (GARBAGE, 0));

    // What nothing mends is dropped by who has seen it.
    let first = listed(&site, &[])[0]["position"].as_u64().unwrap().to_string();
    assert_eq!(removed(&site, &["drop", &first, "--yes"]), 1);
    assert_eq!(listed(&site, &[]).len(), GARBAGE - 1);
    assert_eq!(removed(&site, &["drop", "--all", "--yes"]), u64::try_from(GARBAGE - 1).unwrap());
    assert_eq!(listed(&site, &[]), Vec::<Value>::new());
}
