//! What a caller appends at once: some records and one annotation, which become exactly one frame.
//!
//! Records are written straight into the batch's buffer, so that a caller serialises each of them
//! once and nothing is copied on the way. The batch knows no positions: the log gives them out.

use std::convert::Infallible;
use std::fmt;

/// Raw bytes at which a batch is full: damage on the disk costs one frame, so frames stay small.
pub const BATCH_BYTES_MAX: usize = 128 * 1024;
/// The longest annotation.
pub const ANNOTATION_BYTES_MAX: usize = 64 * 1024;

/// Each record is preceded by its length, 32 bits.
pub(crate) const RECORD_PREFIX_BYTES: usize = 4;

/// Why a record did not go into a batch. The batch is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum PushError<E> {
    /// No room: append this batch and push the record to a new one, where it always fits.
    #[error("the batch is full")]
    BatchFull,
    /// The caller's own function failed.
    #[error("the record could not be written: {0}")]
    Write(E),
}

/// Records and an annotation on their way to one frame: at most [`BATCH_BYTES_MAX`], or one single
/// record up to the log's `max_record_bytes`. A batch with an annotation and no records is legal.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Batch {
    body: Vec<u8>,
    records: u32,
    record_bytes_largest: usize,
    annotation: Vec<u8>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch whose buffer already holds `bytes`, to spare the growing.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { body: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Lets `write` append one record's bytes to the buffer it is given; what the buffer holds
    /// already is not its business.
    ///
    /// # Errors
    /// [`PushError::BatchFull`]: append this batch and start another. [`PushError::Write`]: what
    /// `write` returned. Neither leaves a trace in the batch.
    ///
    /// # Panics
    /// If `write` shortens the buffer, because that destroys the records before it.
    pub fn push_with<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), PushError<E>> {
        let prefix_at = self.body.len();
        if prefix_at >= BATCH_BYTES_MAX {
            return Err(PushError::BatchFull);
        }
        self.body.extend_from_slice(&[0; RECORD_PREFIX_BYTES]);
        let record_at = self.body.len();
        if let Err(error) = write(&mut self.body) {
            self.body.truncate(prefix_at);
            return Err(PushError::Write(error));
        }
        assert!(self.body.len() >= record_at, "a record's writer may only append");
        let length = self.body.len() - record_at;
        let fits = self.records == 0 || self.body.len() <= BATCH_BYTES_MAX;
        let (Ok(stored_length), true) = (u32::try_from(length), fits) else {
            self.body.truncate(prefix_at);
            return Err(PushError::BatchFull);
        };
        if let Some(prefix) = self.body.get_mut(prefix_at..record_at) {
            prefix.copy_from_slice(&stored_length.to_le_bytes());
        }
        self.records += 1;
        self.record_bytes_largest = self.record_bytes_largest.max(length);
        Ok(())
    }

    /// Copies one record into the batch.
    ///
    /// # Errors
    /// [`PushError::BatchFull`]: append this batch and start another.
    pub fn push(&mut self, record: &[u8]) -> Result<(), PushError<Infallible>> {
        self.push_with(|buffer| {
            buffer.extend_from_slice(record);
            Ok(())
        })
    }

    /// Sets the annotation: opaque bytes that are stored beside the records and folded by the
    /// log's [`Carry`](crate::Carry). At most [`ANNOTATION_BYTES_MAX`]; a longer one is refused
    /// when the batch is appended.
    pub fn annotate(&mut self, annotation: &[u8]) {
        self.annotation.clear();
        self.annotation.extend_from_slice(annotation);
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records as usize
    }

    /// Whether it holds no records (it may still hold an annotation).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Raw bytes of the records with their lengths, before compression.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The annotation as set; empty if there is none.
    #[must_use]
    pub fn annotation(&self) -> &[u8] {
        &self.annotation
    }

    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    pub(crate) fn record_bytes_largest(&self) -> usize {
        self.record_bytes_largest
    }

    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.body, self.annotation)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads do not belong into logs and panic messages.
        f.debug_struct("Batch")
            .field("records", &self.records)
            .field("bytes", &self.body.len())
            .field("annotation_bytes", &self.annotation.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_does_not_fit_leaves_no_trace() {
        let mut batch = Batch::new();
        batch.push(&[1; 100_000]).unwrap();
        let before = batch.clone();
        assert!(matches!(batch.push(&[2; 40_000]), Err(PushError::BatchFull)));
        assert_eq!(batch, before);
        batch.push(&[3; 20_000]).unwrap();
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn a_failed_writer_leaves_no_trace() {
        let mut batch = Batch::new();
        batch.push(b"kept").unwrap();
        let before = batch.clone();
        let outcome = batch.push_with(|buffer| {
            buffer.extend_from_slice(b"half");
            Err("no")
        });
        assert!(matches!(outcome, Err(PushError::Write("no"))));
        assert_eq!(batch, before);
    }

    #[test]
    fn a_single_record_may_be_larger_than_a_full_batch() {
        let mut batch = Batch::new();
        batch.push(&vec![1; 3 * BATCH_BYTES_MAX]).unwrap();
        assert!(matches!(batch.push(b""), Err(PushError::BatchFull)));
        assert_eq!(batch.len(), 1);
    }

    #[test]
    fn empty_records_count() {
        let mut batch = Batch::new();
        batch.push(b"").unwrap();
        batch.push(b"").unwrap();
        assert_eq!((batch.len(), batch.bytes()), (2, 8));
    }
}
