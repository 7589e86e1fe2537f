//! What the gateway does, one room a service, whatever the protocol in front and the broker behind.

pub mod alerts;
pub mod exposition;
pub mod failed_messages;
pub mod message_log;
pub mod page;
pub mod publisher;
pub mod queue_admin;
pub mod subscriber;
pub mod validate;

use std::{sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    alerts::Alerts, failed_messages::FailedMessages, message_log::MessageLog, publisher::Publisher,
    queue_admin::QueueAdmin, subscriber::Subscriber,
};
use crate::{
    broker::{Broker, topology::QueueDefaults},
    budget::Memory,
    metrics::Metrics,
    traces::Traces,
};

/// What a request may hold besides its payload: headers, properties, and the encoding's own bytes.
const ENVELOPE_BYTES: usize = 64 * 1024;

/// What bounds the gateway's work.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one payload.
    pub max_payload_bytes: usize,
    /// Bytes of one batch of publishes, encoded.
    pub max_batch_bytes: usize,
    /// Bytes of messages that wait for their outcome, over all callers; at most the share of them in the memory.
    pub max_in_flight_bytes: usize,
    /// Memory that the process may take.
    pub max_memory_bytes: usize,
    /// How long one publish may take when its caller sets no deadline.
    pub publish_timeout: Duration,
    /// Unanswered publishes of one stream.
    pub publish_window: usize,
    /// Unsettled deliveries that one subscription may ask for.
    pub max_outstanding: u32,
    /// Subscriptions at a time.
    pub max_subscriptions: usize,
    /// How long settling goes on after the gateway was told to stop.
    pub shutdown_grace: Duration,
    /// How many consumers may die, or let the ack deadline pass, with the same message in their hands, before that message is moved
    /// to its dead-letter queue (a few more, while it is in company: [`subscriber`]); 0: any number.
    pub max_delivery_failures: u32,
    /// How long messages wait in queues that the gateway makes.
    pub queues: QueueDefaults,
}

impl Limits {
    /// Bytes of one request, in any protocol.
    pub fn request_bytes(&self) -> usize {
        self.max_payload_bytes.saturating_add(ENVELOPE_BYTES)
    }

    /// Bytes of one batch: a batch of one message takes what a request does.
    pub fn batch_bytes(&self) -> usize {
        self.max_batch_bytes.max(self.request_bytes())
    }
}

/// The services, one a `.proto`, shared by all protocols; and what those need who serve them.
#[derive(Clone)]
pub struct Gateway {
    pub publisher: Publisher,
    pub subscriber: Subscriber,
    pub failed_messages: FailedMessages,
    pub queue_admin: QueueAdmin,
    pub message_log: MessageLog,
    pub alerts: Alerts,
    pub broker: Arc<dyn Broker>,
    pub metrics: Metrics,
    pub limits: Arc<Limits>,
    pub memory: Memory,
    pub streams: Streams,
}

/// Streams under way.
#[derive(Clone, Debug)]
pub struct Streams {
    pub tasks: TaskTracker,
    /// Cancelled when the gateway is told to stop: streams wind up ([`Limits::shutdown_grace`]).
    pub stopping: CancellationToken,
}

/// What a gateway is put together from.
pub struct Parts {
    pub broker: Arc<dyn Broker>,
    pub failed_messages: FailedMessages,
    pub message_log: MessageLog,
    pub queue_admin: QueueAdmin,
    pub alerts: Alerts,
    pub metrics: Metrics,
    pub traces: Traces,
}

impl Gateway {
    /// A gateway of these parts. `stopping`: see [`Streams::stopping`].
    pub fn new(parts: Parts, limits: Limits, stopping: CancellationToken) -> Self {
        let limits = Arc::new(limits);
        let memory = Memory::new(limits.max_memory_bytes, limits.request_bytes());
        let streams = Streams {
            tasks: TaskTracker::new(),
            stopping,
        };
        let publisher = Publisher::new(&parts, &limits, memory.publishes);
        let subscriber = Subscriber::new(&parts, &limits, &memory, &streams);
        let Parts {
            broker,
            failed_messages,
            message_log,
            queue_admin,
            alerts,
            metrics,
            traces: _,
        } = parts;
        Self {
            publisher,
            subscriber,
            failed_messages,
            queue_admin,
            message_log,
            alerts,
            broker,
            metrics,
            limits,
            memory,
            streams,
        }
    }

    /// The shares of the memory: their names, what is held, and what may be.
    pub fn shares(&self) -> [(&'static str, usize, usize); 3] {
        let Memory {
            intake, deliveries, ..
        } = &self.memory;
        let (publishes, most) = self.publisher.in_flight();
        [
            ("requests", intake.held(), intake.limit()),
            ("publishes", publishes, most),
            ("deliveries", deliveries.held(), deliveries.limit()),
        ]
    }
}
