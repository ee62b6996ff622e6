//! Secrets are planted wherever one can stand, and looked for wherever something is said.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::persister::{PROGRAM, Persister, produce, topics};

const CANARY: &str = "canary-0123456789abcdef0123456789abcdef";

#[test]
fn planted_secrets_are_nowhere_in_what_is_said() {
    topics("canary", 1);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, format!("{CANARY}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    let settings = [
        ("HTTP__TOKEN_FILE", file),
        ("STORE__CASSANDRA__USER", "persister"),
        ("STORE__CASSANDRA__PASSWORD_FILE", file),
        ("LOGGING__LEVEL", "info"),
    ];
    let persister = Persister::start(dir.path(), "canary", &settings);
    // Content of messages is nobody's business above the level of debugging either.
    produce("metrics-canary", [format!("{{\"{CANARY}\": \u{1b}[31m\n"), CANARY.to_owned()]);
    persister.wait("kept", |it| it.json("/api/v1/backlog")["dead_letters"] == 2);
    let headers = format!("Content-Type: application/json\r\nAuthorization: Bearer {CANARY}\r\n");
    assert_eq!(persister.post_with("/api/v1/control/checkpoint", &headers, "{}").status, 200);
    let wrong = persister.post_with(
        "/api/v1/control/log-level",
        &headers,
        &format!("{{\"level\": \"{CANARY}=x=y\"}}"),
    );
    assert_eq!(wrong.status, 422);
    let mut said = Vec::new();
    for path in [
        "/metrics",
        "/metrics?pretty=true",
        "/api/v1/config",
        "/api/v1/status",
        "/api/v1/backlog",
        "/api/v1/overview",
        "/openapi.json",
        "/healthcheck",
        "/threads",
        "/api/v1/wal/segments",
    ] {
        said.push((path.to_owned(), persister.get(path).body));
    }
    let config = persister.json("/api/v1/config");
    let value = |key: &str| config["values"][key].clone();
    assert_eq!(
        value("http.token_file")["origin"],
        "environment MONASCA_PERSISTER__HTTP__TOKEN_FILE"
    );
    assert_eq!(value("alarms.writers")["origin"], "default");

    let yaml = dir.path().join("bad.yaml");
    for (index, text) in [
        format!("store:\n  cassandra:\n    password: {CANARY}\n"),
        format!("kafka: {{security: {{sasl: {{password: {CANARY}}}}}}}\n"),
        format!("http: {{token: {CANARY}}}\n"),
        format!(
            "kafka:\n  properties: {{sasl.oauthbearer.config: {CANARY}, sasl.password: {CANARY}}}\n"
        ),
    ]
    .into_iter()
    .enumerate()
    {
        std::fs::write(&yaml, text).unwrap();
        for command in
            [&["check-config"][..], &["config", "print"], &["config", "print", "--origins"]]
        {
            let output =
                Command::new(PROGRAM).args(command).arg("--config").arg(&yaml).output().unwrap();
            assert_eq!(output.status.code(), Some(78), "{index} {command:?}");
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            said.push((format!("{command:?} of file {index}"), text));
        }
    }
    let command_line =
        std::fs::read(format!("/proc/{}/cmdline", persister.process.pid().unwrap())).unwrap();
    said.push(("command line".to_owned(), String::from_utf8_lossy(&command_line).into_owned()));
    let log = persister.process.log();
    assert!(!log.contains('\u{1b}'));
    said.push(("log".to_owned(), log));
    persister.stop();
    for (place, text) in said {
        let found = text.find(CANARY).map(|at| &text[at.saturating_sub(200)..at]);
        assert_eq!(found, None, "a secret is told in {place}");
    }
}
