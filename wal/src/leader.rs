//! The leader: takes the writer, carries out what the commit machine asks for, puts it back.
//!
//! Any thread may lead, one at a time. A leader that panics poisons the log: nobody knows how far
//! it came.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::carry::CARRY_BYTES_MAX;
use crate::commit::{Effect, Event, Group};
use crate::error::WalError;
use crate::format::frame::FrameKind;
use crate::format::link::Link;
use crate::format::segment_name;
use crate::frame::Frame;
use crate::fs::{Fs, FsFile};
use crate::log::{Log, State, link_bytes, lock};
use crate::segment::{self, Fault, NewSegment, SegmentInfo, Writer};

/// What came of an offer to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// One group became durable.
    Done,
    /// Nothing is queued.
    Idle,
    /// Somebody else leads.
    Busy,
}

/// One turn as the leader. Dropping it puts the writer back.
struct Turn<'a, F: Fs> {
    log: &'a Log<F>,
    writer: Option<Box<Writer<F::File>>>,
}

impl<F: Fs> Drop for Turn<'_, F> {
    fn drop(&mut self) {
        let mut state = lock(&self.log.state);
        state.writer = self.writer.take();
        if std::thread::panicking() {
            self.log.poison(&mut state, "the thread that was writing panicked");
        }
        drop(state);
        // Others wait for their tickets, for the writer, or for their turn.
        self.log.changed.notify_all();
        self.log.work.notify_one();
    }
}

impl<F: Fs> Log<F> {
    /// Leads for one group, if nobody else does.
    pub fn lead(&self) -> Result<Lead, WalError> {
        let mut state = lock(&self.state);
        state.check()?;
        if state.commit.queued_frames() == 0 {
            return Ok(if state.writer.is_some() { Lead::Idle } else { Lead::Busy });
        }
        let Some(writer) = state.writer.take() else {
            return Ok(Lead::Busy);
        };
        let effect = state.commit.on(Event::Lead);
        let mut frames = Vec::new();
        take_frames(&mut state, effect, &mut frames);
        drop(state);
        let mut turn = Turn { log: self, writer: Some(writer) };
        let outcome = match turn.writer.as_mut() {
            Some(writer) => self.carry_out(writer, effect, &mut frames),
            None => Ok(Lead::Busy),
        };
        drop(turn);
        outcome
    }

    fn carry_out(
        &self,
        writer: &mut Writer<F::File>,
        first: Effect,
        frames: &mut Vec<Frame>,
    ) -> Result<Lead, WalError> {
        let mut effect = first;
        loop {
            effect = match effect {
                Effect::Rest => return Ok(Lead::Idle),
                Effect::Poison => return Err(self.poisoned()),
                Effect::Resolve(_) => return Ok(Lead::Done),
                Effect::Rotate => match self.rotate(writer) {
                    Ok(link_bytes) => {
                        let room = writer.room(self.config.segment_bytes);
                        let mut state = lock(&self.state);
                        state.link_bytes = link_bytes;
                        state.durable_byte = writer.at;
                        state.segments.push_back(writer.info.clone());
                        let effect = state.commit.on(Event::Rotated { room });
                        take_frames(&mut state, effect, frames);
                        effect
                    }
                    Err(fault) => return Err(self.fail(fault, frames)),
                },
                Effect::Write(group) => match self.write(writer, group, frames) {
                    Ok(effect) => effect,
                    Err(fault) => return Err(self.fail(fault, frames)),
                },
                Effect::Sync(id) => {
                    let begun = Instant::now();
                    if let Err(error) = writer.file.sync_data() {
                        let fault = Fault::hard("sync", self.path(writer), error);
                        return Err(self.fail(fault, frames));
                    }
                    let mut state = lock(&self.state);
                    state.last_sync = Some(begun.elapsed());
                    state.syncs += 1;
                    state.last_write = Instant::now();
                    state.durable_byte = writer.at;
                    if let Some(segment) = state.segments.back_mut() {
                        segment.bytes = writer.at;
                    }
                    state.commit.on(Event::Synced(id))
                }
            };
        }
    }

    fn write(
        &self,
        writer: &mut Writer<F::File>,
        group: Group,
        frames: &mut Vec<Frame>,
    ) -> Result<Effect, Fault> {
        let durable = writer.position;
        let written = writer
            .append(frames, durable)
            .map_err(|error| Fault::soft("write", self.path(writer), error))?;
        debug_assert_eq!((written, writer.position), (group.bytes, group.end));
        if frames.iter().any(|frame| !frame.annotation().is_empty()) {
            let mut carry = lock(&self.carry);
            for frame in frames.iter().filter(|frame| !frame.annotation().is_empty()) {
                carry.absorb(frame.annotation());
            }
        }
        frames.clear();
        Ok(lock(&self.state).commit.on(Event::Written(group.id)))
    }

    /// Ends the segment with a durable seal, then puts a durable new one in its place. Repeating it
    /// after a lack of space goes on where it stopped.
    fn rotate(&self, writer: &mut Writer<F::File>) -> Result<u64, Fault> {
        if !writer.sealed {
            let seal = Frame::control(FrameKind::Seal, writer.position, Vec::new());
            writer
                .append(&[seal], writer.position)
                .map_err(|error| Fault::soft("write", self.path(writer), error))?;
            writer
                .file
                .sync_data()
                .map_err(|error| Fault::hard("sync", self.path(writer), error))?;
            writer.sealed = true;
            if let Some(segment) = lock(&self.state).segments.back_mut() {
                segment.bytes = writer.at;
            }
        }
        let carry = lock(&self.carry).save();
        if carry.len() > CARRY_BYTES_MAX {
            return Err(Fault::hard(
                "carry state over from",
                self.path(writer),
                std::io::Error::other(format!(
                    "it has {} bytes, {CARRY_BYTES_MAX} are allowed",
                    carry.len()
                )),
            ));
        }
        let expected = link_bytes(carry.len());
        let link = Link {
            number: writer.info.number.next(),
            incarnation: self.incarnation,
            predecessor: writer.info.number,
            predecessor_end: writer.end(),
            delivered: lock(&self.acks).delivered(),
            history: self.history.clone(),
            carry,
        };
        let new =
            NewSegment { log_id: self.log_id, base: writer.position, durable: writer.position };
        let mut next = segment::create(&self.fs, new, &link)?;
        segment::publish(&self.fs, &mut next)?;
        let end = writer.end();
        {
            // Readers learn the end before the new segment appears in the list.
            let mut state = lock(&self.state);
            if let Some(segment) = state.segments.back_mut() {
                segment.end = Some(end);
                segment.bytes = end.byte;
            }
        }
        *writer = next;
        Ok(expected)
    }

    /// Tells the machine and the others; what was taken off the queue goes back.
    fn fail(&self, fault: Fault, frames: &mut Vec<Frame>) -> WalError {
        let mut state = lock(&self.state);
        match fault {
            Fault::NoSpace(error) => {
                while let Some(frame) = frames.pop() {
                    state.frames.push_front(frame);
                }
                state.commit.on(Event::NoSpace);
                error
            }
            Fault::Fatal(error) => {
                self.poison(&mut state, &error.to_string());
                error
            }
        }
    }

    fn path(&self, writer: &Writer<F::File>) -> String {
        self.fs.path_of(&segment_name(writer.info.number))
    }

    fn poisoned(&self) -> WalError {
        lock(&self.state).check().err().unwrap_or(WalError::Closed)
    }

    /// For `close`: makes everything queued durable, whoever leads, and proves it with a mark.
    pub fn finish(&self) -> Result<(), WalError> {
        loop {
            match self.lead()? {
                Lead::Done => {}
                Lead::Busy => self.wait_for_writer(),
                Lead::Idle => match self.mark(Sync::Yes)? {
                    Lead::Done | Lead::Idle => return Ok(()),
                    Lead::Busy => self.wait_for_writer(),
                },
            }
        }
    }

    fn wait_for_writer(&self) {
        let mut state = lock(&self.state);
        while state.writer.is_none() && state.poison.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a mark behind the last group, so that its durability has a witness in the log.
    /// `Idle` if there is one already.
    pub fn mark(&self, sync: Sync) -> Result<Lead, WalError> {
        let mut state = lock(&self.state);
        state.check()?;
        if !state.commit.idle() {
            return Ok(Lead::Busy);
        }
        if !state.writer.as_ref().is_some_and(|writer| !writer.proven && !writer.sealed) {
            return Ok(if state.writer.is_some() { Lead::Idle } else { Lead::Busy });
        }
        let mut turn = Turn { log: self, writer: state.writer.take() };
        drop(state);
        let Some(writer) = turn.writer.as_mut() else {
            return Ok(Lead::Busy);
        };
        let mark = Frame::control(FrameKind::Mark, writer.position, Vec::new());
        let durable = writer.position;
        let outcome = match writer.append(&[mark], durable) {
            Ok(bytes) => {
                let mut state = lock(&self.state);
                state.commit.took(bytes);
                if let Some(segment) = state.segments.back_mut() {
                    segment.bytes = writer.at;
                }
                drop(state);
                match sync {
                    Sync::Yes => writer
                        .file
                        .sync_data()
                        .map_err(|error| Fault::hard("sync", self.path(writer), error)),
                    Sync::No => Ok(()),
                }
            }
            Err(error) => Err(Fault::soft("write", self.path(writer), error)),
        };
        match outcome {
            Ok(()) => Ok(Lead::Done),
            // A mark is a convenience: without space there is none.
            Err(Fault::NoSpace(_)) => Ok(Lead::Idle),
            Err(Fault::Fatal(error)) => {
                self.poison(&mut lock(&self.state), &error.to_string());
                Err(error)
            }
        }
    }

    /// How long the log has been without a write.
    pub fn idle_for(&self, state: &State<F::File>) -> Duration {
        state.last_write.elapsed()
    }
}

/// Whether a mark is synced or left to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Yes,
    No,
}

fn take_frames<File>(state: &mut State<File>, effect: Effect, frames: &mut Vec<Frame>) {
    if let Effect::Write(group) = effect {
        let count = group.frames.min(state.frames.len());
        frames.extend(state.frames.drain(..count));
    }
}

impl SegmentInfo {
    /// Whether nothing is written to it any more.
    pub fn is_finished(&self) -> bool {
        self.end.is_some()
    }
}
