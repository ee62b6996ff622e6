//! The harness does what its tests rely on: services survive what is done to them, and nothing is left behind.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Cassandra, Kafka, Link};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use tempfile::TempDir;

fn produce(bootstrap: &str, topic: &str, payloads: &[String]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("acks", "all")
        .create()
        .unwrap();
    for payload in payloads {
        let record = BaseRecord::<(), _>::to(topic).partition(0).payload(payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// The payloads of partition 0, from its beginning.
fn read(bootstrap: &str, topic: &str, count: usize) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "reader")
        .create()
        .unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut payloads = Vec::new();
    while payloads.len() < count && Instant::now() < deadline {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            payloads.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
        }
    }
    payloads
}

fn kafka_answers(bootstrap: &str, within: Duration) -> bool {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap();
    client.fetch_metadata(None, within).is_ok()
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

#[test]
fn kafka_survives_kill_9_with_its_data() {
    let mut kafka = Kafka::start().unwrap();
    kafka.create_topic("kept", 2).unwrap();
    let payloads = numbered("message", 100);
    produce(&kafka.bootstrap(), "kept", &payloads);
    let pid = kafka.pid();
    kafka.kill();
    assert!(!kafka.is_running());
    assert!(!kafka_answers(&kafka.bootstrap(), Duration::from_secs(1)));
    kafka.restart().unwrap();
    assert_ne!(kafka.pid(), pid);
    assert_eq!(kafka.end_offsets("kept").unwrap(), [(0, 100), (1, 0)].into());
    assert_eq!(read(&kafka.bootstrap(), "kept", payloads.len()), payloads);
}

#[test]
fn a_frozen_kafka_does_not_answer_and_goes_on_when_thawed() {
    let mut kafka = Kafka::start().unwrap();
    assert!(kafka_answers(&kafka.bootstrap(), Duration::from_secs(10)));
    kafka.freeze();
    assert!(!kafka_answers(&kafka.bootstrap(), Duration::from_secs(2)));
    assert!(kafka.is_running(), "frozen, not ended");
    kafka.thaw();
    assert!(kafka_answers(&kafka.bootstrap(), Duration::from_secs(30)));
}

#[test]
fn two_kafkas_stand_side_by_side_and_know_nothing_of_each_other() {
    let (one, other) = (Kafka::start().unwrap(), Kafka::start().unwrap());
    assert_ne!(one.bootstrap(), other.bootstrap());
    for (kafka, name) in [(&one, "one"), (&other, "other")] {
        kafka.create_topic("same", 1).unwrap();
        produce(&kafka.bootstrap(), "same", &numbered(name, 3));
    }
    for (kafka, name) in [(&one, "one"), (&other, "other")] {
        assert_eq!(kafka.end_offsets("same").unwrap(), [(0, 3)].into());
        assert_eq!(read(&kafka.bootstrap(), "same", 3), numbered(name, 3));
    }
}

/// Whether a CQL server answers a request for its options.
fn cassandra_answers(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut header = [0; 9];
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let asked = stream
        .write_all(&[4, 0, 0, 0, 5, 0, 0, 0, 0])
        .and_then(|()| stream.read_exact(&mut header));
    // SUPPORTED, in a response of protocol 4.
    asked.is_ok() && header.starts_with(&[0x84]) && header.get(4) == Some(&6)
}

#[test]
fn cassandra_answers_again_after_kill_9_and_restart() {
    let mut cassandra = Cassandra::start().unwrap();
    assert!(cassandra_answers(&cassandra.contact_point()));
    let pid = cassandra.pid();
    cassandra.kill();
    assert!(!cassandra.is_running());
    assert!(!cassandra_answers(&cassandra.contact_point()));
    cassandra.restart().unwrap();
    assert_ne!(cassandra.pid(), pid);
    assert!(cassandra_answers(&cassandra.contact_point()));
}

/// Command lines of running Java processes that name `dir`; one that has ended and was not yet waited for has none.
fn java_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy();
    let commands = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).filter_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.filter(|command| command.contains("java") && command.contains(&*dir)).collect()
}

#[test]
fn no_java_is_left_after_sigkill_of_the_services_program() {
    let dir = TempDir::with_prefix("services-").unwrap();
    let mut services = Command::new(env!("CARGO_BIN_EXE_services"))
        .env("TMPDIR", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(services.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|line| line.contains("Ctrl-C"));
    let while_running = java_of(dir.path());
    services.kill().unwrap();
    services.wait().unwrap();
    assert!(ready, "the program ended before its services were up");
    assert_eq!(while_running.len(), 2, "Kafka and Cassandra run: {while_running:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !java_of(dir.path()).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(java_of(dir.path()), Vec::<String>::new());
}

/// A server that sends back whatever it gets; its threads end with the test process.
fn echo_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut back = stream.try_clone().unwrap();
                // Ends when the client or the link does; either way there is nobody left to tell.
                drop(std::io::copy(&mut stream, &mut back));
            });
        }
    });
    address
}

fn client(link: &Link) -> TcpStream {
    let stream = TcpStream::connect(link.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends bytes, waits until all are back, and says how long that took.
fn round_trip(stream: &mut TcpStream, length: usize) -> Duration {
    let began = Instant::now();
    let sent: Vec<u8> = (0..=250).cycle().take(length).collect();
    let mut back = vec![0; length];
    stream.write_all(&sent).unwrap();
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, sent);
    began.elapsed()
}

/// Nothing comes within `wait`, and the connection is still open.
fn assert_silent(stream: &mut TcpStream, wait: Duration) {
    stream.set_read_timeout(Some(wait)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
}

/// The other side has closed, in whatever way.
fn assert_closed(stream: &mut TcpStream) {
    match stream.read(&mut [0]) {
        Ok(count) => assert_eq!(count, 0, "data instead of an end"),
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
            ),
            "{error}"
        ),
    }
}

#[test]
fn a_delayed_link_is_late_both_ways_until_it_is_healed() {
    let link = Link::to(&echo_server()).unwrap();
    let mut stream = client(&link);
    round_trip(&mut stream, 10);
    link.delay(Duration::from_millis(400));
    let took = round_trip(&mut stream, 10);
    assert!((Duration::from_millis(800)..Duration::from_secs(10)).contains(&took), "{took:?}");
    link.heal();
    let took = round_trip(&mut stream, 10);
    assert!(took < Duration::from_millis(800), "{took:?}");
}

#[test]
fn a_throttled_link_carries_no_more_than_it_may() {
    let link = Link::to(&echo_server()).unwrap();
    let mut stream = client(&link);
    link.throttle(100_000);
    let took = round_trip(&mut stream, 100_000);
    assert!((Duration::from_secs(1)..Duration::from_secs(15)).contains(&took), "{took:?}");
    link.heal();
    let took = round_trip(&mut stream, 100_000);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_cut_link_closes_old_and_new_connections_until_it_is_healed() {
    let link = Link::to(&echo_server()).unwrap();
    let mut stream = client(&link);
    round_trip(&mut stream, 10);
    assert_eq!(link.connections(), 1);
    link.cut();
    assert_closed(&mut stream);
    assert_closed(&mut client(&link));
    assert_eq!(link.connections(), 0);
    link.heal();
    round_trip(&mut client(&link), 10);
}

#[test]
fn a_frozen_link_stays_open_and_silent_and_loses_nothing() {
    let link = Link::to(&echo_server()).unwrap();
    let mut stream = client(&link);
    round_trip(&mut stream, 10);
    link.freeze();
    stream.write_all(b"late").unwrap();
    let mut new = client(&link);
    new.write_all(b"also").unwrap();
    assert_silent(&mut stream, Duration::from_millis(500));
    assert_silent(&mut new, Duration::from_millis(500));
    link.heal();
    for (stream, sent) in [(&mut stream, b"late"), (&mut new, b"also")] {
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, sent);
    }
}

#[test]
fn a_dropped_link_leaves_no_connection_open() {
    let link = Link::to(&echo_server()).unwrap();
    let mut stream = client(&link);
    round_trip(&mut stream, 10);
    link.freeze();
    stream.write_all(b"lost").unwrap();
    drop(link);
    assert_closed(&mut stream);
}
