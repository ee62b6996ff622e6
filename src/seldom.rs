//! Lines that libraries repeat. The driver of the database logs several of them each second of an outage; what follows
//! from them this program says itself, once. So each place of theirs speaks once in a while, unless it was asked for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::Metadata;
use tracing::callsite::Identifier;

use crate::sync::lock;

/// How often one place of a library may log.
const EVERY: Duration = Duration::from_secs(1800);
/// The libraries.
const LIBRARIES: [&str; 1] = ["scylla"];

/// When which place logged.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Mutex<HashMap<Identifier, Instant>>,
}

impl Seldom {
    /// Whether a line from this place is to be logged at `now`; then it counts as logged.
    pub fn is_due(&self, place: &Metadata<'_>, now: Instant) -> bool {
        let library = place.target().split("::").next().unwrap_or_default();
        if !LIBRARIES.contains(&library) {
            return true;
        }
        let mut last = lock(&self.last);
        let last = last.entry(place.callsite());
        match last {
            std::collections::hash_map::Entry::Occupied(mut said) => {
                let is_due = now.saturating_duration_since(*said.get()) >= EVERY;
                if is_due {
                    said.insert(now);
                }
                is_due
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(now);
                true
            }
        }
    }
}

/// Whether `level`, as the configuration has it, asks for one of these libraries.
#[must_use]
pub fn is_asked_for(level: &str) -> bool {
    level.split(',').any(|directive| {
        let target = directive.trim().split(['=', '[', ':']).next().unwrap_or_default();
        LIBRARIES.contains(&target)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tracing_subscriber::Layer as _;
    use tracing_subscriber::filter::dynamic_filter_fn;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    struct Count(Arc<AtomicU64>);

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Count {
        fn on_event(&self, _: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_place_of_the_driver_speaks_once_in_a_while_and_ours_whenever_they_like() {
        let counted = Arc::new(AtomicU64::new(0));
        let seldom = Seldom::default();
        let filter = dynamic_filter_fn(move |place, _| seldom.is_due(place, Instant::now()));
        let layers =
            tracing_subscriber::registry().with(Count(counted.clone()).with_filter(filter));
        tracing::subscriber::with_default(layers, || {
            for _ in 0..100 {
                tracing::warn!(target: "scylla::cluster", "one place");
                tracing::warn!(target: "scylla::cluster", "another place");
            }
            assert_eq!(counted.load(Ordering::Relaxed), 2);
            for _ in 0..100 {
                tracing::warn!("ours");
            }
            assert_eq!(counted.load(Ordering::Relaxed), 102);
        });
    }

    #[test]
    fn a_level_for_the_driver_asks_for_all_its_lines() {
        assert!(is_asked_for("info,scylla=debug") && is_asked_for("scylla::cluster=trace"));
        assert!(!is_asked_for("info") && !is_asked_for("storage=debug,scyllax=info"));
    }
}
