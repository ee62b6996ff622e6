//! Group commit as a machine: what is written together, what is synced, what is durable.
//!
//! It decides and does nothing: no files, no threads, no clock, and only the sizes and positions
//! of frames pass through it. Whoever leads carries out the effects and reports back:
//!
//! ```text
//! Lead --> Rotate --Rotated--> Write(group) --Synced--> Settle: durable
//!             |                     |
//!             NoSegment             NoSpace --> Settle: back on the queue, `starved` is set
//! any step: Failed --> Poison, for ever
//! ```
//!
//! Several groups may be in flight, and may come back in any order. The machine promises that
//! durable moves only after the sync of a group *and of all groups before it*, in the order of the
//! queue, and never again after a failure; that the segment is changed only while nothing is in
//! flight; and that a group that found no space takes those behind it back with it.

use std::collections::VecDeque;

use crate::format::align_block;
use crate::frame::planned_bytes;
use crate::position::Position;

/// A group is at most this long (or one longer frame): it bounds the time one sync takes.
pub(crate) const GROUP_BYTES_MAX: u64 = 1024 * 1024;

/// Beside a group in flight, a shorter one than that begins only from this length on: many small
/// writes cost more than waiting for the next one, and who waits meanwhile shares it.
const BESIDE_BYTES: u64 = 256 * 1024;

/// Counts appended batches from 1; batches without records share a position but not this.
pub(crate) type Sequence = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupId(u64);

impl GroupId {
    /// Which of so many slots the group has: groups in flight side by side never share one.
    pub fn slot(self, slots: usize) -> u64 {
        self.0 % slots as u64
    }
}

/// The frames at the head of the queue that go to the disk together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub id: GroupId,
    pub frames: usize,
    pub bytes: u64,
    pub end: Position,
}

/// The space that a segment offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Bytes for groups.
    pub room: u64,
    /// They lie in extents that were written before: groups can be in flight side by side, and
    /// none of them can find the disk full.
    pub prepared: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A frame joined the queue.
    Queued { bytes: u64, end: Position },
    /// Somebody is ready to write.
    Lead,
    /// A new segment is in place.
    Rotated(Offer),
    /// A better segment than the present one waits.
    Prepared,
    /// The group is in the file, and the file was synced after that.
    Synced(GroupId),
    /// There was no space for this group; nothing of it counts.
    NoSpace(GroupId),
    /// There was no space for a new segment.
    NoSegment,
    /// A step failed.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing to do.
    Rest,
    /// Finish the segment and begin the next one.
    Rotate,
    /// Take the group off the queue, write it, and sync.
    Write(Group),
    /// Groups are done with. The oldest `durable` ones in flight are durable: tell the waiting. The
    /// `back` ones after them, all that are left, go back on the queue, and the place where the
    /// oldest of these began is free again.
    Settle { durable: usize, back: usize },
    /// Fail everybody, now and later.
    Poison,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    bytes: u64,
    end: Position,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Begun,
    Synced,
    NoSpace,
}

#[derive(Debug)]
pub(crate) struct Commit {
    /// Everything not durable yet; the groups in flight are its head.
    queue: VecDeque<Item>,
    queued_bytes: u64,
    /// Of frames that wait for a group.
    planned_bytes: u64,
    in_flight: VecDeque<(Group, Progress)>,
    /// Frames of the groups in flight.
    taken: usize,
    taken_bytes: u64,
    in_flight_max: usize,
    groups: u64,
    offer: Offer,
    segment_used: bool,
    better_segment: bool,
    appended: Position,
    durable: Position,
    sequence_appended: Sequence,
    sequence_durable: Sequence,
    starved: bool,
    failed: bool,
}

impl Commit {
    pub fn new(durable: Position, offer: Offer, in_flight_max: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            planned_bytes: 0,
            in_flight: VecDeque::new(),
            taken: 0,
            taken_bytes: 0,
            in_flight_max,
            groups: 0,
            offer,
            segment_used: false,
            better_segment: false,
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
            Event::Rotated(offer) => {
                self.offer = offer;
                self.segment_used = false;
                self.better_segment = false;
                self.next_group()
            }
            Event::Prepared => {
                self.better_segment = true;
                Effect::Rest
            }
            Event::Synced(id) => self.came_back(id, Progress::Synced),
            Event::NoSpace(id) => self.came_back(id, Progress::NoSpace),
            Event::NoSegment => {
                self.starved = true;
                Effect::Rest
            }
            Event::Failed => {
                self.failed = true;
                Effect::Poison
            }
        }
    }

    /// A group has ended: what it means depends on the groups before it.
    fn came_back(&mut self, id: GroupId, came: Progress) -> Effect {
        let Some((_, progress)) = self.in_flight.iter_mut().find(|(group, _)| group.id == id)
        else {
            return Effect::Rest;
        };
        *progress = came;
        let mut durable = 0;
        if bug!(DurableOutOfOrder) && came == Progress::Synced {
            self.in_flight.iter_mut().for_each(|(_, progress)| *progress = came);
        }
        while let Some((group, Progress::Synced)) = self.in_flight.front().copied() {
            self.in_flight.pop_front();
            durable += 1;
            self.taken -= group.frames;
            for item in self.queue.drain(..group.frames) {
                self.queued_bytes -= item.bytes;
                self.taken_bytes -= item.bytes;
            }
            self.sequence_durable += group.frames as u64;
            self.durable = group.end;
            self.starved = false;
            debug_assert!(self.durable <= self.appended);
        }
        let ended = self.in_flight.iter().all(|(_, progress)| *progress != Progress::Begun);
        let mut back = 0;
        if ended && !self.in_flight.is_empty() {
            // The oldest found no space, and those behind it are worth nothing without it.
            back = self.in_flight.len();
            self.offer.room += self.in_flight.iter().map(|(group, _)| group.bytes).sum::<u64>();
            self.in_flight.clear();
            let back = self.queue.iter().take(std::mem::take(&mut self.taken));
            self.taken_bytes = 0;
            self.planned_bytes += back.map(|item| planned_bytes(item.bytes)).sum::<u64>();
            self.starved = true;
        }
        if durable + back > 0 { Effect::Settle { durable, back } } else { Effect::Rest }
    }

    /// Whether `Lead` would find something to do now.
    pub fn can_lead(&self) -> bool {
        let slots = if self.offer.prepared { self.in_flight_max } else { 1 };
        let stuck = self.in_flight.iter().any(|(_, progress)| *progress == Progress::NoSpace);
        let waiting = align_block(self.queued_bytes - self.taken_bytes);
        let worth_it =
            self.in_flight.back().is_none_or(|(group, _)| waiting >= group.bytes.min(BESIDE_BYTES));
        self.queue.len() > self.taken
            && self.in_flight.len() < slots
            && worth_it
            && !stuck
            && !self.failed
    }

    fn next_group(&mut self) -> Effect {
        if !self.can_lead() {
            return Effect::Rest;
        }
        let Some(first) = self.queue.get(self.taken) else {
            return Effect::Rest;
        };
        let limit = GROUP_BYTES_MAX.min(self.offer.room);
        let (mut frames, mut bytes, mut end) = (0, 0, first.end);
        for item in self.queue.iter().skip(self.taken) {
            if align_block(bytes + item.bytes) > limit {
                break;
            }
            frames += 1;
            bytes += item.bytes;
            end = item.end;
        }
        // A fresh segment takes one frame of any length.
        let too_long = frames == 0 && align_block(first.bytes) > self.offer.room;
        let move_on = self.better_segment && !self.offer.prepared;
        if move_on || (self.segment_used && too_long) {
            return if self.in_flight.is_empty() { Effect::Rotate } else { Effect::Rest };
        }
        if frames == 0 {
            (frames, bytes) = (1, first.bytes);
        }
        self.groups += 1;
        let id = GroupId(self.groups);
        let group = Group { id, frames, bytes: align_block(bytes), end };
        self.offer.room = self.offer.room.saturating_sub(group.bytes);
        self.segment_used = true;
        let taken = self.queue.iter().skip(self.taken).take(frames);
        self.planned_bytes -= taken.map(|item| planned_bytes(item.bytes)).sum::<u64>();
        self.taken += frames;
        self.taken_bytes += bytes;
        self.in_flight.push_back((group, Progress::Begun));
        Effect::Write(group)
    }

    /// A mark or seal took a block.
    pub fn took(&mut self, bytes: u64) {
        self.offer.room = self.offer.room.saturating_sub(bytes);
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

    /// What the present segment still offers.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// Bytes of frames that are not durable yet.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// The most disk bytes that those without a place can take, changes of segment not counted.
    pub fn planned_bytes(&self) -> u64 {
        self.planned_bytes
    }

    /// Bytes of the groups in flight: they have their place already.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.iter().map(|(group, _)| group.bytes).sum()
    }

    /// Frames that wait for a group.
    pub fn waiting_frames(&self) -> usize {
        self.queue.len() - self.taken
    }

    /// The last attempt to write found no space.
    pub fn starved(&self) -> bool {
        self.starved
    }

    pub fn idle(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
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

    fn new(room: u64) -> Commit {
        Commit::new(Position::ZERO, Offer { room, prepared: true }, 2)
    }

    fn group(effect: Effect) -> Group {
        match effect {
            Effect::Write(group) => group,
            other => panic!("{other:?}"),
        }
    }

    const fn durable(groups: usize) -> Effect {
        Effect::Settle { durable: groups, back: 0 }
    }

    #[test]
    fn everything_queued_shares_one_sync() {
        let mut commit = new(1 << 20);
        queue(&mut commit, &[1000; 50]);
        let written = group(commit.on(Event::Lead));
        assert_eq!((written.frames, written.bytes), (50, align_block(50_000)));
        assert_eq!(commit.on(Event::Lead), Effect::Rest, "nothing waits");
        assert_eq!(commit.durable(), Position::ZERO, "written is not durable");
        assert_eq!(commit.on(Event::Synced(written.id)), durable(1));
        assert!(commit.idle());
        assert_eq!((commit.queued_bytes(), commit.planned_bytes()), (0, 0));
    }

    #[test]
    fn groups_side_by_side_become_durable_in_their_order() {
        let mut commit = new(1 << 20);
        queue(&mut commit, &[5000]);
        let first = group(commit.on(Event::Lead));
        queue(&mut commit, &[4000]);
        assert_eq!(commit.on(Event::Lead), Effect::Rest, "too little beside the first");
        queue(&mut commit, &[100]);
        let second = group(commit.on(Event::Lead));
        assert_eq!((first.frames, second.frames), (1, 2));
        queue(&mut commit, &[100]);
        assert_eq!(commit.on(Event::Lead), Effect::Rest, "two in flight are enough");
        assert_eq!(commit.on(Event::Synced(second.id)), Effect::Rest);
        assert_eq!(commit.durable(), Position::ZERO, "not before the first");
        assert_eq!(commit.on(Event::Synced(first.id)), durable(2));
        assert_eq!(commit.waiting_frames(), 1);
    }

    #[test]
    fn a_group_is_bounded_but_a_longer_frame_goes_alone() {
        let mut commit = new(8 << 20);
        queue(&mut commit, &[700_000, 700_000, 3 << 20, 10]);
        for expected in [1, 1, 1, 1] {
            let written = group(commit.on(Event::Lead));
            assert_eq!(written.frames, expected);
            commit.on(Event::Synced(written.id));
        }
        assert_eq!(commit.durable(), Position::new(4));
    }

    #[test]
    fn a_full_segment_is_changed_when_nothing_is_in_flight_and_a_fresh_one_takes_any_frame() {
        let mut commit = new(8192);
        queue(&mut commit, &[8000, 100_000]);
        let written = group(commit.on(Event::Lead));
        assert_eq!(commit.on(Event::Lead), Effect::Rest, "the first one is still in flight");
        commit.on(Event::Synced(written.id));
        assert_eq!(commit.on(Event::Lead), Effect::Rotate);
        let offer = Offer { room: 16_384, prepared: true };
        let written = group(commit.on(Event::Rotated(offer)));
        assert_eq!(written.frames, 1);
    }

    #[test]
    fn a_segment_that_grows_takes_one_group_at_a_time_and_is_left_for_a_better_one() {
        let offer = Offer { room: 1 << 20, prepared: false };
        let mut commit = Commit::new(Position::ZERO, offer, 2);
        queue(&mut commit, &[100]);
        let written = group(commit.on(Event::Lead));
        commit.on(Event::Prepared);
        queue(&mut commit, &[100]);
        assert_eq!(commit.on(Event::Lead), Effect::Rest);
        assert_eq!(commit.on(Event::Synced(written.id)), durable(1));
        assert_eq!(commit.on(Event::Lead), Effect::Rotate);
        let offer = Offer { prepared: true, ..offer };
        group(commit.on(Event::Rotated(offer)));
    }

    #[test]
    fn without_space_nothing_counts_and_the_same_frames_come_again() {
        let mut commit = new(1 << 20);
        queue(&mut commit, &[100, 100]);
        let first = group(commit.on(Event::Lead));
        assert_eq!(commit.on(Event::NoSpace(first.id)), Effect::Settle { durable: 0, back: 1 });
        assert!(commit.starved());
        queue(&mut commit, &[100]);
        let second = group(commit.on(Event::Lead));
        assert_eq!(second.frames, 3);
        assert_eq!(commit.on(Event::Synced(first.id)), Effect::Rest, "a late word is ignored");
        assert_eq!(commit.on(Event::Synced(second.id)), durable(1));
        assert!(!commit.starved());
    }

    #[test]
    fn what_is_behind_a_group_without_space_goes_back_with_it() {
        for late in [false, true] {
            let mut commit = new(1 << 20);
            let room = commit.offer().room;
            queue(&mut commit, &[100]);
            let first = group(commit.on(Event::Lead));
            queue(&mut commit, &[100]);
            let second = group(commit.on(Event::Lead));
            let (one, other) = (Event::NoSpace(first.id), Event::Synced(second.id));
            let (one, other) = if late { (other, one) } else { (one, other) };
            assert_eq!(commit.on(one), Effect::Rest);
            queue(&mut commit, &[100]);
            assert_eq!(commit.on(Event::Lead), Effect::Rest, "nothing is begun behind it");
            assert_eq!(commit.on(other), Effect::Settle { durable: 0, back: 2 });
            assert_eq!((commit.durable(), commit.offer().room), (Position::ZERO, room));
            assert_eq!(group(commit.on(Event::Lead)).frames, 3);
        }
    }

    #[test]
    fn what_is_before_a_group_without_space_becomes_durable() {
        for late in [false, true] {
            let mut commit = new(1 << 20);
            queue(&mut commit, &[100]);
            let first = group(commit.on(Event::Lead));
            queue(&mut commit, &[100]);
            let second = group(commit.on(Event::Lead));
            if late {
                assert_eq!(commit.on(Event::NoSpace(second.id)), Effect::Rest);
                let both = Effect::Settle { durable: 1, back: 1 };
                assert_eq!(commit.on(Event::Synced(first.id)), both);
            } else {
                assert_eq!(commit.on(Event::Synced(first.id)), durable(1));
                let back = Effect::Settle { durable: 0, back: 1 };
                assert_eq!(commit.on(Event::NoSpace(second.id)), back);
            }
            assert_eq!((commit.durable(), commit.starved()), (Position::new(1), true));
            assert!(commit.can_lead());
        }
    }

    #[test]
    fn a_failure_is_for_ever() {
        let mut commit = new(1 << 20);
        queue(&mut commit, &[100]);
        let written = group(commit.on(Event::Lead));
        assert_eq!(commit.on(Event::Failed), Effect::Poison);
        let offer = Offer { room: 1 << 20, prepared: true };
        for event in [Event::Lead, Event::Synced(written.id), Event::Rotated(offer)] {
            assert_eq!(commit.on(event), Effect::Poison);
        }
        assert_eq!(commit.durable(), Position::ZERO);
    }

    #[test]
    fn batches_without_records_are_durable_in_their_turn() {
        let offer = Offer { room: 1 << 20, prepared: true };
        let mut commit = Commit::new(Position::new(7), offer, 2);
        commit.on(Event::Queued { bytes: 80, end: Position::new(7) });
        assert_eq!(commit.sequence_appended(), 1);
        let written = group(commit.on(Event::Lead));
        assert_eq!(commit.sequence_durable(), 0);
        commit.on(Event::Synced(written.id));
        assert_eq!(commit.sequence_durable(), 1);
        assert_eq!(commit.durable(), Position::new(7));
    }
}
