//! What became of each publish on one channel, exactly, although the client library mixes up returned messages.
//!
//! RabbitMQ sends `basic.return` for an unroutable message before the `basic.ack` of the same message
//! (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>). lapin keeps returns in a queue and attaches the
//! front of it to whichever confirm it resolves next: an unroutable message can resolve without a return, a routable one with
//! somebody else's. Acks and nacks themselves belong to their message, as long as one task alone publishes on the channel.
//!
//! Two facts follow and are all that is used here:
//! 1. A confirm that resolves *without* a return saw the queue empty. The message's own return, had there been one, had come
//!    before; so it is attached to a confirm that resolved earlier, and [`super::inflight`] shows it in the same round at
//!    the latest. The same holds for every message that resolved earlier.
//! 2. When nothing is in flight on the channel, the queue is empty: each return is followed by at least one confirm, its own.
//!
//! A message that resolved with somebody else's return waits for either fact: it is neither confirmed nor unroutable before.

use std::collections::HashSet;

use uuid::Uuid;

use crate::broker::Fate;

/// What the client library says of one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) positive: bool,
    /// The publish-id of the returned message that came attached, whoever's it is.
    pub(super) carried: Option<Uuid>,
}

/// The publishes of one channel between their confirm and their fate.
pub(super) struct Verdicts<E> {
    /// Returned messages whose own confirm was not seen yet.
    returned: HashSet<Uuid>,
    /// Acked messages that carried another's return, from earlier rounds.
    waiting: Vec<(Uuid, E)>,
}

impl<E> Verdicts<E> {
    pub(super) fn new() -> Self {
        Self {
            returned: HashSet::new(),
            waiting: Vec::new(),
        }
    }

    /// How many wait for their fate.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the waiting entries out, for a channel that broke: their fate will not be known.
    pub(super) fn abandon(&mut self) -> impl Iterator<Item = E> {
        self.returned.clear();
        std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(_, entry)| entry)
    }

    /// Takes the waiting entries out for which `overdue` holds.
    pub(super) fn expire(
        &mut self,
        mut overdue: impl FnMut(&E) -> bool,
    ) -> impl Iterator<Item = E> {
        let expired = self
            .waiting
            .extract_if(.., move |(_, entry)| overdue(entry));
        expired.map(|(_, entry)| entry)
    }

    /// The waiting entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = &E> {
        self.waiting.iter().map(|(_, entry)| entry)
    }

    /// One round: all confirms that resolved since the last one. `idle`: nothing is in flight any more.
    pub(super) fn round(
        &mut self,
        resolved: Vec<(Uuid, E, Resolved)>,
        idle: bool,
        mut decide: impl FnMut(E, Fate),
    ) {
        self.returned
            .extend(resolved.iter().filter_map(|(_, _, r)| r.carried));
        let emptied = resolved.iter().any(|(_, _, r)| r.carried.is_none());

        for (id, entry) in std::mem::take(&mut self.waiting) {
            if self.returned.remove(&id) {
                decide(entry, Fate::Unroutable);
            } else if emptied || idle {
                decide(entry, Fate::Confirmed);
            } else {
                self.waiting.push((id, entry));
            }
        }
        for (id, entry, resolved) in resolved {
            let returned = self.returned.remove(&id);
            match resolved {
                Resolved {
                    positive: false, ..
                } => decide(entry, Fate::Rejected),
                _ if returned => decide(entry, Fate::Unroutable),
                Resolved { carried: None, .. } => decide(entry, Fate::Confirmed),
                // Within one round nobody knows whether this or a confirm without a return came first.
                _ if idle => decide(entry, Fate::Confirmed),
                _ => self.waiting.push((id, entry)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// The broker and the client library as they were read: returns come before their acks, in order of publishing;
    /// acks come in any order; each confirm takes the front of the queue of returns.
    fn history(fates: &[Fate], order: &[prop::sample::Index]) -> Vec<(usize, Resolved)> {
        let mut unsent: VecDeque<usize> = (0..fates.len()).collect();
        let mut sent: Vec<usize> = Vec::new();
        let mut queue = VecDeque::new();
        let mut events = Vec::new();
        let mut order = order.iter();
        while !unsent.is_empty() || !sent.is_empty() {
            let choices = sent.len() + usize::from(!unsent.is_empty());
            let choice = order.next().map_or(0, |index| index.index(choices));
            if choice == sent.len() {
                if let Some(next) = unsent.pop_front() {
                    if fates[next] == Fate::Unroutable {
                        queue.push_back(id(next));
                    }
                    sent.push(next);
                }
                continue;
            }
            let confirmed = sent.remove(choice);
            let resolved = Resolved {
                positive: fates[confirmed] != Fate::Rejected,
                carried: queue.pop_front(),
            };
            events.push((confirmed, resolved));
        }
        events
    }

    fn id(index: usize) -> Uuid {
        Uuid::from_u128(index as u128 + 1)
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            3 => Just(Fate::Confirmed),
            3 => Just(Fate::Unroutable),
            1 => Just(Fate::Rejected),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn no_fate_is_wrong_and_none_is_missing(
            fates in prop::collection::vec(fate(), 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 200),
            cuts in prop::collection::vec(1_usize..6, 40),
        ) {
            let mut events: VecDeque<_> = history(&fates, &order).into();
            let mut verdicts = Verdicts::new();
            let mut decided = vec![None; fates.len()];
            let mut cuts = cuts.into_iter();
            while !events.is_empty() {
                let size = cuts.next().unwrap_or(1).min(events.len());
                let mut round: Vec<_> = events.drain(..size).map(|(i, r)| (id(i), i, r)).collect();
                // A round shows what resolved, not in which order.
                round.reverse();
                verdicts.round(round, events.is_empty(), |index, fate| {
                    assert!(decided[index].replace(fate).is_none(), "decided twice");
                });
            }
            prop_assert_eq!(verdicts.waiting(), 0);
            let decided: Vec<_> = decided.into_iter().flatten().collect();
            prop_assert_eq!(decided, fates);
        }
    }
}
