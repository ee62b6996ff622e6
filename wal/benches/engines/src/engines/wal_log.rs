//! This project's log, set up as the persister does it: a committer runs, and what is durable is
//! acknowledged and checkpointed without a hold-back.
//!
//! The waiting producer appends its batch, several frames if it is long, and waits for the last
//! ticket. The pipelining one never waits for what it has just appended, only for the oldest batch
//! when the next one would be too far ahead.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bench_wal::corpus::{RECORD_BYTES, Record};
use bench_wal::round::{Durable, Log, Writer};
use bench_wal::shape::{AHEAD_BYTES_MAX, Shape};
use wal::{
    AppendError, BATCH_BYTES_MAX, Batch, Committer, Compression, DiskFs, NoCarry, Position, Ticket,
    Wal, WalConfig,
};

/// A frame holds its records with 32 bits of length each.
const FRAME_RECORDS_MAX: usize = BATCH_BYTES_MAX / (RECORD_BYTES + 4);

/// The open log.
pub struct WalLog {
    // Dropped before the log, which it writes for until then.
    _committer: Committer,
    wal: Wal,
    opened: Instant,
    acked: Mutex<Position>,
    pipelined: bool,
}

impl WalLog {
    /// Opens an empty directory.
    pub fn open(dir: &Path, compression: Compression, shape: &Shape) -> Self {
        let config = WalConfig { compression, hold_back: Duration::ZERO, ..WalConfig::default() };
        let fs = DiskFs::open(dir).unwrap();
        let (wal, _) = Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO).unwrap();
        Self {
            _committer: Committer::spawn(wal.clone()).unwrap(),
            acked: Mutex::new(wal.status().durable),
            wal,
            opened: Instant::now(),
            pipelined: shape.pipelined,
        }
    }
}

impl Log for WalLog {
    fn writer(&self, _thread: usize) -> Box<dyn Writer + '_> {
        if self.pipelined {
            Box::new(Pipelining::new(&self.wal))
        } else {
            Box::new(Waiting(&self.wal))
        }
    }

    fn reclaim(&self) {
        let mut acked = self.acked.lock().unwrap();
        let durable = self.wal.durable().through();
        self.wal.ack(*acked..durable);
        *acked = durable;
        self.wal.checkpoint(self.opened.elapsed()).unwrap();
    }
}

struct Waiting<'a>(&'a Wal);

impl Writer for Waiting<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        let begun = Instant::now();
        append(self.0, batch).wait().unwrap();
        durable.note(batch.len(), begun);
    }
}

struct OnItsWay {
    ticket: Ticket<DiskFs>,
    records: usize,
    begun: Instant,
}

/// Appends ahead of the disk, up to a bound.
pub struct Pipelining<'a> {
    wal: &'a Wal,
    on_their_way: VecDeque<OnItsWay>,
    records: usize,
}

impl<'a> Pipelining<'a> {
    /// A producer of this log.
    pub fn new(wal: &'a Wal) -> Self {
        Self { wal, on_their_way: VecDeque::new(), records: 0 }
    }

    /// Notes what is durable by now.
    fn collect(&mut self, durable: &mut Durable) {
        while let Some(first) = self.on_their_way.front()
            && let Some(outcome) = first.ticket.poll()
        {
            outcome.unwrap();
            durable.note(first.records, first.begun);
            self.records -= first.records;
            self.on_their_way.pop_front();
        }
    }

    /// Waits for the oldest batch; the committer leads.
    fn wait_for_one(&mut self, durable: &mut Durable) {
        let Some(first) = self.on_their_way.front() else { return };
        let last_record = Position::new(first.ticket.range().end.get() - 1);
        self.wal.wait_durable(last_record, Duration::from_secs(1));
        self.collect(durable);
    }
}

impl Writer for Pipelining<'_> {
    fn commit(&mut self, batch: &[Record], durable: &mut Durable) {
        self.collect(durable);
        while self.records * RECORD_BYTES > AHEAD_BYTES_MAX {
            self.wait_for_one(durable);
        }
        let begun = Instant::now();
        let ticket = append(self.wal, batch);
        self.on_their_way.push_back(OnItsWay { ticket, records: batch.len(), begun });
        self.records += batch.len();
    }

    fn finish(&mut self, durable: &mut Durable) {
        while !self.on_their_way.is_empty() {
            self.wait_for_one(durable);
        }
    }
}

/// Appends all records and returns the ticket of the last frame: tickets resolve in order. Tries
/// again while the log is full: the next reclaiming makes room.
fn append(wal: &Wal, records: &[Record]) -> Ticket<DiskFs> {
    let mut batches: VecDeque<Batch> = records.chunks(FRAME_RECORDS_MAX).map(frame).collect();
    loop {
        match wal.append_all(&mut batches) {
            Ok(ticket) if batches.is_empty() => return ticket,
            Ok(_) => {}
            Err(AppendError::Full(refused)) => {
                batches.push_front(refused);
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => panic!("cannot append: {error}"),
        }
    }
}

fn frame(records: &[Record]) -> Batch {
    let mut batch = Batch::with_capacity(records.len() * (RECORD_BYTES + 4));
    for record in records {
        batch.push(record).unwrap();
    }
    batch
}
