//! When some replicas are away for long: their messages must keep neither the memory of others nor the space of all after
//! them in the log.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wal::{Fs, Position, WalError};

use super::Delivery;
use crate::aside::Aside;
use crate::deliver::{Event, GatherId, UnitId};
use crate::delivered::DeliveredOffsets;
use crate::sync::lock;

/// What may be held of what is not delivered.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Rows.
    pub rows: usize,
    /// Bytes of memory, about.
    pub bytes: usize,
}

/// What was done about records that are in the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Rows that left memory: they are read again when their replicas answer.
    pub rows_set_aside: u64,
    /// Records moved to the head of the log, so that what lies behind them can be reclaimed.
    pub records_moved: u64,
}

/// What is shared with who else looks at the log.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// What the reader leaves out.
    aside: Arc<Mutex<Aside>>,
    delivered: Option<Arc<Mutex<DeliveredOffsets>>>,
    /// Something was set aside when the ledger was last told.
    was_aside: bool,
    /// Messages to be set aside.
    leaving: Vec<Position>,
    come_back: bool,
}

impl Elsewhere {
    /// All of it is read again.
    pub(super) fn start_over(&mut self) {
        lock(&self.aside).clear();
        self.come_back = false;
    }

    pub(super) fn wants_come_back(&mut self) {
        self.come_back = true;
    }
}

impl<F: Fs> Delivery<F> {
    /// Puts messages aside where the reader knows of them, and has the ledger wait for them.
    #[must_use]
    pub fn with_aside(
        mut self,
        aside: Arc<Mutex<Aside>>,
        delivered: Arc<Mutex<DeliveredOffsets>>,
    ) -> Self {
        self.elsewhere = Elsewhere { aside, delivered: Some(delivered), ..Elsewhere::default() };
        self
    }

    /// To be called about once a second, after a checkpoint of the log. If replicas that are away hold half of `most` or
    /// more, their messages are put behind all others in the log; the reader leaves them out until
    /// [`Delivery::take_come_back`] says otherwise. If the log is short of space, what is stuck at its beginning is moved to
    /// its head.
    ///
    /// # Errors
    /// The log failed: end the process.
    pub fn clear_the_way(&mut self, most: Held, now: Duration) -> Result<Cleared, WalError> {
        let delivered = self.elsewhere.delivered.clone();
        // The ledger waits until the reader has seen what is moved in its new place.
        if let Some(delivered) = &delivered {
            lock(delivered).freeze();
        }
        let rows_set_aside = self.make_room(most, now)?;
        let records_moved = self.move_aside_on()?.saturating_add(self.wal.relocate_stuck()?);
        let is_aside = !lock(&self.elsewhere.aside).is_empty();
        let was_aside = std::mem::replace(&mut self.elsewhere.was_aside, is_aside);
        if let (false, Some(delivered)) = (is_aside, &delivered) {
            let is_moved = was_aside || records_moved > 0;
            let end = if is_moved { self.wal.status().appended } else { Position::ZERO };
            lock(delivered).thaw(end);
        }
        Ok(Cleared { rows_set_aside, records_moved })
    }

    /// True once when what was set aside is to be read again: call [`Delivery::come_back`].
    pub fn take_come_back(&mut self) -> bool {
        std::mem::take(&mut self.elsewhere.come_back)
    }

    /// Forgets everything that is under way, as [`Delivery::start_over`], and has the reader begin anew.
    ///
    /// # Errors
    /// As [`Delivery::gathered`].
    pub fn come_back(&mut self, now: Duration) -> Result<(), WalError> {
        self.start_over(now)?;
        lock(&self.elsewhere.aside).want();
        Ok(())
    }

    fn make_room(&mut self, most: Held, now: Duration) -> Result<u64, WalError> {
        let is_little = self.unit_bytes < most.bytes / 2;
        let rows_held_max = if is_little { most.rows } else { self.machine.outstanding_rows() };
        let before = self.machine.counts().rows_set_aside;
        self.machine.on(Event::MakeRoom { rows_held_max }, now, &mut self.effects);
        self.carry_out(now)?;
        Ok(self.machine.counts().rows_set_aside.saturating_sub(before))
    }

    /// Notes the messages of a unit that is to be set aside.
    pub(super) fn set_aside(&mut self, unit: UnitId, gather: GatherId) {
        self.stamped.remove(&unit);
        let (Some(rows), Some(start)) = (self.remove_unit(unit), self.starts.get(&gather).copied())
        else {
            return;
        };
        let positions =
            rows.records().filter_map(|record| start.offset_by(u64::from(record.index)));
        self.elsewhere.leaving.extend(positions);
    }

    /// Moves what was noted. What finds no room stays where it is, and is left to the next beginning.
    pub(super) fn move_leaving(&mut self) -> Result<(), WalError> {
        let mut leaving = std::mem::take(&mut self.elsewhere.leaving);
        if leaving.is_empty() {
            return Ok(());
        }
        leaving.sort_unstable();
        leaving.dedup();
        let left = leaving.into_iter().filter(|position| !self.wal.is_acked(*position));
        let each = left.filter_map(|position| Some(position..position.offset_by(1)?));
        let each: Vec<Range<Position>> = each.collect();
        self.move_to_aside(&mut lock(&self.elsewhere.aside), &each)?;
        Ok(())
    }

    /// `aside` is locked meanwhile: the reader must not come upon them in their new place before it knows.
    fn move_to_aside(
        &self,
        aside: &mut Aside,
        positions: &[Range<Position>],
    ) -> Result<u64, WalError> {
        let moved = self.wal.move_to_head(positions)?;
        moved.to.into_iter().for_each(|stretch| aside.add(stretch));
        Ok(moved.records)
    }

    /// When space is short, what is set aside must not keep that of all after it. Returns how many records were moved.
    fn move_aside_on(&self) -> Result<u64, WalError> {
        let status = self.wal.status();
        let mut aside = lock(&self.elsewhere.aside);
        // With more than half of the log set aside, little would be won.
        let all = status.appended.distance_from(status.reclaimed).unwrap_or(0);
        let is_worth_it = aside.records().saturating_mul(2) <= all;
        if status.is_below_low_mark() || !is_worth_it {
            return Ok(0);
        }
        let Some(oldest) = self.wal.oldest_finished() else { return Ok(0) };
        let in_the_way = aside.take_before(oldest.end);
        self.move_to_aside(&mut aside, &in_the_way)
    }
}
