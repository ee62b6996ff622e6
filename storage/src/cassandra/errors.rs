//! Finds the row of the table in `verdicts.rs` for what the driver returned.
//!
//! All of the driver's enums may grow, and what is not known is repeated and said, never dropped.

use scylla::errors::{
    BadQuery, ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError,
    ExecutionError, MetadataError, MetadataFetchErrorKind, NewSessionError, NextPageError,
    NextRowError, PrepareError, RequestAttemptError, RequestError, SchemaAgreementError,
    SerializationError, UseKeyspaceError,
};
use scylla::frame::frame_errors::{
    BatchSerializationError, BatchStatementSerializationError, CqlRequestSerializationError,
};
use scylla::serialize::{row, value};

use super::verdicts::{Answer, Row};
use crate::error::StoreError;

/// What an attempt to connect came to.
#[must_use]
pub fn of_new_session(error: &NewSessionError) -> StoreError {
    use NewSessionError as New;
    let answer = match error {
        New::FailedToResolveAnyHostname(_) => Answer::NoHostname,
        New::EmptyKnownNodesList => Answer::NoContactPoints,
        New::MetadataError(error) => metadata(error),
        New::UseKeyspaceError(error) => use_keyspace(error),
        New::IllegalConfig(_) => Answer::IllegalConfig,
        _ => Answer::NotKnown,
    };
    store_error(answer, error)
}

/// What an attempt to prepare a statement came to.
#[must_use]
pub fn of_prepare(error: &PrepareError) -> StoreError {
    store_error(prepare(error), error)
}

/// What a request came to.
#[must_use]
pub fn of_execution(error: &ExecutionError) -> StoreError {
    match execution(error) {
        // The driver explains itself at length, and names none of our settings.
        Answer::EmptyPlan => store_error(
            Answer::EmptyPlan,
            &"the driver knows no node to ask: is store.cassandra.local_data_center right?",
        ),
        answer => store_error(answer, error),
    }
}

fn store_error(answer: Answer, said: &dyn std::fmt::Display) -> StoreError {
    let Row { code, is_sure, .. } = answer.row();
    let error = StoreError::new(code.verdict, code.name, said.to_string());
    if is_sure { error } else { error.unsure() }
}

fn execution(error: &ExecutionError) -> Answer {
    match error {
        ExecutionError::BadQuery(BadQuery::PartitionKeyExtraction) => Answer::NoPartitionKey,
        ExecutionError::BadQuery(BadQuery::SerializationError(error)) => values(error),
        ExecutionError::BadQuery(BadQuery::ValuesTooLongForKey(..)) => Answer::KeyTooLong,
        ExecutionError::BadQuery(BadQuery::TooManyQueriesInBatchStatement(_)) => {
            Answer::TooManyStatements
        }
        ExecutionError::EmptyPlan => Answer::EmptyPlan,
        ExecutionError::PrepareError(error) => prepare(error),
        ExecutionError::ConnectionPoolError(error) => pool(error),
        ExecutionError::LastAttemptError(error) => attempt(error),
        ExecutionError::RequestTimeout(_) => Answer::RequestTimeout,
        ExecutionError::UseKeyspaceError(error) => use_keyspace(error),
        ExecutionError::SchemaAgreementError(error) => schema_agreement(error),
        ExecutionError::MetadataError(error) => metadata(error),
        _ => Answer::NotKnown,
    }
}

fn prepare(error: &PrepareError) -> Answer {
    match error {
        PrepareError::ConnectionPoolError(error) => pool(error),
        PrepareError::AllAttemptsFailed { first_attempt } => attempt(first_attempt),
        PrepareError::PreparedStatementIdsMismatch => Answer::IdsMismatch,
        _ => Answer::NotKnown,
    }
}

fn attempt(error: &RequestAttemptError) -> Answer {
    use RequestAttemptError as Attempt;
    match error {
        Attempt::SerializationError(error) => values(error),
        Attempt::CqlRequestSerialization(error) => request(error),
        Attempt::UnableToAllocStreamId => Answer::NoStreamId,
        Attempt::BrokenConnectionError(_) => Answer::BrokenConnection,
        Attempt::BodyExtensionsParseError(_)
        | Attempt::CqlResultParseError(_)
        | Attempt::CqlErrorParseError(_) => Answer::Unreadable,
        Attempt::DbError(error, message) => database(error, message),
        Attempt::UnexpectedResponse(_) => Answer::Unexpected,
        Attempt::RepreparedIdChanged { .. } => Answer::RepreparedIdChanged,
        Attempt::RepreparedIdMissingInBatch => Answer::RepreparedIdMissing,
        Attempt::NonfinishedPagingState => Answer::UnfinishedPages,
        _ => Answer::NotKnown,
    }
}

fn database(error: &DbError, message: &str) -> Answer {
    let answer = match error {
        DbError::ServerError => Answer::ServerError,
        DbError::ProtocolError => Answer::ProtocolError,
        DbError::AuthenticationError => Answer::AuthenticationError,
        DbError::Unavailable { .. } => Answer::Unavailable,
        DbError::Overloaded => Answer::Overloaded,
        DbError::IsBootstrapping => Answer::IsBootstrapping,
        DbError::TruncateError => Answer::TruncateError,
        DbError::WriteTimeout { .. } => Answer::WriteTimeout,
        DbError::ReadTimeout { .. } => Answer::ReadTimeout,
        DbError::ReadFailure { .. } => Answer::ReadFailure,
        DbError::FunctionFailure { .. } => Answer::FunctionFailure,
        DbError::WriteFailure { .. } => Answer::WriteFailure,
        DbError::SyntaxError => Answer::SyntaxError,
        DbError::Unauthorized => Answer::Unauthorized,
        DbError::Invalid => Answer::Invalid,
        DbError::ConfigError => Answer::ConfigError,
        DbError::AlreadyExists { .. } => Answer::AlreadyExists,
        DbError::Unprepared { .. } => Answer::Unprepared,
        DbError::RateLimitReached { .. } => Answer::RateLimitReached,
        // Codes of protocol version 5, which nodes send to clients of version 4 all the same.
        DbError::Other(0x1600) => Answer::CdcWriteFailure,
        DbError::Other(0x1700) => Answer::CasWriteUnknown,
        _ => Answer::Other,
    };
    answer.saying(message)
}

/// Values that the driver cannot write: of another type than the column now has, or too large.
fn values(error: &SerializationError) -> Answer {
    if error.downcast_ref::<row::BuiltinTypeCheckError>().is_some()
        || error.downcast_ref::<value::BuiltinTypeCheckError>().is_some()
    {
        return Answer::WrongTypes;
    }
    let in_row = error.downcast_ref::<row::BuiltinSerializationError>();
    match in_row.map(|error| &error.kind) {
        Some(row::BuiltinSerializationErrorKind::ColumnSerializationFailed { err, .. }) => {
            values(err)
        }
        _ => Answer::ValueTooLarge,
    }
}

fn request(error: &CqlRequestSerializationError) -> Answer {
    use CqlRequestSerializationError::BatchSerialization as Batch;
    match error {
        Batch(BatchSerializationError::TooManyStatements(_)) => Answer::TooManyStatements,
        Batch(BatchSerializationError::StatementSerialization {
            error: BatchStatementSerializationError::ValuesSerialiation(error),
            ..
        }) => values(error),
        _ => Answer::RequestNotSerialized,
    }
}

fn pool(error: &ConnectionPoolError) -> Answer {
    match error {
        ConnectionPoolError::Broken { last_connection_error } => connection(last_connection_error),
        ConnectionPoolError::Initializing => Answer::PoolInitializing,
        ConnectionPoolError::NodeDisabledByHostFilter => Answer::NodeDisabled,
        _ => Answer::NotKnown,
    }
}

fn connection(error: &ConnectionError) -> Answer {
    match error {
        ConnectionError::ConnectTimeout => Answer::ConnectTimeout,
        ConnectionError::IoError(_) => Answer::ConnectFailed,
        ConnectionError::NoSourcePortForShard(_) => Answer::NoSourcePort,
        ConnectionError::TranslationError(_) => Answer::NoAddress,
        ConnectionError::BrokenConnection(_) => Answer::BrokenConnection,
        ConnectionError::ConnectionSetupRequestError(error) => setup(error.get_error()),
        ConnectionError::UseKeyspaceError(error) => use_keyspace(error),
        _ => Answer::NotKnown,
    }
}

fn setup(error: &ConnectionSetupRequestErrorKind) -> Answer {
    use ConnectionSetupRequestErrorKind as Setup;
    match error {
        Setup::CqlRequestSerialization(_) => Answer::RequestNotSerialized,
        Setup::BodyExtensionsParseError(_)
        | Setup::CqlSupportedParseError(_)
        | Setup::CqlAuthenticateParseError(_)
        | Setup::CqlAuthSuccessParseError(_)
        | Setup::CqlAuthChallengeParseError(_)
        | Setup::CqlErrorParseError(_) => Answer::Unreadable,
        Setup::UnableToAllocStreamId => Answer::NoStreamId,
        Setup::BrokenConnection(_) => Answer::BrokenConnection,
        Setup::DbError(error, message) => database(error, message),
        Setup::UnexpectedResponse(_) => Answer::Unexpected,
        Setup::StartAuthSessionError(_)
        | Setup::AuthChallengeEvaluationError(_)
        | Setup::AuthFinishError(_)
        | Setup::MissingAuthentication => Answer::AuthFailed,
        _ => Answer::NotKnown,
    }
}

fn use_keyspace(error: &UseKeyspaceError) -> Answer {
    match error {
        UseKeyspaceError::BadKeyspaceName(_) => Answer::BadKeyspaceName,
        UseKeyspaceError::RequestError(error) => attempt(error),
        UseKeyspaceError::KeyspaceNameMismatch { .. } => Answer::KeyspaceMismatch,
        UseKeyspaceError::RequestTimeout(_) => Answer::RequestTimeout,
        _ => Answer::NotKnown,
    }
}

fn schema_agreement(error: &SchemaAgreementError) -> Answer {
    match error {
        SchemaAgreementError::ConnectionPoolError(error) => pool(error),
        SchemaAgreementError::PrepareError(error) => prepare(error),
        SchemaAgreementError::RequestError(error) => attempt(error),
        _ => Answer::SchemaDisagreement,
    }
}

fn metadata(error: &MetadataError) -> Answer {
    match error {
        MetadataError::ConnectionPoolError(error) => pool(error),
        MetadataError::FetchError(error) => match &error.error {
            MetadataFetchErrorKind::PrepareError(error) => attempt(error),
            MetadataFetchErrorKind::NextRowError(NextRowError::NextPageError(
                NextPageError::RequestFailure(error),
            )) => metadata_request(error),
            _ => Answer::Metadata,
        },
        _ => Answer::Metadata,
    }
}

fn metadata_request(error: &RequestError) -> Answer {
    execution(&error.clone().into_execution_error())
}

#[cfg(test)]
mod tests;
