//! Behind everybody's back: writes the buffer down, forgets what is old, and says when something was dropped.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Options, buffer::Buffer};
use crate::store::{Error, Event, Store};

/// How soon a database that is away or busy is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is said, at most, that something was dropped.
const WARN: Duration = Duration::from_secs(10);
/// Between two steps of forgetting, so that others come to their turn.
const PAUSE: Duration = Duration::from_millis(50);
/// How often at most, and after which part of what it may take was written, the log's size is looked at between two sweeps.
const LOOK: Duration = Duration::from_secs(1);
const PART: u64 = 20;
/// Steps of forgetting after which the size is looked at again: other replicas forget, too.
const STEPS: usize = 20;

/// Starts all of it; ends at `stop`, after what still waits is written.
pub(super) fn start(
    store: Store,
    buffer: Arc<Buffer>,
    options: Options,
    stop: CancellationToken,
    tasks: &TaskTracker,
) {
    let writer = Writer {
        store: store.clone(),
        buffer: buffer.clone(),
        pace: options.pace,
        stop: stop.clone(),
    };
    tasks.spawn(writer.run());
    let forgetting = forget(store, buffer.clone(), options);
    tasks.spawn(stop.clone().run_until_cancelled_owned(forgetting));
    tasks.spawn(stop.run_until_cancelled_owned(warn(buffer)));
}

struct Writer {
    store: Store,
    buffer: Arc<Buffer>,
    pace: Duration,
    stop: CancellationToken,
}

impl Writer {
    async fn run(self) {
        loop {
            if self.buffer.len() == 0 {
                if self.stop.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = self.buffer.filled.notified() => {}
                    () = self.stop.cancelled() => {}
                }
                continue;
            }
            // A transaction costs the same for one event as for many.
            if !self.buffer.is_due() {
                tokio::select! {
                    () = sleep(self.pace) => {}
                    () = self.buffer.filled.notified() => {}
                    () = self.stop.cancelled() => {}
                }
            }
            self.write(&self.buffer.take()).await;
        }
    }

    /// Writes a batch down, however long the database is away; what it refuses is found and left out.
    async fn write(&self, batch: &[Event]) {
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            match self.store.log(part).await {
                Ok(()) => self.buffer.count_written(part),
                Err(error) if error.passes() => {
                    parts.push(part);
                    if !self.wait().await {
                        let lost = parts.iter().map(|part| part.len()).sum();
                        return self.buffer.drop_some(lost);
                    }
                }
                Err(_) if part.len() <= 1 => self.buffer.drop_some(part.len()),
                Err(_) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
    }

    /// Waits for the database. `false`: the gateway stops, which does not wait for it.
    async fn wait(&self) -> bool {
        let mut presence = self.store.watch();
        let back = async {
            sleep(AGAIN).await;
            presence.up().await
        };
        self.stop.run_until_cancelled(back).await == Some(true)
    }
}

async fn forget(store: Store, buffer: Arc<Buffer>, options: Options) {
    let mut presence = store.watch();
    loop {
        // Not all replicas at the same time.
        let sweep = options.sweep.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            () = sleep(sweep) => {}
            () = much_written(&buffer, options.max_bytes) => {}
        }
        if !presence.up().await {
            return;
        }
        let mut forgotten = forget_old(&store, options.retention).await;
        if let (Ok(()), Some(most)) = (&forgotten, options.max_bytes) {
            forgotten = forget_more_than(&store, most).await;
        }
        if let Err(error) = forgotten {
            tracing::debug!(%error, "cannot forget old entries of the message log now");
        }
    }
}

/// Waits until a good part of what the log may take was written.
async fn much_written(buffer: &Buffer, most: Option<u64>) {
    let Some(most) = most else {
        return std::future::pending().await;
    };
    let before = buffer.written();
    loop {
        sleep(LOOK).await;
        if buffer.written() - before > most / PART {
            return;
        }
    }
}

async fn forget_old(store: &Store, retention: Duration) -> Result<(), Error> {
    while store.forget_log(retention).await?.rows > 0 {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Forgets the oldest until the log takes no more than this.
async fn forget_more_than(store: &Store, most: u64) -> Result<(), Error> {
    loop {
        let mut bytes = store.log_bytes().await?;
        if bytes <= most {
            return Ok(());
        }
        for _ in 0..STEPS {
            let forgotten = store.forget_oldest().await?;
            bytes = bytes.saturating_sub(forgotten.bytes);
            if forgotten.rows == 0 {
                return Ok(());
            }
            sleep(PAUSE).await;
            if bytes <= most {
                break;
            }
        }
    }
}

async fn warn(buffer: Arc<Buffer>) {
    let mut told = 0;
    loop {
        sleep(WARN).await;
        let dropped = buffer.dropped();
        if dropped > told {
            tracing::warn!(
                dropped = dropped - told,
                "the database does not keep up with the message log; it misses events (AUDIT_LOG=off switches it off)"
            );
            told = dropped;
        }
    }
}
