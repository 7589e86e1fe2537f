//! What the service does, one file a feature, whatever the protocol in front and the broker behind.

pub mod alerts;
pub mod exposition;
pub mod failed_messages;
pub mod message_log;
pub mod page;
pub mod publisher;
pub mod queue_admin;
mod records;
pub mod subscriber;
pub mod validate;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Mutex, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    alerts::Alerts, failed_messages::FailedMessages, message_log::MessageLog,
    queue_admin::QueueAdmin, subscriber::poison::PoisonCounts,
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
    /// to its dead-letter queue (a few more, while it is in company: `poison.rs`); 0: any number.
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

/// The service, shared by all protocols.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) failed: FailedMessages,
    pub(crate) log: MessageLog,
    pub(crate) queues: QueueAdmin,
    pub(crate) alerts: Alerts,
    pub(crate) metrics: Metrics,
    traces: Traces,
    pub(crate) limits: Arc<Limits>,
    pub(crate) memory: Memory,
    /// Bytes of messages that may still come in.
    admission: Arc<Semaphore>,
    /// How many that is while there is none.
    in_flight: usize,
    subscriptions: Arc<Semaphore>,
    poison: Arc<PoisonCounts>,
    /// Held while a missing dead-letter queue is made.
    making_queues: Arc<Mutex<()>>,
    /// Cancelled when the gateway is told to stop: streams wind up.
    pub(crate) stopping: CancellationToken,
    /// Streams under way.
    pub(crate) tasks: TaskTracker,
}

/// What a gateway is put together from.
pub struct Parts {
    pub broker: Arc<dyn Broker>,
    pub failed: FailedMessages,
    pub log: MessageLog,
    pub queues: QueueAdmin,
    pub alerts: Alerts,
    pub metrics: Metrics,
    pub traces: Traces,
}

impl Gateway {
    /// A gateway of these parts. `stopping`: see [`Limits::shutdown_grace`].
    pub fn new(parts: Parts, limits: Limits, stopping: CancellationToken) -> Self {
        let Parts {
            broker,
            failed,
            log,
            queues,
            alerts,
            metrics,
            traces,
        } = parts;
        let memory = Memory::new(limits.max_memory_bytes, limits.request_bytes());
        let in_flight = limits.max_in_flight_bytes.min(memory.publishes);
        let admission = Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS));
        let subscriptions = Semaphore::new(limits.max_subscriptions.min(Semaphore::MAX_PERMITS));
        let poison = PoisonCounts::new(limits.max_delivery_failures);
        Self {
            broker,
            failed,
            log,
            queues,
            alerts,
            metrics,
            traces,
            limits: Arc::new(limits),
            memory,
            admission: Arc::new(admission),
            in_flight,
            subscriptions: Arc::new(subscriptions),
            poison: Arc::new(poison),
            making_queues: Arc::default(),
            stopping,
            tasks: TaskTracker::new(),
        }
    }

    /// The shares of the memory: their names, what is held, and what may be.
    pub fn shares(&self) -> [(&'static str, usize, usize); 3] {
        let Memory {
            intake, deliveries, ..
        } = &self.memory;
        let free = self.admission.available_permits();
        let publishes = self.in_flight.saturating_sub(free);
        [
            ("requests", intake.held(), intake.limit()),
            ("publishes", publishes, self.in_flight),
            ("deliveries", deliveries.held(), deliveries.limit()),
        ]
    }
}
