//! Apache Cassandra and ScyllaDB, with the tables that monasca-api reads.

mod definitions;
mod errors;
mod lives;
mod replicas;
pub mod schema;
mod session;
mod statements;
mod store;

pub use session::CassandraConfig;
pub use store::CassandraStore;
