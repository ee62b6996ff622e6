//! A segment file that is arbitrary bytes, or a sound one that was changed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use log_under_fuzz as log;
use wal::sim::SimDisk;

static SOUND: LazyLock<SimDisk> = LazyLock::new(log::sound);

fuzz_target!(|data: &[u8]| {
    let mut input = log::Input(data);
    let disk = SOUND.fork();
    let mut names = disk.file_names();
    names.retain(|name| name.starts_with("segment-"));
    let name = &names[input.number() % names.len()];
    let forged = if input.number() % 4 == 0 {
        disk.write_file(name, input.0);
        true
    } else {
        let mut bytes = disk.read_file(name).unwrap();
        let forged = log::mutate(&mut bytes, &mut input);
        disk.write_file(name, &bytes);
        forged
    };
    log::check(&disk, forged, true);
});
