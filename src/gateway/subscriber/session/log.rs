//! What is noted of a subscription: in the message log, in the figures, and in the traces of its messages.

use std::sync::Arc;

use crate::{
    broker::{Delivery, Tag},
    failed_message::Time,
    gateway::{
        failed_messages::dead_letter,
        message_log::MessageLog,
        subscriber::{Plan, Subscriber, ledger::Settled, protocol::Given},
    },
    metrics::{self, Action},
    store::Settlement,
    traces::{self, Origin, Place, Span, Step, Traces},
};

use super::Session;

/// Where it is noted, and what is the same for all deliveries.
pub(super) struct SessionLog {
    log: MessageLog,
    client: Arc<str>,
    queues: Vec<Queue>,
    stream: metrics::Stream,
    traces: Traces,
}

struct Queue {
    name: Arc<str>,
    figures: Arc<metrics::Queue>,
}

impl SessionLog {
    /// The queues of `plan` exist.
    pub(super) fn new(service: &Subscriber, plan: &Plan) -> Self {
        let queue = |name: &String| Queue {
            name: name.as_str().into(),
            figures: service.metrics.queue(name),
        };
        Self {
            log: service.log.clone(),
            client: plan.client_id.as_str().into(),
            queues: plan.queues.iter().map(queue).collect(),
            stream: service.metrics.stream(plan.max_outstanding),
            traces: service.traces.clone(),
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
                let message = &given.delivery.message;
                tracing::debug!(
                    message_id = message.message_id,
                    queue = &*queue.name,
                    client = &*self.client,
                    attempt = dead_letter::attempt(message),
                    redelivered = given.delivery.redelivered,
                    trace_id = traces::id_of(message),
                    "delivered"
                );
                if let Some(mut span) = self.begin(Step::Deliver, &given.delivery, queue) {
                    span.set("messaging.client.id", self.client.to_string());
                }
            }
        }
        let deliveries = given.iter().filter_map(|given| {
            let delivery = &given.delivery;
            let queue = self.queues.get(delivery.queue)?;
            Some((&delivery.message, &queue.name, delivery.redelivered))
        });
        self.log.delivered(deliveries, &self.client);
    }

    fn begin(&self, step: Step, delivery: &Delivery, queue: &Queue) -> Option<Span> {
        if !self.traces.are_exported() {
            return None;
        }
        let place = Place {
            exchange: &delivery.exchange,
            routing_key: &delivery.routing_key,
            queue: &queue.name,
        };
        let origin = Origin::of_message(&delivery.message.headers);
        self.traces
            .begin(step, place, &delivery.message, origin.as_ref())
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
            let message = &delivery.message;
            tracing::debug!(
                message_id = message.message_id,
                queue = &*queue.name,
                client = &*self.client,
                action = <&str>::from(Action::from(how)),
                trace_id = traces::id_of(message),
                "settled"
            );
            if let Some(mut span) = self.begin(Step::Settle, delivery, queue) {
                span.set("courtier.action", <&str>::from(Action::from(how)));
            }
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
