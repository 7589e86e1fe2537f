//! Messages whose consumers died: who is under suspicion, and how often a consumer ended with nothing else in its hands.
//!
//! The broker cannot tell. Its delivery count grows with every return, also of messages that were with the same consumer and
//! had nothing to do with it. So this record, shared by all subscriptions of the gateway, is kept here: what a consumer held
//! when it vanished, or let lapse, becomes a suspect and travels alone from then on (`session/quarantine.rs`); only what was
//! alone is accused. It is in memory: each replica counts for itself, and from the start after a restart.

use std::{
    hash::{BuildHasher, Hash, Hasher, RandomState},
    time::Duration,
};

use moka::{policy::EvictionPolicy, sync::Cache};

use crate::{broker::Delivery, message::header};

/// How many suspects are remembered; beyond, the one that was longest not heard of is forgotten.
const REMEMBERED: u64 = 100_000;
/// How long a suspect is remembered that nobody is given: as long as messages wait by default.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Headers that the broker changes from one delivery to the next.
const COUNTERS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// Names a message of a queue. Two that are alike in everything have one key; they would do the same to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

/// The record.
#[derive(Debug)]
pub struct Suspects {
    /// How often each was alone with a consumer that died.
    known: Cache<Key, u32>,
    keys: RandomState,
    /// 0: nobody is suspected.
    limit: u32,
}

impl Suspects {
    /// `limit`: how many accusations are enough; 0: nobody is ever suspected.
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

    /// Whether anybody can come under suspicion.
    pub fn are_sought(&self) -> bool {
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
                for (name, value) in headers.filter(|(name, _)| !COUNTERS.contains(&&***name)) {
                    (name, format!("{value:?}")).hash(&mut hasher);
                }
            }
        }
        Key(hasher.finish())
    }

    /// Of a delivery that was given out before: its key and the accusations so far, if it is a suspect.
    pub fn find(&self, queue: &str, delivery: &Delivery) -> Option<(Key, u32)> {
        // What was never given out has killed nobody.
        if !self.are_sought() || !delivery.redelivered {
            return None;
        }
        let key = self.key(queue, delivery);
        Some((key, self.known.get(&key)?))
    }

    /// Whether that many accusations are enough.
    pub fn convict(&self, accusations: u32) -> bool {
        accusations >= self.limit
    }

    /// It was with a consumer that died, perhaps among others.
    pub fn suspect(&self, key: Key) {
        self.known.entry(key).or_insert(0);
    }

    /// It was all that a consumer had that died.
    pub fn accuse(&self, key: Key) {
        let more = |known: Option<moka::Entry<Key, u32>>| {
            known.map_or(0, moka::Entry::into_value).saturating_add(1)
        };
        self.known.entry(key).and_upsert_with(more);
    }

    /// A consumer settled it, or it is gone.
    pub fn clear(&self, key: Key) {
        self.known.invalidate(&key);
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
        let suspects = Suspects::new(5);
        let key = |delivery: &Delivery| suspects.key("q", delivery);
        let one = delivery(&[(header::PUBLISH_ID, "1")], "x");
        assert_eq!(key(&one), key(&delivery(&[(header::PUBLISH_ID, "1")], "x")));
        assert_ne!(key(&one), key(&delivery(&[(header::PUBLISH_ID, "2")], "x")));
        assert_ne!(key(&one), suspects.key("other", &one));
        // Without one, a message id that is no id takes nobody else along.
        let native = delivery(&[("n", "1")], "x");
        let again = delivery(&[("n", "1"), ("x-delivery-count", "7")], "x");
        assert_eq!(key(&native), key(&again));
        assert_ne!(key(&native), key(&delivery(&[("n", "2")], "x")));
        assert_ne!(key(&native), key(&delivery(&[("n", "1")], "y")));
    }

    #[test]
    fn only_accusations_convict_and_settling_clears() {
        let suspects = Suspects::new(2);
        let it = delivery(&[], "x");
        let key = suspects.key("q", &it);
        assert_eq!(suspects.find("q", &it), None);
        suspects.suspect(key);
        suspects.suspect(key);
        assert_eq!(suspects.find("q", &it), Some((key, 0)));
        suspects.accuse(key);
        suspects.suspect(key);
        assert_eq!(suspects.find("q", &it), Some((key, 1)));
        assert!(!suspects.convict(1) && suspects.convict(2));
        suspects.clear(key);
        assert_eq!(suspects.find("q", &it), None);
    }

    #[test]
    fn what_was_never_given_out_is_no_suspect() {
        let suspects = Suspects::new(1);
        let mut it = delivery(&[], "x");
        suspects.accuse(suspects.key("q", &it));
        it.redelivered = false;
        assert_eq!(suspects.find("q", &it), None);
    }
}
