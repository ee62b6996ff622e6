//! Every path, its description and real answers; and what scripts of the old persister read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::persister::{Persister, metric, produce, topics};

/// A schema of the description that stands by itself.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    jsonschema::validator_for(&whole).unwrap()
}

fn check(document: &Value, schema: &Value, answer: &Value, what: &str) {
    let validator = validator(document, schema);
    let errors: Vec<String> = validator
        .iter_errors(answer)
        .map(|error| format!("{error} at {}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what} is not as described: {errors:?}\n{answer}");
}

#[test]
fn every_path_answers_as_its_description_says() {
    topics("paths", 2);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "paths", &[]);
    produce("metrics-paths", (0..50).map(|value| metric("t1", "cpu", value)));
    produce("metrics-paths", ["garbage".to_owned()]);
    persister.wait("delivered", |it| {
        it.rows_written() == 50 && it.json("/api/v1/backlog")["dead_letters"] == 1
    });
    persister.order("/api/v1/control/pause", &json!({"stage": "delivery"}));
    produce("metrics-paths", (0..20).map(|value| metric("t2", "mem", value)));
    persister.wait("in the log", |it| it.waiting()["records"].as_u64() >= Some(20));

    let document = persister.json("/openapi.json");
    let paths = document["paths"].as_object().unwrap();
    // Named by the design of this surface, so that none can get lost.
    for path in [
        "/",
        "/ping",
        "/healthcheck",
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
        "/threads",
        "/api/v1/status",
        "/api/v1/backlog",
        "/api/v1/backlog/records",
        "/api/v1/wal/segments",
        "/api/v1/dead-letters",
        "/api/v1/config",
        "/openapi.json",
        "/api/v1/events",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    let problem = json!({"$ref": "#/components/schemas/ProblemBody"});
    for (path, operations) in paths {
        if let Some(operation) = operations.get("get").filter(|_| path != "/api/v1/events") {
            let real = path.replace("{position}", "0");
            let answer = persister.get(&real);
            let content = operation["responses"]["200"]["content"].as_object().unwrap();
            if answer.status == 200 {
                let kind = content.keys().find(|kind| answer.head.contains(kind.as_str()));
                let kind = kind.unwrap_or_else(|| panic!("{path}: {}", answer.head));
                if kind == "application/json" {
                    check(&document, &content[kind]["schema"], &answer.json(), path);
                }
            } else {
                assert_eq!((path.as_str(), answer.status), ("/api/v1/query/measurements", 400));
            }
            if content.contains_key("application/json")
                && path.starts_with("/api/v1")
                && !path.contains("query")
            {
                let answer = persister.get(&format!("{real}?nonsense=1"));
                assert_eq!(answer.status, 400, "{path}: {answer:?}");
                assert!(answer.head.contains("application/problem+json"), "{path}: {answer:?}");
                check(&document, &problem, &answer.json(), path);
            }
        }
        if operations.get("post").is_some() {
            let answer = persister.post_with(path, "Content-Type: application/json\r\n", "{}");
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
            check(&document, &problem, &answer.json(), path);
        }
    }
    // Variants that have shapes of their own.
    for path in [
        "/api/v1/backlog?by=tenant",
        "/api/v1/backlog?by=age&pipeline=metrics",
        "/api/v1/backlog/records?limit=3",
    ] {
        let operation = &paths[path.split('?').next().unwrap()]["get"];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        let answer = persister.json(path);
        check(&document, schema, &answer, path);
        // A schema that allows everything would find nothing.
        assert!(!validator(&document, schema).is_valid(&json!({"records": 7})), "{path}");
    }
    for path in ["/nowhere", "/api/v1/backlog/records?pipeline=none", "/api/v1/dead-letters/77"] {
        let answer = persister.get(path);
        assert_eq!(answer.status, 404, "{path}");
        check(&document, &problem, &answer.json(), path);
    }
    assert!(persister.get("/api/v1/status?pretty").body.lines().count() > 10);
    persister.stop();
}

#[test]
fn events_tell_state_and_backlog_every_second() {
    topics("events", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "events", &[]);
    let mut stream = TcpStream::connect(&persister.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    let mut buffer = [0; 65_536];
    while text.matches("event: overview").count() < 3 {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(text.to_ascii_lowercase().contains("content-type: text/event-stream"), "{text}");
    let first = text.split("data: ").nth(1).unwrap().split("\n\n").next().unwrap();
    let lines: String =
        first.split("\r\n").filter(|line| line.contains('{') || line.contains('}')).collect();
    let overview: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(overview["status"]["instance"], "one");
    assert!(overview["backlog"]["pipelines"]["metrics"]["capacity_bytes"].as_u64() > Some(0));
    persister.stop();
}

/// What upstream's load script sums, with the very program it uses.
fn jq(document: &str, expression: &str) -> u64 {
    let mut child = Command::new("jq")
        .arg(expression)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("jq: {error}; scripts/setup test installs it"));
    child.stdin.take().unwrap().write_all(document.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{expression}: {text:?}"))
}

#[test]
fn the_old_persisters_load_script_reads_its_meters() {
    topics("script", 2);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "script", &[("METRICS__WRITERS", "3")]);
    produce("metrics-script", (0..500).map(|value| metric("t", "cpu", value)));
    persister.wait("delivered", |it| it.rows_written() > 0 && it.waiting()["records"] == 0);
    let written = persister.rows_written();
    let metrics = persister.get("/metrics?pretty=true").body;
    for meter in ["events-processed-meter", "flush-meter"] {
        let sum: u64 = (0..3)
            .map(|thread| {
                jq(&metrics, &format!(
                    r#".meters["monasca.persister.pipeline.event.MetricHandler[metric-{thread}].{meter}"].count"#
                ))
            })
            .sum();
        // Rows of definitions are rows, too.
        assert!(sum >= written, "{meter}: {sum} of {written}");
    }
    let repository = "monasca.persister.repository.cassandra.CassandraMetricRepo";
    let persisted =
        jq(&metrics, &format!(r#".counters["{repository}.metrics-persisted-counter"].count"#));
    assert_eq!(persisted, written);
    assert_eq!(persister.get("/ping").body, "pong\n");
    persister.wait("well", |it| it.get("/healthcheck").status == 200);
    let health = persister.json("/healthcheck");
    assert_eq!(health["store"]["healthy"], true);
    assert!(persister.get("/threads").body.contains("metrics-ingest"));
    persister.stop();
}
