//! Every error of CQL's protocol, versions 4 and 5, as a node sends it, and what else a node may do instead of an answer.
//!
//! Source: section 9 of Cassandra's `native_protocol_v4.spec`, and the codes that version 5 adds.

use storage::cassandra::verdicts::Answer;

use crate::proxy::{ERROR, Forgery, READY, RESULT};

/// What is answered, and the row of the program's table that it comes to.
pub struct Row {
    pub answer: Answer,
    pub forgery: Forgery,
}

/// Body of an error: code, message, and what follows for some codes.
fn error(code: i32, message: &str, rest: &[&[u8]]) -> Forgery {
    let mut body = code.to_be_bytes().to_vec();
    body.extend(string(message));
    body.extend(rest.concat());
    Forgery::Answer(ERROR, body)
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

const ONE: &[u8] = &[0, 1];

fn ints(numbers: &[i32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// All but those that are about rows: see [`of_rows`].
pub fn of_the_store() -> Vec<Row> {
    let row = |answer, forgery| Row { answer, forgery };
    let plain = |answer, code, message| row(answer, error(code, message, &[]));
    vec![
        plain(Answer::ServerError, 0x0000, "java.lang.RuntimeException: it failed"),
        plain(Answer::ProtocolError, 0x000A, "Invalid message"),
        plain(
            Answer::AuthenticationError,
            0x0100,
            "Provided username and/or password are incorrect",
        ),
        row(
            Answer::Unavailable,
            error(0x1000, "Cannot achieve consistency level ONE", &[ONE, &ints(&[1, 0])]),
        ),
        plain(Answer::Overloaded, 0x1001, "Too many in flight hints"),
        plain(Answer::IsBootstrapping, 0x1002, "Cannot read from a bootstrapping node"),
        plain(Answer::TruncateError, 0x1003, "Truncate failed"),
        row(
            Answer::WriteTimeout,
            error(
                0x1100,
                "Operation timed out - received only 1 responses.",
                &[ONE, &ints(&[1, 1]), &string("UNLOGGED_BATCH")],
            ),
        ),
        row(
            Answer::ReadTimeout,
            error(0x1200, "Operation timed out", &[ONE, &ints(&[0, 1]), &[0]]),
        ),
        row(
            Answer::ReadFailure,
            error(0x1300, "Operation failed", &[ONE, &ints(&[0, 1, 1]), &[0]]),
        ),
        row(
            Answer::FunctionFailure,
            error(0x1400, "it failed", &[&string("k"), &string("f"), &[0, 0]]),
        ),
        row(
            Answer::WriteFailure,
            error(
                0x1500,
                "Operation failed - received 0 responses and 1 failures: UNKNOWN from /127.0.0.1:7000",
                &[ONE, &ints(&[0, 1, 1]), &string("SIMPLE")],
            ),
        ),
        row(
            Answer::CdcWriteFailure,
            error(0x1600, "Rejecting mutation to keyspace k. Free up space in cdc_raw", &[]),
        ),
        row(
            Answer::CasWriteUnknown,
            error(0x1700, "CAS operation result is unknown", &[ONE, &ints(&[0, 1])]),
        ),
        plain(Answer::SyntaxError, 0x2000, "line 1:0 no viable alternative at input"),
        plain(
            Answer::Unauthorized,
            0x2100,
            "User persister has no MODIFY permission on <table k.t> or any of its parents",
        ),
        plain(
            Answer::InvalidDiskFull,
            0x2200,
            "Guardrail replica_disk_usage violated: Write request failed because disk usage exceeds failure threshold",
        ),
        plain(
            Answer::InvalidGuardrail,
            0x2200,
            "Guardrail write_consistency_levels violated: Provided values [ONE] are not allowed",
        ),
        plain(Answer::InvalidTimeToLive, 0x2200, "ttl is too large. requested (630720001)"),
        plain(
            Answer::InvalidConsistency,
            0x2200,
            "You must use conditional updates for serializable writes",
        ),
        plain(Answer::InvalidSchema, 0x2200, "table alarm_state_history does not exist"),
        plain(Answer::InvalidType, 0x2200, "Expected 8 or 0 byte long for date (4)"),
        plain(Answer::ConfigError, 0x2300, "Missing or unknown strategy"),
        row(
            Answer::AlreadyExists,
            error(0x2400, "Cannot add already existing table", &[&string("k"), &string("t")]),
        ),
        plain(Answer::Other, 0x7777, "from a version to come"),
        // The driver prepares the statement again, and is told the same again.
        row(Answer::Unprepared, error(0x2500, "Unknown statement", &[&[0, 2, 7, 7]])),
        row(Answer::BrokenConnection, Forgery::Close),
        row(Answer::RequestTimeout, Forgery::Silence),
        row(Answer::Unreadable, Forgery::Answer(ERROR, vec![0, 0])),
        row(Answer::Unreadable, Forgery::Answer(RESULT, vec![0, 0, 0, 99])),
        row(Answer::Unexpected, Forgery::Answer(READY, Vec::new())),
    ]
}

/// A request is too large: these are answered as long as it has more than one row.
pub fn of_sizes() -> Vec<Row> {
    let row = |answer, code, message| Row { answer, forgery: error(code, message, &[]) };
    vec![
        row(Answer::InvalidBatchTooLarge, 0x2200, "Batch too large"),
        row(
            Answer::InvalidMutationTooLarge,
            0x2200,
            "Rejected an oversized mutation (70000/65536) for keyspace: k. Top keys are: t.a",
        ),
        row(
            Answer::InvalidRequestTooLarge,
            0x2200,
            "Request is too big: length 2000000 exceeds maximum allowed length 1048576.",
        ),
        row(
            Answer::ServerErrorTooLarge,
            0x0000,
            "java.lang.IllegalArgumentException: Mutation of 17MiB is too large for the maximum size of 16MiB",
        ),
        row(
            Answer::ProtocolErrorTooLarge,
            0x000A,
            "Request is too big: length 2000000 exceeds maximum allowed length 1048576.",
        ),
    ]
}

/// A row is at fault: these are answered to requests with that row.
pub fn of_rows() -> Vec<Row> {
    let row = |answer, message| Row { answer, forgery: error(0x2200, message, &[]) };
    vec![
        row(Answer::InvalidKey, "Key length of 70000 is longer than maximum of 65535"),
        row(
            Answer::InvalidDenylisted,
            "Unable to write to denylisted partition [0x61] in k/alarm_state_history",
        ),
        row(
            Answer::InvalidValueTooLarge,
            "Guardrail column_value_size violated: Value of column 'd' has size 1, this exceeds the failure threshold",
        ),
        row(Answer::Invalid, "What nobody has heard of"),
    ]
}

/// Not a reason that is surely of one row, answered to all of them.
pub fn of_all_rows() -> Forgery {
    error(0x2200, "What nobody has heard of", &[])
}
