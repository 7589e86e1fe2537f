//! When the process is told to stop.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Completes at SIGTERM (orchestrators), SIGINT (Ctrl-C) or SIGHUP (the terminal or its connection is gone).
pub async fn requested() -> std::io::Result<()> {
    Signals::listen()?.first().await;
    Ok(())
}

/// The same; and a second SIGTERM or SIGINT cancels `cut`: whoever sends it does not want to wait.
pub async fn requested_then_cut(cut: CancellationToken) -> std::io::Result<()> {
    let mut signals = Signals::listen()?;
    signals.first().await;
    tokio::spawn(async move {
        signals.second().await;
        cut.cancel();
    });
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None`: whoever started the process had it ignored (`nohup`).
    hang_up: Option<Signal>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let hang_up = SignalKind::hangup();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: match is_ignored(hang_up) {
                true => None,
                false => Some(signal(hang_up)?),
            },
        })
    }

    async fn first(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hang_up => {}
        }
    }

    /// A terminal that goes away may send more than one SIGHUP, and asks for nothing.
    async fn second(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Whether a signal is ignored, as far as the system tells (Linux: `SigIgn` in
/// <https://man7.org/linux/man-pages/man5/proc_pid_status.5.html>).
fn is_ignored(kind: SignalKind) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (kind.as_raw_value() - 1)) != 0)
}
