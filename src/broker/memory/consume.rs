//! Subscriptions come, settle and go.

use std::sync::Arc;

use tokio::{sync::Notify, time::Instant};

use super::{
    death,
    queue::Consumer,
    state::State,
    subscriber::{Subscriber, Taken},
};
use crate::broker::{Ended, Entity, Error, Subscribe, Tag};

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    Ack,
    Requeue,
}

impl State {
    /// Adds a subscriber and hands it what it has credit for. Answers its id.
    pub(super) fn subscribe(
        &mut self,
        subscribe: &Subscribe,
        wake: &Arc<Notify>,
        now: Instant,
    ) -> Result<u64, Error> {
        if self.closed {
            return Err(Error::Down);
        }
        let find = |name: &String| match self.queues.get_key_value(name.as_str()) {
            Some((name, _)) if subscribe.offset.is_some() => Err(Error::NotAStream {
                name: name.to_string(),
            }),
            Some((name, _)) => Ok(name.clone()),
            None => Err(Error::NotFound {
                what: Entity::Queue,
                name: name.clone(),
            }),
        };
        let queues: Vec<Arc<str>> = subscribe
            .queues
            .iter()
            .map(find)
            .collect::<Result<_, _>>()?;
        self.last_subscriber += 1;
        let id = self.last_subscriber;
        let (prefetch, priority) = (subscribe.prefetch, subscribe.priority);
        let subscriber = Subscriber::new(queues.clone(), prefetch, priority, wake.clone());
        self.subscribers.insert(id, subscriber);
        for (index, name) in queues.iter().enumerate() {
            if let Some(queue) = self.queues.get_mut(name) {
                queue.join();
                queue.wait(Consumer {
                    subscriber: id,
                    queue: index,
                    priority,
                });
            }
            self.serve(name, now);
        }
        self.bury(now);
        Ok(id)
    }

    /// A delivery that was handed to the subscriber, or why there will be none.
    pub(super) fn take(&mut self, id: u64) -> Option<Result<Taken, Ended>> {
        self.subscribers.get_mut(&id)?.take()
    }

    /// Settles deliveries for a subscriber. After the deletion of one of its queues it may still settle the others'.
    pub(super) fn settle(
        &mut self,
        id: u64,
        tags: &[Tag],
        how: Settle,
        now: Instant,
    ) -> Result<(), Ended> {
        if self.closed {
            return Err(Ended::BrokerDown);
        }
        self.release(id, tags, how, now);
        Ok(())
    }

    fn release(&mut self, id: u64, tags: &[Tag], how: Settle, now: Instant) {
        let Some(subscriber) = self.subscribers.get_mut(&id) else {
            return;
        };
        let mut touched: Vec<Arc<str>> = Vec::new();
        for tag in tags {
            let Some(released) = subscriber.release(*tag) else {
                continue;
            };
            let name = &subscriber.feeds[released.feed].queue;
            let Some(queue) = self.queues.get_mut(name) else {
                continue;
            };
            if released.credit_is_back {
                queue.wait(Consumer {
                    subscriber: id,
                    queue: released.feed,
                    priority: subscriber.priority,
                });
            }
            match how {
                Settle::Ack => queue.acked += 1,
                Settle::Requeue => self
                    .dead
                    .extend(death::returned(queue, name, released.entry)),
            }
            if touched.last() != Some(name) {
                touched.push(name.clone());
            }
        }
        // Only now: what is requeued together is handed out again in its old order.
        for name in touched {
            self.serve(&name, now);
        }
        self.bury(now);
    }

    /// Hands nothing more to a subscriber, and returns what it has not taken.
    pub(super) fn stop(&mut self, id: u64, now: Instant) {
        let orphans = self.withdraw(id, now);
        let subscriber = self.subscribers.get_mut(&id);
        let unread = subscriber.map(Subscriber::unread).unwrap_or_default();
        self.release(id, &unread, Settle::Requeue, now);
        self.delete_queues(&orphans, now);
    }

    /// Removes a subscriber and returns everything unsettled.
    pub(super) fn leave(&mut self, id: u64, now: Instant) {
        let orphans = self.withdraw(id, now);
        self.return_all(id, now);
        self.subscribers.remove(&id);
        self.delete_queues(&orphans, now);
    }

    fn delete_queues(&mut self, names: &[Arc<str>], now: Instant) {
        for name in names {
            self.delete_queue(name, now);
        }
    }

    /// Deletes a queue with all that is in it, and ends the subscriptions to it.
    pub(super) fn delete_queue(&mut self, name: &str, now: Instant) -> bool {
        if self.queues.remove(name).is_none() {
            return false;
        }
        for exchange in self.exchanges.values_mut() {
            exchange.unbind(name);
        }
        let ended: Vec<(u64, usize)> = self
            .subscribers
            .iter_mut()
            .filter_map(|(id, subscriber)| Some((*id, subscriber.forget(name)?)))
            .collect();
        for (id, index) in ended {
            self.stop(id, now);
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.end(Ended::QueueDeleted(index));
            }
        }
        true
    }

    /// Ends every subscription; what they held is back in its queue.
    pub(super) fn close(&mut self, now: Instant) {
        self.closed = true;
        let ids: Vec<u64> = self.subscribers.keys().copied().collect();
        // All withdraw first, so that none is handed what another returns.
        for id in &ids {
            self.withdraw(*id, now);
        }
        for id in ids {
            self.return_all(id, now);
            if let Some(subscriber) = self.subscribers.get_mut(&id) {
                subscriber.end(Ended::BrokerDown);
            }
        }
    }

    /// Hands it nothing more. Answers the queues that go with it.
    fn withdraw(&mut self, id: u64, now: Instant) -> Vec<Arc<str>> {
        let mut orphans = Vec::new();
        let Some(subscriber) = self.subscribers.get_mut(&id) else {
            return orphans;
        };
        if std::mem::replace(&mut subscriber.stopped, true) {
            return orphans;
        }
        let names: Vec<_> = subscriber
            .feeds
            .iter()
            .map(|feed| feed.queue.clone())
            .collect();
        for name in names {
            if let Some(queue) = self.queues.get_mut(&name) {
                queue.waiting.retain(|consumer| consumer.subscriber != id);
                if queue.leave(now) {
                    orphans.push(name);
                } else {
                    self.watch_end(&name);
                }
            }
        }
        orphans
    }

    fn return_all(&mut self, id: u64, now: Instant) {
        let subscriber = self.subscribers.get(&id);
        let unsettled = subscriber.map(Subscriber::unsettled).unwrap_or_default();
        self.release(id, &unsettled, Settle::Requeue, now);
    }
}
