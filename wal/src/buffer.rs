//! Bytes in memory that may be handed to the disk directly: they start on a block.
//!
//! Long groups lie in huge pages where the system has them, because a direct write pins every page
//! it is given: one page of 2 MiB instead of 512.

use memmap2::{Advice, MmapMut};

use crate::format::BLOCK;

/// Up to this, plain memory is as good.
const PLAIN_BYTES_MAX: usize = 128 * 1024;
/// Size of a huge page; a buffer that grew for a huge record is given back down to one.
const HUGE_BYTES: usize = 2 * 1024 * 1024;

/// Append-only bytes whose first one lies on a block boundary in memory, as direct writes demand.
#[derive(Debug, Default)]
pub(crate) struct BlockBuffer {
    /// For short contents; they begin at `start`.
    plain: Vec<u8>,
    start: usize,
    /// For long ones.
    huge: Option<MmapMut>,
    is_long: bool,
    length: usize,
}

impl BlockBuffer {
    /// Empties it and makes room for so many bytes; more than these must not be appended.
    pub fn reset(&mut self, bytes: usize) {
        self.length = 0;
        self.is_long = bytes > PLAIN_BYTES_MAX;
        if !self.is_long {
            self.plain.resize(bytes.saturating_add(BLOCK), 0);
            self.start = self.plain.as_ptr().align_offset(BLOCK);
            return;
        }
        let wanted = bytes.next_multiple_of(HUGE_BYTES);
        if self.huge.as_ref().is_none_or(|huge| huge.len() != wanted) {
            self.huge = None;
            let huge = MmapMut::map_anon(wanted).unwrap_or_else(|_| out_of_memory());
            // Only faster: without huge pages it works as well. Miri has no such call.
            if !cfg!(miri) {
                huge.advise(Advice::HugePage).ok();
            }
            self.huge = Some(huge);
        }
    }

    fn room(&mut self) -> &mut [u8] {
        let whole = match &mut self.huge {
            Some(huge) if self.is_long => huge.get_mut(..),
            Some(_) | None => self.plain.get_mut(self.start..),
        };
        whole.unwrap_or_default()
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let (at, end) = (self.length, self.length + bytes.len());
        let target = self.room().get_mut(at..end);
        debug_assert!(target.is_some(), "more than the room that was asked for");
        if let Some(target) = target {
            target.copy_from_slice(bytes);
            self.length = end;
        }
    }

    /// Appends zeros until it is so long.
    pub fn pad_to(&mut self, length: usize) {
        let at = self.length;
        let target = self.room().get_mut(at..length);
        debug_assert!(target.is_some(), "more than the room that was asked for");
        if let Some(target) = target {
            target.fill(0);
            self.length = length;
        }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn as_slice(&self) -> &[u8] {
        let whole = match &self.huge {
            Some(huge) if self.is_long => huge.get(..self.length),
            Some(_) | None => self.plain.get(self.start..self.start + self.length),
        };
        whole.unwrap_or_default()
    }

    /// Bytes of memory it holds.
    pub fn memory(&self) -> usize {
        self.plain.capacity() + self.huge.as_ref().map_or(0, |huge| huge.len())
    }
}

/// Like any other allocation that the system refuses.
fn out_of_memory() -> MmapMut {
    std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; HUGE_BYTES]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_lies_on_a_block_and_padding_is_zeros() {
        let mut buffer = BlockBuffer::default();
        for bytes in [1, 5000, PLAIN_BYTES_MAX, 200_000, 3 * HUGE_BYTES, 150_000, 10] {
            buffer.reset(bytes + 7);
            buffer.extend_from_slice(&vec![7; bytes]);
            buffer.pad_to(bytes + 7);
            assert_eq!(buffer.len(), bytes + 7);
            let (content, padding) = buffer.as_slice().split_at(bytes);
            assert_eq!(content, vec![7; bytes]);
            assert_eq!(padding, [0; 7]);
            assert_eq!(buffer.as_slice().as_ptr().align_offset(BLOCK), 0);
        }
        buffer.reset(200_000);
        assert!(buffer.memory() < 2 * HUGE_BYTES, "a huge buffer is given back");
    }
}
