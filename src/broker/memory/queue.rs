//! A queue: what is ready in it, in which order, and who waits for it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::topology::{self, QueueKind},
    message::Message,
};

/// A message as it was published or dead-lettered, shared by all queues that hold it.
pub(super) struct Envelope {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) message: Message,
}

/// A message's place in one queue. It keeps its position and its expiry when it is handed out and comes back.
pub(super) struct Entry {
    pub(super) envelope: Arc<Envelope>,
    pub(super) redelivered: bool,
    /// In a quorum queue: how often it came back.
    pub(super) returns: u32,
    expires: Option<Instant>,
    position: Position,
}

/// Orders a queue: the highest priority first, within it by arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    priority: Reverse<u8>,
    arrival: u64,
}

/// Names a consumer: a subscription, and which of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Consumer {
    pub(super) subscriber: u64,
    pub(super) queue: usize,
    pub(super) priority: i32,
}

pub(super) struct Queue {
    pub(super) declared: topology::Queue,
    /// Consumers with free credit: the highest priority first, equals in turn. While one waits, nothing live is ready.
    pub(super) waiting: VecDeque<Consumer>,
    ready: BTreeMap<Position, Entry>,
    arrivals: u64,
    /// What was handed to consumers, and what they acked.
    pub(super) handed: u64,
    pub(super) acked: u64,
    /// Fetched and neither acked nor returned.
    pub(super) fetched: u64,
    /// Subscriptions that it may hand messages to.
    consumers: usize,
    /// When it was declared, fetched from, or left by its last consumer.
    last_use: Instant,
}

impl Queue {
    pub(super) fn new(declared: topology::Queue, now: Instant) -> Self {
        Self {
            declared,
            waiting: VecDeque::new(),
            ready: BTreeMap::new(),
            arrivals: 0,
            handed: 0,
            acked: 0,
            fetched: 0,
            consumers: 0,
            last_use: now,
        }
    }

    /// Puts a consumer that has free credit behind its equals.
    pub(super) fn wait(&mut self, consumer: Consumer) {
        let before = |other: &Consumer| other.priority >= consumer.priority;
        let place = self.waiting.partition_point(before);
        self.waiting.insert(place, consumer);
    }

    pub(super) fn join(&mut self) {
        self.consumers += 1;
    }

    /// A consumer goes. Answers whether the queue goes with it.
    pub(super) fn leave(&mut self, now: Instant) -> bool {
        self.consumers = self.consumers.saturating_sub(1);
        self.used(now);
        self.declared.auto_delete && self.consumers == 0
    }

    /// Begins its time to live anew.
    pub(super) fn used(&mut self, now: Instant) {
        self.last_use = now;
    }

    /// When the queue itself expires, unless it is used before.
    pub(super) fn end(&self) -> Option<Instant> {
        let time = self.declared.expires.filter(|_| self.consumers == 0)?;
        self.last_use.checked_add(time)
    }

    /// How many messages have entered.
    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// How many messages are ready.
    pub(super) fn depth(&self) -> usize {
        self.ready.len()
    }

    /// Like RabbitMQ, counts what is ready, not what consumers hold.
    pub(super) fn is_full(&self) -> bool {
        let limit = self.declared.max_length;
        limit.is_some_and(|limit| self.ready.len() as u64 >= limit)
    }

    /// Puts a new message behind its equals.
    pub(super) fn push(&mut self, envelope: Arc<Envelope>, now: Instant) {
        let message = &envelope.message;
        let priority = match self.declared.max_priority {
            Some(highest) => message.priority.unwrap_or(0).min(highest),
            None => 0,
        };
        let own_ttl = message.ttl_ms.map(|ttl| Duration::from_millis(ttl.into()));
        let ttl = own_ttl.into_iter().chain(self.declared.message_ttl).min();
        self.arrivals += 1;
        self.put_back(Entry {
            redelivered: false,
            returns: 0,
            // A time to live beyond the clock's range is one that never ends.
            expires: ttl.and_then(|ttl| now.checked_add(ttl)),
            position: Position {
                priority: Reverse(priority),
                arrival: self.arrivals,
            },
            envelope,
        });
    }

    /// Puts a message where it was.
    pub(super) fn put_back(&mut self, entry: Entry) {
        self.ready.insert(entry.position, entry);
    }

    /// Takes back what a consumer had. Answers what is beyond the delivery limit instead: it has died.
    pub(super) fn take_back(&mut self, mut entry: Entry) -> Option<Entry> {
        entry.redelivered = true;
        if self.declared.kind == QueueKind::Quorum {
            entry.returns = entry.returns.saturating_add(1);
        }
        let limit = self.declared.delivery_limit;
        if limit.is_some_and(|limit| entry.returns > limit) {
            return Some(entry);
        }
        self.put_back(entry);
        None
    }

    /// Drops what is ready; how much that was.
    pub(super) fn purge(&mut self) -> u64 {
        std::mem::take(&mut self.ready).len() as u64
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.ready.pop_first().map(|(_, entry)| entry)
    }

    /// Takes the head if it has expired. Like RabbitMQ, an expired message behind a living one stays until it is the
    /// head (<https://www.rabbitmq.com/docs/ttl#per-message-ttl-caveats>).
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Entry> {
        self.head_expiry().filter(|expiry| *expiry <= now)?;
        self.pop()
    }

    /// When the head expires.
    pub(super) fn head_expiry(&self) -> Option<Instant> {
        self.ready.values().next()?.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        let declared = topology::Queue {
            message_ttl: Some(Duration::from_secs(1)),
            max_priority: Some(5),
            ..topology::Queue::bare("q", QueueKind::Classic)
        };
        Queue::new(declared, Instant::now())
    }

    fn envelope(name: &str, priority: Option<u8>, ttl_ms: Option<u32>) -> Arc<Envelope> {
        Arc::new(Envelope {
            exchange: String::new(),
            routing_key: name.to_owned(),
            message: Message {
                priority,
                ttl_ms,
                ..Message::default()
            },
        })
    }

    fn drain(mut queue: Queue) -> Vec<String> {
        let entries = std::iter::from_fn(|| queue.pop());
        entries
            .map(|entry| entry.envelope.routing_key.clone())
            .collect()
    }

    #[test]
    fn a_higher_priority_goes_first_and_equals_keep_their_order() {
        let mut queue = queue();
        let priorities = [None, Some(1), Some(5), Some(0), Some(200), Some(1)];
        for (name, priority) in ["a", "b", "c", "d", "e", "f"].iter().zip(priorities) {
            queue.push(envelope(name, priority, None), Instant::now());
        }
        assert_eq!(drain(queue), ["c", "e", "b", "f", "a", "d"]);
    }

    #[test]
    fn what_comes_back_takes_its_old_place() {
        let mut queue = queue();
        for name in ["a", "b", "c"] {
            queue.push(envelope(name, None, None), Instant::now());
        }
        let (first, second) = (queue.pop(), queue.pop());
        for entry in second.into_iter().chain(first) {
            queue.put_back(entry);
        }
        assert_eq!(drain(queue), ["a", "b", "c"]);
    }

    #[test]
    fn the_smaller_time_to_live_wins() {
        let now = Instant::now();
        for (ttl_ms, expected) in [(None, 1000), (Some(300), 300), (Some(5000), 1000)] {
            let mut queue = queue();
            queue.push(envelope("a", None, ttl_ms), now);
            let expiry = now + Duration::from_millis(expected);
            assert_eq!(queue.head_expiry(), Some(expiry));
        }
    }

    #[test]
    fn only_the_head_expires() {
        let now = Instant::now();
        let mut queue = queue();
        queue.push(envelope("slow", None, Some(500)), now);
        queue.push(envelope("fast", None, Some(100)), now);
        let later = |millis| now + Duration::from_millis(millis);
        assert!(queue.pop_expired(later(499)).is_none());
        assert!(queue.pop_expired(later(500)).is_some());
        assert!(queue.pop_expired(later(500)).is_some());
        assert_eq!(queue.depth(), 0);
    }
}
