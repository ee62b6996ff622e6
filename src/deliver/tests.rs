//! Tests of the delivery machine.
