//! What the database and its driver answer, and what the caller does next: one table, for the code and for people.
//!
//! [`Answer`] has a row for each answer there is; `errors.rs` finds the row, and [`document`] prints all of them as
//! docs/errors.md. Where one error of the protocol is said of rows, of requests and of the schema alike, its rows differ
//! in what its message says, and the last of them is for any other message. Messages are those of Apache Cassandra
//! 5.0; tests force them on a real node.

use crate::error::Verdict;

/// What log lines, metrics and the status say, and what a person does about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Its name.
    pub name: &'static str,
    /// What the caller does next.
    pub verdict: Verdict,
    /// What happened.
    pub meaning: &'static str,
    /// What a person does next.
    pub next: &'static str,
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// The answer, as the protocol or the driver names it.
    pub answer: &'static str,
    /// One of these is in its message, whatever the case of its letters; empty: it says anything else.
    pub says: &'static [&'static str],
    /// What it comes to.
    pub code: &'static Code,
    /// False: the answer does not tell whether it is about this row or about all of them.
    pub is_sure: bool,
}

macro_rules! codes {
    ($($constant:ident $verdict:ident $name:literal $meaning:literal $next:literal;)*) => {
        $(
            #[doc = $meaning]
            pub static $constant: Code =
                Code { name: $name, verdict: Verdict::$verdict, meaning: $meaning, next: $next };
        )*
        /// All of them.
        pub static CODES: &[&Code] = &[$(&$constant),*];
    };
}

codes! {
    TIMEOUT Retry "DB_TIMEOUT"
        "Too few replicas confirmed in time. The rows may be written or not."
        "Nothing, if it is short. If it lasts: the nodes' load, disks and pauses of garbage collection.";
    UNAVAILABLE Retry "DB_UNAVAILABLE"
        "Too few replicas are alive for the consistency level."
        "Bring nodes back (`nodetool status`).";
    OVERLOADED Retry "DB_OVERLOADED"
        "A node or a connection has too much to do."
        "Nothing: fewer requests are sent by themselves. If it lasts: more nodes, or fewer writers.";
    UNREACHABLE Retry "DB_UNREACHABLE"
        "No connection to a node, or it broke."
        "Check that nodes run, the network, and store.cassandra.contact_points.";
    BOOTSTRAPPING Retry "DB_BOOTSTRAPPING"
        "The node is not ready yet."
        "Nothing: it becomes ready by itself.";
    WRITE_FAILED Retry "DB_WRITE_FAILED"
        "Replicas failed to apply the write. If only few rows fail and all others are taken, the rows are at fault: after 30 attempts they become dead letters."
        "The nodes' logs say why: a full disk, a full CDC directory, or a row that they cannot store.";
    SERVER_ERROR Retry "DB_SERVER_ERROR"
        "A node failed in a way that it did not expect. As with `DB_WRITE_FAILED`, few rows that fail alone become dead letters after 30 attempts."
        "The node's log has the exception.";
    UNPREPARED Retry "DB_UNPREPARED"
        "A statement is not the one that was prepared."
        "Nothing: it is prepared again.";
    ERROR Retry "DB_ERROR"
        "An answer that nothing is known of. The rows are kept and sent again."
        "If it lasts, report it with the text beside the code.";
    TOO_LARGE Split "DB_BATCH_TOO_LARGE"
        "More in one request than the database takes. It is halved, down to single rows; a single row that is too large becomes a dead letter."
        "Lower metrics.batch_bytes_max if it happens often. For dead letters: raise the database's limit, then `dead-letters retry`.";
    AUTH Wait "DB_AUTH"
        "User name or password is wrong, or the role may not do this."
        "Correct store.cassandra.user and password_file, or grant MODIFY and SELECT on the keyspace.";
    TLS Wait "DB_TLS"
        "TLS is not agreed on with a node: its certificate is not the one to be expected, or it does not accept ours."
        "The text names the node, the reason and what to change in store.cassandra.tls or on the node. Files that are replaced are taken without a restart.";
    SCHEMA Wait "DB_SCHEMA"
        "The keyspace, a table or a column is missing or has another type."
        "`schema check` names what is missing, `schema apply` creates it.";
    CONFIG Wait "DB_CONFIG"
        "The database does not accept what is configured: consistency level, keyspace name, retention."
        "Correct the configuration as the text beside the code says, and start again.";
    PROTOCOL Wait "DB_PROTOCOL"
        "The node does not speak this version of the protocol, or takes a request for malformed."
        "Check that it is Cassandra 4.1 or later, or ScyllaDB, and that no other service has its port.";
    GUARDRAIL Wait "DB_GUARDRAIL"
        "A limit that the operators of the database set forbids these writes."
        "Change what is configured here, or the guardrail that the text names.";
    DISK_FULL Wait "DB_DISK_FULL"
        "Replicas are too full to take rows, by the guardrail for disk usage."
        "Make room on the nodes or add some.";
    CDC_FULL Wait "DB_CDC_FULL"
        "The directory of change data capture is full."
        "Have its consumer go on, or raise cdc_total_space.";
    NO_NODE_IN_DC Wait "DB_NO_NODE_IN_DC"
        "The driver knows no node that it may ask."
        "Correct store.cassandra.local_data_center; `nodetool status` shows the names.";
    INVALID_ROW Reject "DB_INVALID_ROW"
        "The row can never be stored, for example because a key is longer than 65,535 bytes: dead letter."
        "`dead-letters show` has the message; correct its sender.";
    DENYLISTED Reject "DB_DENYLISTED"
        "The operators of the database forbid writes to this partition: dead letter."
        "When the partition is allowed again: `dead-letters retry`.";
    REJECTS_MANY Wait "DB_REJECTS_MANY"
        "More than 3 % of the rows would be rejected without a reason that is surely theirs: the cause is the schema's or the database's. Nothing more becomes a dead letter."
        "The text says what was answered last. Repair it; delivery goes on by itself. Then `dead-letters retry` for those that were rejected before.";
}

macro_rules! answers {
    ($($name:ident $answer:literal $([$($sign:literal),+])? $code:ident $(($unsure:ident))?;)*) => {
        /// Every answer there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Answer {
            $(#[doc = $answer] $name,)*
        }

        impl Answer {
            /// All of them, in the order in which their messages are looked at.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its row.
            #[must_use]
            pub const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        answer: $answer,
                        says: &[$($($sign),+)?],
                        code: &$code,
                        is_sure: true $(&& stringify!($unsure).is_empty())?,
                    },)*
                }
            }
        }
    };
}

answers! {
    ServerErrorTooLarge "SERVER_ERROR, 0x0000" ["too large for the maximum size"] TOO_LARGE;
    ServerError "SERVER_ERROR, 0x0000" SERVER_ERROR (unsure);
    ProtocolErrorTooLarge "PROTOCOL_ERROR, 0x000A" ["exceeds maximum allowed length"] TOO_LARGE;
    ProtocolError "PROTOCOL_ERROR, 0x000A" PROTOCOL;
    AuthenticationError "AUTH_ERROR, 0x0100" AUTH;
    Unavailable "UNAVAILABLE, 0x1000" UNAVAILABLE;
    Overloaded "OVERLOADED, 0x1001" OVERLOADED;
    IsBootstrapping "IS_BOOTSTRAPPING, 0x1002" BOOTSTRAPPING;
    TruncateError "TRUNCATE_ERROR, 0x1003" ERROR;
    WriteTimeout "WRITE_TIMEOUT, 0x1100" TIMEOUT;
    ReadTimeout "READ_TIMEOUT, 0x1200" TIMEOUT;
    ReadFailure "READ_FAILURE, 0x1300" ERROR;
    FunctionFailure "FUNCTION_FAILURE, 0x1400" ERROR;
    WriteFailure "WRITE_FAILURE, 0x1500" WRITE_FAILED (unsure);
    CdcWriteFailure "CDC_WRITE_FAILURE, 0x1600" CDC_FULL;
    CasWriteUnknown "CAS_WRITE_UNKNOWN, 0x1700" TIMEOUT;
    SyntaxError "SYNTAX_ERROR, 0x2000" SCHEMA;
    Unauthorized "UNAUTHORIZED, 0x2100" AUTH;
    InvalidBatchTooLarge "INVALID, 0x2200" ["batch too large"] TOO_LARGE;
    InvalidMutationTooLarge "INVALID, 0x2200" ["oversized mutation", "too large for the maximum size"] TOO_LARGE;
    InvalidRequestTooLarge "INVALID, 0x2200" ["exceeds maximum allowed length", "exceeds allowed maximum"] TOO_LARGE;
    InvalidDenylisted "INVALID, 0x2200" ["denylisted partition"] DENYLISTED;
    InvalidDiskFull "INVALID, 0x2200" ["disk usage exceeds failure threshold", "local data disk usage"] DISK_FULL;
    InvalidValueTooLarge "INVALID, 0x2200" ["guardrail column_value_size violated"] INVALID_ROW;
    InvalidGuardrail "INVALID, 0x2200" ["guardrail"] GUARDRAIL;
    InvalidKey "INVALID, 0x2200" ["key length of", "clustering columns is too long", "key may not be empty"] INVALID_ROW;
    InvalidTimeToLive "INVALID, 0x2200" ["ttl is too large", "exceeds maximum supported expiration date"] CONFIG;
    InvalidConsistency "INVALID, 0x2200" ["for serializable writes", "only supported for writes"] CONFIG;
    InvalidSchema "INVALID, 0x2200" ["does not exist", "doesn't exist", "unconfigured table", "undefined column", "unknown identifier", "no keyspace has been specified"] SCHEMA;
    InvalidType "INVALID, 0x2200" ["expected", "or 0 bytes", "not enough bytes", "didn't validate"] SCHEMA;
    Invalid "INVALID, 0x2200" INVALID_ROW (unsure);
    ConfigError "CONFIG_ERROR, 0x2300" SCHEMA;
    AlreadyExists "ALREADY_EXISTS, 0x2400" ERROR;
    Unprepared "UNPREPARED, 0x2500" UNPREPARED;
    RateLimitReached "RATE_LIMIT_REACHED, of ScyllaDB" OVERLOADED;
    Other "an error code that the driver does not know" ERROR;

    NoPartitionKey "driver: a partition key cannot be taken from the values" SCHEMA;
    WrongTypes "driver: a value has not the type of its column" SCHEMA;
    ValueTooLarge "driver: a value cannot be serialized" INVALID_ROW (unsure);
    KeyTooLong "driver: a part of a partition key is longer than 65,535 bytes" INVALID_ROW;
    TooManyStatements "driver: more than 65,535 statements in a batch" TOO_LARGE;
    RequestNotSerialized "driver: a request cannot be serialized" INVALID_ROW (unsure);
    EmptyPlan "driver: no node to ask" NO_NODE_IN_DC;
    RequestTimeout "driver: no answer within store.cassandra.request_timeout" TIMEOUT;
    NoStreamId "driver: no stream id is free" OVERLOADED;
    BrokenConnection "driver: the connection broke" UNREACHABLE;
    Unreadable "driver: an answer cannot be read" ERROR;
    Unexpected "driver: an answer of the wrong kind" ERROR;
    RepreparedIdChanged "driver: a statement has another id after it was prepared again" UNPREPARED;
    RepreparedIdMissing "driver: a statement of a batch has another id after it was prepared again" UNPREPARED;
    IdsMismatch "driver: a statement has several ids" UNPREPARED;
    UnfinishedPages "driver: an answer has more pages" ERROR;
    PoolInitializing "driver: not connected yet" UNREACHABLE;
    NodeDisabled "driver: the node is filtered out" NO_NODE_IN_DC;
    ConnectTimeout "driver: no connection in time" UNREACHABLE;
    ConnectFailed "driver: the connection was refused or failed" UNREACHABLE;
    NoSourcePort "driver: no local port is free" UNREACHABLE;
    NoAddress "driver: a node's address cannot be translated" UNREACHABLE;
    AuthFailed "driver: the node asks for a user and a password, or the exchange failed" AUTH;
    NoHostname "driver: no host name has an address" UNREACHABLE;
    NoContactPoints "driver: no contact point is configured" CONFIG;
    IllegalConfig "driver: settings that exclude each other" CONFIG;
    BadKeyspaceName "driver: not a name of a keyspace" CONFIG;
    KeyspaceMismatch "driver: another keyspace than asked for" ERROR;
    SchemaDisagreement "driver: the nodes do not agree on a schema" ERROR;
    Metadata "driver: the description of the cluster cannot be read" ERROR;
    NotKnown "driver: an error that was not there when this was written" ERROR;
}

impl Answer {
    /// The row of the same error that `message` is about.
    #[must_use]
    pub fn saying(self, message: &str) -> Self {
        let message = message.to_ascii_lowercase();
        let of = self.row().answer;
        Self::ALL
            .iter()
            .copied()
            .filter(|answer| answer.row().answer == of)
            .find(|answer| answer.row().says.iter().any(|sign| message.contains(sign)))
            .unwrap_or(self)
    }
}

/// Both tables for people: docs/errors.md.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(HEAD);
    for code in CODES {
        let Code { name, verdict, meaning, next } = code;
        line(&mut text, &[&format!("`{name}`"), verdict.name(), meaning, next]);
    }
    text.push_str(OTHERS);
    text.push_str(MIDDLE);
    for answer in Answer::ALL {
        let Row { answer, says, code, is_sure } = answer.row();
        let signs: Vec<String> = says.iter().map(|sign| format!("\"{sign}\"")).collect();
        let of_all = if is_sure { "" } else { "perhaps" };
        line(
            &mut text,
            &[answer, &signs.join(", "), &format!("`{}`", code.name), code.verdict.name(), of_all],
        );
    }
    text
}

fn line(text: &mut String, cells: &[&str]) {
    text.push_str(&format!("| {} |\n", cells.join(" | ")));
}

const HEAD: &str = "\
# Errors of the database

Made from the table that the program decides by, `storage/src/cassandra/verdicts.rs`, and checked by a test. Codes are in
log lines (`code`), in `/api/v1/status`, whose hint is the next step below, and in the health check.

- *retry*: sent again for ever, after growing random waits of up to 30 s. After five failures in a row without a success
  the store is not asked any more, but for one request at a time, after half a second to 15 s.
- *split*: sent again as two halves, down to single rows. Later requests are made no larger than a half.
- *wait*: a person must act. The store is asked at once only by such single requests. Nothing is dropped: rows stay in the
  log, and delivery goes on by itself when one request succeeds.
- *reject*: halved like *split* until the row is found; that row's message becomes a dead letter with the code.

A retry or reject that is *perhaps* of all rows is judged by its neighbours: see `DB_WRITE_FAILED` and `DB_REJECTS_MANY`.

| code | verdict | meaning | what to do next |
|---|---|---|---|
";

/// What is said of the database and is no answer to a write.
const OTHERS: &str = "\
| `DB_INSECURE` | - | At the start: a password goes over plain text, or verification of TLS is switched off. | Use `store.cassandra.protocol: tls`, or verify again. |
| `DB_NODE_LOST_ROWS` | - | A node started anew, and may have lost what it confirmed just before. | Nothing: the last `wal.hold_back` is delivered again. |
| `STORE_PARTLY_AWAY` | - | Some replicas have been away for long while others answer, and the rows for them fill half of what may be held in memory: they are put behind all others in the log. In an outage of the whole store this may be said once. | Bring nodes back (`nodetool status`): they are delivered then. |
";

const MIDDLE: &str = "
## Which answer gives which code

Messages are those of Apache Cassandra 5.0. Rows of one answer are tried from the top.

| answer | its message has | code | verdict | of all rows |
|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_given_for_some_answer_and_listed_once() {
        let listed: BTreeSet<&str> = CODES.iter().map(|code| code.name).collect();
        assert_eq!(listed.len(), CODES.len());
        let mut given: BTreeSet<&str> = Answer::ALL.iter().map(|a| a.row().code.name).collect();
        // One is made of many answers, and the driver has no answer about TLS: `probe.rs` asks the node.
        given.extend([REJECTS_MANY.name, TLS.name]);
        assert_eq!(given, listed);
    }

    #[test]
    fn rows_of_one_answer_stand_together_and_the_last_of_them_takes_any_message() {
        for (index, answer) in Answer::ALL.iter().enumerate() {
            let next = Answer::ALL.get(index + 1).map(|next| next.row().answer);
            let is_last = next != Some(answer.row().answer);
            assert_eq!(answer.row().says.is_empty(), is_last, "{answer:?}");
            for sign in answer.row().says {
                assert_eq!(answer.saying(&sign.to_ascii_uppercase()), *answer, "{sign}");
            }
        }
        let answers: BTreeSet<&str> = Answer::ALL.iter().map(|a| a.row().answer).collect();
        let last = Answer::ALL.iter().filter(|a| a.row().says.is_empty()).count();
        assert_eq!(answers.len(), last, "an answer stands in two places");
    }
}
