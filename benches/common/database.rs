//! A real Cassandra, and the bare driver that writes to it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::Cassandra;
use monasca_persister::decode;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::batch::{Batch, BatchType};
use scylla::value::CqlTimestamp;
use storage::IdScheme;
use storage::cassandra::{CassandraConfig, schema};

use crate::common::{Figures, Moment, SERIES, Traffic, child, client_cpu, settle, variable};

pub const BATCH_ROWS_MAX: usize = 100;
const IN_FLIGHT: usize = 64;
const IN_FLIGHT_SINGLE: usize = 256;
const RETENTION_S: i32 = 45 * 24 * 60 * 60;
const REPLICATION: &str = "{'class': 'SimpleStrategy', 'replication_factor': 1}";

/// Role `insert`: the bare driver, unlogged batches of one series' rows or single statements, a fixed number of them in
/// flight.
pub fn insert() -> Figures {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let traffic = Traffic {
        messages: variable("BENCH_MESSAGES").unwrap(),
        newest_ms: variable("BENCH_NEWEST_MS").unwrap(),
    };
    let batch_rows = variable::<usize>("BENCH_BATCH_ROWS").unwrap();
    let keyspace: String = variable("BENCH_KEYSPACE").unwrap();
    let server = variable("BENCH_SERVER_PID").unwrap();
    let ids: Arc<Vec<Vec<u8>>> =
        Arc::new((0..SERIES).map(|series| id_of(traffic, series)).collect());
    runtime.block_on(async {
        let session = Arc::new(connect(&variable::<String>("BENCH_SERVER").unwrap()).await);
        let statement = session
            .prepare(format!(
                "INSERT INTO {keyspace}.measurements (metric_id, time_stamp, value, value_meta) \
                 VALUES (?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?"
            ))
            .await
            .unwrap();
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Moment::now(std::process::id(), server);
        let in_flight = if batch_rows == 1 { IN_FLIGHT_SINGLE } else { IN_FLIGHT };
        let tasks: Vec<_> = (0..in_flight)
            .map(|_| {
                let (session, statement) = (Arc::clone(&session), statement.clone());
                let (next, ids) = (Arc::clone(&next), Arc::clone(&ids));
                tokio::spawn(async move {
                    let mut requests = 0;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let (series, first) = (number % SERIES, number / SERIES * batch_rows);
                        if first >= rows_of(traffic, 0) {
                            return requests;
                        }
                        let last = (first + batch_rows).min(rows_of(traffic, series));
                        let rows: Vec<_> = (first..last)
                            .map(|tick| {
                                let time_ms = traffic.time_ms(series, tick);
                                let (id, time) = (ids[series].as_slice(), CqlTimestamp(time_ms));
                                let value = Traffic::value(series, tick);
                                (id, time, value, "", time_ms * 1000, RETENTION_S)
                            })
                            .collect();
                        if rows.is_empty() {
                            continue;
                        }
                        if let [row] = &rows[..] {
                            // A node that is busy for a moment is no reason to end; the wait counts.
                            while session.execute_unpaged(&statement, row).await.is_err() {}
                        } else {
                            let mut batch = Batch::new(BatchType::Unlogged);
                            for _ in &rows {
                                batch.append_statement(statement.clone());
                            }
                            while session.batch(&batch, &rows).await.is_err() {}
                        }
                        requests += 1;
                    }
                })
            })
            .collect();
        let mut requests = 0;
        for task in tasks {
            requests += task.await.unwrap();
        }
        let mut figures = begun.until_now(traffic.messages);
        figures.rows_per_request = Some(traffic.messages as f64 / f64::from(requests));
        figures
    })
}

pub fn rows_of(traffic: Traffic, series: usize) -> usize {
    traffic.messages / SERIES + usize::from(series < traffic.messages % SERIES)
}

/// The series' id, by the program's own reading of one of its messages.
fn id_of(traffic: Traffic, series: usize) -> Vec<u8> {
    let mut id = Vec::new();
    decode::metrics(traffic.message(series, 0).as_bytes(), |_, metric| {
        id = metric.unwrap().id(IdScheme::default()).as_bytes().to_vec();
    });
    id
}

async fn connect(contact_point: &str) -> Session {
    SessionBuilder::new().known_node(contact_point).tcp_nodelay(true).build().await.unwrap()
}

/// Keyspaces of Cassandra, one per step.
pub struct Database {
    pub node: Cassandra,
    runtime: tokio::runtime::Runtime,
    session: Session,
}

impl Database {
    pub fn start() -> Self {
        // A dropped keyspace is gone, not kept as a snapshot.
        let mut builder = Cassandra::builder().setting("auto_snapshot", "false");
        if client_cpu().is_some() {
            builder = builder.cpu(1);
        }
        let node = builder.start().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let session = runtime.block_on(connect(&node.contact_point()));
        Self { node, runtime, session }
    }

    pub fn pid(&self) -> u32 {
        self.node.pid().unwrap()
    }

    /// Runs `step` with a fresh keyspace, counts what it left for one series, and drops the keyspace.
    pub fn with_keyspace<T>(&self, traffic: Traffic, step: impl FnOnce(&str) -> T) -> T {
        let keyspace = harness::unique("bench");
        let config = CassandraConfig {
            contact_points: vec![self.node.contact_point()],
            keyspace: keyspace.clone(),
            consistency: "ONE".to_owned(),
            ..CassandraConfig::default()
        };
        self.runtime.block_on(schema::apply(&config, REPLICATION)).unwrap();
        settle(self.pid());
        let result = step(&keyspace);
        let series = SERIES / 3;
        let found: i64 = self.runtime.block_on(async {
            let count = format!("SELECT COUNT(*) FROM {keyspace}.measurements WHERE metric_id = ?");
            let rows = self.session.query_unpaged(count, (id_of(traffic, series),)).await.unwrap();
            let (found,) = rows.into_rows_result().unwrap().single_row::<(i64,)>().unwrap();
            let drop = format!("DROP KEYSPACE {keyspace}");
            self.session.query_unpaged(drop, ()).await.unwrap();
            found
        });
        assert_eq!(found, rows_of(traffic, series) as i64, "rows of one series");
        result
    }

    pub fn insert(&self, dir: &Path, traffic: Traffic, batch_rows: usize) -> Figures {
        self.with_keyspace(traffic, |keyspace| {
            let environment = [
                ("BENCH_SERVER", self.node.contact_point()),
                ("BENCH_SERVER_PID", self.pid().to_string()),
                ("BENCH_KEYSPACE", keyspace.to_owned()),
                ("BENCH_MESSAGES", traffic.messages.to_string()),
                ("BENCH_NEWEST_MS", traffic.newest_ms.to_string()),
                ("BENCH_BATCH_ROWS", batch_rows.to_string()),
            ];
            child(dir, "insert", &environment)
        })
    }
}
