//! What clients ask for and are told.

use std::{ops::Deref, sync::Arc, time::Duration};

use crate::{
    broker::{self, Delivery, StreamOffset},
    budget::{deliveries::Charge, intake::Interrupted},
    failed_message::ErrorDetail,
    gateway::validate::Invalid,
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

/// What a client is told of a settle or an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleResult {
    Ok,
    Stale,
    Invalid,
    AlreadySettled,
    NotSettled,
}

/// How a subscription ends.
#[derive(Debug)]
pub enum End {
    /// As the client wished.
    Done,
    Invalid(Invalid),
    QueueDeleted(String),
    /// A delivery was unsettled for longer than the broker allows; of the queue with this index, if that is known.
    ConsumerTimeout(Option<usize>),
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
