//! The audit: every message against what Cassandra and the dead letters hold, and nothing else may be there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use futures_util::TryStreamExt as _;
use harness::Kafka;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::value::CqlTimestamp;

use crate::load::{Expected, Ledger};
use crate::persister::Site;

/// What was found, when everything was as it must be.
#[derive(Debug, Default)]
pub struct Audit {
    pub messages: usize,
    pub measurements: usize,
    pub transitions: usize,
    pub dead_letters: usize,
    pub dead_letter_repetitions: usize,
    pub rows_written: u64,
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.measurements + self.transitions;
        write!(
            f,
            "{} messages: {} measurements, {} transitions, {} dead letters ({} repeated), nothing lost, nothing else \
             stored; {} rows confirmed, replay ratio {:.3}",
            self.messages,
            self.measurements,
            self.transitions,
            self.dead_letters,
            self.dead_letter_repetitions,
            self.rows_written,
            self.rows_written as f64 / rows as f64
        )
    }
}

/// A measurement by its series' name and host, and its time.
type MeasurementKey = (String, String, i64);

struct Stored {
    measurements: BTreeMap<MeasurementKey, (f64, String, i64)>,
    transitions: BTreeMap<(String, i64), (String, String, i64)>,
}

pub fn audit(site: &Site, kafka: &Kafka, ledger: &Ledger) -> Result<Audit, String> {
    audit_all(site, kafka, &[ledger])
}

/// As [`audit`], for topics that were created again: the same offsets may have been given twice.
pub fn audit_all(site: &Site, kafka: &Kafka, ledgers: &[&Ledger]) -> Result<Audit, String> {
    for (group, topic) in site.groups() {
        let committed = kafka.committed(&group, topic).unwrap();
        let mut ends = kafka.end_offsets(topic).unwrap();
        ends.retain(|_, end| *end > 0);
        if committed != ends {
            return Err(format!("{group}: committed {committed:?}, ends {ends:?}"));
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stored = runtime.block_on(read(site));
    let (mut dead, repetitions) = dead_letters(site);
    let mut audit = Audit {
        messages: ledgers.iter().map(|ledger| ledger.len()).sum(),
        dead_letter_repetitions: repetitions,
        ..Audit::default()
    };
    let mut missing = Vec::new();
    for (at, sent) in ledgers.iter().flat_map(|ledger| ledger.iter()) {
        let write_time_us = sent.timestamp_ms * 1000;
        let found = match &sent.expected {
            Expected::Measurement { name, host, time_ms, value, value_meta } => {
                audit.measurements += 1;
                let key = (name.clone(), host.clone(), *time_ms);
                stored
                    .measurements
                    .remove(&key)
                    .map(|found| found == (*value, value_meta.clone(), write_time_us))
            }
            Expected::Transition { alarm_id, time_ms, new_state, reason } => {
                audit.transitions += 1;
                let found = stored.transitions.remove(&(alarm_id.clone(), *time_ms));
                found.map(|found| found == (new_state.clone(), reason.clone(), write_time_us))
            }
            Expected::DeadLetter => {
                audit.dead_letters += 1;
                let key = (at.clone(), sent.timestamp_ms, shown(&sent.payload));
                dead.remove(&key).then_some(true)
            }
        };
        match found {
            Some(true) => {}
            Some(false) => return Err(format!("{at:?} was changed on its way: {sent:?}")),
            None => missing.push(at.clone()),
        }
    }
    if !missing.is_empty() {
        let first: Vec<_> = missing.iter().take(3).collect();
        return Err(format!(
            "{} messages are neither stored nor in the dead letters, first {first:?}",
            missing.len()
        ));
    }
    if let Some(key) = stored.measurements.keys().next() {
        return Err(format!(
            "{} measurements that nobody sent, first {key:?}",
            stored.measurements.len()
        ));
    }
    if let Some(key) = stored.transitions.keys().next() {
        return Err(format!(
            "{} transitions that nobody sent, first {key:?}",
            stored.transitions.len()
        ));
    }
    if let Some((key, ..)) = dead.first() {
        return Err(format!("{} dead letters that nobody sent, first {key:?}", dead.len()));
    }
    Ok(audit)
}

/// Topic, partition and offset of a dead letter, its timestamp, and its payload as it is shown.
type DeadLetterKey = ((String, i32, i64), i64, String);

/// Dead letters of all instances as the command line lists them, and how many came twice.
fn dead_letters(site: &Site) -> (BTreeSet<DeadLetterKey>, usize) {
    let mut letters = BTreeSet::new();
    let mut repetitions = 0;
    for instance in site.instances() {
        let (listed, text) = site.command(&instance, &["dead-letters", "list", "--json"]);
        assert!(listed, "dead-letters list: {text}");
        for line in text.lines() {
            let letter: serde_json::Value = serde_json::from_str(line).unwrap();
            let key = (
                letter["topic"].as_str().unwrap().to_owned(),
                i32::try_from(letter["partition"].as_i64().unwrap()).unwrap(),
                letter["offset"].as_i64().unwrap(),
            );
            let payload = letter["payload"].as_str().unwrap().to_owned();
            // Only two instances may both have kept the same message.
            let timestamp_ms = letter["timestamp_ms"].as_i64().unwrap();
            if !letters.insert((key, timestamp_ms, payload)) {
                repetitions += 1;
            }
        }
    }
    (letters, repetitions)
}

/// Bytes as the command line shows them.
pub fn shown(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.to_owned(),
        Err(_) => payload.iter().fold(String::from("0x"), |text, byte| format!("{text}{byte:02x}")),
    }
}

async fn read(site: &Site) -> Stored {
    let session: Session =
        SessionBuilder::new().known_node(&site.contact_point).build().await.unwrap();
    let keyspace = &site.keyspace;
    // Ids are checked against the definitions: each must be described, once.
    let mut series = BTreeMap::new();
    let mut described = BTreeSet::new();
    let query = format!("SELECT metric_id, metric_name, dimensions FROM {keyspace}.metrics");
    let mut rows = session
        .query_iter(query, ())
        .await
        .unwrap()
        .rows_stream::<(Vec<u8>, String, Vec<String>)>()
        .unwrap();
    while let Some((id, name, dimensions)) = rows.try_next().await.unwrap() {
        assert!(
            described.insert((name.clone(), dimensions.clone())),
            "{name} {dimensions:?} is described twice"
        );
        let host = dimensions
            .iter()
            .find_map(|dimension| dimension.strip_prefix("hostname\t"))
            .unwrap()
            .to_owned();
        series.insert(id, (name, host));
    }
    let mut measurements = BTreeMap::new();
    let query = format!(
        "SELECT metric_id, metric_name, time_stamp, value, value_meta, WRITETIME(value) FROM {keyspace}.measurements"
    );
    let mut rows =
        session
            .query_iter(query, ())
            .await
            .unwrap()
            .rows_stream::<(
                Vec<u8>,
                Option<String>,
                Option<CqlTimestamp>,
                Option<f64>,
                Option<String>,
                Option<i64>,
            )>()
            .unwrap();
    while let Some((id, name, time, value, value_meta, write_time)) = rows.try_next().await.unwrap()
    {
        // A partition with its static columns only.
        let Some(time) = time else { continue };
        let (known, host) =
            series.get(&id).expect("a measurement of a series that is not described");
        assert_eq!(name.as_ref(), Some(known), "static columns of a series");
        measurements.insert(
            (known.clone(), host.clone(), time.0),
            (value.unwrap(), value_meta.unwrap(), write_time.unwrap()),
        );
    }
    let mut transitions = BTreeMap::new();
    let query = format!(
        "SELECT alarm_id, time_stamp, new_state, reason, WRITETIME(reason) FROM {keyspace}.alarm_state_history"
    );
    let mut rows = session
        .query_iter(query, ())
        .await
        .unwrap()
        .rows_stream::<(String, CqlTimestamp, String, String, i64)>()
        .unwrap();
    while let Some((alarm_id, time, new_state, reason, write_time)) = rows.try_next().await.unwrap()
    {
        transitions.insert((alarm_id, time.0), (new_state, reason, write_time));
    }
    Stored { measurements, transitions }
}
