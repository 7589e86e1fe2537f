//! What the kernel says of this process, read when it is asked for. Where there is no `/proc`, those figures have no series.

use std::{
    fmt, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use super::figures::process::{CPU, FILES, MEMORY, START, TASKS};

#[derive(Debug)]
pub(super) struct Process {
    started: f64,
}

impl Process {
    pub(super) fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            started: started.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut put = |(name, help): (&str, &str), metric: &dyn EncodeMetric| {
            let help = format!("{help}.");
            let described = encoder.encode_descriptor(name, &help, None, metric.metric_type())?;
            metric.encode(described)
        };
        if let Some(bytes) = resident_bytes() {
            put(MEMORY, &ConstGauge::new(bytes))?;
        }
        if let Some(count) = open_files() {
            put(FILES, &ConstGauge::new(count))?;
        }
        if let Some(count) = tasks() {
            put(TASKS, &ConstGauge::new(count))?;
        }
        put(CPU, &ConstCounter::new(cpu_time().as_secs_f64()))?;
        put(START, &ConstGauge::new(self.started))
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn open_files() -> Option<u64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()
}

/// Nothing where no runtime is, as in unit tests.
fn tasks() -> Option<u64> {
    let runtime = Handle::try_current().ok()?;
    u64::try_from(runtime.metrics().num_alive_tasks()).ok()
}
