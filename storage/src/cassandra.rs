//! Apache Cassandra and ScyllaDB, with the tables that monasca-api reads.

mod connecting;
mod definitions;
pub mod errors;
pub mod inspection;
mod lives;
pub mod probe;
mod replicas;
pub mod schema;
mod secret;
mod session;
mod statements;
mod store;
mod tls;
pub mod verdicts;

pub use secret::Secret;
pub use session::CassandraConfig;
pub use store::CassandraStore;
pub use tls::{CassandraTls, Verify};
