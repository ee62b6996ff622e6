//! The simulated disk forgets what was not synced, keeps what was, and repeats itself.

use super::*;

/// A synced file "kept", then 16 KiB of unsynced ones in it and an unsynced name.
fn written(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let file = disk.create_new("kept").unwrap();
    crate::fs::write_all_at(&file, 0, &[1; 8192]).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir().unwrap();
    crate::fs::write_all_at(&file, 4096, &[2; 16384]).unwrap();
    disk.create_new("unsynced").unwrap();
    disk
}

#[test]
fn a_kill_keeps_everything_and_frees_the_lock() {
    let disk = written(1);
    let lock = disk.try_lock().unwrap();
    assert!(lock.is_some() && disk.try_lock().unwrap().is_none());
    let old = disk.open("kept", Access::Read).unwrap();
    let next = disk.crash(CrashLevel::Kill);
    assert_eq!(next.read_file("kept").unwrap().len(), 20480);
    assert_eq!(next.file_names(), ["kept", "unsynced"]);
    assert!(old.len().is_err() && disk.list().is_err(), "the dead do nothing");
    let taken = next.try_lock().unwrap();
    drop(lock);
    assert!(taken.is_some() && next.try_lock().unwrap().is_none());
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_any_part_of_the_rest() {
    let (mut lost, mut kept, mut mixed, mut names) = (0, 0, 0, 0);
    for seed in 0..400 {
        let disk = written(seed).crash(CrashLevel::PowerCut);
        let bytes = disk.read_file("kept").unwrap();
        assert!(bytes.len() >= 8192 && bytes[..4096] == [1; 4096], "synced bytes are safe");
        let new = bytes[4096..].iter().filter(|byte| **byte == 2).count();
        match new {
            0 => lost += 1,
            16384 => kept += 1,
            _ => mixed += 1,
        }
        names += usize::from(disk.file_names().len() == 2);
    }
    assert!(lost > 20 && kept > 20 && mixed > 50, "{lost} {kept} {mixed}");
    assert!((50..350).contains(&names), "{names}");
}

#[test]
fn after_a_failed_sync_a_second_one_lies() {
    for seed in 0..20 {
        let disk = written(seed);
        let file = disk.open("kept", Access::ReadWrite).unwrap();
        disk.inject(1, Injected::Eio);
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
        let disk = disk.crash(CrashLevel::PowerCut);
        assert!(!disk.read_file("kept").unwrap().contains(&2));
    }
}

#[test]
fn the_planned_stop_comes_at_its_operation() {
    let disk = SimDisk::new(3);
    disk.fail_after(3);
    assert!(disk.create_new("a").is_ok() && disk.list().is_ok());
    assert!(disk.sync_dir().is_err() && disk.is_stopped() && disk.list().is_err());
    assert!(disk.crash(CrashLevel::Kill).list().is_ok());
}

#[test]
fn a_full_disk_takes_overwrites_only() {
    let disk = written(4);
    disk.set_capacity(Some(disk.used_bytes() + 10));
    let file = disk.open("kept", Access::ReadWrite).unwrap();
    assert!(crate::fs::write_all_at(&file, 0, &[3; 4096]).is_ok());
    let error = crate::fs::write_all_at(&file, 20480, &[3; 11]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.used_bytes(), 20490);
    disk.set_capacity(None);
    assert!(crate::fs::write_all_at(&file, 20490, &[3; 11]).is_ok());
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let image = |seed| written(seed).crash(CrashLevel::TornSectors).read_file("kept");
    assert!((0..50).all(|seed| image(seed) == image(seed)));
    assert!((0..50).any(|seed| image(seed) != image(seed + 1)));
}
