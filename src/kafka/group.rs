//! Membership in a group: how long a rebalance may take, and how a group refuses a member.

use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka::statistics::ConsumerGroup;
use wal::{Fs, Position, Wal, WalError};

use crate::kafka_trouble::{GROUP, GROUP_PROTOCOL, Trouble};

/// A rebalance takes no longer, however long a session is: the thread must not look stuck.
const REBALANCE_TIME_MOST: Duration = Duration::from_secs(30);
/// How often a log that is waited for is looked at: it may have failed, or have no room.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What the client library allows between two polls unless it is told otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// Why the consumer is of no use any more. Nothing is lost by it: what was not committed is consumed again.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The group has given our name to somebody else.
    #[error("another process is member `{member}` of group `{group}`: {FENCED_HINT}")]
    Fenced {
        /// The name.
        member: String,
        /// The group.
        group: String,
    },
    /// The client library says that it cannot go on.
    #[error("consumer of group `{group}`: {reason}")]
    Fatal {
        /// The group.
        group: String,
        /// What it says.
        reason: String,
    },
}

/// What to do about [`MemberError::Fenced`].
pub(super) const FENCED_HINT: &str = "give each process an `instance` (or kafka.group_instance_id) of its own, then start this one again";

impl MemberError {
    /// What a fatal error of the client library means.
    pub(super) fn of(code: RDKafkaErrorCode, reason: String, group: &str, member: &str) -> Self {
        let (group, member) = (group.to_owned(), member.to_owned());
        match code {
            RDKafkaErrorCode::FencedInstanceId => Self::Fenced { member, group },
            _ => Self::Fatal { group, reason },
        }
    }

    /// Stable code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => "KAFKA_FENCED",
            Self::Fatal { .. } => "KAFKA_FATAL",
        }
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::Fenced { .. } => FENCED_HINT,
            Self::Fatal { .. } => "the process ends; its supervisor should start it again",
        }
    }
}

/// How a group refuses to take a member, if that is what the error says.
pub(super) fn refusal(code: RDKafkaErrorCode, group: &str) -> Option<Trouble> {
    let (code, what, hint) = match code {
        RDKafkaErrorCode::InconsistentGroupProtocol => (
            GROUP_PROTOCOL,
            "its members share the partitions in another way, as an old persister does",
            "stop all members of the old persister, then start; this one joins by itself when the last of them is gone",
        ),
        RDKafkaErrorCode::GroupMaxSizeReached => (
            GROUP,
            "it has as many members as the brokers allow",
            "raise the brokers' group.max.size",
        ),
        RDKafkaErrorCode::InvalidSessionTimeout => (
            GROUP,
            "the brokers do not allow this kafka.session_timeout",
            "choose one between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms",
        ),
        RDKafkaErrorCode::GroupAuthorizationFailed => {
            (GROUP, "not authorized", "grant our user Read on this group")
        }
        _ => return None,
    };
    let message = format!("group {group}: {what}");
    Some(Trouble { code, message, hint, suspected: false })
}

/// What the group looks like from here.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct GroupState {
    /// Our name in it; `None`: a member without a name.
    pub member: Option<String>,
    /// What the client library is doing about it; `steady` between rebalances.
    pub state: String,
    /// How often partitions were given to us or taken from us since the start.
    pub rebalances: u64,
}

impl GroupState {
    pub(super) fn update(&mut self, group: &ConsumerGroup) {
        self.state.clone_from(&group.join_state);
        self.rebalances = u64::try_from(group.rebalance_cnt).unwrap_or(0);
    }
}

/// How long each half of a rebalance may take, giving up and being given: together no longer than a session.
pub(super) fn rebalance_time(session_timeout: Duration) -> Duration {
    (session_timeout / 2).min(REBALANCE_TIME_MOST)
}

/// The client library refuses a session that is longer than this.
pub(super) fn poll_interval(session_timeout: Duration) -> Duration {
    session_timeout.max(POLL_INTERVAL)
}

/// When everything that a callback waits for must be over, all waits together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Instant);

impl Deadline {
    pub(super) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// What is left of it.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Waits until everything before `end` is durable; false when there is no time left or no room. The committer does the
/// work: a disk that hangs must not hold up a rebalance.
pub(super) fn wait_durable<F: Fs>(
    wal: &Wal<F>,
    end: Position,
    deadline: Deadline,
) -> Result<bool, WalError> {
    let beyond = Position::new(end.get().saturating_sub(1));
    loop {
        let wait = deadline.left().min(LOOK_INTERVAL);
        if wal.wait_durable(beyond, wait).through() >= end {
            return Ok(true);
        }
        let status = wal.status();
        if let Some(cause) = status.poisoned {
            return Err(WalError::Poisoned { cause: cause.into() });
        }
        if wait.is_zero() || status.out_of_space {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use wal::sim::SimDisk;
    use wal::{Batch, NoCarry, WalConfig};

    use super::*;

    #[test]
    fn a_log_that_does_not_become_durable_is_waited_for_no_longer_than_the_deadline() {
        let config = WalConfig::default();
        let (wal, _) =
            Wal::open(SimDisk::new(1), config, Box::new(NoCarry), Duration::ZERO).unwrap();
        let mut batch = Batch::new();
        batch.push(b"record").unwrap();
        let end = wal.append(batch).unwrap().range().end;
        // Nobody writes it, as when the disk hangs.
        let begun = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(150));
        assert!(!wait_durable(&wal, end, deadline).unwrap());
        assert!(begun.elapsed() >= Duration::from_millis(150));
        assert!(begun.elapsed() < Duration::from_secs(5));
        wal.commit().unwrap();
        assert!(wait_durable(&wal, end, deadline).unwrap(), "what is durable needs no time");
    }

    #[test]
    fn both_halves_of_a_rebalance_are_over_before_the_session_is() {
        for seconds in [6, 10, 45, 600, 1800] {
            let session = Duration::from_secs(seconds);
            assert!(2 * rebalance_time(session) <= session);
            assert!(rebalance_time(session) >= Duration::from_secs(3));
            assert!(poll_interval(session) >= session);
        }
    }

    #[test]
    fn waits_share_what_is_left_of_a_deadline() {
        let deadline = Deadline::after(Duration::from_millis(50));
        assert!(deadline.left() <= Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(deadline.left(), Duration::ZERO);
    }

    #[test]
    fn every_fatal_error_has_a_code_and_a_hint() {
        let fenced = MemberError::of(
            RDKafkaErrorCode::FencedInstanceId,
            "reason".to_owned(),
            "1_metrics",
            "edge-7",
        );
        assert_eq!(fenced.code(), "KAFKA_FENCED");
        let text = fenced.to_string();
        assert!(text.contains("`edge-7`") && text.contains("`1_metrics`"), "{text}");
        let other = MemberError::of(
            RDKafkaErrorCode::InvalidRequest,
            "why it ended".to_owned(),
            "1_metrics",
            "edge-7",
        );
        assert_eq!(other.code(), "KAFKA_FATAL");
        assert!(other.to_string().contains("why it ended") && !other.hint().is_empty());
    }

    #[test]
    fn a_group_of_another_protocol_is_told_from_an_outage() {
        let refused = refusal(RDKafkaErrorCode::InconsistentGroupProtocol, "1_metrics").unwrap();
        assert_eq!(refused.code, "KAFKA_GROUP_PROTOCOL");
        assert!(refused.hint.contains("stop all members of the old persister, then start"));
        assert!(refusal(RDKafkaErrorCode::CoordinatorNotAvailable, "1_metrics").is_none());
    }
}
