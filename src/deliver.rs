//! Decisions of the second stage, log to store, as a machine: no I/O, no clock, no threads.
//!
//! [`Deliver`] knows units by number and messages by [`RecordRef`]; rows never pass through it. It decides what is
//! sent when, how many requests are in flight, what is sent again, split or given up, and which stretches of the log
//! are acknowledged. `writers.rs` carries its effects out, the simulator against a model store.
//!
//! Verdict of the store → what happens here:
//!
//! | verdict | unit | breaker | in-flight limit |
//! |---|---|---|---|
//! | written | messages acknowledged (after a flush where the store needs one) | closes | grows by one per round |
//! | retry | sent again after a jittered backoff, for ever | counts a failure | halves |
//! | retry, perhaps of the row | as retry; a single row that fails while others succeed ends as a dead letter | counts a failure | halves |
//! | wait | sent again when a probe succeeded | opens at once | halves |
//! | split | sent again as two halves; a single row counts as rejected | - | - |
//! | reject | as split; a single row becomes a dead letter | - | - |
//! | reject, perhaps of all rows | as reject while few are; then as wait | - | - |

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use storage::{StoreError, Verdict};
use wal::Position;

use crate::breaker::{Breaker, BreakerConfig, BreakerState};
use crate::gather::RecordRef;
use guard::{Guard, Suspicion};

/// Numbers that the machine decides by.
#[derive(Debug, Clone, Copy)]
pub struct DeliverConfig {
    /// Most requests in flight.
    pub in_flight_max: usize,
    /// First wait before a unit is sent again; doubles with each attempt, full jitter.
    pub backoff_first: Duration,
    /// Longest wait before a unit is sent again.
    pub backoff_max: Duration,
    /// Whether written rows are durable only after a flush.
    pub needs_flush: bool,
    /// Shortest time between two flushes.
    pub flush_interval: Duration,
    /// When to stop asking the store.
    pub breaker: BreakerConfig,
    /// After so many failures that may be a row's own, others succeeding meanwhile, it is given up: minutes.
    pub suspect_attempts: u32,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for DeliverConfig {
    fn default() -> Self {
        Self {
            in_flight_max: 64,
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(30),
            needs_flush: false,
            flush_interval: Duration::from_millis(200),
            breaker: BreakerConfig::default(),
            suspect_attempts: 30,
            seed: 1,
        }
    }
}

/// Number of a gather within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatherId(pub u64);

/// Number of a unit within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u64);

/// What the machine knows of a unit.
#[derive(Debug, Clone)]
pub struct UnitPlan {
    /// Its number; the caller makes them, each once.
    pub id: UnitId,
    /// Messages that wait for it: one entry per row of each.
    pub records: Vec<RecordRef>,
    /// Rows in it.
    pub rows: usize,
    /// Whether it is a definition, which no message waits for directly.
    pub is_definition: bool,
    /// The definition that must be written before it.
    pub after: Option<UnitId>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A stretch of the log was looked at.
    Gathered {
        /// Its number.
        gather: GatherId,
        /// Its first position.
        start: Position,
        /// For each record how many rows and dead letters it waits for.
        outstanding: Vec<u32>,
        /// Its units, definitions before the units that wait for them.
        units: Vec<UnitPlan>,
    },
    /// These messages are durable in the dead letters; one entry per dead letter.
    DeadLettered {
        /// Their gather.
        gather: GatherId,
        /// The messages.
        records: Vec<RecordRef>,
    },
    /// The store answered.
    Done {
        /// The unit.
        unit: UnitId,
        /// Its answer.
        outcome: Result<(), StoreError>,
    },
    /// A unit was split into two.
    Halves {
        /// The unit that is no more.
        unit: UnitId,
        /// Its halves.
        halves: [UnitPlan; 2],
    },
    /// A flush ended.
    Flushed {
        /// Whether it succeeded.
        ok: bool,
    },
    /// The store may have lost what it confirmed: everything that is not acknowledged will be gathered again.
    StartOver,
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the unit to the store.
    Write(UnitId),
    /// Make two units of it and report them with [`Event::Halves`].
    Split(UnitId),
    /// Its rows can never be stored: keep their messages as dead letters, then report them.
    DeadLetter {
        /// The unit; it is forgotten here.
        unit: UnitId,
        /// Its gather.
        gather: GatherId,
        /// Reason code.
        code: &'static str,
        /// What the store said.
        detail: String,
    },
    /// The unit is finished: drop its rows. A written definition may be remembered.
    Forget {
        /// The unit.
        unit: UnitId,
        /// Whether the store has its rows.
        written: bool,
    },
    /// Everything in this stretch of the log is in the store or in the dead letters.
    Ack(Range<Position>),
    /// Flush the store, then report it.
    Flush,
    /// The store stopped or began to answer; say it once.
    Breaker(BreakerState),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeliverCounts {
    /// Requests that the store answered with success.
    pub requests_ok: u64,
    /// Rows in them.
    pub rows_written: u64,
    /// Requests to be sent again.
    pub retries: u64,
    /// Requests cut in halves.
    pub splits: u64,
    /// Rows that the store will never take.
    pub rows_rejected: u64,
}

#[derive(Debug)]
struct UnitState {
    gather: GatherId,
    records: Vec<RecordRef>,
    rows: usize,
    attempts: u32,
    suspicion: Suspicion,
    followers: Vec<UnitId>,
    is_definition: bool,
}

/// Marks a record of a gather that has been acknowledged to the log.
const ACKED: u32 = u32::MAX;

#[derive(Debug)]
struct GatherState {
    start: Position,
    outstanding: Vec<u32>,
    /// Records not finished.
    unfinished: usize,
    /// Finished records that are not acked yet.
    finished_unacked: usize,
}

/// The machine.
#[derive(Debug)]
pub struct Deliver {
    config: DeliverConfig,
    units: HashMap<UnitId, UnitState>,
    ready: VecDeque<UnitId>,
    waiting: BTreeSet<(Duration, UnitId)>,
    /// Waiting for a definition.
    blocked: usize,
    in_flight: usize,
    /// Those of them whose units are forgotten: see [`Event::StartOver`].
    abandoned: usize,
    limit: f64,
    gathers: BTreeMap<GatherId, GatherState>,
    breaker: Breaker,
    guard: Guard,
    written_unflushed: Vec<(GatherId, Vec<RecordRef>)>,
    flushing: Option<Vec<(GatherId, Vec<RecordRef>)>>,
    last_flush: Option<Duration>,
    last_partial_ack: Duration,
    random: u64,
    counts: DeliverCounts,
    last_error: Option<StoreError>,
    outstanding_rows: usize,
}

impl Deliver {
    /// A machine with nothing to do.
    #[must_use]
    pub fn new(config: DeliverConfig) -> Self {
        Self {
            config,
            units: HashMap::new(),
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            blocked: 0,
            in_flight: 0,
            abandoned: 0,
            limit: 8.0,
            gathers: BTreeMap::new(),
            breaker: Breaker::new(config.breaker),
            guard: Guard::default(),
            written_unflushed: Vec::new(),
            flushing: None,
            last_flush: None,
            last_partial_ack: Duration::ZERO,
            random: config.seed | 1,
            counts: DeliverCounts::default(),
            last_error: None,
            outstanding_rows: 0,
        }
    }

    /// Applies `event` at monotonic time `now` and appends what to do to `effects`.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match event {
            Event::Gathered { gather, start, outstanding, units } => {
                self.gathered(gather, start, outstanding, units, effects);
            }
            Event::DeadLettered { gather, records } => self.finish(gather, &records, effects),
            Event::Done { unit, outcome } => self.done(unit, outcome, now, effects),
            Event::Halves { unit, halves } => self.halves(unit, halves),
            Event::Flushed { ok } => self.flushed(ok, effects),
            Event::StartOver => self.start_over(effects),
            Event::Tick => {}
        }
        self.wake(now);
        self.send(now, effects);
        self.flush_when_due(now, effects);
        self.ack_parts_when_due(now, effects);
    }

    /// When [`Event::Tick`] is next of use, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let retry = self.waiting.first().map(|(due, _)| *due);
        let probe = self.breaker.probe_at();
        // While the breaker is open only the probe counts.
        let retry_or_probe = if probe.is_some() { probe } else { retry };
        let flush = (self.config.needs_flush
            && self.flushing.is_none()
            && !self.written_unflushed.is_empty())
        .then(|| {
            self.last_flush
                .map_or(Duration::ZERO, |last| last.saturating_add(self.config.flush_interval))
        });
        retry_or_probe.into_iter().chain(flush).min()
    }

    /// True when every gather is finished and acknowledged.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.gathers.is_empty() && self.units.is_empty()
    }

    /// Whether something of this gather is unfinished.
    #[must_use]
    pub fn knows(&self, gather: GatherId) -> bool {
        self.gathers.contains_key(&gather)
    }

    /// Rows of all unfinished units: the measure of memory held.
    #[must_use]
    pub fn outstanding_rows(&self) -> usize {
        self.outstanding_rows
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Current limit of requests in flight.
    #[must_use]
    pub fn in_flight_limit(&self) -> usize {
        whole(self.limit)
    }

    /// Where the breaker stands.
    #[must_use]
    pub fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    /// Counts since the start.
    #[must_use]
    pub fn counts(&self) -> DeliverCounts {
        self.counts
    }

    /// The store's last error; cleared by the next success.
    #[must_use]
    pub fn last_error(&self) -> Option<&StoreError> {
        self.last_error.as_ref()
    }

    fn gathered(
        &mut self,
        gather: GatherId,
        start: Position,
        outstanding: Vec<u32>,
        units: Vec<UnitPlan>,
        effects: &mut Vec<Effect>,
    ) {
        let unfinished = outstanding.iter().filter(|count| **count > 0).count();
        let finished_unacked = outstanding.len().saturating_sub(unfinished);
        self.gathers
            .insert(gather, GatherState { start, outstanding, unfinished, finished_unacked });
        for plan in units {
            let after = plan.after;
            let id = plan.id;
            self.add_unit(plan, gather, 0);
            match after.and_then(|definition| self.units.get_mut(&definition)) {
                Some(definition) => {
                    definition.followers.push(id);
                    self.blocked = self.blocked.saturating_add(1);
                }
                None => self.ready.push_back(id),
            }
        }
        self.close_if_finished(gather, effects);
    }

    fn add_unit(&mut self, plan: UnitPlan, gather: GatherId, attempts: u32) {
        self.outstanding_rows = self.outstanding_rows.saturating_add(plan.rows);
        self.units.insert(
            plan.id,
            UnitState {
                gather,
                records: plan.records,
                rows: plan.rows,
                attempts,
                suspicion: Suspicion::default(),
                followers: Vec::new(),
                is_definition: plan.is_definition,
            },
        );
    }

    fn remove_unit(&mut self, unit: UnitId) -> Option<UnitState> {
        let state = self.units.remove(&unit)?;
        self.guard.ended(unit);
        self.outstanding_rows = self.outstanding_rows.saturating_sub(state.rows);
        Some(state)
    }

    fn done(
        &mut self,
        unit: UnitId,
        outcome: Result<(), StoreError>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if !self.units.contains_key(&unit) {
            self.abandoned_done(outcome, now, effects);
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        match outcome {
            Ok(()) => self.written(unit, effects),
            Err(error) => {
                let error = self.judge(unit, error);
                let verdict = error.verdict;
                match verdict {
                    Verdict::Retry | Verdict::Wait => {
                        self.again(unit, verdict == Verdict::Wait, now, effects)
                    }
                    Verdict::Split | Verdict::Reject => {
                        // The store is there and answers.
                        self.store_answers(effects);
                        self.split_or_reject(unit, &error, effects);
                    }
                }
                self.last_error = Some(error);
            }
        }
    }

    fn written(&mut self, unit: UnitId, effects: &mut Vec<Effect>) {
        let Some(state) = self.remove_unit(unit) else { return };
        self.store_answers(effects);
        self.last_error = None;
        self.limit = (self.limit + 1.0 / self.limit).min(count_as_f64(self.config.in_flight_max));
        self.counts.requests_ok = self.counts.requests_ok.saturating_add(1);
        if !state.is_definition {
            let rows = u64::try_from(state.rows).unwrap_or(u64::MAX);
            self.guard.took(rows);
            self.counts.rows_written = self.counts.rows_written.saturating_add(rows);
        }
        self.blocked = self.blocked.saturating_sub(state.followers.len());
        self.ready.extend(state.followers);
        effects.push(Effect::Forget { unit, written: true });
        if self.config.needs_flush {
            self.written_unflushed.push((state.gather, state.records));
        } else {
            self.finish(state.gather, &state.records, effects);
        }
    }

    fn store_answers(&mut self, effects: &mut Vec<Effect>) {
        if self.breaker.succeeded() {
            // Slow start after an outage.
            self.limit = 1.0;
            effects.push(Effect::Breaker(BreakerState::Closed));
        }
    }

    fn again(
        &mut self,
        unit: UnitId,
        operator_must_act: bool,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        self.counts.retries = self.counts.retries.saturating_add(1);
        self.limit = (self.limit / 2.0).max(1.0);
        if self.breaker.failed(operator_must_act, now) {
            effects.push(Effect::Breaker(BreakerState::Open));
        }
        let Some(state) = self.units.get_mut(&unit) else { return };
        let doublings = state.attempts.min(16);
        state.attempts = state.attempts.saturating_add(1);
        let ceiling =
            self.config.backoff_first.saturating_mul(1 << doublings).min(self.config.backoff_max);
        let wait = self.jitter(ceiling);
        self.waiting.insert((now.saturating_add(wait), unit));
    }

    fn split_or_reject(&mut self, unit: UnitId, error: &StoreError, effects: &mut Vec<Effect>) {
        let Some(state) = self.units.get(&unit) else { return };
        if state.rows > 1 {
            self.counts.splits = self.counts.splits.saturating_add(1);
            effects.push(Effect::Split(unit));
            return;
        }
        let Some(state) = self.remove_unit(unit) else { return };
        self.guard.refused(error);
        if state.is_definition {
            // A series that cannot be described: its rows would have no name.
            effects.push(Effect::Forget { unit, written: false });
            self.blocked = self.blocked.saturating_sub(state.followers.len());
            for follower in state.followers {
                if let Some(follower_state) = self.remove_unit(follower) {
                    self.give_up(follower, &follower_state, error, effects);
                }
            }
        } else {
            self.give_up(unit, &state, error, effects);
        }
    }

    fn give_up(
        &mut self,
        unit: UnitId,
        state: &UnitState,
        error: &StoreError,
        effects: &mut Vec<Effect>,
    ) {
        let rows = u64::try_from(state.rows).unwrap_or(u64::MAX);
        self.counts.rows_rejected = self.counts.rows_rejected.saturating_add(rows);
        effects.push(Effect::DeadLetter {
            unit,
            gather: state.gather,
            code: error.code,
            detail: error.detail.clone(),
        });
    }

    fn halves(&mut self, unit: UnitId, halves: [UnitPlan; 2]) {
        let Some(state) = self.remove_unit(unit) else { return };
        for half in halves {
            let id = half.id;
            self.add_unit(half, state.gather, state.attempts);
            self.ready.push_front(id);
        }
    }

    /// Moves what has waited long enough to the ready queue.
    fn wake(&mut self, now: Duration) {
        while let Some((due, unit)) = self.waiting.first().copied() {
            if due > now {
                break;
            }
            self.waiting.remove(&(due, unit));
            self.ready.push_back(unit);
        }
    }

    fn send(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        // A probe must be possible even when everything that is left waits for its backoff.
        if self.ready.is_empty()
            && self.breaker.probe_at().is_some_and(|at| now >= at)
            && let Some((_, unit)) = self.waiting.pop_first()
        {
            self.ready.push_back(unit);
        }
        while self.in_flight < whole(self.limit).min(self.config.in_flight_max).max(1) {
            let Some(unit) = self.ready.front().copied() else { break };
            if !self.breaker.admit(now) {
                break;
            }
            self.ready.pop_front();
            self.in_flight = self.in_flight.saturating_add(1);
            effects.push(Effect::Write(unit));
        }
    }

    fn flush_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let due = self
            .last_flush
            .is_none_or(|last| now >= last.saturating_add(self.config.flush_interval));
        if self.config.needs_flush
            && due
            && self.flushing.is_none()
            && !self.written_unflushed.is_empty()
        {
            self.last_flush = Some(now);
            self.flushing = Some(std::mem::take(&mut self.written_unflushed));
            effects.push(Effect::Flush);
        }
    }

    fn flushed(&mut self, ok: bool, effects: &mut Vec<Effect>) {
        let Some(mut flushed) = self.flushing.take() else { return };
        if ok {
            for (gather, records) in flushed {
                self.finish(gather, &records, effects);
            }
        } else {
            // The rows are written; only the next flush proves it.
            flushed.append(&mut self.written_unflushed);
            self.written_unflushed = flushed;
        }
    }

    /// One row or dead letter of each of these records is finished.
    fn finish(&mut self, gather: GatherId, records: &[RecordRef], effects: &mut Vec<Effect>) {
        let Some(state) = self.gathers.get_mut(&gather) else { return };
        for record in records {
            let Some(count) = usize::try_from(record.index)
                .ok()
                .and_then(|index| state.outstanding.get_mut(index))
            else {
                continue;
            };
            if *count == 0 || *count == ACKED {
                continue;
            }
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.unfinished = state.unfinished.saturating_sub(1);
                state.finished_unacked = state.finished_unacked.saturating_add(1);
            }
        }
        self.close_if_finished(gather, effects);
    }

    fn close_if_finished(&mut self, gather: GatherId, effects: &mut Vec<Effect>) {
        if self.gathers.get(&gather).is_some_and(|state| state.unfinished == 0)
            && let Some(mut state) = self.gathers.remove(&gather)
        {
            state.ack_finished(effects);
        }
    }

    /// A gather that waits for few rows acknowledges what is finished once a second.
    fn ack_parts_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if now.saturating_sub(self.last_partial_ack) < Duration::from_secs(1) {
            return;
        }
        self.last_partial_ack = now;
        for state in self.gathers.values_mut().filter(|state| state.finished_unacked > 0) {
            state.ack_finished(effects);
        }
    }

    /// A duration between nothing and `ceiling`.
    fn jitter(&mut self, ceiling: Duration) -> Duration {
        // xorshift64: a jitter needs no better randomness, and a seed makes it repeatable.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.random % millis).max(Duration::from_millis(1))
    }
}

impl GatherState {
    fn ack_finished(&mut self, effects: &mut Vec<Effect>) {
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

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and the in-flight maximum"
)]
fn whole(limit: f64) -> usize {
    limit as usize
}

fn count_as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

mod again;
mod guard;
#[cfg(test)]
mod tests;
