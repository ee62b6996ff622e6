//! How a series gets its id: three schemes, each written by some persister, byte for byte.
//!
//! | scheme | bytes hashed | digest |
//! |---|---|---|
//! | `sha256` | region, tenant, name, each followed by NUL, then `name TAB value` of each dimension joined by NUL | SHA-256 |
//! | `sha1-nul` | the same | SHA-1 |
//! | `sha1-concat` | region, tenant, name, then name and value of each dimension, without separators | SHA-1 |
//!
//! A site keeps the scheme of the persister it had; with another one every series would get a second id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// Longest digest.
const BYTES_MAX: usize = 32;

/// A scheme of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum IdScheme {
    /// For new keyspaces.
    #[default]
    #[serde(rename = "sha256")]
    Sha256,
    /// Every released Python persister.
    #[serde(rename = "sha1-nul")]
    Sha1Nul,
    /// The Java persister.
    #[serde(rename = "sha1-concat")]
    Sha1Concat,
}

impl IdScheme {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha1Nul, Self::Sha1Concat];

    /// Its name in configuration and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha1Nul => "sha1-nul",
            Self::Sha1Concat => "sha1-concat",
        }
    }
}

impl fmt::Display for IdScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for IdScheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.name() == name)
            .ok_or_else(|| format!("`{name}` is none of sha256, sha1-nul, sha1-concat"))
    }
}

/// Id of a series: 20 or 32 bytes, held in place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetricId {
    bytes: [u8; BYTES_MAX],
    length: u8,
}

impl MetricId {
    /// The bytes as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// Reads what [`MetricId`]'s `Display` wrote.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) || digits.len() > 2 * BYTES_MAX {
            return None;
        }
        let mut bytes = Vec::with_capacity(BYTES_MAX);
        for pair in digits.chunks(2) {
            let pair = std::str::from_utf8(pair).ok()?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
        }
        Self::try_from(bytes.as_slice()).ok()
    }
}

impl TryFrom<&[u8]> for MetricId {
    type Error = String;

    /// # Errors
    /// Empty, or longer than any digest.
    fn try_from(from: &[u8]) -> Result<Self, String> {
        let mut bytes = [0; BYTES_MAX];
        match (bytes.get_mut(..from.len()), u8::try_from(from.len())) {
            (Some(place), Ok(length)) if length > 0 => {
                place.copy_from_slice(from);
                Ok(Self { bytes, length })
            }
            _ => Err(format!("a metric id has 1 to {BYTES_MAX} bytes, not {}", from.len())),
        }
    }
}

impl fmt::Display for MetricId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MetricId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MetricId({self})")
    }
}

impl Serialize for MetricId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The id of a series. `dimensions` are sorted by name.
pub fn metric_id<'a>(
    scheme: IdScheme,
    region: &str,
    tenant_id: &str,
    name: &str,
    dimensions: impl Iterator<Item = (&'a str, &'a str)>,
) -> MetricId {
    match scheme {
        IdScheme::Sha256 => {
            digest(Sha256::new(), |hash| with_nul(hash, region, tenant_id, name, dimensions))
        }
        IdScheme::Sha1Nul => {
            digest(Sha1::new(), |hash| with_nul(hash, region, tenant_id, name, dimensions))
        }
        IdScheme::Sha1Concat => digest(Sha1::new(), |hash| {
            for part in [region, tenant_id, name] {
                hash.update(part);
            }
            for (name, value) in dimensions {
                hash.update(name);
                hash.update(value);
            }
        }),
    }
}

fn with_nul<'a, H: sha1::Digest>(
    hash: &mut H,
    region: &str,
    tenant_id: &str,
    name: &str,
    dimensions: impl Iterator<Item = (&'a str, &'a str)>,
) {
    for part in [region, tenant_id, name] {
        hash.update(part);
        hash.update(b"\0");
    }
    for (index, (name, value)) in dimensions.enumerate() {
        if index > 0 {
            hash.update(b"\0");
        }
        hash.update(name);
        hash.update(b"\t");
        hash.update(value);
    }
}

fn digest<H: sha1::Digest>(mut hash: H, feed: impl FnOnce(&mut H)) -> MetricId {
    feed(&mut hash);
    let digest = hash.finalize();
    let mut id = MetricId { bytes: [0; BYTES_MAX], length: 0 };
    for (place, byte) in id.bytes.iter_mut().zip(digest.iter()) {
        *place = *byte;
        id.length = id.length.saturating_add(1);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(scheme: IdScheme, dimensions: &[(&str, &str)]) -> String {
        metric_id(scheme, "RegionOne", "tenant", "cpu.idle_perc", dimensions.iter().copied())
            .to_string()
    }

    // Expected values computed with Python's hashlib from the rules above.
    #[test]
    fn ids_with_two_dimensions_are_those_of_the_older_persisters() {
        assert_eq!(
            hex(IdScheme::Sha256, &[("hostname", "node-1"), ("service", "ünï")]),
            "2d9f54c6890d95de0c3f0aa5f1661990984e90b3bd90fdc3dfb5dce4de3da3ad"
        );
        assert_eq!(
            hex(IdScheme::Sha1Nul, &[("hostname", "node-1"), ("service", "ünï")]),
            "7717f02fc5336f5df2e5e8497a3860b1968942b0"
        );
        assert_eq!(
            hex(IdScheme::Sha1Concat, &[("hostname", "node-1"), ("service", "ünï")]),
            "d2351471e2f58901daa6272cbedb9e080704cb0f"
        );
    }

    #[test]
    fn ids_with_no_dimensions_are_those_of_the_older_persisters() {
        assert_eq!(
            hex(IdScheme::Sha256, &[]),
            "e55b6336c81b70a8e2b179de29b54983aa9ee961c8a3b1d511df01ef0a8fcf35"
        );
        assert_eq!(hex(IdScheme::Sha1Nul, &[]), "627b2d77898d59376d854625d8f1708861212aab");
        assert_eq!(hex(IdScheme::Sha1Concat, &[]), "eb877298ac7c62d631deb36492bc454a23107cc3");
    }

    #[test]
    fn hexadecimal_reads_back() {
        let id = metric_id(IdScheme::Sha1Nul, "r", "t", "n", std::iter::empty());
        assert_eq!(MetricId::from_hex(&id.to_string()), Some(id));
        for wrong in ["", "0", "zz", &"00".repeat(33)] {
            assert_eq!(MetricId::from_hex(wrong), None, "{wrong}");
        }
    }
}
