//! A consumer's handle.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};

use super::{Shared, consume::Settle, subscriber::Taken};
use crate::{
    broker::{Delivery, Ended, Error, Subscribe, Subscription, Tag},
    message::{Value, header},
};

pub(super) struct MemorySubscription {
    shared: Arc<Shared>,
    id: u64,
    /// Rings for each delivery and for the end. A ring that nobody waits for is kept.
    wake: Arc<Notify>,
}

impl MemorySubscription {
    pub(super) fn start(shared: &Arc<Shared>, subscribe: &Subscribe) -> Result<Self, Error> {
        let wake = Arc::new(Notify::new());
        let id = shared.lock().subscribe(subscribe, &wake, Instant::now())?;
        Ok(Self {
            shared: shared.clone(),
            id,
            wake,
        })
    }

    fn settle(&self, tags: &[Tag], how: Settle) -> Result<(), Ended> {
        let now = Instant::now();
        self.shared.lock().settle(self.id, tags, how, now)
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Delivery, Ended> {
        // A full queue would never let a consumer wait, nor its neighbours on the same thread run.
        tokio::task::coop::consume_budget().await;
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            self.wake.notified().await;
        }
    }

    fn try_next(&mut self) -> Option<Result<Delivery, Ended>> {
        let taken = self.shared.lock().take(self.id)?;
        // The message is copied only here, without the lock.
        Some(taken.map(delivery))
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        self.settle(tags, Settle::Ack)
    }

    async fn requeue(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        self.settle(tags, Settle::Requeue)
    }

    async fn stop(&mut self) {
        self.shared.lock().stop(self.id, Instant::now());
    }

    async fn close(self: Box<Self>) {
        // Dropping it is all there is to do.
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.shared.lock().leave(self.id, Instant::now());
    }
}

/// As consumers get it.
pub(super) fn delivery(taken: Taken) -> Delivery {
    let mut message = taken.envelope.message.clone();
    if taken.returns > 0 {
        let count = Value::I64(taken.returns.into());
        message
            .headers
            .insert(header::DELIVERY_COUNT.to_owned(), count);
    }
    Delivery {
        tag: taken.tag,
        queue: taken.feed,
        exchange: taken.envelope.exchange.clone(),
        routing_key: taken.envelope.routing_key.clone(),
        redelivered: taken.redelivered,
        message,
    }
}
