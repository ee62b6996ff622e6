//! Which lines the log has, changed while the program runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::{Registry, reload};

use crate::seldom;
use crate::sync::lock;

/// The filter in use. Clones change the same one.
#[derive(Debug, Clone, Default)]
pub struct LogLevel {
    handle: Option<reload::Handle<EnvFilter, Registry>>,
    level: Arc<Mutex<String>>,
    /// The level names a library that otherwise speaks seldom.
    all: Arc<AtomicBool>,
}

/// A filter that makes no sense, or a log that has none.
#[derive(Debug, thiserror::Error)]
#[error("logging.level `{level}`: {reason}")]
pub struct LogLevelError {
    level: String,
    reason: String,
}

impl LogLevel {
    /// A filter, and the handle that changes it.
    ///
    /// # Errors
    /// `level` makes no sense.
    pub fn new(level: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Self), LogLevelError> {
        let (filter, handle) = reload::Layer::new(parse(level)?);
        let log_level = Self {
            handle: Some(handle),
            level: Arc::new(Mutex::new(level.to_owned())),
            all: Arc::new(AtomicBool::new(seldom::is_asked_for(level))),
        };
        Ok((filter, log_level))
    }

    /// Changes it.
    ///
    /// # Errors
    /// `level` makes no sense, and the old one stays.
    pub fn set(&self, level: &str) -> Result<(), LogLevelError> {
        let filter = parse(level)?;
        let wrong = |reason: String| LogLevelError { level: level.to_owned(), reason };
        let handle = self.handle.as_ref().ok_or_else(|| wrong("there is no log".to_owned()))?;
        handle.reload(filter).map_err(|error| wrong(error.to_string()))?;
        self.all.store(seldom::is_asked_for(level), Ordering::Relaxed);
        level.clone_into(&mut lock(&self.level));
        Ok(())
    }

    /// The level in use.
    #[must_use]
    pub fn current(&self) -> String {
        lock(&self.level).clone()
    }

    /// Whether it asks for every line of libraries that otherwise speak seldom.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.all.load(Ordering::Relaxed)
    }
}

fn parse(level: &str) -> Result<EnvFilter, LogLevelError> {
    EnvFilter::try_new(level)
        .map_err(|error| LogLevelError { level: level.to_owned(), reason: error.to_string() })
}
