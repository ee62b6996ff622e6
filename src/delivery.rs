//! Carries the delivery machine out against the log, the dead letters and the memory of definitions.
//!
//! Requests to the store leave through [`Delivery::take_requests`] and come back through [`Delivery::done`]: threads
//! do that in production, the simulator in its place. Synchronous and without a clock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storage::definitions::DefinitionMemory;
use storage::{Definition, MetricId, StoreError, Verdict};
use wal::{Chunk, Fs, Position, ReadOutcome, Wal, WalError};

use crate::batch_limit::BatchLimit;
use crate::dead_letters::{DeadLetter, DeadLetterError, DeadLetters};
use crate::deliver::{Deliver, DeliverConfig, Effect, Event, GatherId, Lane, UnitId, UnitPlan};
use crate::envelope::Envelope;
use crate::gather::{GatherCounts, Gathered, RecordRef, Unit};
use crate::pace::Pace;
use crate::sync::lock;

mod again;
mod aside;

use aside::Elsewhere;
pub use aside::{Cleared, Held};

/// Dead letters are written in portions of about so many bytes, so that a log that is nearly full is filled, and little
/// is tried in vain when it is.
const PORTION_BYTES: usize = 1 << 20;
/// How often dead letters that found no room are tried again.
const LETTERS_RETRY: Duration = Duration::from_millis(500);

/// Dead letters that are not durable yet.
struct PendingLetters {
    gather: GatherId,
    records: Vec<RecordRef>,
    letters: Vec<DeadLetter>,
}

/// Why dead letters are not kept now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LettersBlocked {
    /// There is no room.
    Full,
    /// The oldest of them is older than allowed.
    Old,
}

/// The second stage without its threads.
pub struct Delivery<F: Fs> {
    machine: Deliver,
    wal: Wal<F>,
    dead_letters: DeadLetters<F>,
    memory: Arc<Mutex<DefinitionMemory>>,
    units: HashMap<UnitId, Arc<Unit>>,
    unit_bytes: usize,
    starts: BTreeMap<GatherId, Position>,
    /// When definitions on their way were stamped.
    stamped: HashMap<UnitId, Duration>,
    needs_flush: bool,
    /// Definitions that the store confirmed and no flush has made durable; then those of the flush under way.
    unflushed: Vec<(MetricId, Duration)>,
    flushing: Vec<(MetricId, Duration)>,
    requests: Vec<(UnitId, Arc<Unit>)>,
    pending_letters: VecDeque<PendingLetters>,
    /// They are not kept now: when they are tried next, and why not.
    letters_due: Option<(Duration, LettersBlocked)>,
    flush_wanted: bool,
    next_gather: u64,
    next_unit: u64,
    gathered: GatherCounts,
    dead_lettered: BTreeMap<String, u64>,
    effects: Vec<Effect>,
    elsewhere: Elsewhere,
    batch_limit: Arc<BatchLimit>,
}

impl<F: Fs> Delivery<F> {
    /// A stage that acknowledges to `wal`.
    #[must_use]
    pub fn new(
        config: DeliverConfig,
        wal: Wal<F>,
        dead_letters: DeadLetters<F>,
        memory: Arc<Mutex<DefinitionMemory>>,
    ) -> Self {
        Self {
            needs_flush: config.needs_flush,
            machine: Deliver::new(config),
            wal,
            dead_letters,
            memory,
            units: HashMap::new(),
            unit_bytes: 0,
            starts: BTreeMap::new(),
            stamped: HashMap::new(),
            unflushed: Vec::new(),
            flushing: Vec::new(),
            requests: Vec::new(),
            pending_letters: VecDeque::new(),
            letters_due: None,
            flush_wanted: false,
            next_gather: 0,
            next_unit: 0,
            gathered: GatherCounts::default(),
            dead_lettered: BTreeMap::new(),
            effects: Vec::new(),
            elsewhere: Elsewhere::default(),
            batch_limit: Arc::default(),
        }
    }

    /// Tells who makes requests how large they may be.
    #[must_use]
    pub fn with_batch_limit(mut self, batch_limit: Arc<BatchLimit>) -> Self {
        self.batch_limit = batch_limit;
        self
    }

    /// Sends no faster than `pace` lets all who share it.
    #[must_use]
    pub fn with_pace(mut self, pace: Option<Arc<Mutex<Pace>>>) -> Self {
        self.machine = self.machine.with_pace(pace);
        self
    }

    /// While others go first, little is sent.
    pub fn give_way(&mut self, gives_way: bool) {
        self.machine.give_way(gives_way);
    }

    /// Takes over a stretch of the log.
    ///
    /// # Errors
    /// The dead letter log failed: end the process.
    pub fn gathered(&mut self, gathered: Gathered, now: Duration) -> Result<(), WalError> {
        self.next_gather = self.next_gather.saturating_add(1);
        let gather = GatherId(self.next_gather);
        self.starts.insert(gather, gathered.start);
        self.count(gathered.counts);
        let mut ids: Vec<UnitId> = Vec::with_capacity(gathered.units.len());
        let mut plans = Vec::with_capacity(gathered.units.len());
        for planned in gathered.units {
            let after = planned.after.and_then(|(unit, row)| Some((ids.get(unit).copied()?, row)));
            let lane = Lane::Replicas(planned.replicas);
            let plan = UnitPlan { after, ..self.plan(planned.unit, lane) };
            if plan.is_definition {
                self.stamped.insert(plan.id, gathered.finished);
            }
            ids.push(plan.id);
            plans.push(plan);
        }
        let event = Event::Gathered {
            gather,
            start: gathered.start,
            outstanding: gathered.outstanding,
            units: plans,
        };
        self.machine.on(event, now, &mut self.effects);
        self.queue_letters(gather, gathered.dead);
        self.carry_out(now)
    }

    /// Takes the store's answer.
    ///
    /// # Errors
    /// As [`Delivery::gathered`].
    pub fn done(
        &mut self,
        unit: UnitId,
        outcome: Result<(), StoreError>,
        now: Duration,
    ) -> Result<(), WalError> {
        if let Err(StoreError { verdict: Verdict::Split, .. }) = &outcome
            && let Some(rows) = self.units.get(&unit).filter(|rows| rows.rows() > 1)
            // Those of definitions are few, and of another kind.
            && !matches!(rows.as_ref(), Unit::Definitions(_))
        {
            self.batch_limit.too_large(rows.as_write().wire_bytes());
        }
        self.machine.on(Event::Done { unit, outcome }, now, &mut self.effects);
        self.carry_out(now)
    }

    /// Takes the outcome of a flush.
    ///
    /// # Errors
    /// As [`Delivery::gathered`].
    pub fn flushed(&mut self, ok: bool, now: Duration) -> Result<(), WalError> {
        let mut definitions = std::mem::take(&mut self.flushing);
        if ok {
            let mut memory = lock(&self.memory);
            for (id, confirmed) in definitions {
                memory.safe(&id, confirmed);
            }
        } else {
            self.unflushed.append(&mut definitions);
        }
        self.machine.on(Event::Flushed { ok }, now, &mut self.effects);
        self.carry_out(now)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// As [`Delivery::gathered`].
    pub fn tick(&mut self, now: Duration) -> Result<(), WalError> {
        self.machine.on(Event::Tick, now, &mut self.effects);
        self.carry_out(now)
    }

    /// Requests to be sent to the store now.
    pub fn take_requests(&mut self) -> Vec<(UnitId, Arc<Unit>)> {
        std::mem::take(&mut self.requests)
    }

    /// True once when the store is to be flushed; answer with [`Delivery::flushed`].
    pub fn take_flush(&mut self) -> bool {
        std::mem::take(&mut self.flush_wanted)
    }

    /// The machine, for status and deadlines.
    #[must_use]
    pub fn machine(&self) -> &Deliver {
        &self.machine
    }

    /// Bytes of all rows held, about.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.unit_bytes
    }

    /// True when nothing is outstanding.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.machine.is_idle() && self.pending_letters.is_empty()
    }

    /// What decoding and grouping noticed, summed up.
    #[must_use]
    pub fn gathered_counts(&self) -> GatherCounts {
        self.gathered
    }

    /// Dead letters written since the start, by reason code.
    #[must_use]
    pub fn dead_lettered(&self) -> &BTreeMap<String, u64> {
        &self.dead_lettered
    }

    /// Why dead letters wait, if they do. They are held in memory: take nothing more until they are kept.
    #[must_use]
    pub fn dead_letters_blocked(&self) -> Option<LettersBlocked> {
        self.letters_due.map(|(_, why)| why)
    }

    fn plan(&mut self, unit: Unit, lane: Lane) -> UnitPlan {
        self.next_unit = self.next_unit.saturating_add(1);
        let id = UnitId(self.next_unit);
        let is_definition = matches!(unit, Unit::Definitions(_));
        let plan = UnitPlan {
            id,
            records: unit.records().collect(),
            rows: unit.rows(),
            is_definition,
            after: None,
            lane: if is_definition { Lane::Definitions } else { lane },
            wire_bytes: unit.as_write().wire_bytes(),
        };
        self.unit_bytes = self.unit_bytes.saturating_add(unit.bytes());
        self.units.insert(id, Arc::new(unit));
        plan
    }

    fn remove_unit(&mut self, unit: UnitId) -> Option<Arc<Unit>> {
        let rows = self.units.remove(&unit)?;
        self.unit_bytes = self.unit_bytes.saturating_sub(rows.bytes());
        Some(rows)
    }

    fn count(&mut self, counts: GatherCounts) {
        let sum = &mut self.gathered;
        for (into, more) in [
            (&mut sum.records, counts.records),
            (&mut sum.rows, counts.rows),
            (&mut sum.superseded, counts.superseded),
            (&mut sum.expired, counts.expired),
            (&mut sum.time_replaced, counts.time_replaced),
            (&mut sum.meta_missing, counts.meta_missing),
            (&mut sum.shortened, counts.shortened),
        ] {
            *into = into.saturating_add(more);
        }
    }

    /// Carries out effects until there are none: some lead to new events.
    fn carry_out(&mut self, now: Duration) -> Result<(), WalError> {
        loop {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect, now)?;
            }
            self.move_leaving()?;
            self.keep_letters(now)?;
            if self.effects.is_empty() {
                return Ok(());
            }
        }
    }

    fn carry_out_one(&mut self, effect: Effect, now: Duration) -> Result<(), WalError> {
        match effect {
            Effect::Write(unit) => {
                if let Some(rows) = self.units.get(&unit) {
                    self.requests.push((unit, Arc::clone(rows)));
                }
            }
            Effect::Split(unit) => {
                let stamped = self.stamped.remove(&unit);
                let halves = self.remove_unit(unit).and_then(|rows| rows.split());
                if let Some((first, second)) = halves {
                    // The machine knows their lane.
                    let lane = Lane::Replicas(None);
                    let halves = [self.plan(first, lane), self.plan(second, lane)];
                    if let Some(stamped) = stamped {
                        self.stamped.extend(halves.iter().map(|half| (half.id, stamped)));
                    }
                    self.machine.on(Event::Halves { unit, halves }, now, &mut self.effects);
                }
            }
            Effect::Forget { unit, written } => {
                let stamped = self.stamped.remove(&unit).unwrap_or(now);
                if let (Some(rows), true) = (self.remove_unit(unit), written)
                    && let Unit::Definitions(definitions) = rows.as_ref()
                {
                    for definition in definitions {
                        self.remember(definition, now.saturating_sub(stamped), now);
                    }
                }
            }
            Effect::DeadLetter { unit, gather, code, detail } => {
                self.bury(unit, gather, code, &detail)?
            }
            Effect::Ack(range) => self.wal.ack(range),
            Effect::SetAside { unit, gather } => self.set_aside(unit, gather),
            Effect::ComeBack => self.elsewhere.wants_come_back(),
            Effect::Flush => {
                self.flushing.append(&mut self.unflushed);
                self.flush_wanted = true;
            }
            // Whoever tells of it looks at the machine.
            Effect::Breaker(_) => {}
        }
        Ok(())
    }

    /// The store confirmed a definition, `late` after it was stamped.
    fn remember(&mut self, definition: &Definition, late: Duration, now: Duration) {
        let id = definition.series.id;
        let (created_at_ms, written_at_ms) = (definition.created_at_ms, definition.updated_at_ms);
        let mut memory = lock(&self.memory);
        memory.written(&id, created_at_ms, written_at_ms, late);
        if self.needs_flush {
            self.unflushed.push((id, now));
        } else {
            memory.safe(&id, now);
        }
    }

    /// Makes dead letters of the messages behind a unit: they are still in the log, because nobody acked them.
    fn bury(
        &mut self,
        unit: UnitId,
        gather: GatherId,
        code: &'static str,
        detail: &str,
    ) -> Result<(), WalError> {
        let (Some(rows), Some(start)) = (self.remove_unit(unit), self.starts.get(&gather).copied())
        else {
            return Ok(());
        };
        let mut letters = Vec::new();
        for record in rows.records() {
            let position = Position::new(start.get().saturating_add(u64::from(record.index)));
            letters.push((record, self.letter(position, record.element, code, detail)?));
        }
        self.queue_letters(gather, letters);
        Ok(())
    }

    fn queue_letters(&mut self, gather: GatherId, dead: Vec<(RecordRef, DeadLetter)>) {
        let mut bytes = PORTION_BYTES;
        for (record, mut letter) in dead {
            self.dead_letters.stamp(&mut letter);
            let letter_bytes = letter.bytes();
            if bytes.saturating_add(letter_bytes) > PORTION_BYTES {
                bytes = 0;
                let (records, letters) = (Vec::new(), Vec::new());
                self.pending_letters.push_back(PendingLetters { gather, records, letters });
            }
            bytes = bytes.saturating_add(letter_bytes);
            if let Some(portion) = self.pending_letters.back_mut() {
                portion.records.push(record);
                portion.letters.push(letter);
            }
        }
    }

    fn letter(
        &self,
        position: Position,
        element: u32,
        code: &str,
        detail: &str,
    ) -> Result<DeadLetter, WalError> {
        let mut chunk = Chunk::default();
        let mut reader = self.wal.reader(position);
        if matches!(reader.next(&mut chunk, 1)?, ReadOutcome::Records)
            && let Some((_, record)) = chunk.iter().find(|(at, _)| *at == position)
        {
            return Ok(match Envelope::decode(record) {
                Ok(envelope) => DeadLetter::of(&envelope, element, code, detail),
                Err(error) => DeadLetter::unreadable(record, &error),
            });
        }
        // Damaged since it was read the first time; the reader reports the gap when it comes by again.
        Err(WalError::Poisoned { cause: "a record that was readable is not any more".into() })
    }

    fn keep_letters(&mut self, now: Duration) -> Result<(), WalError> {
        if self.letters_due.is_some_and(|(due, _)| now < due) {
            self.forget_finished_gathers();
            return Ok(());
        }
        self.letters_due = None;
        while let Some(pending) = self.pending_letters.pop_front() {
            match self.dead_letters.keep(&pending.letters) {
                Ok(()) => {
                    for letter in &pending.letters {
                        let count = self.dead_lettered.entry(letter.code.clone()).or_default();
                        *count = count.saturating_add(1);
                    }
                    let event =
                        Event::DeadLettered { gather: pending.gather, records: pending.records };
                    self.machine.on(event, now, &mut self.effects);
                }
                Err(DeadLetterError::Wal(error)) if !matches!(error, WalError::NoSpace { .. }) => {
                    return Err(error);
                }
                // No room, or longer than the dead letter log allows. Like a full log: it stays in the main log, unacked,
                // and is tried again.
                Err(error) => {
                    let why = match error {
                        DeadLetterError::Old => LettersBlocked::Old,
                        _ => LettersBlocked::Full,
                    };
                    self.pending_letters.push_front(pending);
                    self.letters_due = Some((now.saturating_add(LETTERS_RETRY), why));
                    break;
                }
            }
        }
        self.forget_finished_gathers();
        Ok(())
    }

    fn forget_finished_gathers(&mut self) {
        let machine = &self.machine;
        self.starts.retain(|gather, _| machine.knows(*gather));
    }
}
