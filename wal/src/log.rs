//! The log as its users hold it: [`Wal`] is a cheap handle, [`Log`] what all handles share.
//!
//! One short mutex guards the state and is never held across file operations. The writer of the
//! newest segment travels: whoever begins a group takes it out of the state, lays the group out
//! without the lock, and puts it back. Acks and the carry have mutexes of their own, so that
//! acknowledging never waits for appending.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::attest::{Attestation, attest};
use crate::batch::{ANNOTATION_BYTES_MAX, Batch};
use crate::carry::Carry;
use crate::checkpoint::CursorFile;
use crate::commit::{Commit, Event, Sequence};
use crate::config::WalConfig;
use crate::cursor::Acks;
use crate::disk::DiskFs;
use crate::error::{AppendError, WalError};
use crate::format::link::Resumed;
use crate::format::{BLOCK_BYTES, segment_name};
use crate::frame::{Encoded, Frame, planned_bytes};
use crate::fs::Fs;
use crate::leader::InFlight;
use crate::position::{Durable, Incarnation, LogId, Position};
use crate::prepare::Stock;
use crate::reader::Reader;
use crate::recent::Recent;
use crate::recovery::{self, RecoveryReport};
use crate::segment::{IN_FLIGHT_MAX, SegmentInfo, Writer};
use crate::status::{CloseReport, WalStatus};
use crate::sync::{Condvar, Mutex, lock};
use crate::ticket::Ticket;
use crate::timing::Timings;

/// Size of the CURSOR file: two slots.
const CURSOR_BYTES: u64 = 2 * BLOCK_BYTES;

/// An open log. Clones share it; the directory is free again when the last handle, ticket and
/// reader is gone.
pub struct Wal<F: Fs = DiskFs> {
    pub(crate) log: Arc<Log<F>>,
}

impl<F: Fs> std::fmt::Debug for Wal<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wal").field(&self.log).finish()
    }
}

impl<F: Fs> Clone for Wal<F> {
    fn clone(&self) -> Self {
        Self { log: Arc::clone(&self.log) }
    }
}

pub(crate) struct Log<F: Fs> {
    pub fs: F,
    pub config: WalConfig,
    /// As the file system said when the log was opened.
    pub overwrites_in_place: bool,
    pub log_id: LogId,
    pub incarnation: Incarnation,
    /// Ends with this incarnation.
    pub history: Vec<Resumed>,
    pub state: Mutex<State<F::File>>,
    /// Durable moved, or the log was poisoned or closed: for those who watch.
    pub changed: Condvar,
    /// The same, or the next group may begin: for those who wait for their tickets.
    pub tickets: Condvar,
    /// The queue has something for the background committers.
    pub work: Condvar,
    /// A segment may be prepared.
    pub idle: Condvar,
    /// Held while a segment is prepared, its file operations included; only a change of segment
    /// waits for it.
    pub preparing: Mutex<()>,
    pub recent: Arc<Recent>,
    pub timings: Timings,
    pub acks: Mutex<Acks>,
    pub carry: Mutex<Box<dyn Carry>>,
    /// Held during a checkpoint, its file operations included: nobody else waits for it.
    pub cursor: Mutex<CursorFile<F::File>>,
    _lock: F::Lock,
}

impl<F: Fs> std::fmt::Debug for Log<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("log_id", &self.log_id)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

pub(crate) struct State<File> {
    pub commit: Commit,
    /// The frames of the commit queue that are not in flight.
    pub frames: VecDeque<Frame>,
    /// Oldest first.
    pub in_flight: VecDeque<InFlight>,
    /// `None` while somebody begins a group.
    pub writer: Option<Box<Writer<File>>>,
    pub stock: Stock,
    /// A frame was refused that would fit without the stock: the next checkpoint gives it up.
    pub shed_stock: bool,
    /// Names and sizes of the files in quarantine.
    pub quarantined: Vec<(String, u64)>,
    /// Oldest first; the last one is written.
    pub segments: VecDeque<SegmentInfo>,
    /// In the newest segment: everything before this byte is durable.
    pub durable_byte: u64,
    /// Disk bytes that the newest link took; the next one is expected to be alike.
    pub link_bytes: u64,
    pub poison: Option<Arc<str>>,
    pub closed: bool,
    /// The file system has less free space than must be left.
    pub below_floor: bool,
    /// Threads inside `Ticket::wait`: they lead themselves.
    pub waiters: usize,
    /// A committer sleeps deeply and wants to hear of the next append.
    pub dozing: bool,
    pub groups: u64,
    /// Bytes of all files when the log was opened.
    pub opened_bytes: u64,
    /// Bytes given to the disk, and raw bytes of the records among them, since the log was opened.
    pub bytes_written: u64,
    pub payload_written: u64,
    pub last_write: Instant,
}

impl<File> State<File> {
    pub fn check(&self) -> Result<(), WalError> {
        match &self.poison {
            Some(cause) => Err(WalError::Poisoned { cause: Arc::clone(cause) }),
            None => Ok(()),
        }
    }

    pub fn allocated_bytes(&self) -> u64 {
        CURSOR_BYTES
            + self.stock.bytes()
            + self.quarantine_bytes()
            + self.segments.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Bytes of files that are in quarantine only; the others share theirs with a segment.
    pub fn quarantine_bytes(&self) -> u64 {
        let listed = |name: &str| {
            self.segments
                .iter()
                .any(|segment| segment.damaged && segment_name(segment.number) == name)
        };
        self.quarantined.iter().filter(|(name, _)| !listed(name)).map(|(_, bytes)| bytes).sum()
    }

    /// Allocated bytes that new records can have: what is left of the newest segment, and the
    /// files that stand ready.
    pub fn reusable_bytes(&self) -> u64 {
        let newest = self.segments.back().map_or(0, |newest| newest.bytes);
        let used = self.durable_byte + self.commit.in_flight_bytes();
        newest.saturating_sub(used) + self.stock.bytes()
    }

    /// Whether somebody could begin a group now.
    pub fn can_lead(&self) -> bool {
        self.writer.is_some() && self.commit.can_lead()
    }
}

/// A batch that joined the queue.
struct Queued {
    range: Range<Position>,
    sequence: Sequence,
    /// A committer wants to hear of it.
    wake: bool,
}

impl<F: Fs> Log<F> {
    /// Whether a frame of this size can be queued without breaking a bound. One without records, a
    /// note, may take what those with records leave to it, and a little more: a full log that is
    /// opened again has no room at all, and must still be able to note what it owes.
    fn has_room(&self, state: &State<F::File>, frame_bytes: u64, is_note: bool) -> bool {
        if bug!(NoQuota) {
            return true;
        }
        let commit = &state.commit;
        let queue_max = self.config.queue_bytes_max as u64;
        if commit.starved() {
            return false;
        }
        if commit.queued_bytes() > 0 && commit.queued_bytes() + frame_bytes > queue_max {
            return false;
        }
        let reserve = self.config.note_reserve();
        let planned =
            commit.planned_bytes() + planned_bytes(frame_bytes) + if is_note { 0 } else { reserve };
        let offer = commit.offer();
        let next_room = match state.stock.next {
            Some(next) if next.written => {
                next.bytes.saturating_sub(2 * BLOCK_BYTES + state.link_bytes)
            }
            _ => 0,
        };
        let allocated = state.allocated_bytes().saturating_add(self.growing_bytes(state));
        // Whichever of the two it goes to, it has its place already.
        let has_place = (offer.prepared && planned <= offer.room) || planned <= next_room;
        if has_place && allocated <= self.config.max_bytes {
            return true;
        }
        let limit = self.config.max_bytes.max(state.opened_bytes) + 2 * BLOCK_BYTES + reserve;
        if is_note && planned <= offer.room && allocated.saturating_add(planned) <= limit {
            return true;
        }
        if state.below_floor {
            return false;
        }
        let needed = self.bytes_for(state, planned);
        allocated.saturating_add(needed) <= self.config.max_bytes
    }

    /// What a file that grows will take for sure: the groups on their way to it, and a mark and a
    /// seal.
    fn growing_bytes(&self, state: &State<F::File>) -> u64 {
        let commit = &state.commit;
        if commit.offer().prepared { 0 } else { commit.in_flight_bytes() + 2 * BLOCK_BYTES }
    }

    /// The most new disk bytes that frames of so many planned bytes can take. Each change of segment
    /// costs a seal, a header and a link; a segment can be left half empty by a long frame that
    /// goes to the next one. What stands ready is not counted on: nobody knows how well the frames
    /// fill it.
    fn bytes_for(&self, state: &State<F::File>, planned: u64) -> u64 {
        let changes = 1 + planned / (self.config.segment_bytes / 2);
        let change_bytes = 2 * BLOCK_BYTES + state.link_bytes + BLOCK_BYTES;
        planned.saturating_add(changes.saturating_mul(change_bytes))
    }

    /// Whether another file of this size breaks no bound, and leaves what is queued its room.
    pub fn has_room_for_file(&self, state: &State<F::File>, bytes: u64) -> bool {
        let queued = self.bytes_for(state, state.commit.planned_bytes());
        let needed = state.allocated_bytes() + self.growing_bytes(state) + queued + bytes;
        !state.below_floor && needed <= self.config.max_bytes
    }

    /// Makes every later call fail.
    pub fn poison(&self, state: &mut State<F::File>, cause: &str) {
        state.commit.on(Event::Failed);
        state.poison.get_or_insert_with(|| Arc::from(cause));
        self.changed.notify_all();
        self.tickets.notify_all();
        self.work.notify_all();
        self.idle.notify_all();
    }

    pub fn durable(&self, state: &State<F::File>) -> Durable {
        #[cfg(feature = "mutants")]
        if self.config.mutant == crate::mutants::Mutant::AckBeforeSync {
            return Durable::proven(state.commit.appended());
        }
        Durable::proven(state.commit.durable())
    }

    /// Whether everything up to this batch is durable.
    pub fn is_resolved(&self, state: &State<F::File>, sequence: Sequence) -> bool {
        #[cfg(feature = "mutants")]
        if self.config.mutant == crate::mutants::Mutant::AckBeforeSync {
            return true;
        }
        state.commit.sequence_durable() >= sequence
    }
}

impl<F: Fs> Wal<F> {
    /// Takes the directory, recovers what is in it and begins a new segment. `now` is any
    /// monotonic clock, the same for all calls on this log; what was acked before this opening is
    /// held back from now on.
    ///
    /// # Errors
    /// [`WalError::Config`], [`WalError::Locked`], [`WalError::NewerVersion`],
    /// [`WalError::ForeignSegment`] and [`WalError::CarryRefused`] leave the files untouched;
    /// [`WalError::NoSpace`] and [`WalError::Io`] can be tried again: whatever was done until then
    /// is found again.
    pub fn open(
        fs: F,
        config: WalConfig,
        carry: Box<dyn Carry>,
        now: Duration,
    ) -> Result<(Wal<F>, RecoveryReport), WalError> {
        config.validate().map_err(WalError::Config)?;
        let lock = recovery::lock(&fs)?;
        let mut carry = carry;
        let opened = recovery::open(&fs, carry.as_mut())?;
        let link_bytes = opened.writer.info.bytes;
        let offer = opened.writer.offer(config.segment_bytes);
        let mut state = State {
            commit: Commit::new(opened.writer.stands.position, offer, IN_FLIGHT_MAX),
            frames: VecDeque::new(),
            in_flight: VecDeque::new(),
            durable_byte: opened.writer.stands.at,
            writer: Some(Box::new(opened.writer)),
            stock: Stock::default(),
            shed_stock: false,
            quarantined: opened.quarantined,
            segments: opened.segments,
            link_bytes,
            poison: None,
            closed: false,
            below_floor: false,
            waiters: 0,
            dozing: false,
            groups: 0,
            opened_bytes: 0,
            bytes_written: link_bytes,
            payload_written: 0,
            last_write: Instant::now(),
        };
        state.opened_bytes = state.allocated_bytes();
        let mut acks = opened.acks;
        let recovered = acks.snapshot();
        acks.hold(recovered, now, config.hold_back);
        let log = Log {
            overwrites_in_place: fs.overwrites_in_place(),
            fs,
            config,
            log_id: opened.log_id,
            incarnation: opened.report.incarnation,
            history: opened.history,
            state: Mutex::new(state),
            changed: Condvar::new(),
            tickets: Condvar::new(),
            work: Condvar::new(),
            idle: Condvar::new(),
            preparing: Mutex::new(()),
            recent: Arc::default(),
            timings: Timings::default(),
            acks: Mutex::new(acks),
            carry: Mutex::new(carry),
            cursor: Mutex::new(opened.cursor),
            _lock: lock,
        };
        let wal = Wal { log: Arc::new(log) };
        // What was read of the CURSOR may never have reached the disk.
        wal.note_acks()?;
        Ok((wal, opened.report))
    }

    /// Gives the batch its positions and queues it. Compresses and sums up on this thread; never
    /// touches a file. Somebody must write it: the ticket's `wait`, [`commit`](Wal::commit), or a
    /// [`Committer`](crate::Committer), which is told as soon as the ticket is dropped or polled
    /// and finds out by itself a little later.
    ///
    /// # Errors
    /// [`AppendError::Full`] returns the batch for a later try; the others are final.
    pub fn append(&self, batch: Batch) -> Result<Ticket<F>, AppendError> {
        self.queue(batch).map(|queued| self.ticket(queued))
    }

    fn queue(&self, batch: Batch) -> Result<Queued, AppendError> {
        let log = &self.log;
        let too_large = [
            ("record", batch.record_bytes_largest(), log.config.max_record_bytes),
            ("annotation", batch.annotation().len(), ANNOTATION_BYTES_MAX),
        ];
        for (what, bytes, bytes_max) in too_large {
            if bytes > bytes_max {
                return Err(AppendError::TooLarge { what, bytes, bytes_max, batch });
            }
        }
        {
            let state = lock(&log.state);
            refuse(&state)?;
            if state.commit.starved() {
                return Err(AppendError::Full(batch));
            }
        }
        let encoded = Encoded::of(&batch, log.config.compression);
        let frame_bytes = encoded.frame_bytes(&batch);
        let mut state = lock(&log.state);
        refuse(&state)?;
        if !log.has_room(&state, frame_bytes, batch.is_empty()) {
            // With an empty queue it is the files that stand ready that take the room.
            state.shed_stock = state.commit.idle();
            return Err(AppendError::Full(batch));
        }
        state.shed_stock = false;
        let first = state.commit.appended();
        let mut frame = encoded.into_frame(batch, first);
        frame.queued = Some(Instant::now());
        let end = frame.end();
        if bug!(CarryBeforeDurable) {
            lock(&log.carry).absorb(frame.annotation());
        }
        state.commit.on(Event::Queued { bytes: frame_bytes, end });
        state.frames.push_back(frame);
        let wake = std::mem::take(&mut state.dozing);
        Ok(Queued { range: first..end, sequence: state.commit.sequence_appended(), wake })
    }

    fn ticket(&self, queued: Queued) -> Ticket<F> {
        if queued.wake {
            self.log.work.notify_all();
        }
        Ticket::new(Arc::clone(&self.log), queued.range, queued.sequence)
    }

    /// Appends batches from the front until none is left or the log is full, and returns the ticket
    /// of the last one appended: tickets resolve in order, so it speaks for all of them (and without
    /// any batch, for everything queued before). For more records at once than one batch takes;
    /// nobody begins to write before the last is queued, unless others do.
    ///
    /// # Errors
    /// As [`append`](Wal::append): the error holds the batch it is about, those before it are
    /// appended, those behind it are left in `batches`. [`AppendError::Full`] comes only if none
    /// could be appended.
    pub fn append_all(&self, batches: &mut VecDeque<Batch>) -> Result<Ticket<F>, AppendError> {
        let mut last: Option<Queued> = None;
        while let Some(batch) = batches.pop_front() {
            match self.queue(batch) {
                Ok(queued) => {
                    let wake = queued.wake || last.is_some_and(|last| last.wake);
                    last = Some(Queued { wake, ..queued });
                }
                Err(AppendError::Full(batch)) if last.is_some() => {
                    batches.push_front(batch);
                    break;
                }
                Err(error) => {
                    // Nobody waits for those before it: dropping their ticket says so.
                    drop(last.map(|queued| self.ticket(queued)));
                    return Err(error);
                }
            }
        }
        let queued = last.unwrap_or_else(|| {
            let commit = &lock(&self.log.state).commit;
            let end = commit.appended();
            Queued { range: end..end, sequence: commit.sequence_appended(), wake: false }
        });
        Ok(self.ticket(queued))
    }

    /// Makes everything that is queued now durable, in groups of at most 1 MiB, together with
    /// whoever else does.
    ///
    /// # Errors
    /// [`WalError::NoSpace`]: what is left stays queued, try again later. Others: the log is
    /// poisoned.
    pub fn commit(&self) -> Result<(), WalError> {
        let target = lock(&self.log.state).commit.sequence_appended();
        self.log.wait_for(target, |_, error| Err(error)).map(|_| ())
    }

    /// The proof of what is durable now.
    #[must_use]
    pub fn durable(&self) -> Durable {
        self.log.durable(&lock(&self.log.state))
    }

    /// Waits until more than `beyond` is durable, for at most `timeout`; returns earlier when the
    /// log is closed or poisoned. For readers; it never leads.
    pub fn wait_durable(&self, beyond: Position, timeout: Duration) -> Durable {
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.log.state);
        loop {
            let durable = Durable::proven(state.commit.durable());
            let left = deadline.saturating_duration_since(Instant::now());
            if durable.through() > beyond
                || state.closed
                || state.poison.is_some()
                || left.is_zero()
            {
                return durable;
            }
            (state, _) =
                self.log.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The longest record it takes.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        self.log.config.max_record_bytes
    }

    /// A reader of durable records from `from` on. There may be many, each on its own.
    #[must_use]
    pub fn reader(&self, from: Position) -> Reader<F> {
        Reader::new(Arc::clone(&self.log), from)
    }

    /// Takes the acks of the last `hold_back` back: those records are to be delivered again,
    /// because a store turned out to have lost what it acknowledged. Returns their positions,
    /// ascending; read them again. Acks of earlier openings are taken back as far as their segments
    /// are still there, unless this opening is older than `hold_back`. Call
    /// [`checkpoint`](Wal::checkpoint) to make it durable. `now` is the clock given to `open`.
    #[must_use = "these positions are not delivered any more"]
    pub fn redeliver(&self, now: Duration) -> Vec<Range<Position>> {
        lock(&self.log.acks).redeliver(now, self.log.config.hold_back)
    }

    /// Says that these records need not be delivered again. Any order, any number of times; what
    /// is not durable yet is left out. Durable with the next checkpoint.
    pub fn ack(&self, range: Range<Position>) {
        let durable = lock(&self.log.state).commit.durable();
        lock(&self.log.acks).ack(range.start..range.end.min(durable));
    }

    /// Whether this record was acked.
    #[must_use]
    pub fn is_acked(&self, position: Position) -> bool {
        lock(&self.log.acks).is_acked(position)
    }

    /// Everything before this was acked.
    #[must_use]
    pub fn delivered(&self) -> Position {
        lock(&self.log.acks).delivered()
    }

    /// The saved carry as of the last written frame; after `open`, as recovered.
    #[must_use]
    pub fn carry(&self) -> Vec<u8> {
        lock(&self.log.carry).save()
    }

    /// Compares what a witness outside remembers (that at `incarnation` everything before
    /// `position` was durable) with what the log holds.
    #[must_use]
    pub fn attest(&self, incarnation: Incarnation, position: Position) -> Attestation {
        let durable = lock(&self.log.state).commit.durable();
        attest(&self.log.history, durable, incarnation, position)
    }

    /// The state in numbers, computed when asked.
    #[must_use]
    pub fn status(&self) -> WalStatus {
        let (delivered, beyond) = {
            let acks = lock(&self.log.acks);
            (acks.delivered(), acks.beyond())
        };
        let state = lock(&self.log.state);
        WalStatus::compute(&self.log, &state, delivered, beyond)
    }

    /// Commits what is queued, writes a mark that proves it, and checkpoints. Later appends fail
    /// with [`AppendError::Closed`]; acks and checkpoints still work, so that a last delivery can
    /// be noted. Call it again after an error to try again.
    ///
    /// # Errors
    /// As [`commit`](Wal::commit) and [`checkpoint`](Wal::checkpoint).
    pub fn close(&self, now: Duration) -> Result<CloseReport, WalError> {
        {
            let mut state = lock(&self.log.state);
            state.check()?;
            state.closed = true;
        }
        self.log.changed.notify_all();
        self.log.work.notify_all();
        self.log.idle.notify_all();
        self.log.finish()?;
        self.checkpoint(now)?;
        let status = self.status();
        Ok(CloseReport {
            durable: status.durable,
            delivered: status.delivered,
            backlog_records: status.backlog_records,
            backlog_bytes: status.backlog_bytes,
        })
    }
}

fn refuse<File>(state: &State<File>) -> Result<(), AppendError> {
    if let Some(cause) = &state.poison {
        return Err(AppendError::Poisoned { cause: Arc::clone(cause) });
    }
    if state.closed { Err(AppendError::Closed) } else { Ok(()) }
}
