//! Whether the store may have lost what it confirmed, as the lives of its nodes tell. Pure.
//!
//! A node acknowledges rows before its own commit log is synced, and may lack its last ones when it starts again. It is
//! noticed in three ways: it answers in another life; it does not answer any more, whatever is the reason; or it does not
//! answer at the start, although it did before. Each of them once: what comes back in the life in which it went has
//! lost nothing. One that answers for the first time when a node could have started again since the start may have done
//! so after it had confirmed rows.
//!
//! Losses that follow each other within half a hold-back are dealt with together at its end: what goes out again because of
//! the first one is within the hold-back then. A cluster that is slow, or whose nodes are restarted one after the other, is
//! not given everything many times.

use std::collections::BTreeMap;
use std::time::Duration;

use storage::NodeLife;

/// A node that does not answer for so long is away; with a short hold-back, for a quarter of that.
const AWAY_AFTER: Duration = Duration::from_secs(10);
const AWAY_AFTER_LEAST: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Known {
    life: Option<i64>,
    /// When it answered last; `None`: not since the start.
    seen: Option<Duration>,
    is_away: bool,
}

/// Nodes that may have lost what they confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Those that started again.
    pub restarted: Vec<String>,
    /// Those that do not answer any more.
    pub away: Vec<String>,
    /// When all of them answered for the last time in their old lives; `None`: before the start.
    pub seen: Option<Duration>,
}

/// The nodes.
#[derive(Debug)]
pub struct Lives {
    nodes: BTreeMap<String, Known>,
    started: Duration,
    away_after: Duration,
    hold_back: Duration,
    /// Not dealt with yet.
    pending: Option<Loss>,
    /// When the last one was.
    dealt_with: Option<Duration>,
}

impl Lives {
    /// Nodes that were known before the start, with their lives. One that does not answer for a quarter of the hold-back,
    /// ten seconds at most, is away.
    #[must_use]
    pub fn new(before: BTreeMap<String, i64>, hold_back: Duration, now: Duration) -> Self {
        let away_after = (hold_back / 4).clamp(AWAY_AFTER_LEAST, AWAY_AFTER);
        let known = |life| Known { life: Some(life), seen: None, is_away: false };
        let nodes = before.into_iter().map(|(node, life)| (node, known(life))).collect();
        let (pending, dealt_with) = (None, None);
        Self { nodes, started: now, away_after, hold_back, pending, dealt_with }
    }

    /// Takes the answers of a round that began at `asked` and ended at `now`. Returns a loss that is to be dealt with now.
    pub fn on(&mut self, answers: &[NodeLife], asked: Duration, now: Duration) -> Option<Loss> {
        let mut loss = self.pending.take().unwrap_or(Loss {
            restarted: Vec::new(),
            away: Vec::new(),
            seen: Some(now),
        });
        for NodeLife { node, life } in answers {
            let seen = Some(asked);
            match self.nodes.get_mut(node) {
                None => {
                    // No node starts again faster than one counts as away.
                    if asked.saturating_sub(self.started) >= self.away_after {
                        loss.restarted.push(node.clone());
                        loss.seen = None;
                    }
                    let known = Known { life: *life, seen, is_away: false };
                    self.nodes.insert(node.clone(), known);
                }
                Some(known) => {
                    if known.life.zip(*life).is_some_and(|(before, life)| before != life) {
                        loss.restarted.push(node.clone());
                        loss.seen = loss.seen.min(known.seen);
                    }
                    *known = Known { life: life.or(known.life), seen, is_away: false };
                }
            }
        }
        for (node, known) in &mut self.nodes {
            let silent = now.saturating_sub(known.seen.unwrap_or(self.started));
            if !known.is_away && silent >= self.away_after {
                known.is_away = true;
                loss.away.push(node.clone());
                loss.seen = loss.seen.min(known.seen);
            }
        }
        if loss.restarted.is_empty() && loss.away.is_empty() {
            return None;
        }
        if self.dealt_with.is_some_and(|at| now.saturating_sub(at) < self.hold_back / 2) {
            self.pending = Some(loss);
            return None;
        }
        self.dealt_with = Some(now);
        Some(loss)
    }

    /// What the next start must know, once what was returned is dealt with; `None` while something else is to be. A node
    /// that is away was dealt with, and may be gone for good.
    #[must_use]
    pub fn present(&self) -> Option<BTreeMap<String, i64>> {
        let present = self.nodes.iter().filter(|(_, known)| !known.is_away);
        let present = present.filter_map(|(node, known)| Some((node.clone(), known.life?)));
        self.pending.is_none().then(|| present.collect())
    }

    /// When all nodes were last known to have kept what they had confirmed, or what they lost was dealt with: the
    /// hold-back counts from there, because somebody who could not look, for whatever reason, saw nothing. `asked` is when
    /// the last round began; `None`: no later than before.
    #[must_use]
    pub fn watched_until(&self, asked: Duration) -> Option<Duration> {
        let there = self.nodes.values().filter(|known| !known.is_away);
        let seen = there.map(|known| known.seen.unwrap_or(self.started)).min();
        self.pending.is_none().then(|| seen.unwrap_or(asked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn life(node: &str, life: i64) -> NodeLife {
        NodeLife { node: node.to_owned(), life: Some(life) }
    }

    fn lives(before: &[(&str, i64)]) -> Lives {
        let before = before.iter().map(|(node, life)| ((*node).to_owned(), *life)).collect();
        Lives::new(before, 60 * SECOND, Duration::ZERO)
    }

    fn round(lives: &mut Lives, second: u32, answers: &[NodeLife]) -> Option<Loss> {
        lives.on(answers, second * SECOND, second * SECOND)
    }

    #[test]
    fn a_restart_between_two_questions_is_noticed_once() {
        let mut lives = lives(&[]);
        assert_eq!(round(&mut lives, 1, &[life("a", 7), life("b", 1)]), None, "never seen before");
        let loss = round(&mut lives, 2, &[life("a", 8), life("b", 1)]).unwrap();
        assert_eq!((loss.restarted, loss.away), (vec!["a".to_owned()], vec![]));
        assert_eq!(loss.seen, Some(SECOND));
        assert_eq!(round(&mut lives, 3, &[life("a", 8), life("b", 1)]), None);
    }

    #[test]
    fn a_node_that_is_away_is_noticed_once_and_again_only_if_it_comes_back_in_another_life() {
        let mut lives = lives(&[]);
        round(&mut lives, 1, &[life("a", 7), life("b", 1)]);
        assert_eq!(round(&mut lives, 10, &[life("b", 1)]), None);
        let loss = round(&mut lives, 11, &[life("b", 1)]).unwrap();
        assert_eq!((loss.away, loss.seen), (vec!["a".to_owned()], Some(SECOND)));
        assert_eq!(lives.present().unwrap().len(), 1);
        assert_eq!(round(&mut lives, 60, &[life("b", 1)]), None);
        assert_eq!(round(&mut lives, 61, &[life("a", 7), life("b", 1)]), None, "it lived on");
        assert_eq!(lives.present().unwrap().len(), 2);
        round(&mut lives, 71, &[life("b", 1)]).unwrap();
        let loss = round(&mut lives, 101, &[life("a", 9), life("b", 1)]).unwrap();
        assert_eq!((loss.restarted, loss.seen), (vec!["a".to_owned()], Some(61 * SECOND)));
    }

    #[test]
    fn a_node_that_is_first_seen_when_it_may_have_started_again_may_have_lost_rows() {
        let mut late = lives(&[]);
        assert_eq!(round(&mut late, 9, &[life("a", 7)]), None, "no node starts so fast");
        let loss = round(&mut late, 10, &[life("a", 7), life("b", 1)]).unwrap();
        assert_eq!((loss.restarted, loss.seen), (vec!["b".to_owned()], None));
        assert_eq!(round(&mut late, 11, &[life("a", 7), life("b", 1)]), None);
    }

    #[test]
    fn losses_that_follow_each_other_are_dealt_with_together_before_the_hold_back_is_over() {
        let mut lives = lives(&[]);
        let both = |a, b| [life("a", a), life("b", b)];
        round(&mut lives, 1, &both(1, 1));
        assert_eq!(round(&mut lives, 2, &both(2, 1)).unwrap().restarted, ["a"]);
        assert_eq!(round(&mut lives, 3, &both(2, 2)), None);
        // A crash now must find it again.
        assert_eq!(lives.present(), None);
        assert_eq!(round(&mut lives, 4, &both(3, 2)), None);
        assert_eq!(round(&mut lives, 31, &both(3, 2)), None);
        let loss = round(&mut lives, 32, &both(3, 2)).unwrap();
        assert_eq!((loss.restarted.len(), loss.seen), (2, Some(2 * SECOND)));
        assert_eq!(lives.present().unwrap().len(), 2);
    }

    #[test]
    fn a_restart_while_nobody_looked_is_noticed_at_the_start() {
        let mut back = lives(&[("a", 7)]);
        let loss = round(&mut back, 3, &[life("a", 8)]).unwrap();
        assert_eq!((loss.restarted, loss.seen), (vec!["a".to_owned()], None));
        let mut same = lives(&[("a", 7)]);
        assert_eq!(round(&mut same, 3, &[life("a", 7)]), None);
        // And so is one that is not there yet: the hold-back must not be over before it is.
        let mut away = lives(&[("a", 7)]);
        assert_eq!(round(&mut away, 9, &[]), None);
        let loss = round(&mut away, 10, &[]).unwrap();
        assert_eq!((loss.away, loss.seen), (vec!["a".to_owned()], None));
    }

    #[test]
    fn time_is_watched_only_while_every_node_is_seen_and_nothing_waits_to_be_dealt_with() {
        let mut lives = lives(&[("a", 7)]);
        assert_eq!(lives.watched_until(SECOND), Some(Duration::ZERO), "not seen since the start");
        round(&mut lives, 2, &[life("a", 7), life("b", 1)]);
        assert_eq!(lives.watched_until(2 * SECOND), Some(2 * SECOND));
        round(&mut lives, 5, &[life("b", 1)]);
        assert_eq!(lives.watched_until(5 * SECOND), Some(2 * SECOND), "a may be losing rows");
        round(&mut lives, 12, &[life("b", 1)]).unwrap();
        assert_eq!(lives.watched_until(12 * SECOND), Some(12 * SECOND), "dealt with");
        assert_eq!(round(&mut lives, 13, &[life("b", 2)]), None);
        assert_eq!(lives.watched_until(13 * SECOND), None, "waits to be dealt with");
    }

    #[test]
    fn a_node_that_does_not_say_which_life_it_is_in_is_only_there_or_away() {
        let mut lives = lives(&[]);
        let silent = || [NodeLife { node: "a".to_owned(), life: None }];
        assert_eq!(round(&mut lives, 1, &silent()), None);
        assert_eq!(round(&mut lives, 2, &[life("a", 7)]), None);
        assert_eq!(round(&mut lives, 3, &silent()), None);
        assert!(round(&mut lives, 4, &[life("a", 8)]).is_some());
        assert!(round(&mut lives, 34, &[]).is_some());
    }
}
