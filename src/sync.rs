//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder cannot have left half-done work: a panic in a core task ends the process.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
