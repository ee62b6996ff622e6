//! How long others have been silent, by our own monotonic clock. Their wall clocks and ours may be days apart, and a wall
//! clock jumps: what is decided by silence must not depend on either. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What each of the others said when it was last looked at, and for how long it has said nothing else.
#[derive(Debug)]
pub struct Silences<T> {
    /// A longer time between two looks does not count in full: we may have been cut off, and the others with us.
    step_max: Duration,
    others: BTreeMap<String, Other<T>>,
}

#[derive(Debug)]
struct Other<T> {
    says: T,
    looked_at: Duration,
    silent_for: Duration,
}

impl<T: PartialEq> Silences<T> {
    /// Nobody was looked at yet. One look follows another within `step_max`, as long as nothing is in the way.
    #[must_use]
    pub fn new(step_max: Duration) -> Self {
        Self { step_max, others: BTreeMap::new() }
    }

    /// Takes note of what `name` says at monotonic time `now`; returns for how long it has said nothing else.
    pub fn look(&mut self, name: &str, says: T, now: Duration) -> Duration {
        match self.others.get_mut(name) {
            Some(other) if other.says == says => {
                let step = now.saturating_sub(other.looked_at).min(self.step_max);
                other.looked_at = now;
                other.silent_for = other.silent_for.saturating_add(step);
                other.silent_for
            }
            _ => {
                let silent_for = Duration::ZERO;
                self.others.insert(name.to_owned(), Other { says, looked_at: now, silent_for });
                silent_for
            }
        }
    }

    /// Forgets all but these.
    pub fn keep(&mut self, names: &BTreeSet<String>) {
        self.others.retain(|name, _| names.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_counts_from_our_first_look_whatever_the_clocks_say() {
        let mut silences = Silences::new(seconds(10));
        // The other's clock says 1970; that is no silence of half a century.
        assert_eq!(silences.look("other", 0, seconds(5)), seconds(0));
        assert_eq!(silences.look("other", 0, seconds(9)), seconds(4));
        assert_eq!(silences.look("other", 1, seconds(12)), seconds(0), "it said something");
    }

    #[test]
    fn a_time_in_which_nobody_could_look_is_no_silence() {
        let mut silences = Silences::new(seconds(10));
        silences.look("other", 0, seconds(0));
        assert_eq!(silences.look("other", 0, seconds(3600)), seconds(10));
        silences.keep(&BTreeSet::new());
        assert_eq!(silences.look("other", 0, seconds(3601)), seconds(0), "forgotten");
    }
}
