//! The writer threads: each carries its share of requests to the store and brings the answers back.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use futures_util::stream::{FuturesUnordered, StreamExt};
use storage::{Store, StoreError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::deliver::UnitId;
use crate::gather::Unit;

/// A request's answer.
#[derive(Debug)]
pub struct Answer {
    /// The unit.
    pub unit: UnitId,
    /// What the store said.
    pub outcome: Result<(), StoreError>,
    /// The writer that sent it.
    pub writer: usize,
    /// Rows in it.
    pub rows: usize,
}

type Request = (UnitId, Arc<Unit>);

struct Writer {
    requests: mpsc::UnboundedSender<Request>,
    thread: JoinHandle<()>,
    in_flight: usize,
}

/// A fixed number of writer threads. How much is in flight is the machine's decision, not theirs.
pub struct Writers {
    writers: Vec<Writer>,
}

impl Writers {
    /// Starts `count` threads that answer through `answers`. An embedded store works on them; a remote one's driver
    /// works on `runtime` and they only wait. `cancelled` makes them give up what is in flight.
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn start(
        name: &str,
        count: usize,
        store: &Arc<dyn Store>,
        runtime: &tokio::runtime::Handle,
        answers: &Sender<Answer>,
        cancelled: &CancellationToken,
    ) -> std::io::Result<Self> {
        let mut writers = Vec::with_capacity(count);
        for index in 0..count {
            let (requests, incoming) = mpsc::unbounded_channel();
            let (store, runtime) = (Arc::clone(store), runtime.clone());
            let (answers, cancelled) = (answers.clone(), cancelled.clone());
            let thread = std::thread::Builder::new().name(format!("{name}-writer-{index}")).spawn(
                move || runtime.block_on(write(index, store, incoming, answers, cancelled)),
            )?;
            writers.push(Writer { requests, thread, in_flight: 0 });
        }
        Ok(Self { writers })
    }

    /// Hands a request to the writer with the least to do.
    pub fn send(&mut self, unit: UnitId, rows: Arc<Unit>) {
        if let Some(writer) = self.writers.iter_mut().min_by_key(|writer| writer.in_flight) {
            writer.in_flight = writer.in_flight.saturating_add(1);
            // A writer that is gone was cancelled: the rows stay in the log.
            drop(writer.requests.send((unit, rows)));
        }
    }

    /// Notes that a writer's request was answered.
    pub fn answered(&mut self, answer: &Answer) {
        if let Some(writer) = self.writers.get_mut(answer.writer) {
            writer.in_flight = writer.in_flight.saturating_sub(1);
        }
    }

    /// Lets the threads finish what they have, then ends them.
    pub fn stop(self) {
        for Writer { requests, thread, .. } in self.writers {
            drop(requests);
            if thread.join().is_err() {
                tracing::error!(code = "PANIC", "a writer thread panicked");
            }
        }
    }
}

/// Body of a writer. May be cancelled at any time: an unanswered request is an unacknowledged one.
async fn write(
    writer: usize,
    store: Arc<dyn Store>,
    mut requests: mpsc::UnboundedReceiver<Request>,
    answers: Sender<Answer>,
    cancelled: CancellationToken,
) {
    let mut in_flight = FuturesUnordered::new();
    let mut open = true;
    while open || !in_flight.is_empty() {
        tokio::select! {
            () = cancelled.cancelled() => return,
            request = requests.recv(), if open => match request {
                None => open = false,
                Some((unit, rows)) => {
                    let store = &store;
                    in_flight.push(async move {
                        let outcome = store.write(rows.as_write()).await;
                        Answer { unit, outcome, writer, rows: rows.rows() }
                    });
                }
            },
            Some(answer) = in_flight.next(), if !in_flight.is_empty() => {
                if answers.send(answer).is_err() {
                    return;
                }
            }
        }
    }
}
