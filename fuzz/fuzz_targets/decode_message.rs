//! Any bytes as a message: no panic, and whatever is accepted has a finite value, a name and sorted dimensions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use monasca_persister::decode;

fuzz_target!(|payload: &[u8]| {
    decode::metrics(payload, |_, metric| {
        if let Ok(metric) = metric {
            assert!(metric.value.is_finite() && !metric.name.is_empty());
            assert!(metric.dimensions.is_sorted());
        }
    });
    drop(decode::alarm(payload));
});
