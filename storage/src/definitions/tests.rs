use super::*;
use crate::metric_id::{IdScheme, metric_id};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: i64 = 24 * 3_600_000;
const PROMPT: Duration = Duration::ZERO;

fn id(number: u32) -> MetricId {
    metric_id(IdScheme::Sha256, "", "", &number.to_string(), std::iter::empty())
}

/// A memory whose series were written a second apart, from the first second on.
fn memory(capacity: usize, series: u32) -> DefinitionMemory {
    let mut memory = DefinitionMemory::new(capacity, DAY);
    for number in 0..series {
        memory.written(&id(number), 0, i64::from(number) * 1000, PROMPT);
    }
    memory
}

#[test]
fn a_definition_written_by_a_clock_that_was_ahead_is_needed_again() {
    let mut memory = DefinitionMemory::new(10, DAY);
    memory.written(&id(1), 0, 2 * DAY_MS, PROMPT);
    assert_eq!(memory.need(&id(1), 2 * DAY_MS - 1000), Need::No, "a small step back");
    assert_eq!(memory.need(&id(1), DAY_MS), Need::Write { created_at_ms: 0 });
}

#[test]
fn a_definition_is_needed_until_it_is_written_and_again_after_the_refresh() {
    let mut memory = DefinitionMemory::new(10, DAY);
    assert_eq!(memory.need(&id(1), 5005), Need::Write { created_at_ms: 5000 });
    assert_eq!(
        memory.need(&id(1), 6006),
        Need::Write { created_at_ms: 6000 },
        "not remembered before success"
    );
    memory.written(&id(1), 6000, 7007, PROMPT);
    assert_eq!(memory.need(&id(1), 8000), Need::No);
    assert_eq!(
        memory.need(&id(1), 7007 + DAY_MS),
        Need::Write { created_at_ms: 6000 },
        "creation time is kept"
    );
    assert_eq!(memory.counts().written, 1);
}

#[test]
fn series_that_appeared_together_are_refreshed_over_a_quarter_of_the_interval() {
    let mut memory = DefinitionMemory::new(1000, DAY);
    (0..1000).for_each(|number| memory.written(&id(number), 0, 0, PROMPT));
    let due = |now_ms| (0..1000).filter(|n| memory.need(&id(*n), now_ms) != Need::No).count();
    assert_eq!(due(DAY_MS * 3 / 4 - 1000), 0);
    let half = due(DAY_MS * 7 / 8);
    assert!((400..600).contains(&half), "{half} of 1000 in the middle");
    assert_eq!(due(DAY_MS), 1000);
}

#[test]
fn a_full_memory_forgets_what_was_written_longest_ago() {
    let memory = memory(100, 101);
    assert_eq!(memory.len(), 51);
    assert_eq!(memory.counts().forgotten, 50);
    for number in 0..101 {
        let known = memory.need(&id(number), 101_000) == Need::No;
        assert_eq!(known, number >= 50, "{number}");
    }
}

#[test]
fn a_full_memory_of_one_second_forgets_half_of_it_too() {
    let mut memory = DefinitionMemory::new(100, DAY);
    (0..101).for_each(|number| memory.written(&id(number), 0, 5, PROMPT));
    assert_eq!(memory.len(), 51);
}

#[test]
fn what_a_store_may_have_lost_is_forgotten() {
    let mut memory = memory(10, 3);
    memory.forget_since(2000);
    assert_eq!(memory.need(&id(0), 21_000), Need::No);
    assert!(matches!(memory.need(&id(2), 21_000), Need::Write { .. }));
}

#[test]
fn what_counts_for_forgetting_is_when_it_was_confirmed_and_for_the_refresh_its_stamp() {
    let mut memory = DefinitionMemory::new(10, DAY);
    memory.written(&id(1), 0, 0, HOUR);
    assert_ne!(memory.need(&id(1), DAY_MS), Need::No, "due by its stamp");
    memory.forget_since(3_599_000);
    assert!(matches!(memory.need(&id(1), 3_600_000), Need::Write { .. }));
}

#[test]
fn a_definition_confirmed_long_after_its_stamp_is_written_anew() {
    let mut memory = DefinitionMemory::new(10, DAY);
    memory.written(&id(1), 0, 0, LATE_MAX + Duration::from_secs(1));
    assert!(matches!(memory.need(&id(1), 1000), Need::Write { .. }));
}

#[test]
fn the_cache_gets_what_is_safe_for_as_long_as_the_hold_back_and_still_remembered() {
    let mut memory = memory(100, 5);
    let at = Duration::from_secs;
    for number in 0..4 {
        memory.safe(&id(number), at(10 + u64::from(number)));
    }
    memory.safe(&id(99), at(10));
    // Written again meanwhile: the later confirmation counts.
    memory.written(&id(0), 0, 100_000, PROMPT);
    memory.safe(&id(0), at(100));
    assert_eq!(memory.take_settled(at(69), 60 * at(1), 100), []);
    let settled = memory.take_settled(at(72), 60 * at(1), 100);
    let keys: Vec<_> = settled.iter().map(|entry| entry.key).collect();
    assert_eq!(keys, [table::key(&id(1)), table::key(&id(2))]);
    // Not safe yet as far as anybody said: it goes with what a store may have lost.
    memory.forget_since(50_000);
    assert_eq!(memory.take_settled(at(1000), 60 * at(1), 100), []);
    assert!(matches!(memory.need(&id(3), 100_000), Need::Write { .. }));
}

#[test]
fn a_million_series_take_little_more_than_twenty_bytes_each() {
    let mut memory = DefinitionMemory::new(2_000_000, DAY);
    let mut worst: f64 = 0.0;
    for number in 0_u64..1_000_000 {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        bytes[8..16].copy_from_slice(&number.to_be_bytes());
        let id = MetricId::try_from(bytes.as_slice()).unwrap();
        memory.written(&id, 0, 0, PROMPT);
        if number > 200_000 && number.is_multiple_of(10_007) {
            worst = worst.max(memory.bytes() as f64 / memory.len() as f64);
        }
    }
    assert_eq!(memory.len(), 1_000_000);
    let mean = memory.bytes() as f64 / 1e6;
    assert!(mean < 24.0 && worst < 25.0, "{mean} bytes, at most {worst}");
    memory.forget_since(0);
    assert!(memory.is_empty() && memory.bytes() < 200_000, "given back: {}", memory.bytes());
}

mod kept {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Place {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::TempDir::new().unwrap();
            Self { path: dir.path().join("definitions"), _dir: dir }
        }

        fn open(&self) -> Opened {
            DefinitionCache::open(&self.path, "here").unwrap()
        }
    }

    fn entries(numbers: std::ops::Range<u32>) -> Vec<Entry> {
        let entry =
            |n| Entry { key: table::key(&id(n)), late_s: 0, written_s: n, created_s: n / 2 };
        numbers.map(entry).collect()
    }

    #[test]
    fn what_is_in_the_cache_is_there_after_a_restart_with_its_times() {
        let place = Place::new();
        let mut opened = place.open();
        assert!(opened.entries.is_empty() && !opened.foreign && opened.set_aside.is_none());
        opened.cache.turn(&entries(1..7001), 0, 100_000).unwrap();
        opened.cache.turn(&entries(7001..7003), 0, 100_000).unwrap();
        drop(opened);
        let opened = place.open();
        assert_eq!(opened.entries, entries(1..7003));
        assert_eq!(opened.cache.len(), 7002);
        let mut memory = DefinitionMemory::new(100_000, DAY);
        memory.load(opened.entries);
        assert_eq!(memory.counts().loaded, 7002);
        assert_eq!(memory.need(&id(7000), 7_001_000), Need::No);
        let due_ms = 7_000_000 + DAY_MS;
        assert_eq!(memory.need(&id(7000), due_ms), Need::Write { created_at_ms: 3_500_000 });
    }

    #[test]
    fn what_was_written_since_the_start_is_newer_than_the_cache() {
        let mut memory = DefinitionMemory::new(100, DAY);
        memory.written(&id(5), 1000, 9_000_000, PROMPT);
        memory.load(entries(1..10));
        assert_eq!(memory.counts().loaded, 8);
        let due_ms = DAY_MS + 9_000_000;
        assert_eq!(memory.need(&id(5), due_ms), Need::Write { created_at_ms: 1000 });
    }

    #[test]
    fn other_tables_make_it_foreign_and_it_begins_anew() {
        let place = Place::new();
        place.open().cache.turn(&entries(1..10), 0, 100).unwrap();
        let other = DefinitionCache::open(&place.path, "there").unwrap();
        assert!(other.foreign && other.entries.is_empty());
        drop(other);
        let back = place.open();
        assert!(!back.foreign, "it was dropped at once");
        assert!(back.entries.is_empty(), "who knows what happened here meanwhile");
    }

    #[test]
    fn what_a_store_may_have_lost_is_gone_after_a_restart_too() {
        let place = Place::new();
        let mut cache = place.open().cache;
        for number in [10, 20, 30] {
            cache.turn(&entries(number..number + 1), 0, 100).unwrap();
        }
        cache.forget_since(20_500).unwrap();
        // A copy is what a crash leaves: nothing may need a close.
        let copy = Place::new();
        copy_files(&place.path, &copy.path);
        assert_eq!(copy.open().entries, entries(10..11));
    }

    fn copy_files(from: &std::path::Path, to: &std::path::Path) {
        fs::create_dir(to).unwrap();
        for entry in from.read_dir().unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy_files(&entry.path(), &target);
            } else {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[test]
    fn it_keeps_no_more_than_it_may_and_nothing_that_is_due_again() {
        let place = Place::new();
        let mut cache = place.open().cache;
        for first in 1..100 {
            cache.turn(&entries(first * 10..first * 10 + 10), 0, 100).unwrap();
            assert!(cache.len() <= 100, "{}", cache.len());
        }
        drop(cache);
        let Opened { mut cache, entries: found, .. } = place.open();
        assert_eq!(found, entries(900..1000));
        cache.turn(&[], 951, 100).unwrap();
        assert_eq!(cache.len(), 50);
        drop(cache);
        assert_eq!(place.open().entries, entries(950..1000));
    }

    #[test]
    fn it_stays_small_on_disk_however_long_it_is_used() {
        let place = Place::new();
        let mut cache = place.open().cache;
        // Every turn 400 entries come and 400 go.
        for turn in 1..300 {
            let settled = entries(turn * 400..turn * 400 + 400);
            cache.turn(&settled, i64::from(turn) * 400 - 4000, 100_000).unwrap();
        }
        assert!((4000..5000).contains(&cache.len()), "{}", cache.len());
        let bytes: u64 = fs::read_dir(&place.path)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(bytes < 4 << 20, "{bytes} bytes for {} entries", cache.len());
    }

    #[test]
    fn damage_sets_it_aside_and_a_new_one_begins() {
        for (damage, step) in [("db", 97), ("db", 4099), ("db", 100_003), ("conf", 7)] {
            let place = Place::new();
            place.open().cache.turn(&entries(1..5000), 0, 10_000).unwrap();
            let file = place
                .path
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .find(|path| path.file_name().unwrap().to_string_lossy().starts_with(damage))
                .unwrap();
            let mut bytes = fs::read(&file).unwrap();
            for byte in bytes.iter_mut().skip(7).step_by(step) {
                *byte ^= 0x5a;
            }
            fs::write(&file, bytes).unwrap();
            let opened = place.open();
            // A part that is still there is true; what is missing is written again.
            let true_ones = entries(1..5000);
            assert!(opened.entries.iter().all(|entry| true_ones.contains(entry)));
            drop(opened);
            let again = place.open();
            assert!(again.set_aside.is_none(), "{damage}");
            drop(again);
        }
        let place = Place::new();
        fs::write(&place.path, "no directory").unwrap();
        let aside = place.open().set_aside.unwrap();
        assert!(aside.path.is_file(), "{}", aside.why);
    }

    #[test]
    fn a_process_that_ended_in_the_middle_of_a_change_costs_the_cache_and_no_start() {
        let place = Place::new();
        place.open().cache.turn(&entries(1..10), 0, 100).unwrap();
        // What an abort inside sled leaves, with files that would abort it again.
        fs::write(place.path.with_extension("lock"), "1").unwrap();
        let opened = place.open();
        let aside = opened.set_aside.unwrap();
        assert!(aside.path.is_dir() && opened.entries.is_empty(), "{}", aside.why);
        drop(opened.cache);
        assert!(place.open().set_aside.is_none(), "only once");
    }

    #[test]
    fn one_that_another_process_uses_is_left_alone() {
        let place = Place::new();
        let opened = place.open();
        assert!(matches!(DefinitionCache::open(&place.path, "here"), Err(CacheError::Locked)));
        drop(opened);
        place.open();
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_and_not_the_end() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("no").join("definitions");
        assert!(matches!(DefinitionCache::open(&path, "here"), Err(CacheError::Failed(_))));
    }

    #[test]
    fn a_discarded_one_is_not_loaded_again() {
        let place = Place::new();
        let mut cache = place.open().cache;
        cache.turn(&entries(1..10), 0, 100).unwrap();
        cache.discard().unwrap();
        assert!(place.open().entries.is_empty());
        place.open().cache.turn(&entries(1..10), 0, 100).unwrap();
        DefinitionCache::forget_unopened(&place.path).unwrap();
        assert!(place.open().entries.is_empty());
    }
}
