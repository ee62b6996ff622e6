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
//! | written | messages acknowledged (after a flush where the store needs one) | closes | grows |
//! | written, late | the same | closes | shrinks by a quarter |
//! | retry | sent again after a jittered backoff, for ever; definitions in halves from the second time on | counts a failure | halves |
//! | retry, perhaps of the row | as retry; a single row that fails while others succeed ends as a dead letter | counts a failure | halves |
//! | wait | sent again when a probe succeeded | opens at once | halves |
//! | split | sent again as two halves; a single row counts as rejected | - | - |
//! | reject | as split; a single row becomes a dead letter | - | - |
//! | reject, perhaps of all rows | as reject while few are; then as wait | - | - |
//!
//! The limit is that of the unit's [`Lane`]; see `deliver/lanes.rs`. A lane that fails three times in a row rests, longer
//! each time. What waits for replicas that are away leaves memory when it is short: `deliver/aside.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage::{StoreError, Verdict};
use wal::Position;

use crate::breaker::{Breaker, BreakerConfig, BreakerState};
use crate::gather::RecordRef;
use crate::pace::Pace;
use crate::sync::lock;

mod again;
mod aside;
mod gathers;
mod guard;
mod lanes;

use aside::AsideState;
use gathers::{ACKED, GatherState};
use guard::{Guard, Suspicion};
pub use lanes::Lane;
use lanes::{LaneState, whole};

/// Numbers that the machine decides by.
#[derive(Debug, Clone, Copy)]
pub struct DeliverConfig {
    /// Most requests in flight, in all lanes together.
    pub in_flight_max: usize,
    /// An answer that takes longer says that too much is in flight.
    pub late: Duration,
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
            // Ten times what a loaded node takes, half of what a node itself calls a time-out.
            late: Duration::from_secs(1),
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

/// Which part of the requests that may be in flight is left to who gives way: it goes on, slowly.
const GIVING_WAY: usize = 16;

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
    /// Whether it is of definitions, which no message waits for directly.
    pub is_definition: bool,
    /// The definition that must be written before it: a unit, and the definition's number in it.
    pub after: Option<(UnitId, usize)>,
    /// The lane it goes in.
    pub lane: Lane,
    /// Bytes that it takes on the way, about.
    pub wire_bytes: usize,
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
    /// Definitions that others have written meanwhile: nothing waits for them any more, unless they are on their way.
    Needless {
        /// Their unit.
        unit: UnitId,
    },
    /// A flush ended.
    Flushed {
        /// Whether it succeeded.
        ok: bool,
    },
    /// The store may have lost what it confirmed, or what was set aside is wanted again: everything that is not
    /// acknowledged will be gathered again.
    StartOver,
    /// Rows of replicas that are away are to leave memory if they are half of what may be held, and others may be there.
    MakeRoom {
        /// Most rows that are held.
        rows_held_max: usize,
    },
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
    /// Its replicas are away and memory is short: its messages are not waited for any more. They are delivered some other
    /// time; put them behind all others.
    SetAside {
        /// The unit; it is forgotten here.
        unit: UnitId,
        /// Its gather.
        gather: GatherId,
    },
    /// Replicas answer again whose rows were set aside: begin anew with [`Event::StartOver`].
    ComeBack,
    /// Flush the store, then report it.
    Flush,
    /// The store stopped or began to answer; say it once.
    Breaker(BreakerState),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
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
    /// Rows put behind others because their replicas were away and memory was short.
    pub rows_set_aside: u64,
}

#[derive(Debug)]
struct UnitState {
    gather: GatherId,
    records: Vec<RecordRef>,
    rows: usize,
    attempts: u32,
    suspicion: Suspicion,
    /// What waits for it, and for which of its definitions.
    followers: Vec<(usize, UnitId)>,
    is_definition: bool,
    lane: Lane,
    wire_bytes: usize,
    sent: Duration,
    is_in_flight: bool,
    /// Others like it were set aside: its answer says whether they are wanted again.
    is_probe: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Deliver {
    config: DeliverConfig,
    units: HashMap<UnitId, UnitState>,
    lanes: BTreeMap<Lane, LaneState>,
    /// Lanes that have something to send and may; each once, the next first.
    line: VecDeque<Lane>,
    waiting: BTreeSet<(Duration, UnitId)>,
    resting: BTreeSet<(Duration, Lane)>,
    /// Waiting for a definition.
    blocked: usize,
    in_flight: usize,
    /// Those of them whose units are forgotten: see [`Event::StartOver`].
    abandoned: usize,
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
    pace: Option<Arc<Mutex<Pace>>>,
    /// Nothing is sent before: that would be faster than the pace.
    paced_until: Option<Duration>,
    gives_way: bool,
    aside: AsideState,
}

impl Deliver {
    /// A machine with nothing to do.
    #[must_use]
    pub fn new(config: DeliverConfig) -> Self {
        Self {
            config,
            units: HashMap::new(),
            lanes: BTreeMap::new(),
            line: VecDeque::new(),
            waiting: BTreeSet::new(),
            resting: BTreeSet::new(),
            blocked: 0,
            in_flight: 0,
            abandoned: 0,
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
            pace: None,
            paced_until: None,
            gives_way: false,
            aside: AsideState::default(),
        }
    }

    /// Sends no faster than `pace` lets all who share it.
    #[must_use]
    pub fn with_pace(mut self, pace: Option<Arc<Mutex<Pace>>>) -> Self {
        self.pace = pace;
        self
    }

    /// While others go first, only a sixteenth of the requests are sent that may be in flight.
    pub fn give_way(&mut self, gives_way: bool) {
        self.gives_way = gives_way;
    }

    /// Whether something is on its way to the store, or may be sent to it.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.breaker.state() == BreakerState::Closed
            && (self.in_flight > 0 || !self.line.is_empty())
    }

    /// Applies `event` at monotonic time `now` and appends what to do to `effects`.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match event {
            Event::Gathered { gather, start, outstanding, units } => {
                self.gathered(gather, start, outstanding, units, now, effects);
            }
            Event::DeadLettered { gather, records } => {
                self.finish(gather, &records, now, effects);
            }
            Event::Done { unit, outcome } => self.done(unit, outcome, now, effects),
            Event::Halves { unit, halves } => self.halves(unit, halves),
            Event::Needless { unit } => self.needless(unit, effects),
            Event::Flushed { ok } => self.flushed(ok, now, effects),
            Event::StartOver => self.start_over(effects),
            Event::MakeRoom { rows_held_max } => self.make_room(rows_held_max, now, effects),
            Event::Tick => {}
        }
        self.come_back_when_due(now, effects);
        self.wake(now);
        self.send(now, effects);
        self.flush_when_due(now, effects);
        self.ack_parts_when_due(now, effects);
    }

    /// When [`Event::Tick`] is next of use, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let retry = self.waiting.first().map(|(due, _)| *due);
        let rested = self.resting.first().map(|(due, _)| *due);
        let retry = retry.into_iter().chain(rested).min();
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
        retry_or_probe
            .into_iter()
            .chain(flush)
            .chain(self.paced_until)
            .chain(self.aside.due())
            .min()
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
        let limits = self.lanes.values().map(|lane| whole(lane.limit));
        limits.sum::<usize>().min(self.config.in_flight_max)
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
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let unfinished = outstanding.iter().filter(|count| **count > 0).count();
        let finished_unacked = outstanding.len().saturating_sub(unfinished);
        self.gathers.insert(
            gather,
            GatherState { start, outstanding, unfinished, finished_unacked, last_finished: now },
        );
        for plan in units {
            let after = plan.after;
            let id = plan.id;
            self.add_unit(plan, gather, 0);
            match after.and_then(|(unit, row)| Some((self.units.get_mut(&unit)?, row))) {
                Some((definitions, row)) => {
                    definitions.followers.push((row, id));
                    self.blocked = self.blocked.saturating_add(1);
                }
                None => self.get_ready(id),
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
                lane: plan.lane,
                wire_bytes: plan.wire_bytes,
                sent: Duration::ZERO,
                is_in_flight: false,
                is_probe: false,
            },
        );
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneState {
        let in_flight_max = self.config.in_flight_max;
        self.lanes.entry(lane).or_insert_with(|| LaneState::new(in_flight_max))
    }

    /// The unit is sent when it is its turn.
    fn get_ready(&mut self, unit: UnitId) {
        if let Some(lane) = self.units.get(&unit).map(|state| state.lane) {
            self.lane(lane).ready.push_back(unit);
            self.stand_in_line(lane);
        }
    }

    fn stand_in_line(&mut self, lane: Lane) {
        // While the breaker is open, whoever can be a probe may.
        let may_rest = self.breaker.state() == BreakerState::Closed;
        let state = self.lane(lane);
        let rests = may_rest && state.rests_until.is_some();
        if !state.in_line && !state.ready.is_empty() && !rests {
            state.in_line = true;
            self.line.push_back(lane);
        }
    }

    fn rest(&mut self, lane: Lane, doublings: u32, now: Duration) {
        let until = now.saturating_add(self.backoff(doublings));
        self.lane(lane).rests_until = Some(until);
        self.resting.insert((until, lane));
    }

    /// A jittered wait that doubles, up to its limit.
    fn backoff(&mut self, doublings: u32) -> Duration {
        let DeliverConfig { backoff_first, backoff_max, .. } = self.config;
        self.jitter(backoff_first.saturating_mul(1 << doublings.min(16)).min(backoff_max))
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
        let Some(state) = self.units.get_mut(&unit) else {
            self.abandoned_done(outcome, now, effects);
            return;
        };
        state.is_in_flight = false;
        let (lane, sent, is_probe) = (state.lane, state.sent, state.is_probe);
        self.in_flight = self.in_flight.saturating_sub(1);
        let in_flight_max = self.config.in_flight_max;
        let is_late = now.saturating_sub(sent) > self.config.late;
        let lane_state = self.lane(lane);
        lane_state.in_flight = lane_state.in_flight.saturating_sub(1);
        match &outcome {
            Err(error) if matches!(error.verdict, Verdict::Retry | Verdict::Wait) => {
                lane_state.cut(0.5, sent, now);
                if let Some(doublings) = lane_state.failed(now) {
                    self.rest(lane, doublings, now);
                }
            }
            answer => {
                lane_state.answered();
                match answer {
                    Ok(()) if is_late => lane_state.cut(0.75, sent, now),
                    Ok(()) => lane_state.grow(in_flight_max),
                    Err(_) => {}
                }
                if is_probe {
                    self.probe_answered();
                }
            }
        }
        match outcome {
            Ok(()) => self.written(unit, now, effects),
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
        self.stand_in_line(lane);
    }

    fn written(&mut self, unit: UnitId, now: Duration, effects: &mut Vec<Effect>) {
        let Some(state) = self.remove_unit(unit) else { return };
        self.store_answers(effects);
        self.last_error = None;
        self.counts.requests_ok = self.counts.requests_ok.saturating_add(1);
        if !state.is_definition {
            let rows = u64::try_from(state.rows).unwrap_or(u64::MAX);
            self.guard.took(rows);
            self.counts.rows_written = self.counts.rows_written.saturating_add(rows);
        }
        self.release(state.followers);
        effects.push(Effect::Forget { unit, written: true });
        if self.config.needs_flush {
            self.written_unflushed.push((state.gather, state.records));
        } else {
            self.finish(state.gather, &state.records, now, effects);
        }
    }

    /// What these waited for is in the store.
    fn release(&mut self, followers: Vec<(usize, UnitId)>) {
        self.blocked = self.blocked.saturating_sub(followers.len());
        for (_, follower) in followers {
            self.get_ready(follower);
        }
    }

    fn needless(&mut self, unit: UnitId, effects: &mut Vec<Effect>) {
        if self.units.get(&unit).is_none_or(|state| !state.is_definition || state.is_in_flight) {
            return;
        }
        let Some(state) = self.remove_unit(unit) else { return };
        self.lane(state.lane).ready.retain(|ready| *ready != unit);
        self.waiting.retain(|(_, waiting)| *waiting != unit);
        if state.is_probe {
            self.probe_answered();
        }
        self.release(state.followers);
        effects.push(Effect::Forget { unit, written: false });
    }

    fn store_answers(&mut self, effects: &mut Vec<Effect>) {
        self.aside.answered();
        if self.breaker.succeeded() {
            let in_flight_max = self.config.in_flight_max;
            self.lanes.values_mut().for_each(|lane| lane.start_slowly(in_flight_max));
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
        // Some replicas that are away are not the store. What became of a probe is always said.
        let is_the_store = operator_must_act
            || self.breaker.state() != BreakerState::Closed
            || self.lanes.values().all(|lane| lane.fails_since.is_some() || !lane.is_busy());
        if is_the_store && self.breaker.failed(operator_must_act, now) {
            effects.push(Effect::Breaker(BreakerState::Open));
            self.end_rests();
        }
        let Some(state) = self.units.get_mut(&unit) else { return };
        let doublings = state.attempts;
        state.attempts = state.attempts.saturating_add(1);
        let wait = self.backoff(doublings);
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
        if state.is_probe {
            self.probe_answered();
        }
        if state.is_definition {
            // A series that cannot be described: its rows would have no name.
            effects.push(Effect::Forget { unit, written: false });
            self.blocked = self.blocked.saturating_sub(state.followers.len());
            for (_, follower) in state.followers {
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
        let mut followers = state.followers;
        for half in halves {
            let (id, rows) = (half.id, half.rows);
            self.add_unit(UnitPlan { lane: state.lane, ..half }, state.gather, state.attempts);
            // What waits for a definition waits for the half it is in.
            let (own, others): (Vec<_>, Vec<_>) =
                followers.into_iter().partition(|(row, _)| *row < rows);
            followers = others
                .into_iter()
                .map(|(row, follower)| (row.saturating_sub(rows), follower))
                .collect();
            if let Some(half) = self.units.get_mut(&id) {
                half.followers = own;
                half.is_probe = state.is_probe;
            }
            self.lane(state.lane).ready.push_front(id);
        }
        self.stand_in_line(state.lane);
    }

    /// Moves what has waited long enough to the ready queue.
    fn wake(&mut self, now: Duration) {
        while let Some((due, unit)) = self.waiting.first().copied() {
            if due > now {
                break;
            }
            self.waiting.remove(&(due, unit));
            self.get_ready(unit);
        }
        while let Some((due, lane)) = self.resting.first().copied() {
            if due > now {
                break;
            }
            self.resting.remove(&(due, lane));
            if self.lanes.get(&lane).is_some_and(|state| state.rests_until == Some(due)) {
                self.lane(lane).rests_until = None;
                self.stand_in_line(lane);
            }
        }
    }

    /// Nobody rests any more: each of them may be the probe.
    fn end_rests(&mut self) {
        for (_, lane) in std::mem::take(&mut self.resting) {
            self.lane(lane).rests_until = None;
            self.stand_in_line(lane);
        }
    }

    fn send(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        // A probe must be possible even when everything that is left waits for its backoff.
        if self.line.is_empty()
            && self.breaker.probe_at().is_some_and(|at| now >= at)
            && let Some((_, unit)) = self.waiting.pop_first()
        {
            self.get_ready(unit);
        }
        self.paced_until = None;
        let in_flight_max = if self.gives_way {
            self.config.in_flight_max / GIVING_WAY
        } else {
            self.config.in_flight_max
        };
        while self.in_flight < in_flight_max.max(1) {
            self.paced_until = self.pace_until(now);
            if self.paced_until.is_some() {
                break;
            }
            let Some(lane) = self.line.pop_front() else { break };
            let rests = self.breaker.state() == BreakerState::Closed;
            let state = self.lane(lane);
            state.in_line = false;
            if rests && state.rests_until.is_some() {
                continue;
            }
            // Stands in line again when one of its requests was answered.
            if state.in_flight >= whole(state.limit).max(1) {
                continue;
            }
            let Some(unit) = state.ready.front().copied() else { continue };
            if self.is_better_halved(unit) {
                self.lane(lane).ready.pop_front();
                self.counts.splits = self.counts.splits.saturating_add(1);
                effects.push(Effect::Split(unit));
                self.stand_in_line(lane);
                continue;
            }
            if !self.breaker.admit(now) {
                self.lane(lane).in_line = true;
                self.line.push_front(lane);
                break;
            }
            let state = self.lane(lane);
            state.ready.pop_front();
            state.in_flight = state.in_flight.saturating_add(1);
            self.in_flight = self.in_flight.saturating_add(1);
            if let Some(unit) = self.units.get_mut(&unit) {
                unit.sent = now;
                unit.is_in_flight = true;
                if let Some(pace) = &self.pace {
                    lock(pace).take(unit.wire_bytes);
                }
            }
            effects.push(Effect::Write(unit));
            self.stand_in_line(lane);
        }
    }

    /// When the pace lets the next request leave, if not now.
    fn pace_until(&self, now: Duration) -> Option<Duration> {
        if self.line.is_empty() {
            return None;
        }
        let at = lock(self.pace.as_ref()?).next_at(now, self.gives_way);
        (at > now).then_some(at)
    }

    /// Definitions of many series go to many replicas: one that is away must not keep the others from being written.
    fn is_better_halved(&self, unit: UnitId) -> bool {
        self.breaker.state() == BreakerState::Closed
            && self
                .units
                .get(&unit)
                .is_some_and(|state| state.is_definition && state.rows > 1 && state.attempts >= 2)
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

    fn flushed(&mut self, ok: bool, now: Duration, effects: &mut Vec<Effect>) {
        let Some(mut flushed) = self.flushing.take() else { return };
        if ok {
            for (gather, records) in flushed {
                self.finish(gather, &records, now, effects);
            }
        } else {
            // The rows are written; only the next flush proves it.
            flushed.append(&mut self.written_unflushed);
            self.written_unflushed = flushed;
        }
    }

    /// One row or dead letter of each of these records is finished.
    fn finish(
        &mut self,
        gather: GatherId,
        records: &[RecordRef],
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(state) = self.gathers.get_mut(&gather) else { return };
        state.last_finished = now;
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

    /// A gather that lags acknowledges what is finished once a second.
    fn ack_parts_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if now.saturating_sub(self.last_partial_ack) < Duration::from_secs(1) {
            return;
        }
        self.last_partial_ack = now;
        for state in self.gathers.values_mut().filter(|state| state.lags(now)) {
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

#[cfg(test)]
mod tests;
