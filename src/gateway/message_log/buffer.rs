//! Events that wait for the database: so many, and so many bytes. More are dropped and counted.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    message::{Table, Value},
    store::{Event, What},
};

/// What goes into one transaction.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub events: usize,
    pub bytes: usize,
}

#[derive(Debug)]
pub(super) struct Buffer {
    waiting: Mutex<Waiting>,
    room: Room,
    dropped: AtomicU64,
    /// About how many bytes were written down.
    written: AtomicU64,
    /// There is something, or enough for a batch.
    pub(super) filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Buffer {
    pub(super) fn new(room: Room) -> Self {
        Self {
            waiting: Mutex::default(),
            room,
            dropped: AtomicU64::new(0),
            written: AtomicU64::new(0),
            filled: Notify::new(),
        }
    }

    /// Takes events, as many as there is room for.
    pub(super) fn add(&self, events: impl IntoIterator<Item = Event>) {
        let mut dropped = 0;
        let mut waiting = self.lock();
        let before = waiting.events.len();
        for event in events {
            let bytes = weight(&event);
            if waiting.events.len() >= self.room.events || waiting.bytes + bytes > self.room.bytes {
                dropped += 1;
                continue;
            }
            waiting.bytes += bytes;
            waiting.events.push_back(event);
        }
        let after = waiting.events.len();
        drop(waiting);
        if dropped > 0 {
            self.drop_some(dropped);
        }
        if (before == 0 && after > 0) || (before < BATCH && after >= BATCH) {
            self.filled.notify_one();
        }
    }

    /// The events for one transaction, those first that wait longest.
    pub(super) fn take(&self) -> Vec<Event> {
        let mut waiting = self.lock();
        let mut bytes = 0;
        let fitting = waiting.events.iter().take(BATCH).take_while(|event| {
            let first = bytes == 0;
            bytes += weight(event);
            first || bytes <= BATCH_BYTES
        });
        let count = fitting.count();
        let batch: Vec<Event> = waiting.events.drain(..count).collect();
        waiting.bytes -= batch.iter().map(weight).sum::<usize>();
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether there is enough for a batch.
    pub(super) fn is_due(&self) -> bool {
        self.len() >= BATCH
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts events that will not be written.
    pub(super) fn drop_some(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts events that are written.
    pub(super) fn count_written(&self, events: &[Event]) {
        let bytes = events.iter().map(weight).sum::<usize>();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// About how many bytes were written down.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// About how much memory an event takes.
fn weight(event: &Event) -> usize {
    let own = size_of::<Event>() + event.message_id.len();
    own + match &event.what {
        What::Published { entry, .. } => entry.as_ref().map_or(0, |entry| {
            let names = entry.exchange.len() + entry.routing_key.len();
            let message = &entry.message;
            size_of_val(&**entry) + names + message.payload.len() + table_weight(&message.headers)
        }),
        What::Failed { detail } | What::Retried { detail } => detail.len(),
        What::Delivered { .. } | What::Settled(_) => 0,
    }
}

fn table_weight(table: &Table) -> usize {
    let entry = |(name, value): (&String, &Value)| name.len() + value_weight(value);
    table.iter().map(entry).sum()
}

fn value_weight(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
            Value::Array(values) => values.iter().map(value_weight).sum(),
            Value::Table(table) => table_weight(table),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failed_message::Time,
        store::{Entry, Settlement},
    };

    fn event(id: usize) -> Event {
        Event {
            message_id: id.to_string(),
            at: Time::default(),
            queue: "q".into(),
            attempt: 1,
            what: What::Settled(Settlement::Ack),
        }
    }

    fn large(bytes: usize) -> Event {
        let entry = Entry {
            publish_id: uuid::Uuid::nil(),
            exchange: String::new(),
            routing_key: String::new(),
            message: crate::message::Message {
                payload: vec![0; bytes].into(),
                ..Default::default()
            },
            keeps_payload: true,
            payload_size: bytes,
        };
        Event {
            what: What::Published {
                outcome: "CONFIRMED",
                entry: Some(Box::new(entry)),
            },
            ..event(0)
        }
    }

    fn ids(events: &[Event]) -> Vec<&str> {
        events
            .iter()
            .map(|event| event.message_id.as_str())
            .collect()
    }

    #[test]
    fn what_is_too_many_is_dropped_and_counted_and_room_comes_back() {
        let buffer = Buffer::new(Room {
            events: 3,
            bytes: usize::MAX,
        });
        buffer.add((0..5).map(event));
        assert_eq!((buffer.len(), buffer.dropped()), (3, 2));
        assert_eq!(ids(&buffer.take()), ["0", "1", "2"]);
        buffer.add((5..7).map(event));
        assert_eq!(ids(&buffer.take()), ["5", "6"]);
        assert_eq!(buffer.dropped(), 2);
        assert!(buffer.take().is_empty());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let buffer = Buffer::new(Room {
            events: usize::MAX,
            bytes: 10_000,
        });
        buffer.add([large(6_000), large(6_000), large(100)]);
        assert_eq!((buffer.len(), buffer.dropped()), (2, 1));
        buffer.take();
        buffer.add([large(6_000)]);
        assert_eq!((buffer.len(), buffer.dropped()), (1, 1));
    }

    #[test]
    fn a_batch_is_bounded_and_one_that_is_larger_goes_alone() {
        let buffer = Buffer::new(Room {
            events: usize::MAX,
            bytes: usize::MAX,
        });
        buffer.add((0..BATCH + 1).map(event));
        assert_eq!(buffer.take().len(), BATCH);
        assert_eq!(buffer.take().len(), 1);
        buffer.add([large(2 * BATCH_BYTES), large(1), large(1)]);
        assert_eq!(buffer.take().len(), 1);
        assert_eq!(buffer.take().len(), 2);
    }
}
