//! Arbitrary bytes where frames should be, behind a sound segment header and link: no panic, no
//! allocation beyond the bounds, and an opening that can be repeated.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use log_under_fuzz as log;
use wal::sim::SimDisk;

static SOUND: LazyLock<SimDisk> = LazyLock::new(log::sound);

fuzz_target!(|data: &[u8]| {
    let disk = SOUND.fork();
    let mut names = disk.file_names();
    names.retain(|name| name.starts_with("segment-"));
    let name = names.last().unwrap().clone();
    let mut bytes = disk.read_file(&name).unwrap();
    // In the middle of the newest segment, in steps as frames have them.
    let at = (8192 + data.first().map_or(0, |byte| usize::from(*byte)) * 8).min(bytes.len());
    bytes.truncate(at);
    bytes.extend_from_slice(data.get(1..).unwrap_or_default());
    disk.write_file(&name, &bytes);
    log::check(&disk, true, true);
});
