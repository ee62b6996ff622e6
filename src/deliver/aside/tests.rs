//! Who leaves when memory is short, and when it comes back.

use storage::Verdict;

use super::super::tests::{ack, done, error, plan, with, writes};
use super::super::{DeliverConfig, Event, GatherId, UnitPlan};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A row for these replicas, of a record.
fn to(replicas: u64, id: u64, record: u32) -> UnitPlan {
    UnitPlan { lane: Lane::Replicas(Some(replicas)), ..plan(id, &[record]) }
}

/// A gather of one row for each of `units`, from record 0 on.
fn gather(machine: &mut Deliver, number: u64, units: Vec<UnitPlan>, now: Duration) -> Vec<Effect> {
    let mut effects = Vec::new();
    let outstanding = vec![1; units.len()];
    let start = wal::Position::new(number * 1000);
    let event = Event::Gathered { gather: GatherId(number), start, outstanding, units };
    machine.on(event, now, &mut effects);
    effects
}

/// Answers what is asked until `end`, with a failure where `is_away`; others are asked something all the time.
fn pass(
    machine: &mut Deliver,
    first: Vec<Effect>,
    (mut now, end): (Duration, Duration),
    is_away: impl Fn(u64) -> bool,
) -> Vec<Effect> {
    let (mut all, mut fresh) = (Vec::new(), first);
    while now < end {
        let mut next = Vec::new();
        for unit in writes(&fresh) {
            let outcome = if is_away(unit) { Err(error(Verdict::Retry)) } else { Ok(()) };
            next.extend(done(machine, unit, outcome, now));
        }
        all.append(&mut fresh);
        now += SECOND / 4;
        let number = 1_000_000 + u64::try_from(now.as_millis()).unwrap();
        next.extend(gather(machine, number, vec![to(0, number, 0)], now));
        fresh = next;
    }
    all.append(&mut fresh);
    all
}

fn make_room(machine: &mut Deliver, rows_held_max: usize, now: Duration) -> Vec<Effect> {
    let mut effects = Vec::new();
    machine.on(Event::MakeRoom { rows_held_max }, now, &mut effects);
    effects
}

fn set_aside(effects: &[Effect]) -> Vec<u64> {
    let unit = |effect: &Effect| match effect {
        Effect::SetAside { unit, .. } => Some(unit.0),
        _ => None,
    };
    effects.iter().filter_map(unit).collect()
}

/// Twenty rows from unit `first` on, those with odd numbers for replicas that are away.
fn half_away(machine: &mut Deliver, first: u64, now: Duration) -> Vec<Effect> {
    let units = (0..20_u32).map(|record| {
        let id = first + u64::from(record);
        to(id % 2, id, record)
    });
    let effects = gather(machine, first, units.collect(), now);
    pass(machine, effects, (now, now + 10 * SECOND), |unit| unit % 2 == 1 && unit < 1_000_000)
}

#[test]
fn rows_of_replicas_that_are_away_leave_when_memory_is_short_and_one_request_stays() {
    let mut machine = Deliver::new(DeliverConfig::default());
    half_away(&mut machine, 100, SECOND);
    let now = 11 * SECOND;
    assert_eq!(machine.outstanding_rows(), 11, "one of the others is on its way");
    assert_eq!(set_aside(&make_room(&mut machine, 30, now)), [] as [u64; 0], "there is room");
    let effects = make_room(&mut machine, 20, now);
    assert_eq!(set_aside(&effects).len(), 9);
    assert_eq!(machine.outstanding_rows(), 2);
    assert_eq!(machine.counts().rows_set_aside, 9);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Ack(_))), "{effects:?}");
    assert!(machine.knows(GatherId(100)), "it waits for the request that stays");
}

#[test]
fn what_was_set_aside_comes_back_when_its_replicas_answer_and_not_more_often_than_twice_a_minute() {
    let mut machine = Deliver::new(DeliverConfig::default());
    let mut now = SECOND;
    let mut came_back = Vec::new();
    for first in [100, 200] {
        let mut fresh = half_away(&mut machine, first, now);
        now += 10 * SECOND;
        fresh.extend(make_room(&mut machine, 20, now));
        assert_eq!(set_aside(&fresh).len(), 9);
        while !fresh.contains(&Effect::ComeBack) {
            now += SECOND / 4;
            assert!(now < 100 * SECOND, "nothing comes back");
            fresh = pass(&mut machine, fresh, (now, now + SECOND / 4), |_| false);
        }
        came_back.push(now);
        machine.on(Event::StartOver, now, &mut Vec::new());
        assert!(machine.is_idle());
    }
    let apart = came_back[1] - came_back[0];
    assert!((29 * SECOND..60 * SECOND).contains(&apart), "{came_back:?}");
}

#[test]
fn an_outage_of_the_whole_store_sets_aside_what_memory_holds_once_and_nothing_more() {
    let mut machine = Deliver::new(DeliverConfig::default());
    let units =
        (0..20_u32).map(|record| to(u64::from(record % 2), 100 + u64::from(record), record));
    let effects = gather(&mut machine, 1, units.collect(), SECOND);
    pass(&mut machine, effects, (SECOND, 30 * SECOND), |_| true);
    assert_eq!(set_aside(&make_room(&mut machine, 1, 30 * SECOND)), [] as [u64; 0]);
    // But for once: nobody can know that there are no others.
    let held = machine.outstanding_rows();
    assert_eq!(set_aside(&make_room(&mut machine, held, 30 * SECOND)).len(), held - 2);
    let units = (0..200_u32).map(|record| to(0, 5_000_000 + u64::from(record), record));
    gather(&mut machine, 2, units.collect(), 30 * SECOND);
    assert_eq!(set_aside(&make_room(&mut machine, held, 30 * SECOND)), [] as [u64; 0]);
}

#[test]
fn what_waits_for_a_definition_that_finds_nobody_is_set_aside_too() {
    let definition = UnitPlan {
        is_definition: true,
        lane: Lane::Definitions,
        ..UnitPlan { rows: 1, ..plan(1, &[]) }
    };
    let waits = |record: u32| UnitPlan {
        after: Some((UnitId(1), 0)),
        ..to(1, 2 + u64::from(record), record)
    };
    let units: Vec<UnitPlan> = [definition].into_iter().chain((0..10).map(waits)).collect();
    let (mut machine, first) = with(DeliverConfig::default(), 10, units);
    pass(&mut machine, first, (SECOND, 40 * SECOND), |unit| unit == 1);
    let effects = make_room(&mut machine, 20, 40 * SECOND);
    assert_eq!(set_aside(&effects), (3..=11).collect::<Vec<u64>>());
    assert!(!effects.contains(&ack(100, 101)));
    let effects = pass(&mut machine, effects, (40 * SECOND, 80 * SECOND), |_| false);
    assert!(effects.contains(&Effect::ComeBack), "its definition is written");
    assert!(effects.contains(&ack(100, 101)), "what stayed with it is written");
}

#[test]
fn rows_that_wait_for_definitions_leave_room_for_others_even_when_nothing_else_was_asked() {
    // Everything held waits for a definition that finds nobody: others may be there, and nobody can know.
    let definition =
        UnitPlan { is_definition: true, rows: 1, lane: Lane::Definitions, ..plan(1, &[]) };
    let waits = |record: u32| UnitPlan {
        after: Some((UnitId(1), 0)),
        ..to(u64::from(record % 2), 2 + u64::from(record), record)
    };
    let units: Vec<UnitPlan> = [definition].into_iter().chain((0..20).map(waits)).collect();
    let (mut machine, mut effects) = with(DeliverConfig::default(), 20, units);
    let mut now = SECOND;
    while now < 30 * SECOND {
        let mut next = Vec::new();
        for unit in writes(&effects) {
            next.extend(done(&mut machine, unit, Err(error(Verdict::Retry)), now));
        }
        now += SECOND / 4;
        machine.on(Event::Tick, now, &mut next);
        effects = next;
    }
    assert_ne!(machine.breaker(), BreakerState::Closed);
    assert_eq!(set_aside(&make_room(&mut machine, 20, now)).len(), 19);
    // The same once more, and nothing was answered since: the whole store is away.
    let more = (0..20).map(|record| UnitPlan {
        after: Some((UnitId(1), 0)),
        ..to(u64::from(record % 2), 100 + u64::from(record), record)
    });
    gather(&mut machine, 2, more.collect(), now);
    assert_eq!(set_aside(&make_room(&mut machine, 20, now)), [] as [u64; 0]);
}

#[test]
fn replicas_that_are_away_are_asked_now_and_then_and_not_with_all_that_waits_for_them() {
    let mut machine = Deliver::new(DeliverConfig::default());
    let units = (0..1000_u32).map(|record| to(1, 1000 + u64::from(record), record));
    let first = gather(&mut machine, 1, units.collect(), SECOND);
    let effects = pass(&mut machine, first, (SECOND, 61 * SECOND), |unit| unit < 1_000_000);
    let asked = writes(&effects).into_iter().filter(|unit| *unit < 1_000_000).count();
    assert!((8..40).contains(&asked), "{asked} requests in a minute");
    let effects = pass(&mut machine, effects, (61 * SECOND, 120 * SECOND), |_| false);
    let acked: u64 = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Ack(range) if range.start < wal::Position::new(2000) => {
                range.end.distance_from(range.start)
            }
            _ => None,
        })
        .sum();
    assert_eq!(acked, 1000, "all of them once they answer");
}
