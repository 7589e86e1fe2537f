//! Looking at messages: they are fetched and returned, and none dies of it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Error, QueueAdmin, fetchable, moving::copy_of, not_fetched, own_queue};
use crate::{
    broker::{self, Delivery, Fate, LinkState, Tag, admin::QueueInfo, topology::QueueKind},
    finish::to_the_end,
    gateway::validate::Invalid,
    message::{Value, header},
};

/// Messages of one look.
pub const MAX_PEEKED: usize = 100;
/// Payloads of one look, unless the first message alone is larger: what clients receive by custom is 4 MiB.
const MAX_BYTES: usize = 3 * 1024 * 1024;
/// How long a fresh copy may take to be confirmed.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);
/// Returns that are safe in a quorum queue that names no limit: RabbitMQ 4's own is 20
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
const SAFE_RETURNS: i64 = 15;
/// Returns that are safe where nobody tells of what type a queue is. The first return must be risked, or each look at a classic
/// queue would change its order.
const RISKED_RETURNS: i64 = 1;

impl QueueAdmin {
    /// The first messages of a queue. Goes on to its end when the caller goes away: what is fetched is returned.
    pub async fn peek(&self, queue: &str, limit: usize) -> Result<Vec<Delivery>, Error> {
        own_queue("queue", queue)?;
        if !(1..=MAX_PEEKED).contains(&limit) {
            let problem = format!("must be from 1 to {MAX_PEEKED}");
            return Err(Invalid::field("limit", problem).into());
        }
        let (admin, queue) = (self.clone(), queue.to_owned());
        to_the_end(async move { admin.peek_now(&queue, limit).await }).await
    }

    async fn peek_now(&self, queue: &str, limit: usize) -> Result<Vec<Delivery>, Error> {
        let admin = self.broker.admin();
        let info = admin.queue(queue).await?;
        fetchable(&info)?;
        // Fresh copies may be needed.
        let publish = self.broker.links().borrow().publish;
        match publish {
            LinkState::Up => {}
            LinkState::Down | LinkState::Failing => return Err(broker::Error::Down.into()),
            LinkState::Blocked => return Err(broker::Error::Blocked.into()),
        }
        let mut fetch = admin.fetch(queue).await?;
        let (mut seen, mut bytes) = (Vec::new(), 0);
        let mut worn: Vec<Tag> = Vec::new();
        // Not more than there are now: fresh copies come last, and would be looked at again.
        // One at least: a queue whose leader is busy says that it has none, and so does a stream.
        let most = info.ready.map_or(limit, |ready| {
            usize::try_from(ready.max(1)).unwrap_or(limit)
        });
        let outcome = loop {
            if seen.len() >= limit.min(most) || bytes >= MAX_BYTES {
                break Ok(());
            }
            let delivery = match fetch.next().await {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break Ok(()),
                Err(error) => break Err(not_fetched(error)),
            };
            bytes += delivery.message.payload.len();
            if !seen.is_empty() && bytes > MAX_BYTES {
                break Ok(());
            }
            if may_not_return(&info, &delivery) {
                match self.replace(queue, &delivery).await {
                    Fate::Confirmed => worn.push(delivery.tag),
                    // It is returned as it is, and nothing more is risked.
                    fate => break Err(Error::NotMoved(fate)),
                }
            }
            seen.push(delivery);
        };
        let acked = fetch.ack(&worn).await;
        // What is not acked for sure may be there twice, and never less than once.
        let closed = fetch.close().await;
        let acked = acked.and(if worn.is_empty() { Ok(()) } else { closed });
        outcome.and(acked.map_err(Error::from)).map(|()| seen)
    }

    /// Publishes a fresh copy of a message to its own queue.
    async fn replace(&self, queue: &str, delivery: &Delivery) -> Fate {
        let deadline = Instant::now() + COPY_TIMEOUT;
        self.publish_copy(self.broker.lane(), queue, copy_of(delivery), deadline)
            .await
    }
}

/// Whether one more return might be one too many.
fn may_not_return(queue: &QueueInfo, delivery: &Delivery) -> bool {
    let most = match &queue.kind {
        None => RISKED_RETURNS,
        Some(kind) if *kind == QueueKind::Quorum.to_string() => {
            queue.delivery_limit.map_or(SAFE_RETURNS, i64::from)
        }
        Some(_) => return false,
    };
    let returns = delivery.message.headers.get(header::DELIVERY_COUNT);
    returns.and_then(Value::as_integer).unwrap_or(0) >= most
}
