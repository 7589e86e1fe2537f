//! Moves refused deliveries to their queues' dead-letter queues: the copy is confirmed before the original is acked.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use crate::{
    broker::{
        Broker, Fate, Publish,
        topology::{Queue, TEMPORARY, Topology, dead_letter_queue},
    },
    gateway::{Parts, failed_messages::Collectors, queue_admin::QueueAdmin},
    message::Message,
};

/// How long a copy may take to be confirmed.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// The copy is not confirmed; the original must stay.
#[derive(Debug, thiserror::Error)]
#[error("the dead-letter copy is not confirmed: {0:?}")]
pub struct NotStored(Fate);

/// The one who moves them.
#[derive(Clone)]
pub struct DeadLetters {
    broker: Arc<dyn Broker>,
    collectors: Collectors,
    queues: QueueAdmin,
    /// How long they wait in queues that are made here.
    ttl: Duration,
    /// Held while a missing dead-letter queue is made.
    making: Arc<Mutex<()>>,
}

impl DeadLetters {
    pub(super) fn new(parts: &Parts, ttl: Duration) -> Self {
        Self {
            broker: parts.broker.clone(),
            collectors: parts.failed_messages.collectors.clone(),
            queues: parts.queue_admin.clone(),
            ttl,
            making: Arc::default(),
        }
    }

    /// Stores a copy of a delivery from `queue` in `<queue>.dlq`, and sees to it that it is collected from there. Makes that
    /// queue if it is missing; temporary queues share one.
    pub(super) async fn add(&self, queue: String, copy: Message) -> Result<(), NotStored> {
        let collected = self.store_copy(&queue, copy).await?;
        // Not before: to consume a quorum queue that is just being made crashes RabbitMQ 3.10's channel, and ends the connection.
        self.collectors.ensure(collected);
        Ok(())
    }

    /// Answers whose dead-letter queue has it.
    async fn store_copy<'a>(&self, queue: &'a str, copy: Message) -> Result<&'a str, NotStored> {
        let target = dead_letter_queue(queue);
        match self.store(&target, copy.clone()).await {
            Fate::Unroutable => {}
            fate => return confirmed(fate).map(|()| queue),
        }
        let (queue, target) = match self.queues.is_temporary(queue).await {
            true => (TEMPORARY, dead_letter_queue(TEMPORARY)),
            false => (queue, target),
        };
        self.store_or_make(target, copy).await.map(|()| queue)
    }

    async fn store_or_make(&self, target: String, copy: Message) -> Result<(), NotStored> {
        // One at a time: of two at once, RabbitMQ tells the second that a quorum queue exists before it takes messages.
        let _making = self.making.lock().await;
        match self.store(&target, copy.clone()).await {
            Fate::Unroutable => {}
            fate => return confirmed(fate),
        }
        let missing = Topology {
            queues: vec![Queue::dead_letters(&target, self.ttl)],
            ..Topology::default()
        };
        match self.broker.declare(&missing).await {
            Ok(_) => tracing::info!(queue = target, "made a missing dead-letter queue"),
            Err(error) => {
                tracing::warn!(queue = target, %error, "cannot make a missing dead-letter queue");
                return Err(NotStored(Fate::Unroutable));
            }
        }
        confirmed(self.store(&target, copy).await)
    }

    async fn store(&self, queue: &str, message: Message) -> Fate {
        let publish = Publish::to_queue(queue, message, Instant::now() + COPY_TIMEOUT);
        let lane = self.broker.lane();
        self.broker.publish_and_wait(lane, publish, None).await
    }
}

fn confirmed(fate: Fate) -> Result<(), NotStored> {
    match fate {
        Fate::Confirmed => Ok(()),
        fate => Err(NotStored(fate)),
    }
}
