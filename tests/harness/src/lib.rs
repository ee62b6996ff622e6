//! Real Kafka and Cassandra for tests: started, killed, frozen, cut off and restarted, several side by side.
//!
//! Nothing is left running after a test, not even after one that failed or was killed: see [`process`]. Jars come
//! from Maven coordinates, once; see [`jars`].

pub mod cassandra;
pub mod http;
pub mod jars;
pub mod kafka;
pub mod link;
pub mod process;
pub mod tls;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

pub use cassandra::{Cassandra, CassandraBuilder};
pub use kafka::Kafka;
pub use link::Link;
pub use process::Process;

/// Why a service could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A program that is needed is not installed; the message says what to type.
    #[error("{0}")]
    Missing(String),
    /// A service did not come up; the message ends with the end of its log.
    #[error("{name} is not ready after {seconds} s; the end of {}:\n{tail}", log.display())]
    NotReady {
        /// The service.
        name: &'static str,
        /// How long it had.
        seconds: u64,
        /// Its log.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// The client library refused something.
    #[error("{what}: {reason}")]
    Kafka {
        /// What was tried.
        what: String,
        /// Why it failed.
        reason: String,
    },
}

impl HarnessError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A TCP port of the loopback address that was free a moment ago, and that this process is not given again soon. It is
/// none of those that the operating system gives to connections, which may take one between here and its use.
///
/// # Errors
/// None of them is free.
pub fn free_port() -> Result<u16, HarnessError> {
    const FIRST: u32 = 12_000;
    const PORTS: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut last_error = None;
    for _ in 0..PORTS {
        // Processes that run side by side begin at different places.
        let begin = std::process::id().wrapping_mul(7919);
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % PORTS).unwrap_or(u16::MAX);
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_free) => return Ok(port),
            Err(error) => last_error = Some(error),
        }
    }
    let error = last_error.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
    Err(HarnessError::io("find a free port")(error))
}

/// A name that no other test of this machine uses: letters, digits and underscores.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}_{}_{number}", std::process::id())
}
