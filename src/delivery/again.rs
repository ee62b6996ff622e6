//! When everything that is not acknowledged is to be gathered again: the store may have lost what it confirmed, or what
//! was set aside is wanted.

use std::time::Duration;

use wal::{Fs, WalError};

use super::Delivery;
use crate::deliver::Event;

impl<F: Fs> Delivery<F> {
    /// Forgets everything that is under way, and acknowledges nothing of it: the store may have lost what it confirmed.
    /// What is gathered from now on must have been read after the log took its acks back.
    ///
    /// # Errors
    /// As [`Delivery::gathered`].
    pub fn start_over(&mut self, now: Duration) -> Result<(), WalError> {
        self.pending_letters.clear();
        self.unflushed.clear();
        self.flushing.clear();
        self.elsewhere.start_over();
        self.machine.on(Event::StartOver, now, &mut self.effects);
        self.carry_out(now)
    }
}
