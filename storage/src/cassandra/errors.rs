//! What the database and its driver answer, and what the caller does next: one table.
//!
//! | answer | verdict | code |
//! |---|---|---|
//! | request or write time-out, read time-out | retry | `DB_TIMEOUT` |
//! | too few replicas alive | retry | `DB_UNAVAILABLE` |
//! | overloaded, rate limit, out of stream ids | retry | `DB_OVERLOADED` |
//! | no connection, connection broken, no session yet | retry | `DB_UNREACHABLE` |
//! | node bootstrapping | retry | `DB_BOOTSTRAPPING` |
//! | batch or mutation too large | split | `DB_BATCH_TOO_LARGE` |
//! | wrong password, no right | wait | `DB_AUTH` |
//! | TLS is not agreed on; see `probe.rs` and `tls.rs` | wait | `DB_TLS` |
//! | keyspace, table or column missing, configuration error | wait | `DB_SCHEMA` |
//! | no node in the data centre | wait | `DB_NO_NODE_IN_DC` |
//! | value that cannot be stored: key over 65,535 bytes and the like | reject | `DB_INVALID_ROW` |
//! | anything else | retry | `DB_ERROR` |

use scylla::errors::{DbError, ExecutionError, NewSessionError, PrepareError, RequestAttemptError};

use crate::error::{StoreError, Verdict};

pub(super) fn of_new_session(error: &NewSessionError) -> StoreError {
    let text = error.to_string();
    let auth = text.contains("Authentication")
        || text.contains("credentials")
        || text.contains("Unauthorized");
    if auth {
        StoreError::new(Verdict::Wait, "DB_AUTH", text)
    } else {
        StoreError::new(Verdict::Retry, "DB_UNREACHABLE", text)
    }
}

pub(super) fn of_prepare(error: &PrepareError) -> StoreError {
    match error {
        PrepareError::ConnectionPoolError(_) => unreachable_now(error),
        PrepareError::AllAttemptsFailed { first_attempt } => of_attempt(first_attempt),
        _ => StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string()),
    }
}

pub(super) fn of_execution(error: &ExecutionError) -> StoreError {
    match error {
        ExecutionError::BadQuery(_) => {
            StoreError::new(Verdict::Reject, "DB_INVALID_ROW", error.to_string())
        }
        ExecutionError::EmptyPlan => StoreError::new(
            Verdict::Wait,
            "DB_NO_NODE_IN_DC",
            "the driver knows no node to ask: is store.cassandra.local_data_center right?",
        ),
        ExecutionError::PrepareError(error) => of_prepare(error),
        ExecutionError::ConnectionPoolError(_) => unreachable_now(error),
        ExecutionError::LastAttemptError(attempt) => of_attempt(attempt),
        ExecutionError::RequestTimeout(_) => {
            StoreError::new(Verdict::Retry, "DB_TIMEOUT", error.to_string())
        }
        _ => StoreError::new(Verdict::Retry, "DB_ERROR", error.to_string()),
    }
}

fn unreachable_now(error: &impl std::fmt::Display) -> StoreError {
    StoreError::new(Verdict::Retry, "DB_UNREACHABLE", error.to_string())
}

fn of_attempt(error: &RequestAttemptError) -> StoreError {
    use RequestAttemptError as Attempt;
    let text = error.to_string();
    match error {
        Attempt::SerializationError(_) | Attempt::CqlRequestSerialization(_) => {
            StoreError::new(Verdict::Reject, "DB_INVALID_ROW", text)
        }
        Attempt::UnableToAllocStreamId => StoreError::new(Verdict::Retry, "DB_OVERLOADED", text),
        Attempt::BrokenConnectionError(_) => {
            StoreError::new(Verdict::Retry, "DB_UNREACHABLE", text)
        }
        // The table is another one than when the statement was prepared.
        Attempt::RepreparedIdChanged { .. } | Attempt::RepreparedIdMissingInBatch => {
            StoreError::new(Verdict::Wait, "DB_SCHEMA", text)
        }
        Attempt::DbError(db, message) => of_database(db, message, text),
        _ => StoreError::new(Verdict::Retry, "DB_ERROR", text),
    }
}

fn of_database(error: &DbError, message: &str, text: String) -> StoreError {
    let (verdict, code) = match error {
        DbError::WriteTimeout { .. } | DbError::ReadTimeout { .. } => {
            (Verdict::Retry, "DB_TIMEOUT")
        }
        DbError::Unavailable { .. } => (Verdict::Retry, "DB_UNAVAILABLE"),
        DbError::Overloaded | DbError::RateLimitReached { .. } => (Verdict::Retry, "DB_OVERLOADED"),
        DbError::IsBootstrapping => (Verdict::Retry, "DB_BOOTSTRAPPING"),
        DbError::AuthenticationError | DbError::Unauthorized => (Verdict::Wait, "DB_AUTH"),
        DbError::SyntaxError | DbError::ConfigError | DbError::ProtocolError => {
            (Verdict::Wait, "DB_SCHEMA")
        }
        DbError::Invalid => of_invalid(message),
        // A mutation over half a commit log segment is refused where it is applied.
        DbError::ServerError | DbError::WriteFailure { .. } if is_too_large(message) => {
            (Verdict::Split, "DB_BATCH_TOO_LARGE")
        }
        _ => (Verdict::Retry, "DB_ERROR"),
    };
    StoreError::new(verdict, code, text)
}

/// `Invalid` is said of rows, of requests and of the schema alike: only the message tells them apart.
fn of_invalid(message: &str) -> (Verdict, &'static str) {
    let message = message.to_ascii_lowercase();
    let schema = [
        "unconfigured table",
        "keyspace",
        "undefined column",
        "unknown identifier",
        "does not exist",
    ];
    if is_too_large(&message) {
        (Verdict::Split, "DB_BATCH_TOO_LARGE")
    } else if schema.iter().any(|sign| message.contains(sign)) {
        (Verdict::Wait, "DB_SCHEMA")
    } else {
        (Verdict::Reject, "DB_INVALID_ROW")
    }
}

fn is_too_large(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("batch too large")
        || message.contains("mutation of")
        || message.contains("too large for the maximum size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_invalid_means_is_read_from_its_message() {
        for (message, verdict) in [
            ("Batch too large", Verdict::Split),
            ("unconfigured table measurements", Verdict::Wait),
            ("Keyspace 'monasca' does not exist", Verdict::Wait),
            ("Undefined column name value_meta in table monasca.measurements", Verdict::Wait),
            ("Key length of 70000 is longer than maximum of 65535", Verdict::Reject),
        ] {
            assert_eq!(of_invalid(message).0, verdict, "{message}");
        }
    }

    #[test]
    fn a_write_time_out_is_never_success_and_never_the_rows_fault() {
        let error = DbError::WriteTimeout {
            consistency: scylla::statement::Consistency::One,
            received: 1,
            required: 1,
            write_type: scylla::errors::WriteType::Simple,
        };
        assert_eq!(of_database(&error, "", String::new()).verdict, Verdict::Retry);
    }
}
