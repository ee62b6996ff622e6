//! `wal salvage`: every whole record of a damaged log, in a new one.
//!
//! The new log is a log of its own: new id, positions from 0 in the old order. So nobody who remembers positions of the
//! old one can take them for these.
//!
//! Its memory of Kafka offsets stops at the first hole. Records behind the hole are in it, but it does not claim their
//! offsets: the persister starts at the higher of what Kafka has committed and what its log claims, so an operator who
//! sets the group's offsets back to fetch what is missing again is not overruled by the log. Without that, the
//! committed offsets decide, as always. Records behind a hole that was never confirmed are taken as well; Kafka gives
//! them again, and writing them twice changes nothing.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use wal::{AppendError, Batch, Carry, DiskFs, Loss, NoCarry, Position, Salvaged, Wal, WalConfig};

use super::offsets::hole_json;
use super::progress::Progress;
use super::verify::print_holes;
use super::{Log, NotALog, flaw_json, place};
use crate::exit;
use crate::offset_note::{NextOffsets, OffsetCarry};
use crate::offset_trail::{Hole, LogTrail};

/// Written and synced together.
const COMMIT_BYTES: usize = 4 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Run it while no persister works on the old directory, or take a copy first. The new log gives its \
records new positions, from 0 in the old order, and has a new id. To use it, put the new directory in the place of the \
old one. What is missing is said as Kafka offsets: to have it fetched again, set the consumer group's offsets back to \
the first of them before the persister starts.\n\nExit 0 when everything confirmed came out, 74 when something is \
missing.\n\nExample:\n  monasca-persister wal salvage /var/lib/monasca-persister/wal/metrics --to /var/tmp/metrics"
)]
pub(crate) struct SalvageArgs {
    /// A log's directory: wal/metrics, wal/alarms or dead-letters in the data directory. It is only read.
    directory: PathBuf,
    /// Directory of the new log; it must not exist, or be empty.
    #[arg(long, value_name = "NEW")]
    to: PathBuf,
    /// Take records too that were delivered already.
    #[arg(long)]
    all: bool,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn salvage(args: &SalvageArgs) -> anyhow::Result<u8> {
    let log = Log::open(&args.directory)?;
    check_target(&args.to, &args.directory)?;
    let failed = || format!("read {}", log.path.display());
    let inventory = wal::inventory(&log.fs).with_context(failed)?;
    let mut progress = Progress::new("salvage", &inventory);
    let largest = inventory.segments.iter().map(|segment| segment.bytes).max().unwrap_or(0);
    let from = if args.all { Position::ZERO } else { inventory.delivered };
    let mut trail = LogTrail::default();
    let mut copy = Copy::new(&args.to, largest, log.holds_dead_letters());
    let mut stopped = None;
    let summary = wal::salvage(&log.fs, |salvaged| {
        if let Salvaged::Frame(frame) = &salvaged {
            progress.at(frame.segment, frame.byte_at);
        }
        trail.note(&salvaged);
        match copy.take(&salvaged, trail.offsets.next(), from) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                stopped = Some(error);
                ControlFlow::Break(())
            }
        }
    })
    .with_context(failed)?;
    let copied = stopped.map_or(Ok(()), Err).and_then(|()| copy.finish(trail.offsets.next()));
    copied.with_context(|| {
        format!("write {} (it is incomplete: remove it before the next try)", args.to.display())
    })?;
    drop(progress);
    let topic = trail.topic.take();
    let mut holes = trail.offsets.finish();
    if copy.dead_letters {
        // They come from all partitions of both topics.
        holes.iter_mut().for_each(|hole| hole.ranges.clear());
    }
    let lost = holes.iter().any(|hole| hole.loss == Loss::Acknowledged);
    if args.json {
        super::super::print_json(&json!({
            "directory": log.path,
            "to": args.to,
            "log_id": summary.inventory.log_id.map(|id| id.to_string()),
            "new_log_id": copy.log_id,
            "records": copy.records,
            "left_out_delivered": copy.left_out,
            "complete": !lost,
            "topic": topic,
            "missing": holes.iter().map(hole_json).collect::<Vec<_>>(),
            "flaws": summary.flaws.iter().map(flaw_json).collect::<Vec<_>>(),
        }))?;
    } else {
        summary.flaws.iter().for_each(|flaw| println!("damaged: {}", place(flaw)));
        print_holes(&holes, topic.as_deref());
        print(&copy, &holes, args);
    }
    Ok(if lost { exit::DISK } else { exit::OK })
}

fn print(copy: &Copy<'_>, holes: &[Hole], args: &SalvageArgs) {
    println!(
        "{}: {} records at positions 0..{}, a log of its own with the id {}",
        args.to.display(),
        copy.records,
        copy.records,
        copy.log_id.as_deref().unwrap_or("unknown")
    );
    if copy.left_out > 0 {
        println!(
            "{} records were delivered already and are left out (--all takes them too)",
            copy.left_out
        );
    }
    println!(
        "to use it: stop the persister, move {} away, and put {} in its place",
        args.directory.display(),
        args.to.display()
    );
    if holes.iter().any(|hole| !hole.ranges.is_empty()) {
        println!(
            "to have what is missing fetched again: before the start, set the consumer group's offsets back to the \
first missing one of each partition"
        );
    }
}

/// Nothing is ever written over.
fn check_target(to: &Path, source: &Path) -> anyhow::Result<()> {
    let shown = to.display();
    if to.exists() {
        let failed = || format!("list {shown}");
        if !to.is_dir() {
            return Err(NotALog(format!("{shown} is no directory: name a new one")).into());
        }
        if to.read_dir().with_context(failed)?.next().is_some() {
            return Err(NotALog(format!("{shown} is not empty: name a new directory")).into());
        }
    }
    let full = std::path::absolute(to).with_context(|| format!("find {shown}"))?;
    let source = source.canonicalize().with_context(|| format!("find {}", source.display()))?;
    let exists = full.ancestors().find_map(|ancestor| ancestor.canonicalize().ok());
    if exists.is_some_and(|ancestor| ancestor.starts_with(&source)) {
        let text = format!("{shown} lies in the directory that is salvaged: name one elsewhere");
        return Err(NotALog(text).into());
    }
    Ok(())
}

/// The new log while it is written.
struct Copy<'a> {
    to: &'a Path,
    segment_bytes: u64,
    dead_letters: bool,
    /// Made with the first record.
    target: Option<Wal>,
    /// What the new log claims of Kafka's offsets.
    claimed: NextOffsets,
    /// What was known before the first hole: no more is claimed.
    claimable: Option<NextOffsets>,
    pending_bytes: usize,
    records: u64,
    left_out: u64,
    log_id: Option<String>,
}

impl<'a> Copy<'a> {
    fn new(to: &'a Path, largest_segment: u64, dead_letters: bool) -> Self {
        const LARGE: u64 = 64 << 20;
        const SMALL: u64 = 4 << 20;
        Self {
            to,
            segment_bytes: if largest_segment > 2 * SMALL { LARGE } else { SMALL },
            dead_letters,
            target: None,
            claimed: NextOffsets::default(),
            claimable: None,
            pending_bytes: 0,
            records: 0,
            left_out: 0,
            log_id: None,
        }
    }

    fn take(
        &mut self,
        salvaged: &Salvaged<'_>,
        next: &NextOffsets,
        from: Position,
    ) -> anyhow::Result<()> {
        match salvaged {
            Salvaged::Missing { loss, .. } if *loss != Loss::Delivered => {
                self.claimable.get_or_insert_with(|| next.clone());
            }
            Salvaged::Missing { .. } | Salvaged::Carry { .. } | Salvaged::Annotation(_) => {}
            Salvaged::Frame(frame) => {
                let mut batch = Batch::new();
                for (position, record) in frame.records() {
                    if position < from {
                        self.left_out = self.left_out.saturating_add(1);
                        continue;
                    }
                    if batch.push(record).is_err() {
                        let full = std::mem::take(&mut batch);
                        self.append(full, None)?;
                        batch.push(record).context("copy a record")?;
                    }
                }
                if !batch.is_empty() {
                    self.append(batch, Some(next))?;
                }
            }
        }
        Ok(())
    }

    /// The offsets that were not claimed yet.
    fn news(&mut self, next: &NextOffsets) -> Option<NextOffsets> {
        if self.dead_letters {
            return None;
        }
        let mut news = NextOffsets::default();
        for (partition, offset) in self.claimable.as_ref().unwrap_or(next).iter() {
            if self.claimed.get(partition) != Some(offset) {
                news.set(partition, offset);
                self.claimed.set(partition, offset);
            }
        }
        (!news.is_empty()).then_some(news)
    }

    fn append(&mut self, mut batch: Batch, next: Option<&NextOffsets>) -> anyhow::Result<()> {
        let target = self.target()?;
        if let Some(news) = next.and_then(|next| self.news(next)) {
            batch.annotate(&news.encode().context("write offsets")?);
        }
        self.records = self.records.saturating_add(u64::try_from(batch.len())?);
        self.pending_bytes = self.pending_bytes.saturating_add(batch.bytes());
        match target.append(batch) {
            // Resolved by the commit below; an error there ends the work.
            Ok(_ticket) => {}
            Err(AppendError::Full(batch)) => {
                target.commit()?;
                target.append(batch).map(drop)?;
            }
            Err(error) => return Err(error.into()),
        }
        if self.pending_bytes >= COMMIT_BYTES {
            target.commit()?;
            self.pending_bytes = 0;
        }
        Ok(())
    }

    fn target(&mut self) -> anyhow::Result<Wal> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        let config = WalConfig {
            segment_bytes: self.segment_bytes,
            // The whole disk: what is salvaged was on one already.
            max_bytes: 1 << 50,
            min_free_bytes: 0,
            max_record_bytes: WalConfig::RECORD_BYTES_MAX,
            queue_bytes_max: WalConfig::RECORD_BYTES_MAX,
            ..WalConfig::default()
        };
        let fs = DiskFs::open(self.to).with_context(|| format!("make {}", self.to.display()))?;
        let carry: Box<dyn Carry> =
            if self.dead_letters { Box::new(NoCarry) } else { Box::<OffsetCarry>::default() };
        let (target, report) = Wal::open(fs, config, carry, Duration::ZERO)?;
        self.log_id = Some(report.log_id.to_string());
        self.target = Some(target.clone());
        Ok(target)
    }

    /// Everything durable; also makes a log that has nothing but offsets.
    fn finish(&mut self, next: &NextOffsets) -> anyhow::Result<()> {
        let target = self.target()?;
        if let Some(news) = self.news(next) {
            // What was taken last became no record: its offsets count all the same.
            let mut batch = Batch::new();
            batch.annotate(&news.encode().context("write offsets")?);
            self.append(batch, None)?;
        }
        target.commit()?;
        target.close(Duration::ZERO)?;
        Ok(())
    }
}
