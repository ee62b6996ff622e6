//! Bytes in memory that may be handed to the disk directly: they start on a block.

use crate::format::BLOCK;

/// A buffer that grew for a huge record is given back down to this.
const BYTES_KEPT: usize = 2 * 1024 * 1024;

/// Append-only bytes whose first one lies on a block boundary in memory, as direct writes demand.
#[derive(Debug, Default)]
pub(crate) struct BlockBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl BlockBuffer {
    /// Empties it and makes room, so that [`out`](Self::out) can take this much without moving.
    pub fn reset(&mut self, bytes: usize) {
        self.bytes.clear();
        if self.bytes.capacity() > BYTES_KEPT && bytes < BYTES_KEPT {
            self.bytes = Vec::new();
        }
        self.bytes.reserve(bytes.saturating_add(BLOCK));
        self.start = self.bytes.as_ptr().align_offset(BLOCK);
        self.bytes.resize(self.start, 0);
    }

    /// Where to append, and how many bytes in it come before the first one of ours.
    pub fn out(&mut self) -> (&mut Vec<u8>, usize) {
        (&mut self.bytes, self.start)
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_stays_on_a_block() {
        let mut buffer = BlockBuffer::default();
        for bytes in [1, 5000, 100_000, 3 * BYTES_KEPT, 10] {
            buffer.reset(bytes);
            let (out, start) = buffer.out();
            out.extend(std::iter::repeat_n(7, bytes));
            assert_eq!(out.len(), start + bytes);
            assert_eq!(buffer.as_slice(), vec![7; bytes]);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(BLOCK), 0);
        }
        assert!(buffer.bytes.capacity() < BYTES_KEPT, "a huge buffer is given back");
    }
}
