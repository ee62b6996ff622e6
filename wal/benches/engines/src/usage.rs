//! What the running process has used so far: processor time, memory, and bytes written to the disk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Sectors in `/proc/diskstats` have this size on every device.
const SECTOR_BYTES: u64 = 512;

/// The block device that holds a directory.
///
/// Bytes are taken from the whole device, because the process's own counters miss what the kernel
/// writes for it (the file system's journal, late write-back) and count page cache as disk. So
/// nothing else may write to the device meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// `None` if the kernel keeps no counters for it: memory, network, some file systems.
    #[must_use]
    pub fn of(dir: &Path) -> Option<Self> {
        let number = fs::metadata(dir).ok()?.dev();
        let device = Self { major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
        device.line().map(|_| device)
    }

    fn line(self) -> Option<String> {
        let table = fs::read_to_string("/proc/diskstats").ok()?;
        let (major, minor) = (self.major.to_string(), self.minor.to_string());
        let is_ours = |line: &&str| {
            let mut fields = line.split_whitespace();
            fields.next() == Some(&major) && fields.next() == Some(&minor)
        };
        table.lines().find(is_ours).map(str::to_owned)
    }

    /// Its name in `/dev`.
    #[must_use]
    pub fn name(self) -> String {
        self.field(2)
    }

    /// Bytes written to it since the machine started.
    #[must_use]
    pub fn written_bytes(self) -> u64 {
        self.field(9).parse::<u64>().unwrap() * SECTOR_BYTES
    }

    fn field(self, index: usize) -> String {
        self.line().unwrap().split_whitespace().nth(index).unwrap().to_owned()
    }
}

/// Processor time of all threads, kernel included.
#[must_use]
pub fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The largest resident set so far, the program's own text and libraries included.
#[must_use]
pub fn rss_mib_peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
}
