//! What the gateway sees when it looks around.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    broker::{
        Broker, Links,
        admin::{Node, QueueInfo},
    },
    failure::Time,
    gateway::{failed::FailedMessages, queue_admin::QueueAdmin},
    store::Store,
};

/// One look. What could not be seen is `None`.
#[derive(Clone, Debug)]
pub struct Observation {
    pub now: Time,
    pub links: Links,
    pub queues: Option<Vec<QueueInfo>>,
    /// How long it took to list them.
    pub listing: Option<Duration>,
    /// Empty where nobody tells.
    pub nodes: Vec<Node>,
    pub database_up: bool,
    /// Messages that failed for the first time.
    pub failed_last_minute: Option<u64>,
    /// How long ago the oldest one that is not resolved failed; the inner `None`: there is none.
    pub oldest_failed: Option<Option<Duration>>,
}

/// What it looks with.
pub struct Eyes {
    pub broker: Arc<dyn Broker>,
    pub store: Store,
    pub queues: QueueAdmin,
    pub failed: FailedMessages,
}

impl Eyes {
    pub async fn look(&self) -> Observation {
        let links = *self.broker.links().borrow();
        let listing = async {
            let begun = Instant::now();
            let listed = self.queues.all_queues().await.ok()?;
            Some((listed.found, begun.elapsed()))
        };
        let (listed, status, failed) =
            tokio::join!(listing, self.broker.admin().status(), self.failed.recent(),);
        let failed = failed.ok();
        let (queues, listing) = listed.unzip();
        Observation {
            now: chrono::Utc::now(),
            links,
            queues,
            listing,
            nodes: status.nodes,
            database_up: self.store.is_up(),
            failed_last_minute: failed.map(|failed| failed.last_minute),
            oldest_failed: failed.map(|failed| failed.oldest_age),
        }
    }
}
