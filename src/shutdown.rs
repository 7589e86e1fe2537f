//! When the process is told to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes at SIGTERM (orchestrators) or SIGINT (Ctrl-C).
pub async fn requested() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
