//! A CURSOR that is arbitrary bytes, or a sound one that was changed: at worst records come twice.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use log_under_fuzz as log;
use wal::CURSOR_NAME;
use wal::sim::SimDisk;

static SOUND: LazyLock<SimDisk> = LazyLock::new(log::sound);

fuzz_target!(|data: &[u8]| {
    let mut input = log::Input(data);
    let disk = SOUND.fork();
    let forged = if input.number() % 2 == 0 {
        disk.write_file(CURSOR_NAME, input.0);
        input.0.len() > 60
    } else {
        let mut bytes = disk.read_file(CURSOR_NAME).unwrap();
        let forged = log::mutate(&mut bytes, &mut input);
        disk.write_file(CURSOR_NAME, &bytes);
        forged
    };
    log::check(&disk, forged, false);
});
