//! What is said of the backlog is so, and looking at it changes nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::persister::{Persister, metric, produce, topics};

fn sum_of(census: &Value) -> u64 {
    census["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["records"].as_u64().unwrap())
        .sum()
}

#[test]
fn the_backlog_is_counted_by_owner_and_read_in_pages_without_being_disturbed() {
    topics("peek", 2);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "peek", &[]);
    persister.order("/api/v1/control/pause", &json!({"pipeline": "metrics", "stage": "delivery"}));
    produce("metrics-peek", (0..300).map(|value| metric("large", "cpu", value)));
    produce("metrics-peek", (0..100).map(|value| metric("small", "mem", value)));
    produce("metrics-peek", ["nonsense".to_owned()]);
    persister.wait("in the log", |it| it.waiting()["records"] == 401);

    let by_tenant = persister.json("/api/v1/backlog?by=tenant&top=2&pipeline=metrics");
    let census = &by_tenant["census"];
    let named: Vec<_> = census["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["name"].as_str().unwrap(), group["records"].as_u64().unwrap()))
        .collect();
    assert_eq!(named, [("large", 300), ("small", 100)]);
    assert_eq!(
        (&census["groups_total"], &census["records"], &census["complete"]),
        (&json!(3), &json!(401), &json!(true))
    );
    let by_metric = persister.json("/api/v1/backlog?by=metric");
    assert_eq!(by_metric["census"]["groups"][1]["name"], "mem");
    let by_age = persister.json("/api/v1/backlog?by=age");
    assert_eq!(sum_of(&by_age["census"]), 401);
    assert_eq!(by_age["census"]["groups"][0]["name"], "1m");

    // Pages follow each other without a gap or a repetition, beside others that read.
    let (mut from, mut positions, mut values) = (0, Vec::new(), 0);
    loop {
        let page = persister.json(&format!("/api/v1/backlog/records?from={from}&limit=37"));
        for record in page["records"].as_array().unwrap() {
            positions.push(record["position"].as_u64().unwrap());
            values += record["metrics"].as_array().unwrap().len();
        }
        from = page["next"].as_u64().unwrap();
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(positions, (0..401).collect::<Vec<_>>());
    assert_eq!(values, 400);
    let page = persister.json("/api/v1/backlog/records?tenant=small&metric=mem&limit=5");
    let first = &page["records"][0];
    assert_eq!(
        (&first["metrics"][0]["tenant_id"], &first["metrics"][0]["name"]),
        (&json!("small"), &json!("mem"))
    );
    let last = persister.json("/api/v1/backlog/records?from=0&limit=1000");
    let bad =
        last["records"].as_array().unwrap().iter().find(|record| record["payload"] == "nonsense");
    assert!(bad.unwrap()["problems"][0].as_str().unwrap().contains("NOT_JSON"));

    // Looked for once a second.
    persister.wait("the oldest one", |it| it.waiting()["oldest"]["position"] == 0);
    let waits = persister.waiting();
    assert!(waits["oldest_waits_s"].as_f64() < Some(120.0));
    let segments = persister.json("/api/v1/wal/segments?pipeline=metrics");
    assert_eq!(segments[0]["segments"][0]["from"], 0);

    persister.order("/api/v1/control/resume", &json!({}));
    persister.wait("delivered", |it| it.waiting()["records"] == 0);
    assert_eq!(persister.rows_written(), 400);
    let waits = persister.waiting();
    assert_eq!((&waits["oldest"], &waits["seconds_to_drained"]), (&Value::Null, &json!(0.0)));
    persister.wait("told per partition", |it| {
        let waits = it.waiting();
        let partitions = waits["partitions"].as_object().unwrap();
        partitions.values().all(|partition| {
            partition["delivered"] == partition["durable"] && partition["paused"] == false
        })
    });
    persister.stop();
}

#[test]
fn when_the_log_will_be_full_is_foretold_within_a_fifth() {
    topics("forecast", 1);
    let dir = tempfile::tempdir().unwrap();
    // Small segments are those of alarms; what is in the messages does not matter while nothing is delivered.
    let persister =
        Persister::start(dir.path(), "forecast", &[("WAL__ALARMS_BYTES_MAX", "40 MiB")]);
    persister.order("/api/v1/control/pause", &json!({"stage": "delivery"}));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A known rate: 4 times a second 300 KB that cannot be compressed.
            let mut state = 1_u64;
            let begun = Instant::now();
            for turn in 0_u32.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let messages = (0..6)
                    .map(|_| {
                        (0..10_000)
                            .map(|_| {
                                state =
                                    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                                char::from(33 + u8::try_from(state >> 58).unwrap())
                            })
                            .collect::<String>()
                    })
                    .collect::<Vec<_>>();
                produce("alarms-forecast", messages);
                let due = Duration::from_millis(250) * (turn + 1);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        });
        let alarms = || persister.json("/api/v1/backlog")["pipelines"]["alarms"].clone();
        persister.wait("half full", |_| alarms()["fill"].as_f64() > Some(0.45));
        let told = alarms()["seconds_to_full"].as_f64().unwrap();
        let asked = Instant::now();
        persister.wait("full", |_| alarms()["paused_why"] == "log full");
        let took = asked.elapsed().as_secs_f64();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("full: foretold {told:.1} s, took {took:.1} s");
        assert!((told - took).abs() <= took * 0.2, "foretold {told:.1} s, took {took:.1} s");
        assert!(persister.codes().contains(&"WAL_FULL".to_owned()));
    });
}

#[test]
fn when_the_backlog_will_be_gone_is_foretold_within_a_fifth() {
    topics("drained", 1);
    let dir = tempfile::tempdir().unwrap();
    // A known rate: a store behind a slow link.
    let settings = [("STORE__MAX_WRITE_BYTES_PER_SECOND", "400 KiB")];
    let persister = Persister::start(dir.path(), "drained", &settings);
    // The series are described before: a record waits for the description of its own.
    produce("metrics-drained", (0..7).map(|value| metric("t", "cpu", value)));
    persister.wait("described", |it| it.rows_written() == 7 && it.waiting()["records"] == 0);
    persister.order("/api/v1/control/pause", &json!({"stage": "delivery"}));
    produce("metrics-drained", (0..100_000).map(|value| metric("t", "cpu", value)));
    persister.wait("in the log", |it| it.waiting()["records"] == 100_000);
    assert_eq!(persister.waiting()["seconds_to_drained"], Value::Null);
    persister.order("/api/v1/control/resume", &json!({}));
    // Rates look back ten seconds.
    std::thread::sleep(Duration::from_secs(11));
    persister.wait("past", |it| it.waiting()["in_per_s"] == 0.0);
    let waits = persister.waiting();
    let told = waits["seconds_to_drained"].as_f64().unwrap_or_else(|| panic!("{waits}"));
    let asked = Instant::now();
    persister.wait("drained", |it| it.waiting()["records"] == 0);
    let took = asked.elapsed().as_secs_f64();
    println!("drained: foretold {told:.1} s, took {took:.1} s");
    assert!((told - took).abs() <= took * 0.2, "foretold {told:.1} s, took {took:.1} s");
    persister.stop();
}
