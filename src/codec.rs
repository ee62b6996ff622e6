//! The one place that names the serialisation library.
//!
//! Bytes are bincode 2's standard configuration (little-endian, variable-length integers) with a limit, decoded by
//! borrowing from the input. The format is fixed by golden bytes in [`crate::envelope`], so that replacing the
//! library means replacing this file.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;

/// Nothing longer than this is ever decoded: a record is limited before it is written.
pub const DECODED_BYTES_MAX: usize = 160 * 1024 * 1024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODED_BYTES_MAX>> =
    bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The value cannot be written.
    #[error("cannot encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are no such value.
    #[error("cannot decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
    /// The value ends before the bytes do.
    #[error("{0} bytes too many after the value")]
    TrailingBytes(usize),
}

/// Appends to bytes in memory, which cannot fail as a stream can.
struct Appending<'a>(&'a mut Vec<u8>);

impl Writer for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the bytes of `value` to `out`.
///
/// # Errors
/// [`CodecError::Encode`]; `out` may then hold a part of the value and must be cut back by the caller.
pub fn encode_into<T: bincode::Encode>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::encode_into_writer(value, Appending(out), CONFIG)?;
    Ok(())
}

/// Reads one value that fills `bytes` exactly, borrowing from them.
///
/// # Errors
/// [`CodecError::Decode`] or [`CodecError::TrailingBytes`]: the bytes were not written by [`encode_into`].
pub fn decode<'a, T: bincode::BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let (value, used) = bincode::borrow_decode_from_slice(bytes, CONFIG)?;
    match bytes.len().saturating_sub(used) {
        0 => Ok(value),
        trailing => Err(CodecError::TrailingBytes(trailing)),
    }
}
