//! Group commit as a machine: what is written together, what is synced, what is durable.
//!
//! It decides and does nothing: no files, no threads, no clock, and only the sizes and positions
//! of frames pass through it. Whoever leads carries out the effects and reports back:
//!
//! ```text
//! Lead --> Rotate --Rotated--> Write(group) --Written--> Sync(group) --Synced--> Resolve(durable)
//!              \                   \
//!               `-----NoSpace-------`--> Rest: the frames stay queued, `starved` is set
//! any step: Failed --> Poison, for ever
//! ```
//!
//! It promises that durable moves only after the sync of the group, in the order of the queue, and
//! never again after a failure.

use std::collections::VecDeque;

use crate::format::align_block;
use crate::frame::planned_bytes;
use crate::position::Position;

/// A group is at most this long (or one longer frame): it bounds the time one sync takes.
pub(crate) const GROUP_BYTES_MAX: u64 = 1024 * 1024;

/// Counts appended batches from 1; batches without records share a position but not this.
pub(crate) type Sequence = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupId(u64);

/// The frames at the head of the queue that go to the disk together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub id: GroupId,
    pub frames: usize,
    pub bytes: u64,
    pub end: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A frame joined the queue.
    Queued { bytes: u64, end: Position },
    /// Somebody is ready to write.
    Lead,
    /// A new segment with this much room is in place.
    Rotated { room: u64 },
    /// The group is in the file.
    Written(GroupId),
    /// The file was synced after the group was in it.
    Synced(GroupId),
    /// There was no space for the last effect; nothing of it counts.
    NoSpace,
    /// The last effect failed.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing to do.
    Rest,
    /// Finish the segment and begin the next one.
    Rotate,
    /// Take the group off the queue and write it.
    Write(Group),
    /// Sync the file the group was written to.
    Sync(GroupId),
    /// Everything before this position is durable: tell the waiting.
    Resolve(Position),
    /// Fail everybody, now and later.
    Poison,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    bytes: u64,
    end: Position,
}

#[derive(Debug)]
pub(crate) struct Commit {
    /// Everything not durable yet; the group in flight is its head.
    queue: VecDeque<Item>,
    queued_bytes: u64,
    planned_bytes: u64,
    in_flight: Option<Group>,
    groups: u64,
    room: u64,
    segment_used: bool,
    appended: Position,
    durable: Position,
    sequence_appended: Sequence,
    sequence_durable: Sequence,
    starved: bool,
    failed: bool,
}

impl Commit {
    pub fn new(durable: Position, room: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            planned_bytes: 0,
            in_flight: None,
            groups: 0,
            room,
            segment_used: false,
            appended: durable,
            durable,
            sequence_appended: 0,
            sequence_durable: 0,
            starved: false,
            failed: false,
        }
    }

    pub fn on(&mut self, event: Event) -> Effect {
        if self.failed {
            return Effect::Poison;
        }
        match event {
            Event::Queued { bytes, end } => {
                debug_assert!(end >= self.appended);
                self.queue.push_back(Item { bytes, end });
                self.queued_bytes += bytes;
                self.planned_bytes += planned_bytes(bytes);
                self.appended = end;
                self.sequence_appended += 1;
                Effect::Rest
            }
            Event::Lead => self.next_group(),
            Event::Rotated { room } => {
                self.room = room;
                self.segment_used = false;
                self.next_group()
            }
            Event::Written(id) => match self.in_flight.filter(|group| group.id == id) {
                Some(group) => {
                    self.starved = false;
                    self.room = self.room.saturating_sub(group.bytes);
                    self.segment_used = true;
                    Effect::Sync(id)
                }
                None => Effect::Rest,
            },
            Event::Synced(id) => match self.in_flight.filter(|group| group.id == id) {
                Some(group) => {
                    self.in_flight = None;
                    for item in self.queue.drain(..group.frames) {
                        self.queued_bytes -= item.bytes;
                        self.planned_bytes -= planned_bytes(item.bytes);
                    }
                    self.sequence_durable += group.frames as u64;
                    self.durable = group.end;
                    debug_assert!(self.durable <= self.appended);
                    Effect::Resolve(self.durable)
                }
                None => Effect::Rest,
            },
            Event::NoSpace => {
                self.in_flight = None;
                self.starved = true;
                Effect::Rest
            }
            Event::Failed => {
                self.failed = true;
                Effect::Poison
            }
        }
    }

    fn next_group(&mut self) -> Effect {
        if self.in_flight.is_some() {
            return Effect::Rest;
        }
        let Some(first) = self.queue.front() else {
            return Effect::Rest;
        };
        let limit = GROUP_BYTES_MAX.min(self.room);
        let (mut frames, mut bytes, mut end) = (0, 0, first.end);
        for item in &self.queue {
            if align_block(bytes + item.bytes) > limit {
                break;
            }
            frames += 1;
            bytes += item.bytes;
            end = item.end;
        }
        if frames == 0 {
            // Longer than a group may be, or than the room that is left. A fresh segment takes
            // one frame of any length.
            if self.segment_used && align_block(first.bytes) > self.room {
                return Effect::Rotate;
            }
            (frames, bytes) = (1, first.bytes);
        }
        self.groups += 1;
        let id = GroupId(self.groups);
        let group = Group { id, frames, bytes: align_block(bytes), end };
        self.in_flight = Some(group);
        Effect::Write(group)
    }

    /// A mark or seal took a block.
    pub fn took(&mut self, bytes: u64) {
        self.room = self.room.saturating_sub(bytes);
    }

    pub fn appended(&self) -> Position {
        self.appended
    }

    pub fn durable(&self) -> Position {
        self.durable
    }

    pub fn sequence_appended(&self) -> Sequence {
        self.sequence_appended
    }

    pub fn sequence_durable(&self) -> Sequence {
        self.sequence_durable
    }

    /// Bytes of frames that are not durable yet.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// The most disk bytes they can take, changes of segment not counted.
    pub fn planned_bytes(&self) -> u64 {
        self.planned_bytes
    }

    /// Frames that are not durable yet.
    pub fn queued_frames(&self) -> usize {
        self.queue.len()
    }

    /// The last attempt to write found no space.
    pub fn starved(&self) -> bool {
        self.starved
    }

    pub fn idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(commit: &mut Commit, frames: &[u64]) {
        for bytes in frames {
            let end = commit.appended().next();
            assert_eq!(commit.on(Event::Queued { bytes: *bytes, end }), Effect::Rest);
        }
    }

    fn group(effect: Effect) -> Group {
        match effect {
            Effect::Write(group) => group,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_queued_shares_one_sync() {
        let mut commit = Commit::new(Position::ZERO, 1 << 20);
        queue(&mut commit, &[1000; 50]);
        let written = group(commit.on(Event::Lead));
        assert_eq!((written.frames, written.bytes), (50, align_block(50_000)));
        assert_eq!(commit.on(Event::Lead), Effect::Rest, "one group in flight");
        assert_eq!(commit.on(Event::Written(written.id)), Effect::Sync(written.id));
        assert_eq!(commit.durable(), Position::ZERO, "written is not durable");
        assert_eq!(commit.on(Event::Synced(written.id)), Effect::Resolve(Position::new(50)));
        assert!(commit.idle());
        assert_eq!((commit.queued_bytes(), commit.planned_bytes()), (0, 0));
    }

    #[test]
    fn a_group_is_bounded_but_a_longer_frame_goes_alone() {
        let mut commit = Commit::new(Position::ZERO, 8 << 20);
        queue(&mut commit, &[700_000, 700_000, 3 << 20, 10]);
        for expected in [1, 1, 1, 1] {
            let written = group(commit.on(Event::Lead));
            assert_eq!(written.frames, expected);
            commit.on(Event::Written(written.id));
            commit.on(Event::Synced(written.id));
        }
        assert_eq!(commit.durable(), Position::new(4));
    }

    #[test]
    fn a_full_segment_is_changed_first_and_a_fresh_one_takes_any_frame() {
        let mut commit = Commit::new(Position::ZERO, 8192);
        queue(&mut commit, &[8000, 100_000]);
        let written = group(commit.on(Event::Lead));
        commit.on(Event::Written(written.id));
        commit.on(Event::Synced(written.id));
        assert_eq!(commit.on(Event::Lead), Effect::Rotate);
        let written = group(commit.on(Event::Rotated { room: 16_384 }));
        assert_eq!(written.frames, 1);
    }

    #[test]
    fn without_space_nothing_counts_and_the_same_frames_come_again() {
        let mut commit = Commit::new(Position::ZERO, 1 << 20);
        queue(&mut commit, &[100, 100]);
        let first = group(commit.on(Event::Lead));
        assert_eq!(commit.on(Event::NoSpace), Effect::Rest);
        assert!(commit.starved());
        queue(&mut commit, &[100]);
        let second = group(commit.on(Event::Lead));
        assert_eq!(second.frames, 3);
        assert_eq!(commit.on(Event::Synced(first.id)), Effect::Rest, "a late word is ignored");
        assert_eq!(commit.on(Event::Written(second.id)), Effect::Sync(second.id));
        assert!(!commit.starved());
        assert_eq!(commit.on(Event::Synced(second.id)), Effect::Resolve(Position::new(3)));
    }

    #[test]
    fn a_failure_is_for_ever() {
        let mut commit = Commit::new(Position::ZERO, 1 << 20);
        queue(&mut commit, &[100]);
        let written = group(commit.on(Event::Lead));
        commit.on(Event::Written(written.id));
        assert_eq!(commit.on(Event::Failed), Effect::Poison);
        for event in [Event::Lead, Event::Synced(written.id), Event::Rotated { room: 1 << 20 }] {
            assert_eq!(commit.on(event), Effect::Poison);
        }
        assert_eq!(commit.durable(), Position::ZERO);
    }

    #[test]
    fn batches_without_records_are_durable_in_their_turn() {
        let mut commit = Commit::new(Position::new(7), 1 << 20);
        commit.on(Event::Queued { bytes: 80, end: Position::new(7) });
        assert_eq!(commit.sequence_appended(), 1);
        let written = group(commit.on(Event::Lead));
        commit.on(Event::Written(written.id));
        assert_eq!(commit.sequence_durable(), 0);
        commit.on(Event::Synced(written.id));
        assert_eq!(commit.sequence_durable(), 1);
        assert_eq!(commit.durable(), Position::new(7));
    }
}
