//! What the message log is told of a subscription.

use std::sync::Arc;

use crate::{
    broker::{Delivery, Tag},
    failure::Time,
    gateway::{
        ledger::Settled,
        message_log::MessageLog,
        subscribe::{Given, Plan},
    },
    store::Settlement,
};

use super::Session;

/// The log, and the names that its events share.
pub(super) struct SessionLog {
    log: MessageLog,
    client: Arc<str>,
    queues: Vec<Arc<str>>,
}

impl SessionLog {
    pub(super) fn new(log: MessageLog, plan: &Plan) -> Self {
        Self {
            log,
            client: plan.client_id.as_str().into(),
            queues: plan
                .queues
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
        }
    }

    /// The transport takes these deliveries.
    pub(super) fn delivered(&self, given: &[Given]) {
        let deliveries = given.iter().filter_map(|given| {
            let delivery = &given.delivery;
            let queue = self.queues.get(delivery.queue)?;
            Some((&delivery.message, queue, delivery.redelivered))
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
            self.log.settled(&delivery.message, at, queue, settlement);
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
