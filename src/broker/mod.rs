//! What the gateway asks of a message broker, and the two that answer: [`rabbitmq`] and the embedded [`memory`] broker.
//!
//! To add a backend, implement [`Broker`], [`Subscription`], [`Admin`] and [`Fetch`](admin::Fetch) in a module of its own, let the contract suite
//! (`tests/it/contract/`) run on it, and add it to the one `match` in `server.rs`.

pub mod admin;
pub mod memory;
mod publish_reply;
pub mod rabbitmq;
pub mod topology;

use async_trait::async_trait;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use uuid::Uuid;

pub use self::publish_reply::{OutcomeObserver, PublishReply};
use self::{
    admin::Admin,
    topology::{Difference, Topology},
};
use crate::{finish::RuntimeEnded, message::Message};

/// A message broker. Every method answers within its deadline, also when the broker is stopped, blocked or gone.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Whether the broker takes such a message: [`Error::NotFound`], [`Error::Forbidden`], [`Error::TooLarge`] when not.
    /// Asked before [`publish`](Self::publish), because a publish that is refused ends an AMQP channel and with it
    /// what its neighbours have in flight. The answer may be some seconds old.
    async fn check(&self, target: Target<'_>, deadline: Instant) -> Result<Checked, Error>;

    /// A lane for one stream or batch: what is published on one lane to one queue is stored in the order handed over.
    fn lane(&self) -> Lane;

    /// Takes a message over, at once. `reply` is answered exactly once, at the latest at the publish's deadline; also
    /// when whoever waits for it is gone.
    fn publish(&self, lane: Lane, publish: Publish, reply: PublishReply);

    /// Starts consuming. [`Error::NotFound`] names the missing queue.
    async fn subscribe(&self, subscribe: Subscribe) -> Result<Box<dyn Subscription>, Error>;

    /// Declares what is missing. What exists with other arguments is used as it is, and reported.
    async fn declare(&self, topology: &Topology) -> Result<Vec<Difference>, Error>;

    /// Its administrative side.
    fn admin(&self) -> &dyn Admin;

    /// The state of the links to the broker, and each change of it.
    fn links(&self) -> watch::Receiver<Links>;

    /// Closes the links. Publishes in flight are answered first, subscriptions end.
    async fn close(&self);
}

impl dyn Broker {
    /// Publishes, and waits for what becomes of it. Checks it first, unless that was done.
    pub async fn publish_and_wait(
        &self,
        lane: Lane,
        mut publish: Publish,
        observer: Option<OutcomeObserver>,
    ) -> Fate {
        let (reply, fate) = PublishReply::single();
        let reply = match observer {
            Some(observer) => reply.observed(observer),
            None => reply,
        };
        // Nothing is asked for what comes too late: `publish` says so.
        if publish.checked == Checked::default() && publish.deadline > Instant::now() {
            match self.check(publish.target(), publish.deadline).await {
                Ok(checked) => publish.checked = checked,
                Err(error) => {
                    let refused = Fate::from(error);
                    reply.answer(refused);
                    return refused;
                }
            }
        }
        self.publish(lane, publish, reply);
        // A reply answers even when it is dropped.
        fate.await.unwrap_or(Fate::InDoubt(InDoubt::ConfirmLost))
    }
}

/// Which lane a publish takes. See [`Broker::lane`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(pub usize);

/// What the broker looks at before it takes a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    pub exchange: &'a str,
    pub routing_key: &'a str,
    /// Bytes of the payload.
    pub size: usize,
}

/// Says that a [`Target`] was checked, and on what knowledge: only the broker that gave it can read it. The default is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked(pub(in crate::broker) u64);

/// A message on its way to the broker.
#[derive(Debug)]
pub struct Publish {
    /// Travels as header [`crate::message::header::PUBLISH_ID`].
    pub publish_id: Uuid,
    pub exchange: String,
    pub routing_key: String,
    /// Unset: a message that no queue takes is dropped by the broker and counts as confirmed.
    pub mandatory: bool,
    pub message: Message,
    /// When the reply is answered at the latest.
    pub deadline: Instant,
    /// Held until the message has left the gateway's memory.
    pub admission: Option<OwnedSemaphorePermit>,
    /// The answer of [`Broker::check`].
    pub checked: Checked,
}

impl Publish {
    /// To one queue and to nothing else, under an id of its own. Whoever makes it bounds how many there are at a time.
    pub fn to_queue(queue: &str, message: Message, deadline: Instant) -> Self {
        Self {
            publish_id: Uuid::now_v7(),
            exchange: String::new(),
            routing_key: queue.to_owned(),
            mandatory: true,
            message,
            deadline,
            admission: None,
            checked: Checked::default(),
        }
    }

    pub fn target(&self) -> Target<'_> {
        Target {
            exchange: &self.exchange,
            routing_key: &self.routing_key,
            size: self.message.payload.len(),
        }
    }
}

/// What became of a [`Publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The broker took responsibility.
    Confirmed,
    /// Returned: no queue takes it, nothing was stored.
    Unroutable,
    /// Nacked: a bound queue is full; others may have stored it.
    Rejected,
    /// Certainly not with the broker.
    NotSent(NotSent),
    /// Handed over, never confirmed: it may be stored.
    InDoubt(InDoubt),
    /// Refused by the broker for good, nothing was stored: the same again cannot help.
    Refused(Refusal),
}

impl From<Error> for Fate {
    /// Of a publish that a check did not let through.
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound {
                what: Entity::Queue,
                ..
            } => Self::Refused(Refusal::NoReplyAddress),
            Error::NotFound { .. } => Self::Refused(Refusal::NoExchange),
            Error::Forbidden { .. } => Self::Refused(Refusal::Forbidden),
            Error::TooLarge { .. } => Self::Refused(Refusal::TooLarge),
            Error::Blocked => Self::NotSent(NotSent::BrokerBlocked),
            _ => Self::NotSent(NotSent::BrokerDown),
        }
    }
}

/// Why the broker refuses a message for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such exchange.
    NoExchange,
    /// The gateway's user may not write to the exchange, or not with this routing key; or the exchange is internal.
    Forbidden,
    /// It is larger than the broker's `max_message_size`.
    TooLarge,
    /// It goes to a client that waits for a reply, and the broker does not know the address.
    NoReplyAddress,
}

impl Refusal {
    /// The same as the answer to a check of `target`.
    pub fn of(self, target: Target<'_>) -> Error {
        let (what, name) = (Entity::Exchange, target.exchange.to_owned());
        match self {
            Self::NoExchange => Error::NotFound { what, name },
            Self::Forbidden => Error::Forbidden { what, name },
            Self::TooLarge => Error::TooLarge { size: target.size },
            Self::NoReplyAddress => Error::NotFound {
                what: Entity::Queue,
                name: target.routing_key.to_owned(),
            },
        }
    }
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// No link to the broker.
    BrokerDown,
    /// The broker takes no messages (memory or disk alarm).
    BrokerBlocked,
    /// More is in flight than the gateway holds, or the broker confirms more slowly than messages arrive.
    Overloaded,
    /// The headers do not fit into one frame, which AMQP demands.
    HeadersTooLarge,
}

/// Why nobody knows whether a message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InDoubt {
    /// The link or channel broke before the confirm came.
    ConfirmLost,
    /// The deadline came before the confirm.
    ConfirmTimeout,
}

/// What to consume.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// In order of preference.
    pub queues: Vec<String>,
    /// How many deliveries of each queue may be unsettled at a time.
    pub prefetch: u16,
    /// Shown in the broker's list of consumers.
    pub client_id: String,
    /// `None`: the queues may be of any kind; of a stream comes what is published from now on.
    pub offset: Option<StreamOffset>,
    /// Consumers of a queue that have room get its messages before those with a lower one. Usual is 0.
    pub priority: i32,
    /// When the answer is due.
    pub deadline: Instant,
}

impl Subscribe {
    /// As usual: what is said of neither offset nor priority.
    pub fn new(queues: Vec<String>, prefetch: u16, client_id: &str, deadline: Instant) -> Self {
        Self {
            queues,
            prefetch,
            client_id: client_id.to_owned(),
            offset: None,
            priority: 0,
            deadline,
        }
    }
}

/// Where reading a stream begins (<https://www.rabbitmq.com/docs/streams#consuming>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamOffset {
    First,
    /// The last chunk that was written: one message or several.
    Last,
    /// What is published from now on.
    Next,
    At(i64),
    /// The chunk that was written then, in seconds since 1970.
    Time(u64),
}

/// Names a delivery within its subscription: 1, 2, 3, … as handed out by the broker.
pub type Tag = u64;

/// A running subscription. Dropping it, like closing it, returns everything unsettled to its queue.
#[async_trait]
pub trait Subscription: Send {
    /// The next delivery, of the earliest queue that has one ready. Loses nothing when the future is dropped.
    async fn next(&mut self) -> Result<Delivery, Ended>;

    /// A delivery that is ready now, of the earliest queue that has one.
    fn try_next(&mut self) -> Option<Result<Delivery, Ended>>;

    /// Tells the broker that these deliveries are done. Each tag was delivered and is unsettled.
    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Ended>;

    /// Returns these deliveries to their queue, for anybody: a consumer had them and did not do them, which counts towards the
    /// queue's delivery limit. Each tag was delivered and is unsettled.
    async fn requeue(&mut self, tags: &[Tag]) -> Result<(), Ended>;

    /// The same for deliveries that no consumer had in its hands. It counts only where the broker knows one kind of return, as
    /// RabbitMQ does before 4.3.
    async fn give_back(&mut self, tags: &[Tag]) -> Result<(), Ended> {
        self.requeue(tags).await
    }

    /// Takes no more deliveries; settling goes on. What was received and not yet taken by [`next`](Self::next) returns to its
    /// queue at the latest on [`close`](Self::close). `next` is not called again.
    async fn stop(&mut self);

    /// Ends the subscription; everything unsettled is back in its queue when this returns, as far as the broker answers.
    async fn close(self: Box<Self>);
}

/// A message of a queue.
#[derive(Debug)]
pub struct Delivery {
    pub tag: Tag,
    /// Index into [`Subscribe::queues`].
    pub queue: usize,
    pub exchange: String,
    pub routing_key: String,
    pub redelivered: bool,
    pub message: Message,
}

/// Why a subscription is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The queue of this index was deleted.
    QueueDeleted(usize),
    /// A delivery was unsettled for longer than the broker allows; all that was unsettled returns to its queue. Of the queue with this
    /// index, if that is known.
    ConsumerTimeout(Option<usize>),
    /// The link or channel broke; unsettled deliveries return to their queues.
    BrokerDown,
}

/// The state of the links to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    pub publish: LinkState,
    pub consume: LinkState,
}

/// The state of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    Down,
    Up,
    /// Up, and the broker takes no messages (memory or disk alarm).
    Blocked,
    /// The connection stands, and what is asked on it fails all the same.
    Failing,
}

impl LinkState {
    /// Whether the link does its work, or would if the broker let it.
    pub fn is_sound(self) -> bool {
        matches!(self, Self::Up | Self::Blocked)
    }
}

/// Why the broker did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No link to the broker.
    #[error("the broker cannot be reached")]
    Down,
    /// The broker takes no messages (memory or disk alarm).
    #[error("the broker is blocked by an alarm")]
    Blocked,
    /// The broker did not answer in time.
    #[error("the broker did not answer in time")]
    TimedOut,
    /// There is no such exchange or queue.
    #[error("no {what} {name:?}")]
    NotFound { what: Entity, name: String },
    /// The broker's permissions, or its own rules, forbid it.
    #[error("not allowed on {what} {name:?}")]
    Forbidden { what: Entity, name: String },
    /// The message is larger than the broker takes.
    #[error("the broker takes no message of {size} bytes (its max_message_size)")]
    TooLarge { size: usize },
    /// Another connection holds the queue exclusively.
    #[error("queue {name:?} is held exclusively by another connection")]
    Locked { name: String },
    /// It exists and differs from what was asked.
    #[error("{what} {name:?} exists with other arguments: {detail}")]
    Differs {
        what: Entity,
        name: String,
        detail: String,
    },
    /// It is no stream, and was asked for messages from an offset on.
    #[error("queue {name:?} is no stream")]
    NotAStream { name: String },
    /// It is a stream, whose consumers have no priority.
    #[error("queue {name:?} is a stream")]
    IsAStream { name: String },
    /// No channel is left for another subscription.
    #[error("too many subscriptions")]
    TooManySubscriptions,
    /// A queue has consumers, or an exchange bindings.
    #[error("{what} {name:?} is in use")]
    InUse { what: Entity, name: String },
    /// A queue has messages.
    #[error("queue {name:?} is not empty")]
    NotEmpty { name: String },
    /// Only RabbitMQ's management API knows, and it is switched off.
    #[error("RabbitMQ's management API is switched off (RABBITMQ_MANAGEMENT_PORT=0)")]
    ManagementOff,
    /// Only RabbitMQ's management API knows, and it does not answer.
    #[error("RabbitMQ's management API does not answer: {0}")]
    ManagementDown(String),
    /// The broker refused for a reason of its own.
    #[error("the broker refused: {0}")]
    Refused(String),
}

impl From<RuntimeEnded> for Error {
    fn from(_: RuntimeEnded) -> Self {
        Self::Down
    }
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Entity {
    Exchange,
    Queue,
    Binding,
}
