//! What fails again and again is said when it begins, when it changes, and once a minute while it lasts.

use std::collections::BTreeMap;
use std::time::Duration;

/// How often one text is said while it lasts.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Texts remembered per code; beyond that all are forgotten and may be said again.
const TEXTS_MAX: usize = 16;

/// When which text was said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    last: BTreeMap<&'static str, BTreeMap<String, Duration>>,
}

impl Said {
    /// Whether `text` is to be said now; it counts as said then.
    pub(crate) fn is_due(&mut self, code: &'static str, text: &str, now: Duration) -> bool {
        let texts = self.last.entry(code).or_default();
        texts.retain(|_, said| now.saturating_sub(*said) < SAID_EVERY);
        if texts.contains_key(text) {
            return false;
        }
        if texts.len() >= TEXTS_MAX {
            texts.clear();
        }
        texts.insert(text.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_said_once_a_minute_and_another_one_at_once() {
        let mut said = Said::default();
        let mut at = |seconds, text| said.is_due("CODE", text, Duration::from_secs(seconds));
        assert!(at(0, "one") && at(1, "two"));
        assert!(!at(2, "one") && !at(59, "one"));
        assert!(at(60, "one"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut said = Said::default();
        for number in 0..1000 {
            assert!(said.is_due("CODE", &number.to_string(), Duration::ZERO));
        }
        assert!(said.last["CODE"].len() <= TEXTS_MAX);
    }
}
