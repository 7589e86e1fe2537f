//! What the gateway sees when it looks around.

use std::{sync::Arc, time::Duration};

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
        let (queues, status, failed) = tokio::join!(
            self.queues.all_queues(),
            self.broker.admin().status(),
            self.failed.recent(),
        );
        let failed = failed.ok();
        Observation {
            now: chrono::Utc::now(),
            links,
            queues: queues.ok().map(|answer| answer.found),
            nodes: status.nodes,
            database_up: self.store.is_up(),
            failed_last_minute: failed.map(|failed| failed.last_minute),
            oldest_failed: failed.map(|failed| failed.oldest_age),
        }
    }
}
