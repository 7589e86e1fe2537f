//! What goes with a queue: its dead-letter queue, if nothing is in it.

use std::time::Duration;

use tokio::time::Instant;

use super::QueueAdmin;
use crate::broker::{
    self,
    admin::{OnlyIf, QueueInfo},
    topology::dead_letter_queue,
};

/// How old RabbitMQ's count of what consumers hold may be, and a second (<https://www.rabbitmq.com/docs/management#statistics-interval>).
const STATISTICS: Duration = Duration::from_secs(6);

/// How long until a queue that still has consumers is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A queue that was deleted.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// Messages that went with it.
    pub messages: u64,
    /// Whether there was a dead-letter queue, which is deleted; or why it was not. `None`: it was not asked for.
    pub dead_letters: Option<Result<bool, Kept>>,
}

/// Why a dead-letter queue was not deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Kept {
    #[error("dead letters are in it; it is collected from as before")]
    NotEmpty,
    /// Others consume from it, and may hold messages of it.
    #[error(
        "somebody else consumes from it, and may hold messages of it (without RabbitMQ's management API nobody counts them)"
    )]
    InUse,
    #[error("the broker did not delete it: {0}")]
    NotDeleted(broker::Error),
}

impl QueueAdmin {
    /// Deletes the dead-letter queue of `queue` if nothing is in it; whether there was one. Nothing enters it any more: `queue` is gone.
    pub(super) async fn delete_dead_letter_queue(&self, queue: &str) -> Result<bool, Kept> {
        let name = dead_letter_queue(queue);
        // What the own collector holds is back in the queue, or stored, before it is looked at.
        let collector = self.failed.collectors.pause(queue).await;
        let deleted = self.delete_if_empty(&name).await;
        if let (Ok(_), Some(collector)) = (&deleted, collector) {
            self.known.forget_queue(&name);
            collector.end().await;
        }
        deleted
    }

    async fn delete_if_empty(&self, name: &str) -> Result<bool, Kept> {
        // A consumer that was just cancelled is counted a moment longer. Other gateways consume from it as well: what they hold would be
        // lost with it if they could not store it.
        let counted_by = Instant::now() + STATISTICS;
        loop {
            let Some(found) = self.look_into(name).await? else {
                return Ok(false);
            };
            if found.consumers == Some(0) {
                break;
            }
            if counted_by <= Instant::now() {
                match found.unacked {
                    Some(_) => break,
                    None => return Err(Kept::InUse),
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let admin = self.broker.admin();
        let only = OnlyIf {
            unused: false,
            empty: true,
        };
        match admin.delete_queue(name, only).await {
            Ok(_) => Ok(true),
            Err(broker::Error::NotFound { .. }) => Ok(false),
            Err(broker::Error::NotEmpty { .. } | broker::Error::InUse { .. }) => {
                Err(Kept::NotEmpty)
            }
            Err(error) => Err(Kept::NotDeleted(error)),
        }
    }

    /// A queue in which nothing is, as far as anybody tells. `None`: it does not exist.
    async fn look_into(&self, name: &str) -> Result<Option<QueueInfo>, Kept> {
        match self.broker.admin().queue(name).await {
            Ok(found) if found.ready > Some(0) || found.unacked > Some(0) => Err(Kept::NotEmpty),
            Ok(found) => Ok(Some(found)),
            Err(broker::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Kept::NotDeleted(error)),
        }
    }
}
