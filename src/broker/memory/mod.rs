//! The embedded broker: RabbitMQ's semantics within this process, for tests and for a first look without RabbitMQ.
//!
//! It keeps nothing after the process ends, whatever was confirmed. Until then it promises what RabbitMQ 3.10 does:
//! the default, direct, topic, fanout and headers exchanges; queues with priorities, time to live of queues and
//! messages, queues that go when nobody uses them (expiry, auto-delete), the delivery limit of quorum queues, dead-lettering of what died of either, and a maximum length that refuses
//! publishes; prefetch, redelivery in the old place, and turns among the consumers of one queue. `tests/it/contract/` holds both brokers to it.
//!
//! It differs in this: quorum and classic queues are the same thing but for the delivery limit; arguments of queues that it does not know
//! are refused; the default exchange is the only one that it predeclares; `CC` and `BCC` headers route nothing; memory is bounded by the queues' own limits only.

mod admin;
mod consume;
mod death;
mod declare;
mod exchange;
mod fetch;
mod headers;
mod queue;
mod state;
mod subscriber;
mod subscription;
mod timer;
mod topic;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use self::{queue::Envelope, state::State, subscription::MemorySubscription, timer::Alarm};
use super::{
    Broker, Checked, Entity, Error, Fate, Lane, LinkState, Links, NotSent, Publish, PublishReply,
    Subscribe, Subscription, Target,
    admin::Admin,
    topology::{Difference, Topology},
};
use crate::message::{Value, header};

/// See the [module](self).
pub struct MemoryBroker {
    shared: Arc<Shared>,
    links: watch::Sender<Links>,
    _timer: AbortOnDropHandle<()>,
}

/// What the broker, its subscriptions and its timer share. The lock is never held across an await.
struct Shared(Mutex<State>);

impl Shared {
    /// A panic under the lock leaves at worst one message in the wrong place; to refuse all others would be worse.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryBroker {
    /// An empty broker. Call it within a tokio runtime: its timer runs there.
    pub fn new() -> Arc<Self> {
        let moved = Arc::new(Notify::new());
        let state = State::new(Alarm::new(moved.clone()));
        let shared = Arc::new(Shared(Mutex::new(state)));
        let timer = tokio::spawn(timer::run(shared.clone(), moved));
        Arc::new(Self {
            shared,
            links: watch::Sender::new(links(LinkState::Up)),
            _timer: AbortOnDropHandle::new(timer),
        })
    }

    /// Deletes a queue with all that is in it; subscriptions to it end. Answers whether it existed.
    pub fn delete_queue(&self, name: &str) -> bool {
        self.shared.lock().delete_queue(name, Instant::now())
    }

    /// How many messages are ready in a queue, not counting what consumers hold. `None` without such a queue.
    pub fn queue_depth(&self, name: &str) -> Option<usize> {
        let mut state = self.shared.lock();
        state.expire(Instant::now());
        state.queues.get(name).map(|queue| queue.depth())
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn check(&self, target: Target<'_>, _deadline: Instant) -> Result<Checked, Error> {
        let state = self.shared.lock();
        if state.closed {
            return Err(Error::Down);
        }
        let exchange = target.exchange;
        if !exchange.is_empty() && !state.exchanges.contains_key(exchange) {
            return Err(Error::NotFound {
                what: Entity::Exchange,
                name: exchange.to_owned(),
            });
        }
        Ok(Checked(1))
    }

    /// Every publish is stored before the next one, so that one lane is as good as another.
    fn lane(&self) -> Lane {
        Lane(0)
    }

    /// Answers before it returns. Admission ends here too: what a queue holds is the broker's, not on its way to it.
    fn publish(&self, _lane: Lane, publish: Publish, mut reply: PublishReply) {
        let now = Instant::now();
        if publish.deadline <= now {
            return reply.answer(Fate::NotSent(NotSent::Overloaded));
        }
        let mut message = publish.message;
        let publish_id = Value::text(publish.publish_id.to_string());
        message
            .headers
            .insert(header::PUBLISH_ID.to_owned(), publish_id);
        let envelope = Arc::new(Envelope {
            exchange: publish.exchange,
            routing_key: publish.routing_key,
            message,
        });
        reply.handed_over();
        let fate = self
            .shared
            .lock()
            .publish(&envelope, publish.mandatory, now);
        reply.answer(fate);
    }

    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error> {
        let subscription = MemorySubscription::start(&self.shared, &subscribe)?;
        Ok(Box::new(subscription))
    }

    async fn declare(&self, topology: &Topology) -> Result<Vec<Difference>, Error> {
        self.shared.lock().declare(topology, Instant::now())
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn links(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    async fn close(&self) {
        self.shared.lock().close(Instant::now());
        self.links.send_replace(links(LinkState::Down));
    }
}

/// Nobody can publish any more, so nobody need wait for deliveries.
impl Drop for MemoryBroker {
    fn drop(&mut self) {
        self.shared.lock().close(Instant::now());
    }
}

fn links(state: LinkState) -> Links {
    Links {
        publish: state,
        consume: state,
    }
}

#[cfg(test)]
mod tests;
