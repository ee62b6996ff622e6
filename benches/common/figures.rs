//! What a run costs, as the system counts it for each process.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a process used since it began.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    cpu_s: f64,
    rss_mib: f64,
    rss_mib_peak: f64,
}

fn usage(pid: u32) -> Usage {
    /// Linux counts a process' time in hundredths of a second on every machine that it shows them on.
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    };
    Usage { cpu_s: ticks / TICKS_PER_S, rss_mib: mib("VmRSS:"), rss_mib_peak: mib("VmHWM:") }
}

/// What was measured between two moments.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    pub records_per_s: f64,
    pub cpu_s_per_million: f64,
    pub server_cpu_s_per_million: f64,
    pub rss_mib: f64,
    pub rss_mib_peak: f64,
    pub rows_per_request: Option<f64>,
    pub disk_bytes_per_payload_byte: Option<f64>,
}

/// A moment of a client and the server it talks to.
#[derive(Clone, Copy)]
pub struct Moment {
    at: Instant,
    pids: (u32, u32),
    client: Usage,
    server: Usage,
}

impl Moment {
    pub fn now(client: u32, server: u32) -> Self {
        Self {
            at: Instant::now(),
            pids: (client, server),
            client: usage(client),
            server: usage(server),
        }
    }

    pub fn until_now(&self, records: usize) -> Figures {
        let end = Self::now(self.pids.0, self.pids.1);
        let millions = records as f64 / 1e6;
        Figures {
            records_per_s: records as f64 / (end.at - self.at).as_secs_f64(),
            cpu_s_per_million: (end.client.cpu_s - self.client.cpu_s) / millions,
            server_cpu_s_per_million: (end.server.cpu_s - self.server.cpu_s) / millions,
            rss_mib: end.client.rss_mib,
            rss_mib_peak: end.client.rss_mib_peak,
            rows_per_request: None,
            disk_bytes_per_payload_byte: None,
        }
    }
}

/// Waits until a server does nothing worth mentioning: compactions and flushes of the step before.
pub fn settle(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = usage(pid).cpu_s;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_secs(1));
        let now = usage(pid).cpu_s;
        if now - before < 0.1 {
            return;
        }
        before = now;
    }
}
