//! What is written: the same records for every engine and every round.
//!
//! They look like a Monasca agent's messages: names and dimensions repeat from host to host, ids
//! belong to a host, values and times are new in every message. Neighbours come from different
//! hosts, as in a partition that many agents fill, so that what belongs to a host is rarely within
//! reach of a compressor; an agent's own run of messages would shrink to half of this.

/// Length of every record.
pub const RECORD_BYTES: usize = 400;
/// How many different ones there are; producers start over after the last.
pub const RECORDS: usize = 16_384;

/// One message.
pub type Record = [u8; RECORD_BYTES];

const HOSTS: u64 = 700;
/// Metric, service and component.
const METRICS: [(&str, &str, &str); 16] = [
    ("cpu.idle_perc", "monitoring", "hypervisor"),
    ("cpu.user_perc", "monitoring", "hypervisor"),
    ("cpu.wait_perc", "monitoring", "hypervisor"),
    ("disk.inode_used_perc", "monitoring", "storage"),
    ("disk.space_used_perc", "monitoring", "storage"),
    ("io.read_kbytes_sec", "monitoring", "storage"),
    ("io.write_time_sec", "monitoring", "storage"),
    ("load.avg_1_min", "monitoring", "hypervisor"),
    ("mem.free_mb", "monitoring", "hypervisor"),
    ("mem.usable_perc", "monitoring", "hypervisor"),
    ("net.in_bytes_sec", "networking", "vswitch"),
    ("net.out_packets_sec", "networking", "vswitch"),
    ("process.pid_count", "compute", "nova-compute"),
    ("vm.cpu.utilization_norm_perc", "compute", "libvirt"),
    ("vm.host_alive_status", "compute", "libvirt"),
    ("vm.io.errors_sec", "compute", "libvirt"),
];

/// All records.
#[must_use]
pub fn corpus() -> Vec<Record> {
    let mut random = Random(0x6d6f_6e61_7363_6131);
    (0..RECORDS as u64).map(|number| record(number, &mut random)).collect()
}

fn record(number: u64, random: &mut Random) -> Record {
    let host = number * 389 % HOSTS;
    let (metric, service, component) = METRICS[random.below(METRICS.len() as u64) as usize];
    let mut of_host = Random(host.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (resource, tenant) = (of_host.hex(32), Random(host % 40 + 7).hex(32));
    let time_ms = 1_753_000_000_000 + number * 23 + random.below(20);
    let value = match random.below(4) {
        // A counter, a percentage, a rate as floating point leaves it, a state.
        0 => random.below(80_000_000).to_string(),
        1 => format!("{}.{:02}", random.below(100), random.below(100)),
        2 => (random.below(1 << 52) as f64 / 3e9).to_string(),
        _ => random.below(2).to_string(),
    };
    let text = format!(
        r#"{{"metric":{{"name":"{metric}","dimensions":{{"hostname":"compute-{host:04}.region-one.example","service":"{service}","component":"{component}","resource_id":"{resource}","zone":"nova-az-{}"}},"timestamp":{time_ms},"value":{value},"value_meta":null}},"meta":{{"tenantId":"{tenant}"}},"creation_time":{}"#,
        host % 4,
        time_ms / 1000,
    );
    // A field of the host's own fills up what is left, so that all records are equally long.
    const OPEN: &str = r#","agent":""#;
    const CLOSE: &str = r#""}"#;
    let filler = of_host.hex(RECORD_BYTES - text.len() - OPEN.len() - CLOSE.len());
    format!("{text}{OPEN}{filler}{CLOSE}").into_bytes().try_into().unwrap()
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from(b"0123456789abcdef"[(self.next() % 16) as usize])).collect()
    }
}
