//! Clients that are slow, many or rude cost the pipeline nothing.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::persister::{Persister, exchange, metric, produce, topics};

const MESSAGES: u64 = 30_000;

/// Seconds until so many messages are delivered.
fn deliver(persister: &Persister, topic: &str) -> f64 {
    let before = persister.rows_written();
    let messages: Vec<String> =
        (0..usize::try_from(MESSAGES).unwrap()).map(|value| metric("t", "cpu", value)).collect();
    let begun = Instant::now();
    produce(topic, messages);
    persister.wait("delivered", |it| it.rows_written() == before + MESSAGES);
    begun.elapsed().as_secs_f64()
}

#[test]
fn a_thousand_slow_clients_change_nothing() {
    topics("slow", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "slow", &[]);
    let alone = deliver(&persister, "metrics-slow");
    // Half of them say nothing, half send a byte of a head now and then; whoever is thrown out comes again.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let together = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut streams: Vec<TcpStream> = Vec::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for stream in &mut streams {
                    // One that was thrown out is found so at the second byte.
                    drop(stream.write_all(b"G"));
                }
                let room = 1000_usize.saturating_sub(streams.len());
                streams
                    .extend((0..room).filter_map(|_| TcpStream::connect(&persister.address).ok()));
                let half = streams.len() / 2;
                streams.rotate_left(half);
                streams.truncate(900);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        std::thread::sleep(Duration::from_secs(1));
        let together = deliver(&persister, "metrics-slow");
        let asked = Instant::now();
        assert_eq!(persister.get("/ping").status, 200);
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        together
    });
    println!("{MESSAGES} messages: {alone:.2} s alone, {together:.2} s beside 1,000 slow clients");
    // Both are short, and the machine is not ours alone.
    assert!(together < alone * 2.0 + 2.0, "{alone:.2} s alone, {together:.2} s with slow clients");
    persister.stop();
}

#[test]
fn rude_requests_are_refused_and_silent_ones_end() {
    topics("rude", 1);
    let dir = tempfile::tempdir().unwrap();
    let persister = Persister::start(dir.path(), "rude", &[]);
    let silent = Instant::now();
    let mut stream = TcpStream::connect(&persister.address).unwrap();
    for method in ["OPTIONS", "DELETE", "PUT", "TRACE", "BREW"] {
        let answer =
            exchange(&persister.address, &format!("{method} /api/v1/status HTTP/1.0\r\n\r\n"));
        assert_eq!(answer.status, 405, "{method}");
        assert!(
            answer.head.contains("problem+json") && !answer.head.contains("access-control"),
            "{}",
            answer.head
        );
    }
    assert_eq!(persister.post_with("/api/v1/status", "", "").status, 405);
    let long = format!("GET / HTTP/1.0\r\nX-Long: {}\r\n\r\n", "x".repeat(40_000));
    assert_eq!(exchange(&persister.address, &long).status, 431);
    let many = format!("GET / HTTP/1.0\r\n{}\r\n", "X-Many: x\r\n".repeat(100));
    assert_eq!(exchange(&persister.address, &many).status, 431);
    assert_eq!(persister.get("/api/v1/dead-letters/..%2f..%2fetc%2fpasswd").status, 400);
    // The one that has said nothing is shown out.
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut byte = Vec::new();
    let ended = std::io::Read::read_to_end(&mut stream, &mut byte);
    assert!(
        ended.is_ok() && silent.elapsed() < Duration::from_secs(20),
        "{ended:?} {:?}",
        silent.elapsed()
    );
    persister.stop();
}
