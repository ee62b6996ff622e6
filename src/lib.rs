//! Takes metrics and alarm state transitions from Kafka, makes each durable in a local log before its offset is
//! committed, and delivers them to Cassandra or an embedded store.
//!
//! ```text
//! Kafka ─poll→ kafka, intake, ingest ─append→ [ wal ] ═files═ log_reader, gather, decode → delivery, deliver
//!    ↑ commit once durable: offsets                                  ↑ acks        writers → storage
//!    └───────────────────────────────────────────────────────────────┘        ↘ dead_letters
//! ```
//!
//! What depends on time or order is a machine without I/O: [`ingest`], [`offsets`], [`deliver`], [`breaker`]. What
//! turns bytes into rows is a plain function: [`decode`], [`gather`], [`envelope`]. The rest is thin drivers.

pub mod aside;
pub mod batch_limit;
pub mod breaker;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod control;
pub mod dead_letters;
pub mod decode;
pub mod definitions;
pub mod deliver;
pub mod delivered;
pub mod delivery;
pub mod demo;
pub mod envelope;
pub mod exit;
pub mod gather;
pub mod http;
pub mod ingest;
pub mod inspect;
pub mod instance;
pub mod intake;
pub mod kafka;
pub mod kafka_certificate;
pub mod kafka_connection;
pub mod kafka_gap;
pub mod kafka_token;
pub mod kafka_trouble;
pub mod keeper;
pub mod ledger;
pub mod lives;
pub mod log_level;
pub mod log_reader;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod offset_note;
pub mod offset_ranges;
pub mod offset_trail;
pub mod offsets;
pub mod orders;
pub mod pace;
pub mod peek;
pub mod pipeline;
pub mod precedence;
pub mod rates;
pub mod redelivery;
pub mod retention;
pub(crate) mod said;
pub mod secrets;
pub mod seldom;
pub mod service;
pub mod silence;
pub mod store;
mod sync;
pub mod topic_identity;
mod whole_file;
pub mod writers;

/// The promise, as the start-up log and the status state it.
pub const GUARANTEE: &str = "every message that Kafka considers consumed is in the log, in the store, in the dead \
letters, or counted as older than the retention; the store holds each as if written once";
