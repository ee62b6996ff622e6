//! Every error that a node may answer a write with, into the running program: it is said with its code, its verdict is
//! what happens, and every message is stored once or is a dead letter with the reason.
//!
//! The node is real; a proxy before it forges answers. What can be made to happen on the node itself is: the keyspace, a
//! table and a right are taken away and given back. One node and one program go through all of it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

#[path = "../kafka_errors/broker.rs"]
#[expect(dead_code, reason = "the tests of the broker's errors need more of it")]
mod broker;
mod persister;
mod proxy;
mod table;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use broker::Broker;
use harness::Cassandra;
use persister::{Persister, apply_schema};
use proxy::{Of, Proxy};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use storage::Verdict;
use tempfile::TempDir;

/// Messages of an error of the store; each is a request of its own, so that the breaker opens at once.
const MESSAGES: usize = 6;
/// Rows that travel in one request.
const ROWS: usize = 8;
/// No more dead letters than this when the reason may be of all rows.
const FEW: u64 = 10;
/// In the reason of a transition whose row is refused.
const BAD: &str = "this-is-the-row";

struct Site {
    runtime: tokio::runtime::Runtime,
    node: Cassandra,
    admin: Session,
    proxy: Proxy,
    broker: Broker,
    dir: TempDir,
    persister: Persister,
}

fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

fn transition(alarm: &str, number: usize, reason: &str) -> String {
    let time_ms = now_ms() - 1_000_000 + i64::try_from(number).unwrap();
    format!(
        r#"{{"alarm-transitioned":{{"tenantId":"t","alarmId":"{alarm}","metrics":[],"oldState":"OK","newState":"ALARM","stateChangeReason":"{reason}","subAlarms":[],"timestamp":{time_ms}}}}}"#
    )
}

impl Site {
    fn start() -> Self {
        let node = Cassandra::builder()
            .setting("authenticator", "PasswordAuthenticator")
            .setting("authorizer", "CassandraAuthorizer")
            .setting("permissions_validity", "200ms")
            .setting("roles_validity", "200ms")
            .start()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let admin = loop {
            let builder = SessionBuilder::new()
                .known_node(node.contact_point())
                .user("cassandra", "cassandra");
            match runtime.block_on(builder.build()) {
                Ok(session) => break session,
                // The first role is made some seconds after the start.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(250));
        };
        let dir = TempDir::with_prefix("persister-").unwrap();
        apply_schema(dir.path(), &node.contact_point());
        let proxy = Proxy::to(&node.contact_point());
        let broker = Broker::start();
        let site_admin = |text: &str| {
            runtime.block_on(admin.query_unpaged(text, ())).unwrap();
        };
        site_admin("CREATE ROLE persister WITH password = 'p' AND login = true");
        site_admin("GRANT MODIFY ON KEYSPACE monasca TO persister");
        site_admin("GRANT SELECT ON KEYSPACE monasca TO persister");
        let persister = Persister::start(dir.path(), broker.bootstrap(), &proxy.addr());
        let mut site = Self { runtime, node, admin, proxy, broker, dir, persister };
        site.send("first", 1, false);
        site.wait_stored("first", 1);
        site
    }

    fn query(&self, text: &str) {
        self.runtime.block_on(self.admin.query_unpaged(text, ())).unwrap();
    }

    /// Messages of one alarm, which travel together; one of them may be bad.
    fn send(&mut self, alarm: &str, messages: usize, with_bad: bool) {
        let reason = |number| if with_bad && number == messages / 2 { BAD } else { "fine" };
        let payloads: Vec<String> =
            (0..messages).map(|number| transition(alarm, number, reason(number))).collect();
        self.broker.send(&payloads);
    }

    /// Messages of as many alarms, which travel alone.
    fn send_apart(&mut self, name: &str, messages: usize) {
        let payloads: Vec<String> = (0..messages)
            .map(|number| transition(&format!("{name}-{number}"), number, "fine"))
            .collect();
        self.broker.send(&payloads);
    }

    fn stored(&self, alarm: &str) -> usize {
        let text = "SELECT alarm_id FROM monasca.alarm_state_history WHERE tenant_id = 't' AND alarm_id = ?";
        let answer = self.runtime.block_on(self.admin.query_unpaged(text, (alarm,)));
        // It may be away, and come back.
        answer.map_or(0, |rows| rows.into_rows_result().unwrap().rows_num())
    }

    fn stored_apart(&self, name: &str, messages: usize) -> usize {
        (0..messages).map(|number| self.stored(&format!("{name}-{number}"))).sum()
    }

    fn wait_stored(&self, alarm: &str, rows: usize) {
        self.persister.wait(&format!("{rows} rows of {alarm}"), || self.stored(alarm) == rows);
    }

    fn wait_stored_apart(&self, name: &str, rows: usize) {
        self.persister
            .wait(&format!("{rows} rows of {name}"), || self.stored_apart(name, rows) == rows);
    }

    /// It asks no more, and says why: in the status, in the health check, and in its log unless it did a moment ago.
    fn wait_stopped(&self, code: &str) {
        self.persister.wait(&format!("stopped by {code}"), || {
            let status = self.persister.status();
            let is_open = matches!(status["breaker"].as_str(), Some("open" | "half-open"));
            is_open && status["store_error"].as_str().is_some_and(|why| why.starts_with(code))
        });
        let reasons = self.persister.reasons();
        let why = reasons.get("STORE_UNAVAILABLE").map_or("", String::as_str);
        assert!(why.contains(code), "{reasons:?}");
        self.persister.wait(&format!("told of {code}"), || self.lines_of(code) > 0);
    }

    fn lines_of(&self, code: &str) -> usize {
        let code = format!("\"code\":\"{code}\"");
        self.persister.log().lines().filter(|line| line.contains(&code)).count()
    }
}

/// Every answer that says nothing of a row: kept, sent again, told of; all stored once it is over.
fn errors_of_the_store(site: &mut Site) -> BTreeSet<&'static str> {
    let before = site.persister.dead_letters();
    let mut codes = BTreeSet::new();
    for (number, row) in table::of_the_store().into_iter().enumerate() {
        let begun = Instant::now();
        let code = row.answer.row().code;
        assert!(matches!(code.verdict, Verdict::Retry | Verdict::Wait), "{:?}", row.answer);
        let name = format!("store-{number}");
        site.proxy.forge(Of::All, row.forgery);
        site.send_apart(&name, MESSAGES);
        site.wait_stopped(code.name);
        // What follows is the same for all answers of a code.
        if codes.insert(code.name) {
            let at_first = site.proxy.forged();
            site.persister.wait("asked again", || site.proxy.forged() > at_first);
        }
        assert_eq!(site.stored_apart(&name, MESSAGES), 0, "{:?} is no success", row.answer);
        let asked = site.proxy.forged();
        site.proxy.heal();
        site.wait_stored_apart(&name, MESSAGES);
        eprintln!(
            "{:?}: {}, {asked} requests, {:.1} s",
            row.answer,
            code.name,
            begun.elapsed().as_secs_f64()
        );
    }
    assert_eq!(site.persister.dead_letters(), before, "nothing was given up");
    codes
}

fn requests_too_large(site: &mut Site) {
    let before = site.persister.dead_letters();
    for (number, row) in table::of_sizes().into_iter().enumerate() {
        let name = format!("size-{number}");
        let splits = site.persister.count("splits");
        site.proxy.forge(Of::Batches, row.forgery);
        site.send(&name, ROWS, false);
        site.wait_stored(&name, ROWS);
        // What it says of itself is a moment old.
        let what = format!("split for {:?}", row.answer);
        site.persister.wait(&what, || site.persister.count("splits") > splits);
        site.proxy.heal();
    }
    assert_eq!(site.persister.dead_letters(), before, "nothing was given up");
}

/// What a node takes by its settings, which nobody tells: half of what many rows make.
fn a_limit_is_remembered(site: &mut Site) {
    const BYTES: usize = 3_000;
    // Few enough for the share of refused rows that other tests look at.
    const MANY: usize = 30;
    let row = table::of_sizes().remove(0);
    site.proxy.forge(Of::BatchesOver(BYTES), row.forgery);
    let mut splits = Vec::new();
    for round in 0..3 {
        let name = format!("limit-{round}");
        let (before, rows) = (site.persister.count("splits"), site.persister.count("rows_written"));
        site.send(&name, MANY, false);
        site.wait_stored(&name, MANY);
        site.persister
            .wait("told of", || site.persister.count("rows_written") >= rows + MANY as u64);
        splits.push(site.persister.count("splits") - before);
    }
    site.proxy.heal();
    eprintln!("splits of {MANY} rows, {BYTES} bytes allowed, by rounds: {splits:?}");
    assert!(splits.iter().sum::<u64>() > 0 && splits[2] == 0, "{splits:?}");
}

fn rows_at_fault(site: &mut Site) {
    for (number, row) in table::of_rows().into_iter().enumerate() {
        let name = format!("row-{number}");
        let code = row.answer.row().code.name;
        let dead = |site: &Site| site.persister.dead_letters().get(code).copied().unwrap_or(0);
        let before = dead(site);
        site.proxy.forge(Of::With(BAD), row.forgery);
        site.send(&name, ROWS, true);
        site.wait_stored(&name, ROWS - 1);
        site.persister.wait("one dead letter", || dead(site) == before + 1);
        site.proxy.heal();
    }
}

/// The database refuses every row, and does not say that it is not the row's fault.
fn all_rows_refused(site: &mut Site) {
    let all = |site: &Site| site.persister.dead_letters().values().sum::<u64>();
    let before = all(site);
    site.proxy.forge(Of::All, table::of_all_rows());
    let messages = 40;
    site.send_apart("all", messages);
    site.wait_stopped("DB_REJECTS_MANY");
    let asked = site.proxy.forged();
    site.persister.wait("asked again", || site.proxy.forged() > asked + 1);
    site.proxy.heal();
    let lost = |site: &Site| usize::try_from(all(site) - before).unwrap();
    site.persister
        .wait("all others stored", || site.stored_apart("all", messages) + lost(site) == messages);
    let dead = all(site) - before;
    assert!((1..=FEW).contains(&dead), "{dead} dead letters of {messages} messages");
}

/// What the operators of a database do, and undo.
fn for_real(site: &mut Site) {
    let before = site.persister.dead_letters();
    type Step = (&'static str, fn(&Site), &'static str, fn(&Site));
    let steps: [Step; 5] = [
        (
            "right",
            |site| site.query("REVOKE MODIFY ON KEYSPACE monasca FROM persister"),
            "DB_AUTH",
            |site| site.query("GRANT MODIFY ON KEYSPACE monasca TO persister"),
        ),
        (
            "table",
            |site| site.query("DROP TABLE monasca.alarm_state_history"),
            "DB_SCHEMA",
            |site| apply_schema(site.dir.path(), &site.node.contact_point()),
        ),
        (
            "column",
            |site| site.query("ALTER TABLE monasca.alarm_state_history DROP sub_alarms"),
            "DB_SCHEMA",
            |site| site.query("ALTER TABLE monasca.alarm_state_history ADD sub_alarms text"),
        ),
        (
            "type",
            |site| {
                site.query("DROP TABLE monasca.alarm_state_history");
                site.query("CREATE TABLE monasca.alarm_state_history (tenant_id text, alarm_id text, time_stamp timestamp, metric int, old_state text, new_state text, reason text, reason_data text, sub_alarms text, PRIMARY KEY ((tenant_id, alarm_id), time_stamp))");
            },
            "DB_SCHEMA",
            |site| {
                site.query("DROP TABLE monasca.alarm_state_history");
                apply_schema(site.dir.path(), &site.node.contact_point());
            },
        ),
        (
            "keyspace",
            |site| site.query("DROP KEYSPACE monasca"),
            "DB_SCHEMA",
            |site| {
                apply_schema(site.dir.path(), &site.node.contact_point());
                site.query("GRANT MODIFY ON KEYSPACE monasca TO persister");
                site.query("GRANT SELECT ON KEYSPACE monasca TO persister");
            },
        ),
    ];
    for (name, take, code, give) in steps {
        let begun = Instant::now();
        take(site);
        // A right is taken away some moments after it was revoked.
        std::thread::sleep(Duration::from_millis(1000));
        site.send_apart(name, MESSAGES);
        site.wait_stopped(code);
        give(site);
        site.wait_stored_apart(name, MESSAGES);
        eprintln!("{name}: {code}, {:.1} s", begun.elapsed().as_secs_f64());
    }
    assert_eq!(site.persister.dead_letters(), before, "nothing was given up");
}

/// Long enough to see what an outage of any length does each second.
const OUTAGE: Duration = Duration::from_secs(12);
/// A minute's outage may write so much, and twelve seconds a fifth of it: most is said at the beginning.
const LOG_BYTES: u64 = 100_000 / 5;
/// Probes are due 0.5, 1.5, 3.5 and 7.5 s after the breaker opened, then at 15.5 s and every 15 s later.
const PROBES: u64 = 4;
/// What may be in flight when the outage begins, and what takes its place before the breaker opens.
const IN_FLIGHT: u64 = 8 + 5;
/// The driver knows one node; it tries to connect to it for its pool and for its control connection.
const CONNECTIONS_PER_S: u64 = 4;

fn outage(site: &mut Site, name: &str, begin: impl Fn(&Site), end: impl Fn(&Site)) {
    let log_before = site.persister.log().len();
    let (requests_before, connections_before) = site.proxy.counts();
    let failed_before = site.persister.count("retries");
    begin(site);
    let begun = Instant::now();
    let mut sent = 0;
    let mut half = 0;
    while begun.elapsed() < OUTAGE {
        site.send_apart(&format!("{name}-{sent}"), 1);
        sent += 1;
        if half == 0 && begun.elapsed() > OUTAGE / 2 {
            half = site.persister.log().len();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let log_after = site.persister.log().len();
    let took = begun.elapsed().as_secs_f64();
    let (requests, connections) = site.proxy.counts();
    let (requests, connections) = (requests - requests_before, connections - connections_before);
    let failed = site.persister.count("retries") - failed_before;
    end(site);
    let written = u64::try_from(log_after - log_before).unwrap();
    let steady = (log_after - half) as f64 / (took / 2.0);
    eprintln!(
        "{name}: {took:.0} s, {written} bytes of log ({steady:.0} per second in the second half, {:.0} kB in a day), \
         {requests} requests arrived, {failed} failed, {connections} attempts to connect, {sent} messages sent",
        steady * 86.4
    );
    assert!(written < LOG_BYTES, "{written} bytes of log:\n{}", site.persister.log());
    assert!(requests.max(failed) <= PROBES + IN_FLIGHT, "{requests} requests, {failed} failed");
    assert!(failed >= 2, "it asks whether the store is back");
    assert!(connections <= CONNECTIONS_PER_S * OUTAGE.as_secs(), "{connections} connections");
    for number in 0..sent {
        site.wait_stored(&format!("{name}-{number}-0"), 1);
    }
}

#[test]
fn no_error_of_a_database_loses_a_message_and_each_is_told_of_and_treated_by_its_verdict() {
    let begun = Instant::now();
    let mut site = Site::start();
    let started = begun.elapsed();
    let codes = errors_of_the_store(&mut site);
    a_limit_is_remembered(&mut site);
    requests_too_large(&mut site);
    rows_at_fault(&mut site);
    all_rows_refused(&mut site);
    // Of an outage that comes and goes, each code is told of once a minute.
    let minutes = usize::try_from(begun.elapsed().as_secs() / 60).unwrap() + 1;
    for code in codes {
        let lines = site.lines_of(code);
        assert!((1..=2 * minutes).contains(&lines), "{code}: {lines} lines in {minutes} minutes");
    }
    for_real(&mut site);
    outage(&mut site, "refused", |site| site.proxy.refuse(), |site| site.proxy.heal());
    outage(&mut site, "frozen", |site| site.node.freeze(), |site| site.node.thaw());
    site.persister.stop();
    eprintln!(
        "started in {:.0} s, all in {:.0} s",
        started.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}
