//! State that must outlive the segments it came from.
//!
//! A segment is deleted once its records are delivered, but what the annotations said (for the
//! persister: which upstream offset comes next) is still needed. The user of the log folds them
//! into a carry, and every new segment begins with a copy of it. The log never looks inside.

/// Opaque state folded over the annotations, in log order.
pub trait Carry: Send {
    /// Folds in the next annotation. After a crash it may see one annotation again, so folding
    /// must be idempotent.
    fn absorb(&mut self, annotation: &[u8]);

    /// The state as bytes, at most 64 KiB ([`CARRY_BYTES_MAX`]): a longer one stops the log at the
    /// next change of segment, because the state could not be kept.
    fn save(&self) -> Vec<u8>;

    /// Replaces the state by a saved one.
    ///
    /// # Errors
    /// Says why the bytes are not understood; the log then refuses to open and changes nothing.
    fn load(&mut self, saved: &[u8]) -> Result<(), String>;
}

/// The longest saved carry.
pub const CARRY_BYTES_MAX: usize = 64 * 1024;

/// For logs whose annotations need not outlive their segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCarry;

impl Carry for NoCarry {
    fn absorb(&mut self, _annotation: &[u8]) {}

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(&mut self, _saved: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
