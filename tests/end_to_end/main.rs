//! The real program between a real Kafka and a real Cassandra, audited record by record.
//!
//! The tests start what they need and leave nothing behind. They share two cores with Kafka and Cassandra, so they
//! run one after the other: `cargo test --test end_to_end -- --test-threads=1`. `AUDIT_SEED=<seed>` repeats the
//! random moments of a run as far as real processes allow.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod audit;
mod back_pressure;
mod clock;
mod dead_letters;
mod gaps;
mod ledger;
mod load;
mod lost_tail;
mod members;
mod memory;
mod network;
mod persister;
mod rebalance;
mod slow_link;
mod topics;
mod two_nodes;

use std::time::Duration;

use harness::{Cassandra, CassandraBuilder, Kafka};

use audit::Audit;
use load::{Load, Plan};
use persister::{Persister, Site};

/// Random moments from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn new() -> (Self, u64) {
        let seed = std::env::var("AUDIT_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                u64::from(std::process::id())
                    ^ std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
            });
        (Self(seed), seed)
    }

    fn from(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn pause(&mut self, least_ms: u64, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(least_ms + self.below(most_ms - least_ms)));
    }
}

/// A node acknowledges before its commit log is synced, and may lose what it acknowledged just before a kill. That is
/// not the persister's to answer for in these tests, so this node syncs first.
fn syncing_cassandra() -> Cassandra {
    syncing().start().unwrap()
}

fn syncing() -> CassandraBuilder {
    Cassandra::builder().setting("commitlog_sync", "batch").without("commitlog_sync_period")
}

/// Waits until everything is consumed, committed and delivered, stops cleanly, and audits.
fn settle_and_audit(
    site: &Site,
    kafka: &Kafka,
    persisters: Vec<Persister>,
    load: Load,
) -> Result<Audit, String> {
    let ledger = load.finish();
    site.wait_committed(kafka, Duration::from_secs(240))?;
    let mut rows_written = 0;
    for persister in &persisters {
        persister.wait_delivered(Duration::from_secs(240))?;
    }
    for persister in persisters {
        rows_written += persister.stop()?;
    }
    let mut audit = audit::audit(site, kafka, &ledger)?;
    audit.rows_written = rows_written;
    Ok(audit)
}

#[test]
fn nothing_is_lost_or_repeated_while_everything_is_killed() {
    let (mut dice, seed) = Dice::new();
    eprintln!("AUDIT_SEED={seed}");
    let mut kafka = Kafka::start().unwrap();
    let mut cassandra = syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let load = Load::start(
        &kafka,
        &site,
        Plan { metrics: 100_000, series: 2_000, alarms: 2_000, per_s: 2_500, later_ms: 0 },
    );
    let mut persister = Persister::start(&site, "one", &[]);
    let mut written_before_kills = 0;
    for kill in 0..5 {
        dice.pause(2_000, 7_000);
        written_before_kills += persister.rows_written();
        persister.kill();
        eprintln!("persister killed ({kill})");
        match kill {
            1 => {
                cassandra.kill();
                eprintln!("Cassandra killed");
            }
            3 => {
                kafka.kill();
                eprintln!("Kafka killed");
            }
            _ => {}
        }
        dice.pause(100, 1_000);
        persister = Persister::start(&site, "one", &[]);
        match kill {
            1 => {
                // Away for at least 20 s, while messages keep coming.
                std::thread::sleep(Duration::from_secs(21));
                let (healthy, what) = persister.health();
                assert!(!healthy && what.contains("DB_"), "the health check is blind: {what}");
                assert!(persister.is_ready(), "a database outage is no reason to be unready");
                cassandra.restart().unwrap();
                eprintln!("Cassandra is back");
            }
            3 => {
                std::thread::sleep(Duration::from_secs(5));
                kafka.restart().unwrap();
                eprintln!("Kafka is back");
            }
            _ => {}
        }
    }
    let mut audit =
        settle_and_audit(&site, &kafka, vec![persister], load).unwrap_or_else(|wrong| {
            panic!("AUDIT_SEED={seed}: {wrong}");
        });
    audit.rows_written += written_before_kills;
    eprintln!("AUDIT_SEED={seed}: {audit}");
}

#[test]
fn a_stop_ends_in_time_while_kafka_and_cassandra_are_away_and_loses_nothing() {
    let mut kafka = Kafka::start().unwrap();
    let mut cassandra = syncing_cassandra();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let load = Load::start(
        &kafka,
        &site,
        Plan { metrics: 20_000, series: 500, alarms: 200, per_s: 2_000, later_ms: 0 },
    );
    let persister = Persister::start(&site, "one", &[]);
    std::thread::sleep(Duration::from_secs(4));
    cassandra.kill();
    std::thread::sleep(Duration::from_secs(3));
    kafka.kill();
    // Exit code 0 within 40 s: the drain has 20 s, and nothing else may wait for what is away.
    let rows_written = persister.stop().unwrap();
    kafka.restart().unwrap();
    cassandra.restart().unwrap();
    let persister = Persister::start(&site, "one", &[]);
    let mut audit = settle_and_audit(&site, &kafka, vec![persister], load)
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    audit.rows_written += rows_written;
    eprintln!("{audit}");
}

#[test]
fn two_persisters_share_a_topic_and_one_dies_and_comes_back() {
    let (mut dice, seed) = Dice::new();
    eprintln!("AUDIT_SEED={seed}");
    let kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let load = Load::start(
        &kafka,
        &site,
        Plan { metrics: 30_000, series: 500, alarms: 500, per_s: 1_500, later_ms: 0 },
    );
    let one = Persister::start(&site, "one", &[]);
    let mut two = Persister::start(&site, "two", &[]);
    dice.pause(5_000, 8_000);
    two.kill();
    eprintln!("the second persister is killed");
    // Longer than its session: the first one takes its partitions over.
    std::thread::sleep(Duration::from_secs(9));
    let two = Persister::start(&site, "two", &[]);
    let audit = settle_and_audit(&site, &kafka, vec![one, two], load).unwrap_or_else(|wrong| {
        panic!("AUDIT_SEED={seed}: {wrong}");
    });
    eprintln!("AUDIT_SEED={seed}: {audit}");
}

#[test]
fn the_audit_notices_a_persister_that_commits_before_its_log_is_durable() {
    let kafka = Kafka::start().unwrap();
    let cassandra = Cassandra::start().unwrap();
    let site = Site::prepare(&kafka, &cassandra, 4);
    let (mut dice, seed) = Dice::new();
    eprintln!("AUDIT_SEED={seed}");
    let wrong_build = [
        ("MONASCA_PERSISTER_MUTANT", "commit-before-durable"),
        // The bug shows when a commit falls between an append and its write.
        ("MONASCA_PERSISTER__KAFKA__COMMIT_INTERVAL", "50ms"),
        // A static member has its partitions back at once, so every kill falls into its work.
        ("MONASCA_PERSISTER__KAFKA__GROUP_INSTANCE_ID", "one"),
    ];
    let load = Load::start(
        &kafka,
        &site,
        Plan { metrics: 40_000, series: 500, alarms: 10, per_s: 2_000, later_ms: 0 },
    );
    let mut persister = Persister::start(&site, "one", &wrong_build);
    for _ in 0..4 {
        persister.wait_taken(1_000, Duration::from_secs(60));
        dice.pause(100, 1_000);
        persister.kill();
        persister = Persister::start(&site, "one", &wrong_build);
    }
    match settle_and_audit(&site, &kafka, vec![persister], load) {
        Ok(audit) => panic!("AUDIT_SEED={seed}: the audit is blind: {audit}"),
        Err(wrong) => {
            eprintln!("noticed: {wrong}");
            assert!(
                wrong.contains("neither stored nor in the dead letters"),
                "noticed for another reason: {wrong}"
            );
        }
    }
}
