//! The program as a process, with the embedded store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Process, http};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_monasca-persister");

pub struct Persister {
    process: Process,
    builder: ProcessBuilder,
}

impl Persister {
    pub fn start(dir: &Path, bootstrap: &str, more: &[(&str, &str)]) -> Self {
        let log: PathBuf = dir.join("log");
        let mut builder = ProcessBuilder::new(PROGRAM, log).args(["run"]);
        for (key, value) in [
            ("DATA_DIR", dir.join("data").to_string_lossy().as_ref()),
            ("KAFKA__BOOTSTRAP_SERVERS", bootstrap),
            ("KAFKA__SESSION_TIMEOUT", "6s"),
            ("KAFKA__COMMIT_INTERVAL", "100ms"),
            ("KAFKA__PROPERTIES__HEARTBEAT_INTERVAL_MS", "300"),
            ("KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "500"),
            // The log of alarms has the smaller files.
            ("METRICS__ENABLED", "false"),
            ("ALARMS__FRESHNESS", "50ms"),
            ("STORE__KIND", "sled"),
            ("STORE__SLED__CACHE", "1 MiB"),
            ("WAL__HOLD_BACK", "2s"),
            ("LOGGING__FORMAT", "json"),
            // Many start at the same time: each takes a port that is free then, and says which.
            ("HTTP__BIND", "127.0.0.1:0"),
        ]
        .into_iter()
        .chain(more.iter().copied())
        {
            builder = builder.env(format!("MONASCA_PERSISTER__{key}"), value);
        }
        let process = builder.start().unwrap();
        Self { process, builder }
    }

    /// Starts it again, behind its own end.
    pub fn restart(&mut self) {
        self.process = self.builder.start().unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Its exit code, if it ends.
    pub fn ended(&mut self, timeout: Duration) -> Option<i32> {
        self.process.wait(timeout).and_then(|status| status.code())
    }

    pub fn stop(mut self) -> Result<(), String> {
        self.process.terminate();
        match self.ended(Duration::from_secs(60)) {
            Some(0) => Ok(()),
            other => Err(format!("ended with {other:?}:\n{}", self.process.log_tail())),
        }
    }

    fn json(&self, path: &str) -> Option<Value> {
        let log = self.process.log();
        let (_, address) = log.rsplit_once("\"http\":\"")?;
        let (address, _) = address.split_once('"')?;
        let (_, body) = http::get(&format!("http://{address}{path}")).ok()?;
        serde_json::from_str(&body).ok()
    }

    /// What it says of its only pipeline.
    pub fn status(&self) -> Option<Value> {
        Some(self.json("/api/v1/status")?["pipelines"]["alarms"].clone())
    }

    /// What it says of a partition's offsets; `None` when it is not its own.
    pub fn offset(&self, kind: &str, partition: i32) -> Option<i64> {
        let backlog = self.json("/api/v1/backlog")?;
        backlog["pipelines"]["alarms"]["partitions"][partition.to_string()][kind].as_i64()
    }

    /// What the store has of an alarm, in the order of time.
    pub fn stored(&self, alarm: &str) -> Option<Vec<String>> {
        let rows = self.json(&format!("/api/v1/query/alarms?alarm_id={alarm}&limit=100000"))?;
        let reason = |row: &Value| row["reason"].as_str().map(str::to_owned);
        rows.as_array()?.iter().map(reason).collect()
    }

    /// How many rows the store has.
    pub fn stored_count(&self) -> Option<usize> {
        Some(self.json("/api/v1/query/alarms?limit=100000")?.as_array()?.len())
    }

    pub fn lines(&self) -> Vec<String> {
        self.process.log().lines().map(str::to_owned).collect()
    }

    pub fn wait_ready(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        while self.offset("durable", 0).is_none() || self.offset("durable", 1).is_none() {
            if Instant::now() > deadline {
                return Err(format!(
                    "nothing taken after {timeout:?}:\n{}",
                    self.process.log_tail()
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// The codes in some log lines.
pub fn codes(lines: &[String]) -> BTreeSet<String> {
    lines
        .iter()
        .filter_map(|line| {
            let (_, rest) = line.split_once("\"code\":\"")?;
            Some(rest.split_once('"')?.0.to_owned())
        })
        .collect()
}
