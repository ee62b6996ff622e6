//! Rows and the stores that keep them. Knows neither Kafka nor the log.
//!
//! The contract of a [`Store`], which `tests/conformance.rs` checks for each of them:
//!
//! - Writing is idempotent: a row written twice, late, or in another order reads as if written once.
//!   For the same key the row with the higher write time stays. Of a definition's creation times the earliest stays.
//! - `Ok` means every row of the request is written; an error means *any* of them may be missing, so the caller
//!   sends all of them again. A time-out is never success.
//! - When [`Store::flush`] returns `Ok`, every write that returned `Ok` before it began survives a crash of this
//!   machine (embedded stores) or is acknowledged by as many replicas as configured (Cassandra).
//! - A replica may acknowledge before it is safe there, and lose that in a crash: [`Store::lives`] shows that it crashed.

pub mod cassandra;
pub mod certificate;
pub mod definitions;
pub mod error;
pub mod finding;
pub mod lives;
pub mod metric_id;
pub mod read;
pub mod rows;
pub mod sled_store;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

pub use error::{StoreError, Verdict};
pub use finding::{Finding, Grade};
pub use lives::NodeLife;
pub use metric_id::{IdScheme, MetricId};
pub use read::{
    MeasurementQuery, Read, SeriesFilter, StoredMeasurement, StoredSeries, StoredTransition,
    TransitionQuery,
};
pub use rows::{AlarmTransition, Definition, Dimension, Measurement, Run, Series, Stamp, Write};

/// A place where rows are kept.
pub trait Store: Send + Sync + 'static {
    /// Writes all rows of one request.
    ///
    /// # Errors
    /// Any of the rows may be missing; [`StoreError::verdict`] says what to do with all of them.
    fn write<'a>(&'a self, rows: Write<'a>) -> BoxFuture<'a, Result<(), StoreError>>;

    /// A number for the set of replicas that keeps the measurements of a series, as far as that is known now: rows of one
    /// set are worth sending together, and fail together. `None`: unknown, or there are no replicas. Cheap, and never
    /// asks anybody.
    fn replicas(&self, series: &MetricId) -> Option<u64> {
        let _ = series;
        None
    }

    /// Whether `Ok` from [`Store::write`] alone is not yet durable, so that the caller acknowledges rows to its log
    /// only after the next [`Store::flush`].
    fn needs_flush(&self) -> bool;

    /// Makes durable everything written so far. See the contract above.
    ///
    /// # Errors
    /// Nothing may be taken for durable; try again or keep the log.
    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Asks the store whether it would take rows now; cheap, and never answers from memory.
    ///
    /// # Errors
    /// Why it would not.
    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// What this store is, down to its tables: asked of it each time, and another one when the tables were dropped and
    /// created again. For who remembers what is in it.
    ///
    /// # Errors
    /// It cannot be asked now, or its tables are not all there.
    fn identity(&self) -> BoxFuture<'_, Result<String, StoreError>>;

    /// Which life each node of the store is in, of those that answer: for who keeps what a node that starts anew may have
    /// lost, although it was confirmed. Always empty where nothing confirmed can be lost, as in an embedded store.
    fn lives(&self) -> BoxFuture<'_, Vec<NodeLife>> {
        async { Vec::new() }.boxed()
    }

    /// Flushes and closes; later calls fail with [`Verdict::Retry`].
    ///
    /// # Errors
    /// As [`Store::flush`].
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
