//! Opening a log after whatever happened. A decision table with one arm per row.
//!
//! W is the highest proof of durability found anywhere: the watermark in a valid frame (also one
//! beyond a damaged spot), the CURSOR, a link. L is the first position that cannot be read. Only
//! the newest segment is read in full; the end of every other one stands in the link after it.
//!
//! ```text
//!     found                                   done
//! A   no segment, no CURSOR                   a new log
//! B   L = W, nothing behind                   clean end: go on at L
//! C   L >= W, something unreadable behind     torn tail: the log ends at L, its bytes are counted
//! D   whole records between W and L           unproven (perhaps only in the page cache): appended
//!                                             again, same positions, synced before open returns
//! E   unreadable before W, valid frames       damage: gap; go on with the next valid frame
//!     after it
//! F   unreadable before W, nothing after it   the acknowledged end is lost: gap up to W, new
//!     (or after a lost newest segment only    records begin at W
//!     what this one does not prove itself)
//! G   a link names a segment that is not      missing segment: gap between its neighbours, unless
//!     there                                   all of it was delivered
//! H   CURSOR, but no segment                  everything is lost: gap from delivered to durable
//! I   one CURSOR slot unreadable              the other counts: some records come twice
//! J   no CURSOR slot readable, segments       everything in the segments is delivered again
//! K   rotten header or link                   the other one makes up for it; the carry is folded
//!                                             anew from the segment before
//! L   a segment that a later link passes      what an interrupted recovery or an unfinished
//!     over, or older than a reclaimed one;    reclaim left, or what was prepared and never used:
//!     a header without anything behind it     removed
//! M   a newer format version                  refused, nothing touched
//! N   the directory is locked                 refused, nothing touched
//! O   another log's segment                   refused, nothing touched
//! ```
//!
//! Files with damage that was acknowledged are kept in `quarantine/` as well, for whoever wants to
//! look; they count against the quota once their segment is gone.
//!
//! What was read of the CURSOR is written again as well, for the same reason as row D.
//!
//! A start never writes to an old file. The new segment is made whole under another name, and only
//! its renaming changes what the log is, so that a crash at any point of recovery leaves either
//! the old state or the new one. A read error is never taken for the end of the log: it is returned.

mod lineage;
mod tail;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use crate::carry::{CARRY_BYTES_MAX, Carry};
use crate::checkpoint::CursorFile;
use crate::commit::GROUP_BYTES_MAX;
use crate::cursor::Acks;
use crate::error::WalError;
use crate::format::link::{HISTORY_MAX, Link, Resumed, SegmentEnd};
use crate::format::slot::Slot;
use crate::format::{CURSOR_NAME, UNFINISHED_SUFFIX, segment_name};
use crate::frame::Frame;
use crate::fs::{Access, Fs, FsFile, write_all_at};
use crate::position::{Incarnation, LogId, Position, SegmentNumber};
use crate::segment::{self, Fault, NewSegment, SegmentInfo, Writer};
use crate::survey::{Damage, Head, Met, Survey, read_content, survey};
use lineage::{delivered_floor, lineage, noted_floor};
use tail::{Tail, nothing_left, read_tail};

/// A row of the table above that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryRow {
    /// A.
    NewLog,
    /// B.
    CleanEnd,
    /// C.
    TornTail,
    /// D.
    Unproven,
    /// E.
    Damaged,
    /// F.
    LostEnd,
    /// G.
    MissingSegment,
    /// H.
    LostEverything,
    /// I.
    CursorSlotBad,
    /// J.
    CursorLost,
    /// K.
    RottenHead,
    /// L.
    Superseded,
}

/// Acknowledged positions that are not in the log any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The positions.
    pub range: Range<Position>,
    /// The row that found them.
    pub row: RecoveryRow,
}

/// What opening the log found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The log.
    pub log_id: LogId,
    /// This opening.
    pub incarnation: Incarnation,
    /// The rows met, in the order of their discovery.
    pub rows: Vec<RecoveryRow>,
    /// W: everything before it had been proven durable before this opening.
    pub proven: Position,
    /// Where the log ends and goes on; all of it is durable now.
    pub end: Position,
    /// Everything before it was acked.
    pub delivered: Position,
    /// Records that were appended again because their durability was unproven.
    pub reappended_records: u64,
    /// Bytes behind the end of the log in the newest segment.
    pub torn_bytes: u64,
    /// Acknowledged positions beyond *delivered* that cannot be read. Damage in older segments
    /// shows when a reader comes to it.
    pub gaps: Vec<Gap>,
    /// Where bytes are not what they should be. The files are kept.
    pub damage: Vec<Damage>,
    /// Files that were removed because nothing in them counts.
    pub removed_files: Vec<String>,
}

/// An open log's parts.
pub(crate) struct Opened<F: Fs> {
    pub log_id: LogId,
    pub writer: Writer<F::File>,
    pub segments: VecDeque<SegmentInfo>,
    pub acks: Acks,
    pub cursor: CursorFile<F::File>,
    pub history: Vec<Resumed>,
    pub quarantined: Vec<(String, u64)>,
    pub report: RecoveryReport,
}

/// Row N.
pub(crate) fn lock<F: Fs>(fs: &F) -> Result<F::Lock, WalError> {
    match fs.try_lock() {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(WalError::Locked { path: fs.path_of("LOCK") }),
        Err(error) => Err(WalError::io("lock", fs.path_of("LOCK"), error)),
    }
}

pub(crate) fn open<F: Fs>(fs: &F, carry: &mut dyn Carry) -> Result<Opened<F>, WalError> {
    // Rows M and O.
    let survey = survey(fs)?;
    let mut report = RecoveryReport {
        log_id: LogId::default(),
        incarnation: Incarnation::default(),
        rows: Vec::new(),
        proven: Position::ZERO,
        end: Position::ZERO,
        delivered: Position::ZERO,
        reappended_records: 0,
        torn_bytes: 0,
        gaps: Vec::new(),
        damage: survey.damage.clone(),
        removed_files: Vec::new(),
    };
    let slot = survey.best_slot().map(|(_, slot)| slot.clone());
    let mut delivered = delivered_floor(&survey, &mut report);
    let lineage = lineage(fs, &survey, delivered)?;
    for row in [RecoveryRow::MissingSegment, RecoveryRow::LostEnd] {
        if lineage.gaps.iter().any(|gap| gap.row == row) {
            report.rows.push(row);
        }
    }
    report.gaps.extend(lineage.gaps);
    if let (None, Some(oldest)) = (&slot, lineage.kept.first()) {
        delivered = delivered.max(oldest.base);
    }
    if survey.heads.iter().any(|head| head.header.is_none() || head.linked.is_none()) {
        report.rows.push(RecoveryRow::RottenHead);
    }
    let newest = lineage.kept.last().map(|newest| newest.number);
    // A later one follows: damage, which the survey has told.
    let told = |number: &SegmentNumber| report.damage.iter().any(|at| at.segment == *number);
    let unused: Vec<SegmentNumber> =
        survey.unused.iter().copied().filter(|number| !told(number)).collect();
    if !lineage.superseded.is_empty() || unused.iter().any(|number| Some(*number) < newest) {
        report.rows.push(RecoveryRow::Superseded);
    }

    let known = slot.as_ref().filter(|_| !bug!(IgnoreCursorProof));
    let proof = known.map_or(Position::ZERO, |slot| slot.durable);
    let mut segments: VecDeque<SegmentInfo> = lineage.kept.into();
    let newest = segments.back().cloned();
    let tail = match &newest {
        Some(newest) => {
            let durable = head_of(&survey, newest.number)
                .and_then(|head| head.linked.as_ref())
                .map_or(Position::ZERO, |linked| linked.durable);
            let content = read_content(fs, newest, newest.bytes)?;
            let followed = known.is_some_and(|slot| slot.segment > newest.number);
            read_tail(newest, content, proof.max(durable), followed, &mut report)
        }
        None => nothing_left(proof, delivered, &survey, &mut report),
    };
    load_carry(fs, &survey, &segments, &tail, carry)?;

    // What makes the new segment.
    let number = survey.highest.max(slot.as_ref().map_or(survey.highest, |slot| slot.segment));
    let incarnation = next_incarnation(&survey, slot.as_ref(), number);
    let log_id = match known_log_id(&survey, slot.as_ref()) {
        Some(log_id) => log_id,
        None => new_log_id(fs)?,
    };
    let newest_link = newest
        .as_ref()
        .and_then(|newest| head_of(&survey, newest.number))
        .and_then(|head| head.linked.as_ref());
    let mut superseded = lineage.superseded;
    superseded.extend(unused.into_iter().map(segment_name));
    let (predecessor, predecessor_end) = match (&newest, newest_link) {
        // Nothing in it counts: the new segment takes its place.
        (Some(newest), Some(linked)) if !tail.used && tail.end.position == newest.base => {
            superseded.push(segment_name(newest.number));
            segments.pop_back();
            (linked.link.predecessor, linked.link.predecessor_end)
        }
        (Some(newest), _) => {
            if let Some(last) = segments.back_mut() {
                last.end = Some(tail.end);
            }
            (newest.number, tail.end)
        }
        (None, _) => (SegmentNumber::NONE, SegmentEnd::default()),
    };
    let history = history_with(&survey, Resumed { incarnation, at: tail.intact_end });
    let saved = carry.save();
    if saved.len() > CARRY_BYTES_MAX {
        return Err(WalError::CarryRefused {
            segment: number,
            reason: format!("its {} bytes do not fit into {CARRY_BYTES_MAX}", saved.len()),
        });
    }
    // Acks may be taken back that far.
    let floor = segments.front().map_or(delivered, |oldest| oldest.base);
    let floor = floor.max(noted_floor(&survey)).min(delivered);
    let link = Link {
        number: number.next(),
        incarnation,
        predecessor,
        predecessor_end,
        delivered: floor,
        history: history.clone(),
        carry: saved,
    };
    let base = tail.unproven.first().map_or(tail.resume, |met| met.frame.header.first);
    let new = NewSegment { log_id, base, durable: base };
    let mut writer = segment::create(fs, new, &link)?;
    for met in &tail.unproven {
        if let Some(annotation) = met.annotation() {
            carry.absorb(annotation);
        }
    }
    if let Some(newest) = &newest {
        copy(fs, newest, &tail.unproven, &mut writer)?;
        report.reappended_records =
            tail.unproven.iter().map(|met| u64::from(met.frame.header.records)).sum();
    }
    let cursor = open_cursor(fs, &survey)?;
    for segment in &mut segments {
        segment.damaged = report.damage.iter().any(|at| at.segment == segment.number);
    }
    quarantine(fs, &report, &superseded);
    // From here on the log is the new one.
    segment::publish(fs, &mut writer)?;
    segments.push_back(writer.info.clone());

    remove(fs, superseded.into_iter().chain(survey.unfinished.iter().cloned()), &mut report)?;
    report.log_id = log_id;
    report.incarnation = incarnation;
    report.proven = tail.proven;
    report.end = writer.stands.position;
    report.torn_bytes = tail.torn_bytes;
    report.delivered = delivered;
    for gap in &mut report.gaps {
        gap.range.start = gap.range.start.max(delivered);
    }
    report.gaps.retain(|gap| gap.range.start < gap.range.end);
    let ranges = slot.map(|slot| slot.ranges).unwrap_or_default();
    let acks = Acks::new(floor, delivered, ranges);
    report.delivered = acks.delivered();
    let quarantined =
        fs.quarantined().map_err(|error| WalError::io("list", fs.path_of("quarantine"), error))?;
    for segment in &mut segments {
        let name = segment_name(segment.number);
        segment.damaged |= quarantined.iter().any(|(kept, _)| *kept == name);
    }
    Ok(Opened { log_id, writer, segments, acks, cursor, history, quarantined, report })
}

/// Keeps copies of what is damaged. A convenience: what cannot be kept is told all the same.
fn quarantine<F: Fs>(fs: &F, report: &RecoveryReport, removed: &[String]) {
    for damage in &report.damage {
        fs.quarantine(&segment_name(damage.segment)).ok();
    }
    // The end is lost, and these may have been it.
    if report.rows.contains(&RecoveryRow::LostEnd) {
        for name in removed {
            fs.quarantine(name).ok();
        }
    }
}

fn head_of(survey: &Survey, number: SegmentNumber) -> Option<&Head> {
    survey.heads.iter().find(|head| head.info.number == number)
}

/// One more than any that can have been: every opening makes a segment, so there were at most as
/// many openings after the newest readable segment as there are numbers after it.
fn next_incarnation(survey: &Survey, slot: Option<&Slot>, highest: SegmentNumber) -> Incarnation {
    let of_heads = survey.heads.iter().map(|head| (head.info.incarnation, head.info.number));
    let (known, number) =
        of_heads.chain(slot.map(|slot| (slot.incarnation, slot.segment))).max().unwrap_or_default();
    let unread = highest.get().saturating_sub(number.get());
    let last = Incarnation::new(known.get().saturating_add(unread));
    if bug!(SameIncarnation) && last > Incarnation::default() { last } else { last.next() }
}

fn known_log_id(survey: &Survey, slot: Option<&Slot>) -> Option<LogId> {
    slot.map(|slot| slot.log_id).or_else(|| survey.heads.iter().rev().find_map(|head| head.log_id))
}

fn history_with(survey: &Survey, resumed: Resumed) -> Vec<Resumed> {
    let newest_link = survey.heads.iter().rev().find_map(|head| head.linked.as_ref());
    let mut history = newest_link.map_or_else(Vec::new, |linked| linked.link.history.clone());
    history.push(resumed);
    if history.len() > HISTORY_MAX {
        history.remove(0);
    }
    history
}

/// The carry at the end of what stays in old files. Usually the newest link has it; where links
/// are rotten, it is folded from the newest readable one on.
fn load_carry<F: Fs>(
    fs: &F,
    survey: &Survey,
    segments: &VecDeque<SegmentInfo>,
    tail: &Tail,
    carry: &mut dyn Carry,
) -> Result<(), WalError> {
    let link_of = |segment: &SegmentInfo| {
        head_of(survey, segment.number).and_then(|head| head.linked.as_ref())
    };
    let from = segments.iter().rposition(|segment| link_of(segment).is_some());
    if let Some(linked) = from.and_then(|index| segments.get(index)).and_then(link_of) {
        carry
            .load(&linked.link.carry)
            .map_err(|reason| WalError::CarryRefused { segment: linked.link.number, reason })?;
    }
    let older = segments.iter().skip(from.unwrap_or(0)).filter(|segment| segment.is_finished());
    for segment in older {
        let limit = segment.end.map_or(segment.bytes, |end| end.byte);
        for met in read_content(fs, segment, limit)?.met {
            if let Some(annotation) = met.annotation() {
                carry.absorb(annotation);
            }
        }
    }
    let annotations = if bug!(ForgetAnnotations) { &[][..] } else { &tail.annotations };
    for annotation in annotations.iter().filter(|annotation| !annotation.is_empty()) {
        carry.absorb(annotation);
    }
    Ok(())
}

fn new_log_id<F: Fs>(fs: &F) -> Result<LogId, WalError> {
    let mut bytes = [0; 16];
    fs.entropy(&mut bytes)
        .map_err(|error| WalError::io("draw an id for the log in", fs.path_of("."), error))?;
    Ok(LogId::new(bytes))
}

/// Row D: the frames as they are, to the new segment.
fn copy<F: Fs>(
    fs: &F,
    from: &SegmentInfo,
    unproven: &[Met],
    writer: &mut Writer<F::File>,
) -> Result<(), WalError> {
    if unproven.is_empty() {
        return Ok(());
    }
    let name = segment_name(from.number);
    let failed = |error| WalError::io("read", fs.path_of(&name), error);
    let file = fs.open(&name, Access::Read).map_err(failed)?;
    let target = segment_name(writer.info.number);
    let durable = writer.stands.position;
    let mut group = Vec::new();
    let mut group_bytes = 0;
    for (index, met) in unproven.iter().enumerate() {
        let header = met.frame.header;
        let mut bytes = vec![0; crate::format::to_usize(header.frame_bytes())];
        crate::fs::read_full_at(&file, met.frame.at, &mut bytes).map_err(failed)?;
        let rest = bytes.split_off(crate::format::frame::FRAME_HEADER_BYTES);
        let (annotation, body) =
            rest.split_at_checked(header.annotation_bytes as usize).unwrap_or_default();
        let frame = Frame::copied(&header, annotation.to_vec(), body.to_vec());
        group_bytes += frame.bytes();
        group.push(frame);
        if group_bytes >= GROUP_BYTES_MAX || index + 1 == unproven.len() {
            writer
                .append(&group, durable)
                .map_err(|error| WalError::io("write", fs.path_of(&target), error))?;
            group.clear();
            group_bytes = 0;
        }
    }
    Ok(())
}

/// The CURSOR, made whole before the first segment exists, so that checkpoints need no new space.
fn open_cursor<F: Fs>(fs: &F, survey: &Survey) -> Result<CursorFile<F::File>, WalError> {
    let path = || fs.path_of(CURSOR_NAME);
    let file = match fs.open(CURSOR_NAME, Access::ReadWrite) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let unfinished = format!("{CURSOR_NAME}{UNFINISHED_SUFFIX}");
            let made = match fs.create_new(&unfinished) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs.unlink(&unfinished).and_then(|()| fs.create_new(&unfinished))
                }
                outcome => outcome,
            };
            let file = made.map_err(|error| WalError::io("create", path(), error))?;
            write_all_at(&file, 0, &[0; 2 * crate::format::BLOCK])
                .map_err(|error| WalError::io("write", path(), error))?;
            file.sync_data().map_err(|error| Fault::hard("sync", path(), error))?;
            fs.rename(&unfinished, CURSOR_NAME)
                .map_err(|error| WalError::io("rename", path(), error))?;
            file
        }
        Err(error) => return Err(WalError::io("open", path(), error)),
    };
    Ok(match survey.best_slot() {
        Some((place, slot)) => {
            CursorFile { file, generation: slot.generation + 1, slot: 1 - place, written: None }
        }
        None => CursorFile { file, generation: 1, slot: 0, written: None },
    })
}

/// Removes files in which nothing counts; what cannot be removed now is found again next time.
fn remove<F: Fs>(
    fs: &F,
    names: impl Iterator<Item = String>,
    report: &mut RecoveryReport,
) -> Result<(), WalError> {
    for name in names {
        match fs.unlink(&name) {
            Ok(()) => report.removed_files.push(name),
            // Taken by the new segment's own unfinished name, or gone already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(WalError::io("remove", fs.path_of(&name), error)),
        }
    }
    if report.removed_files.is_empty() {
        return Ok(());
    }
    fs.sync_dir().map_err(|error| WalError::io("sync the directory of", fs.path_of("."), error))
}
