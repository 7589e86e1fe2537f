//! Queue administration: what exists on the broker and how it does ([`figures`]), changes to it ([`change`], [`plan`]), and what is
//! in the queues ([`peek`], [`moving`]).
//!
//! What the broker cannot tell for want of the management API is told as far as the gateway itself knows ([`known`]).

mod audit;
mod change;
mod deletion;
mod figures;
mod known;
mod moving;
mod peek;
pub mod plan;
mod rates;
mod samples;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

pub(super) use self::figures::time_to_drain;
pub use self::{
    change::{Created, NewQueue, Profile},
    deletion::{Deleted, Kept},
    figures::{Answer, QueueStats},
    moving::Moved,
    peek::MAX_PEEKED,
};
use self::{known::Known, rates::Rates, samples::Samples};
use super::{failed_messages::FailedMessages, page::BadToken, validate::Invalid};
use crate::{
    broker::{
        self, Broker, Entity, Fate,
        admin::{Management, QueueInfo},
        topology::{QueueDefaults, Topology, argument},
    },
    coalesce::Coalesced,
    finish::RuntimeEnded,
    names,
};

/// Why a call about queues was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("the page token is not one of this list")]
    PageToken,
    /// It exists, and differs.
    #[error("{0} already exists with different arguments")]
    Differs(plan::Change),
    /// The gateway has no topology file.
    #[error("there is no topology file")]
    NoTopology,
    /// The copy of a message is not confirmed; the message is where it was.
    #[error("the copy is not confirmed: {0:?}")]
    NotMoved(Fate),
    /// Messages cannot be fetched from it: it is a stream, or the broker has other reasons.
    #[error("messages cannot be fetched from it: {0}")]
    NotFetched(String),
    /// The broker does not take what it was asked to make; in its own words.
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Broker(broker::Error),
}

impl From<broker::Error> for Error {
    fn from(error: broker::Error) -> Self {
        match error {
            broker::Error::Refused(words) | broker::Error::Differs { detail: words, .. } => {
                Self::Refused(words)
            }
            error => Self::Broker(error),
        }
    }
}

impl From<RuntimeEnded> for Error {
    fn from(_: RuntimeEnded) -> Self {
        Self::Broker(broker::Error::Down)
    }
}

impl From<BadToken> for Error {
    fn from(_: BadToken) -> Self {
        Self::PageToken
    }
}

/// Why a fetch failed.
fn not_fetched(error: broker::Error) -> Error {
    match error {
        broker::Error::Refused(words) => Error::NotFetched(words),
        error => error.into(),
    }
}

/// Whether a queue is known to keep what is consumed.
pub(super) fn is_stream(queue: &QueueInfo) -> bool {
    queue.kind.as_deref() == Some("stream")
}

/// Refuses a queue that is known to be a stream.
fn fetchable(queue: &QueueInfo) -> Result<(), Error> {
    if is_stream(queue) {
        let words = "it is a stream, which only consumers read";
        return Err(Error::NotFetched(words.to_owned()));
    }
    Ok(())
}

/// Queues that the broker is asked about at a time: each is a channel, and a request to its management API.
const MOST_ASKED: usize = 32;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(5);

/// The service.
#[derive(Clone)]
pub struct QueueAdmin {
    broker: Arc<dyn Broker>,
    failed: FailedMessages,
    defaults: QueueDefaults,
    /// What the topology file says.
    topology: Option<Arc<Topology>>,
    pub(super) known: Known,
    rates: Rates,
    samples: Samples,
    /// Questions about one queue, and about all, that several ask.
    asked: Coalesced<String, Result<QueueInfo, broker::Error>>,
    listed: Coalesced<(), Result<Answer<Vec<QueueInfo>>, Error>>,
    /// Queues that are asked about at a time.
    turns: Arc<Semaphore>,
}

impl QueueAdmin {
    pub fn new(
        broker: Arc<dyn Broker>,
        failed: FailedMessages,
        defaults: QueueDefaults,
        topology: Option<Topology>,
    ) -> Self {
        Self {
            known: Known::new(topology.as_ref()),
            topology: topology.map(Arc::new),
            rates: Rates::default(),
            samples: Samples::default(),
            asked: Coalesced::default(),
            listed: Coalesced::default(),
            turns: Arc::new(Semaphore::new(MOST_ASKED)),
            broker,
            failed,
            defaults,
        }
    }

    /// Whether a queue goes by itself when nobody uses it, as far as anybody tells.
    pub(super) async fn is_temporary(&self, name: &str) -> bool {
        if self.known.is_temporary(name) {
            return true;
        }
        let Ok(queue) = self.broker.admin().queue(name).await else {
            return false;
        };
        let arguments = queue.arguments.unwrap_or_default();
        let is = queue.auto_delete == Some(true) || arguments.contains_key(argument::EXPIRES);
        if is {
            self.known.temporary(name);
        }
        is
    }
}

/// Why lists may be short or figures missing, for people; empty where nothing is.
fn note(management: &Management) -> String {
    match management {
        Management::Up | Management::NotNeeded => String::new(),
        Management::Off => {
            "without RabbitMQ's management API (RABBITMQ_MANAGEMENT_PORT=0) there are fewer figures, and only what this gateway knows of is listed".to_owned()
        }
        Management::Down(reason) => format!(
            "RabbitMQ's management API does not answer ({reason}): there are fewer figures, and only what this gateway knows of is listed"
        ),
    }
}

/// A queue that is asked about.
fn queue_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    match names::queue(name) {
        // To look is allowed.
        Err(names::Refused::Reserved) | Ok(()) => Ok(()),
        Err(refused) => Err(Invalid::name(field, Entity::Queue, name, refused)),
    }
}

/// A queue that is changed.
fn own_queue(field: &'static str, name: &str) -> Result<(), Invalid> {
    names::queue(name).map_err(|refused| Invalid::name(field, Entity::Queue, name, refused))
}

/// An exchange that is made or deleted.
fn own_exchange(field: &'static str, name: &str) -> Result<(), Invalid> {
    exchange(field, name, names::own_exchange)
}

/// An exchange that queues are bound to.
fn bound_exchange(field: &'static str, name: &str) -> Result<(), Invalid> {
    exchange(field, name, names::exchange)
}

fn exchange(
    field: &'static str,
    name: &str,
    rule: fn(&str) -> Result<(), names::Refused>,
) -> Result<(), Invalid> {
    if name.is_empty() {
        let problem = "must not be empty: the default exchange is the broker's own";
        return Err(Invalid::field(field, problem));
    }
    rule(name).map_err(|refused| Invalid::name(field, Entity::Exchange, name, refused))
}
