//! Which errors a broker may answer which request with, one row each.
//!
//! Source: the lists of possible error codes at the head of Kafka's response classes
//! (`org.apache.kafka.common.requests.OffsetCommitResponse` and so on, Kafka 4.3), without those that only
//! transactions, share groups, the newer group protocol or replicas meet; beside them what a broker may answer any
//! request with: an unexpected failure, and a connection that ends. Codes that the client library has no name for
//! (`INCONSISTENT_TOPIC_ID`, 103) cannot be injected; it treats them as it treats any other that it does not expect.

use rdkafka::types::RDKafkaApiKey;
use rdkafka::types::RDKafkaRespErr::{self, *};

/// What the client is made to do so that it sends the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing: it sends it all the time.
    None,
    /// Its membership is over: it joins again, and asks where to start.
    MembershipOver,
    /// The coordinator moved: it looks for it.
    CoordinatorMoved,
    /// Its position does not exist: it asks for the ends of the partitions.
    PositionRefused,
}

/// A request and what it may be answered with.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// For people.
    pub name: &'static str,
    pub request: &'static str,
    /// None: errors of a topic's metadata, which are injected by topic.
    pub key: Option<RDKafkaApiKey>,
    pub cause: Cause,
    /// How many errors one program goes through: fewer where each takes longer.
    pub per_lane: usize,
    pub errors: &'static [RDKafkaRespErr],
    /// Those of them that the client library repeats by itself and tells nobody, at least for as long as a row takes;
    /// what they hold up shows as lag, or in other codes.
    pub quiet: &'static [RDKafkaRespErr],
}

/// Ends the connection.
pub const DISCONNECT: RDKafkaRespErr = RD_KAFKA_RESP_ERR__TRANSPORT;

impl Table {
    /// The ledger cannot be kept, so that the group's commits come first to be answered.
    pub fn is_without_ledger(&self) -> bool {
        self.name == WITHOUT_LEDGER
    }
}

/// Somebody else has our member's name: said once, it may be ourselves, and the program joins anew; said again and again
/// it must not go on beside the other, and ends with 78.
pub fn may_end_the_program(error: RDKafkaRespErr) -> bool {
    error == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID
}

const WITHOUT_LEDGER: &str = "OffsetCommit, of the group only";

/// What the ledger's group may be answered as well: it has no members, so nobody can take the name of one.
const COMMIT_ERRORS: &[RDKafkaRespErr] = &[
    RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
    RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
    RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
    RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
    RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
    RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
    RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
    RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
    RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE,
    RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
    RD_KAFKA_RESP_ERR_GROUP_ID_NOT_FOUND,
    RD_KAFKA_RESP_ERR_STALE_MEMBER_EPOCH,
    RD_KAFKA_RESP_ERR_UNKNOWN,
    DISCONNECT,
];

/// What only a member may be answered beside these.
const MEMBER_COMMIT_ERRORS: &[RDKafkaRespErr] = &[RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID];

pub const TABLES: &[Table] = &[
    Table {
        name: "OffsetCommit",
        request: "OffsetCommit",
        key: Some(RDKafkaApiKey::OffsetCommit),
        cause: Cause::None,
        per_lane: 6,
        errors: COMMIT_ERRORS,
        quiet: &[],
    },
    Table {
        name: WITHOUT_LEDGER,
        request: "OffsetCommit",
        key: Some(RDKafkaApiKey::OffsetCommit),
        cause: Cause::None,
        per_lane: 6,
        errors: COMMIT_ERRORS,
        quiet: &[],
    },
    Table {
        name: WITHOUT_LEDGER,
        request: "OffsetCommit",
        key: Some(RDKafkaApiKey::OffsetCommit),
        cause: Cause::None,
        per_lane: 6,
        errors: MEMBER_COMMIT_ERRORS,
        quiet: &[],
    },
    Table {
        name: "OffsetFetch",
        request: "OffsetFetch",
        key: Some(RDKafkaApiKey::OffsetFetch),
        cause: Cause::MembershipOver,
        per_lane: 3,
        errors: &[
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
            DISCONNECT,
        ],
    },
    Table {
        name: "Fetch",
        request: "Fetch",
        key: Some(RDKafkaApiKey::Fetch),
        cause: Cause::None,
        per_lane: 6,
        errors: &[
            RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
            RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
            RD_KAFKA_RESP_ERR_INVALID_MSG,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
            RD_KAFKA_RESP_ERR_FETCH_SESSION_ID_NOT_FOUND,
            RD_KAFKA_RESP_ERR_INVALID_FETCH_SESSION_EPOCH,
            RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
            RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_BROKER_NOT_AVAILABLE,
        ],
    },
    Table {
        name: "Heartbeat",
        request: "Heartbeat",
        key: Some(RDKafkaApiKey::Heartbeat),
        cause: Cause::None,
        per_lane: 6,
        errors: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
    },
    Table {
        name: "JoinGroup",
        request: "JoinGroup",
        key: Some(RDKafkaApiKey::JoinGroup),
        cause: Cause::MembershipOver,
        per_lane: 3,
        errors: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_INVALID_SESSION_TIMEOUT,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_MEMBER_ID_REQUIRED,
            RD_KAFKA_RESP_ERR_GROUP_MAX_SIZE_REACHED,
            RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_MEMBER_ID_REQUIRED,
            DISCONNECT,
        ],
    },
    Table {
        name: "SyncGroup",
        request: "SyncGroup",
        key: Some(RDKafkaApiKey::SyncGroup),
        cause: Cause::MembershipOver,
        per_lane: 3,
        errors: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION,
            RD_KAFKA_RESP_ERR_INCONSISTENT_GROUP_PROTOCOL,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID,
            RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
    },
    Table {
        name: "FindCoordinator",
        request: "FindCoordinator",
        key: Some(RDKafkaApiKey::FindCoordinator),
        cause: Cause::CoordinatorMoved,
        per_lane: 4,
        errors: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_INVALID_GROUP_ID,
            RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_INVALID_REQUEST,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
            RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            DISCONNECT,
        ],
    },
    Table {
        name: "ListOffsets",
        request: "ListOffsets",
        key: Some(RDKafkaApiKey::ListOffsets),
        cause: Cause::PositionRefused,
        per_lane: 6,
        errors: &[
            RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
            RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_UNKNOWN,
            DISCONNECT,
        ],
        quiet: &[],
    },
    Table {
        name: "Metadata",
        request: "Metadata",
        key: None,
        cause: Cause::None,
        per_lane: 6,
        errors: &[
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
            RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RD_KAFKA_RESP_ERR_LISTENER_NOT_FOUND,
            RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID,
            RD_KAFKA_RESP_ERR_UNKNOWN,
        ],
        quiet: &[
            RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_REPLICA_NOT_AVAILABLE,
            RD_KAFKA_RESP_ERR_LISTENER_NOT_FOUND,
            RD_KAFKA_RESP_ERR_UNKNOWN,
        ],
    },
];
