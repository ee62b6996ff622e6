//! What is taken, where consumption goes on, and what may be committed then.

use wal::sim::SimDisk;
use wal::{Chunk, ReadOutcome, Reader, WalConfig};

use super::*;
use crate::ingest::{CommitAfter, Start};
use crate::kafka_gap::{GapKind, GapPolicies, GapPolicy, KafkaGap};
use crate::offset_note::OffsetCarry;
use crate::offsets::{GroupOffset, ToldOffset};

fn records(reader: &mut Reader<SimDisk>) -> Vec<Vec<u8>> {
    let mut chunk = Chunk::default();
    assert_eq!(reader.next(&mut chunk, usize::MAX).unwrap(), ReadOutcome::Records);
    chunk.iter().map(|(_, record)| record.to_vec()).collect()
}

fn message(offset: i64, leader_epoch: i32, payload: &[u8]) -> Envelope<'_> {
    Envelope {
        topic: "metrics",
        partition: 0,
        offset,
        leader_epoch,
        timestamp_ms: 0,
        timestamp_type: TimestampType::Absent,
        received_ms: 0,
        key: None,
        payload: Some(payload),
    }
}

fn opened(disk: &SimDisk, gaps: GapPolicies) -> Intake<SimDisk> {
    let carry = Box::<OffsetCarry>::default();
    let (wal, _) = Wal::open(disk.clone(), WalConfig::default(), carry, Duration::ZERO).unwrap();
    let config = IngestConfig { ledger: false, gaps, ..IngestConfig::default() };
    Intake::new(config, wal).unwrap()
}

fn assigned(intake: &mut Intake<SimDisk>, committed: Option<i64>) -> Vec<Effect> {
    assigned_at(intake, committed.map(GroupOffset::unknown))
}

fn assigned_at(intake: &mut Intake<SimDisk>, committed: Option<GroupOffset>) -> Vec<Effect> {
    let mut effects = Vec::new();
    intake.on(Event::Assigned { partition: 0, committed }, Duration::ZERO, &mut effects);
    effects
}

fn take(intake: &mut Intake<SimDisk>, messages: std::ops::Range<i64>, leader_epoch: i32) {
    for offset in messages {
        let message = message(offset, leader_epoch, b"m");
        intake.take(&message, Duration::ZERO, &mut Vec::new()).unwrap();
    }
    intake.settle(&[0], Duration::ZERO).unwrap();
}

fn committable(intake: &Intake<SimDisk>) -> Vec<i64> {
    intake.committable_of(&[0]).iter().map(Committable::next).collect()
}

fn begin(at: i64) -> Effect {
    Effect::Begin { partition: 0, start: Start::At(at) }
}

fn log(intake: &Intake<SimDisk>) -> LogOffsets {
    LogOffsets::decode(&intake.wal.carry()).unwrap()
}

#[test]
fn consumption_goes_on_behind_what_retention_took_and_the_log_remembers_the_gap() {
    let disk = SimDisk::new(1);
    let mut intake = opened(&disk, GapPolicies::default());
    assigned(&mut intake, Some(5));
    take(&mut intake, 5..8, 0);
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 20, high: 30, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    let gap = KafkaGap { kind: GapKind::Retention, partition: 0, from: 8, to: 20, at_ms: 1 };
    assert!(effects.contains(&begin(20)), "{effects:?}");
    // What was fetched before consumption began anew is not taken.
    take(&mut intake, 8..9, 0);
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    assert_eq!(committable(&intake), [20]);
    take(&mut intake, 20..22, 0);
    assert_eq!(committable(&intake), [22]);
    drop(intake);
    let intake = opened(&disk, GapPolicies::default());
    assert_eq!(log(&intake).gaps, [gap]);
    assert_eq!(log(&intake).next.get(0), Some(22));
}

#[test]
fn a_partition_that_stops_at_a_gap_commits_nothing_and_goes_on_when_that_is_accepted() {
    let stop = GapPolicies { retention: GapPolicy::Stop, ..GapPolicies::default() };
    let mut intake = opened(&SimDisk::new(1), stop);
    assigned(&mut intake, Some(5));
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 20, high: 30, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    assert!(matches!(effects[..], [Effect::Hold(KafkaGap { from: 5, to: 20, .. })]));
    take(&mut intake, 20..25, 0);
    assert!(committable(&intake).is_empty());
    assert_eq!(intake.machine().stopped().count(), 1);
    effects.clear();
    intake.part(Event::Accept, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&begin(20)), "{effects:?}");
    assert_eq!(intake.machine().stopped().count(), 0);
}

#[test]
fn a_truncated_partition_is_consumed_from_its_new_end_and_its_offsets_may_go_back() {
    let mut intake = opened(&SimDisk::new(1), GapPolicies::default());
    assigned(&mut intake, Some(0));
    take(&mut intake, 0..10, 0);
    intake.on(Event::Committed { partition: 0, next: 10 }, Duration::ZERO, &mut Vec::new());
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 0, high: 7, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    // Kafka's last message is looked at first: it is one that was taken.
    assert_eq!(effects, [begin(6)]);
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    take(&mut intake, 6..7, 0);
    assert_eq!(intake.take_diverged(), [Divergence { partition: 0, from: Some(7) }]);
    let lost = Event::Diverged { partition: 0, from: 7, at_ms: 1 };
    intake.part(lost, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&begin(7)), "{effects:?}");
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    // An answer to a commit from before says nothing about now.
    intake.on(Event::Committed { partition: 0, next: 10 }, Duration::ZERO, &mut effects);
    take(&mut intake, 7..9, 1);
    assert_eq!(committable(&intake), [9]);
    let taken = records(&mut intake.wal.reader(Position::ZERO));
    assert_eq!(taken.len(), 12);
}

#[test]
fn what_comes_before_consumption_begins_again_is_taken_from_the_history_that_there_is_then() {
    let mut intake = opened(&SimDisk::new(1), GapPolicies::default());
    assigned(&mut intake, Some(0));
    take(&mut intake, 0..3, 0);
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 0, high: 9, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    assert_eq!(effects, [begin(2)]);
    // The partition loses these a moment later, and has others in their place.
    take(&mut intake, 3..9, 0);
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    take(&mut intake, 2..3, 0);
    take(&mut intake, 3..5, 1);
    assert_eq!(intake.take_diverged(), []);
    assert_eq!(records(&mut intake.wal.reader(Position::ZERO)).len(), 5);
    assert_eq!(committable(&intake), [5]);
}

#[test]
fn a_partition_that_stopped_while_it_was_to_begin_elsewhere_takes_nothing() {
    let stop = GapPolicies { truncated: GapPolicy::Stop, ..GapPolicies::default() };
    let mut intake = opened(&SimDisk::new(1), stop);
    assigned(&mut intake, Some(0));
    take(&mut intake, 0..10, 0);
    let mut effects = Vec::new();
    let diverged = Event::Diverged { partition: 0, from: 2, at_ms: 1 };
    intake.part(diverged, Duration::ZERO, &mut effects).unwrap();
    assert!(matches!(effects[..], [Effect::Hold(_)]), "{effects:?}");
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    take(&mut intake, 10..20, 1);
    assert_eq!(records(&mut intake.wal.reader(Position::ZERO)).len(), 10);
}

#[test]
fn what_was_written_since_a_partition_lost_its_end_is_not_skipped_though_it_is_shorter_than_ours() {
    // Its last message is of a later leader, or the message that was asked for is not there.
    for (first, leader_epoch) in [(6, 1), (7, 1), (7, 0)] {
        let mut intake = opened(&SimDisk::new(1), GapPolicies::default());
        assigned(&mut intake, Some(0));
        take(&mut intake, 0..10, 0);
        let mut effects = Vec::new();
        let bounds = Event::Bounds { partition: 0, low: 2, high: 7, at_ms: 1 };
        intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
        assert_eq!(effects, [begin(6)]);
        intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
        take(&mut intake, first..9, leader_epoch);
        assert_eq!(intake.take_diverged(), [Divergence { partition: 0, from: None }]);
        assert_eq!(records(&mut intake.wal.reader(Position::ZERO)).len(), 10, "nothing was taken");
    }
    // Nothing is known of the leader that its last message came from.
    let mut intake = opened(&SimDisk::new(1), GapPolicies::default());
    assigned(&mut intake, Some(10));
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 2, high: 7, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&begin(2)), "{effects:?}");
    assert_eq!(
        log(&intake).gaps[0],
        KafkaGap { kind: GapKind::Truncated, partition: 0, from: 2, to: 10, at_ms: 1 }
    );
}

#[test]
fn a_history_that_was_replaced_behind_our_back_is_noticed_by_its_leader_epoch() {
    let disk = SimDisk::new(1);
    let mut intake = opened(&disk, GapPolicies::default());
    assigned(&mut intake, None);
    take(&mut intake, 0..10, 3);
    drop(intake);
    // The last message of the log is asked for again: the same one says nothing.
    let mut intake = opened(&disk, GapPolicies::default());
    assert_eq!(assigned(&mut intake, Some(10)), [begin(9)]);
    take(&mut intake, 9..12, 3);
    assert_eq!(committable(&intake), [12]);
    drop(intake);
    let mut intake = opened(&disk, GapPolicies::default());
    assert_eq!(assigned(&mut intake, Some(12)), [begin(11)]);
    take(&mut intake, 11..20, 4);
    assert_eq!(intake.take_diverged(), [Divergence { partition: 0, from: None }]);
    assert!(committable(&intake).is_empty(), "nothing of the other history was taken");
    let mut effects = Vec::new();
    let diverged = Event::Diverged { partition: 0, from: 2, at_ms: 1 };
    intake.part(diverged, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&begin(2)), "{effects:?}");
    drop(intake);
    // Not known any more, so that it cannot be taken for another history once more.
    let mut intake = opened(&disk, GapPolicies::default());
    assert_eq!(assigned(&mut intake, None), [begin(2)]);
}

#[test]
fn an_offset_that_somebody_else_committed_of_a_replaced_history_is_noticed_by_its_leader_epoch() {
    let mut first = opened(&SimDisk::new(1), GapPolicies::default());
    assigned(&mut first, Some(0));
    take(&mut first, 0..6, 3);
    take(&mut first, 6..10, 4);
    let committed = first.committable_of(&[0])[0];
    assert_eq!((committed.next(), committed.leader_epoch()), (10, 4));
    let committed = Some(GroupOffset { leader_epoch: 4, ..GroupOffset::unknown(10) });

    let mut second = opened(&SimDisk::new(2), GapPolicies::default());
    assert_eq!(assigned_at(&mut second, committed), [begin(9)]);
    take(&mut second, 9..12, 4);
    assert_eq!(committable(&second), [12], "the same history");
    assert_eq!(records(&mut second.wal.reader(Position::ZERO)).len(), 2, "9 is the first's");

    let mut third = opened(&SimDisk::new(3), GapPolicies::default());
    assert_eq!(assigned_at(&mut third, committed), [begin(9)]);
    take(&mut third, 9..20, 5);
    assert_eq!(third.take_diverged(), [Divergence { partition: 0, from: None }]);
    assert!(committable(&third).is_empty(), "nothing of the other history was taken");
    let mut effects = Vec::new();
    let diverged = Event::Diverged { partition: 0, from: 2, at_ms: 1 };
    third.part(diverged, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&begin(2)), "{effects:?}");
}

#[test]
fn only_the_message_that_was_asked_for_to_compare_may_be_gone_without_a_gap() {
    let disk = SimDisk::new(1);
    let mut intake = opened(&disk, GapPolicies::default());
    assigned(&mut intake, None);
    take(&mut intake, 0..10, 3);
    drop(intake);
    let mut intake = opened(&disk, GapPolicies::default());
    assigned(&mut intake, None);
    let mut effects = Vec::new();
    let bounds = Event::Bounds { partition: 0, low: 10, high: 12, at_ms: 1 };
    intake.part(bounds, Duration::ZERO, &mut effects).unwrap();
    assert_eq!(effects, [begin(10)]);
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    take(&mut intake, 10..12, 3);
    assert_eq!(committable(&intake), [12]);
    assert!(log(&intake).gaps.is_empty());
}

#[test]
fn another_topic_of_the_name_stops_everything_until_it_is_accepted() {
    let disk = SimDisk::new(1);
    let topic = |id: &str| TopicIdentity { cluster: "c".to_owned(), topic: id.to_owned() };
    let mut intake = opened(&disk, GapPolicies::default());
    intake.topic_is(topic("t"), 1, Duration::ZERO, &mut Vec::new()).unwrap();
    assigned(&mut intake, None);
    take(&mut intake, 0..10, 0);
    drop(intake);

    let mut intake = opened(&disk, GapPolicies::default());
    let mut effects = Vec::new();
    // A broker that tells no ids is believed.
    intake.topic_is(TopicIdentity::default(), 1, Duration::ZERO, &mut effects).unwrap();
    intake.topic_is(topic("u"), 1, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.is_empty());
    let effects = assigned(&mut intake, Some(10));
    let gap = KafkaGap { kind: GapKind::Recreated, partition: 0, from: 0, to: 10, at_ms: 1 };
    assert_eq!(effects.last(), Some(&Effect::Hold(gap)));
    take(&mut intake, 10..12, 0);
    assert!(committable(&intake).is_empty());
    drop(intake);

    // A restart changes nothing.
    let mut intake = opened(&disk, GapPolicies::default());
    intake.topic_is(topic("u"), 1, Duration::ZERO, &mut Vec::new()).unwrap();
    assigned(&mut intake, Some(10));
    let mut effects = Vec::new();
    intake.part(Event::Accept, Duration::ZERO, &mut effects).unwrap();
    let beginning = Effect::Begin { partition: 0, start: Start::Beginning };
    assert!(effects.contains(&beginning), "{effects:?}");
    intake.on(Event::Begun { partition: 0 }, Duration::ZERO, &mut effects);
    take(&mut intake, 0..3, 0);
    assert_eq!(committable(&intake), [3]);
    assert_eq!(log(&intake).topic, Some(topic("u")));
    assert_eq!(log(&intake).next.get(0), Some(3));
}

#[test]
fn the_ledger_forgets_the_old_topic_also_of_partitions_that_are_elsewhere() {
    let disk = SimDisk::new(1);
    let topic = |id: &str| TopicIdentity { cluster: "c".to_owned(), topic: id.to_owned() };
    let go_on = GapPolicies { recreated: GapPolicy::Continue, ..GapPolicies::default() };
    let mut intake = opened(&disk, go_on);
    intake.topic_is(topic("t"), 1, Duration::ZERO, &mut Vec::new()).unwrap();
    assigned(&mut intake, Some(5));
    take(&mut intake, 5..10, 0);
    intake.on(Event::Gone { partition: 0 }, Duration::ZERO, &mut Vec::new());
    let mut effects = Vec::new();
    intake.topic_is(topic("u"), 1, Duration::ZERO, &mut effects).unwrap();
    assert!(effects.contains(&Effect::Rewind { partition: 0, next: None }), "{effects:?}");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Begin { .. })), "not ours");
    // It comes back: nothing of the old topic is left.
    assert_eq!(assigned(&mut intake, None).len(), 1);
    take(&mut intake, 0..3, 0);
    assert_eq!(committable(&intake), [3]);
    assert_eq!(log(&intake).next.get(0), Some(3));
}

#[test]
fn an_offset_is_committed_after_delivery_if_that_is_wanted() {
    let (wal, _) = Wal::open(
        SimDisk::new(1),
        WalConfig::default(),
        Box::<OffsetCarry>::default(),
        Duration::ZERO,
    )
    .unwrap();
    let commit_after = CommitAfter::Delivery;
    let config = IngestConfig { ledger: false, commit_after, ..IngestConfig::default() };
    let mut intake = Intake::new(config, wal).unwrap();
    assigned(&mut intake, Some(5));
    take(&mut intake, 5..10, 0);
    assert!(committable(&intake).is_empty());
    let delivered = Event::Delivered { partition: 0, next: 8 };
    intake.on(delivered, Duration::ZERO, &mut Vec::new());
    assert_eq!(committable(&intake), [8]);
}

#[test]
fn a_message_longer_than_a_record_is_taken_cut_and_its_partition_goes_on() {
    let config = WalConfig { max_record_bytes: 20_000, ..WalConfig::default() };
    let disk = SimDisk::new(1);
    let carry = Box::<OffsetCarry>::default();
    let (wal, _) = Wal::open(disk, config, carry, Duration::ZERO).unwrap();
    let config = IngestConfig { ledger: false, ..IngestConfig::default() };
    let mut intake = Intake::new(config, wal.clone()).unwrap();
    let mut effects = assigned(&mut intake, Some(5));
    let payloads = [vec![1; 10], vec![2; 50_000], vec![3; 10]];
    for (offset, payload) in (5..).zip(&payloads) {
        let message = message(offset, -1, payload);
        intake.take(&message, Duration::ZERO, &mut effects).unwrap();
    }
    assert!(intake.settle(&[0], Duration::ZERO).unwrap().is_empty());
    let committable = intake.committable_of(&[0]);
    assert_eq!(committable.iter().map(Committable::next).collect::<Vec<_>>(), [8]);
    let records = records(&mut wal.reader(Position::ZERO));
    let cut: Vec<Option<u64>> = records.iter().map(|record| Envelope::cut_from(record)).collect();
    assert_eq!(cut, [None, Some(50_000), None]);
    assert_eq!(Envelope::decode(&records[1]).unwrap().payload, Some(&payloads[1][..4096]));
}

#[test]
fn an_offset_that_was_committed_for_another_topic_of_the_name_is_not_believed() {
    let topic = |id: &str| TopicIdentity { cluster: "c".to_owned(), topic: id.to_owned() };
    let told = |id: &str| ToldOffset { next: 7, leader_epoch: 2, topic: topic(id) };
    let offset = |is_of_our_topic| Some(GroupOffset { next: 7, leader_epoch: 2, is_of_our_topic });
    // The log of a new disk: nothing in it tells the two topics apart.
    let mut intake = opened(&SimDisk::new(1), GapPolicies::default());
    intake.topic_is(topic("u"), 1, Duration::ZERO, &mut Vec::new()).unwrap();
    assert_eq!(intake.topic(), topic("u"));
    assert_eq!(intake.believed(told("u")), offset(true));
    assert_eq!(intake.believed(told("t")), None);
    // One whose committer did not know the topic is believed, as one of an older release.
    assert_eq!(intake.believed(told("")), offset(false));
}
