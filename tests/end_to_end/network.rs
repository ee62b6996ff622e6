//! Bad networks between the persister and the broker. The load reaches the broker directly; the persister has a link in
//! between. After each fault everything sent is committed and delivered, unaided; during it, lines in the log and
//! attempts to connect are counted: a fault must make no storm of either.

use std::time::{Duration, Instant};

use harness::{Kafka, Link};

use crate::audit;
use crate::load::{self, Ledger, Load, Plan};
use crate::persister::{Persister, Site};

/// Lines in the log per minute of a fault, and some that every fault may cost.
const LINES_PER_MINUTE: u64 = 100;
const LINES_ANYWAY: u64 = 30;
/// Attempts to connect per second of a fault, of all four clients of the process together, and some that every fault
/// may cost: each client knows the broker by up to three addresses.
const ATTEMPTS_PER_S: u64 = 8;
const ATTEMPTS_ANYWAY: u64 = 24;
/// How soon everything must be committed and delivered after a fault.
const RECOVERY: Duration = Duration::from_secs(60);

const BEHIND_THE_LINK: &str = "FAR";
/// Shorter than by default, because the test waits for it; two fetches fit into it on the slowest line of the test.
const SOCKET_TIMEOUT: (&str, &str) =
    ("MONASCA_PERSISTER__KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "20000");

struct Scene {
    kafka: Kafka,
    site: Site,
    persister: Persister,
    sent: Ledger,
    /// Each load's rows are others.
    loads: i64,
}

impl Scene {
    fn link(&self) -> &Link {
        self.kafka.link(BEHIND_THE_LINK).unwrap()
    }

    fn load(&mut self) -> Load {
        self.loads += 1;
        let later_ms = self.loads * 20_000;
        let plan = Plan { metrics: 6_000, series: 200, alarms: 60, per_s: 2_000, later_ms };
        Load::start(&self.kafka, &self.site, plan)
    }

    /// What it cost since `before`.
    fn costs(&self, name: &str, before: &Costs) {
        let after = Costs::of(self);
        let lasted = before.at.elapsed();
        let lines = after.lines - before.lines;
        let attempts = after.attempts - before.attempts;
        eprintln!(
            "{name}: {:.1} s, {lines} lines, {attempts} attempts to connect",
            lasted.as_secs_f64()
        );
        let lines_max = LINES_ANYWAY + LINES_PER_MINUTE * lasted.as_secs() / 60;
        let attempts_max = ATTEMPTS_ANYWAY + ATTEMPTS_PER_S * lasted.as_secs();
        assert!(
            lines <= lines_max,
            "{name}: {lines} lines, {lines_max} allowed:\n{}",
            self.persister.log()
        );
        assert!(attempts <= attempts_max, "{name}: {attempts} attempts, {attempts_max} allowed");
    }

    /// Everything sent so far is committed and delivered.
    fn settle(&self, name: &str) {
        self.site
            .wait_committed(&self.kafka, RECOVERY)
            .unwrap_or_else(|wrong| panic!("{name}: {wrong}\n{}", self.persister.log()));
        self.persister.wait_delivered(RECOVERY).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
    }

    /// A fault that nothing gets through, while messages come; then it is over.
    fn outage(&mut self, name: &str, fault: impl FnOnce(&Link)) {
        let before = Costs::of(self);
        let load = self.load();
        std::thread::sleep(Duration::from_secs(1));
        fault(self.link());
        self.link().heal();
        self.sent.extend(load.finish());
        self.settle(name);
        self.costs(name, &before);
    }

    /// A line that is bad and stays so: everything must get through it.
    fn bad_line(&mut self, name: &str, fault: impl FnOnce(&Link), more: Vec<load::Sent>) {
        let before = Costs::of(self);
        fault(self.link());
        let more = Load::of(&self.kafka, &self.site, more, 2_000);
        let load = self.load();
        self.sent.extend(load.finish());
        self.sent.extend(more.finish());
        self.settle(name);
        self.costs(name, &before);
        self.link().heal();
    }
}

struct Costs {
    at: Instant,
    lines: u64,
    attempts: u64,
}

impl Costs {
    fn of(scene: &Scene) -> Self {
        Self {
            at: Instant::now(),
            lines: scene.persister.log().lines().count() as u64,
            attempts: scene.link().attempts(),
        }
    }
}

#[test]
fn a_bad_network_costs_time_and_nothing_else() {
    let kafka = Kafka::builder().link(BEHIND_THE_LINK).start().unwrap();
    let cassandra = harness::Cassandra::start().unwrap();
    let mut site = Site::prepare(&kafka, &cassandra, 4);
    site.reach_kafka_at(kafka.link(BEHIND_THE_LINK).unwrap().addr());
    let persister = Persister::start(&site, "one", &[SOCKET_TIMEOUT]);
    persister.wait_assigned(4, RECOVERY);
    let mut scene = Scene { kafka, site, persister, sent: Ledger::new(), loads: 0 };

    scene.bad_line("300 ms each way", |link| link.delay(Duration::from_millis(300)), Vec::new());
    // A megabyte that cannot be compressed: a quarter of a minute on such a line.
    let bulk = load::long_transitions(200, 5_000);
    scene.bad_line("64 kB/s", |link| link.throttle(64_000), bulk);
    scene.bad_line("lost packets", |link| link.stall(20, Duration::from_millis(700)), Vec::new());
    scene.bad_line("segments of one byte", |link| link.chop(1), Vec::new());

    scene.outage("half-open for longer than the session, then back", |link| {
        link.freeze();
        std::thread::sleep(Duration::from_secs(12));
    });
    scene.outage("connections that a router forgot", Link::lose);
    scene.outage("cut for 15 s", |link| {
        link.cut();
        std::thread::sleep(Duration::from_secs(15));
    });
    scene.outage("cut every second for 20 s", |link| {
        for _ in 0..20 {
            link.cut();
            std::thread::sleep(Duration::from_millis(300));
            link.heal();
            std::thread::sleep(Duration::from_millis(700));
        }
    });
    scene.outage("reset every second for 8 s", |link| {
        for _ in 0..8 {
            link.reset();
            std::thread::sleep(Duration::from_secs(1));
        }
    });

    // The broker moves: another port, another address for clients. Its old name still leads there.
    let other = Link::to("127.0.0.1:9").unwrap();
    let before = Costs::of(&scene);
    let load = scene.load();
    scene.kafka.kill();
    scene.kafka.restart_behind(BEHIND_THE_LINK, &other).unwrap();
    scene.persister.wait("connected at the new address", RECOVERY, |_| other.connections() >= 4);
    scene.sent.extend(load.finish());
    let more = scene.load();
    scene.sent.extend(more.finish());
    scene.settle("moved");
    scene.costs("moved", &before);

    let Scene { kafka, site, persister, sent, .. } = scene;
    persister.stop().unwrap();
    let audit = audit::audit(&site, &kafka, &sent).unwrap_or_else(|wrong| panic!("{wrong}"));
    eprintln!("{audit}");
}
