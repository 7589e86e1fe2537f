//! Messages that their consumers die of: how often each was in the hands of a consumer that died.
//!
//! The broker cannot tell. Its delivery count grows with every return, also of messages that were with the same consumer and
//! had nothing to do with it. So the gateway counts for itself, for all its subscriptions together:
//!
//! - One death says nothing: a machine was switched off. What was in the hands of [`SEVERAL`] consumers that died is a suspect,
//!   and suspects are narrowed down: after each further death only a quarter as many as were together are given out together again
//!   (`session/quarantine.rs`), until one is alone. Others go out beside them as before.
//! - What a consumer had alone, or let lapse while it settled what it was given later, or kept for longer than the broker allows, failed
//!   *certainly*.
//! - A message is poison when it failed so often as the limit says. Of its failures in company no more count than made it a suspect,
//!   and one certain failure alone is never enough, unless the limit is 1.
//!
//! So of a hundred messages that are together, one that kills each of its consumers is found after three deaths more than the limit: after
//! the third death 25 are together, then 7, then 2, and then it is alone. Of ten thousand it is six more.
//!
//! Whatever is settled is forgotten. The counts are in memory: each replica counts for itself, and from the start after a restart.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};

use crate::{broker::Delivery, message::header};

/// Deaths after which those who were there are suspects.
const SEVERAL: u32 = 3;
/// After a death so many times fewer suspects are given out together.
const NARROWING: usize = 4;
/// How many messages are remembered; beyond, the one that was longest not heard of is forgotten.
const REMEMBERED: u64 = 100_000;
/// How long a message is remembered that nobody is given: as long as messages wait by default.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Names a message of a queue. Two that are alike in everything have one key; they would do the same to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

/// How a message failed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// It was this one.
    certain: u32,
    /// It was this one, or another that was in the same hands.
    in_company: u32,
    /// Of the certain ones: it was unsettled for longer than the broker allows.
    timeouts: u32,
    /// How many suspects may be given out together, if this is one of them.
    together: Option<usize>,
}

impl Failures {
    pub fn count(self) -> u32 {
        self.certain.saturating_add(self.in_company)
    }

    /// How often it was unsettled for longer than the broker allows.
    pub fn timeouts(self) -> u32 {
        self.timeouts
    }

    /// How many suspects may be given out together with this one, itself included. `None`: it is no suspect.
    pub fn together(self) -> Option<usize> {
        self.together
    }

    fn add_certain(&mut self) {
        self.certain = self.certain.saturating_add(1);
        self.together = self.is_suspect().then_some(1);
    }

    fn is_suspect(self) -> bool {
        self.count() >= SEVERAL
    }
}

/// The counts.
#[derive(Debug)]
pub struct PoisonCounts {
    known: Cache<Key, Failures>,
    keys: RandomState,
    /// 0: nothing is counted.
    limit: u32,
}

impl PoisonCounts {
    /// `limit`: how many failures make a message poison; 0: any number.
    pub fn new(limit: u32) -> Self {
        let known = Cache::builder()
            .max_capacity(REMEMBERED)
            // The default policy may refuse a newcomer for one that was asked for more often.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(FORGOTTEN_AFTER)
            .build();
        Self {
            known,
            keys: RandomState::new(),
            limit,
        }
    }

    /// Whether anything is counted.
    pub fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// The key of a delivery from `queue`. Costs a pass over the payload, unless it has a publish id.
    pub fn key(&self, queue: &str, delivery: &Delivery) -> Key {
        let message = &delivery.message;
        let mut hasher = self.keys.build_hasher();
        (queue, &message.message_id).hash(&mut hasher);
        match message.headers.get(header::PUBLISH_ID) {
            // A service that copies headers into messages of its own copies this too; the sizes tell most of them apart.
            Some(id) => (id.as_str(), message.payload.len()).hash(&mut hasher),
            None => {
                (&delivery.exchange, &delivery.routing_key).hash(&mut hasher);
                (&message.kind, &message.correlation_id, message.timestamp).hash(&mut hasher);
                message.payload.hash(&mut hasher);
                let headers = message.headers.iter();
                for (name, value) in
                    headers.filter(|(name, _)| !header::COUNTERS.contains(&&***name))
                {
                    (name, format!("{value:?}")).hash(&mut hasher);
                }
            }
        }
        Key(hasher.finish())
    }

    /// Of a delivery that was given out before: its key and its failures so far, if there are any.
    pub fn find(&self, queue: &str, delivery: &Delivery) -> Option<(Key, Failures)> {
        // What was never given out has killed nobody.
        if !self.is_on() || !delivery.redelivered {
            return None;
        }
        let key = self.key(queue, delivery);
        Some((key, self.known.get(&key)?))
    }

    /// Whether its consumers die of it.
    pub fn is_poison(&self, failures: Failures) -> bool {
        let counted = failures.certain + failures.in_company.min(SEVERAL);
        failures.certain >= self.limit.min(2) && counted >= self.limit
    }

    /// A consumer died of just this one.
    pub fn record_certain(&self, key: Key) {
        self.change(key, Failures::add_certain);
    }

    /// A consumer kept it for longer than the broker allows.
    pub fn record_timeout(&self, key: Key) {
        self.change(key, |failures| {
            failures.add_certain();
            failures.timeouts = failures.timeouts.saturating_add(1);
        });
    }

    /// A consumer died that had all of these.
    pub fn record_company(&self, keys: &[Key]) {
        let count = |key: &Key| {
            self.change(*key, |failures| {
                failures.in_company = failures.in_company.saturating_add(1);
            })
        };
        let failures = keys.iter().map(count);
        let suspects: Vec<_> = std::iter::zip(keys, failures)
            .filter_map(|(key, failures)| failures.is_suspect().then_some(*key))
            .collect();
        let fewer = suspects.len().div_ceil(NARROWING);
        for key in suspects {
            self.change(key, |failures| {
                let together = failures.together.unwrap_or(usize::MAX);
                failures.together = Some(together.min(fewer));
            });
        }
    }

    /// A consumer settled it, or it is gone.
    pub fn clear(&self, key: Key) {
        self.known.invalidate(&key);
    }

    fn change(&self, key: Key, change: impl FnOnce(&mut Failures)) -> Failures {
        let changed = |known: Option<moka::Entry<Key, Failures>>| {
            let mut failures = known.map(moka::Entry::into_value).unwrap_or_default();
            change(&mut failures);
            failures
        };
        self.known.entry(key).and_upsert_with(changed).into_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Message, Value};

    fn delivery(headers: &[(&str, &str)], payload: &'static str) -> Delivery {
        let headers = headers
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Value::text(*text)));
        Delivery {
            tag: 1,
            queue: 0,
            exchange: String::new(),
            routing_key: "q".to_owned(),
            redelivered: true,
            message: Message {
                message_id: Some("same".to_owned()),
                headers: headers.collect(),
                payload: payload.into(),
                ..Message::default()
            },
        }
    }

    #[test]
    fn a_message_is_known_again_by_its_publish_id_or_by_all_that_it_is() {
        let counts = PoisonCounts::new(5);
        let key = |delivery: &Delivery| counts.key("q", delivery);
        let one = delivery(&[(header::PUBLISH_ID, "1")], "x");
        assert_eq!(key(&one), key(&delivery(&[(header::PUBLISH_ID, "1")], "x")));
        assert_ne!(key(&one), key(&delivery(&[(header::PUBLISH_ID, "2")], "x")));
        assert_ne!(key(&one), counts.key("other", &one));
        // Without one, a message id that is no id takes nobody else along.
        let native = delivery(&[("n", "1")], "x");
        let again = delivery(&[("n", "1"), ("x-delivery-count", "7")], "x");
        assert_eq!(key(&native), key(&again));
        assert_ne!(key(&native), key(&delivery(&[("n", "2")], "x")));
        assert_ne!(key(&native), key(&delivery(&[("n", "1")], "y")));
    }

    /// What is left of a crowd that dies together, as far as it is given out together again.
    fn deaths_until_poison(limit: u32, crowd: usize) -> u32 {
        let counts = PoisonCounts::new(limit);
        let poison = Key(0);
        for deaths in 1..100 {
            let together = counts.known.get(&poison).and_then(Failures::together);
            match together.unwrap_or(crowd).min(crowd) {
                1 => counts.record_certain(poison),
                many => {
                    let keys: Vec<_> = (0..many as u64).map(Key).collect();
                    counts.record_company(&keys);
                }
            }
            let failures = counts.known.get(&poison).expect("it failed");
            assert_eq!(failures.count(), deaths);
            if counts.is_poison(failures) {
                return deaths;
            }
        }
        panic!("there is no end to it");
    }

    #[test]
    fn poison_is_found_in_a_few_deaths_more_than_the_limit() {
        assert_eq!(deaths_until_poison(5, 1), 5, "it was always alone");
        assert_eq!(deaths_until_poison(1, 1), 1);
        assert_eq!(deaths_until_poison(5, 2), 5);
        assert_eq!(deaths_until_poison(5, 100), 8);
        assert_eq!(deaths_until_poison(5, 10_000), 11);
        assert_eq!(deaths_until_poison(10, 100), 13);
        assert_eq!(deaths_until_poison(1, 100), 7);
    }

    #[test]
    fn one_death_says_nothing_and_several_narrow_down_who_it_was() {
        let counts = PoisonCounts::new(5);
        let crowd: Vec<_> = (0..100).map(Key).collect();
        let together = |key: &Key| counts.known.get(key).and_then(Failures::together);
        for _ in 0..2 {
            counts.record_company(&crowd);
            assert!(crowd.iter().all(|key| together(key).is_none()));
        }
        counts.record_company(&crowd);
        assert!(crowd.iter().all(|key| together(key) == Some(25)));
        // Who is new among them is no suspect, and makes them no fewer.
        let mut some = crowd[..25].to_vec();
        some.push(Key(1_000));
        counts.record_company(&some);
        assert_eq!(together(&crowd[0]), Some(7));
        assert_eq!(together(&crowd[99]), Some(25), "it was not there");
        assert_eq!(together(&Key(1_000)), None);
        counts.clear(crowd[0]);
        assert_eq!(together(&crowd[0]), None);
    }

    #[test]
    fn nothing_is_poison_that_was_always_in_company() {
        let counts = PoisonCounts::new(5);
        let both = [Key(1), Key(2)];
        for _ in 0..50 {
            counts.record_company(&both);
        }
        let failures = |key| counts.known.get(&key).expect("it failed");
        assert!(!counts.is_poison(failures(Key(1))));
        counts.record_certain(Key(1));
        assert!(!counts.is_poison(failures(Key(1))), "once may be chance");
        counts.record_certain(Key(1));
        assert!(counts.is_poison(failures(Key(1))));
    }

    #[test]
    fn what_was_never_given_out_has_killed_nobody() {
        let counts = PoisonCounts::new(1);
        let mut it = delivery(&[], "x");
        counts.record_certain(counts.key("q", &it));
        assert!(counts.find("q", &it).is_some());
        it.redelivered = false;
        assert_eq!(counts.find("q", &it), None);
    }
}
