//! The leader: carries out what the commit machine asks for.
//!
//! Leading has three parts. *Begin* takes the writer, lays the next group out in memory (changing
//! the segment first if it must) and puts the writer back; only one thread can be in it. *Fly*
//! writes and syncs the group; several groups fly side by side. *Land* tells the machine, which
//! decides what that makes durable. A thread that panics in between poisons the log: nobody knows
//! how far it came.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::buffer::BlockBuffer;
use crate::carry::CARRY_BYTES_MAX;
use crate::commit::{Effect, Event, Group, GroupId};
use crate::error::WalError;
use crate::format::frame::FrameKind;
use crate::format::link::Link;
use crate::format::{BLOCK_BYTES, segment_name};
use crate::frame::Frame;
use crate::fs::{Fs, FsFile, write_all_at};
use crate::log::{Log, State};
use crate::position::SegmentNumber;
use crate::segment::{self, Fault, IN_FLIGHT_MAX, NewSegment, Standing, Writer};
use crate::sync::{Condvar, lock};

/// What came of an offer to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// One group was written and synced; it is durable as soon as those before it are.
    Done,
    /// Nothing waits to be written.
    Idle,
    /// Others lead.
    Busy,
}

/// A group in flight, as the log remembers it until it is durable.
#[derive(Debug)]
pub(crate) struct InFlight {
    id: GroupId,
    segment: SegmentNumber,
    /// Where the writer stood before it.
    before: Standing,
    at: u64,
    bytes: u64,
    frames: Vec<Frame>,
    /// Its bytes, once it has landed.
    landed: Option<BlockBuffer>,
    begun: Instant,
}

impl InFlight {
    /// How long it has been on its way.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// A group in flight, as the thread that flies it holds it.
#[derive(Debug)]
pub(crate) struct Flight<File> {
    id: GroupId,
    file: Arc<File>,
    segment: SegmentNumber,
    at: u64,
    buffer: BlockBuffer,
}

/// What came of an offer to begin.
pub(crate) enum Begun<File> {
    Flight(Flight<File>),
    Idle,
    Busy,
}

/// The exclusive part of leading. Dropping it puts the writer back.
struct Turn<'a, F: Fs> {
    log: &'a Log<F>,
    writer: Option<Box<Writer<F::File>>>,
}

impl<F: Fs> Drop for Turn<'_, F> {
    fn drop(&mut self) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        let mut state = lock(&self.log.state);
        state.writer = Some(writer);
        if std::thread::panicking() {
            self.log.poison(&mut state, "the thread that was writing panicked");
        }
        let next = self.log.next_leader(&state);
        drop(state);
        if let Some(next) = next {
            next.notify_one();
        }
    }
}

/// Poisons the log if the thread panics while a group flies.
struct Panic<'a, F: Fs>(&'a Log<F>);

impl<F: Fs> Drop for Panic<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison(&mut lock(&self.0.state), "the thread that was writing panicked");
        }
    }
}

impl<F: Fs> Log<F> {
    /// Leads for one group, if there is one and nobody else has to come first.
    pub fn lead(&self) -> Result<Lead, WalError> {
        match self.begin()? {
            Begun::Flight(flight) => {
                let guard = Panic(self);
                let outcome = self.fly(&flight);
                let outcome = self.land(flight, outcome);
                drop(guard);
                outcome.map(|()| Lead::Done)
            }
            Begun::Idle => Ok(Lead::Idle),
            Begun::Busy => Ok(Lead::Busy),
        }
    }

    /// Takes the next group off the queue and lays it out.
    pub fn begin(&self) -> Result<Begun<F::File>, WalError> {
        // Before the lock, so that it is dropped after the lock.
        let mut turn = Turn { log: self, writer: None };
        let mut state = lock(&self.state);
        state.check()?;
        if state.commit.waiting_frames() == 0 {
            return Ok(Begun::Idle);
        }
        if !state.can_lead() {
            return Ok(Begun::Busy);
        }
        turn.writer = state.writer.take();
        let Some(writer) = turn.writer.as_mut() else {
            return Ok(Begun::Busy);
        };
        let mut effect = state.commit.on(Event::Lead);
        loop {
            match effect {
                Effect::Write(group) => {
                    let frames = take_frames(&mut state, group);
                    let mut durable = state.commit.durable();
                    if bug!(WatermarkAhead) {
                        durable = state.commit.appended();
                    }
                    drop(state);
                    let (flight, in_flight) = self.lay_out(writer, group, frames, durable);
                    lock(&self.state).in_flight.push_back(in_flight);
                    drop(turn);
                    return Ok(Begun::Flight(flight));
                }
                Effect::Rotate => {
                    drop(state);
                    let outcome = self.rotate(writer);
                    state = lock(&self.state);
                    match outcome {
                        Ok(()) => {
                            let offer = writer.offer(self.config.segment_bytes);
                            state.stock.next = None;
                            state.durable_byte = writer.stands.at;
                            state.segments.push_back(writer.info.clone());
                            effect = state.commit.on(Event::Rotated(offer));
                            // The next one can be prepared.
                            self.idle.notify_one();
                        }
                        Err(Fault::NoSpace(error)) => {
                            state.commit.on(Event::NoSegment);
                            return Err(error);
                        }
                        Err(Fault::Fatal(error)) => {
                            self.poison(&mut state, &error.to_string());
                            return Err(error);
                        }
                    }
                }
                _ => return Ok(Begun::Busy),
            }
        }
    }

    fn lay_out(
        &self,
        writer: &mut Writer<F::File>,
        group: Group,
        frames: Vec<Frame>,
        durable: crate::position::Position,
    ) -> (Flight<F::File>, InFlight) {
        let mut buffer = self.recent.buffer();
        let before = writer.stands;
        let at = writer.lay_out(&frames, durable, &mut buffer);
        let bytes = buffer.as_slice().len() as u64;
        debug_assert_eq!((bytes, writer.stands.position), (group.bytes, group.end));
        let segment = writer.info.number;
        let [first, second] = &writer.files;
        let slot = if bug!(SharedDescription) { 0 } else { group.id.slot(IN_FLIGHT_MAX) };
        let file = if slot == 0 { first } else { second };
        let in_flight = InFlight {
            id: group.id,
            segment,
            before,
            at,
            bytes,
            frames,
            landed: None,
            begun: Instant::now(),
        };
        (Flight { id: group.id, file: Arc::clone(file), segment, at, buffer }, in_flight)
    }

    /// Writes and syncs the group. No lock is held.
    pub fn fly(&self, flight: &Flight<F::File>) -> Result<(), Fault> {
        self.write(flight)?;
        self.sync(flight)
    }

    pub fn write(&self, flight: &Flight<F::File>) -> Result<(), Fault> {
        let begun = Instant::now();
        let outcome = write_all_at(flight.file.as_ref(), flight.at, flight.buffer.as_slice())
            .map_err(|error| Fault::soft("write", self.path(flight.segment), error));
        self.timings.write.note(begun.elapsed());
        if bug!(ForgetFailedWrite) { Ok(()) } else { outcome }
    }

    pub fn sync(&self, flight: &Flight<F::File>) -> Result<(), Fault> {
        if bug!(NoSyncOfGroups) {
            return Ok(());
        }
        let begun = Instant::now();
        let mut outcome = flight.file.sync_data();
        if bug!(RetryFailedSync) && outcome.is_err() {
            outcome = flight.file.sync_data();
        }
        let outcome =
            outcome.map_err(|error| Fault::hard("sync", self.path(flight.segment), error));
        self.timings.sync.note(begun.elapsed());
        outcome
    }

    /// Reports what came of the group.
    pub fn land(
        &self,
        flight: Flight<F::File>,
        outcome: Result<(), Fault>,
    ) -> Result<(), WalError> {
        let mut state = lock(&self.state);
        if let Some(landed) = state.in_flight.iter_mut().find(|group| group.id == flight.id) {
            landed.landed = Some(flight.buffer);
        }
        let (event, outcome) = match outcome {
            Ok(()) => (Event::Synced(flight.id), Ok(())),
            Err(Fault::NoSpace(error)) => (Event::NoSpace(flight.id), Err(error)),
            Err(Fault::Fatal(error)) => {
                if !bug!(NoPoison) {
                    self.poison(&mut state, &error.to_string());
                    return Err(error);
                }
                (Event::Synced(flight.id), Err(error))
            }
        };
        match state.commit.on(event) {
            Effect::Settle { durable, back } => {
                self.resolve(&mut state, durable);
                self.roll_back(&mut state, back);
            }
            Effect::Poison => {
                state.check()?;
            }
            Effect::Rest | Effect::Rotate | Effect::Write(_) => {}
        }
        let next = self.next_leader(&state);
        // The woken find the lock free.
        drop(state);
        self.tickets.notify_all();
        self.changed.notify_all();
        if let Some(next) = next {
            next.notify_one();
        }
        outcome
    }

    /// The oldest groups are durable: their annotations count, and readers may have their bytes.
    fn resolve(&self, state: &mut State<F::File>, groups: usize) {
        let now = Instant::now();
        for _ in 0..groups {
            let Some(group) = state.in_flight.pop_front() else {
                return;
            };
            let mut carry = None;
            for frame in &group.frames {
                if let Some(queued) = frame.queued {
                    self.timings.append.note(now.saturating_duration_since(queued));
                }
                if !frame.annotation().is_empty() {
                    carry.get_or_insert_with(|| lock(&self.carry)).absorb(frame.annotation());
                }
                state.payload_written += frame.raw_bytes();
            }
            state.durable_byte = group.at + group.bytes;
            state.bytes_written += group.bytes;
            state.groups += 1;
            state.last_write = now;
            if let Some(segment) = state.segments.back_mut() {
                segment.bytes = segment.bytes.max(state.durable_byte);
            }
            if let Some(buffer) = group.landed {
                self.recent.keep(group.segment, group.at, buffer);
            }
        }
    }

    /// Everything in flight goes back on the queue, and the writer to where the oldest began.
    fn roll_back(&self, state: &mut State<F::File>, groups: usize) {
        for _ in 0..groups {
            let Some(mut group) = state.in_flight.pop_back() else {
                return;
            };
            while let Some(mut frame) = group.frames.pop() {
                if bug!(LoseRolledBack) {
                    frame.forget_records();
                }
                state.frames.push_front(frame);
            }
            if let Some(writer) = state.writer.as_mut() {
                writer.stands = group.before;
            }
            if let Some(buffer) = group.landed {
                self.recent.give_back(buffer);
            }
        }
    }

    /// Where somebody waits who may begin the next group, if there is one to begin.
    fn next_leader(&self, state: &State<F::File>) -> Option<&Condvar> {
        let place = if state.waiters > 0 { &self.tickets } else { &self.work };
        state.can_lead().then_some(place)
    }

    /// Ends the segment with a durable seal, then makes the prepared one the newest. Repeating it
    /// after a lack of space goes on where it stopped. Nothing is in flight.
    fn rotate(&self, writer: &mut Writer<F::File>) -> Result<(), Fault> {
        if !writer.sealed {
            let seal = Frame::control(FrameKind::Seal, writer.stands.position, Vec::new());
            let number = writer.info.number;
            writer
                .append(&[seal], writer.stands.position)
                .map_err(|error| Fault::soft("write", self.path(number), error))?;
            writer.sync().map_err(|error| Fault::hard("sync", self.path(number), error))?;
            writer.sealed = true;
            if let Some(segment) = lock(&self.state).segments.back_mut() {
                segment.bytes = segment.bytes.max(writer.stands.at);
            }
        }
        let prepared = self.take_prepared()?;
        let carry = if bug!(LoseCarry) { Vec::new() } else { lock(&self.carry).save() };
        if carry.len() > CARRY_BYTES_MAX {
            return Err(Fault::hard(
                "carry state over from",
                self.path(writer.info.number),
                std::io::Error::other(format!(
                    "it has {} bytes, {CARRY_BYTES_MAX} are allowed",
                    carry.len()
                )),
            ));
        }
        let position = writer.stands.position;
        let end = writer.end();
        let link = Link {
            number: prepared.number,
            incarnation: self.incarnation,
            predecessor: writer.info.number,
            predecessor_end: end,
            delivered: self.noted_floor(),
            history: self.history.clone(),
            carry,
        };
        let new = NewSegment { log_id: self.log_id, base: position, durable: position };
        let mut next =
            segment::begin(&self.fs, &segment_name(prepared.number), prepared, position)?;
        segment::write_link(&self.fs, &mut next, new, &link)?;
        next.sync().map_err(|error| Fault::hard("sync", self.path(prepared.number), error))?;
        {
            // Readers learn the end before the new segment appears in the list.
            let mut state = lock(&self.state);
            state.bytes_written += next.stands.at;
            state.link_bytes = next.stands.at;
            if let Some(segment) = state.segments.back_mut() {
                segment.end = Some(end);
                segment.bytes = segment.bytes.max(end.byte);
            }
        }
        *writer = next;
        Ok(())
    }

    fn noted_floor(&self) -> crate::position::Position {
        let acks = lock(&self.acks);
        if bug!(LinkNotesDelivered) { acks.delivered() } else { acks.floor() }
    }

    fn path(&self, number: SegmentNumber) -> String {
        self.fs.path_of(&segment_name(number))
    }

    /// For `close`: makes everything queued durable, whoever leads, and proves it with a mark.
    pub fn finish(&self) -> Result<(), WalError> {
        loop {
            match self.lead()? {
                Lead::Done => {}
                Lead::Busy => self.wait_for_others(),
                Lead::Idle => match self.mark()? {
                    Lead::Done | Lead::Idle => return Ok(()),
                    Lead::Busy => self.wait_for_others(),
                },
            }
        }
    }

    fn wait_for_others(&self) {
        let state = lock(&self.state);
        let busy = state.writer.is_none() || state.commit.in_flight() > 0;
        if busy && state.poison.is_none() {
            // Whoever is busy says so when it is done; the time is for a word that was missed.
            drop(
                self.changed
                    .wait_timeout(state, Duration::from_millis(10))
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    /// Writes a durable mark behind the last group, so that its durability has a witness in the
    /// log. `Idle` if there is one already.
    pub fn mark(&self) -> Result<Lead, WalError> {
        let mut state = lock(&self.state);
        state.check()?;
        if !state.commit.idle() {
            return Ok(Lead::Busy);
        }
        let open = |writer: &Writer<F::File>| !writer.stands.proven && !writer.sealed;
        // A file that grows has room for it always, and the quota knows.
        let offer = state.commit.offer();
        let room = !offer.prepared || offer.room >= BLOCK_BYTES;
        if !room || !state.writer.as_ref().is_some_and(|writer| open(writer)) {
            return Ok(if state.writer.is_some() { Lead::Idle } else { Lead::Busy });
        }
        let mut turn = Turn { log: self, writer: state.writer.take() };
        drop(state);
        let Some(writer) = turn.writer.as_mut() else {
            return Ok(Lead::Busy);
        };
        let mark = Frame::control(FrameKind::Mark, writer.stands.position, Vec::new());
        let number = writer.info.number;
        let outcome = match writer.append(&[mark], writer.stands.position) {
            Ok(bytes) => {
                let mut state = lock(&self.state);
                state.commit.took(bytes);
                state.bytes_written += bytes;
                if let Some(segment) = state.segments.back_mut() {
                    segment.bytes = segment.bytes.max(writer.stands.at);
                }
                drop(state);
                writer.sync().map_err(|error| Fault::hard("sync", self.path(number), error))
            }
            Err(error) => Err(Fault::soft("write", self.path(number), error)),
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
}

impl<F: Fs> Log<F> {
    /// How long the log has been without a write.
    pub fn idle_for(&self, state: &State<F::File>) -> Duration {
        state.last_write.elapsed()
    }
}

fn take_frames<File>(state: &mut State<File>, group: Group) -> Vec<Frame> {
    let count = group.frames.min(state.frames.len());
    state.frames.drain(..count).collect()
}
