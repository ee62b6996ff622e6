//! One program and its broker, through the rows of one table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tempfile::TempDir;

use crate::broker::Broker;
use crate::persister::{Persister, codes};
use crate::table::{Cause, Table, may_end_the_program};

/// Messages sent before an error, while it lasts, and after it.
const MESSAGES: usize = 4;
/// How long an error lasts that is not answered only once.
const LASTS: Duration = Duration::from_secs(4);
/// How much longer where nothing was said of it yet: the client library repeats some requests for seconds first.
const SAID_WITHIN: Duration = Duration::from_secs(30);
const CAUGHT_UP: Duration = Duration::from_secs(60);
const CAUSED_AGAIN: Duration = Duration::from_secs(10);
/// Most lines that the program may log during one row, joining the group again included; more when it starts again.
const LINES: usize = 12;
const LINES_OF_A_START: usize = 30;

/// How often an error is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Once,
    Lasting,
}

/// What became of a table's errors.
#[derive(Debug, Default)]
pub struct End {
    pub rows: usize,
    pub wrong: usize,
    pub messages: usize,
    pub answered: u64,
    /// Rows during which the program said something with a code.
    pub said: usize,
    /// Most lines that it logged during one of them.
    pub lines: usize,
}

impl End {
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.wrong += other.wrong;
        self.messages += other.messages;
        self.answered += other.answered;
        self.said += other.said;
        self.lines = self.lines.max(other.lines);
    }
}

struct Lane<'a> {
    table: &'a Table,
    errors: &'a [RDKafkaRespErr],
    dir: TempDir,
    broker: Broker,
    persister: Persister,
    /// The highest committed offsets seen.
    committed: BTreeMap<i32, i64>,
    sent: usize,
}

/// Takes a program through some rows of a table, each once and for a while.
pub fn run(table: &Table, errors: &[RDKafkaRespErr]) -> End {
    let mut lane = Lane::start(table, errors);
    let mut end = End::default();
    for (number, error) in errors.iter().enumerate() {
        let mut ever_said = false;
        for mode in [Mode::Once, Mode::Lasting] {
            let name = format!("{number}-{mode:?}").to_lowercase();
            let begun = Instant::now();
            let before = lane.persister.lines().len();
            let must_be_said = mode == Mode::Lasting && !ever_said && !table.quiet.contains(error);
            let unsaid_before = must_be_said.then_some(before);
            let outcome = lane.row(&name, *error, mode, unsaid_before);
            let lines = lane.persister.lines().split_off(before);
            let said = codes(&lines);
            ever_said |= !said.is_empty();
            let outcome = outcome.and_then(|answered| {
                check_lines(*error, &lines, must_be_said && !ever_said).map(|()| answered)
            });
            end.rows += 1;
            end.messages += 3 * MESSAGES;
            let row = format!("{} {} {mode:?}", table.name, short(*error));
            match outcome {
                Ok(answered) => {
                    end.answered += answered;
                    end.said += usize::from(!said.is_empty());
                    end.lines = end.lines.max(lines.len());
                    let (count, took) = (lines.len(), begun.elapsed().as_secs_f64());
                    eprintln!(
                        "{row}: answered {answered} times, {count} lines, {said:?}, {took:.1} s"
                    );
                }
                Err(why) => {
                    end.wrong += 1;
                    eprintln!("{row}: WRONG: {why}\n    {}", lines.join("\n    "));
                    lane = Lane::start(table, errors);
                }
            }
        }
    }
    if let Err(why) = lane.finish() {
        end.wrong += 1;
        eprintln!("{}: WRONG at the end: {why}", table.name);
    }
    end
}

fn short(error: RDKafkaRespErr) -> String {
    format!("{error:?}").replace("RD_KAFKA_RESP_ERR_", "")
}

/// The log is short, and says what lasts.
fn check_lines(error: RDKafkaRespErr, lines: &[String], silent: bool) -> Result<(), String> {
    let most = if may_end_the_program(error) { LINES_OF_A_START } else { LINES };
    if lines.len() > most {
        return Err(format!("{} lines", lines.len()));
    }
    if silent {
        return Err("it lasts, and nothing is said with a code".to_owned());
    }
    Ok(())
}

impl<'a> Lane<'a> {
    fn start(table: &'a Table, errors: &'a [RDKafkaRespErr]) -> Self {
        let dir = TempDir::with_prefix("persister-").unwrap();
        let mut broker = Broker::start();
        // Once the ledger is off it stays so for as long as the rows take.
        let ledger_retry = [("KAFKA__LEDGER_RETRY", "1h")];
        let persister = Persister::start(dir.path(), broker.bootstrap(), &ledger_retry);
        let first: Vec<String> = (0..2).map(|number| transition("first", number)).collect();
        broker.send(&first);
        persister.wait_ready(Duration::from_secs(60)).unwrap();
        let committed = broker.committed();
        let mut lane = Self { table, errors, dir, broker, persister, committed, sent: 2 };
        lane.switch_ledger_off_if_wanted(0);
        lane
    }

    /// Has the ledger's next commit refused, if the table is about the group's alone.
    fn switch_ledger_off_if_wanted(&mut self, lines_before: usize) {
        if !self.table.is_without_ledger() {
            return;
        }
        // The group's own commits may be answered with it as well, and what is said of them is not said again within a
        // minute: an error that none of this lane's rows is about.
        let refused = [
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE,
        ]
        .into_iter()
        .find(|error| !self.errors.contains(error))
        .unwrap();
        self.broker.inject(RDKafkaApiKey::OffsetCommit, refused, 10_000);
        let one: Vec<String> = vec![transition("ledger-off", self.sent)];
        self.broker.send(&one);
        self.sent += 1;
        let deadline = Instant::now() + CAUGHT_UP;
        while !codes(&self.persister.lines().split_off(lines_before)).contains("LEDGER_OFF") {
            assert!(Instant::now() < deadline, "the ledger does not say that it is off");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.broker.repair(RDKafkaApiKey::OffsetCommit);
    }

    fn finish(self) -> Result<(), String> {
        let stored = self.persister.stored_count();
        if stored != Some(self.sent) {
            return Err(format!("{} sent, {stored:?} stored", self.sent));
        }
        self.persister.stop()?;
        drop(self.dir);
        Ok(())
    }

    fn send(&mut self, alarm: &str, from: usize) {
        let payloads: Vec<String> =
            (from..from + MESSAGES).map(|number| transition(alarm, number)).collect();
        self.broker.send(&payloads);
        self.sent += MESSAGES;
    }

    /// Messages, an error, messages, no error, messages; returns how many requests were answered with it. With
    /// `unsaid_before`, a number of lines, the error lasts until something is said behind them.
    fn row(
        &mut self,
        name: &str,
        error: RDKafkaRespErr,
        mode: Mode,
        unsaid_before: Option<usize>,
    ) -> Result<u64, String> {
        self.send(name, 0);
        let before = self.broker.requests(self.table.request);
        match self.table.key {
            Some(key) => {
                self.broker.inject(key, error, if mode == Mode::Once { 1 } else { 10_000 })
            }
            None => self.broker.topic_error(error),
        }
        self.cause();
        self.send(name, MESSAGES);
        let begun = Instant::now();
        let mut caused = begun;
        // Joining a group takes longer than the error lasts.
        let least = if self.table.cause == Cause::MembershipOver { 1 } else { 2 };
        loop {
            let answered = self.broker.requests(self.table.request) - before;
            let done = match mode {
                Mode::Once => answered >= 1,
                Mode::Lasting => {
                    let lasted = begun.elapsed();
                    let waits = || {
                        unsaid_before.is_some_and(|before| !self.has_said_behind(before))
                            && lasted < SAID_WITHIN
                    };
                    answered >= least && lasted > LASTS && !waits()
                }
            };
            // The client takes no notice of answers to what it has given up meanwhile.
            if answered == 0 && caused.elapsed() > CAUSED_AGAIN {
                caused = Instant::now();
                self.cause();
            }
            if done || (may_end_the_program(error) && !self.persister.is_running()) {
                break;
            }
            if begun.elapsed() > CAUGHT_UP {
                return Err(format!("asked {answered} times only"));
            }
            if !self.reader_is_hit() {
                self.watch(error)?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        match self.table.key {
            Some(key) => self.broker.repair(key),
            None => self.broker.topic_error(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR),
        }
        let answered = self.broker.requests(self.table.request) - before;
        self.send(name, 2 * MESSAGES);
        if may_end_the_program(error) && !self.persister.is_running() {
            match self.persister.ended(Duration::from_secs(30)) {
                Some(78) => {
                    let lines = self.persister.lines().len();
                    self.persister.restart();
                    self.switch_ledger_off_if_wanted(lines);
                }
                other => return Err(format!("fenced, and ended with {other:?}")),
            }
        }
        self.caught_up(name)?;
        Ok(if mode == Mode::Once { 1 } else { answered })
    }

    /// Whether it said something with a code behind so many lines.
    fn has_said_behind(&self, lines_before: usize) -> bool {
        !codes(&self.persister.lines().split_off(lines_before)).is_empty()
    }

    /// Makes the program send the request.
    fn cause(&self) {
        let (key, error) = match self.table.cause {
            Cause::None => return,
            Cause::MembershipOver => {
                (RDKafkaApiKey::Heartbeat, RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION)
            }
            Cause::CoordinatorMoved => {
                (RDKafkaApiKey::Heartbeat, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR)
            }
            Cause::PositionRefused => {
                (RDKafkaApiKey::Fetch, RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE)
            }
        };
        self.broker.inject(key, error, 1);
    }

    /// The error would be answered to the test as well.
    fn reader_is_hit(&self) -> bool {
        matches!(self.table.request, "OffsetFetch" | "FindCoordinator" | "Metadata")
    }

    /// What holds at any moment.
    fn watch(&mut self, error: RDKafkaRespErr) -> Result<(), String> {
        if !self.persister.is_running() && !may_end_the_program(error) {
            return Err("the program ended".to_owned());
        }
        for (partition, committed) in self.broker.committed() {
            let end = self.broker.ends()[&partition];
            let highest = self.committed.entry(partition).or_insert(committed);
            if committed < *highest || committed > end {
                return Err(format!(
                    "partition {partition}: {committed} is committed after {highest}, and it ends at {end}"
                ));
            }
            *highest = committed;
            // Asked afterwards: it may only have grown.
            if let Some(durable) = self.persister.offset("durable", partition)
                && durable < committed
            {
                return Err(format!(
                    "partition {partition}: {committed} is committed, {durable} durable"
                ));
            }
        }
        Ok(())
    }

    /// Waits until everything is stored and committed.
    fn caught_up(&mut self, name: &str) -> Result<(), String> {
        let expected: Vec<String> =
            (0..3 * MESSAGES).map(|number| format!("{name} {number}")).collect();
        let begun = Instant::now();
        loop {
            self.watch(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR)?;
            let stored = self.persister.stored(name);
            if stored.as_ref() == Some(&expected) && self.committed == *self.broker.ends() {
                break;
            }
            if begun.elapsed() > CAUGHT_UP {
                return Err(format!(
                    "after {CAUGHT_UP:?}: stored {stored:?}, committed {:?} of {:?}; {}",
                    self.committed,
                    self.broker.ends(),
                    self.persister.status().unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.persister.status().unwrap_or_default();
        let none = |list: &serde_json::Value| list.as_array().is_some_and(Vec::is_empty);
        let ledger = &status["ledger"];
        if !none(&ledger["gaps"])
            || !none(&status["stopped"])
            || !none(&ledger["lost"])
            || !none(&ledger["owed"])
        {
            return Err(format!("it believes that something is missing: {status}"));
        }
        if status["dead_lettered"].as_object().is_some_and(|reasons| !reasons.is_empty()) {
            return Err(format!("dead letters: {status}"));
        }
        Ok(())
    }
}

/// A message.
pub fn transition(alarm: &str, number: usize) -> String {
    let time_ms = now_ms() - 1_000_000 + i64::try_from(number).unwrap();
    format!(
        r#"{{"alarm-transitioned":{{"tenantId":"t","alarmId":"{alarm}","metrics":[],"oldState":"OK","newState":"ALARM","stateChangeReason":"{alarm} {number}","subAlarms":[],"timestamp":{time_ms}}}}}"#
    )
}

fn now_ms() -> i64 {
    i64::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}
