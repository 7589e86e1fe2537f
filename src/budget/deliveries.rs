//! What subscriptions hold: deliveries that wait for their client, that it has not settled, and that are on their way to it.
//!
//! A subscription may hold at most half as much as is free (Choudhury and Hahne, "Dynamic queue length thresholds", 1998): alone it gets
//! a third of the share, and however many there are some is left for the next, whose messages are small at least. A message too
//! large for that rule, ever, goes alone: one such in the process at a time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// What a delivery takes besides its payload.
const ENVELOPE: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub struct Deliveries {
    limit: usize,
    held: AtomicUsize,
    giant: AtomicBool,
}

/// A subscription's part.
#[derive(Clone, Debug)]
pub struct Account(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: Arc<Deliveries>,
    own: AtomicUsize,
    payloads: AtomicUsize,
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
    /// How much of it is the subscription's own.
    own: usize,
    payload: usize,
    giant: bool,
}

impl Deliveries {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            giant: AtomicBool::new(false),
        }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether a subscription may hold this much while all together hold that much.
    fn fits(&self, held: usize, own: usize) -> bool {
        own <= self.limit.saturating_sub(held) / 2
    }

    pub fn account(self: &Arc<Self>) -> Account {
        Account(Arc::new(Inner {
            all: self.clone(),
            own: AtomicUsize::new(0),
            payloads: AtomicUsize::new(0),
        }))
    }
}

impl Account {
    /// Bytes that this subscription holds.
    pub fn held(&self) -> usize {
        self.0.own.load(Ordering::Relaxed)
    }

    /// How many of them are payloads.
    pub fn payloads(&self) -> usize {
        self.0.payloads.load(Ordering::Relaxed)
    }

    /// Room for a delivery with this payload, if there is any.
    pub fn take(&self, payload: usize) -> Option<Charge> {
        let bytes = payload.saturating_add(ENVELOPE);
        let own = self.held();
        let all = &self.0.all;
        if own == 0 && bytes > all.limit / 4 {
            if all.giant.swap(true, Ordering::Relaxed) {
                return None;
            }
            // Not all of it: the others are to go on beside it.
            let counted = all.limit / 4;
            all.held.fetch_add(counted, Ordering::Relaxed);
            return Some(self.charge(counted, counted, payload, true));
        }
        let fits = |held: usize| all.fits(held, own + bytes).then_some(held + bytes);
        let order = Ordering::Relaxed;
        all.held.fetch_update(order, order, fits).ok()?;
        Some(self.charge(bytes, bytes, payload, false))
    }

    /// Counts a copy that the transport makes, which is there in any case and takes no part of the subscription's room.
    pub fn copy(&self, payload: usize) -> Charge {
        self.0.all.held.fetch_add(payload, Ordering::Relaxed);
        self.charge(payload, 0, 0, false)
    }

    fn charge(&self, bytes: usize, own: usize, payload: usize, giant: bool) -> Charge {
        self.0.own.fetch_add(own, Ordering::Relaxed);
        self.0.payloads.fetch_add(payload, Ordering::Relaxed);
        Charge {
            account: self.clone(),
            bytes,
            own,
            payload,
            giant,
        }
    }
}

impl Charge {
    /// Whose it is.
    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Inner { all, own, payloads } = &*self.account.0;
        own.fetch_sub(self.own, Ordering::Relaxed);
        payloads.fetch_sub(self.payload, Ordering::Relaxed);
        all.held.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.giant {
            all.giant.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn one_gets_a_third_and_something_is_left_for_the_next() {
        let all = Arc::new(Deliveries::new(96 * MIB));
        let take_all = |account: &Account, payload| -> Vec<Charge> {
            std::iter::from_fn(|| account.take(payload)).collect()
        };
        let greedy: Vec<_> = (0..50).map(|_| all.account()).collect();
        let held: Vec<_> = greedy.iter().map(|one| take_all(one, 4 * MIB)).collect();
        assert_eq!(held[0].len(), 8);
        assert!(all.held() <= all.limit());
        let modest = all.account();
        assert!(!take_all(&modest, 1_000).is_empty());
        drop(held);
        assert_eq!(all.held(), modest.held());
    }

    #[test]
    fn what_is_too_large_for_the_rule_goes_alone() {
        let all = Arc::new(Deliveries::new(8 * MIB));
        let (first, second) = (all.account(), all.account());
        let giant = first.take(100 * MIB);
        assert!(giant.is_some());
        assert!(second.take(100 * MIB).is_none());
        assert!(second.take(1).is_some());
        drop(giant);
        assert!(second.take(100 * MIB).is_some());
    }
}
