//! What one file turns out to be: by its header, else by its link, else by its frames.

use std::io;

use crate::error::WalError;
use crate::format::frame::FrameKind;
use crate::format::link::Link;
use crate::format::segment::SegmentHeader;
use crate::format::{Malformed, SEGMENT_HEADER_BYTES};
use crate::fs::{Access, Fs, FsFile};
use crate::position::{LogId, Position, SegmentNumber};
use crate::remains;
use crate::salvage::FlawReason;
use crate::salvage::inventory::SegmentEntry;
use crate::salvage::patient::Patient;
use crate::segment::read_start;
use crate::walk::{Step, Walk};

/// What a file turned out to be.
pub(super) enum Identity {
    Segment(Box<Identified>),
    /// A whole header, and no frame.
    HeaderOnly(SegmentNumber),
    Nothing(Malformed),
}

pub(super) struct Identified {
    pub entry: SegmentEntry,
    pub log_id: Option<LogId>,
    /// And the watermark in its frame.
    pub link: Option<(Link, Position)>,
    pub flaws: Vec<(u64, FlawReason)>,
}

/// Header, link and first frame; `None` if the file has gone since it was listed.
pub(super) fn identify<F: Fs>(
    fs: &F,
    name: &str,
    named: SegmentNumber,
) -> Result<Option<Identity>, WalError> {
    let failed = |error| WalError::io("read", fs.path_of(name), error);
    let file = match fs.open(name, Access::Read) {
        Ok(file) => Patient::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(WalError::io("open", fs.path_of(name), error)),
    };
    let bytes = file.len().map_err(failed)?;
    let start = read_start(&file, SEGMENT_HEADER_BYTES).map_err(failed)?;
    let mut flaws = Vec::new();
    let header = match SegmentHeader::decode(&start) {
        Ok(header) => Some(header),
        Err(Malformed::Newer(found)) => return Err(WalError::newer(fs.path_of(name), found)),
        Err(reason) => {
            let unreadable = file.unreadable(0, SEGMENT_HEADER_BYTES);
            let bytes = FlawReason::Bytes(reason);
            flaws.push((0, if unreadable { FlawReason::Unreadable } else { bytes }));
            None
        }
    };
    let nonce = match &header {
        Some((header, _)) => header.nonce,
        None => match remains::first_nonce(&file, bytes).map_err(failed)? {
            Some(nonce) => nonce,
            None => {
                let reason = SegmentHeader::decode(&start).err().unwrap_or(Malformed::Zeros);
                return Ok(Some(Identity::Nothing(reason)));
            }
        },
    };
    let header_crc = header.as_ref().map(|(_, crc)| *crc);
    let mut walk =
        Walk::new(file, nonce, SEGMENT_HEADER_BYTES, header_crc, None, bytes).first_frame_only();
    let mut first = None;
    let mut link = None;
    loop {
        match walk.next().map_err(failed)? {
            Step::Damage { at, reason } => flaws.push((at, FlawReason::Bytes(reason))),
            Step::End => break,
            Step::Frame(found) if found.header.kind == FrameKind::Link => {
                match walk.bytes(&found).map_err(failed)?.body.and_then(Link::decode) {
                    Ok(whole) => link = Some((whole, found.header.durable)),
                    Err(reason) => flaws.push((found.at, FlawReason::Bytes(reason))),
                }
                first.get_or_insert(found.header.first);
                if link.is_some() {
                    break;
                }
                // With nothing else behind it, its write was cut: it was never in use.
                if header.is_some() && !walk.meets_a_frame().map_err(failed)? {
                    first = None;
                }
                break;
            }
            Step::Frame(found) => {
                first = Some(found.header.first);
                break;
            }
        }
    }
    let number = header.as_ref().map(|(header, _)| header.number);
    let number = number.or(link.as_ref().map(|(link, _)| link.number)).unwrap_or(named);
    let Some(base) = first else {
        return Ok(Some(match &header {
            Some(_) => Identity::HeaderOnly(number),
            None => Identity::Nothing(Malformed::Zeros),
        }));
    };
    if number != named {
        flaws.push((0, FlawReason::OtherSegment(number)));
    }
    let header = header.map(|(header, _)| header);
    let of_link = link.as_ref().map(|(link, _)| link.incarnation);
    let incarnation = of_link.or(header.map(|header| header.incarnation)).unwrap_or_default();
    let entry = SegmentEntry {
        number,
        incarnation,
        base,
        last: None,
        bytes,
        created_ms: header.map(|header| header.created_ms),
        carry: link.as_ref().map(|(link, _)| link.carry.clone()),
        file: name.to_owned(),
        nonce,
        header_crc,
        recycled: header.is_none_or(|header| header.recycled),
        end: None,
    };
    let log_id = header.map(|header| header.log_id);
    Ok(Some(Identity::Segment(Box::new(Identified { entry, log_id, link, flaws }))))
}
