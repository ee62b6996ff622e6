//! What is remembered of definitions from one start to the next, against stores that change, lose and stay away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use monasca_persister::clock::wall_ms;
use monasca_persister::config::Config;
use monasca_persister::definitions::{Definitions, cache_dir};
use storage::definitions::Need;
use storage::sled_store::{SledConfig, SledStore};
use storage::{Definition, IdScheme, MetricId, Series, Stamp, Store, StoreError, Verdict, Write};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A store that says what it is told to say.
struct Named {
    name: Mutex<Result<String, StoreError>>,
    needs_flush: AtomicBool,
}

impl Named {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: Mutex::new(Ok(name.to_owned())), needs_flush: AtomicBool::new(true) })
    }

    fn say(&self, name: Result<&str, ()>) {
        let away = StoreError::new(Verdict::Retry, "DB_UNREACHABLE", "away");
        *lock(&self.name) = name.map(str::to_owned).map_err(|()| away);
    }
}

impl Store for Named {
    fn write<'a>(&'a self, _: Write<'a>) -> BoxFuture<'a, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }

    fn needs_flush(&self) -> bool {
        self.needs_flush.load(Ordering::Relaxed)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, StoreError>> {
        async { lock(&self.name).clone() }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { Ok(()) }.boxed()
    }
}

struct Site {
    config: Config,
    store: Arc<Named>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { config, store: Named::new("here"), runtime, _dir: dir }
    }

    /// As after a start.
    fn start(&self) -> Definitions {
        self.start_with(self.store.clone())
    }

    fn start_with(&self, store: Arc<dyn Store>) -> Definitions {
        let runtime = self.runtime.handle().clone();
        let definitions = Definitions::new(&self.config, store, runtime, Instant::now());
        definitions.turn();
        definitions
    }

    fn open_embedded(&self) -> Arc<SledStore> {
        let config = SledConfig { cache_bytes: 8 << 20, max_bytes: 1 << 30 };
        Arc::new(SledStore::open(&self.config.data_dir.join("store"), config).unwrap())
    }
}

fn id(number: u32) -> MetricId {
    Series::new(IdScheme::Sha256, "", "", number.to_string(), Vec::new()).id
}

fn write(definitions: &Definitions, number: u32, now_ms: i64) {
    let memory = definitions.memory();
    let mut memory = lock(&memory);
    memory.written(&id(number), now_ms, now_ms, Duration::ZERO);
    memory.safe(&id(number), Duration::ZERO);
}

fn knows(definitions: &Definitions, number: u32) -> bool {
    lock(&definitions.memory()).need(&id(number), wall_ms()) == Need::No
}

#[test]
fn a_second_start_knows_what_the_first_one_wrote() {
    let site = Site::new();
    let first = site.start();
    (0..100).for_each(|number| write(&first, number, wall_ms()));
    first.turn();
    assert_eq!((first.status().written, first.status().kept), (100, 100));
    drop(first);
    let second = site.start();
    assert!((0..100).all(|number| knows(&second, number)));
    assert_eq!((second.status().written, second.status().loaded), (0, 100));
}

#[test]
fn what_the_store_may_not_have_synced_yet_is_not_kept() {
    let site = Site::new();
    site.store.needs_flush.store(false, Ordering::Relaxed);
    let first = site.start();
    write(&first, 1, wall_ms());
    first.turn();
    drop(first);
    assert!(!knows(&site.start(), 1), "younger than the hold-back");
}

#[test]
fn a_deleted_memory_is_made_anew() {
    let site = Site::new();
    let first = site.start();
    write(&first, 1, wall_ms());
    first.turn();
    drop(first);
    std::fs::remove_dir_all(cache_dir(&site.config)).unwrap();
    let second = site.start();
    assert!(!knows(&second, 1));
    write(&second, 1, wall_ms());
    second.turn();
    drop(second);
    assert!(knows(&site.start(), 1));
}

#[test]
fn another_store_or_other_tables_know_nothing() {
    let site = Site::new();
    let first = site.start();
    write(&first, 1, wall_ms());
    first.turn();
    site.store.say(Ok("tables created again"));
    first.turn();
    assert!(!knows(&first, 1), "while the process runs");
    write(&first, 2, wall_ms());
    first.turn();
    drop(first);
    let second = site.start();
    assert!(!knows(&second, 1) && knows(&second, 2), "and after a restart");
    drop(second);
    site.store.say(Ok("another cluster"));
    assert!(!knows(&site.start(), 2));
}

#[test]
fn a_store_that_does_not_answer_delays_what_is_kept_and_loses_nothing_of_it() {
    let site = Site::new();
    site.store.say(Err(()));
    let first = site.start();
    let begun = Instant::now();
    first.wait_ready(|| begun.elapsed() > Duration::from_millis(50));
    assert!(begun.elapsed() < Duration::from_secs(4), "nobody waits who gives up");
    write(&first, 1, wall_ms());
    first.turn();
    site.store.say(Ok("here"));
    first.turn();
    first.wait_ready(|| false);
    drop(first);
    assert!(knows(&site.start(), 1));
}

#[test]
fn what_a_store_lost_is_forgotten_in_memory_and_on_disk_at_once() {
    let site = Site::new();
    let first = site.start();
    let now_ms = wall_ms();
    write(&first, 1, now_ms - 600_000);
    first.turn();
    write(&first, 2, now_ms);
    first.turn();
    first.forget_since(now_ms - 60_000).unwrap();
    assert!(knows(&first, 1) && !knows(&first, 2));
    drop(first);
    let second = site.start();
    assert!(knows(&second, 1) && !knows(&second, 2));
}

#[test]
fn what_a_store_lost_before_it_said_what_it_is_is_forgotten_too() {
    let site = Site::new();
    let first = site.start();
    write(&first, 1, wall_ms());
    first.turn();
    drop(first);
    site.store.say(Err(()));
    site.start().forget_since(wall_ms() - 60_000).unwrap();
    site.store.say(Ok("here"));
    assert!(!knows(&site.start(), 1));
}

#[test]
fn a_directory_that_cannot_be_used_costs_the_memory_across_restarts_only() {
    let site = Site::new();
    // Not even set aside can it be.
    let lock_file = cache_dir(&site.config).with_extension("lock");
    std::fs::create_dir(&lock_file).unwrap();
    let first = site.start();
    write(&first, 1, wall_ms());
    first.turn();
    assert!(knows(&first, 1));
    drop(first);
    assert!(!knows(&site.start(), 1));
}

#[test]
fn the_thread_keeps_what_is_settled_when_it_is_stopped() {
    let site = Site::new();
    let store: Arc<dyn Store> = site.store.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let definitions =
        Definitions::new(&site.config, store, runtime.handle().clone(), Instant::now());
    let thread = definitions.spawn().unwrap();
    definitions.wait_ready(|| false);
    write(&definitions, 1, wall_ms());
    thread.stop();
    drop(definitions);
    assert!(knows(&site.start(), 1));
}

#[test]
fn the_embedded_store_is_known_again_after_a_restart_and_another_one_is_not() {
    let site = Site::new();
    let now_ms = wall_ms();
    let first = site.open_embedded();
    let definitions = site.start_with(first.clone());
    let series = Arc::new(Series::new(IdScheme::Sha256, "", "", "1", Vec::new()));
    let stamp = Stamp { write_time_us: now_ms * 1000, ttl_s: 3600 };
    let written = Definition { series, created_at_ms: now_ms, updated_at_ms: now_ms, stamp };
    site.runtime.block_on(async {
        first.write(Write::Definitions(std::slice::from_ref(&written))).await.unwrap();
        first.flush().await.unwrap();
    });
    write(&definitions, 1, now_ms);
    definitions.turn();
    drop((first, definitions));

    let definitions = site.start_with(site.open_embedded());
    assert!(knows(&definitions, 1), "a restart");
    drop(definitions);
    std::fs::remove_dir_all(site.config.data_dir.join("store")).unwrap();
    let definitions = site.start_with(site.open_embedded());
    assert!(!knows(&definitions, 1), "the store was deleted, the memory was not");
}
