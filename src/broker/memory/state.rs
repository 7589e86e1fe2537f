//! All that the broker holds, and the way of a message through it: routed, queued, handed out, expired.
//!
//! One lock guards it. Nothing in here waits, and a message costs at most the logarithm of a queue's depth, so that
//! the lock is held for microseconds; only many messages that expire at once take longer.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use super::{
    death,
    exchange::Exchange,
    queue::{Consumer, Entry, Envelope, Queue},
    subscriber::Subscriber,
    timer::Alarm,
};
use crate::{
    broker::{Fate, NotSent, topology::ExchangeKind},
    names,
};

pub(super) struct State {
    pub(super) exchanges: HashMap<String, Exchange>,
    pub(super) queues: HashMap<Arc<str>, Queue>,
    pub(super) subscribers: HashMap<u64, Subscriber>,
    pub(super) last_subscriber: u64,
    pub(super) closed: bool,
    /// On their way to a dead-letter exchange; empty whenever the lock is free.
    pub(super) dead: VecDeque<Envelope>,
    alarm: Alarm,
}

fn standard_exchanges() -> HashMap<String, Exchange> {
    use ExchangeKind::{Direct, Fanout, Headers, Topic};
    let kinds = [Direct, Topic, Fanout, Headers, Headers].map(Exchange::new);
    let names = names::STANDARD_EXCHANGES.map(str::to_owned);
    names.into_iter().zip(kinds).collect()
}

impl State {
    pub(super) fn new(alarm: Alarm) -> Self {
        Self {
            exchanges: standard_exchanges(),
            queues: HashMap::new(),
            subscribers: HashMap::new(),
            last_subscriber: 0,
            closed: false,
            dead: VecDeque::new(),
            alarm,
        }
    }

    pub(super) fn publish(
        &mut self,
        envelope: &Arc<Envelope>,
        mandatory: bool,
        now: Instant,
    ) -> Fate {
        if self.closed {
            return Fate::NotSent(NotSent::BrokerDown);
        }
        let Some(queues) = self.route(envelope) else {
            // Whoever publishes asks `check` first. Here, to call it unroutable is all that is true: no queue
            // takes it and nothing was stored, mandatory or not; the broker is not down, and to try again is no use.
            return Fate::Unroutable;
        };
        if queues.is_empty() && mandatory {
            return Fate::Unroutable;
        }
        let mut fate = Fate::Confirmed;
        for queue in &queues {
            if !self.enqueue(queue, envelope, now) {
                fate = Fate::Rejected;
            }
        }
        self.bury(now);
        fate
    }

    /// The queues that a message goes to; `None` without an exchange.
    fn route(&self, envelope: &Envelope) -> Option<Vec<Arc<str>>> {
        let key = envelope.routing_key.as_str();
        if envelope.exchange.is_empty() {
            let queue = self.queues.get_key_value(key);
            return Some(queue.map(|(name, _)| name.clone()).into_iter().collect());
        }
        let exchange = self.exchanges.get(&envelope.exchange)?;
        Some(exchange.route(key, &envelope.message.headers))
    }

    /// Stores a message in a queue. Answers `false` when the queue is full.
    fn enqueue(&mut self, name: &str, envelope: &Arc<Envelope>, now: Instant) -> bool {
        // What has expired takes no room.
        self.serve(name, now);
        let Some(queue) = self.queues.get_mut(name) else {
            return false;
        };
        if queue.is_full() {
            return false;
        }
        queue.push(envelope.clone(), now);
        // A consumer that waits gets it even when it lives for 0 ms; nothing else is ready while one waits.
        if let Some(consumer) = queue.waiting.pop_front()
            && let Some(entry) = queue.pop()
        {
            hand(&mut self.subscribers, queue, consumer, entry);
        }
        self.serve(name, now);
        true
    }

    /// Brings a queue up to date: what has expired leaves it, and consumers with credit get what is ready, in turn.
    pub(super) fn serve(&mut self, name: &str, now: Instant) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        loop {
            while let Some(expired) = queue.pop_expired(now) {
                if let Some(to) = &queue.declared.dead_letter {
                    let letter = death::letter(&expired.envelope, name, death::EXPIRED, to);
                    self.dead.push_back(letter);
                }
            }
            if queue.depth() == 0 {
                return;
            }
            let Some(consumer) = queue.waiting.pop_front() else {
                break;
            };
            if let Some(entry) = queue.pop() {
                hand(&mut self.subscribers, queue, consumer, entry);
            }
        }
        if let Some(expiry) = queue.head_expiry() {
            self.alarm.set(expiry);
        }
    }

    /// Routes what has died. A dead letter is lost when its exchange is missing, no queue takes it or the queue is
    /// full: RabbitMQ's at-most-once strategy (<https://www.rabbitmq.com/docs/dlx#safety>).
    pub(super) fn bury(&mut self, now: Instant) {
        while let Some(letter) = self.dead.pop_front() {
            let letter = Arc::new(letter);
            for queue in self.route(&letter).unwrap_or_default() {
                if !death::is_loop(&letter.message.headers, &queue) {
                    self.enqueue(&queue, &letter, now);
                }
            }
        }
    }

    /// Takes the first message of a queue out, to be settled by [`give_back`](Self::give_back) or [`fetched`](Self::fetched).
    /// `None`: no such queue.
    pub(super) fn fetch(&mut self, name: &str, now: Instant) -> Option<Option<Entry>> {
        self.serve(name, now);
        self.bury(now);
        let queue = self.queues.get_mut(name)?;
        queue.used(now);
        let entry = queue.pop();
        if entry.is_some() {
            queue.handed += 1;
            queue.fetched += 1;
        }
        Some(entry)
    }

    /// Sees to it that a queue is looked at when it expires.
    pub(super) fn watch_end(&mut self, name: &str) {
        if let Some(end) = self.queues.get(name).and_then(Queue::end) {
            self.alarm.set(end);
        }
    }

    /// Notes that so many fetched messages are done.
    pub(super) fn fetched(&mut self, name: &str, done: u64) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.fetched = queue.fetched.saturating_sub(done);
            queue.acked += done;
        }
    }

    /// Returns fetched messages.
    pub(super) fn give_back(&mut self, name: &str, entries: Vec<Entry>, now: Instant) {
        let Some(queue) = self.queues.get_mut(name) else {
            return;
        };
        for entry in entries {
            queue.fetched = queue.fetched.saturating_sub(1);
            self.dead.extend(death::returned(queue, name, entry));
        }
        self.serve(name, now);
        self.bury(now);
    }

    /// Removes what has expired everywhere, queues and messages, and says when to look again.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let over = |queue: &Queue| queue.end().is_some_and(|end| end <= now);
        let queues = self.queues.iter().filter(|(_, queue)| over(queue));
        let names: Vec<_> = queues.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.delete_queue(&name, now);
        }
        let due = |queue: &Queue| queue.head_expiry().is_some_and(|expiry| expiry <= now);
        let queues = self.queues.iter().filter(|(_, queue)| due(queue));
        let names: Vec<_> = queues.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.serve(&name, now);
        }
        self.bury(now);
        let times = |queue: &Queue| [queue.head_expiry(), queue.end()];
        let next = self.queues.values().flat_map(times).flatten().min();
        self.alarm.reset(next);
        next
    }
}

/// Hands a message to a consumer, which then waits for its next turn if it has credit left.
fn hand(
    subscribers: &mut HashMap<u64, Subscriber>,
    queue: &mut Queue,
    consumer: Consumer,
    entry: Entry,
) {
    match subscribers.get_mut(&consumer.subscriber) {
        Some(subscriber) => {
            queue.handed += 1;
            if subscriber.hand(consumer.queue, entry) {
                queue.wait(consumer);
            }
        }
        None => queue.put_back(entry),
    }
}
