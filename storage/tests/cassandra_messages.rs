//! What a real node says when it does not take a row, and what the table of verdicts makes of it: the texts that the
//! table looks for are those of a node, not of somebody's memory.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use harness::Cassandra;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::ExecutionError;
use scylla::serialize::row::SerializeRow;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::unprepared::Statement;
use storage::cassandra::errors::{of_execution, of_new_session};
use storage::cassandra::verdicts::{Answer, Row};
use storage::{StoreError, Verdict};

/// Bounds of the node, so that small values are too large.
const MUTATION: usize = 64 << 10;
const VALUE: usize = 100 << 10;

fn node() -> Cassandra {
    Cassandra::builder()
        .setting("authenticator", "PasswordAuthenticator")
        .setting("authorizer", "CassandraAuthorizer")
        .setting("max_mutation_size", "64KiB")
        .setting("batch_size_fail_threshold", "20KiB")
        .setting("native_transport_max_frame_size", "1MiB")
        .setting("column_value_size_fail_threshold", "100KiB")
        .setting("write_consistency_levels_disallowed", "[ANY]")
        .setting("partition_denylist_enabled", "true")
        .setting("denylist_writes_enabled", "true")
        .setting("denylist_refresh", "1s")
        .setting("denylist_consistency_level", "ONE")
        .setting("cdc_enabled", "true")
        .setting("cdc_total_space", "1MiB")
        .start()
        .unwrap()
}

async fn session(node: &Cassandra, user: &str, password: &str) -> Session {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let connected = SessionBuilder::new()
            .known_node(node.contact_point())
            .user(user, password)
            .build()
            .await;
        match connected {
            Ok(session) => return session,
            // The first role is made some seconds after the start.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What the table makes of an error that a node said.
fn see(what: &str, error: &StoreError, answer: Answer) {
    eprintln!("{what}: {} {:?}: {}", error.code, error.verdict, error.detail);
    let Row { code, says, is_sure, .. } = answer.row();
    assert_eq!((error.verdict, error.code, error.is_sure), (code.verdict, code.name, is_sure));
    let detail = error.detail.to_ascii_lowercase();
    assert!(says.is_empty() || says.iter().any(|sign| detail.contains(sign)), "{answer:?}");
}

struct Tried<'a> {
    session: &'a Session,
}

impl Tried<'_> {
    async fn execute(&self, text: &str, values: impl SerializeRow) -> Result<(), ExecutionError> {
        let statement = self.session.prepare(text).await?;
        self.session.execute_unpaged(&statement, values).await.map(drop)
    }

    async fn refused(&self, what: &str, text: &str, values: impl SerializeRow, answer: Answer) {
        let error = self.execute(text, values).await.unwrap_err();
        see(what, &of_execution(&error), answer);
    }
}

#[test]
fn what_a_node_says_of_a_row_or_a_request_it_does_not_take_comes_to_its_verdict() {
    let node = node();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let admin = session(&node, "cassandra", "cassandra").await;
        for text in [
            "CREATE KEYSPACE k WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
            "CREATE TABLE k.t (a text, b text, c text, d text, e double, PRIMARY KEY ((a, b), c))",
            "CREATE TABLE k.one (a text PRIMARY KEY, d text)",
            "CREATE TABLE k.two (a text, b text, c text, PRIMARY KEY (a, b, c))",
            "CREATE TABLE k.cdc (a text PRIMARY KEY, d text) WITH cdc = true",
            "CREATE ROLE persister WITH password = 'p' AND login = true",
            "GRANT MODIFY ON KEYSPACE k TO persister",
            "GRANT SELECT ON KEYSPACE k TO persister",
            "INSERT INTO system_distributed.partition_denylist (ks_name, table_name, key) VALUES ('k', 'one', textAsBlob('denied'))",
        ] {
            // Of one node alone; keyspaces of the system want more replicas.
            let mut statement = Statement::new(text);
            statement.set_consistency(Consistency::One);
            admin.query_unpaged(statement, ()).await.unwrap();
        }
        let wrong = SessionBuilder::new()
            .known_node(node.contact_point())
            .user("persister", "wrong")
            .build()
            .await
            .unwrap_err();
        see("wrong password", &of_new_session(&wrong), Answer::AuthenticationError);
        let none =
            SessionBuilder::new().known_node(node.contact_point()).build().await.unwrap_err();
        see("no password", &of_new_session(&none), Answer::AuthFailed);

        let session = session(&node, "persister", "p").await;
        let tried = Tried { session: &session };
        let one = "INSERT INTO k.one (a, d) VALUES (?, ?)";
        let row = "INSERT INTO k.t (a, b, c, d) VALUES (?, ?, ?, ?)";
        tried.execute(one, ("a", "d")).await.unwrap();

        let long = "x".repeat(65_536);
        tried.refused("key of one part, by the node", one, (&long, "d"), Answer::InvalidKey).await;
        tried.refused("key of parts, by the driver", row, (&long, "b", "c", "d"), Answer::KeyTooLong).await;
        let half = "x".repeat(40_000);
        tried.refused("parts together", row, (&half, &half, "c", "d"), Answer::InvalidKey).await;
        tried.refused("clustering column", row, ("a", "b", &long, "d"), Answer::InvalidKey).await;
        let two = "INSERT INTO k.two (a, b, c) VALUES (?, ?, ?)";
        tried.refused("clustering columns together", two, ("a", &half, &half), Answer::InvalidKey).await;
        tried.refused("empty key", one, ("", "d"), Answer::InvalidKey).await;

        let value = "x".repeat(VALUE + 1);
        tried.refused("guardrail of a value", one, ("a", &value), Answer::InvalidValueTooLarge).await;
        let value = "x".repeat(MUTATION + 1);
        tried.refused("mutation", one, ("a", &value), Answer::InvalidMutationTooLarge).await;
        let value = "x".repeat(2 << 20);
        tried.refused("frame", one, ("a", &value), Answer::InvalidRequestTooLarge).await;
        let mut batch = Batch::new(BatchType::Unlogged);
        let statement = session.prepare(one).await.unwrap();
        (0..3).for_each(|_| batch.append_statement(statement.clone()));
        let value = "x".repeat(10_000);
        let rows = [("a", &value), ("b", &value), ("c", &value)];
        let error = session.batch(&batch, rows.as_slice()).await.unwrap_err();
        see("batch", &of_execution(&error), Answer::InvalidBatchTooLarge);

        let deadline = Instant::now() + Duration::from_secs(30);
        let denied = loop {
            match tried.execute(one, ("denied", "d")).await {
                Err(error) => break error,
                Ok(()) => assert!(Instant::now() < deadline, "not denied"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        see("denylist", &of_execution(&denied), Answer::InvalidDenylisted);

        let expiring = "INSERT INTO k.one (a, d) VALUES (?, ?) USING TTL ?";
        tried.refused("20 years and more", expiring, ("a", "d", 630_720_001), Answer::InvalidTimeToLive).await;
        tried.refused("beyond 2038", expiring, ("a", "d", 630_720_000), Answer::InvalidTimeToLive).await;

        for (level, answer) in [
            (Consistency::Any, Answer::InvalidGuardrail),
            (Consistency::Serial, Answer::InvalidConsistency),
            (Consistency::Three, Answer::Unavailable),
        ] {
            let mut statement = session.prepare(one).await.unwrap();
            statement.set_consistency(level);
            let error = session.execute_unpaged(&statement, ("a", "d")).await.unwrap_err();
            see(&format!("{level:?}"), &of_execution(&error), answer);
        }

        let mut statement = Statement::new("SELECT release_version FROM system.local");
        statement.set_consistency(Consistency::Any);
        let error = session.query_unpaged(statement, ()).await.unwrap_err();
        see("reading with ANY", &of_execution(&error), Answer::InvalidConsistency);

        for (what, text, answer) in [
            ("no keyspace", "INSERT INTO nowhere.one (a) VALUES ('a')", Answer::InvalidSchema),
            ("no table", "INSERT INTO k.nothing (a) VALUES ('a')", Answer::InvalidSchema),
            ("no column", "INSERT INTO k.one (a, z) VALUES ('a', 'z')", Answer::InvalidSchema),
            ("no keyspace given", "INSERT INTO one (a) VALUES ('a')", Answer::InvalidSchema),
            ("no syntax", "INSERT OUT k.one", Answer::SyntaxError),
        ] {
            let error = session.query_unpaged(Statement::new(text), ()).await.unwrap_err();
            see(what, &of_execution(&error), answer);
        }

        // The only failure of a replica that a node of its own can be made to have; it keeps the reason to itself.
        let cdc = "INSERT INTO k.cdc (a, d) VALUES (?, ?)";
        tried.refused("change data capture is full", cdc, ("a", "d"), Answer::WriteFailure).await;

        // A table made anew with other types, under a statement that was prepared before.
        let texts = "INSERT INTO k.changing (a, d, e) VALUES (?, ?, ?)";
        let make = |of_d: &str, of_e: &str| format!("CREATE TABLE k.changing (a text PRIMARY KEY, d {of_d}, e {of_e})");
        admin.query_unpaged(make("text", "double"), ()).await.unwrap();
        let statement = session.prepare(texts).await.unwrap();
        session.execute_unpaged(&statement, ("a", "d", 1.0)).await.unwrap();
        let change = async |text: String| {
            admin.query_unpaged("DROP TABLE k.changing", ()).await.unwrap();
            admin.query_unpaged(text, ()).await.unwrap();
        };
        for (of_d, of_e) in [
            ("text", "int"),
            ("timestamp", "double"),
            ("uuid", "double"),
            ("boolean", "double"),
            ("list<text>", "double"),
            ("text", "text"),
        ] {
            change(make(of_d, of_e)).await;
            let error = session.execute_unpaged(&statement, ("a", "dddd", 1.0)).await.unwrap_err();
            see(&format!("text is {of_d}, double {of_e}"), &of_execution(&error), Answer::InvalidType);
        }
        let error = tried.execute(texts, ("a", "d", 1.0)).await.unwrap_err();
        see("another type, prepared anew", &of_execution(&error), Answer::WrongTypes);

        admin.query_unpaged("REVOKE MODIFY ON KEYSPACE k FROM persister", ()).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let forbidden = loop {
            match tried.execute(one, ("a", "d")).await {
                Err(error) => break error,
                Ok(()) => assert!(Instant::now() < deadline, "not forbidden"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        see("no right", &of_execution(&forbidden), Answer::Unauthorized);
        assert_eq!(of_execution(&forbidden).verdict, Verdict::Wait);
    });
}
