//! The kernel's killer, played by the test: ends the process when it takes more memory than it may have, as a container's limit would.
//! It needs no rights and no control group, and it keeps a bomb from the machine.

use std::{
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::vitals::descriptors;

/// KiB that the process may have.
pub const BUDGET: u64 = 512 * 1024;

pub struct Warden {
    seen: Arc<Seen>,
    watching: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    peak: AtomicU64,
    files: AtomicU64,
    killed: AtomicBool,
    over: AtomicBool,
}

impl Warden {
    pub fn watch(process: u32) -> Self {
        let seen = Arc::new(Seen::default());
        let watching = thread::spawn({
            let seen = seen.clone();
            move || {
                while !seen.over.load(Relaxed) && !seen.killed.load(Relaxed) {
                    seen.look(process);
                    thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self {
            seen,
            watching: Some(watching),
        }
    }

    /// The most memory so far, in KiB.
    pub fn peak(&self) -> u64 {
        self.seen.peak.load(Relaxed)
    }

    /// The most files and sockets so far.
    pub fn files(&self) -> u64 {
        self.seen.files.load(Relaxed)
    }

    pub fn killed(&self) -> bool {
        self.seen.killed.load(Relaxed)
    }
}

impl Seen {
    fn look(&self, process: u32) {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        // The kernel's own record: it also has what was between two looks.
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix("kB")?.trim().parse().ok());
        self.peak.fetch_max(peak.unwrap_or(0), Relaxed);
        self.files.fetch_max(descriptors(process), Relaxed);
        if self.peak.load(Relaxed) > BUDGET {
            self.killed.store(true, Relaxed);
            let mut kill = Command::new("kill");
            let _ = kill.args(["-s", "KILL", &process.to_string()]).status();
        }
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.seen.over.store(true, Relaxed);
        if let Some(watching) = self.watching.take() {
            let _ = watching.join();
        }
        if thread::panicking() && self.killed() {
            // Whatever the test says failed: this is why.
            eprintln!("the gateway was killed: it took {} MiB", self.peak() / 1024);
        }
    }
}
