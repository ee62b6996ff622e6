//! What gathering makes of messages.

use storage::definitions::DefinitionMemory;

use super::*;
use crate::envelope::TimestampType;

const NOW_MS: i64 = 1_800_000_000_000;
const RETENTION: Duration = Duration::from_secs(3600);

fn config() -> GatherConfig {
    GatherConfig {
        kind: Kind::Metrics,
        scheme: IdScheme::Sha256,
        retention: RETENTION,
        definition_refresh: RETENTION,
        batch_rows_max: 100,
        batch_bytes_max: 1 << 16,
        message_bytes_max: 1 << 20,
    }
}

/// One message of `series` at `time_ms`, written at `written_ms`.
fn push(gather: &mut Gather, offset: i64, series: &str, time_ms: i64, written_ms: i64) {
    let payload = format!(
        r#"{{"metric":{{"name":"{series}","timestamp":{time_ms},"value":{offset}}},"meta":{{"tenantId":"t","region":"r"}}}}"#
    );
    let message = Envelope {
        topic: "metrics",
        partition: 0,
        offset,
        leader_epoch: -1,
        timestamp_ms: written_ms,
        timestamp_type: TimestampType::Created,
        received_ms: NOW_MS,
        key: None,
        payload: Some(payload.as_bytes()),
    };
    let mut record = Vec::new();
    message.encode_into(&mut record).unwrap();
    gather.push(&record, NOW_MS);
}

/// A memory in which `series` are described.
fn knowing<'a>(series: impl IntoIterator<Item = &'a str>) -> DefinitionMemory {
    let mut memory = DefinitionMemory::new(10_000, RETENTION);
    for name in series {
        let id = Series::new(IdScheme::Sha256, "r", "t", name, Vec::new()).id;
        memory.written(&id, NOW_MS, NOW_MS, Duration::ZERO);
    }
    memory
}

fn all_one_set() -> Replicas {
    Arc::new(|_| Some(7))
}

/// Every record that is outstanding, as often as it is, sorted.
fn outstanding(gathered: &Gathered) -> Vec<u32> {
    let counts = gathered.outstanding.iter().zip(0..);
    counts.flat_map(|(count, index)| std::iter::repeat_n(index, *count as usize)).collect()
}

/// Every record behind a unit, sorted.
fn behind(units: &[Planned]) -> Vec<u32> {
    let mut records: Vec<u32> = units
        .iter()
        .flat_map(|planned| planned.unit.records())
        .map(|record| record.index)
        .collect();
    records.sort_unstable();
    records
}

#[test]
fn the_more_rows_are_gathered_the_more_of_a_series_travel_together() {
    let names: Vec<String> = (0..50).map(|number| format!("m{number}")).collect();
    let mut rows_per_request = Vec::new();
    for rounds in [1, 10, 100] {
        let mut gather = Gather::new(config(), Position::ZERO);
        for round in 0..rounds {
            for (number, name) in names.iter().enumerate() {
                let offset = round * 50 + i64::try_from(number).unwrap();
                push(&mut gather, offset, name, 1000 * round, NOW_MS);
            }
        }
        let memory = knowing(names.iter().map(String::as_str));
        let nobody_knows: Replicas = Arc::new(|_| None);
        let gathered = gather.finish(&memory, &nobody_knows, NOW_MS);
        assert_eq!(behind(&gathered.units), outstanding(&gathered));
        let rows = usize::try_from(gathered.counts.rows).unwrap();
        rows_per_request.push(rows / gathered.units.len());
    }
    assert_eq!(rows_per_request, [1, 10, 100]);
}

#[test]
fn few_rows_of_series_of_the_same_replicas_travel_together_ten_series_at_most() {
    let names: Vec<String> = (0..25).map(|number| format!("m{number}")).collect();
    let mut gather = Gather::new(config(), Position::ZERO);
    for (offset, name) in (0..).zip(names.iter().chain(&names)) {
        push(&mut gather, offset, name, 1000 * offset, NOW_MS);
    }
    // Every fifth series is kept elsewhere.
    let elsewhere: Vec<MetricId> = names
        .iter()
        .step_by(5)
        .map(|name| Series::new(IdScheme::Sha256, "r", "t", name, Vec::new()).id)
        .collect();
    let of_elsewhere = elsewhere.clone();
    let replicas: Replicas = Arc::new(move |id| Some(u64::from(of_elsewhere.contains(id))));
    let memory = knowing(names.iter().map(String::as_str));
    let gathered = gather.finish(&memory, &replicas, NOW_MS);
    assert_eq!(behind(&gathered.units), outstanding(&gathered));
    let mut sizes = Vec::new();
    for planned in &gathered.units {
        let Unit::Runs { runs, .. } = &planned.unit else { panic!("{planned:?}") };
        assert!(runs.iter().all(|run| run.rows.len() == 2), "{runs:?}");
        let is_elsewhere = elsewhere.contains(&runs[0].series.id);
        assert!(runs.iter().all(|run| elsewhere.contains(&run.series.id) == is_elsewhere));
        assert_eq!(planned.replicas, Some(u64::from(is_elsewhere)));
        sizes.push((is_elsewhere, runs.len()));
    }
    sizes.sort_unstable();
    assert_eq!(sizes, [(false, 10), (false, 10), (true, 5)]);
}

#[test]
fn many_rows_of_a_series_do_not_travel_with_others() {
    let mut gather = Gather::new(config(), Position::ZERO);
    for offset in 0..40 {
        let name = if offset % 2 == 0 { "many" } else { "also many" };
        push(&mut gather, offset, name, 1000 * offset, NOW_MS);
    }
    let gathered = gather.finish(&knowing(["many", "also many"]), &all_one_set(), NOW_MS);
    let alone = |planned: &Planned| matches!(&planned.unit, Unit::Measurements { rows, .. } if rows.len() == 20);
    assert_eq!(gathered.units.len(), 2);
    assert!(gathered.units.iter().all(alone), "{:?}", gathered.units);
}

#[test]
fn rows_of_one_key_are_collapsed_to_the_latest_which_stands_for_all_of_them() {
    let mut gather = Gather::new(config(), Position::ZERO);
    // Written last but one, last, first; then another time.
    push(&mut gather, 0, "m", 1000, NOW_MS - 2);
    push(&mut gather, 1, "m", 1000, NOW_MS - 1);
    push(&mut gather, 2, "m", 1000, NOW_MS - 3);
    push(&mut gather, 3, "m", 2000, NOW_MS - 3);
    let gathered = gather.finish(&knowing(["m"]), &all_one_set(), NOW_MS);
    assert_eq!((gathered.counts.rows, gathered.counts.superseded), (4, 2));
    let [Planned { unit, .. }] = &gathered.units[..] else { panic!("{:?}", gathered.units) };
    let Unit::Measurements { rows, .. } = unit else { panic!("{unit:?}") };
    let values: Vec<(i64, f64)> = rows.iter().map(|row| (row.time_ms, row.value)).collect();
    assert_eq!(values, [(1000, 1.0), (2000, 3.0)]);
    assert_eq!(behind(&gathered.units), [0, 1, 2, 3]);
    let (first, second) = unit.split().unwrap();
    let mut of_first: Vec<u32> = first.records().map(|record| record.index).collect();
    of_first.sort_unstable();
    assert_eq!(of_first, [0, 1, 2]);
    assert_eq!(second.records().map(|record| record.index).collect::<Vec<_>>(), [3]);
}

#[test]
fn runs_of_several_series_are_halved_down_to_single_rows_without_losing_a_message() {
    let mut gather = Gather::new(config(), Position::ZERO);
    for offset in 0..9 {
        push(&mut gather, offset, &format!("m{}", offset % 3), 1000 * (offset / 3 % 2), NOW_MS);
    }
    let gathered = gather.finish(&knowing(["m0", "m1", "m2"]), &all_one_set(), NOW_MS);
    assert_eq!(gathered.units.len(), 1);
    let mut whole: Vec<Unit> = gathered.units.into_iter().map(|planned| planned.unit).collect();
    assert!(matches!(&whole[..], [Unit::Runs { .. }]));
    let mut single = Vec::new();
    while let Some(unit) = whole.pop() {
        match unit.split() {
            Some((first, second)) => {
                assert_eq!(first.rows(), unit.rows() / 2);
                assert_eq!(first.rows() + second.rows(), unit.rows());
                whole.extend([first, second]);
            }
            None => single.push(unit),
        }
    }
    let mut rows: Vec<(String, i64, Vec<u32>)> = single
        .iter()
        .map(|unit| {
            let Unit::Runs { runs, .. } = unit else { panic!("{unit:?}") };
            let [Run { series, rows }] = &runs[..] else { panic!("{runs:?}") };
            let mut records: Vec<u32> = unit.records().map(|record| record.index).collect();
            records.sort_unstable();
            (series.name.clone(), rows[0].time_ms, records)
        })
        .collect();
    rows.sort();
    let expected = [
        ("m0", 0, vec![0, 6]),
        ("m0", 1000, vec![3]),
        ("m1", 0, vec![1, 7]),
        ("m1", 1000, vec![4]),
        ("m2", 0, vec![2, 8]),
        ("m2", 1000, vec![5]),
    ];
    assert_eq!(rows, expected.map(|(name, time_ms, records)| (name.to_owned(), time_ms, records)));
}

#[test]
fn definitions_travel_together_and_each_series_waits_for_its_own() {
    let mut gather = Gather::new(config(), Position::ZERO);
    for offset in 0..250 {
        push(&mut gather, offset, &format!("m{offset}"), 1000, NOW_MS);
    }
    let gathered = gather.finish(&knowing([]), &all_one_set(), NOW_MS);
    let mut waiting = 0;
    for (number, planned) in gathered.units.iter().enumerate() {
        match &planned.unit {
            Unit::Definitions(definitions) => assert!(definitions.len() <= 100),
            Unit::Measurements { series, .. } => {
                let (unit, row) = planned.after.unwrap();
                assert!(unit < number);
                let Unit::Definitions(definitions) = &gathered.units[unit].unit else {
                    panic!("{:?}", gathered.units[unit])
                };
                assert_eq!(definitions[row].series, *series);
                waiting += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((waiting, gathered.units.len()), (250, 253));
}

#[test]
fn what_a_gather_takes_of_memory_is_counted_as_it_grows() {
    let mut gather = Gather::new(config(), Position::ZERO);
    let mut before = gather.bytes();
    for offset in 0..3000 {
        push(&mut gather, offset, &format!("m{}", offset % 10), 1000 * offset, NOW_MS);
        if offset % 1000 == 999 {
            // A row and what is counted for its record; lists have room for half as much again.
            let (more, rows) = (gather.bytes() - before, 1000 * 68);
            assert!((rows / 2..rows * 2).contains(&more), "{more} bytes for 1000 rows");
            before = gather.bytes();
        }
    }
    assert!((3000 * 68..3000 * 68 * 2).contains(&before), "{before} bytes for 3000 rows");
}
