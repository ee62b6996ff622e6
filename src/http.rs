//! The operators' surface over HTTP: reads what [`crate::inspect`] says, steers nothing.

mod dropwizard;
mod letters;
mod prometheus;
mod query;
mod routes;

pub use prometheus::render as prometheus_text;
pub use routes::{Bound, serve};
