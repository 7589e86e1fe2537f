//! Suspects in one session (what they are: [`suspects`](crate::gateway::suspects)). Each travels alone: it waits until all others
//! are settled, and nothing else goes out until it is settled too. One that was accused often enough is not given out any more,
//! but moved to its dead-letter queue.
//!
//! A consumer is taken to be dead when it is gone without a half-close, and when it lets a delivery lapse. A lapse alone may also
//! mean something else:
//!
//! - The client waits for company: it acks every hundred. So after a suspect lapsed alone, or others did while one waited for
//!   its turn, suspects travel among the others until the client settles something. Nor does one wait longer for its turn than
//!   an ack deadline, as others may be worked on for as long as the client extends theirs.
//! - The client itself hangs. So a session accuses one message for lapsing, and no second one before the client settled something.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use tokio::time::Instant;

use super::{Over, Phase, Session};
use crate::{
    broker::{Delivery, Tag},
    failure::Time,
    gateway::{
        dead_letter::{self, NotStored},
        ledger::Settled,
        message_log,
        subscribe::{Event, Parcel},
        suspects::Key,
    },
};

/// How long one rests whose copy could not be stored, before it goes back to its queue to be tried again.
const REST: Duration = Duration::from_secs(5);

/// A delivery on its way to the client.
pub(super) struct Taken {
    pub(super) delivery: Parcel,
    pub(super) suspect: Option<Key>,
    since: Instant,
}

/// Whether the copy of one that is not given out is stored.
pub(super) type Moved = (Tag, Key, Result<(), NotStored>);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Quarantine {
    /// Suspects that the client has.
    out: HashMap<Tag, Key>,
    /// The last one that was given out to travel alone.
    isolated: Option<Tag>,
    /// Suspects may have company.
    relaxed: bool,
    /// The message that this client let lapse alone, having settled nothing since.
    accused: Option<Key>,
    /// Not given out: their copies are being stored.
    pub(super) moving: FuturesUnordered<BoxFuture<'static, Moved>>,
    /// Not given out, and not stored.
    pub(super) resting: FuturesUnordered<BoxFuture<'static, Tag>>,
}

impl Session {
    /// Looks whether a delivery is a suspect. `None`: it is not to be given out, and is being moved.
    pub(super) fn examine(&mut self, delivery: Parcel) -> Option<Taken> {
        let suspects = &self.gateway.suspects;
        let found = suspects.find(self.queue_of(&delivery), &delivery);
        match found {
            Some((key, accusations)) if suspects.convict(accusations) => {
                self.begin_move(&delivery, key, accusations);
                None
            }
            found => Some(Taken {
                suspect: found.map(|(key, _)| key),
                delivery,
                since: Instant::now(),
            }),
        }
    }

    fn queue_of(&self, delivery: &Delivery) -> &str {
        let queue = self.plan.queues.get(delivery.queue);
        queue.map_or("", String::as_str)
    }

    fn begin_move(&mut self, delivery: &Delivery, key: Key, accusations: u32) {
        let queue = self.queue_of(delivery).to_owned();
        let message_id = delivery.message.message_id.as_deref();
        tracing::warn!(
            queue,
            message_id,
            accusations,
            "its consumers die with it: moved to the dead-letter queue"
        );
        let copy = dead_letter::poisoned(delivery, &queue, accusations);
        let (gateway, tag) = (self.gateway.clone(), delivery.tag);
        let moved = async move { (tag, key, gateway.dead_letter(queue, copy).await) };
        self.quarantine.moving.push(moved.boxed());
    }

    pub(super) async fn on_moved(&mut self, (tag, key, stored): Moved) -> Result<(), Over> {
        match stored {
            Ok(()) => {
                let acked = self.subscription.ack(&[tag]).await;
                acked.map_err(|ended| self.over(ended))?;
                self.gateway.suspects.clear(key);
            }
            Err(error) => {
                tracing::warn!(%error, "a message whose consumers die with it stays in its queue");
                let rested = async move {
                    tokio::time::sleep(REST).await;
                    tag
                };
                self.quarantine.resting.push(rested.boxed());
            }
        }
        Ok(())
    }

    pub(super) async fn on_rested(&mut self, tag: Tag) -> Result<(), Over> {
        let returned = self.subscription.requeue(&[tag]).await;
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

    /// Whether this one must wait until nothing else is out.
    pub(super) fn isolates(&self, taken: &Taken) -> bool {
        // With auto_ack a delivery is settled before the client can die of it.
        taken.suspect.is_some() && !self.quarantine.relaxed && !self.plan.auto_ack
    }

    /// When a suspect has waited long enough to be alone.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        let held = self.held.as_ref().filter(|held| self.isolates(held))?;
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

    /// A suspect goes out.
    pub(super) fn note_suspect(&mut self, tag: Tag, taken: &Taken) {
        if let Some(key) = taken.suspect {
            self.quarantine.out.insert(tag, key);
            if self.isolates(taken) {
                self.quarantine.isolated = Some(tag);
            }
        }
    }

    /// Books an orderly settle, that was asked for at this time: whatever it says, the consumer lives.
    pub(super) fn settled(&mut self, tag: Tag, how: Settled, at: Time) {
        self.log_settled(tag, how, at);
        if matches!(how, Settled::Ack | Settled::Automatic | Settled::Discard)
            && let Some(delivery) = self.ledger.delivery(tag)
            && let Some(queue) = self.plan.queues.get(delivery.queue)
        {
            let acks = &self.gateway.failed.acks;
            acks.note(queue, &delivery.message, how == Settled::Discard);
        }
        self.ledger.settle(tag, how);
        self.quarantine.relaxed = false;
        self.quarantine.accused = None;
        if let Some(key) = self.quarantine.out.remove(&tag) {
            self.gateway.suspects.clear(key);
        }
    }

    /// Books deliveries whose deadline came.
    pub(super) fn lapsed(&mut self, overdue: &[Tag]) {
        let alone = self.ledger.alone();
        let waiting = self.held.as_ref().is_some_and(|held| self.isolates(held));
        for (tag, key) in self.suspected(overdue.iter().copied()) {
            if alone == Some(tag) {
                self.quarantine.relaxed = true;
                if self.quarantine.accused.is_none_or(|accused| accused == key) {
                    self.quarantine.accused = Some(key);
                    self.gateway.suspects.accuse(key);
                }
            }
        }
        self.quarantine.relaxed |= waiting;
        let now = message_log::now();
        for tag in overdue {
            self.log_settled(*tag, Settled::Lapsed, now);
            self.ledger.settle(*tag, Settled::Lapsed);
            self.quarantine.out.remove(tag);
        }
    }

    /// The client is gone, and never said that it would go.
    pub(super) fn vanished(&mut self) {
        // With auto_ack what is not settled was never taken; a client that was told to go may do so.
        if self.plan.auto_ack || self.last_word || self.phase != Phase::Running {
            return;
        }
        let alone = self.ledger.alone();
        let unsettled: Vec<Tag> = self.ledger.unsettled().collect();
        for (tag, key) in self.suspected(unsettled) {
            if alone == Some(tag) {
                self.gateway.suspects.accuse(key);
            }
        }
    }

    /// Puts those of `tags` under suspicion that the client has, as far as the gateway can tell.
    fn suspected(&self, tags: impl IntoIterator<Item = Tag>) -> Vec<(Tag, Key)> {
        let suspects = &self.gateway.suspects;
        if !suspects.are_sought() {
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
        let mut suspected = Vec::new();
        for tag in tags.into_iter().filter(|tag| !unsent.contains(tag)) {
            let known = self.quarantine.out.get(&tag).copied();
            let key = known.or_else(|| {
                let delivery = self.ledger.delivery(tag)?;
                Some(suspects.key(self.queue_of(delivery), delivery))
            });
            if let Some(key) = key {
                suspects.suspect(key);
                suspected.push((tag, key));
            }
        }
        suspected
    }
}
