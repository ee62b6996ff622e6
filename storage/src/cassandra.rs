//! Apache Cassandra and ScyllaDB, with the tables that monasca-api reads.

pub mod errors;
mod lives;
pub mod schema;
mod session;
mod statements;
mod store;
pub mod verdicts;

pub use session::CassandraConfig;
pub use store::CassandraStore;
