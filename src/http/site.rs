//! What handlers work with.

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use axum::extract::FromRef;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::guard::Guard;
use crate::config::ShownConfig;
use crate::control::Control;
use crate::dead_letters::LetterOrders;
use crate::inspect::Inspect;
use crate::log_level::LogLevel;

/// Most questions at a time that read files.
const LOOKS_MAX: usize = 2;

/// Everything that HTTP may look at, and the few things that it may order.
pub struct SiteParts {
    /// What there is to see.
    pub inspect: Arc<Inspect>,
    /// What is to pause.
    pub control: Arc<Control>,
    /// Which lines the log has.
    pub log_level: LogLevel,
    /// What is wanted of dead letters.
    pub letter_orders: LetterOrders,
    /// Where orders are left.
    pub data_dir: PathBuf,
    /// The configuration in effect, without secrets, and where each value comes from.
    pub config: Arc<Mutex<ShownConfig>>,
    /// Who may ask, and who may change.
    pub guard: Guard,
}

/// What handlers work with; a clone is the same.
#[derive(Clone)]
pub(super) struct Site(Arc<Inner>);

pub(super) struct Inner {
    pub parts: SiteParts,
    /// Streams of events that are open.
    pub streams: AtomicUsize,
    /// Questions that read files, a few at a time: the pipelines need the machine more.
    pub looks: Semaphore,
    /// Filled when all paths are known.
    pub openapi: std::sync::OnceLock<Value>,
}

impl Site {
    pub fn new(parts: SiteParts) -> Self {
        let openapi = std::sync::OnceLock::new();
        let looks = Semaphore::new(LOOKS_MAX);
        Self(Arc::new(Inner { parts, streams: AtomicUsize::new(0), looks, openapi }))
    }
}

impl std::ops::Deref for Site {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FromRef<Site> for Arc<Inspect> {
    fn from_ref(site: &Site) -> Self {
        Arc::clone(&site.parts.inspect)
    }
}
