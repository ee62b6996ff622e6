//! What has been said lately: a fault that lasts for a day must not write a line per second.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often the same thing is said while it lasts.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Remembers when each thing was said last. Things are named by constants, so there are few of them.
#[derive(Debug, Default)]
pub struct Said {
    last: BTreeMap<&'static str, Entry>,
}

#[derive(Debug)]
struct Entry {
    at: Duration,
    unsaid: u64,
}

impl Said {
    /// Whether `what` is to be said at monotonic time `now`, and then how often it was not said since the last time.
    pub fn is_due(&mut self, what: &'static str, now: Duration) -> Option<u64> {
        match self.last.get_mut(what) {
            Some(entry) if now.saturating_sub(entry.at) < SAID_EVERY => {
                entry.unsaid = entry.unsaid.saturating_add(1);
                None
            }
            Some(entry) => {
                entry.at = now;
                Some(std::mem::take(&mut entry.unsaid))
            }
            None => {
                self.last.insert(what, Entry { at: now, unsaid: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_once_a_minute_and_tells_how_often_it_was_not() {
        let mut said = Said::default();
        let due: Vec<Option<u64>> =
            (0..=120).map(|second| said.is_due("a", Duration::from_secs(second))).collect();
        assert_eq!(due.iter().flatten().copied().collect::<Vec<_>>(), [0, 59, 59]);
        assert_eq!(said.is_due("b", Duration::from_secs(120)), Some(0), "another thing");
    }
}
