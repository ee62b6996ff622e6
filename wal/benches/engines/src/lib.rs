//! What all engines of the benchmark share: records, loads, and how a round is measured.

pub mod corpus;
pub mod round;
pub mod shape;
pub mod usage;
