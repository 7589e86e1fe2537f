//! Counters in the hands of those who count often.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use strum::VariantArray;
use tokio::time::Instant;

use super::{
    Action, Metrics, Outcome,
    figures::{DeliveryLabels, Figures, Name, PublishLabels, SettleLabels},
};

/// Names of exchanges, and of queues, that have series of their own: each one costs memory for good. Later ones share those
/// without a name.
const MAX_NAMES: usize = 5_000;

/// Series by the name of what they are about.
#[derive(Debug)]
pub(super) struct Named<T> {
    known: RwLock<HashMap<String, Arc<T>>>,
    nameless: Arc<T>,
}

impl<T> Named<T> {
    pub(super) fn new(nameless: T) -> Self {
        Self {
            known: RwLock::default(),
            nameless: Arc::new(nameless),
        }
    }

    /// For what has no name, or none that is known to exist.
    pub(super) fn nameless(&self) -> &T {
        &self.nameless
    }

    /// The series of this name if there are any, else those without a name.
    pub(super) fn get(&self, name: &str) -> Arc<T> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).unwrap_or(&self.nameless).clone()
    }

    pub(super) fn get_or_make(&self, name: &str, make: impl FnOnce(&str) -> T) -> Arc<T> {
        let found = self.get(name);
        if name.is_empty() || !Arc::ptr_eq(&found, &self.nameless) {
            return found;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_NAMES && !known.contains_key(name) {
            return found;
        }
        let made = known.entry(name.to_owned());
        made.or_insert_with(|| Arc::new(make(name))).clone()
    }
}

/// Publishes to one exchange.
#[derive(Debug)]
pub struct Exchange([Counter; Outcome::VARIANTS.len()]);

impl Exchange {
    pub(super) fn new(figures: &Figures, name: &str) -> Self {
        let exchange = Name::from(name);
        Self(std::array::from_fn(|index| {
            let labels = PublishLabels {
                exchange: exchange.clone(),
                outcome: Outcome::VARIANTS[index].into(),
            };
            figures.publishes.get_or_create_owned(&labels)
        }))
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].inc();
    }
}

/// A publish that has no outcome yet.
#[derive(Debug)]
pub struct Publishing {
    metrics: Metrics,
    exchange: Arc<Exchange>,
    bytes: i64,
    since: Instant,
}

impl Publishing {
    pub(super) fn new(
        metrics: Metrics,
        exchange: Arc<Exchange>,
        bytes: usize,
        since: Instant,
    ) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let figures = metrics.figures();
        figures.publishes_in_flight.inc();
        figures.publishes_in_flight_bytes.inc_by(bytes);
        Self {
            metrics,
            exchange,
            bytes,
            since,
        }
    }

    /// Its outcome.
    pub fn ended(self, outcome: Outcome) {
        self.metrics.published(&self.exchange, outcome, self.since);
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        let figures = self.metrics.figures();
        figures.publishes_in_flight.dec();
        figures.publishes_in_flight_bytes.dec_by(self.bytes);
    }
}

/// Deliveries of one queue.
#[derive(Debug)]
pub struct Queue {
    pub(super) name: Name,
    /// For the first time, and again.
    delivered: [Counter; 2],
    settled: [Counter; Action::VARIANTS.len()],
}

impl Queue {
    pub(super) fn new(figures: &Figures, name: &str) -> Self {
        let name = Name::from(name);
        let delivered = |redelivered| {
            let queue = name.clone();
            let labels = DeliveryLabels { queue, redelivered };
            figures.deliveries.get_or_create_owned(&labels)
        };
        let settled = |action: &Action| {
            let labels = SettleLabels {
                queue: name.clone(),
                action: action.into(),
            };
            figures.settles.get_or_create_owned(&labels)
        };
        Self {
            delivered: [false, true].map(delivered),
            settled: std::array::from_fn(|index| settled(&Action::VARIANTS[index])),
            name: name.clone(),
        }
    }

    /// A subscriber gets a delivery.
    pub fn delivered(&self, redelivered: bool) {
        self.delivered[usize::from(redelivered)].inc();
    }

    /// A delivery is settled.
    pub fn settled(&self, action: Action) {
        self.settled[action as usize].inc();
    }
}

/// What a publish lane has to do.
#[derive(Clone, Debug)]
pub struct Lane {
    pub(super) backlog: Gauge,
    pub(super) unconfirmed: Gauge,
}

impl Lane {
    /// So many publishes wait for their turn, and so many for their confirm.
    pub fn set(&self, backlog: usize, unconfirmed: usize) {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.backlog.set(count(backlog));
        self.unconfirmed.set(count(unconfirmed));
    }
}

/// A subscription, as long as it lasts.
#[derive(Debug)]
pub struct Stream {
    metrics: Metrics,
    credit: u32,
    outstanding: i64,
}

impl Stream {
    pub(super) fn new(metrics: Metrics, credit: u32) -> Self {
        metrics.figures().subscriptions.inc();
        let credits = &metrics.figures().subscription_credit_messages;
        credits.inc_by(credit.into());
        Self {
            metrics,
            credit,
            outstanding: 0,
        }
    }

    /// The client has so many unsettled deliveries now.
    pub fn outstanding(&mut self, now: usize) {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if now != self.outstanding {
            let gauge = &self.metrics.figures().deliveries_outstanding;
            gauge.inc_by(now - self.outstanding);
            self.outstanding = now;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.outstanding(0);
        let figures = self.metrics.figures();
        figures.subscriptions.dec();
        let credits = &figures.subscription_credit_messages;
        credits.dec_by(self.credit.into());
    }
}
