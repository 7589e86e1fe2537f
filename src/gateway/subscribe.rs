//! Subscribing: what clients ask for and are told, and what is checked before a subscription opens. [`super::session`] serves it.

use std::{ops::Deref, sync::Arc, time::Duration};

use futures::Stream;
use tokio::{sync::mpsc, time::Instant};

use super::{Gateway, ledger::SettleResult, session::Session, validate::Invalid};
use crate::{
    broker::{self, Delivery, Entity, StreamOffset},
    budget::deliveries::Charge,
    error::Interrupted,
    failure::ErrorDetail,
    names,
};

/// Queues of one subscription.
pub const MAX_QUEUES: usize = 32;
pub const MAX_CLIENT_ID_BYTES: usize = 128;
/// Ids of one settle or extension: as many deliveries as a subscription can ever have out.
pub const MAX_ACK_IDS: usize = u16::MAX as usize;
pub const DEFAULT_OUTSTANDING: u32 = 100;
pub const DEFAULT_ACK_DEADLINE: Duration = Duration::from_secs(60);
pub const MIN_ACK_DEADLINE: Duration = Duration::from_secs(1);
pub const MAX_ACK_DEADLINE: Duration = Duration::from_secs(15 * 60);
pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long opening a subscription may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Start {
    pub queues: Vec<String>,
    /// 0: the default.
    pub max_outstanding: u32,
    /// 0: no limit.
    pub max_outstanding_bytes: u64,
    pub auto_ack: bool,
    pub ack_deadline: Option<Duration>,
    pub client_id: String,
    /// 0: no end.
    pub max_messages: u64,
    /// `None`: the queues need not be streams.
    pub stream_offset: Option<StreamOffset>,
    pub consumer_priority: i32,
}

/// What a client says after that.
#[derive(Debug)]
pub enum Request {
    Settle {
        acks: Vec<String>,
        nacks: Vec<Nack>,
    },
    Extend {
        ack_ids: Vec<String>,
        ack_deadline: Option<Duration>,
    },
    /// Not a request that may come here: the stream ends.
    Invalid(Invalid),
    /// The rest of the requests is not read.
    Interrupted(Interrupted),
    /// No request: the client is gone without a half-close.
    Gone,
}

/// A delivery that was not processed. `None`: not a valid nack.
#[derive(Debug)]
pub struct Nack {
    pub ack_id: String,
    pub action: Option<Action>,
    pub error: ErrorDetail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Retry(Option<Duration>),
    Requeue,
    DeadLetter,
    Discard,
}

/// What the client is told.
#[derive(Debug)]
pub enum Event {
    Started {
        max_outstanding: u32,
        ack_deadline: Duration,
    },
    Deliveries(Vec<Given>),
    Results(Vec<(String, SettleResult)>),
    Revoked(Vec<String>),
    Draining {
        grace: Duration,
    },
    /// The last event.
    End(End),
}

/// A delivery in memory, where it is counted until it is dropped.
#[derive(Debug)]
pub struct Parcel {
    delivery: Delivery,
    /// `None`: it is not counted.
    charge: Option<Charge>,
}

impl Parcel {
    pub fn new(delivery: Delivery, charge: Charge) -> Self {
        let charge = Some(charge);
        Self { delivery, charge }
    }
}

impl From<Delivery> for Parcel {
    fn from(delivery: Delivery) -> Self {
        let charge = None;
        Self { delivery, charge }
    }
}

impl Deref for Parcel {
    type Target = Delivery;

    fn deref(&self) -> &Delivery {
        &self.delivery
    }
}

impl Event {
    /// Counts the copy that is made to send it; until that is dropped.
    pub fn copied(&self) -> Option<Charge> {
        let Self::Deliveries(given) = self else {
            return None;
        };
        let bytes = given
            .iter()
            .map(|given| given.delivery.message.payload.len());
        let charge = given.first()?.delivery.charge.as_ref()?;
        Some(charge.account().copy(bytes.sum()))
    }
}

/// A delivery as the client gets it.
#[derive(Debug)]
pub struct Given {
    pub ack_id: String,
    pub delivery: Arc<Parcel>,
    pub queue: String,
    /// By the retry schedule, and how often the broker took it back because it was unsettled for too long.
    pub attempt: u32,
    /// From now; `None` with `auto_ack`.
    pub ack_deadline: Option<Duration>,
}

/// How a subscription ends.
#[derive(Debug)]
pub enum End {
    /// As the client wished.
    Done,
    Invalid(Invalid),
    QueueDeleted(String),
    /// A delivery was unsettled for longer than the broker allows.
    ConsumerTimeout,
    BrokerDown,
    /// What the broker sent does not fit into the memory, and cannot be asked for again.
    Overloaded,
    /// The rest of the requests is not read.
    Interrupted(Interrupted),
    /// The gateway stops.
    Stopping,
    /// The stream's own deadline came.
    DeadlineExceeded,
}

/// Why a subscription was not opened.
#[derive(Debug)]
pub enum Refused {
    Invalid(Invalid),
    Broker(broker::Error),
    Stopping,
}

impl Gateway {
    /// Opens a subscription and serves it in a task of its own. `requests` ends when the client half-closes.
    /// When the receiver is dropped or a [`Request::Gone`] comes, the client is gone.
    pub async fn subscribe(
        &self,
        start: Start,
        requests: impl Stream<Item = Request> + Send + Unpin + 'static,
        stream_deadline: Option<Instant>,
    ) -> Result<mpsc::Receiver<Event>, Refused> {
        let plan = self.plan(start).map_err(Refused::Invalid)?;
        if self.stopping.is_cancelled() {
            return Err(Refused::Stopping);
        }
        let Ok(seat) = self.subscriptions.clone().try_acquire_owned() else {
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
        let gateway = self.clone();
        let session = Session::new(gateway, plan, subscription, events, stream_deadline, seat);
        self.tasks.spawn(session.serve(requests));
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
