//! What of a stretch of the log is finished, and what of that the log has been told. Pure.

use std::time::Duration;

use wal::Position;

use super::Effect;
use crate::gather::RecordRef;

/// Marks a record of a gather that has been acknowledged to the log, or is left to be delivered some other time.
pub(super) const ACKED: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct GatherState {
    pub(super) start: Position,
    pub(super) outstanding: Vec<u32>,
    /// Records not finished.
    pub(super) unfinished: usize,
    /// Finished records that are not acked yet.
    pub(super) finished_unacked: usize,
    pub(super) last_finished: Duration,
}

impl GatherState {
    /// Whether it is worth acknowledging in parts: it waits for few records, or for some that do not come. While it moves
    /// on, what is finished lies scattered between what is not, and would be acknowledged in as many ranges.
    pub(super) fn lags(&self, now: Duration) -> bool {
        const STUCK: Duration = Duration::from_secs(5);
        const FEW: usize = 1000;
        self.finished_unacked > 0
            && (self.unfinished <= FEW.max(self.outstanding.len() / 64)
                || now.saturating_sub(self.last_finished) >= STUCK)
    }

    /// The record is not waited for any more, and not acknowledged here.
    pub(super) fn leave(&mut self, record: RecordRef) {
        let index = usize::try_from(record.index).ok();
        if let Some(count) = index.and_then(|index| self.outstanding.get_mut(index))
            && *count > 0
            && *count != ACKED
        {
            *count = ACKED;
            self.unfinished = self.unfinished.saturating_sub(1);
        }
    }

    pub(super) fn ack_finished(&mut self, effects: &mut Vec<Effect>) {
        let start = self.start.get();
        let ack = |first: u64, end: u64| {
            Effect::Ack(
                Position::new(start.saturating_add(first))
                    ..Position::new(start.saturating_add(end)),
            )
        };
        let mut run: Option<(u64, u64)> = None;
        for (index, count) in self.outstanding.iter_mut().enumerate() {
            let index = u64::try_from(index).unwrap_or(u64::MAX);
            if *count == 0 {
                *count = ACKED;
                run = Some((run.map_or(index, |(first, _)| first), index.saturating_add(1)));
            } else if let Some((first, end)) = run.take() {
                effects.push(ack(first, end));
            }
        }
        if let Some((first, end)) = run {
            effects.push(ack(first, end));
        }
        self.finished_unacked = 0;
    }
}
