//! Real metrics of this very machine as Monasca messages, named like monasca-agent's.

use std::collections::BTreeMap;

use serde::Serialize;
use sysinfo::{Disks, Networks, System};

const BYTES_PER_MB: u64 = 1024 * 1024;

#[derive(Serialize)]
struct Envelope<'a> {
    metric: Metric<'a>,
    meta: Meta,
    creation_time: i64,
}

#[derive(Serialize)]
struct Metric<'a> {
    name: &'a str,
    dimensions: BTreeMap<&'a str, &'a str>,
    timestamp: i64,
    value: f64,
}

#[derive(Serialize)]
struct Meta {
    #[serde(rename = "tenantId")]
    tenant_id: &'static str,
    region: &'static str,
}

const META: Meta = Meta { tenant_id: "demo", region: "local" };

/// Looks at the machine.
pub struct HostMetrics {
    hostname: String,
    system: System,
    disks: Disks,
    networks: Networks,
    last_ms: Option<i64>,
}

impl Default for HostMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl HostMetrics {
    /// A first look; rates and percentages need a second one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            hostname: System::host_name().unwrap_or_else(|| "localhost".to_owned()),
            system: System::new(),
            disks: Disks::new_with_refreshed_list(),
            networks: Networks::new_with_refreshed_list(),
            last_ms: None,
        }
    }

    /// How busy the processors were since the look before, in percent; `None` after the first look.
    #[must_use]
    pub fn cpu_utilization_perc(&self) -> Option<f64> {
        self.last_ms?;
        Some(f64::from(self.system.global_cpu_usage()))
    }

    /// Looks again and calls `each` with one message per metric.
    pub fn sample(&mut self, now_ms: i64, each: &mut dyn FnMut(Vec<u8>)) {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory();
        self.disks.refresh(true);
        self.networks.refresh(true);
        let mut emit = |name: &str, more: &[(&str, &str)], value: f64| {
            let mut dimensions =
                BTreeMap::from([("hostname", self.hostname.as_str()), ("service", "monitoring")]);
            dimensions.extend(more.iter().copied());
            let metric = Metric { name, dimensions, timestamp: now_ms, value };
            let envelope = Envelope { metric, meta: META, creation_time: now_ms / 1000 };
            // A structure of numbers and strings can always be written.
            if let Ok(message) = serde_json::to_vec(&envelope) {
                each(message);
            }
        };
        if self.last_ms.is_some() {
            let busy = f64::from(self.system.global_cpu_usage());
            emit("cpu.utilization_perc", &[], busy);
            emit("cpu.idle_perc", &[], 100.0 - busy);
            for (index, cpu) in self.system.cpus().iter().enumerate() {
                emit(
                    "cpu.core_utilization_perc",
                    &[("core", &index.to_string())],
                    f64::from(cpu.cpu_usage()),
                );
            }
        }
        let load = System::load_average();
        emit("load.avg_1_min", &[], load.one);
        emit("load.avg_5_min", &[], load.five);
        emit("load.avg_15_min", &[], load.fifteen);
        let (total, available) = (self.system.total_memory(), self.system.available_memory());
        emit("mem.total_mb", &[], float(total / BYTES_PER_MB));
        emit("mem.free_mb", &[], float(self.system.free_memory() / BYTES_PER_MB));
        emit("mem.usable_mb", &[], float(available / BYTES_PER_MB));
        emit("mem.usable_perc", &[], percent(available, total));
        emit("mem.swap_total_mb", &[], float(self.system.total_swap() / BYTES_PER_MB));
        emit("mem.swap_used_mb", &[], float(self.system.used_swap() / BYTES_PER_MB));
        for disk in self.disks.list() {
            let mount_point = disk.mount_point().to_string_lossy();
            let device = disk.name().to_string_lossy();
            let of = [("mount_point", mount_point.as_ref()), ("device", device.as_ref())];
            let used = disk.total_space().saturating_sub(disk.available_space());
            emit("disk.total_space_mb", &of, float(disk.total_space() / BYTES_PER_MB));
            emit("disk.space_used_perc", &of, percent(used, disk.total_space()));
        }
        if let Some(last_ms) = self.last_ms {
            let seconds =
                float(u64::try_from(now_ms.saturating_sub(last_ms)).unwrap_or(1).max(1)) / 1000.0;
            for (device, network) in &self.networks {
                let of = [("device", device.as_str())];
                emit("net.in_bytes_sec", &of, float(network.received()) / seconds);
                emit("net.out_bytes_sec", &of, float(network.transmitted()) / seconds);
                emit("net.in_packets_sec", &of, float(network.packets_received()) / seconds);
                emit("net.out_packets_sec", &of, float(network.packets_transmitted()) / seconds);
            }
        }
        self.last_ms = Some(now_ms);
    }
}

#[expect(clippy::cast_precision_loss, reason = "megabytes and rates need no exact count")]
fn float(count: u64) -> f64 {
    count as f64
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { float(part) / float(whole) * 100.0 }
}

/// An alarm on the processors' utilisation, evaluated on what was really measured.
///
/// Its threshold is the mean of all samples so far, so that it changes its state on an idle machine as well as on a
/// busy one: ALARM above the mean by a tenth of it, OK again below the mean by a tenth.
#[derive(Debug, Default)]
pub struct DemoAlarm {
    samples: u32,
    mean: f64,
    state: State,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Undetermined,
    Ok,
    Alarm,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Undetermined => "UNDETERMINED",
            Self::Ok => "OK",
            Self::Alarm => "ALARM",
        }
    }
}

impl DemoAlarm {
    /// An alarm that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a sample; returns an alarm-transitioned message when the state changes.
    pub fn observe(&mut self, utilization_perc: f64, now_ms: i64) -> Option<Vec<u8>> {
        self.samples = self.samples.saturating_add(1);
        self.mean += (utilization_perc - self.mean) / f64::from(self.samples);
        let next = if utilization_perc > self.mean * 1.1 {
            State::Alarm
        } else if self.state == State::Undetermined || utilization_perc < self.mean * 0.9 {
            State::Ok
        } else {
            self.state
        };
        if next == self.state {
            return None;
        }
        let old = std::mem::replace(&mut self.state, next);
        let message = serde_json::json!({"alarm-transitioned": {
            "tenantId": META.tenant_id,
            "alarmId": "00000000-0000-4000-8000-000000000001",
            "alarmDefinitionId": "00000000-0000-4000-8000-000000000002",
            "metrics": [{"id": "", "name": "cpu.utilization_perc", "dimensions": {"service": "monitoring"}}],
            "alarmName": "demo: processors busier than usual",
            "alarmDescription": "utilisation above its mean so far by a tenth",
            "oldState": old.name(),
            "newState": next.name(),
            "actionsEnabled": false,
            "stateChangeReason": format!("utilisation {utilization_perc:.1} %, mean {:.1} %", self.mean),
            "severity": "LOW",
            "link": null,
            "lifecycleState": null,
            "subAlarms": [{
                "subAlarmExpression": {
                    "function": "LAST",
                    "metricDefinition": {"name": "cpu.utilization_perc", "dimensions": {}},
                    "operator": "GT",
                    "threshold": self.mean * 1.1,
                    "period": 1,
                    "periods": 1,
                },
                "subAlarmState": next.name(),
                "currentValues": [utilization_perc],
            }],
            "timestamp": now_ms,
        }});
        serde_json::to_vec(&message).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_about_this_machine_can_be_stored() {
        let mut host = HostMetrics::new();
        let mut names = std::collections::BTreeSet::new();
        for now_ms in [1_000, 2_000] {
            host.sample(now_ms, &mut |message| {
                crate::decode::metrics(&message, |_, metric| {
                    names.insert(metric.unwrap().name.into_owned());
                });
            });
        }
        for name in ["cpu.utilization_perc", "mem.usable_perc", "load.avg_1_min"] {
            assert!(names.contains(name), "{name} is missing in {names:?}");
        }
    }

    #[test]
    fn the_alarm_changes_its_state_with_what_is_measured() {
        let mut alarm = DemoAlarm::new();
        let states: Vec<Option<String>> = [10.0, 10.0, 50.0, 60.0, 5.0]
            .into_iter()
            .map(|utilization| {
                let message = alarm.observe(utilization, 1)?;
                let row = crate::decode::alarm(&message)
                    .unwrap()
                    .into_transition(storage::Stamp { write_time_us: 1, ttl_s: 1 });
                Some(format!("{}->{}", row.old_state, row.new_state))
            })
            .collect();
        let states: Vec<Option<&str>> = states.iter().map(Option::as_deref).collect();
        assert_eq!(
            states,
            [Some("UNDETERMINED->OK"), None, Some("OK->ALARM"), None, Some("ALARM->OK")]
        );
    }
}
