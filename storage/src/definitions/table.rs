//! Many small entries in little memory: 20 bytes each, in sorted vectors that grow by an eighth.
//!
//! A hash table doubles: between 20 and 40 bytes for such an entry, and both tables at once while it grows. Here an
//! entry costs its bytes and at most an eighth more, and growing copies one part in 4,096. Digests spread evenly over
//! the parts, so that one of a million has about 250 entries: a search of eight steps and a short move.

use crate::metric_id::MetricId;

/// Bytes of a series' id that it is known by; see the module above for what that risks.
const KEY_BYTES: usize = 10;
/// Bytes of an entry in a cache.
pub(super) const ENTRY_BYTES: usize = KEY_BYTES + 2 + 4 + 4;
/// Parts; the first twelve bits of a key say which.
const PARTS: usize = 4096;

/// What is remembered of one definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub(super) key: [u8; KEY_BYTES],
    /// Seconds between stamp and confirmation, rounded down.
    pub(super) late_s: u16,
    /// What the definition was stamped with: seconds since 1970, rounded down.
    pub(super) written_s: u32,
    /// When the series was first written.
    pub(super) created_s: u32,
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

/// What stands for a series.
pub(super) fn key(id: &MetricId) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    for (to, from) in key.iter_mut().zip(id.as_bytes()) {
        *to = *from;
    }
    key
}

impl Entry {
    /// When it was confirmed: seconds since 1970, rounded up.
    pub(super) fn confirmed_s(&self) -> i64 {
        i64::from(self.written_s).saturating_add(i64::from(self.late_s)).saturating_add(1)
    }

    /// Key, then three little-endian numbers.
    pub(super) fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(&self.late_s.to_le_bytes());
        bytes.extend_from_slice(&self.written_s.to_le_bytes());
        bytes.extend_from_slice(&self.created_s.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (late_s, rest) = rest.split_first_chunk()?;
        let (written_s, rest) = rest.split_first_chunk()?;
        let (created_s, _) = rest.split_first_chunk()?;
        Some(Self {
            key: *key,
            late_s: u16::from_le_bytes(*late_s),
            written_s: u32::from_le_bytes(*written_s),
            created_s: u32::from_le_bytes(*created_s),
        })
    }
}

/// Entries by key.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// None until the first entry.
    parts: Vec<Vec<Entry>>,
    len: usize,
}

fn part_of(key: &[u8; KEY_BYTES]) -> usize {
    let [first, second, ..] = *key;
    (usize::from(first) << 4) | (usize::from(second) >> 4)
}

/// Where the key is in its part, or belongs.
fn place_in(part: &[Entry], key: &[u8; KEY_BYTES]) -> Result<usize, usize> {
    part.binary_search_by_key(&number(key), |entry| number(&entry.key))
}

/// The key as numbers of the same order: compared in two instructions instead of byte by byte.
fn number(key: &[u8; KEY_BYTES]) -> (u64, u16) {
    let [a, b, c, d, e, f, g, h, i, j] = *key;
    (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u16::from_be_bytes([i, j]))
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        let parts = self.parts.capacity().saturating_mul(size_of::<Vec<Entry>>());
        self.parts.iter().fold(parts, |bytes, part| {
            bytes.saturating_add(part.capacity().saturating_mul(ENTRY_BYTES))
        })
    }

    pub(super) fn get(&self, key: &[u8; KEY_BYTES]) -> Option<Entry> {
        let part = self.parts.get(part_of(key))?;
        let at = place_in(part, key).ok()?;
        part.get(at).copied()
    }

    /// Adds it or replaces the one with its key.
    pub(super) fn insert(&mut self, entry: Entry) {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, Vec::new);
        }
        let Some(part) = self.parts.get_mut(part_of(&entry.key)) else { return };
        match place_in(part, &entry.key) {
            Ok(at) => {
                if let Some(known) = part.get_mut(at) {
                    *known = entry;
                }
            }
            Err(at) => {
                if part.len() == part.capacity() {
                    part.reserve_exact((part.len() / 8).max(2));
                }
                part.insert(at, entry);
                self.len = self.len.saturating_add(1);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8; KEY_BYTES]) {
        let Some(part) = self.parts.get_mut(part_of(key)) else { return };
        if let Ok(at) = place_in(part, key) {
            part.remove(at);
            self.len = self.len.saturating_sub(1);
        }
    }

    /// Gives back the memory of what goes.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) {
        for part in &mut self.parts {
            let before = part.len();
            part.retain(&mut keep);
            let gone = before.saturating_sub(part.len());
            if gone > 0 {
                part.shrink_to(part.len().saturating_add(part.len() / 8));
                self.len = self.len.saturating_sub(gone);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.parts.iter().flatten()
    }
}
