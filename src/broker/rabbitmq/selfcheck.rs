//! Whether a link does its work, and not only stands: it is asked, again and again, for something whose answer is known.
//!
//! A connection can stand and be of no use: the client library or the broker may answer nonsense, or nothing, on every fresh channel.
//! Nothing else would notice, since each caller is told a reason that sounds like its own fault.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{channel, link::Up};
use crate::broker::Error;

const INTERVAL: Duration = Duration::from_secs(5);
/// A busy broker may take its time; one that hangs is found out by its heartbeat.
const TIMEOUT: Duration = Duration::from_secs(10);
/// One failure may be the broker's bad moment.
const FAILING_FROM: u32 = 2;
/// Every AMQP broker has it, and looking at it needs no permission.
const KNOWN_EXCHANGE: &str = "amq.direct";

/// How often in a row the answer was not the known one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures(u32);

impl Failures {
    pub(super) fn is_failing(self) -> bool {
        self.0 >= FAILING_FROM
    }

    /// Whether a fresh connection is worth a try: ever less often.
    pub(super) fn renews(self) -> bool {
        self.0.is_power_of_two()
    }

    pub(super) fn count(&mut self, answer: &Result<(), String>) {
        self.0 = if answer.is_ok() { 0 } else { self.0 + 1 };
    }
}

/// Rests, and asks once. The error is for people.
pub(super) async fn next_answer(up: Up) -> Result<(), String> {
    sleep(INTERVAL).await;
    // Nothing is answered while the broker blocks.
    if up.blocked {
        return Ok(());
    }
    match timeout(TIMEOUT, ask(up)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

async fn ask(up: Up) -> Result<(), Error> {
    channel::to_the_end(async move {
        let asking = async {
            let channel = channel::open(&up).await?;
            channel::see_exchange(&channel, KNOWN_EXCHANGE).await?;
            let _ = channel.close(200, "seen".into()).await;
            Ok(())
        };
        up.while_up(asking).await
    })
    .await
}
