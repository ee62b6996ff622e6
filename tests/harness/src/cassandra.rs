//! A real Cassandra node.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::kafka::keep_when_panicking;
use crate::process::{Process, ProcessBuilder};
use crate::{HarnessError, free_port, jars};

const NAME: &str = "cassandra-5.0.4";
/// Of one attempt to start.
const READY_WAIT: Duration = Duration::from_secs(120);
/// A start was seen to hang without a word at its very end, once in hundreds.
const START_ATTEMPTS: usize = 2;

/// What a node is started with.
#[derive(Debug, Clone, Default)]
pub struct CassandraBuilder {
    settings: Vec<(String, String)>,
    removed: Vec<String>,
    arguments: Vec<String>,
    cpu: Option<usize>,
    /// Ports of the first node of its cluster.
    beside: Option<(u16, u16)>,
}

/// Where nodes listen: clients take all nodes of a cluster to have the same port.
const FIRST_HOST: &str = "127.0.0.1";
const SECOND_HOST: &str = "127.0.0.2";

impl CassandraBuilder {
    /// Sets a key of `cassandra.yaml`, in place of the one that is there.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Removes a key of `cassandra.yaml`.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.removed.push(key.to_owned());
        self
    }

    /// Gives the JVM one more argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Makes it the second node of the cluster of `first`.
    #[must_use]
    pub fn beside(mut self, first: &Cassandra) -> Self {
        self.beside = Some((first.port, first.storage_port));
        // So long it asks the first about the cluster before it gives up.
        self.argument("-Dcassandra.ring_delay_ms=3000")
    }

    /// Pins it to one core: for benchmarks.
    #[must_use]
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// [`HarnessError`].
    pub fn start(self) -> Result<Cassandra, HarnessError> {
        let lib = jars::directory(NAME, include_str!("../services/cassandra/pom.xml"))?;
        let dir =
            TempDir::with_prefix("cassandra-").map_err(HarnessError::io("create directory"))?;
        for part in ["data", "commitlog", "hints", "saved", "cdc"] {
            std::fs::create_dir(dir.path().join(part))
                .map_err(HarnessError::io(format!("create {part}")))?;
        }
        let (host, (port, storage_port)) = match self.beside {
            Some(ports) => (SECOND_HOST, ports),
            None => (FIRST_HOST, (free_port()?, free_port()?)),
        };
        let mut yaml = include_str!("../services/cassandra/cassandra.yaml")
            .replace("@HOST@", host)
            .replace("@PORT@", &port.to_string())
            .replace("@STORAGE_PORT@", &storage_port.to_string())
            .replace("@SSL_STORAGE_PORT@", &free_port()?.to_string())
            .replace("@DIR@", &dir.path().to_string_lossy());
        for key in &self.removed {
            yaml = without(&yaml, key);
        }
        for (key, value) in &self.settings {
            yaml = with(&yaml, key, value);
        }
        let config = dir.path().join("cassandra.yaml");
        std::fs::write(&config, yaml).map_err(HarnessError::io("write cassandra.yaml"))?;
        let logging = dir.path().join("logback.xml");
        std::fs::write(&logging, include_str!("../services/cassandra/logback.xml"))
            .map_err(HarnessError::io("write logback.xml"))?;
        let agent = std::fs::read_dir(&lib)
            .map_err(HarnessError::io("read the jars"))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("jamm-"))
            })
            .ok_or_else(|| HarnessError::Missing(format!("no jamm jar in {}", lib.display())))?;
        let builder = ProcessBuilder::new("java", dir.path().join("cassandra.log"))
            .args(["-Xms512m", "-Xmx1g"])
            .args(
                include_str!("../services/cassandra/jvm.options")
                    .lines()
                    .filter(|line| line.starts_with('-')),
            )
            .args([
                format!("-javaagent:{}", agent.display()),
                format!("-Dcassandra.config=file://{}", config.display()),
                format!("-Dcassandra.storagedir={}", dir.path().display()),
                format!("-Dlogback.configurationFile={}", logging.display()),
            ])
            .args(self.arguments)
            .args([
                "-cp".to_owned(),
                format!("{}/*", lib.display()),
                "org.apache.cassandra.service.CassandraDaemon".to_owned(),
            ])
            .cpu(self.cpu);
        let process = builder.start()?;
        let mut cassandra =
            Cassandra { process, builder, host, port, storage_port, dir: Some(dir) };
        cassandra.wait_ready()?;
        Ok(cassandra)
    }
}

/// A running node. Dropping it ends it.
#[derive(Debug)]
pub struct Cassandra {
    process: Process,
    builder: ProcessBuilder,
    host: &'static str,
    port: u16,
    storage_port: u16,
    dir: Option<TempDir>,
}

impl Cassandra {
    /// Starts a node with the defaults.
    ///
    /// # Errors
    /// [`HarnessError`].
    pub fn start() -> Result<Self, HarnessError> {
        Self::builder().start()
    }

    /// What can be chosen.
    #[must_use]
    pub fn builder() -> CassandraBuilder {
        CassandraBuilder::default()
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn contact_point(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// SIGTERM, and waits until it ended.
    pub fn stop(&mut self) {
        self.process.terminate();
        if self.process.wait(Duration::from_secs(30)).is_none() {
            self.process.kill();
        }
    }

    /// Sets a key of `cassandra.yaml` from the next start on.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn set(&self, key: &str, value: &str) -> Result<(), HarnessError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let path = dir.path().join("cassandra.yaml");
        let yaml =
            std::fs::read_to_string(&path).map_err(HarnessError::io("read cassandra.yaml"))?;
        std::fs::write(&path, with(&yaml, key, value))
            .map_err(HarnessError::io("write cassandra.yaml"))
    }

    /// Port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again on its data, after a kill or a stop.
    ///
    /// # Errors
    /// As [`Cassandra::start`].
    pub fn restart(&mut self) -> Result<(), HarnessError> {
        self.process.kill();
        self.process = self.builder.start()?;
        self.wait_ready()
    }

    /// True until it ended.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Directory of its commit log.
    #[must_use]
    pub fn commit_log(&self) -> std::path::PathBuf {
        self.dir.as_ref().map(|dir| dir.path().join("commitlog")).unwrap_or_default()
    }

    fn wait_ready(&mut self) -> Result<(), HarnessError> {
        for attempt in 1..=START_ATTEMPTS {
            let deadline = Instant::now() + READY_WAIT;
            while Instant::now() < deadline && self.process.is_running() {
                if answers(self.host, self.port) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            if attempt < START_ATTEMPTS && self.process.is_running() {
                self.start_again()?;
            }
        }
        Err(HarnessError::NotReady {
            name: "Cassandra",
            seconds: READY_WAIT.as_secs(),
            log: self.process.log_path().to_owned(),
            tail: self.process.log_tail(),
        })
    }

    /// For a start that hangs; what its threads did stays in the log.
    #[expect(clippy::print_stderr, reason = "for whoever reads the output of the tests")]
    fn start_again(&mut self) -> Result<(), HarnessError> {
        eprintln!("Cassandra hangs and is started again: {}", self.process.log_path().display());
        self.process.print_threads();
        std::thread::sleep(Duration::from_secs(2));
        self.process.kill();
        self.process = self.builder.start()?;
        Ok(())
    }
}

impl Drop for Cassandra {
    fn drop(&mut self) {
        self.process.kill();
        keep_when_panicking(self.dir.take());
    }
}

fn without(yaml: &str, key: &str) -> String {
    let beginning = format!("{key}:");
    let lines = yaml.lines().filter(|line| !line.starts_with(&beginning));
    lines.map(|line| format!("{line}\n")).collect()
}

fn with(yaml: &str, key: &str, value: &str) -> String {
    format!("{}{key}: {value}\n", without(yaml, key))
}

/// Asks for the server's options in CQL's protocol, version 4; any answer of that protocol will do, and so will the
/// refusal of one that wants TLS: the port opens when everything behind it has begun.
fn answers(host: &str, port: u16) -> bool {
    const OPTIONS: [u8; 9] = [0x04, 0, 0, 0, 0x05, 0, 0, 0, 0];
    const RESPONSE_VERSION: u8 = 0x84;
    const ALERT_OF_TLS: u8 = 0x15;
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    let mut first = [0];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(&OPTIONS).is_ok()
        && match stream.read(&mut first) {
            Ok(0) => true,
            Ok(_) => first == [RESPONSE_VERSION] || first == [ALERT_OF_TLS],
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
}
