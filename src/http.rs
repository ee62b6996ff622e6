//! The operators' surface over HTTP: shows what [`crate::inspect`] says, and passes on what a person orders.

mod api;
mod backlog;
mod blocking;
mod control;
mod dropwizard;
mod events;
mod guard;
mod letters;
mod prometheus;
mod query;
mod routes;
mod server;
mod site;
mod threads;

pub use guard::{Guard, WeakToken};
pub use prometheus::render as prometheus_text;
pub use server::{Bound, serve};
pub use site::SiteParts;
