//! What the machine does, event by event.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn record(index: u32) -> RecordRef {
    RecordRef { index, element: 0 }
}

pub(super) fn plan(id: u64, records: &[u32]) -> UnitPlan {
    UnitPlan {
        id: UnitId(id),
        records: records.iter().copied().map(record).collect(),
        rows: records.len(),
        is_definition: false,
        after: None,
        lane: Lane::Replicas(None),
        wire_bytes: 1000,
    }
}

pub(super) fn error(verdict: Verdict) -> StoreError {
    StoreError::new(verdict, "DB_TEST", "test")
}

/// A machine with one gather of `units` over `records` records, and its first effects.
pub(super) fn with(
    config: DeliverConfig,
    records: usize,
    units: Vec<UnitPlan>,
) -> (Deliver, Vec<Effect>) {
    let mut machine = Deliver::new(config);
    let mut effects = Vec::new();
    let event = Event::Gathered {
        gather: GatherId(1),
        start: Position::new(100),
        outstanding: vec![1; records],
        units,
    };
    machine.on(event, SECOND, &mut effects);
    (machine, effects)
}

pub(super) fn done(
    machine: &mut Deliver,
    unit: u64,
    outcome: Result<(), StoreError>,
    now: Duration,
) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.on(Event::Done { unit: UnitId(unit), outcome }, now, &mut effects);
    effects
}

pub(super) fn ack(from: u64, to: u64) -> Effect {
    Effect::Ack(Position::new(from)..Position::new(to))
}

#[test]
fn a_finished_gather_is_acknowledged_as_one_range() {
    let (mut machine, effects) =
        with(DeliverConfig::default(), 3, vec![plan(1, &[0, 2]), plan(2, &[1])]);
    assert_eq!(effects, [Effect::Write(UnitId(1)), Effect::Write(UnitId(2))]);
    assert!(!done(&mut machine, 2, Ok(()), SECOND).contains(&ack(100, 103)));
    assert!(done(&mut machine, 1, Ok(()), SECOND).contains(&ack(100, 103)));
    assert!(machine.is_idle());
}

#[test]
fn one_slow_unit_does_not_hold_back_the_others_for_more_than_a_second() {
    let (mut machine, _) = with(DeliverConfig::default(), 3, vec![plan(1, &[1]), plan(2, &[0, 2])]);
    assert!(
        !done(&mut machine, 2, Ok(()), SECOND + SECOND / 2)
            .iter()
            .any(|e| matches!(e, Effect::Ack(_)))
    );
    let mut effects = Vec::new();
    machine.on(Event::Tick, 3 * SECOND, &mut effects);
    assert_eq!(effects, [ack(100, 101), ack(102, 103)]);
    assert!(done(&mut machine, 1, Ok(()), 3 * SECOND).contains(&ack(101, 102)));
}

#[test]
fn a_gather_that_moves_on_is_not_acknowledged_in_thousands_of_ranges_and_one_that_is_stuck_is() {
    let records = 10_000_u32;
    // Every second record is written, one unit after the other; the rest does not come.
    let written: Vec<u32> = (0..records).step_by(2).collect();
    let rest: Vec<u32> = (1..records).step_by(2).collect();
    let mut units: Vec<UnitPlan> =
        written.chunks(1000).zip(0..).map(|(part, id)| plan(id, part)).collect();
    units.push(plan(99, &rest));
    let (mut machine, _) = with(DeliverConfig::default(), records as usize, units);
    let is_ack = |effect: &Effect| matches!(effect, Effect::Ack(_));
    let mut now = SECOND;
    for unit in 0..5 {
        now += 2 * SECOND;
        let effects = done(&mut machine, unit, Ok(()), now);
        assert!(!effects.iter().any(is_ack), "after {now:?}");
    }
    now += 6 * SECOND;
    let mut effects = Vec::new();
    machine.on(Event::Tick, now, &mut effects);
    assert_eq!(effects.iter().filter(|effect| is_ack(effect)).count(), written.len());
}

#[test]
fn measurements_wait_for_their_definition() {
    let definition = UnitPlan { is_definition: true, ..plan(1, &[]) };
    let follower = UnitPlan { after: Some((UnitId(1), 0)), ..plan(2, &[0]) };
    let (mut machine, effects) = with(DeliverConfig::default(), 1, vec![definition, follower]);
    assert_eq!(effects, [Effect::Write(UnitId(1))]);
    let effects = done(&mut machine, 1, Ok(()), SECOND);
    assert!(effects.contains(&Effect::Write(UnitId(2))));
    assert!(done(&mut machine, 2, Ok(()), SECOND).contains(&ack(100, 101)));
}

#[test]
fn a_definition_that_can_never_be_stored_makes_dead_letters_of_its_measurements() {
    let definition = UnitPlan { is_definition: true, rows: 1, ..plan(1, &[]) };
    let follower = UnitPlan { after: Some((UnitId(1), 0)), ..plan(2, &[0]) };
    let (mut machine, _) = with(DeliverConfig::default(), 1, vec![definition, follower]);
    let effects = done(&mut machine, 1, Err(error(Verdict::Reject)), SECOND);
    assert!(
        effects.iter().any(|e| matches!(e, Effect::DeadLetter { unit: UnitId(2), .. })),
        "{effects:?}"
    );
    let mut effects = Vec::new();
    machine.on(
        Event::DeadLettered { gather: GatherId(1), records: vec![record(0)] },
        SECOND,
        &mut effects,
    );
    assert_eq!(effects, [ack(100, 101)]);
}

#[test]
fn a_row_that_is_refused_among_others_is_found_by_halving() {
    let (mut machine, _) = with(DeliverConfig::default(), 2, vec![plan(1, &[0, 1])]);
    assert_eq!(
        done(&mut machine, 1, Err(error(Verdict::Reject)), SECOND),
        [Effect::Split(UnitId(1))]
    );
    let mut effects = Vec::new();
    let halves = [plan(2, &[0]), plan(3, &[1])];
    machine.on(Event::Halves { unit: UnitId(1), halves }, SECOND, &mut effects);
    assert!(
        effects.contains(&Effect::Write(UnitId(2))) && effects.contains(&Effect::Write(UnitId(3)))
    );
    let effects = done(&mut machine, 3, Err(error(Verdict::Reject)), SECOND);
    assert!(effects.iter().any(|e| matches!(e, Effect::DeadLetter { unit: UnitId(3), .. })));
    assert_eq!(machine.counts().rows_rejected, 1);
}

#[test]
fn an_unknown_outcome_is_sent_again_for_ever_and_never_acknowledged() {
    let config = DeliverConfig {
        breaker: BreakerConfig { failures_max: u32::MAX, ..BreakerConfig::default() },
        ..DeliverConfig::default()
    };
    let (mut machine, _) = with(config, 1, vec![plan(1, &[0])]);
    let mut now = SECOND;
    for _ in 0..200 {
        let effects = done(&mut machine, 1, Err(error(Verdict::Retry)), now);
        assert!(!effects.iter().any(|e| matches!(e, Effect::Ack(_) | Effect::DeadLetter { .. })));
        let failed = now;
        let mut effects = Vec::new();
        while effects.is_empty() {
            now = machine.next_deadline().unwrap();
            machine.on(Event::Tick, now, &mut effects);
        }
        // The request waits, and so do the replicas that it goes to.
        assert!(now.saturating_sub(failed) <= config.backoff_max, "{failed:?} to {now:?}");
        assert_eq!(effects, [Effect::Write(UnitId(1))]);
    }
}

#[test]
fn an_outage_costs_one_request_per_probe() {
    let units: Vec<UnitPlan> = (0..50).map(|number| plan(u64::from(number), &[number])).collect();
    let (mut machine, effects) = with(DeliverConfig::default(), 50, units);
    let mut sent = effects.len();
    let mut now = SECOND;
    for effect in effects {
        if let Effect::Write(unit) = effect {
            sent += done(&mut machine, unit.0, Err(error(Verdict::Retry)), now)
                .iter()
                .filter(|e| matches!(e, Effect::Write(_)))
                .count();
        }
    }
    assert_eq!(machine.breaker(), BreakerState::Open);
    // A minute of outage: every probe fails.
    let begun = now;
    let mut probes = 0;
    while now < begun + 60 * SECOND {
        now += Duration::from_millis(50);
        let mut effects = Vec::new();
        machine.on(Event::Tick, now, &mut effects);
        for effect in effects {
            if let Effect::Write(unit) = effect {
                probes += 1;
                done(&mut machine, unit.0, Err(error(Verdict::Retry)), now);
            }
        }
    }
    assert!((3..=20).contains(&probes), "{probes} probes in a minute, {sent} requests before");
}

#[test]
fn rows_of_a_store_that_flushes_are_acknowledged_after_the_flush_that_followed_them() {
    let config = DeliverConfig { needs_flush: true, ..DeliverConfig::default() };
    let (mut machine, _) = with(config, 2, vec![plan(1, &[0]), plan(2, &[1])]);
    assert!(done(&mut machine, 1, Ok(()), SECOND).contains(&Effect::Flush));
    // Written while the flush is on its way: that flush proves nothing about it.
    assert!(!done(&mut machine, 2, Ok(()), SECOND).iter().any(|e| matches!(e, Effect::Ack(_))));
    let mut effects = Vec::new();
    machine.on(Event::Flushed { ok: true }, SECOND, &mut effects);
    assert!(!effects.contains(&ack(100, 102)), "{effects:?}");
    let mut effects = Vec::new();
    machine.on(Event::Tick, 2 * SECOND, &mut effects);
    assert!(effects.contains(&Effect::Flush));
    machine.on(Event::Flushed { ok: false }, 2 * SECOND, &mut effects);
    machine.on(Event::Tick, 3 * SECOND, &mut effects);
    let mut effects = Vec::new();
    machine.on(Event::Flushed { ok: true }, 3 * SECOND, &mut effects);
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Ack(range) if range.end == Position::new(102)))
    );
    assert!(machine.is_idle());
}

pub(super) fn writes(effects: &[Effect]) -> Vec<u64> {
    let unit = |effect: &Effect| match effect {
        Effect::Write(unit) => Some(unit.0),
        _ => None,
    };
    effects.iter().filter_map(unit).collect()
}

fn to(replicas: u64, id: u64) -> UnitPlan {
    let record = u32::try_from(id).unwrap();
    UnitPlan { lane: Lane::Replicas(Some(replicas)), ..plan(id, &[record]) }
}

#[test]
fn replicas_that_are_away_do_not_hold_up_the_others() {
    // Even numbers go to replicas that are away.
    let units = (0..400).map(|id| to(id % 2, id)).collect();
    let (mut machine, effects) = with(DeliverConfig::default(), 400, units);
    let mut in_flight = writes(&effects);
    let mut now = SECOND;
    let mut written = 0;
    for _ in 0..1000 {
        now += Duration::from_millis(1);
        let (away, there): (Vec<u64>, Vec<u64>) =
            in_flight.drain(..).partition(|unit| unit % 2 == 0);
        let mut effects = Vec::new();
        for unit in away {
            effects.extend(done(&mut machine, unit, Err(error(Verdict::Retry)), now));
        }
        for unit in there {
            written += 1;
            effects.extend(done(&mut machine, unit, Ok(()), now));
        }
        machine.on(Event::Tick, now, &mut effects);
        in_flight.extend(writes(&effects));
        if written == 200 {
            break;
        }
    }
    assert_eq!(written, 200, "all that could be written");
    let took = now - SECOND;
    assert!(took < Duration::from_millis(40), "{took:?} of answers that take a millisecond each");
}

#[test]
fn failures_of_one_round_cut_the_limit_once() {
    let config = DeliverConfig {
        breaker: BreakerConfig { failures_max: u32::MAX, ..BreakerConfig::default() },
        ..DeliverConfig::default()
    };
    let units = (0..100).map(|id| to(0, id)).collect();
    let (mut machine, effects) = with(config, 100, units);
    let sent = writes(&effects);
    assert_eq!((sent.len(), machine.in_flight_limit()), (8, 8));
    for (unit, millis) in sent.into_iter().zip(1..) {
        let now = SECOND + Duration::from_millis(millis);
        done(&mut machine, unit, Err(error(Verdict::Retry)), now);
    }
    assert_eq!(machine.in_flight_limit(), 4);
}

#[test]
fn answers_that_come_late_cut_the_limit_and_prompt_ones_let_it_grow() {
    let units = (0..1000).map(|id| to(0, id)).collect();
    let (mut machine, effects) = with(DeliverConfig::default(), 1000, units);
    let mut in_flight = writes(&effects);
    let mut now = SECOND;
    for _ in 0..5 {
        now += Duration::from_millis(10);
        let answered = std::mem::take(&mut in_flight);
        for unit in answered {
            in_flight.extend(writes(&done(&mut machine, unit, Ok(()), now)));
        }
    }
    let grown = machine.in_flight_limit();
    assert!(grown > 32, "{grown} after five rounds");
    now += 2 * SECOND;
    for unit in in_flight {
        done(&mut machine, unit, Ok(()), now);
    }
    let cut = machine.in_flight_limit();
    assert!(cut < grown && cut >= grown / 2, "{grown} became {cut}");
}

#[test]
fn definitions_that_fail_again_are_tried_in_halves_and_what_waits_for_them_follows_its_half() {
    let definitions =
        UnitPlan { is_definition: true, rows: 2, lane: Lane::Definitions, ..plan(1, &[]) };
    let of_row = |id, row| UnitPlan {
        after: Some((UnitId(1), row)),
        ..plan(id, &[u32::try_from(row).unwrap()])
    };
    let (mut machine, effects) =
        with(DeliverConfig::default(), 2, vec![definitions, of_row(2, 0), of_row(3, 1)]);
    assert_eq!(effects, [Effect::Write(UnitId(1))]);
    let mut now = SECOND;
    let mut split = Vec::new();
    for _ in 0..2 {
        done(&mut machine, 1, Err(error(Verdict::Retry)), now);
        now = machine.next_deadline().unwrap();
        split.clear();
        machine.on(Event::Tick, now, &mut split);
    }
    assert_eq!(split, [Effect::Split(UnitId(1))]);
    let half = |id| UnitPlan { is_definition: true, rows: 1, ..plan(id, &[]) };
    let mut effects = Vec::new();
    let halves = Event::Halves { unit: UnitId(1), halves: [half(4), half(5)] };
    machine.on(halves, now, &mut effects);
    let mut sent = writes(&effects);
    // One of them may have to wait for the limit.
    let effects = done(&mut machine, sent.remove(0), Ok(()), now);
    sent.extend(writes(&effects));
    sent.sort_unstable();
    assert_eq!(sent, [3, 4], "5 is written, so 3 need not wait any more, whatever becomes of 4");
    for _ in 0..3 {
        done(&mut machine, 4, Err(error(Verdict::Retry)), now);
        now = machine.next_deadline().unwrap();
        let mut effects = Vec::new();
        machine.on(Event::Tick, now, &mut effects);
        assert_eq!(effects.iter().filter(|e| matches!(e, Effect::Split(_))).count(), 0);
    }
    assert!(writes(&done(&mut machine, 4, Ok(()), now)).contains(&2));
}

#[test]
fn what_is_under_way_when_the_store_may_have_lost_rows_is_neither_acknowledged_nor_remembered() {
    let definition = UnitPlan { is_definition: true, ..plan(1, &[]) };
    let follower = UnitPlan { after: Some((UnitId(1), 0)), ..plan(2, &[0]) };
    let units = vec![definition, follower, plan(3, &[1]), plan(4, &[2])];
    let (mut machine, _) = with(DeliverConfig::default(), 3, units);
    // Confirmed, and perhaps lost, before it could be acknowledged.
    done(&mut machine, 3, Ok(()), SECOND);
    let mut effects = Vec::new();
    machine.on(Event::StartOver, SECOND, &mut effects);
    effects.sort_by_key(|effect| match effect {
        Effect::Forget { unit, written: false } => unit.0,
        other => panic!("{other:?}"),
    });
    assert_eq!(effects.len(), 3);
    assert!(machine.is_idle());
    assert_eq!((machine.in_flight(), machine.outstanding_rows()), (2, 0));
    for (unit, outcome) in [(1, Ok(())), (4, Err(error(Verdict::Retry))), (4, Ok(()))] {
        assert_eq!(done(&mut machine, unit, outcome, 5 * SECOND), []);
    }
    assert_eq!(machine.in_flight(), 0);

    let again = Event::Gathered {
        gather: GatherId(2),
        start: Position::new(100),
        outstanding: vec![1; 3],
        units: vec![plan(5, &[0, 1, 2])],
    };
    let mut effects = Vec::new();
    machine.on(again, 6 * SECOND, &mut effects);
    assert_eq!(effects, [Effect::Write(UnitId(5))]);
    assert!(done(&mut machine, 5, Ok(()), 6 * SECOND).contains(&ack(100, 103)));
}

#[test]
fn a_probe_that_is_under_way_when_all_is_forgotten_still_closes_the_breaker() {
    let (mut machine, _) = with(DeliverConfig::default(), 1, vec![plan(1, &[0])]);
    done(&mut machine, 1, Err(error(Verdict::Wait)), SECOND);
    let mut effects = Vec::new();
    machine.on(Event::Tick, 60 * SECOND, &mut effects);
    assert_eq!(effects, [Effect::Write(UnitId(1))]);
    assert_eq!(machine.breaker(), BreakerState::HalfOpen);
    machine.on(Event::StartOver, 60 * SECOND, &mut effects);
    let effects = done(&mut machine, 1, Ok(()), 61 * SECOND);
    assert_eq!(effects, [Effect::Breaker(BreakerState::Closed)]);
}

#[test]
fn who_gives_way_sends_little_but_does_not_stop_and_has_all_of_it_back_afterwards() {
    let config = DeliverConfig { in_flight_max: 64, ..DeliverConfig::default() };
    let mut machine = Deliver::new(config);
    machine.give_way(true);
    let mut effects = Vec::new();
    let units = (1..=100).map(|id| to(id, id)).collect();
    let event = Event::Gathered {
        gather: GatherId(1),
        start: Position::new(100),
        outstanding: vec![1; 100],
        units,
    };
    machine.on(event, SECOND, &mut effects);
    assert_eq!(writes(&effects).len(), 64 / 16);
    let effects = done(&mut machine, writes(&effects)[0], Ok(()), SECOND);
    assert_eq!(writes(&effects).len(), 1);
    machine.give_way(false);
    let mut effects = Vec::new();
    machine.on(Event::Tick, SECOND, &mut effects);
    assert_eq!(writes(&effects).len(), 60);
}

#[test]
fn two_machines_of_one_pace_send_no_more_bytes_than_it_allows() {
    let pace = Arc::new(Mutex::new(Pace::new(10_000)));
    let mut machines: Vec<Deliver> = (0..2)
        .map(|_| Deliver::new(DeliverConfig::default()).with_pace(Some(Arc::clone(&pace))))
        .collect();
    let (mut sent, mut now) = (0, SECOND);
    for machine in &mut machines {
        let event = Event::Gathered {
            gather: GatherId(1),
            start: Position::new(100),
            outstanding: vec![1; 1000],
            units: (1..=1000).map(|id| to(id, id)).collect(),
        };
        let mut effects = Vec::new();
        machine.on(event, now, &mut effects);
        let mut answered = writes(&effects);
        while let Some(unit) = answered.pop() {
            sent += 1;
            answered.extend(writes(&done(machine, unit, Ok(()), now)));
        }
    }
    // What may be sent at once: a quarter of a second.
    assert_eq!(sent, 3);
    while now < 11 * SECOND {
        let due: Vec<Duration> = machines.iter().filter_map(Deliver::next_deadline).collect();
        now = (*due.iter().min().unwrap()).max(now);
        for machine in &mut machines {
            let mut effects = Vec::new();
            machine.on(Event::Tick, now, &mut effects);
            let mut answered = writes(&effects);
            while let Some(unit) = answered.pop() {
                sent += 1;
                answered.extend(writes(&done(machine, unit, Ok(()), now)));
            }
        }
    }
    // A thousand bytes each, ten thousand a second, for ten seconds.
    assert!((98..=105).contains(&sent), "{sent}");
}

/// A machine with units of one row each, each message its own unit.
fn with_rows(rows: u32) -> (Deliver, VecDeque<u64>) {
    let units = (0..rows).map(|number| plan(u64::from(number), &[number])).collect();
    let (machine, effects) = with(DeliverConfig::default(), usize::try_from(rows).unwrap(), units);
    (machine, written(&effects))
}

fn written(effects: &[Effect]) -> VecDeque<u64> {
    let unit = |effect: &Effect| match effect {
        Effect::Write(unit) => Some(unit.0),
        _ => None,
    };
    effects.iter().filter_map(unit).collect()
}

/// Answers everything that is sent within `time` as `answer` says; returns the units that became dead letters.
fn answer_all(
    machine: &mut Deliver,
    mut sent: VecDeque<u64>,
    time: Duration,
    answer: impl Fn(u64) -> Result<(), StoreError>,
) -> Vec<u64> {
    let mut dead = Vec::new();
    let mut now = SECOND;
    while now < SECOND + time || !sent.is_empty() {
        let mut effects = Vec::new();
        match sent.pop_front() {
            Some(unit) => effects = done(machine, unit, answer(unit), now),
            None => {
                now += Duration::from_millis(100);
                machine.on(Event::Tick, now, &mut effects);
            }
        }
        sent.extend(written(&effects));
        dead.extend(effects.iter().filter_map(|effect| match effect {
            Effect::DeadLetter { unit, .. } => Some(unit.0),
            _ => None,
        }));
    }
    dead
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_cause_that_is_the_schemas_stops_delivery_instead_of_filling_the_dead_letters() {
    let (mut machine, sent) = with_rows(1000);
    let refused = |_| Err(error(Verdict::Reject).unsure());
    let dead = answer_all(&mut machine, sent, HOUR, refused);
    assert_eq!(dead.len(), 10, "{dead:?}");
    assert_eq!(machine.last_error().map(|error| error.code), Some("DB_REJECTS_MANY"));
    assert_ne!(machine.breaker(), BreakerState::Closed);
    // Repaired: what waits is taken.
    let mut effects = Vec::new();
    machine.on(Event::Tick, 2 * HOUR, &mut effects);
    assert_eq!(answer_all(&mut machine, written(&effects), HOUR, |_| Ok(())), [] as [u64; 0]);
    assert_eq!(machine.counts().rows_written, 990);
}

#[test]
fn few_rows_that_are_refused_among_many_become_dead_letters() {
    let (mut machine, sent) = with_rows(5000);
    let answer = |unit| {
        if unit % 50 == 0 { Err(error(Verdict::Reject).unsure()) } else { Ok(()) }
    };
    let dead = answer_all(&mut machine, sent, HOUR, answer);
    assert_eq!(dead.len(), 100);
    assert_eq!(machine.counts().rows_written, 4900);
}

#[test]
fn rows_that_are_surely_at_fault_stop_nothing_however_many_they_are() {
    let (mut machine, sent) = with_rows(1000);
    let dead = answer_all(&mut machine, sent, HOUR, |_| Err(error(Verdict::Reject)));
    assert_eq!(dead.len(), 1000);
}

/// The store fails on one row of a unit, and takes all others.
#[test]
fn a_row_that_the_store_fails_on_while_it_takes_others_does_not_stay_in_the_log_for_ever() {
    let poison = 7;
    let (mut machine, sent) = with_rows(3000);
    let answer = |unit| {
        if unit == poison { Err(error(Verdict::Retry).unsure()) } else { Ok(()) }
    };
    assert_eq!(
        answer_all(&mut machine, sent, HOUR, answer),
        [] as [u64; 0],
        "nothing else is sent"
    );
    assert!(machine.stuck().is_none(), "an outage is not its fault");
    // Other rows come, one by one.
    let mut dead = Vec::new();
    let mut was_told = false;
    let mut now = 2 * HOUR;
    for number in 0..10_000 {
        now += SECOND;
        let mut effects = Vec::new();
        let event = Event::Gathered {
            gather: GatherId(2 + number),
            start: Position::new(100_000 + number),
            outstanding: vec![1],
            units: vec![plan(100_000 + number, &[0])],
        };
        machine.on(event, now, &mut effects);
        let mut sent = written(&effects);
        while let Some(unit) = sent.pop_front() {
            let effects = done(&mut machine, unit, answer(unit), now);
            sent.extend(written(&effects));
            dead.extend(effects.into_iter().filter(|e| matches!(e, Effect::DeadLetter { .. })));
        }
        if !dead.is_empty() {
            break;
        }
        was_told |=
            machine.stuck().is_some_and(|(requests, by)| (requests, by.code) == (1, "DB_TEST"));
    }
    assert!(matches!(dead[..], [Effect::DeadLetter { unit: UnitId(7), .. }]), "{dead:?}");
    assert!(now > 2 * HOUR + 60 * SECOND, "it is given time: {now:?}");
    assert!(was_told && machine.stuck().is_none());
}

#[test]
fn rows_that_the_store_fails_on_are_not_given_up_while_it_takes_no_others() {
    let (mut machine, sent) = with_rows(100);
    let failed = |_| Err(error(Verdict::Retry).unsure());
    assert_eq!(answer_all(&mut machine, sent, 24 * HOUR, failed), [] as [u64; 0]);
    assert_eq!(machine.counts().rows_rejected, 0);
}

#[test]
fn rows_that_fail_together_while_others_succeed_are_tried_apart() {
    let (mut machine, _) = with(DeliverConfig::default(), 2, vec![plan(1, &[0, 1])]);
    let mut now = SECOND;
    for attempt in 0..3 {
        let gather = Event::Gathered {
            gather: GatherId(2 + attempt),
            start: Position::new(200 + attempt),
            outstanding: vec![1],
            units: vec![plan(10 + attempt, &[0])],
        };
        let mut effects = Vec::new();
        machine.on(gather, now, &mut effects);
        done(&mut machine, 10 + attempt, Ok(()), now);
        let effects = done(&mut machine, 1, Err(error(Verdict::Retry).unsure()), now);
        assert_eq!(effects.contains(&Effect::Split(UnitId(1))), attempt == 2, "{effects:?}");
        let mut effects = Vec::new();
        now += 31 * SECOND;
        machine.on(Event::Tick, now, &mut effects);
    }
}

/// Replicas of a part of the data are broken, and all rows for them fail for hours.
#[test]
fn many_rows_that_the_store_fails_on_are_kept() {
    let (mut machine, sent) = with_rows(2000);
    let answer = |unit| if unit % 4 == 0 { Err(error(Verdict::Retry).unsure()) } else { Ok(()) };
    let dead = answer_all(&mut machine, sent, 6 * HOUR, answer);
    assert!(dead.len() <= 60, "{}", dead.len());
    assert_eq!(machine.counts().rows_written, 1500);
}
