//! Locks and threads: the standard ones, or with `--cfg loom` those of a model checker, which tries
//! the orders in which threads can meet. Its waits never time out, so a hand-over that only a
//! timeout would save ends as a deadlock there.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    thread::{Builder, JoinHandle},
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic::AtomicBool},
    thread::{Builder, JoinHandle},
};

use std::sync::PoisonError;

/// Locks; a thread that panicked with the lock held has left plain values behind, and a leader
/// that panicked has poisoned the log by its own means.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
