//! One line that says how far long work is, on a terminal only.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use wal::{Inventory, SegmentNumber};

const EVERY: Duration = Duration::from_millis(250);

pub(super) struct Progress {
    what: &'static str,
    /// Bytes before each segment.
    before: Vec<(SegmentNumber, u64)>,
    total: u64,
    shown: Option<Instant>,
    on: bool,
    last: Instant,
}

impl Progress {
    pub fn new(what: &'static str, inventory: &Inventory) -> Self {
        let mut total = 0_u64;
        let mut before = Vec::new();
        for segment in &inventory.segments {
            before.push((segment.number, total));
            total = total.saturating_add(segment.bytes);
        }
        let on = std::io::stderr().is_terminal();
        Self { what, before, total, shown: None, on, last: Instant::now() }
    }

    pub fn at(&mut self, segment: SegmentNumber, byte_at: u64) {
        if !self.on || self.last.elapsed() < EVERY {
            return;
        }
        self.last = Instant::now();
        self.shown = Some(self.last);
        let before = self.before.iter().find(|(number, _)| *number == segment);
        let done = before.map_or(0, |(_, before)| before.saturating_add(byte_at));
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100).min(100);
        let total = bytesize::ByteSize(self.total);
        eprint!("\r{}: {percent:3} % of {total}, segment {segment}\x1b[K", self.what);
        // A line that cannot be shown is no reason to stop.
        std::io::stderr().flush().ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
