//! The built-in demonstration: an in-process broker fed with this machine's own metrics.
//!
//! The broker is librdkafka's mock cluster; everything behind it is the real service.

pub mod broker;
pub mod host_metrics;
