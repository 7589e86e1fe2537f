//! Messages that consumers may have died of, in one session (how they are counted: [`poison`](crate::gateway::subscriber::poison)). Of suspects
//! only so many are out at a time as their counts allow; the last one waits until all others are settled, and nothing else goes out until
//! it is settled too. One that is poison is not given out any more, but moved to its dead-letter queue.
//!
//! A consumer is taken to be dead when it is gone without a half-close, and when it lets a delivery lapse. A lapse alone may also
//! mean something else:
//!
//! - The client waits for company: it acks every hundred. So after a suspect lapsed alone, or others did while one waited for
//!   its turn, suspects travel among the others until the client settles something. Nor does one wait longer for its turn than
//!   an ack deadline, as others may be worked on for as long as the client extends theirs.
//! - The client itself hangs. So until the client settles something, a session counts the lapses of one message that was alone, and
//!   one lapse of several together.
//!
//! A client that goes on settling what it was given later does not hang: what lapses then failed by itself, whatever else is out.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use tokio::time::Instant;

use super::{Over, Phase, Session};
use crate::{
    broker::{Delivery, Tag},
    failed_message::Time,
    gateway::{
        failed_messages::{acks, dead_letter},
        message_log,
        subscriber::{
            dead_letters::NotStored,
            ledger::Settled,
            poison::{Failures, Key},
            protocol::{Event, Parcel},
        },
    },
};

/// How long one rests whose copy could not be stored, before it goes back to its queue to be tried again.
const REQUEUE_DELAY: Duration = Duration::from_secs(5);

/// A delivery on its way to the client.
pub(super) struct Taken {
    pub(super) delivery: Parcel,
    pub(super) failed: Option<Failed>,
    since: Instant,
}

impl Taken {
    /// Which attempt it is.
    pub(super) fn attempt(&self) -> u32 {
        let timeouts = self.failed.map_or(0, |failed| failed.timeouts);
        dead_letter::attempt(&self.delivery.message).saturating_add(timeouts)
    }
}

/// A message that was with a consumer that died.
#[derive(Clone, Copy)]
pub(super) struct Failed {
    key: Key,
    /// How often it was unsettled for longer than the broker allows.
    timeouts: u32,
    /// How many such may be out together, itself included. `None`: any number.
    together: Option<usize>,
}

/// Whether the copy of one that is not given out is stored.
pub(super) type Moved = (Tag, Key, Result<(), NotStored>);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Quarantine {
    /// Those that the client has.
    out: HashMap<Tag, Failed>,
    /// The last one that was given out to travel alone.
    isolated: Option<Tag>,
    /// Suspects may have company.
    relaxed: bool,
    /// The message that this client let lapse alone, having settled nothing since.
    lapsed_alone: Option<Key>,
    /// This client let several lapse together, having settled nothing since.
    lapsed_together: bool,
    /// Not given out: their copies are being stored.
    pub(super) moving: FuturesUnordered<BoxFuture<'static, Moved>>,
    /// Not given out, and not stored.
    pub(super) resting: FuturesUnordered<BoxFuture<'static, Tag>>,
}

impl Session {
    /// Looks how a delivery fared before. `None`: it is not to be given out, and is being moved.
    pub(super) fn examine(&mut self, delivery: Parcel) -> Option<Taken> {
        let counts = &self.service.poison;
        let found = counts.find(self.queue_of(&delivery), &delivery);
        match found {
            Some((key, failures)) if counts.is_poison(failures) => {
                self.begin_move(&delivery, key, failures);
                None
            }
            found => Some(Taken {
                failed: found.map(|(key, failures)| Failed {
                    key,
                    timeouts: failures.timeouts(),
                    together: failures.together(),
                }),
                delivery,
                since: Instant::now(),
            }),
        }
    }

    fn queue_of(&self, delivery: &Delivery) -> &str {
        let queue = self.plan.queues.get(delivery.queue);
        queue.map_or("", String::as_str)
    }

    fn begin_move(&mut self, delivery: &Delivery, key: Key, failures: Failures) {
        let queue = self.queue_of(delivery).to_owned();
        let message_id = delivery.message.message_id.as_deref();
        tracing::warn!(
            queue,
            message_id,
            failures = failures.count(),
            "its consumers die of it: moved to the dead-letter queue"
        );
        let copy = dead_letter::poisoned(delivery, &queue, failures.count());
        let (letters, tag) = (self.service.dead_letters.clone(), delivery.tag);
        let moved = async move { (tag, key, letters.add(queue, copy).await) };
        self.quarantine.moving.push(moved.boxed());
    }

    pub(super) async fn on_moved(&mut self, (tag, key, stored): Moved) -> Result<(), Over> {
        match stored {
            Ok(()) => {
                let acked = self.subscription.ack(&[tag]).await;
                acked.map_err(|ended| self.over(ended))?;
                self.service.poison.clear(key);
            }
            Err(error) => {
                tracing::warn!(%error, "a message whose consumers die with it stays in its queue");
                let rested = async move {
                    tokio::time::sleep(REQUEUE_DELAY).await;
                    tag
                };
                self.quarantine.resting.push(rested.boxed());
            }
        }
        Ok(())
    }

    pub(super) async fn on_rested(&mut self, tag: Tag) -> Result<(), Over> {
        let returned = self.subscription.give_back(&[tag]).await;
        returned.map_err(|ended| self.over(ended))
    }

    /// Waits for the copies under way, as their originals would return and be duplicates.
    pub(super) async fn finish_moves(&mut self) {
        while let Some(moved) = self.quarantine.moving.next().await {
            if self.on_moved(moved).await.is_err() {
                return;
            }
        }
    }

    /// Whether this one must wait until others are settled.
    pub(super) fn must_wait(&self, taken: &Taken) -> bool {
        match self.together(taken) {
            None => false,
            Some(1) => !self.ledger.is_empty(),
            Some(many) => {
                let out = self.quarantine.out.values();
                let out: Vec<_> = out.filter_map(|failed| failed.together).collect();
                out.len() >= out.iter().copied().fold(many, usize::min)
            }
        }
    }

    /// How many suspects may be out with this one.
    fn together(&self, taken: &Taken) -> Option<usize> {
        // With auto_ack a delivery is settled before the client can die of it.
        let free = self.quarantine.relaxed || self.plan.auto_ack;
        taken.failed.filter(|_| !free)?.together
    }

    /// When a suspect has waited long enough for its turn.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        let held = self.held.as_ref().filter(|held| self.must_wait(held))?;
        (self.takes_more() && !self.is_isolating()).then(|| held.since + self.plan.ack_deadline)
    }

    /// Lets it go among the others.
    pub(super) fn end_wait(&mut self) {
        self.quarantine.relaxed = true;
        self.release_held();
    }

    /// Whether one is out that must have no company.
    pub(super) fn is_isolating(&self) -> bool {
        let isolated = self.quarantine.isolated;
        isolated.is_some() && isolated == self.ledger.alone()
    }

    /// It goes out.
    pub(super) fn note_failed(&mut self, tag: Tag, taken: &Taken) {
        if let Some(failed) = taken.failed {
            self.quarantine.out.insert(tag, failed);
            if self.together(taken) == Some(1) {
                self.quarantine.isolated = Some(tag);
            }
        }
    }

    /// The broker was told what is booked so far. Not before: should it never hear of an ack, the message comes again, and what
    /// becomes of it then counts.
    pub(super) fn note_resolved(&mut self) {
        for ack in self.resolved.drain(..) {
            self.service.acks.note(ack);
        }
    }

    /// Books an orderly settle, that was asked for at this time: whatever it says, the consumer lives.
    pub(super) fn settled(&mut self, tag: Tag, how: Settled, at: Time) {
        self.log_settled(tag, how, at);
        if matches!(how, Settled::Ack | Settled::Automatic | Settled::Discard)
            && let Some(delivery) = self.ledger.delivery(tag)
            && let Some(queue) = self.plan.queues.get(delivery.queue)
        {
            let dropped = how == Settled::Discard;
            self.resolved
                .extend(acks::of(queue, &delivery.message, dropped));
        }
        self.ledger.settle(tag, how);
        self.quarantine.relaxed = false;
        self.quarantine.lapsed_alone = None;
        self.quarantine.lapsed_together = false;
        if let Some(failed) = self.quarantine.out.remove(&tag) {
            self.service.poison.clear(failed.key);
        }
    }

    /// Books deliveries whose deadline came.
    pub(super) fn lapsed(&mut self, overdue: &[Tag]) {
        self.count_lapses(overdue);
        let now = message_log::now();
        for tag in overdue {
            self.log_settled(*tag, Settled::Lapsed, now);
            self.ledger.settle(*tag, Settled::Lapsed);
            self.quarantine.out.remove(tag);
        }
    }

    fn count_lapses(&mut self, overdue: &[Tag]) {
        let waiting = self.held.as_ref().is_some_and(|held| self.must_wait(held));
        let counts = &self.service.poison;
        let (overtaken, mut others): (Vec<_>, Vec<_>) = self
            .with_keys(overdue.iter().copied())
            .into_iter()
            .partition(|(tag, _)| self.ledger.was_overtaken(*tag));
        for (_, key) in overtaken {
            counts.record_certain(key);
        }
        let alone = self.ledger.alone();
        if let Some((_, key)) = others.pop_if(|(tag, _)| alone == Some(*tag)) {
            self.quarantine.relaxed = true;
            if *self.quarantine.lapsed_alone.get_or_insert(key) == key {
                counts.record_certain(key);
            }
        }
        if !others.is_empty() && !std::mem::replace(&mut self.quarantine.lapsed_together, true) {
            counts.record_company(&keys(&others));
        }
        self.quarantine.relaxed |= waiting;
    }

    /// The broker ended the subscription because a delivery was unsettled for too long: it was the oldest, of this queue if that is known.
    pub(super) fn timed_out(&self, queue: Option<usize>) {
        let is_of_it = |tag: &Tag| {
            let delivery = self.ledger.delivery(*tag);
            queue.is_none() || delivery.map(|delivery| delivery.queue) == queue
        };
        let oldest = self.ledger.unsettled().filter(is_of_it).min();
        for (_, key) in self.with_keys(oldest) {
            self.service.poison.record_timeout(key);
        }
    }

    /// The client is gone, and never said that it would go.
    pub(super) fn vanished(&mut self) {
        // With auto_ack what is not settled was never taken; a client that was told to go may do so.
        if self.plan.auto_ack || self.last_word || self.phase != Phase::Running {
            return;
        }
        let held = self.with_keys(self.ledger.unsettled());
        match *held {
            [(tag, key)] if self.ledger.alone() == Some(tag) => {
                self.service.poison.record_certain(key);
            }
            _ => self.service.poison.record_company(&keys(&held)),
        }
    }

    /// Those of `tags` that the client has, as far as the gateway can tell, with their keys.
    fn with_keys(&self, tags: impl IntoIterator<Item = Tag>) -> Vec<(Tag, Key)> {
        let counts = &self.service.poison;
        if !counts.is_on() {
            return Vec::new();
        }
        let unsent: HashSet<Tag> = self
            .outbox
            .iter()
            .filter_map(|event| match event {
                Event::Deliveries(given) => Some(given.iter().map(|given| given.delivery.tag)),
                _ => None,
            })
            .flatten()
            .collect();
        let sent = tags.into_iter().filter(|tag| !unsent.contains(tag));
        let with_key = |tag| {
            let known = self.quarantine.out.get(&tag).map(|failed| failed.key);
            let key = known.or_else(|| {
                let delivery = self.ledger.delivery(tag)?;
                Some(counts.key(self.queue_of(delivery), delivery))
            });
            Some((tag, key?))
        };
        sent.filter_map(with_key).collect()
    }
}

fn keys(of: &[(Tag, Key)]) -> Vec<Key> {
    of.iter().map(|(_, key)| *key).collect()
}
