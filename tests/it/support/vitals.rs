//! What a gateway's process takes: memory, descriptors, threads, tasks. Read from outside, but for the tasks, which it tells.

use std::{fmt, fs, time::Duration};

use crate::process::{Process, get};

/// At one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vitals {
    /// Resident, in KiB.
    pub memory: u64,
    pub descriptors: u64,
    pub threads: u64,
    /// Of its runtime: what would pile up first if calls or subscriptions were never let go.
    pub tasks: u64,
}

impl Vitals {
    pub async fn of(gateway: &Process) -> Self {
        Self {
            memory: gateway.status("VmRSS"),
            descriptors: descriptors(gateway.id()),
            threads: gateway.status("Threads"),
            tasks: figure(gateway, "courtier_process_tasks").await,
        }
    }

    /// The middle of each figure: one busy moment does not count.
    pub fn median(samples: &[Self]) -> Self {
        let middle = |of: fn(&Self) -> u64| {
            let mut figures: Vec<_> = samples.iter().map(of).collect();
            figures.sort_unstable();
            figures.get(figures.len() / 2).copied().unwrap_or_default()
        };
        Self {
            memory: middle(|vitals| vitals.memory),
            descriptors: middle(|vitals| vitals.descriptors),
            threads: middle(|vitals| vitals.threads),
            tasks: middle(|vitals| vitals.tasks),
        }
    }

    /// What is more than it was, beyond what the same work may take now and then: a quarter and 24 MiB of memory (the
    /// allocator's, and the message log's buffer), connections that are kept for a while (to the management API, one for each of
    /// the calls at a time), a handful of the others.
    pub fn grown_since(&self, before: &Self) -> Vec<String> {
        let mut grown = Vec::new();
        let mut compare = |what: &str, before: u64, now: u64, allowed: u64| {
            if now > before + allowed {
                grown.push(format!("{what} from {before} to {now}"));
            }
        };
        let memory = before.memory / 4 + 24 * 1024;
        compare("memory (KiB)", before.memory, self.memory, memory);
        compare("descriptors", before.descriptors, self.descriptors, 24);
        compare("threads", before.threads, self.threads, 6);
        compare("tasks", before.tasks, self.tasks, 24);
        grown
    }
}

/// Columns, under [`HEADER`].
impl fmt::Display for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.memory / 1024;
        write!(
            f,
            "{megabytes:>6} MiB {:>6} {:>7} {:>6}",
            self.descriptors, self.threads, self.tasks
        )
    }
}

pub const HEADER: &str = "    memory  files threads  tasks";

/// How many files and sockets a process has open.
pub fn descriptors(id: u32) -> u64 {
    fs::read_dir(format!("/proc/{id}/fd")).map_or(0, |files| files.count() as u64)
}

/// The processor time that a process has taken.
pub fn cpu_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // Behind the name, which may have blanks: the 12th and 13th, in hundredths of a second (USER_HZ, the same everywhere).
    let figures = stat.rsplit(')').next().unwrap_or_default();
    let times = figures.split_whitespace().skip(11).take(2);
    let hundredths: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * hundredths)
}

/// A whole figure of `/metrics` that has no labels; 0 where there is none.
pub async fn figure(gateway: &Process, name: &str) -> u64 {
    let exposed = get(&gateway.address(), "/metrics").await;
    let exposed = exposed.unwrap_or_default();
    let value = exposed
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}
