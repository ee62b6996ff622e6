//! How fast messages are decoded, and what an id costs under each scheme.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use monasca_persister::decode;
use storage::IdScheme;

/// As agents send them: four dimensions, 316 bytes.
const MESSAGE: &[u8] = br#"{"metric":{"name":"cpu.idle_perc","dimensions":{"hostname":"compute-0117.region-one.example","service":"monitoring","component":"hypervisor","zone":"nova-az-2"},"timestamp":1405630174123,"value":97.5321,"value_meta":{}},"meta":{"tenantId":"0123456789abcdef0123456789abcdef","region":"RegionOne"},"creation_time":1405630174}"#;

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("metric", |bencher| {
        bencher.iter(|| decode::metrics(MESSAGE, |_, metric| drop(std::hint::black_box(metric))));
    });
    for scheme in IdScheme::ALL {
        group.bench_function(format!("metric with id {scheme}"), |bencher| {
            bencher.iter(|| {
                decode::metrics(MESSAGE, |_, metric| {
                    drop(std::hint::black_box(metric.map(|metric| metric.id(scheme))));
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decoding);
criterion_main!(benches);
