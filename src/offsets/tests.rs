//! What may be committed when partitions come, go and come back.

use std::time::Duration;

use wal::sim::SimDisk;
use wal::{Batch, NoCarry, Wal, WalConfig};

use super::*;

/// A log, and a proof that everything appended to it is durable.
fn append(wal: &Wal<SimDisk>) -> (Position, Durable) {
    let mut batch = Batch::new();
    batch.push(b"record").unwrap();
    let end = wal.append(batch).unwrap().range().end;
    wal.commit().unwrap();
    (end, wal.durable())
}

fn log() -> Wal<SimDisk> {
    let config = WalConfig::default();
    Wal::open(SimDisk::new(1), config, Box::new(NoCarry), Duration::ZERO).unwrap().0
}

const NONE: [i64; 0] = [];

fn at(offset: i64) -> Coordinates {
    Coordinates { partition: 0, offset, leader_epoch: -1, timestamp_ms: None }
}

fn committable(offsets: &Offsets) -> Vec<i64> {
    offsets.committable(|_| true).iter().map(Committable::next).collect()
}

/// Takes everything before `next`, and makes it durable.
fn take_to(offsets: &mut Offsets, wal: &Wal<SimDisk>, next: i64) {
    assert_eq!(offsets.take(at(next - 1)), Intake::Take);
    let (end, proof) = append(wal);
    offsets.appended(end);
    offsets.durable(proof);
}

#[test]
fn a_commit_answered_after_its_partition_came_back_withholds_nothing() {
    let (wal, mut offsets) = (log(), Offsets::default());
    offsets.assign(0, Some(100), Some(100), Position::ZERO, None);
    take_to(&mut offsets, &wal, 200);
    assert_eq!(committable(&offsets), [200]);
    offsets.forget(0);
    // The answer comes while the partition is somebody else's, and once more after it came back further down, as
    // when an operator has reset the group.
    offsets.committed(0, 200);
    offsets.assign(0, Some(50), Some(50), wal.durable().through(), None);
    offsets.committed(0, 200);
    assert_eq!(committable(&offsets), NONE);
    take_to(&mut offsets, &wal, 60);
    assert_eq!(committable(&offsets), [60], "the answer belonged to another assignment");
    offsets.committed(0, 60);
    assert_eq!(committable(&offsets), NONE);
}

#[test]
fn news_of_the_ledger_after_a_partition_came_back_commits_nothing_that_is_not_durable() {
    let (wal, mut offsets) = (log(), Offsets::default());
    offsets.need_witness(true);
    offsets.assign(0, Some(100), Some(100), Position::ZERO, None);
    take_to(&mut offsets, &wal, 200);
    offsets.forget(0);
    offsets.witnessed(0, 200);
    assert_eq!(committable(&offsets), NONE);
    // Somebody else took it to 150; we go on behind our own log.
    let (end, proof) = append(&wal);
    offsets.assign(0, Some(200), Some(150), end, None);
    offsets.witnessed(0, 200);
    assert_eq!(committable(&offsets), NONE, "our own records are not proved durable again");
    offsets.durable(proof);
    assert_eq!(committable(&offsets), [200]);
    // Further down than the ledger has ever been: what is durable decides.
    offsets.forget(0);
    offsets.assign(0, Some(50), Some(50), end, None);
    offsets.witnessed(0, 200);
    assert_eq!(committable(&offsets), NONE);
    take_to(&mut offsets, &wal, 60);
    assert_eq!(committable(&offsets), [60]);
}

#[test]
fn what_becomes_durable_after_a_partition_is_gone_is_not_committed() {
    let (wal, mut offsets) = (log(), Offsets::default());
    offsets.assign(0, Some(0), None, Position::ZERO, None);
    assert_eq!(offsets.take(at(9)), Intake::Take);
    let (end, proof) = append(&wal);
    offsets.appended(end);
    offsets.forget(0);
    offsets.durable(proof);
    assert_eq!(committable(&offsets), NONE);
    assert_eq!(offsets.take(at(10)), Intake::Unassigned);
}

#[test]
fn an_offset_is_committed_with_the_leader_epoch_of_the_message_before_it() {
    let (wal, mut offsets) = (log(), Offsets::default());
    offsets.need_delivery(true);
    offsets.assign(0, Some(0), None, Position::ZERO, None);
    for (offset, leader_epoch) in [(0, 3), (4, 3), (5, 4), (9, 4)] {
        let message = Coordinates { leader_epoch, ..at(offset) };
        assert_eq!(offsets.take(message), Intake::Take);
    }
    let (end, proof) = append(&wal);
    offsets.appended(end);
    offsets.durable(proof);
    for (delivered, leader_epoch) in [(1, 3), (5, 3), (6, 4), (10, 4)] {
        offsets.delivered(0, delivered);
        let committable = offsets.committable(|_| true);
        let offset = Committable { partition: 0, next: delivered, leader_epoch };
        assert_eq!(committable, [offset]);
        offsets.committed(0, delivered);
    }
}

#[test]
fn behind_the_place_where_histories_part_the_leader_epoch_before_it_is_still_known() {
    let mut offsets = Offsets::default();
    offsets.assign(0, Some(0), None, Position::ZERO, None);
    for (offset, leader_epoch) in [(0, 3), (4, 3), (5, 4), (9, 4)] {
        let message = Coordinates { leader_epoch, ..at(offset) };
        assert_eq!(offsets.take(message), Intake::Take);
    }
    offsets.restart(0, Some(5));
    assert_eq!(offsets.taken_epochs().collect::<Vec<_>>(), [(0, 3)]);
    // It loses its end again before anything else is consumed: there is something to compare with.
    assert_eq!(offsets.compare_end(0, 0, 2), Some(1));
    offsets.restart(0, None);
    assert_eq!(offsets.compare_end(0, 0, 2), None, "nothing of a deleted topic is compared");
}

#[test]
fn where_a_partition_once_began_is_forgotten_with_its_old_history() {
    for is_forgotten in [false, true] {
        let (wal, mut offsets) = (log(), Offsets::default());
        offsets.need_witness(true);
        offsets.assign(0, Some(5), Some(5), Position::ZERO, None);
        take_to(&mut offsets, &wal, 10);
        offsets.forget(0);
        if is_forgotten {
            offsets.restart(0, None);
        }
        offsets.assign(0, Some(7), None, wal.durable().through(), None);
        take_to(&mut offsets, &wal, 12);
        let from = if is_forgotten { 7 } else { 5 };
        assert_eq!(offsets.testimony(|_| true), [Testimony { partition: 0, from, next: 12 }]);
    }
}
