//! The operators' side of the real program: what it shows is so, what it is told it does, and who may tell it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking; numbers are for people"
)]

mod backlog;
mod browser;
mod control;
mod limits;
mod page;
mod paths;
mod persister;
mod secrets;
