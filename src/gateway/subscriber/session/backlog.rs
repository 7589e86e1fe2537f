//! What the broker sent and the client was not given yet.
//!
//! RabbitMQ's prefetch counts messages, for each queue by itself, and not bytes; nor can it be changed while a consumer runs. So a
//! prefetch that suits small messages may bring gigabytes of large ones, and what has arrived waits in the client library, where
//! nobody counts it. Therefore:
//!
//! - The session takes everything from the broker at once, whether its client reads or not, and counts it here
//!   ([`crate::budget::deliveries`]).
//! - What there is no room for is *missed*: its payload is dropped, and only tag and size are kept. It stays unacked, so that it uses up
//!   prefetch and the broker sends no more. As soon as there is room, and the client could have it, just as much as fits is
//!   returned (`basic.nack`, requeue), and room for it reserved: the broker sends it anew.
//! - What comes after something missed of the same queue is missed too, and what is missed twice keeps its place, so that the order
//!   stays as it was, as far as the broker keeps it: RabbitMQ may send what comes after before what was returned.
//!
//! Neither does this hold up anybody else on the same connection, as a socket that is not read would; nor does the consumer begin anew,
//! which would delete an auto-delete queue, lose the place in a stream, and give a single active consumer's turn away. The price is that a
//! message that was missed comes twice over the network, counts as redelivered, and is not with another consumer in the meantime.
//! A stream's messages cannot be returned: such a subscription ends instead (OVERLOADED).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    broker::{Delivery, Tag},
    budget::deliveries::{Account, Charge},
    gateway::subscriber::protocol::Parcel,
};

/// May wait whatever the client's own limit of bytes is, so that small messages are ready when it settles something.
const SMALL: usize = 1024 * 1024;
/// For so long room is reserved for what was asked for again; another consumer may get it.
const PATIENCE: Duration = Duration::from_secs(1);
/// For so long its place in the order is known.
const MEMORY: Duration = Duration::from_secs(60);

/// See the [module](self).
pub(super) struct Backlog {
    account: Account,
    /// Of payloads, given and waiting.
    max_bytes: usize,
    /// By queue, in order of preference.
    waiting: Vec<VecDeque<Parcel>>,
    /// By queue and place in its order, which is the tag that it had at first.
    missed: BTreeMap<(usize, Tag), Missed>,
    asked: VecDeque<Asked>,
}

struct Missed {
    tag: Tag,
    /// Of its payload.
    size: usize,
}

/// Asked for again, and not come yet.
struct Asked {
    queue: usize,
    place: Tag,
    size: usize,
    at: Instant,
    /// The room for it. `None`: it did not come in time.
    reserved: Option<Charge>,
}

/// It cannot be asked for again.
pub(super) struct Lost;

impl Backlog {
    pub(super) fn new(account: Account, queues: usize, max_bytes: usize) -> Self {
        Self {
            account,
            max_bytes: max_bytes.max(SMALL),
            waiting: (0..queues).map(|_| VecDeque::new()).collect(),
            missed: BTreeMap::new(),
            asked: VecDeque::new(),
        }
    }

    /// Something has arrived.
    pub(super) fn put(&mut self, delivery: Delivery) -> Result<(), Lost> {
        let (queue, tag) = (delivery.queue, delivery.tag);
        let size = delivery.message.payload.len();
        let asked = delivery.redelivered.then(|| self.take_asked(queue, size));
        let (place, reserved) = match asked.flatten() {
            Some(asked) => (asked.place, asked.reserved),
            None => (tag, None),
        };
        let charge = reserved.or_else(|| self.room_for((queue, place), size));
        match (charge, self.waiting.get_mut(queue)) {
            (Some(charge), Some(waiting)) => waiting.push_back(Parcel::new(delivery, charge)),
            _ if delivery.message.is_of_stream() => return Err(Lost),
            _ => {
                self.missed.insert((queue, place), Missed { tag, size });
            }
        }
        Ok(())
    }

    /// The broker does not say which message it was before: those of one size come in the order in which they were asked for.
    fn take_asked(&mut self, queue: usize, size: usize) -> Option<Asked> {
        let is_it = |asked: &Asked| (asked.queue, asked.size) == (queue, size);
        let index = self.asked.iter().position(is_it)?;
        self.asked.remove(index)
    }

    fn room_for(&self, (queue, place): (usize, Tag), size: usize) -> Option<Charge> {
        let before = (queue, Tag::MIN)..(queue, place);
        let in_turn = self.missed.range(before).next().is_none();
        (in_turn && self.is_allowed(size)).then(|| self.account.take(size))?
    }

    /// The next one, of the earliest queue that has one.
    pub(super) fn pop(&mut self) -> Option<Parcel> {
        self.waiting.iter_mut().find_map(VecDeque::pop_front)
    }

    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    pub(super) fn misses_some(&self) -> bool {
        !self.missed.is_empty()
    }

    /// What was missed and there is room for now. It is returned to its queue, and comes again.
    pub(super) fn ask_again(&mut self, now: Instant) -> Vec<Tag> {
        self.asked.retain(|asked| now < asked.at + MEMORY);
        for asked in &mut self.asked {
            asked.reserved.take_if(|_| asked.at + PATIENCE <= now);
        }
        let mut tags = Vec::new();
        if self.asked.iter().any(|asked| asked.reserved.is_some()) {
            return tags;
        }
        while let Some(first) = self.missed.first_entry() {
            let ((queue, place), size) = (*first.key(), first.get().size);
            if !self.is_allowed(size) {
                break;
            }
            let Some(reserved) = self.account.take(size) else {
                break;
            };
            tags.extend(self.missed.pop_first().map(|(_, missed)| missed.tag));
            self.asked.push_back(Asked {
                queue,
                place,
                size,
                at: now,
                reserved: Some(reserved),
            });
        }
        tags
    }

    /// Everything: it is returned to its queues.
    pub(super) fn empty(&mut self) -> Vec<Tag> {
        let waiting = self
            .waiting
            .iter_mut()
            .flat_map(|waiting| waiting.drain(..));
        let mut tags: Vec<Tag> = waiting.map(|parcel| parcel.tag).collect();
        let missed = std::mem::take(&mut self.missed);
        tags.extend(missed.into_values().map(|missed| missed.tag));
        self.asked.clear();
        tags
    }

    /// Whether the client's own limit allows it; the first of all always.
    fn is_allowed(&self, size: usize) -> bool {
        let held = self.account.payloads();
        held == 0 || held + size <= self.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{budget::Memory, message::Message};

    const MIB: usize = 1024 * 1024;

    fn delivery(tag: Tag, queue: usize, size: usize, redelivered: bool) -> Delivery {
        Delivery {
            tag,
            queue,
            exchange: String::new(),
            routing_key: String::new(),
            redelivered,
            message: Message {
                payload: vec![0; size].into(),
                ..Message::default()
            },
        }
    }

    fn backlog(budget: usize, max_bytes: usize) -> Backlog {
        let memory = Memory::new(budget, 0);
        Backlog::new(memory.deliveries.account(), 2, max_bytes)
    }

    fn put(backlog: &mut Backlog, tag: Tag, queue: usize, size: usize, redelivered: bool) {
        assert!(backlog.put(delivery(tag, queue, size, redelivered)).is_ok());
    }

    #[tokio::test]
    async fn what_there_is_no_room_for_comes_again_in_its_order() {
        // The share is 16 MiB, of which one subscription gets a third.
        let mut backlog = backlog(64 * MIB, usize::MAX);
        for tag in 1..=5 {
            put(&mut backlog, tag, 0, 2 * MIB, false);
        }
        // Behind what was missed, however small; another queue's goes on.
        put(&mut backlog, 6, 0, 1, false);
        put(&mut backlog, 7, 1, 1, false);
        let first = backlog.pop().expect("one");
        let second = backlog.pop().expect("two");
        assert_eq!([first.tag, second.tag], [1, 2]);
        assert_eq!(backlog.pop().map(|parcel| parcel.tag), Some(7));
        assert!(backlog.pop().is_none() && backlog.misses_some());
        let now = Instant::now();
        assert_eq!(backlog.ask_again(now), [0; 0], "nothing is settled");
        drop(first);
        assert_eq!(backlog.ask_again(now), [3]);
        assert_eq!(backlog.ask_again(now), [0; 0], "that is on its way");
        put(&mut backlog, 8, 0, 2 * MIB, true);
        assert_eq!(backlog.pop().map(|parcel| parcel.tag), Some(8));
        drop(second);
        assert_eq!(backlog.ask_again(now), [4, 5, 6]);
        put(&mut backlog, 9, 0, 2 * MIB, true);
        put(&mut backlog, 10, 0, 2 * MIB, true);
        assert_eq!(backlog.empty(), [9, 10]);
    }

    #[tokio::test]
    async fn what_another_consumer_got_is_not_waited_for_and_who_is_late_keeps_its_place() {
        let mut backlog = backlog(64 * MIB, usize::MAX);
        let now = Instant::now();
        let fill =
            |backlog: &Backlog| [3, 2].map(|mib| backlog.account.take(mib * MIB).expect("it fits"));
        let held = fill(&backlog);
        put(&mut backlog, 1, 0, MIB, false);
        put(&mut backlog, 2, 0, MIB + 1, false);
        drop(held);
        assert_eq!(backlog.ask_again(now), [1, 2]);
        assert_eq!(backlog.ask_again(now), [0; 0], "they are on their way");
        assert!(
            backlog.account.held() > 2 * MIB,
            "room is reserved for them"
        );
        let later = now + PATIENCE;
        assert_eq!(backlog.ask_again(later), [0; 0]);
        assert_eq!(backlog.account.held(), 0);
        // Now the first comes, when there is no room for it any more.
        let held = fill(&backlog);
        put(&mut backlog, 3, 0, MIB + 2, false);
        put(&mut backlog, 4, 0, MIB, true);
        drop(held);
        assert_eq!(backlog.ask_again(later), [4, 3]);
    }

    #[tokio::test]
    async fn the_clients_own_limit_counts_and_the_first_always_fits() {
        let mut backlog = backlog(1024 * MIB, 3 * MIB);
        put(&mut backlog, 1, 0, 8 * MIB, false);
        put(&mut backlog, 2, 0, MIB, false);
        assert_eq!(backlog.empty(), [1, 2]);
        assert!(!backlog.misses_some() && !backlog.has_waiting());
        put(&mut backlog, 3, 0, MIB, false);
        put(&mut backlog, 4, 0, MIB, false);
        put(&mut backlog, 5, 0, 2 * MIB, false);
        assert!(backlog.misses_some());
    }

    #[tokio::test]
    async fn a_streams_message_cannot_come_again() {
        let mut backlog = backlog(64 * MIB, 0);
        put(&mut backlog, 1, 0, 2 * MIB, false);
        let mut of_stream = delivery(2, 0, 2 * MIB, false);
        let offset = crate::message::Value::I64(7);
        of_stream
            .message
            .headers
            .insert(crate::message::header::STREAM_OFFSET.to_owned(), offset);
        assert!(backlog.put(of_stream).is_err());
    }
}
