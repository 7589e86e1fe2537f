//! What is noted of a subscription: in the message log, and in the figures.

use std::sync::Arc;

use crate::{
    broker::{Delivery, Tag},
    failure::Time,
    gateway::{
        ledger::Settled,
        message_log::MessageLog,
        subscribe::{Given, Plan},
    },
    metrics::{self, Action, Metrics},
    store::Settlement,
};

use super::Session;

/// The log and the figures, and what is the same for all deliveries.
pub(super) struct SessionLog {
    log: MessageLog,
    client: Arc<str>,
    queues: Vec<Queue>,
    stream: metrics::Stream,
}

struct Queue {
    name: Arc<str>,
    figures: Arc<metrics::Queue>,
}

impl SessionLog {
    /// The queues of `plan` exist.
    pub(super) fn new(log: MessageLog, metrics: &Metrics, plan: &Plan) -> Self {
        let queue = |name: &String| Queue {
            name: name.as_str().into(),
            figures: metrics.queue(name),
        };
        Self {
            log,
            client: plan.client_id.as_str().into(),
            queues: plan.queues.iter().map(queue).collect(),
            stream: metrics.stream(plan.max_outstanding),
        }
    }

    /// The client has so many unsettled deliveries now.
    pub(super) fn outstanding(&mut self, now: usize) {
        self.stream.outstanding(now);
    }

    /// The transport takes these deliveries.
    pub(super) fn delivered(&self, given: &[Given]) {
        for given in given {
            if let Some(queue) = self.queues.get(given.delivery.queue) {
                queue.figures.delivered(given.delivery.redelivered);
            }
        }
        let deliveries = given.iter().filter_map(|given| {
            let delivery = &given.delivery;
            let queue = self.queues.get(delivery.queue)?;
            Some((&delivery.message, &queue.name, delivery.redelivered))
        });
        self.log.delivered(deliveries, &self.client);
    }

    fn settled(&self, delivery: &Delivery, how: Settled, at: Time) {
        let settlement = match how {
            Settled::Ack => Settlement::Ack,
            Settled::Automatic => Settlement::AutoAck,
            Settled::Retry => Settlement::Retry,
            Settled::Requeue => Settlement::Requeue,
            Settled::DeadLetter => Settlement::DeadLetter,
            Settled::Discard => Settlement::Discard,
            Settled::Lapsed => Settlement::Lapsed,
        };
        if let Some(queue) = self.queues.get(delivery.queue) {
            queue.figures.settled(how.into());
            self.log
                .settled(&delivery.message, at, &queue.name, settlement);
        }
    }
}

impl Session {
    /// A delivery that is still in the books was settled at this time.
    pub(super) fn log_settled(&self, tag: Tag, how: Settled, at: Time) {
        if let Some(delivery) = self.ledger.delivery(tag) {
            self.log.settled(delivery, how, at);
        }
    }
}

impl From<Settled> for Action {
    fn from(how: Settled) -> Self {
        match how {
            Settled::Ack => Self::Ack,
            Settled::Automatic => Self::AutoAck,
            Settled::Retry => Self::Retry,
            Settled::Requeue => Self::Requeue,
            Settled::DeadLetter => Self::DeadLetter,
            Settled::Discard => Self::Discard,
            Settled::Lapsed => Self::Expired,
        }
    }
}
