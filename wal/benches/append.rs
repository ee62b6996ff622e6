//! Durable appends on the real disk: batches of 1, 100 and 1,000 records of 400 bytes from one
//! thread, 8 threads with batches of 100, and 1,000 with two batches in flight. Prints the median
//! of five interleaved rounds, the spread, and the raw floor (one write and one fdatasync of the
//! same bytes, uncompressed) measured in the same rounds.
//!
//! `WAL_BENCH_DIR` names the directory to write to (default: the system's temporary one, which must
//! not be memory). Arguments are ignored, so that `cargo bench` and `cargo test --benches` both run.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use wal::{Batch, Committer, Compression, DiskFs, NoCarry, Wal, WalConfig};

const RECORD_BYTES: usize = 400;
const ROUNDS: usize = 5;
const ROUND_TIME: Duration = Duration::from_millis(700);

/// Something like a metric message: names that repeat, numbers that do not.
fn record(n: u64) -> Vec<u8> {
    let mut text = format!(
        "{{\"metric\":{{\"name\":\"cpu.user_perc\",\"dimensions\":{{\"hostname\":\"node-{}\",\
         \"service\":\"monitoring\",\"region\":\"north\"}},\"timestamp\":{},\"value\":{}.{},\
         \"value_meta\":{{}}}},\"meta\":{{\"tenantId\":\"{:032x}\"}},\"creation_time\":{}}}",
        n % 400,
        1_700_000_000_000 + n * 17,
        n % 100,
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40,
        (n % 30).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        1_700_000_000 + n,
    );
    while text.len() < RECORD_BYTES {
        text.push(char::from(b'a' + u8::try_from(text.len() as u64 * n % 26).unwrap()));
    }
    text.into_bytes()
}

#[derive(Clone, Copy)]
enum Engine {
    /// Write and fdatasync, nothing else.
    Floor,
    Wal(Compression),
}

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    threads: u64,
    batch: u64,
    /// Batches a thread has on their way before it waits.
    in_flight: usize,
}

/// Records per second.
fn round(dir: &Path, records: &[Vec<u8>], shape: Shape, engine: Engine) -> f64 {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let begun = Instant::now();
    let done = match engine {
        Engine::Floor => floor(dir.path(), records, shape, begun),
        Engine::Wal(compression) => log(dir.path(), records, shape, begun, compression),
    };
    done as f64 / begun.elapsed().as_secs_f64()
}

fn floor(dir: &Path, records: &[Vec<u8>], shape: Shape, begun: Instant) -> u64 {
    let file = File::create(dir.join("floor")).unwrap();
    let (mut at, mut done) = (0, 0);
    // All threads' batches in one write: the best a group commit can do.
    let group = shape.batch * shape.threads;
    let mut bytes: Vec<u8> =
        records.iter().cycle().zip(0..group).flat_map(|(record, _)| record.clone()).collect();
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    while begun.elapsed() < ROUND_TIME {
        file.write_all_at(&bytes, at).unwrap();
        file.sync_data().unwrap();
        at += bytes.len() as u64;
        done += group;
    }
    done
}

fn log(
    dir: &Path,
    records: &[Vec<u8>],
    shape: Shape,
    begun: Instant,
    compression: Compression,
) -> u64 {
    let config = WalConfig { compression, ..WalConfig::default() };
    let fs = DiskFs::open(dir).unwrap();
    let (wal, _) = Wal::open(fs, config, Box::new(NoCarry), Duration::ZERO).unwrap();
    let committer = (shape.in_flight > 1).then(|| Committer::spawn(wal.clone()).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..shape.threads {
            let wal = wal.clone();
            scope.spawn(move || {
                let mut next = 0;
                let mut tickets = std::collections::VecDeque::new();
                while begun.elapsed() < ROUND_TIME {
                    let mut in_batches = 0;
                    while in_batches < shape.batch {
                        let mut batch = Batch::with_capacity(128 * 1024);
                        while in_batches < shape.batch
                            && batch.push(&records[next % records.len()]).is_ok()
                        {
                            next += 1;
                            in_batches += 1;
                        }
                        tickets.push_back(wal.append(batch).unwrap());
                    }
                    // A batch of the shape may be several frames; the last one is waited for.
                    while tickets.len() >= shape.in_flight.max(1) {
                        let ticket = tickets.pop_front().unwrap();
                        if tickets.len() < shape.in_flight {
                            ticket.wait().unwrap();
                        }
                    }
                }
                for ticket in tickets {
                    ticket.wait().unwrap();
                }
            });
        }
    });
    if let Some(committer) = committer {
        committer.stop();
    }
    wal.status().durable.get()
}

fn main() {
    let dir = std::env::var_os("WAL_BENCH_DIR").map_or_else(std::env::temp_dir, Into::into);
    let records: Vec<Vec<u8>> = (0..5000).map(record).collect();
    let shapes = [
        Shape { name: "1 thread x 1", threads: 1, batch: 1, in_flight: 1 },
        Shape { name: "1 thread x 100", threads: 1, batch: 100, in_flight: 1 },
        Shape { name: "1 thread x 1000", threads: 1, batch: 1000, in_flight: 1 },
        Shape { name: "1 thread x 1000, pipelined", threads: 1, batch: 1000, in_flight: 9 },
        Shape { name: "8 threads x 100", threads: 8, batch: 100, in_flight: 1 },
    ];
    let engines = [
        ("floor", Engine::Floor),
        ("wal, plain", Engine::Wal(Compression::None)),
        ("wal, lz4", Engine::Wal(Compression::Lz4)),
    ];
    println!("thousand durable records of {RECORD_BYTES} bytes per second: median (min .. max)");
    for shape in shapes {
        let mut rates = vec![Vec::new(); engines.len()];
        for _ in 0..ROUNDS {
            for (index, (_, engine)) in engines.iter().enumerate() {
                rates[index].push(round(&dir, &records, shape, *engine) / 1000.0);
            }
        }
        println!("{}", shape.name);
        for ((name, _), rates) in engines.iter().zip(&mut rates) {
            rates.sort_by(f64::total_cmp);
            println!(
                "  {name:<12} {:>9.1}  ({:.1} .. {:.1})",
                rates[ROUNDS / 2],
                rates[0],
                rates[ROUNDS - 1]
            );
        }
    }
}
