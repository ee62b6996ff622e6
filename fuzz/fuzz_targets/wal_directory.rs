//! A directory in which several files were changed, lost, swapped, or never were the log's.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use log_under_fuzz as log;
use wal::sim::SimDisk;

static SOUND: LazyLock<SimDisk> = LazyLock::new(log::sound);

fuzz_target!(|data: &[u8]| {
    let mut input = log::Input(data);
    let disk = SOUND.fork();
    let names: Vec<String> = disk
        .file_names()
        .into_iter()
        .filter(|name| name.starts_with("segment-") || name == wal::CURSOR_NAME)
        .collect();
    let (mut forged, mut cursor) = (false, true);
    for _ in 0..1 + input.number() % 5 {
        let name = &names[input.number() % names.len()];
        let other = &names[input.number() % names.len()];
        cursor &= name != wal::CURSOR_NAME && other != wal::CURSOR_NAME;
        match input.number() % 5 {
            0 => disk.remove_file(name),
            1 => {
                let (one, two) = (disk.read_file(name), disk.read_file(other));
                if let (Some(one), Some(two)) = (one, two) {
                    disk.write_file(name, &two);
                    disk.write_file(other, &one);
                }
            }
            2 => {
                let number = wal::SegmentNumber::new(input.number() as u64 % 40 + 1);
                disk.write_file(&wal::segment_name(number), input.bytes(9000));
                forged = true;
            }
            _ => {
                if let Some(mut bytes) = disk.read_file(name) {
                    forged |= log::mutate(&mut bytes, &mut input);
                    disk.write_file(name, &bytes);
                }
            }
        }
    }
    log::check(&disk, forged, cursor);
});
