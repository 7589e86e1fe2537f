//! What the gateway sees when it looks around.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    broker::{
        Broker, Links,
        admin::{Management, Node, QueueInfo},
    },
    failed_message::Time,
    gateway::{
        failed_messages::{FailedMessages, Standing},
        queue_admin::{Answer, QueueAdmin},
    },
    metrics::Metrics,
    store::{Store, Trouble},
};

/// How long a look waits for the database.
const DATABASE_PATIENCE: Duration = Duration::from_secs(5);

/// One look. What could not be seen is `None`.
#[derive(Clone, Debug)]
pub struct Observation {
    pub now: Time,
    pub links: Links,
    pub queues: Option<Vec<QueueInfo>>,
    /// There are no others, as far as this gateway can ever know.
    pub queues_are_all: bool,
    /// How long it took to list them.
    pub listing: Option<Duration>,
    pub nodes: Option<Vec<Node>>,
    /// `None`: it is there, and takes changes.
    pub database: Option<Trouble>,
    pub failed: Option<Standing>,
    /// Connections of clients that were refused since the last look.
    pub connections_refused: u64,
}

/// What it looks with.
pub struct Probes {
    pub broker: Arc<dyn Broker>,
    pub store: Store,
    pub queues: QueueAdmin,
    pub failed: FailedMessages,
    pub metrics: Metrics,
    /// How many connections were refused until the last look.
    pub refused_before: u64,
}

impl Probes {
    pub async fn look(&mut self) -> Observation {
        let links = *self.broker.links().borrow();
        let listing = async {
            let begun = Instant::now();
            let listed = self.queues.all_queues().await.ok()?;
            Some((listed, begun.elapsed()))
        };
        let (listed, status, failed) = tokio::join!(
            listing,
            self.broker.admin().status(),
            // A slow database is not to keep what the broker has to tell.
            timeout(DATABASE_PATIENCE, self.failed.standing())
        );
        let (listed, listing) = listed.unzip();
        let refused = self.metrics.connections_refused();
        let refused_before = std::mem::replace(&mut self.refused_before, refused);
        let partial = listed.as_ref().map(Answer::is_partial);
        Observation {
            now: chrono::Utc::now(),
            links,
            queues: listed.map(|listed| listed.found),
            listing,
            // Without the management API at all, what is known is all there ever is to know.
            queues_are_all: partial == Some(false) || status.management == Management::Off,
            // A cluster has at least one.
            nodes: Some(status.nodes).filter(|nodes| !nodes.is_empty()),
            database: self.store.trouble(),
            failed: failed.ok().and_then(Result::ok),
            connections_refused: refused.saturating_sub(refused_before),
        }
    }
}
