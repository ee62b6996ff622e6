//! Persisters as processes, and the site they work for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::process::ProcessBuilder;
use harness::{Cassandra, Kafka, Process, http};
use tempfile::TempDir;

/// The program, or another build of it that is to be tested.
fn program() -> String {
    std::env::var("MONASCA_PERSISTER_PROGRAM")
        .unwrap_or_else(|_| env!("CARGO_BIN_EXE_monasca-persister").to_owned())
}

pub fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// Topics, groups, a keyspace and directories of one test.
#[derive(Clone)]
pub struct Site {
    pub metrics_topic: String,
    pub alarms_topic: String,
    pub metrics_group: String,
    pub alarms_group: String,
    pub keyspace: String,
    pub contact_point: String,
    bootstrap: String,
    dir: Arc<TempDir>,
}

impl Site {
    pub fn prepare(kafka: &Kafka, cassandra: &Cassandra, partitions: i32) -> Self {
        let site = Self {
            metrics_topic: harness::unique("metrics"),
            alarms_topic: harness::unique("alarms"),
            metrics_group: harness::unique("1_metrics"),
            alarms_group: harness::unique("1_alarm-state-transitions"),
            keyspace: harness::unique("monasca"),
            contact_point: cassandra.contact_point(),
            bootstrap: kafka.bootstrap(),
            dir: Arc::new(TempDir::with_prefix("persister-").unwrap()),
        };
        site.create_topics(kafka, partitions);
        // It creates what is missing; a node that is busy with other tests may need longer than a request may take.
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let (applied, text) = site.command("schema", &["schema", "apply"]);
            if applied {
                return site;
            }
            assert!(Instant::now() < deadline, "schema apply: {text}");
        }
    }

    fn create_topics(&self, kafka: &Kafka, partitions: i32) {
        kafka.create_topic(&self.metrics_topic, partitions).unwrap();
        kafka.create_topic(&self.alarms_topic, partitions).unwrap();
    }

    /// Other topics and groups, of the same keyspace and the same instances.
    pub fn with_other_topics(&self, kafka: &Kafka, partitions: i32) -> Self {
        let other = Self {
            metrics_topic: harness::unique("metrics"),
            alarms_topic: harness::unique("alarms"),
            metrics_group: harness::unique("1_metrics"),
            alarms_group: harness::unique("1_alarm-state-transitions"),
            ..self.clone()
        };
        other.create_topics(kafka, partitions);
        other
    }

    /// Persisters reach Kafka there from now on, for example through a link.
    pub fn reach_kafka_at(&mut self, bootstrap: String) {
        self.bootstrap = bootstrap;
    }

    pub fn groups(&self) -> [(String, &str); 2] {
        [
            (self.metrics_group.clone(), &self.metrics_topic),
            (self.alarms_group.clone(), &self.alarms_topic),
        ]
    }

    fn environment(&self, instance: &str) -> Vec<(String, String)> {
        let set = |key: &str, value: &str| (format!("MONASCA_PERSISTER__{key}"), value.to_owned());
        vec![
            set("DATA_DIR", &self.dir.path().join(instance).to_string_lossy()),
            set("INSTANCE", instance),
            set("KAFKA__BOOTSTRAP_SERVERS", &self.bootstrap),
            set("KAFKA__SESSION_TIMEOUT", "6s"),
            set("METRICS__TOPIC", &self.metrics_topic),
            set("ALARMS__TOPIC", &self.alarms_topic),
            set("METRICS__GROUP_ID", &self.metrics_group),
            set("ALARMS__GROUP_ID", &self.alarms_group),
            set("STORE__CASSANDRA__CONTACT_POINTS", &self.contact_point),
            set("STORE__CASSANDRA__KEYSPACE", &self.keyspace),
            set("STORE__CASSANDRA__CONSISTENCY", "ONE"),
            set("WAL__HOLD_BACK", "2s"),
        ]
    }

    /// Both logs of an instance.
    pub fn log_dir(&self, instance: &str) -> std::path::PathBuf {
        self.dir.path().join(instance).join("wal")
    }

    /// Runs a command of the program to its end: success, and what it printed.
    pub fn command(&self, instance: &str, arguments: &[&str]) -> (bool, String) {
        let output = std::process::Command::new(program())
            .args(arguments)
            .envs(self.environment(instance))
            .output()
            .unwrap();
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Instances that have a data directory.
    pub fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("dead-letters").is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Waits until the groups have committed everything.
    pub fn wait_committed(&self, kafka: &Kafka, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let mut state = String::new();
        while Instant::now() < deadline {
            let behind = self.groups().iter().any(|(group, topic)| {
                let Ok(mut ends) = kafka.end_offsets(topic) else { return true };
                ends.retain(|_, end| *end > 0);
                let committed = kafka.committed(group, topic).unwrap_or_default();
                state = format!("{group}: ends {ends:?}, committed {committed:?}");
                ends != committed
            });
            if !behind {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Err(format!("offsets are not committed after {timeout:?}: {state}"))
    }
}

/// A running persister.
pub struct Persister {
    process: Process,
    url: String,
}

impl Persister {
    pub fn start(site: &Site, instance: &str, environment: &[(&str, &str)]) -> Self {
        let persister = Self::launch(site, instance, environment);
        if !http::wait_ok(&format!("{}/readyz", persister.url), Duration::from_secs(60)) {
            panic!("the persister is not ready after 60 s:\n{}", persister.process.log_tail());
        }
        persister
    }

    /// Starts one, and waits until it answers, ready or not.
    pub fn launch(site: &Site, instance: &str, environment: &[(&str, &str)]) -> Self {
        let port = harness::free_port().unwrap();
        let mut builder =
            ProcessBuilder::new(program(), site.dir.path().join(format!("{instance}.log")))
                .args(["run"])
                .env("MONASCA_PERSISTER__HTTP__BIND", format!("127.0.0.1:{port}"));
        for (name, value) in site.environment(instance) {
            builder = builder.env(name, value);
        }
        for (name, value) in environment {
            builder = builder.env(*name, *value);
        }
        let process = builder.start().unwrap();
        let url = format!("http://127.0.0.1:{port}");
        if !http::wait_ok(&format!("{url}/livez"), Duration::from_secs(60)) {
            panic!("the persister does not answer after 60 s:\n{}", process.log_tail());
        }
        Self { process, url }
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub fn freeze(&self) {
        self.process.freeze();
    }

    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// SIGTERM; see [`Persister::wait_exit`].
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Waits until it ends by itself: its exit code.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<i32> {
        self.process.wait(timeout).and_then(|status| status.code())
    }

    /// Everything that the processes of this instance have printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Reasons for its state that have this code: hints.
    pub fn hints(&self, code: &str) -> Vec<String> {
        let status = self.json("/api/v1/status");
        let reasons = status["reasons"].as_array().unwrap().iter();
        reasons
            .filter(|reason| reason["code"] == code)
            .map(|reason| reason["hint"].as_str().unwrap().to_owned())
            .collect()
    }

    /// How often the group has given partitions of the metrics to this process or taken them.
    pub fn rebalances(&self) -> u64 {
        self.json("/api/v1/status")["pipelines"]["metrics"]["group"]["rebalances"].as_u64().unwrap()
    }

    pub fn health(&self) -> (bool, String) {
        let (status, body) = http::get(&format!("{}/healthcheck", self.url)).unwrap();
        (status == 200, body)
    }

    pub fn is_ready(&self) -> bool {
        http::get(&format!("{}/readyz", self.url)).is_ok_and(|(status, _)| status == 200)
    }

    /// The end of what it logged.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub fn json(&self, path: &str) -> serde_json::Value {
        let (_, body) = http::get(&self.url(path)).unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// The first value of a metric of a pipeline.
    pub fn metric(&self, name: &str, pipeline: &str) -> Option<f64> {
        let (_, text) = http::get(&self.url("/metrics")).unwrap();
        let start = format!("monasca_persister_{name}{{");
        let label = format!("pipeline=\"{pipeline}\"");
        let line = text.lines().find(|line| line.starts_with(&start) && line.contains(&label))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// What one pipeline says of its backlog.
    pub fn backlog(&self, pipeline: &str) -> serde_json::Value {
        self.json("/api/v1/backlog")["pipelines"][pipeline].clone()
    }

    /// Codes of what is the matter.
    pub fn reasons(&self) -> Vec<String> {
        let status = self.json("/api/v1/status");
        let reasons = status["reasons"].as_array().unwrap();
        reasons.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until `done` says so; `what` is what it is waited for.
    pub fn wait(&self, what: &str, timeout: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + timeout;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "not {what} after {timeout:?}: {}\n{}",
                self.json("/api/v1/status"),
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Supervisors would leave it alone.
    pub fn is_alive(&self) -> bool {
        http::get(&format!("{}/livez", self.url)).is_ok_and(|(status, _)| status == 200)
    }

    /// The most memory it has had, in bytes.
    pub fn memory_peak(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.pid().unwrap());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Rows that the store has confirmed to this process.
    pub fn rows_written(&self) -> u64 {
        let status = self.json("/api/v1/status");
        ["metrics", "alarms"]
            .iter()
            .map(|pipeline| {
                status["pipelines"][pipeline]["delivered"]["rows_written"].as_u64().unwrap()
            })
            .sum()
    }

    /// Waits until this process has taken this many metrics from Kafka.
    pub fn wait_taken(&self, metrics: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.metrics_taken() < metrics {
            assert!(
                Instant::now() < deadline,
                "not {metrics} messages after {timeout:?}:\n{}",
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the group has given this process so many partitions of the metrics.
    pub fn wait_assigned(&self, partitions: usize, timeout: Duration) {
        self.wait_partitions("metrics", partitions, timeout);
    }

    /// Waits until the group has given this process so many partitions of a pipeline.
    pub fn wait_partitions(&self, pipeline: &str, partitions: usize, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        loop {
            let backlog = self.backlog(pipeline);
            let assigned = &backlog["partitions"];
            if assigned.as_object().unwrap().len() == partitions {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not {partitions} partitions after {timeout:?}: {assigned}\n{}",
                self.process.log_tail()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn metrics_taken(&self) -> u64 {
        let status = self.json("/api/v1/status");
        status["pipelines"]["metrics"]["intake"]["messages"].as_u64().unwrap()
    }

    /// Waits until nothing waits in its logs.
    pub fn wait_delivered(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            let backlog = self.json("/api/v1/backlog");
            if ["metrics", "alarms"]
                .iter()
                .all(|pipeline| backlog["pipelines"][pipeline]["records"] == 0)
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Err(format!(
            "not delivered after {timeout:?}: {}\n{}",
            self.json("/api/v1/status"),
            self.process.log_tail()
        ))
    }

    /// Messages that were owed and fetched again by this process.
    pub fn fetched_again(&self) -> u64 {
        let status = self.json("/api/v1/status");
        ["metrics", "alarms"]
            .iter()
            .map(|pipeline| {
                status["pipelines"][pipeline]["ledger"]["fetched_again"].as_u64().unwrap()
            })
            .sum()
    }

    /// Waits until the ledgers were read and nothing is owed; damage shows when the reader comes to it.
    pub fn wait_nothing_owed(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let mut quiet = 0;
        while Instant::now() < deadline {
            let status = self.json("/api/v1/status");
            let done = ["metrics", "alarms"].iter().all(|pipeline| {
                let ledger = &status["pipelines"][pipeline]["ledger"];
                ledger["open"] == true && ledger["owed"].as_array().unwrap().is_empty()
            });
            quiet = if done { quiet + 1 } else { 0 };
            if quiet > 12 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Err(format!("something is owed after {timeout:?}:\n{}", self.process.log_tail()))
    }

    /// Waits until no order is left in the data directory.
    pub fn wait_order_carried_out(
        &self,
        site: &Site,
        instance: &str,
        timeout: Duration,
    ) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let orders = site.dir.path().join(instance).join("orders");
        while Instant::now() < deadline {
            if std::fs::read_dir(&orders).unwrap().next().is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(format!("not carried out after {timeout:?}:\n{}", self.process.log_tail()))
    }

    /// SIGTERM: it must end by itself with exit code 0. Returns the rows it wrote.
    pub fn stop(mut self) -> Result<u64, String> {
        let rows = self.rows_written();
        self.process.terminate();
        match self.process.wait(Duration::from_secs(40)) {
            Some(status) if status.code() == Some(0) => Ok(rows),
            other => Err(format!("ended with {other:?}:\n{}", self.process.log_tail())),
        }
    }
}
