//! Every error that can be made here comes to its row. Types of the driver that cannot be made outside it are forced
//! on real connections by tests/cassandra_errors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use scylla::errors::{
    BadKeyspaceName, BrokenConnectionError, BrokenConnectionErrorKind, CqlErrorParseError,
    CqlResponseKind, CqlResultParseError, FrameBodyExtensionsParseError, OperationType,
    PeersMetadataError, TranslationError, WriteType,
};
use scylla::serialize::row::{
    BuiltinSerializationError as RowError, BuiltinSerializationErrorKind as RowErrorKind,
};
use scylla::statement::Consistency;

use super::*;
use crate::error::Verdict;

const ONE: Consistency = Consistency::One;

fn db(error: DbError) -> RequestAttemptError {
    RequestAttemptError::DbError(error, "something".to_owned())
}

fn invalid(message: &str) -> RequestAttemptError {
    RequestAttemptError::DbError(DbError::Invalid, message.to_owned())
}

fn broken() -> BrokenConnectionError {
    BrokenConnectionErrorKind::ChannelError.into()
}

fn refused() -> ConnectionError {
    ConnectionError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
}

/// A value of the wrong type, as a row's serialization reports it.
fn wrong_type() -> SerializationError {
    let err = SerializationError::new(value::BuiltinTypeCheckError {
        rust_name: "f64",
        got: scylla::cluster::metadata::ColumnType::Native(
            scylla::cluster::metadata::NativeType::Int,
        ),
        kind: value::BuiltinTypeCheckErrorKind::NotEmptyable,
    });
    let kind = RowErrorKind::ColumnSerializationFailed { name: "value".to_owned(), err };
    SerializationError::new(RowError { rust_name: "row", kind })
}

fn too_large() -> SerializationError {
    let err = SerializationError::new(value::BuiltinSerializationError {
        rust_name: "str",
        got: scylla::cluster::metadata::ColumnType::Native(
            scylla::cluster::metadata::NativeType::Text,
        ),
        kind: value::BuiltinSerializationErrorKind::SizeOverflow,
    });
    let kind = RowErrorKind::ColumnSerializationFailed { name: "value".to_owned(), err };
    SerializationError::new(RowError { rust_name: "row", kind })
}

fn wrong_count() -> SerializationError {
    let kind = row::BuiltinTypeCheckErrorKind::WrongColumnCount { rust_cols: 6, cql_cols: 5 };
    SerializationError::new(row::BuiltinTypeCheckError { rust_name: "row", kind })
}

fn of_attempts() -> Vec<(Answer, RequestAttemptError)> {
    use RequestAttemptError as Attempt;
    let in_batch = |error| {
        let error = BatchStatementSerializationError::ValuesSerialiation(error);
        let error = BatchSerializationError::StatementSerialization { statement_idx: 1, error };
        Attempt::CqlRequestSerialization(CqlRequestSerializationError::BatchSerialization(error))
    };
    let batch = |error| {
        Attempt::CqlRequestSerialization(CqlRequestSerializationError::BatchSerialization(error))
    };
    vec![
        (Answer::WrongTypes, Attempt::SerializationError(wrong_type())),
        (Answer::WrongTypes, Attempt::SerializationError(wrong_count())),
        (Answer::ValueTooLarge, Attempt::SerializationError(too_large())),
        (Answer::WrongTypes, in_batch(wrong_type())),
        (Answer::ValueTooLarge, in_batch(too_large())),
        (Answer::TooManyStatements, batch(BatchSerializationError::TooManyStatements(70_000))),
        (
            Answer::RequestNotSerialized,
            batch(BatchSerializationError::ValuesAndStatementsLengthMismatch {
                n_value_lists: 1,
                n_statements: 2,
            }),
        ),
        (Answer::NoStreamId, Attempt::UnableToAllocStreamId),
        (Answer::BrokenConnection, Attempt::BrokenConnectionError(broken())),
        (
            Answer::Unreadable,
            Attempt::BodyExtensionsParseError(
                FrameBodyExtensionsParseError::NoCompressionNegotiated,
            ),
        ),
        (Answer::Unreadable, Attempt::CqlResultParseError(CqlResultParseError::UnknownResultId(9))),
        (Answer::Unexpected, Attempt::UnexpectedResponse(CqlResponseKind::Ready)),
        (
            Answer::RepreparedIdChanged,
            Attempt::RepreparedIdChanged {
                statement: String::new(),
                expected_id: vec![1],
                reprepared_id: vec![2],
            },
        ),
        (Answer::RepreparedIdMissing, Attempt::RepreparedIdMissingInBatch),
        (Answer::UnfinishedPages, Attempt::NonfinishedPagingState),
    ]
}

fn of_database() -> Vec<(Answer, RequestAttemptError)> {
    let names = || ("k".to_owned(), "t".to_owned());
    let ((keyspace, table), (in_keyspace, function)) = (names(), names());
    vec![
        (Answer::ServerError, db(DbError::ServerError)),
        (Answer::ProtocolError, db(DbError::ProtocolError)),
        (Answer::AuthenticationError, db(DbError::AuthenticationError)),
        (Answer::Unavailable, db(DbError::Unavailable { consistency: ONE, required: 1, alive: 0 })),
        (Answer::Overloaded, db(DbError::Overloaded)),
        (Answer::IsBootstrapping, db(DbError::IsBootstrapping)),
        (Answer::TruncateError, db(DbError::TruncateError)),
        (
            Answer::WriteTimeout,
            // Enough replicas confirmed, and it is a time-out all the same.
            db(DbError::WriteTimeout {
                consistency: ONE,
                received: 1,
                required: 1,
                write_type: WriteType::Simple,
            }),
        ),
        (
            Answer::ReadTimeout,
            db(DbError::ReadTimeout {
                consistency: ONE,
                received: 0,
                required: 1,
                data_present: false,
            }),
        ),
        (
            Answer::ReadFailure,
            db(DbError::ReadFailure {
                consistency: ONE,
                received: 0,
                required: 1,
                numfailures: 1,
                data_present: false,
            }),
        ),
        (
            Answer::FunctionFailure,
            db(DbError::FunctionFailure { keyspace: in_keyspace, function, arg_types: Vec::new() }),
        ),
        (
            Answer::WriteFailure,
            db(DbError::WriteFailure {
                consistency: ONE,
                received: 0,
                required: 1,
                numfailures: 1,
                write_type: WriteType::UnloggedBatch,
            }),
        ),
        (Answer::CdcWriteFailure, db(DbError::Other(0x1600))),
        (Answer::CasWriteUnknown, db(DbError::Other(0x1700))),
        (Answer::SyntaxError, db(DbError::SyntaxError)),
        (Answer::Unauthorized, db(DbError::Unauthorized)),
        (Answer::Invalid, db(DbError::Invalid)),
        (Answer::ConfigError, db(DbError::ConfigError)),
        (Answer::AlreadyExists, db(DbError::AlreadyExists { keyspace, table })),
        (Answer::Unprepared, db(DbError::Unprepared { statement_id: Vec::new().into() })),
        (
            Answer::RateLimitReached,
            db(DbError::RateLimitReached {
                op_type: OperationType::Write,
                rejected_by_coordinator: true,
            }),
        ),
        (Answer::Other, db(DbError::Other(0x4444))),
    ]
}

fn of_pools() -> Vec<(Answer, ConnectionPoolError)> {
    let broken_by = |last_connection_error| ConnectionPoolError::Broken { last_connection_error };
    let no_rule = TranslationError::NoRuleForAddress(([127, 0, 0, 1], 9042).into());
    vec![
        (Answer::PoolInitializing, ConnectionPoolError::Initializing),
        (Answer::NodeDisabled, ConnectionPoolError::NodeDisabledByHostFilter),
        (Answer::ConnectTimeout, broken_by(ConnectionError::ConnectTimeout)),
        (Answer::ConnectFailed, broken_by(refused())),
        (Answer::NoSourcePort, broken_by(ConnectionError::NoSourcePortForShard(1))),
        (Answer::NoAddress, broken_by(ConnectionError::TranslationError(no_rule))),
        (Answer::BrokenConnection, broken_by(ConnectionError::BrokenConnection(broken()))),
        (
            Answer::RequestTimeout,
            broken_by(UseKeyspaceError::RequestTimeout(Duration::ZERO).into()),
        ),
    ]
}

fn of_setup() -> Vec<(Answer, ConnectionSetupRequestErrorKind)> {
    use ConnectionSetupRequestErrorKind as Setup;
    let batch = BatchSerializationError::TooManyStatements(70_000);
    let said = || "something".to_owned();
    vec![
        (
            Answer::RequestNotSerialized,
            Setup::CqlRequestSerialization(CqlRequestSerializationError::BatchSerialization(batch)),
        ),
        (Answer::Unreadable, FrameBodyExtensionsParseError::NoCompressionNegotiated.into()),
        (Answer::NoStreamId, Setup::UnableToAllocStreamId),
        (Answer::BrokenConnection, Setup::BrokenConnection(broken())),
        (Answer::AuthenticationError, Setup::DbError(DbError::AuthenticationError, said())),
        (Answer::ProtocolError, Setup::DbError(DbError::ProtocolError, said())),
        (Answer::IsBootstrapping, Setup::DbError(DbError::IsBootstrapping, said())),
        (Answer::Unexpected, Setup::UnexpectedResponse(CqlResponseKind::Result)),
        (Answer::AuthFailed, Setup::StartAuthSessionError(said())),
        (Answer::AuthFailed, Setup::AuthChallengeEvaluationError(said())),
        (Answer::AuthFailed, Setup::AuthFinishError(said())),
        (Answer::AuthFailed, Setup::MissingAuthentication),
    ]
}

fn of_executions() -> Vec<(Answer, ExecutionError)> {
    let mismatch = UseKeyspaceError::KeyspaceNameMismatch {
        expected_keyspace_name_lowercase: "a".to_owned(),
        result_keyspace_name_lowercase: "b".to_owned(),
    };
    vec![
        (Answer::NoPartitionKey, BadQuery::PartitionKeyExtraction.into()),
        (Answer::WrongTypes, BadQuery::SerializationError(wrong_type()).into()),
        (Answer::WrongTypes, BadQuery::SerializationError(wrong_count()).into()),
        (Answer::ValueTooLarge, BadQuery::SerializationError(too_large()).into()),
        (Answer::KeyTooLong, BadQuery::ValuesTooLongForKey(65_536, 65_535).into()),
        (Answer::TooManyStatements, BadQuery::TooManyQueriesInBatchStatement(70_000).into()),
        (Answer::EmptyPlan, ExecutionError::EmptyPlan),
        (Answer::IdsMismatch, PrepareError::PreparedStatementIdsMismatch.into()),
        (Answer::PoolInitializing, PrepareError::from(ConnectionPoolError::Initializing).into()),
        (
            Answer::InvalidSchema,
            PrepareError::AllAttemptsFailed { first_attempt: invalid("table x does not exist") }
                .into(),
        ),
        (Answer::RequestTimeout, ExecutionError::RequestTimeout(Duration::from_secs(10))),
        (Answer::BadKeyspaceName, UseKeyspaceError::BadKeyspaceName(BadKeyspaceName::Empty).into()),
        (Answer::KeyspaceMismatch, mismatch.into()),
        (Answer::Overloaded, UseKeyspaceError::RequestError(db(DbError::Overloaded)).into()),
        (Answer::SchemaDisagreement, SchemaAgreementError::Timeout(Duration::ZERO).into()),
        (
            Answer::PoolInitializing,
            SchemaAgreementError::from(ConnectionPoolError::Initializing).into(),
        ),
        (
            Answer::IdsMismatch,
            SchemaAgreementError::from(PrepareError::PreparedStatementIdsMismatch).into(),
        ),
        (Answer::Overloaded, SchemaAgreementError::from(db(DbError::Overloaded)).into()),
        (Answer::Metadata, MetadataError::from(PeersMetadataError::EmptyPeers).into()),
    ]
}

fn of_sessions() -> Vec<(Answer, NewSessionError)> {
    vec![
        (Answer::NoHostname, NewSessionError::FailedToResolveAnyHostname(vec!["h".to_owned()])),
        (Answer::NoContactPoints, NewSessionError::EmptyKnownNodesList),
        (Answer::IllegalConfig, NewSessionError::IllegalConfig("both".into())),
        (Answer::BadKeyspaceName, UseKeyspaceError::from(BadKeyspaceName::Empty).into()),
        (Answer::Metadata, MetadataError::from(PeersMetadataError::EmptyTokenLists).into()),
        (
            Answer::ConnectFailed,
            MetadataError::from(ConnectionPoolError::Broken { last_connection_error: refused() })
                .into(),
        ),
    ]
}

/// The error with the row's verdict and code, and what was said.
fn assert_is(found: &StoreError, answer: Answer, said: &dyn std::fmt::Display) {
    let Row { code, is_sure, .. } = answer.row();
    let expected = (code.verdict, code.name, is_sure);
    assert_eq!((found.verdict, found.code, found.is_sure), expected, "{answer:?} of {said}");
    if answer != Answer::EmptyPlan {
        assert_eq!(found.detail, said.to_string());
    }
}

#[test]
fn every_row_has_an_error_that_comes_to_it_and_every_error_comes_to_its_row() {
    let mut seen = BTreeSet::new();
    let mut see = |answer: Answer| {
        seen.insert(format!("{answer:?}"));
    };
    for (answer, error) in of_attempts().into_iter().chain(of_database()) {
        assert_eq!(attempt(&error), answer, "{error}");
        assert_is(&of_execution(&error.clone().into()), answer, &error);
        let prepared = PrepareError::AllAttemptsFailed { first_attempt: error };
        assert_is(&of_prepare(&prepared), answer, &prepared);
        see(answer);
    }
    for (answer, error) in of_pools() {
        let executed = ExecutionError::from(error.clone());
        assert_is(&of_execution(&executed), answer, &executed);
        let prepared = PrepareError::from(error.clone());
        assert_is(&of_prepare(&prepared), answer, &prepared);
        let connected = NewSessionError::from(MetadataError::from(error));
        assert_is(&of_new_session(&connected), answer, &connected);
        see(answer);
    }
    for (answer, error) in of_setup() {
        assert_eq!(setup(&error), answer, "{error}");
        see(answer);
    }
    for (answer, error) in of_executions() {
        assert_is(&of_execution(&error), answer, &error);
        see(answer);
    }
    for (answer, error) in of_sessions() {
        assert_is(&of_new_session(&error), answer, &error);
        see(answer);
    }
    // Rows of one error that differ in what is said, by what is said.
    for answer in Answer::ALL {
        for sign in answer.row().says {
            let error = match answer.row().answer.split(',').next() {
                Some("SERVER_ERROR") => DbError::ServerError,
                Some("PROTOCOL_ERROR") => DbError::ProtocolError,
                Some("INVALID") => DbError::Invalid,
                other => panic!("no error is made of {other:?}"),
            };
            assert_eq!(database(&error, &format!("It says {sign}.")), *answer);
            see(*answer);
        }
    }
    let unseen: Vec<_> =
        Answer::ALL.iter().map(|a| format!("{a:?}")).filter(|a| !seen.contains(a)).collect();
    // For variants that no version of the driver has yet.
    assert_eq!(unseen, ["NotKnown"]);
}

#[test]
fn what_is_not_known_is_sent_again_and_never_rejected() {
    for answer in [Answer::NotKnown, Answer::Other, Answer::Unreadable, Answer::Unexpected] {
        assert_eq!(answer.row().code.verdict, Verdict::Retry, "{answer:?}");
    }
}

#[test]
fn an_error_frame_that_cannot_be_read_is_an_answer_that_cannot_be_read() {
    let error = scylla::errors::CqlErrorParseError::ReasonParseError(
        scylla::frame::frame_errors::LowLevelDeserializationError::IoError(Arc::new(
            std::io::Error::other("short"),
        )),
    );
    let error: CqlErrorParseError = error;
    assert_eq!(attempt(&RequestAttemptError::CqlErrorParseError(error)), Answer::Unreadable);
}
