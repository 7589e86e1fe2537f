//! What the gateway asks of a broker besides messages: what exists and how it does, and to take things away. Things are made by
//! [`Broker::declare`](super::Broker::declare).
//!
//! A figure that is not known is `None`, never 0.

use async_trait::async_trait;

use super::{Delivery, Entity, Error, Tag, topology::Binding};
use crate::message::Table;

/// The administrative side of a broker. Every method answers within some seconds.
#[async_trait]
pub trait Admin: Send + Sync {
    /// All queues. [`Error::ManagementOff`], [`Error::ManagementDown`]: nobody can tell.
    async fn queues(&self) -> Result<Vec<QueueInfo>, Error>;

    /// One queue: what is ready and how many consume is exact and of now. [`Error::NotFound`], [`Error::Locked`].
    async fn queue(&self, name: &str) -> Result<QueueInfo, Error>;

    /// All exchanges. [`Error::ManagementOff`], [`Error::ManagementDown`]: nobody can tell.
    async fn exchanges(&self) -> Result<Vec<ExchangeInfo>, Error>;

    /// One exchange. [`Error::NotFound`].
    async fn exchange(&self, name: &str) -> Result<ExchangeInfo, Error>;

    /// All bindings but those to the default exchange. [`Error::ManagementOff`], [`Error::ManagementDown`]: nobody can tell.
    async fn bindings(&self) -> Result<Vec<BindingInfo>, Error>;

    /// The broker as a whole; answers also while it is away.
    async fn status(&self) -> BrokerStatus;

    /// Deletes a queue with all that is in it; how many messages that was. [`Error::InUse`], [`Error::NotEmpty`].
    async fn delete_queue(&self, name: &str, only: OnlyIf) -> Result<u64, Error>;

    /// Deletes what is ready in a queue; how many messages that was.
    async fn purge_queue(&self, name: &str) -> Result<u64, Error>;

    /// Deletes an exchange. [`Error::InUse`].
    async fn delete_exchange(&self, name: &str, only_if_unused: bool) -> Result<(), Error>;

    /// Removes a binding; one that is not there is no error.
    async fn unbind(&self, binding: &Binding) -> Result<(), Error>;

    /// Begins to fetch from a queue.
    async fn fetch(&self, queue: &str) -> Result<Box<dyn Fetch>, Error>;
}

/// Takes messages from a queue one by one, without consuming. Dropping it, like closing it, returns what is not acked.
#[async_trait]
pub trait Fetch: Send {
    /// The next ready message; `None`: there is none now.
    async fn next(&mut self) -> Result<Option<Delivery>, Error>;

    /// Tells the broker that these are done. Each tag was fetched and is unsettled.
    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Error>;

    /// Ends it; what was not acked is back in its queue when this returns. An error: whether the broker has carried out the
    /// acks is not known.
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

/// Conditions of a deletion.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnlyIf {
    /// Nobody consumes.
    pub unused: bool,
    /// Nothing is ready.
    pub empty: bool,
}

impl OnlyIf {
    /// Refuses a queue that has what it must not have. `None`: nobody tells.
    pub(super) fn check(
        self,
        name: &str,
        consumers: Option<u64>,
        ready: Option<u64>,
    ) -> Result<(), Error> {
        let name = name.to_owned();
        if self.unused && consumers.is_some_and(|count| count > 0) {
            let what = Entity::Queue;
            return Err(Error::InUse { what, name });
        }
        if self.empty && ready.is_some_and(|count| count > 0) {
            return Err(Error::NotEmpty { name });
        }
        Ok(())
    }
}

/// A queue and how it does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueInfo {
    pub name: String,
    /// `quorum`, `classic`, `stream`.
    pub kind: Option<String>,
    pub durable: Option<bool>,
    /// The broker deletes it when its last consumer goes.
    pub auto_delete: Option<bool>,
    pub arguments: Option<Table>,
    pub ready: Option<u64>,
    pub unacked: Option<u64>,
    pub consumers: Option<u64>,
    pub publish: Flow,
    /// To consumers, redeliveries included.
    pub deliver: Flow,
    /// Acked, or given to those who ack nothing.
    pub ack: Flow,
    /// Ready messages over the most that it holds.
    pub capacity_ratio: Option<f64>,
    /// How often a message may come back before the queue dead-letters or drops it.
    pub delivery_limit: Option<u32>,
    pub source: Source,
}

/// Messages that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Since the queue was declared, or the broker began to count.
    pub total: Option<u64>,
    pub per_second: Option<f64>,
}

impl Flow {
    /// Both together; what is known of one only is that one's.
    pub(super) fn and(self, other: Self) -> Self {
        fn sum<T: std::ops::Add<Output = T>>(a: Option<T>, b: Option<T>) -> Option<T> {
            match (a, b) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            }
        }
        Self {
            total: sum(self.total, other.total),
            per_second: sum(self.per_second, other.per_second),
        }
    }
}

/// Who was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Source {
    /// AMQP alone.
    #[default]
    Amqp,
    /// AMQP and RabbitMQ's management API.
    Management,
    Embedded,
}

/// An exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeInfo {
    pub name: String,
    /// `direct`, `topic`, `fanout`, `headers`, or a plugin's.
    pub kind: Option<String>,
    pub durable: Option<bool>,
    pub internal: Option<bool>,
    pub arguments: Option<Table>,
}

/// A binding.
#[derive(Clone, Debug, PartialEq)]
pub struct BindingInfo {
    pub exchange: String,
    pub destination: Destination,
    pub routing_key: String,
    pub arguments: Table,
}

/// What a binding leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    Queue(String),
    Exchange(String),
}

/// The broker as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerStatus {
    pub product: &'static str,
    pub version: Option<String>,
    pub cluster: Option<String>,
    pub virtual_host: String,
    pub nodes: Vec<Node>,
    /// Client connections, the gateway's own included.
    pub connections: Option<u64>,
    pub management: Management,
}

/// Whether RabbitMQ's management API answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Management {
    Up,
    /// It does not, and why.
    Down(String),
    Off,
    /// The embedded broker has none.
    NotNeeded,
}

/// A node of the broker's cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub name: String,
    pub running: bool,
    /// Bytes.
    pub memory_used: Option<u64>,
    /// Bytes beyond which publishers are blocked.
    pub memory_limit: Option<u64>,
    pub memory_alarm: bool,
    /// Bytes.
    pub disk_free: Option<u64>,
    /// Bytes below which publishers are blocked.
    pub disk_free_limit: Option<u64>,
    pub disk_alarm: bool,
}
