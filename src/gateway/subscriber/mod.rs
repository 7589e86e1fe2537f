//! Subscribing: what is checked before a subscription opens. A [`session`] serves it; [`protocol`] has what client and gateway say.

mod ack_id;
mod dead_letters;
mod ledger;
mod poison;
mod progress;
pub mod protocol;
mod session;

use std::{sync::Arc, time::Duration};

use futures::Stream;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};

use self::{
    dead_letters::DeadLetters,
    poison::PoisonCounts,
    protocol::{
        DEFAULT_ACK_DEADLINE, DEFAULT_OUTSTANDING, Event, MAX_ACK_DEADLINE, MAX_CLIENT_ID_BYTES,
        MAX_QUEUES, MIN_ACK_DEADLINE, Refused, Request, Start,
    },
    session::Session,
};
use super::{
    Limits, Parts, Streams, failed_messages::acks::Acks, message_log::MessageLog,
    queue_admin::QueueAdmin, validate::Invalid,
};
use crate::{
    broker::{self, Broker, Entity, StreamOffset},
    budget::{Memory, deliveries::Deliveries},
    metrics::Metrics,
    names,
    traces::Traces,
};

/// How long opening a subscription may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub struct Subscriber {
    broker: Arc<dyn Broker>,
    queues: QueueAdmin,
    acks: Acks,
    dead_letters: DeadLetters,
    log: MessageLog,
    metrics: Metrics,
    traces: Traces,
    limits: Arc<Limits>,
    memory: Arc<Deliveries>,
    poison: Arc<PoisonCounts>,
    /// Places for subscriptions.
    seats: Arc<Semaphore>,
    pub streams: Streams,
}

impl Subscriber {
    pub(super) fn new(
        parts: &Parts,
        limits: &Arc<Limits>,
        memory: &Memory,
        streams: &Streams,
    ) -> Self {
        let seats = limits.max_subscriptions.min(Semaphore::MAX_PERMITS);
        Self {
            broker: parts.broker.clone(),
            queues: parts.queue_admin.clone(),
            acks: parts.failed_messages.acks.clone(),
            dead_letters: DeadLetters::new(parts, limits.queues.dead_letter_ttl),
            log: parts.message_log.clone(),
            metrics: parts.metrics.clone(),
            traces: parts.traces.clone(),
            limits: limits.clone(),
            memory: memory.deliveries.clone(),
            poison: Arc::new(PoisonCounts::new(limits.max_delivery_failures)),
            seats: Arc::new(Semaphore::new(seats)),
            streams: streams.clone(),
        }
    }

    /// Opens a subscription and serves it in a task of its own. `requests` ends when the client half-closes.
    /// When the receiver is dropped or a [`Request::Gone`] comes, the client is gone.
    pub async fn subscribe(
        &self,
        start: Start,
        requests: impl Stream<Item = Request> + Send + Unpin + 'static,
        stream_deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<Event>, Refused> {
        let plan = self.plan(start).map_err(Refused::Invalid)?;
        if self.streams.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let Ok(seat) = self.seats.clone().try_acquire_owned() else {
            return Err(Refused::Broker(broker::Error::TooManySubscriptions));
        };
        let timeout = Instant::now() + OPEN_TIMEOUT;
        let subscribe = broker::Subscribe {
            queues: plan.queues.clone(),
            prefetch: plan.prefetch(),
            client_id: plan.client_id.clone(),
            offset: plan.offset,
            priority: plan.priority,
            deadline: stream_deadline.map_or(timeout, |deadline| deadline.min(timeout)),
        };
        let opened = self.broker.subscribe(subscribe).await;
        let subscription = opened.map_err(Refused::Broker)?;
        for queue in &plan.queues {
            self.queues.known.queue(queue);
        }
        tracing::debug!(client = plan.client_id, queues = ?plan.queues, "subscribed");

        // With auto_ack a free place in the channel means that the transport took the event before: that is what is acked.
        let (events, receiver) = mpsc::channel(if plan.auto_ack { 1 } else { 16 });
        let service = self.clone();
        let session = Session::new(service, plan, subscription, events, stream_deadline, seat);
        self.streams.tasks.spawn(session.serve(requests));
        Ok(receiver)
    }

    /// Checks what a client asks for and fills in the defaults.
    fn plan(&self, start: Start) -> Result<Plan, Invalid> {
        let Start { queues, .. } = &start;
        if queues.is_empty() || queues.len() > MAX_QUEUES {
            return Err(Invalid::field(
                "start.queues",
                format!("must name 1 to {MAX_QUEUES} queues"),
            ));
        }
        for (index, queue) in queues.iter().enumerate() {
            names::queue(queue)
                .map_err(|refused| Invalid::name("start.queues", Entity::Queue, queue, refused))?;
            if queues[..index].contains(queue) {
                return Err(Invalid::field("start.queues", "names a queue twice"));
            }
        }
        let cap = self.limits.max_outstanding;
        if start.max_outstanding > cap {
            return Err(Invalid::field(
                "start.max_outstanding",
                format!("must be at most {cap}"),
            ));
        }
        if start.stream_offset.is_some() && start.consumer_priority != 0 {
            return Err(Invalid::field(
                "start.consumer_priority",
                "does not go with start.stream_offset: each reader of a stream gets all of its messages",
            ));
        }
        let ack_deadline = start.ack_deadline.unwrap_or(DEFAULT_ACK_DEADLINE);
        check_ack_deadline("start.ack_deadline", ack_deadline)?;
        if start.client_id.len() > MAX_CLIENT_ID_BYTES
            || names::short_text(&start.client_id).is_err()
        {
            return Err(Invalid::field(
                "start.client_id",
                format!("must be at most {MAX_CLIENT_ID_BYTES} bytes without control characters"),
            ));
        }
        let max_outstanding = match start.max_outstanding {
            0 => DEFAULT_OUTSTANDING.min(cap),
            asked => asked,
        };
        Ok(Plan {
            max_outstanding,
            max_bytes: match start.max_outstanding_bytes {
                0 => usize::MAX,
                asked => usize::try_from(asked).unwrap_or(usize::MAX),
            },
            auto_ack: start.auto_ack,
            ack_deadline,
            client_id: if start.client_id.is_empty() {
                format!("courtier-{}", uuid::Uuid::new_v4().simple())
            } else {
                start.client_id
            },
            max_messages: match start.max_messages {
                0 => u64::MAX,
                asked => asked,
            },
            offset: start.stream_offset,
            priority: start.consumer_priority,
            queues: start.queues,
        })
    }
}

/// Checks an ack deadline.
pub fn check_ack_deadline(field: &'static str, deadline: Duration) -> Result<(), Invalid> {
    if (MIN_ACK_DEADLINE..=MAX_ACK_DEADLINE).contains(&deadline) {
        Ok(())
    } else {
        Err(Invalid::field(field, "must be from 1 s to 15 min"))
    }
}

/// What a client asked for, every default filled in.
pub(super) struct Plan {
    pub(super) queues: Vec<String>,
    pub(super) max_outstanding: u32,
    pub(super) max_bytes: usize,
    pub(super) auto_ack: bool,
    pub(super) ack_deadline: Duration,
    pub(super) client_id: String,
    pub(super) max_messages: u64,
    offset: Option<StreamOffset>,
    priority: i32,
}

impl Plan {
    /// `None`: deliveries are settled as they are given.
    pub(super) fn deadline(&self) -> Option<Duration> {
        (!self.auto_ack).then_some(self.ack_deadline)
    }

    fn prefetch(&self) -> u16 {
        let wanted = self.max_messages.min(self.max_outstanding.into());
        u16::try_from(wanted).unwrap_or(u16::MAX)
    }
}
