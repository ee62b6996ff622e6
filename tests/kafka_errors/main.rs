//! Every error that a broker may answer with, into a running program: nothing ends it that need not, no offset moves
//! wrongly, every message is stored once, and the program says what is the matter without flooding its log.
//!
//! The broker is the client library's own, which answers as it is told. Each kind of request has a broker and a program
//! of its own, and they run side by side.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod broker;
mod lane;
mod persister;
mod table;

use std::time::{Duration, Instant};

use broker::Broker;
use lane::End;
use persister::Persister;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use table::TABLES;

#[test]
fn no_error_of_a_broker_ends_the_program_loses_a_message_or_moves_an_offset_wrongly() {
    let ends: Vec<(&str, End)> = std::thread::scope(|scope| {
        let lanes: Vec<_> = TABLES
            .iter()
            .flat_map(|table| {
                table.errors.chunks(table.per_lane).map(move |errors| (table, errors))
            })
            .map(|(table, errors)| (table.name, scope.spawn(move || lane::run(table, errors))))
            .collect();
        lanes.into_iter().map(|(name, lane)| (name, lane.join().unwrap())).collect()
    });
    let mut names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
    names.dedup();
    let mut wrong = 0;
    for name in names {
        let mut end = End::default();
        ends.iter().filter(|(of, _)| *of == name).for_each(|(_, of)| end.add(of));
        eprintln!(
            "{name}: {} errors, each once and for a while: answered {} times; {} messages stored once and \
             committed, said in {} of {} rows, at most {} lines; {} wrong",
            end.rows / 2,
            end.answered,
            end.messages,
            end.said,
            end.rows,
            end.lines,
            end.wrong
        );
        wrong += end.wrong;
    }
    assert_eq!(wrong, 0, "rows that went wrong are above");
}

/// Waits until it is `done`; `state` is what there is instead.
fn wait(done: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{}", state());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An empty log, and brokers that do not tell where the group stopped: beginning behind the newest message, as
/// `initial_offset: latest` says for a group without offsets, would leave out what nobody has taken.
#[test]
fn a_group_whose_offsets_are_not_told_begins_at_the_oldest_message_and_never_behind_the_newest() {
    let mut broker = Broker::start();
    let sent: Vec<String> = (0..8).map(|number| lane::transition("a", number)).collect();
    broker.send(&sent);
    broker.commit(&[(0, 1), (1, 1)]).unwrap();
    broker.inject(RDKafkaApiKey::OffsetFetch, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN, 10_000);
    let dir = tempfile::tempdir().unwrap();
    let latest = [("KAFKA__INITIAL_OFFSET", "latest")];
    let persister = Persister::start(dir.path(), broker.bootstrap(), &latest);
    persister.wait_ready(Duration::from_secs(90)).unwrap();
    broker.repair(RDKafkaApiKey::OffsetFetch);
    wait(
        || broker.committed() == *broker.ends() && persister.stored_count() == Some(8),
        || format!("{:?} of {:?}", broker.committed(), broker.ends()),
    );
    assert!(persister::codes(&persister.lines()).contains("KAFKA_COMMITTED_UNKNOWN"));
    persister.stop().unwrap();
}

/// Offsets are committed without the ledger while it is forbidden, and behind it again afterwards.
#[test]
fn a_ledger_that_was_forbidden_is_kept_again_when_the_right_is_granted() {
    let mut broker = Broker::start();
    let dir = tempfile::tempdir().unwrap();
    let retry = [("KAFKA__LEDGER_RETRY", "1s")];
    let persister = Persister::start(dir.path(), broker.bootstrap(), &retry);
    broker.send(&[lane::transition("first", 0), lane::transition("first", 1)]);
    persister.wait_ready(Duration::from_secs(60)).unwrap();
    let forbidden = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    broker.inject(RDKafkaApiKey::OffsetCommit, forbidden, 10_000);
    broker.send(&[lane::transition("a", 0), lane::transition("a", 1)]);
    let ledger_until = |done: &dyn Fn(&serde_json::Value) -> bool, what: &str| {
        wait(
            || persister.status().is_some_and(|status| done(&status["ledger"])),
            || format!("{what}: {:?}", persister.status()),
        );
    };
    ledger_until(&|ledger| ledger["off"].is_string(), "it is off");
    broker.repair(RDKafkaApiKey::OffsetCommit);
    ledger_until(&|ledger| ledger["off"].is_null(), "it is kept again");
    let before = persister.status().unwrap()["ledger"]["ledger_entries"].as_u64().unwrap();
    broker.send(&[lane::transition("a", 2), lane::transition("a", 3)]);
    ledger_until(&|ledger| ledger["ledger_entries"].as_u64() >= Some(before + 2), "it goes on");
    wait(
        || broker.committed() == *broker.ends(),
        || format!("{:?} of {:?}", broker.committed(), broker.ends()),
    );
    let lines = persister.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("LEDGER_OFF")).count(), 1, "{lines:#?}");
    persister.stop().unwrap();
}

/// What the ledger relies on when it takes an answer without an error for a confirmation of all its partitions.
#[test]
fn a_commit_that_fails_for_one_partition_of_several_is_no_success() {
    let mut broker = Broker::start();
    broker.send(&[lane::transition("a", 0), lane::transition("a", 1)]);
    broker.commit(&[(0, 1), (1, 1)]).unwrap();
    for offsets in [[(0, 1), (77, 1)], [(77, 1), (1, 1)]] {
        let error = broker.commit(&offsets).unwrap_err();
        assert!(error.to_string().contains("UnknownTopicOrPartition"), "{error}");
    }
}
