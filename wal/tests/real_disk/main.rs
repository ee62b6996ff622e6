//! The log on real disks: killed at every system call, failing calls, power cuts of a real file
//! system, and real failing syncs. What a machine cannot do is skipped with a line that says so.
//!
//! `WAL_KILLS` and `WAL_POWER_CUTS` say how many; `WAL_DISK_SECONDS` bounds each part.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it did"
)]

mod calls;
mod image;
mod victim;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use image::Memory;
use victim::Victim;

/// A directory on the disk of the build: the system's temporary one may be memory.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Not a test of its own: the process that the others kill.
#[test]
fn victim() {
    victim::live();
}

#[test]
fn a_kill_at_any_system_call_loses_nothing_that_was_promised() {
    if !calls::is_there() {
        println!("skipped: no strace here");
        return;
    }
    let seconds = Duration::from_secs(number("WAL_DISK_SECONDS", 120));
    let wanted = number("WAL_KILLS", 500);
    let begun = Instant::now();
    let kills = calls::kill_everywhere(wanted, seconds);
    println!("{kills} kills at a system call in {:.0?}", begun.elapsed());
    assert!(kills >= wanted.min(100), "only {kills} kills in {seconds:?}");
}

#[test]
fn a_failing_system_call_is_noticed_or_overcome_and_never_hidden() {
    if !calls::is_there() {
        println!("skipped: no strace here");
        return;
    }
    for (call, error, most) in [
        ("pwrite64", "EIO", 25),
        ("fdatasync", "EIO", 12),
        ("fsync", "EIO", 6),
        ("pwrite64", "ENOSPC", 25),
        ("renameat,renameat2", "EIO", 4),
    ] {
        let (failures, met, ended) = calls::fail_everywhere(call, error, most);
        println!("{error} at {call}: {failures} calls failed, of {met} victims {ended} ended");
        assert!(met > 0, "{error} at {call} met nobody");
        // A file that cannot be given back is tried again later; nothing depends on it.
        let must_end = error == "EIO" && !call.starts_with("rename");
        assert!(!must_end || met == ended, "{error} at {call} was not noticed");
    }
}

fn signal(id: u32, name: &str) {
    let sent = Command::new("kill").args([name, &id.to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
fn a_power_cut_of_a_real_file_system_loses_nothing_that_was_promised() {
    if !image::is_there() {
        println!("skipped: no loop devices or no right to mount here");
        return;
    }
    let wanted = number("WAL_POWER_CUTS", 200);
    let seconds = Duration::from_secs(number("WAL_DISK_SECONDS", 120));
    let begun = Instant::now();
    let (mut cuts, mut seed) = (0, 0);
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::mount(dir.path(), 256).unwrap();
    while cuts < wanted && begun.elapsed() < seconds {
        seed += 1;
        cuts += cuts_of_one_life(&memory, dir.path(), seed, wanted - cuts);
    }
    println!("{cuts} power cuts of ext4 in {:.0?}", begun.elapsed());
    assert!(cuts >= wanted.min(50), "only {cuts} power cuts in {seconds:?}");
}

/// Cuts the power under one victim again and again; returns how often.
fn cuts_of_one_life(memory: &Memory, dir: &Path, seed: u64, most: u64) -> u64 {
    let image = memory.make_image("disk", 24).unwrap();
    let mounted = image.mount(&dir.join("disk")).unwrap();
    let mut victim = Victim::start(&dir.join("disk/log"), seed * 1000, 400, &[]);
    let mut cuts = 0;
    for round in 0..20 {
        // A different moment each time: between a few words, and some time after the last.
        for _ in 0..1 + (seed * 7 + round * 5) % 11 {
            if !victim.listen() {
                break;
            }
        }
        if victim.done || cuts == most {
            break;
        }
        std::thread::sleep(Duration::from_micros((seed * 131 + round * 977) % 3000));
        signal(victim.id(), "-STOP");
        if let Some(cut) = image.copy_when_still(&dir.join("memory-256/cut")) {
            {
                let _mounted = cut.mount(&dir.join("cut")).unwrap();
                let what = format!("seed {seed}, cut {round}");
                victim::check(&dir.join("cut/log"), victim.promised, &what);
            }
            cut.remove();
            cuts += 1;
        }
        signal(victim.id(), "-CONT");
    }
    drop(victim);
    drop(mounted);
    image.remove();
    cuts
}

/// Lets the directory have all the blocks it will need, backed by memory.
fn widen(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let name = |n: u32| dir.join(format!("{n:040}"));
    (0..1500).for_each(|n| std::fs::write(name(n), b"").unwrap());
    (0..1500).for_each(|n| std::fs::remove_file(name(n)).unwrap());
    assert!(Command::new("sync").arg("-f").arg(dir).status().unwrap().success());
}

#[test]
fn a_disk_that_really_fails_to_sync_is_noticed_and_keeps_what_was_promised() {
    if !image::is_there() {
        println!("skipped: no loop devices or no right to mount here");
        return;
    }
    let mut noticed = 0;
    const BACKED_MIB: u64 = 16;
    for (seed, mib) in [(1, 20), (2, 21), (3, 22), (4, 24), (5, 27), (6, 30)] {
        let dir = tempfile::tempdir().unwrap();
        // The backing file has room for more than the memory it lies in.
        let small = Memory::mount(dir.path(), mib).unwrap();
        let Some(image) = small.make_image("disk", 64) else { continue };
        image.back(BACKED_MIB);
        let mounted = image.mount(&dir.path().join("disk")).unwrap();
        image.one_page_at_a_time();
        widen(&dir.path().join("disk/log"));
        let mut victim = Victim::start_hoarding(&dir.path().join("disk/log"), seed, 40_000);
        // A lack of space met while a file is prepared is pressure: then it waits for ever.
        let id = victim.id();
        let (ended, watch) = std::sync::mpsc::channel::<()>();
        let watcher = std::thread::spawn(move || {
            if watch.recv_timeout(Duration::from_secs(5)).is_err() {
                Command::new("kill").args(["-9", &id.to_string()]).status().unwrap();
            }
        });
        victim.wait();
        ended.send(()).ok();
        watcher.join().unwrap();
        let large = Memory::mount(dir.path(), 80).unwrap();
        let copy = image.copy(&dir.path().join("memory-80/disk"));
        if let Some(failure) = &victim.failed {
            noticed += 1;
            println!("{mib} MiB: {} promised, then {failure}", victim.promised);
        }
        {
            // Through another page cache: what is really there.
            let _mounted = copy.mount(&dir.path().join("again")).unwrap();
            let what = format!("{mib} MiB");
            victim::check_promised(&dir.path().join("again/log"), victim.promised, &what);
        }
        drop(victim);
        drop(mounted);
        drop(large);
    }
    assert!(noticed > 0, "no disk failed");
}
