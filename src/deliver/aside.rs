//! Rows of replicas that are away leave memory when it is short, so that those of others go on. Pure.
//!
//! One request to each of these replicas stays and tells when they answer again.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use super::lanes::LaneState;
use super::{Deliver, Effect, Lane, UnitId, UnitState};
use crate::breaker::BreakerState;

/// Replicas are away when they have failed for so long.
const AWAY_AFTER: Duration = Duration::from_secs(5);
/// A definition's replicas are away when it has failed so often.
const AWAY_ATTEMPTS: u32 = 5;
/// What was set aside is not read again more often: replicas may come and go.
const COME_BACK_INTERVAL: Duration = Duration::from_secs(30);

/// Who is away.
struct Away {
    lanes: BTreeSet<Lane>,
    /// All definitions fail.
    definitions: bool,
}

impl Away {
    /// Whether these are definitions, and some of those that they go to are away.
    fn has_nobody(&self, state: &UnitState) -> bool {
        state.is_definition && (self.definitions || state.attempts >= AWAY_ATTEMPTS)
    }
}

/// What became of rows that were set aside.
#[derive(Debug, Default)]
pub(super) struct AsideState {
    /// Rows set aside since the store last answered.
    rows_unanswered: usize,
    /// There are some.
    is_any: bool,
    /// Replicas of some of them answer again.
    is_wanted: bool,
    came_back: Option<Duration>,
}

impl AsideState {
    /// When they are to be read again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.is_wanted.then(|| {
            self.came_back.map_or(Duration::ZERO, |at| at.saturating_add(COME_BACK_INTERVAL))
        })
    }

    /// The store took something.
    pub(super) fn answered(&mut self) {
        self.rows_unanswered = 0;
    }

    /// All of it will be gathered again.
    pub(super) fn start_over(&mut self) {
        self.is_any = false;
        self.is_wanted = false;
    }
}

impl Deliver {
    /// Whether the rows of replicas that are away are at least half of `rows_held_max`, and there may be others that could
    /// go on without them.
    fn is_short_of_room(&self, rows_held_max: usize, now: Duration) -> bool {
        let half = rows_held_max / 2;
        if self.outstanding_rows < half {
            return false;
        }
        let away = self.away(now);
        // Others may be there, and find no room to be asked. Once: with the whole store away there is always more.
        let are_others =
            self.breaker.state() == BreakerState::Closed || self.aside.rows_unanswered < half;
        let mut rows = 0_usize;
        for state in self.units.values() {
            if away.lanes.contains(&state.lane) {
                rows = rows.saturating_add(state.rows);
            }
            if away.has_nobody(state) {
                for follower in state.followers.iter().filter_map(|(_, id)| self.units.get(id)) {
                    if !away.lanes.contains(&follower.lane) {
                        rows = rows.saturating_add(follower.rows);
                    }
                }
            }
        }
        are_others && rows >= half
    }

    fn away(&self, now: Duration) -> Away {
        let is_away = |state: &LaneState| {
            state.fails_since.is_some_and(|since| now.saturating_sub(since) >= AWAY_AFTER)
        };
        let mut lanes: BTreeSet<Lane> =
            self.lanes.iter().filter(|(_, state)| is_away(state)).map(|(lane, _)| *lane).collect();
        Away { definitions: lanes.remove(&Lane::Definitions), lanes }
    }

    /// Sets the rows of replicas that are away aside, but one request to each.
    pub(super) fn make_room(
        &mut self,
        rows_held_max: usize,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_short_of_room(rows_held_max, now) {
            return;
        }
        let away = self.away(now);
        let mut ids: Vec<UnitId> = self.units.keys().copied().collect();
        ids.sort_unstable();
        let mut probed: BTreeSet<Lane> = BTreeSet::new();
        let mut leaving: HashSet<UnitId> = HashSet::new();
        // What is in flight cannot leave, and tells as well as anything; else what was tried before.
        let ranks: [fn(&UnitState) -> bool; 3] = [
            |state| state.is_in_flight,
            |state| !state.is_in_flight && state.attempts > 0,
            |state| !state.is_in_flight && state.attempts == 0,
        ];
        for has_rank in ranks {
            for id in &ids {
                let Some(state) = self.units.get_mut(id) else { continue };
                if !away.lanes.contains(&state.lane) || !has_rank(state) {
                    continue;
                }
                if probed.insert(state.lane) || state.is_in_flight {
                    state.is_probe = true;
                } else {
                    leaving.insert(*id);
                }
            }
        }
        let mut definition_probed = false;
        for id in &ids {
            let Some(state) = self.units.get_mut(id) else { continue };
            if !away.has_nobody(state) || state.followers.is_empty() {
                continue;
            }
            let mut followers = state.followers.iter().map(|(_, follower)| *follower);
            if state.is_in_flight || !std::mem::replace(&mut definition_probed, true) {
                state.is_probe = true;
                // It is a request about the first of those that wait for it.
                if let Some(first) = followers.next() {
                    leaving.remove(&first);
                }
            }
            leaving.extend(followers);
        }
        self.leave(&leaving, effects);
    }

    fn leave(&mut self, leaving: &HashSet<UnitId>, effects: &mut Vec<Effect>) {
        if leaving.is_empty() {
            return;
        }
        self.aside.is_any = true;
        let mut needless: Vec<UnitId> = Vec::new();
        for (id, state) in &mut self.units {
            let before = state.followers.len();
            state.followers.retain(|(_, follower)| !leaving.contains(follower));
            let left = before.saturating_sub(state.followers.len());
            self.blocked = self.blocked.saturating_sub(left);
            if left > 0 && state.followers.is_empty() && !state.is_in_flight {
                needless.push(*id);
            }
        }
        // They are asked for again with the rows that need them.
        needless.sort_unstable();
        let stays =
            |unit: &UnitId| !leaving.contains(unit) && needless.binary_search(unit).is_err();
        self.waiting.retain(|(_, unit)| stays(unit));
        for lane in self.lanes.values_mut() {
            lane.ready.retain(stays);
        }
        for unit in needless {
            self.remove_unit(unit);
            effects.push(Effect::Forget { unit, written: false });
        }
        let mut leaving: Vec<UnitId> = leaving.iter().copied().collect();
        leaving.sort_unstable();
        for unit in leaving {
            let Some(state) = self.remove_unit(unit) else { continue };
            self.aside.rows_unanswered = self.aside.rows_unanswered.saturating_add(state.rows);
            let rows = u64::try_from(state.rows).unwrap_or(u64::MAX);
            self.counts.rows_set_aside = self.counts.rows_set_aside.saturating_add(rows);
            effects.push(Effect::SetAside { unit, gather: state.gather });
            if let Some(gather) = self.gathers.get_mut(&state.gather) {
                state.records.iter().for_each(|record| gather.leave(*record));
            }
            self.close_if_finished(state.gather, effects);
        }
    }

    /// A request was answered by replicas that were away.
    pub(super) fn probe_answered(&mut self) {
        self.aside.is_wanted = self.aside.is_any;
    }

    pub(super) fn come_back_when_due(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.aside.due().is_some_and(|due| now >= due) {
            self.aside.is_wanted = false;
            self.aside.came_back = Some(now);
            effects.push(Effect::ComeBack);
        }
    }
}

#[cfg(test)]
mod tests;
