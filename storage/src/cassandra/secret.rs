//! A password that is not held, but read each time it is needed.

use std::fmt;
use std::sync::Arc;

use crate::error::{StoreError, Verdict};

type Read = dyn Fn() -> Result<String, StoreError> + Send + Sync;

/// A secret that is read again for each connection, so that a changed one is taken with the next. Its debug form does
/// not show it.
#[derive(Clone)]
pub struct Secret(Arc<Read>);

impl Secret {
    /// One that `read` gives, or says why not in words that hold no secret.
    pub fn read_by(read: impl Fn() -> Result<String, String> + Send + Sync + 'static) -> Self {
        let unreadable = |why: String| StoreError::new(Verdict::Wait, "DB_CONFIG", why);
        Self(Arc::new(move || read().map_err(unreadable)))
    }

    /// What it is now.
    pub(super) fn get(&self) -> Result<String, StoreError> {
        (self.0)()
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        let secret = secret.to_owned();
        Self::read_by(move || Ok(secret.clone()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
