//! The program as a process, between a broker of the client library and a node behind the proxy.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Process, http};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");
const WAIT: Duration = Duration::from_secs(90);

pub struct Persister {
    process: Process,
}

fn environment(
    dir: &Path,
    (user, password): (&str, &str),
    more: &[(&str, &str)],
) -> Vec<(String, String)> {
    // Of each user a file of its own: the program reads it again with each session.
    let password_file = dir.join(format!("password-of-{user}"));
    write_password(&password_file, password);
    let data = dir.join("data");
    [
        ("DATA_DIR", data.to_str().unwrap()),
        ("KAFKA__SESSION_TIMEOUT", "6s"),
        ("METRICS__ENABLED", "false"),
        ("ALARMS__FRESHNESS", "20ms"),
        ("ALARMS__WRITERS", "1"),
        ("ALARMS__IN_FLIGHT_PER_WRITER", "8"),
        ("STORE__CASSANDRA__KEYSPACE", "monasca"),
        ("STORE__CASSANDRA__CONSISTENCY", "ONE"),
        ("STORE__CASSANDRA__USER", user),
        ("STORE__CASSANDRA__PASSWORD_FILE", password_file.to_str().unwrap()),
        ("STORE__CASSANDRA__REQUEST_TIMEOUT", "2s"),
        ("WAL__HOLD_BACK", "2s"),
        ("LOGGING__FORMAT", "json"),
        ("HTTP__BIND", "127.0.0.1:0"),
    ]
    .iter()
    .chain(more)
    .map(|(key, value)| (format!("MONASCA_PERSISTER__{key}"), (*value).to_owned()))
    .collect()
}

/// A password is not taken from a file that others can read.
fn write_password(path: &Path, password: &str) {
    std::fs::write(path, password).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Makes what is missing of the keyspace and its tables.
pub fn apply_schema(dir: &Path, node: &str) {
    let contact = [("STORE__CASSANDRA__CONTACT_POINTS", node)];
    let environment = environment(dir, ("cassandra", "cassandra"), &contact);
    // A node that has just started, or made tables, may need longer than a request may take.
    let deadline = Instant::now() + WAIT;
    loop {
        let output = std::process::Command::new(PROGRAM)
            .args(["schema", "apply"])
            .envs(environment.clone())
            .output()
            .unwrap();
        if output.status.success() {
            return;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Persister {
    pub fn start(dir: &Path, bootstrap: &str, contact_point: &str) -> Self {
        let mut builder = ProcessBuilder::new(PROGRAM, dir.join("log")).args(["run"]);
        let more = [
            ("KAFKA__BOOTSTRAP_SERVERS", bootstrap),
            ("STORE__CASSANDRA__CONTACT_POINTS", contact_point),
        ];
        for (key, value) in environment(dir, ("persister", "p"), &more) {
            builder = builder.env(key, value);
        }
        Self { process: builder.start().unwrap() }
    }

    pub fn stop(mut self) {
        self.process.terminate();
        let code = self.process.wait(Duration::from_secs(60)).and_then(|status| status.code());
        assert_eq!(code, Some(0), "{}", self.process.log_tail());
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let log = self.process.log();
        let (_, address) = log.rsplit_once("\"http\":\"")?;
        let (address, _) = address.split_once('"')?;
        http::get(&format!("http://{address}{path}")).ok()
    }

    /// What it says of its only pipeline.
    pub fn status(&self) -> Value {
        let status = || {
            let (_, body) = self.get("/api/v1/status")?;
            serde_json::from_str::<Value>(&body).ok()
        };
        status().map_or(Value::Null, |status| status["pipelines"]["alarms"].clone())
    }

    /// Codes of what is the matter, each with its message.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        let (_, body) = self.get("/api/v1/status").unwrap();
        let status: Value = serde_json::from_str(&body).unwrap();
        let reasons = status["reasons"].as_array().unwrap().iter();
        let text = |reason: &Value, key| reason[key].as_str().unwrap().to_owned();
        reasons.map(|reason| (text(reason, "code"), reason.to_string())).collect()
    }

    /// Dead letters since the start, by code.
    pub fn dead_letters(&self) -> BTreeMap<String, u64> {
        serde_json::from_value(self.status()["dead_lettered"].clone()).unwrap_or_default()
    }

    /// A count of the second stage since the start.
    pub fn count(&self, name: &str) -> u64 {
        self.status()["delivered"][name].as_u64().unwrap()
    }

    /// Everything it printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + WAIT;
        while !done() {
            assert!(
                Instant::now() < deadline,
                "not {what}: {}\n{}",
                self.status(),
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
