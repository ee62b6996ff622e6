//! When everything that is not delivered is to be read again.

use std::time::Duration;

use wal::{Chunk, Fs, Wal, WalError};

use super::LogReader;
use crate::sync::lock;

impl<F: Fs> LogReader<F> {
    /// Takes the acks of the last hold-back back, durably, and begins anew with the oldest record that is not delivered.
    /// Returns how many records are to be delivered again. Nobody may ack what was gathered before; messages among them
    /// that became dead letters become them again, with the same key.
    ///
    /// # Errors
    /// The log failed: start again.
    pub fn start_over(&mut self, now: Duration) -> Result<u64, WalError> {
        let again = self.begin_anew(|wal| wal.redeliver(now));
        self.wal.checkpoint(now)?;
        Ok(again.iter().filter_map(|range| range.end.distance_from(range.start)).sum())
    }

    /// If what was set aside is wanted again, begins anew with the oldest record that is not delivered. Nobody may ack what
    /// was gathered before.
    pub fn come_back_if_wanted(&mut self) -> bool {
        let is_wanted = lock(&self.aside).take_wanted();
        if is_wanted {
            self.begin_anew(|_| ());
        }
        is_wanted
    }

    fn begin_anew<T>(&mut self, take_back: impl FnOnce(&Wal<F>) -> T) -> T {
        // Whoever tells what is delivered sees both or neither.
        let mut delivered = lock(&self.delivered);
        let taken = take_back(&self.wal);
        self.next = self.wal.delivered();
        delivered.start_over(self.next);
        drop(delivered);
        self.reader = self.wal.reader(self.next);
        self.chunk = Chunk::default();
        self.chunk_waits = false;
        self.held = false;
        self.gather = None;
        self.missing = None;
        self.left_out = None;
        taken
    }
}
