//! Who is connected: how many connections there are, in all and from each address, and how many more there may be.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::metrics::{ConnectionRefused, Metrics};

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Most {
    pub(super) in_all: usize,
    pub(super) from_one_address: usize,
}

/// The connections of one listener.
#[derive(Clone)]
pub(super) struct Seats(Arc<Inner>);

struct Inner {
    most: Most,
    metrics: Metrics,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A connection's place, given back on drop.
pub(super) struct Seat {
    seats: Seats,
    address: IpAddr,
}

impl Seats {
    pub(super) fn new(most: Most, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            most,
            metrics,
            taken: Mutex::default(),
        }))
    }

    pub(super) fn most(&self) -> Most {
        self.0.most
    }

    /// A place for a connection from this address, or why there is none.
    pub(super) fn take(&self, address: IpAddr) -> Result<Seat, ConnectionRefused> {
        // An IPv4 client of a socket that listens on IPv6 is the same client.
        let address = address.to_canonical();
        let Inner { most, metrics, .. } = &*self.0;
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.in_all >= most.in_all {
            return Err(ConnectionRefused::Limit);
        }
        let here = taken.by_address.entry(address).or_default();
        if *here >= most.from_one_address {
            return Err(ConnectionRefused::AddressLimit);
        }
        *here += 1;
        taken.in_all += 1;
        metrics.connections(taken.in_all);
        drop(taken);
        let seats = self.clone();
        Ok(Seat { seats, address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Inner { taken, metrics, .. } = &*self.seats.0;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        metrics.connections(taken.in_all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_all_and_by_address_and_come_back() {
        let most = Most {
            in_all: 3,
            from_one_address: 2,
        };
        let seats = Seats::new(most, Metrics::default());
        let take = |address: &str| seats.take(address.parse().expect("an address"));
        let (first, second) = (take("10.0.0.1"), take("::ffff:10.0.0.1"));
        assert!(first.is_ok() && second.is_ok());
        let refused = take("10.0.0.1").err();
        assert_eq!(refused, Some(ConnectionRefused::AddressLimit));
        let third = take("10.0.0.2");
        assert!(third.is_ok());
        assert_eq!(take("10.0.0.3").err(), Some(ConnectionRefused::Limit));
        drop(first);
        assert!(take("10.0.0.1").is_ok());
        drop((second, third));
        let taken = seats.0.taken.lock().expect("nobody panicked");
        assert!(taken.in_all == 0 && taken.by_address.is_empty());
    }
}
