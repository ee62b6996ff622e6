//! What a person orders is done, known after a crash, and said in the log; who may not order is refused.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::persister::{
    PROGRAM, Persister, TOKEN, answer, exchange, kafka, metric, nothing, produce, topics,
};

#[test]
fn a_pause_holds_across_a_crash_and_a_drain_empties_the_log() {
    topics("pause", 1);
    let dir = tempfile::tempdir().unwrap();
    let mut persister = Persister::start(dir.path(), "pause", &[]);
    persister.wait("assigned", |it| it.waiting()["partitions"].as_object().unwrap().len() == 1);
    let held = persister
        .order("/api/v1/control/pause", &json!({"pipeline": "metrics", "stage": "intake"}));
    assert_eq!(held[0]["held"], json!({"intake": true, "delivery": false}));
    // What is polled with the next turn is the last.
    persister.wait("told", |it| it.codes().contains(&"PAUSED_BY_ORDER".to_owned()));
    std::thread::sleep(Duration::from_millis(500));
    produce("metrics-pause", (0..30).map(|value| metric("t", "cpu", value)));
    std::thread::sleep(Duration::from_secs(2));
    let waits = persister.waiting();
    assert_eq!(
        (&waits["appended"], &waits["paused_why"]),
        (&json!(0), &json!("by order")),
        "{waits}"
    );

    // It is still so after the process was killed.
    persister.process.kill();
    let persister = Persister::start(dir.path(), "pause", &[]);
    persister.wait("assigned", |it| it.waiting()["partitions"].as_object().unwrap().len() == 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(persister.waiting()["appended"], 0);
    assert!(persister.codes().contains(&"PAUSED_BY_ORDER".to_owned()));

    // Taken but not delivered, then the other way round: the log runs empty and nothing is taken.
    persister.order("/api/v1/control/pause", &json!({"stage": "delivery"}));
    persister.order("/api/v1/control/resume", &json!({"stage": "intake"}));
    persister.wait("taken", |it| it.waiting()["records"] == 30);
    persister.order("/api/v1/control/drain", &nothing());
    persister.wait("drained", |it| it.waiting()["records"] == 0 && it.rows_written() == 30);
    produce("metrics-pause", (0..5).map(|value| metric("t", "cpu", value)));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(persister.waiting()["appended"], 30);
    let done = persister.order("/api/v1/control/checkpoint", &json!({"pipeline": "metrics"}));
    assert_eq!((&done[0]["durable"], &done[0]["delivered"]), (&json!(30), &json!(30)));
    persister.order("/api/v1/control/resume", &nothing());
    persister.wait("all delivered", |it| it.rows_written() == 35);
    assert!(!persister.codes().contains(&"PAUSED_BY_ORDER".to_owned()));

    // Each order is in the log, with who, what and the outcome.
    let log = persister.process.log();
    let audited =
        log.lines().filter(|line| line.contains("CONTROL") && line.contains("/control/drain"));
    let audited: Vec<_> = audited.collect();
    assert_eq!(audited.len(), 1, "{log}");
    assert!(audited[0].contains("127.0.0.1") && audited[0].contains("done"), "{audited:?}");
    persister.stop();
}

#[test]
fn a_topic_that_was_created_again_goes_on_when_that_is_accepted_and_the_gap_goes_when_it_is_noted()
{
    let topic = "metrics-again";
    topics("again", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "again", &[]);
    let send = |count: usize| produce(topic, (0..count).map(|value| metric("t", "cpu", value)));
    let is_told = |it: &Persister, code: &str| it.codes().iter().any(|told| told == code);
    send(20);
    persister.wait("delivered", |it| it.rows_written() == 20);
    kafka().delete_topic(topic).unwrap();
    // The name is free a little later.
    for _ in 0..120 {
        if kafka().create_topic(topic, 1).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    send(30);
    persister.wait("stopped at the gap", |it| is_told(it, "KAFKA_RECREATED"));
    // The first of the new topic are behind the place where consumption stopped; some at its end may have been taken.
    let taken = persister.rows_written();
    assert!(taken < 50, "{taken}");
    let done = persister.order("/api/v1/control/accept", &json!({"pipeline": "metrics"}));
    assert_eq!((&done[0]["order"], done.as_array().unwrap().len()), (&json!("accept"), 1));
    persister.wait("all of the new topic delivered", |it| it.rows_written() >= taken + 20);
    let gaps = |it: &Persister| {
        let status = it.json("/api/v1/status");
        status["pipelines"]["metrics"]["ledger"]["gaps"].as_array().unwrap().len()
    };
    persister.wait("remembered", |it| gaps(it) == 1);
    persister.order("/api/v1/control/acknowledge", &nothing());
    persister.wait("forgotten", |it| gaps(it) == 0 && !is_told(it, "KAFKA_RECREATED"));
    persister.stop();
}

#[test]
fn nothing_is_changed_without_the_token_or_the_socket() {
    topics("token", 1);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let persister =
        Persister::start(dir.path(), "token", &[("HTTP__SOCKET", socket.to_str().unwrap())]);
    let json_type = "Content-Type: application/json\r\n";
    let path = "/api/v1/control/pause";
    let almost = format!("{json_type}Authorization: Bearer {}x\r\n", &TOKEN[..TOKEN.len() - 1]);
    for (headers, status) in [
        (json_type.to_owned(), 401),
        (almost, 401),
        (format!("{json_type}Authorization: Basic {TOKEN}\r\n"), 401),
        // A form is what a page of another site could send.
        (
            format!(
                "Content-Type: application/x-www-form-urlencoded\r\nAuthorization: Bearer {TOKEN}\r\n"
            ),
            415,
        ),
    ] {
        let answer = persister.post_with(path, &headers, "{}");
        assert_eq!(answer.status, status, "{headers}: {answer:?}");
    }
    // A name that a lured browser would use is not answered at all.
    for path in ["/api/v1/status", "/metrics", "/"] {
        let request = format!("GET {path} HTTP/1.0\r\nHost: evil.example\r\n\r\n");
        assert_eq!(exchange(&persister.address, &request).status, 403, "{path}");
    }
    let long = format!("{{\"pipeline\": \"{}\"}}", "x".repeat(70_000));
    let headers = format!("{json_type}Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(persister.post_with(path, &headers, &long).status, 413);
    assert_eq!(persister.post_with(path, &headers, "{\"stagge\": 1}").status, 422);
    let held = persister.json("/api/v1/status")["pipelines"]["metrics"]["held"].clone();
    assert_eq!(held, json!({"intake": false, "delivery": false}));

    let mut stream = UnixStream::connect(&socket).unwrap();
    // Whatever name it is asked for: no browser gets there.
    let request =
        format!("POST {path} HTTP/1.0\r\nHost: any\r\n{json_type}Content-Length: 2\r\n\r\n{{}}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(answer(&bytes).status, 200, "{}", String::from_utf8_lossy(&bytes));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    let held = persister.json("/api/v1/status")["pipelines"]["alarms"]["held"].clone();
    assert_eq!(held, json!({"intake": true, "delivery": true}));
    // The command line gets in the same way.
    let url = format!("unix:{}", socket.display());
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(PROGRAM).args(arguments).args(["--url", &url]).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["control", "resume"]);
    persister.wait("well", |it| it.codes().is_empty());
    assert!(run(&["status"]).contains("\"state\": \"ok\""));
    assert!(!persister.process.log().contains(TOKEN));
    persister.stop();
    assert!(!socket.exists());
}

#[test]
fn dead_letters_are_purged_only_when_their_number_is_confirmed() {
    topics("purge", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "purge", &[]);
    produce("metrics-purge", (0..3).map(|index| format!("garbage {index}")));
    persister.wait("kept", |it| it.json("/api/v1/backlog")["dead_letters"] == 3);
    let path = "/api/v1/dead-letters/purge";
    let headers = format!("Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(persister.post_with(path, &headers, "{}").status, 422);
    let dry = persister.order(path, &json!({"all": true}));
    assert_eq!((&dry["meant"], &dry["outcome"]), (&json!(3), &json!(null)));
    let answer = persister.post_with(path, &headers, r#"{"all": true, "confirm": 2}"#);
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(persister.json("/api/v1/backlog")["dead_letters"], 3);
    let some = json!({"filter": {"positions": [1]}, "confirm": 1});
    assert_eq!(persister.order(path, &some)["outcome"]["removed"], 1);
    // They fail again, and are letters again.
    let retried =
        persister.order("/api/v1/dead-letters/retry", &json!({"all": true, "confirm": 2}));
    assert_eq!(retried["outcome"]["removed"], 2, "{retried}");
    persister.wait("letters again", |it| it.json("/api/v1/backlog")["dead_letters"] == 2);
    persister.stop();
}

#[test]
fn the_log_says_more_or_less_while_the_program_runs() {
    topics("level", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "level", &[]);
    let lines = |level: &str| persister.process.log().matches(level).count();
    assert_eq!(lines("DEBUG") + lines("TRACE"), 0);
    let now = persister.order(
        "/api/v1/control/log-level",
        &json!({"level": "info,monasca_persister=trace,librdkafka=trace"}),
    );
    assert_eq!(now["before"], "info");
    persister.wait("more lines", |_| lines("DEBUG") + lines("TRACE") > 0);
    persister.order("/api/v1/control/log-level", &json!({"level": "warn"}));
    let headers = format!("Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n");
    let answer =
        persister.post_with("/api/v1/control/log-level", &headers, r#"{"level": "a=b=c"}"#);
    assert_eq!(answer.status, 422);
    persister.stop();
}

#[test]
fn an_address_that_others_reach_needs_a_token_for_looking_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let token = dir.path().join("short");
    std::fs::write(&token, "short").unwrap();
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for (file, said) in [(None, "http.token_file"), (Some(&token), "at least 32")] {
        let mut command = std::process::Command::new(PROGRAM);
        command
            .arg("run")
            .env("MONASCA_PERSISTER__DATA_DIR", &data)
            .env("MONASCA_PERSISTER__HTTP__BIND", "0.0.0.0:0");
        if let Some(file) = file {
            command.env("MONASCA_PERSISTER__HTTP__TOKEN_FILE", file);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(said), "{text}");
    }
    topics("public", 1);
    let port = harness::free_port().unwrap();
    let bind = format!("0.0.0.0:{port}");
    let persister = Persister::start_at(dir.path(), "public", port, &[("HTTP__BIND", &bind)]);
    for (path, status) in [
        ("/ping", 200),
        ("/metrics", 200),
        ("/", 200),
        ("/api/v1/status", 401),
        ("/api/v1/backlog/records", 401),
        ("/api/v1/events", 401),
    ] {
        assert_eq!(persister.get(path).status, status, "{path}");
    }
    let token = dir.path().join("token");
    for (token, code) in [(None, 69), (Some(&token), 0)] {
        let mut command = std::process::Command::new(PROGRAM);
        command.args(["status", "--url", &persister.url]);
        command.envs(token.map(|token| ("MONASCA_PERSISTER_TOKEN_FILE", token)));
        assert_eq!(command.output().unwrap().status.code(), Some(code));
    }
    persister.stop();
}

#[test]
fn a_changed_configuration_is_taken_live_as_far_as_it_can_be_and_a_bad_one_changes_nothing() {
    topics("reload", 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("persister.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("logging: {level: info}\nshutdown: {drain_timeout: 20s}\n");
    let path = file.to_str().unwrap();
    let port = harness::free_port().unwrap();
    let persister = Persister::start_at(dir.path(), "reload", port, &[("CONFIG", path)]);
    let value = |key: &str| persister.json("/api/v1/config")["values"][key].clone();
    assert_eq!(
        (&value("logging.level")["value"], &value("logging.level")["origin"]),
        (&json!("info"), &json!("file"))
    );
    let hang_up = || {
        let before = persister.process.log().matches("CONFIG_RELOAD").count();
        let pid = persister.process.pid().unwrap().to_string();
        assert!(
            std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success()
        );
        persister
            .wait("read again", |it| it.process.log().matches("CONFIG_RELOAD").count() > before);
        persister
            .process
            .log()
            .lines()
            .rfind(|line| line.contains("CONFIG_RELOAD"))
            .unwrap()
            .to_owned()
    };
    write(
        "logging: {level: 'info,monasca_persister=debug'}\nshutdown: {drain_timeout: 1s}\nmetrics: {writers: 3}\n",
    );
    let said = hang_up();
    assert!(said.contains(r#"needs_restart=["metrics.writers"]"#), "{said}");
    assert!(said.contains(r#"taken=["logging.level", "shutdown.drain_timeout"]"#), "{said}");
    assert_eq!(value("logging.level")["value"], "info,monasca_persister=debug");
    assert_eq!(value("metrics.writers")["value"], 2);
    write("logging: {levle: debug}\n");
    let said = hang_up();
    assert!(said.contains("the old one stays") && said.contains("levle"), "{said}");
    assert_eq!(value("logging.level")["value"], "info,monasca_persister=debug");
    persister.stop();
}

#[test]
fn a_bad_night_is_got_through_with_the_command_line_alone() {
    topics("drill", 2);
    let dir = tempfile::tempdir().unwrap();
    let persister =
        Persister::start(dir.path(), "drill", &[("METRICS__MESSAGE_BYTES_MAX", "2 KiB")]);
    let token = dir.path().join("token");
    let data = dir.path().join("data");
    let url = persister.url.clone();
    let run = |arguments: &[&str], code: i32| {
        let output = std::process::Command::new(PROGRAM)
            .args(arguments)
            .env("MONASCA_PERSISTER_TOKEN_FILE", &token)
            .env("MONASCA_PERSISTER__DATA_DIR", &data)
            .env("MONASCA_PERSISTER__STORE__KIND", "sled")
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    };
    let top = || {
        let text = run(&["top", "--once", "--json", "--url", &url], 0);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let waiting = || top()["backlog"]["pipelines"]["metrics"]["records"].clone();
    // The outage: nothing gets to the store.
    run(&["control", "pause", "--stage", "delivery", "--url", &url], 0);
    produce("metrics-drill", (0..200).map(|value| metric("t", "cpu", value)));
    let long = metric("t", "cpu", 7).replace("h0", &"x".repeat(3000));
    produce("metrics-drill", [long]);
    persister.wait("in the log", |_| waiting() == 201);
    // A look.
    assert!(run(&["status", "--url", &url], 0).contains("PAUSED_BY_ORDER"));
    assert!(run(&["backlog", "--by", "metric", "--url", &url], 0).contains("\"cpu\""));
    assert!(run(&["top", "--url", &url], 0).contains("DEGRADED"));
    assert!(
        run(&["size", "--url", &url, "--hours", "24", "--rate", "100"], 0).contains("measured")
    );
    persister.wait("connected", |it| it.get("/healthcheck").status == 200);
    run(&["healthcheck", "--url", &url], 0);
    // Drain.
    run(&["control", "drain", "--url", &url], 0);
    persister.wait("drained", |_| waiting() == 0);
    run(&["control", "resume", "--url", &url], 0);
    // The dead letter, and its retry by a program that takes it.
    let letters = run(&["dead-letters", "list", "--url", &url], 0);
    assert!(letters.contains("MESSAGE_TOO_LARGE"), "{letters}");
    run(&["control", "pause", "--url", &url, "--token-file", "/nowhere"], 78);
    persister.stop();
    let persister = Persister::start(dir.path(), "drill", &[]);
    run(&["dead-letters", "retry", "--all"], 0);
    persister.wait("stored", |it| {
        it.rows_written() == 1 && it.json("/api/v1/backlog")["dead_letters"] == 0
    });
    persister.stop();
    run(&["wal", "verify", data.join("wal/metrics").to_str().unwrap()], 0);
    let last = std::fs::read_to_string(data.join("last_shutdown.json")).unwrap();
    assert!(last.contains("\"clean\": true"), "{last}");
}
