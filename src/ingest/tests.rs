//! What pauses: the log's fill, a person and gaps may each want it, in any order, and none ends what another wants.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// The consumer as the client library has it: which partitions it has, and which of them it does not fetch.
#[derive(Default)]
struct Consumer {
    assigned: BTreeSet<i32>,
    paused: BTreeSet<i32>,
}

impl Consumer {
    fn apply(&mut self, machine: &mut Ingest, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Begin { partition, .. } => {
                    // Assigned anew, and therefore fetched; see `begin` of the real consumer.
                    self.assigned.insert(partition);
                    self.paused.remove(&partition);
                    machine.on(Event::Begun { partition }, Duration::ZERO, &mut Vec::new());
                    if machine.is_paused() {
                        self.paused.insert(partition);
                    }
                }
                Effect::Pause(partitions) => self.paused.extend(partitions),
                Effect::Resume(partitions) => {
                    self.paused.retain(|paused| !partitions.contains(paused));
                }
                Effect::Hold(gap) => {
                    self.paused.insert(gap.partition);
                }
                _ => {}
            }
        }
    }

    fn tell(&mut self, machine: &mut Ingest, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Event::Gone { partition } = event {
            self.assigned.remove(&partition);
            self.paused.remove(&partition);
        }
        machine.on(event, Duration::ZERO, &mut effects);
        self.apply(machine, effects.clone());
        effects
    }
}

fn machine() -> Ingest {
    let stop = GapPolicy::Stop;
    let gaps = GapPolicies { retention: stop, truncated: stop, recreated: stop };
    let config = IngestConfig { ledger: false, gaps, ..IngestConfig::default() };
    Ingest::new(config, &LogOffsets::default(), Position::ZERO)
}

fn assigned(partition: i32) -> Event {
    Event::Assigned { partition, committed: Some(GroupOffset::unknown(5)) }
}

#[test]
fn a_hold_pauses_once_and_ends_once() {
    let (mut machine, mut consumer) = (machine(), Consumer::default());
    consumer.tell(&mut machine, assigned(0));
    let held = consumer.tell(&mut machine, Event::Hold(true));
    assert_eq!(held, [Effect::Pause(vec![0])]);
    assert_eq!(consumer.tell(&mut machine, Event::Hold(true)), []);
    assert!(machine.is_paused() && !machine.is_full());
    let goes_on = consumer.tell(&mut machine, Event::Hold(false));
    assert_eq!(goes_on, [Effect::Resume(vec![0])]);
    assert_eq!(consumer.tell(&mut machine, Event::Hold(false)), []);
}

#[test]
fn room_in_the_log_does_not_end_a_hold_nor_the_end_of_a_hold_a_full_log() {
    let (mut machine, mut consumer) = (machine(), Consumer::default());
    consumer.tell(&mut machine, assigned(0));
    consumer.tell(&mut machine, Event::LogFull);
    consumer.tell(&mut machine, Event::Hold(true));
    consumer.tell(&mut machine, Event::LogFill(0.1));
    assert!(consumer.paused.contains(&0) && !machine.is_full());
    consumer.tell(&mut machine, Event::LogFill(0.9));
    consumer.tell(&mut machine, Event::Hold(false));
    assert!(consumer.paused.contains(&0) && machine.is_full());
    consumer.tell(&mut machine, Event::LogFill(0.1));
    assert!(consumer.paused.is_empty());
}

#[test]
fn a_partition_that_comes_during_a_hold_is_not_fetched_and_its_offset_stays() {
    let (mut machine, mut consumer) = (machine(), Consumer::default());
    consumer.tell(&mut machine, Event::Hold(true));
    consumer.tell(&mut machine, assigned(3));
    assert!(consumer.paused.contains(&3));
    consumer.tell(&mut machine, Event::Tick);
    assert!(machine.committable().is_empty(), "nothing was taken, nothing is committed");
    consumer.tell(&mut machine, Event::Gone { partition: 3 });
    consumer.tell(&mut machine, assigned(3));
    assert!(consumer.paused.contains(&3));
    let (_, progress) = machine.progress().next().unwrap();
    assert_eq!((progress.consumed, progress.durable), (Some(5), Some(5)));
}

fn any_event() -> impl Strategy<Value = Event> {
    let partition = 0..3_i32;
    prop_oneof![
        partition.clone().prop_map(assigned),
        partition.clone().prop_map(|partition| Event::Gone { partition }),
        any::<bool>().prop_map(Event::Hold),
        any::<bool>().prop_map(|full| Event::LogFill(if full { 0.9 } else { 0.1 })),
        Just(Event::LogFull),
        partition.prop_map(|partition| Event::Bounds { partition, low: 20, high: 30, at_ms: 1 }),
        Just(Event::Accept),
        Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn a_partition_is_fetched_when_nothing_wants_it_paused_and_only_then(
        events in proptest::collection::vec(any_event(), 1..60)
    ) {
        let (mut machine, mut consumer) = (machine(), Consumer::default());
        let (mut held, mut seen) = (false, Vec::new());
        for event in events {
            let is_assigned = |partition| consumer.assigned.contains(&partition);
            match event {
                // A group gives what it has not given, and takes what it has.
                Event::Assigned { partition, .. } if is_assigned(partition) => continue,
                Event::Gone { partition } if !is_assigned(partition) => continue,
                Event::Hold(wanted) => held = wanted,
                _ => {}
            }
            seen.push(event);
            consumer.tell(&mut machine, event);
            prop_assert_eq!(machine.is_paused(), machine.is_full() || held);
            let stopped: BTreeSet<i32> = machine.stopped().map(|gap| gap.partition).collect();
            let wanted: BTreeSet<i32> = consumer
                .assigned
                .iter()
                .copied()
                .filter(|partition| machine.is_paused() || stopped.contains(partition))
                .collect();
            prop_assert_eq!(&consumer.paused, &wanted, "after {:?}", seen);
        }
    }
}
