//! Publishing: check, admit, hand over, and say what became of it.

pub(super) mod records;

use std::sync::Arc;

use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, timeout_at},
};
use uuid::Uuid;

use super::{
    Limits, Parts,
    message_log::MessageLog,
    validate::{self, Invalid},
};
use crate::{
    broker::{
        Broker, Checked, Entity, Error, Fate, Lane, NotSent, OutcomeObserver, Publish,
        PublishReply, Target,
    },
    message::Message,
    metrics::Metrics,
    names,
    traces::{Origin, Traces},
};

/// What a publish takes of memory besides its payload.
const ENVELOPE: usize = 512;

/// A message that a client wants published.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
    /// A message that no queue takes counts as confirmed.
    pub allow_unroutable: bool,
    /// The step of the caller's that this publish follows.
    pub origin: Option<Origin>,
}

/// What became of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The client's, or the gateway's.
    pub message_id: String,
    /// `None`: refused before it got one.
    pub publish_id: Option<Uuid>,
    pub outcome: Outcome,
}

/// Messages of one batch.
pub const MAX_BATCH: usize = 1_000;

/// Refuses a batch of no messages, or of too many.
pub fn check_batch(count: usize) -> Result<(), Invalid> {
    if (1..=MAX_BATCH).contains(&count) {
        return Ok(());
    }
    let problem = format!("must hold 1 to {MAX_BATCH} messages, not {count}");
    Err(Invalid::field("messages", problem))
}

/// The fate of a publish, or why it was refused before it could have one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Fate(Fate),
    Invalid(Invalid),
}

impl From<Fate> for Outcome {
    fn from(fate: Fate) -> Self {
        Self::Fate(fate)
    }
}

impl From<Invalid> for Outcome {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// What a publish is called, from the moment that it is accepted for checking.
#[derive(Clone, Debug)]
struct Ids {
    message_id: String,
    publish_id: Uuid,
    /// The message's id is the client's own.
    named: bool,
}

/// Checks all of it, before anything is sent.
fn check(outgoing: &Outgoing, max_payload_bytes: usize) -> Result<(), Invalid> {
    let Outgoing {
        exchange,
        routing_key,
        message,
        ..
    } = outgoing;
    names::exchange(exchange)
        .map_err(|refused| Invalid::name("exchange", Entity::Exchange, exchange, refused))?;
    // On the default exchange the routing key names a queue.
    let key = if exchange.is_empty() {
        names::target(routing_key)
    } else {
        names::routing_key(routing_key)
    };
    key.map_err(|refused| Invalid::name("routing_key", Entity::Queue, routing_key, refused))?;
    validate::message(message, max_payload_bytes)
}

/// The service.
#[derive(Clone)]
pub struct Publisher {
    broker: Arc<dyn Broker>,
    pub limits: Arc<Limits>,
    log: MessageLog,
    metrics: Metrics,
    traces: Traces,
    /// Bytes of messages that may still come in.
    admission: Arc<Semaphore>,
    /// How many that is while there is none.
    most_in_flight: usize,
}

impl Publisher {
    /// `share`: memory for messages that wait for their outcome.
    pub(super) fn new(parts: &Parts, limits: &Arc<Limits>, share: usize) -> Self {
        let most_in_flight = limits.max_in_flight_bytes.min(share);
        let admission = Semaphore::new(most_in_flight.min(Semaphore::MAX_PERMITS));
        Self {
            broker: parts.broker.clone(),
            limits: limits.clone(),
            log: parts.message_log.clone(),
            metrics: parts.metrics.clone(),
            traces: parts.traces.clone(),
            admission: Arc::new(admission),
            most_in_flight,
        }
    }

    /// Bytes of messages that wait for their outcome, and how many there may be.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        let free = self.admission.available_permits();
        (
            self.most_in_flight.saturating_sub(free),
            self.most_in_flight,
        )
    }

    /// Publishes one message. Answers at the latest at `deadline`; a caller that goes away meanwhile drops nothing.
    pub async fn publish(&self, outgoing: Outgoing, deadline: Instant) -> Published {
        match self.prepare(outgoing, deadline).await {
            Err(refused) => refused,
            Ok((ids, publish, observer)) => {
                let published =
                    self.broker
                        .publish_and_wait(self.broker.lane(), publish, Some(observer));
                ids.published(published.await)
            }
        }
    }

    /// Checks a message and makes it ready for the broker. The error is its fate already.
    async fn prepare(
        &self,
        mut outgoing: Outgoing,
        deadline: Instant,
    ) -> Result<(Ids, Publish, OutcomeObserver), Published> {
        let since = Instant::now();
        if let Err(invalid) = check(&outgoing, self.limits.max_payload_bytes) {
            let refused = Published::refused(outgoing.message.message_id, invalid);
            self.note_refused(&refused.outcome, since);
            return Err(refused);
        }
        let publish_id = Uuid::now_v7();
        let named = outgoing.message.message_id.is_some();
        let message_id = outgoing
            .message
            .message_id
            .get_or_insert_with(|| Uuid::now_v7().hyphenated().to_string());
        let ids = Ids {
            message_id: message_id.clone(),
            publish_id,
            named,
        };
        let checked = match self.broker_takes(&outgoing, deadline).await {
            Ok(checked) => checked,
            Err(outcome) => {
                self.note_refused(&outcome, since);
                return Err(self.not_handed_over(ids, outcome));
            }
        };
        let size = outgoing.message.payload.len().saturating_add(ENVELOPE);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let Ok(admission) = self.admission.clone().try_acquire_many_owned(size) else {
            self.note_overloaded(&outgoing.exchange, since);
            let overloaded = Fate::NotSent(NotSent::Overloaded).into();
            return Err(self.not_handed_over(ids, overloaded));
        };
        let span = self.trace(&mut outgoing);
        let publish = Publish {
            publish_id,
            exchange: outgoing.exchange,
            routing_key: outgoing.routing_key,
            mandatory: !outgoing.allow_unroutable,
            message: outgoing.message,
            deadline,
            admission: Some(admission),
            checked,
        };
        let observer = self.observer(&publish, named, since, span);
        Ok((ids, publish, observer))
    }

    fn not_handed_over(&self, ids: Ids, outcome: Outcome) -> Published {
        if let Outcome::Fate(Fate::NotSent(why)) = outcome
            && ids.named
        {
            self.log.not_sent(&ids.message_id, why);
        }
        ids.published(outcome)
    }

    async fn broker_takes(
        &self,
        outgoing: &Outgoing,
        deadline: Instant,
    ) -> Result<Checked, Outcome> {
        let target = Target {
            exchange: &outgoing.exchange,
            routing_key: &outgoing.routing_key,
            size: outgoing.message.payload.len(),
        };
        let checking = self.broker.check(target, deadline);
        let checked = timeout_at(deadline, checking).await;
        checked
            .unwrap_or(Err(Error::TimedOut))
            .map_err(|error| match error {
                Error::NotFound { name, .. } => Invalid::ExchangeNotFound(name).into(),
                Error::Forbidden { what, name } => Invalid::Forbidden(what, name).into(),
                Error::TooLarge { size } => Invalid::TooLargeForBroker { size }.into(),
                error => Fate::from(error).into(),
            })
    }

    /// A publish that could not even be read. Counted like those that are refused for what they say.
    pub fn refuse(&self, refused: Published) -> Published {
        self.note_refused(&refused.outcome, Instant::now());
        refused
    }

    /// Publishes many, handed over in their order; the fate of each, in the same order. An error is a message that could not be read.
    pub async fn publish_batch(
        &self,
        batch: impl Iterator<Item = Result<Outgoing, Published>>,
        deadline: Instant,
    ) -> Vec<Published> {
        let mut publishes = self.publishes();
        let mut fates = Vec::new();
        for (message, sequence) in batch.zip(0..) {
            fates.push(match message {
                Ok(outgoing) => publishes.submit(sequence, outgoing, deadline).await,
                Err(refused) => Some(publishes.refuse(refused)),
            });
        }
        while publishes.pending() > 0 {
            for (sequence, published) in publishes.results(MAX_BATCH).await {
                let place = usize::try_from(sequence).ok();
                if let Some(fate) = place.and_then(|place| fates.get_mut(place)) {
                    *fate = Some(published);
                }
            }
        }
        // Nothing is pending: each has its fate.
        fates.into_iter().flatten().collect()
    }

    /// Publishes that share a lane, and their results as they come.
    pub fn publishes(&self) -> Publishes {
        let (answers, inbox) = mpsc::unbounded_channel();
        Publishes {
            publisher: self.clone(),
            lane: self.broker.lane(),
            pending: slab::Slab::new(),
            answers,
            inbox,
        }
    }
}

impl Ids {
    fn published(self, outcome: impl Into<Outcome>) -> Published {
        Published {
            message_id: self.message_id,
            publish_id: Some(self.publish_id),
            outcome: outcome.into(),
        }
    }
}

impl Published {
    /// A publish that was refused as it stands.
    pub fn refused(message_id: Option<String>, invalid: Invalid) -> Self {
        Self {
            message_id: message_id.unwrap_or_default(),
            publish_id: None,
            outcome: invalid.into(),
        }
    }
}

/// The publishes of one stream or batch: stored in the order of [`submit`](Self::submit), answered in any.
pub struct Publishes {
    publisher: Publisher,
    lane: Lane,
    /// What is unanswered; the key goes with the reply.
    pending: slab::Slab<(u64, Ids)>,
    answers: mpsc::UnboundedSender<(usize, Fate)>,
    inbox: mpsc::UnboundedReceiver<(usize, Fate)>,
}

impl Publishes {
    /// See [`Publisher::refuse`].
    pub fn refuse(&self, refused: Published) -> Published {
        self.publisher.refuse(refused)
    }

    /// How many are unanswered.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Hands a message over under `sequence`. The answer is its fate when that is known at once.
    pub async fn submit(
        &mut self,
        sequence: u64,
        outgoing: Outgoing,
        deadline: Instant,
    ) -> Option<Published> {
        match self.publisher.prepare(outgoing, deadline).await {
            Err(published) => Some(published),
            Ok((ids, publish, observer)) => {
                let key = self.pending.insert((sequence, ids));
                let reply = PublishReply::keyed(key, &self.answers).observed(observer);
                self.publisher.broker.publish(self.lane, publish, reply);
                None
            }
        }
    }

    /// Waits for results: at least one, then all that are ready, at most `limit`. Empty when nothing is pending.
    pub async fn results(&mut self, limit: usize) -> Vec<(u64, Published)> {
        if self.pending.is_empty() {
            return Vec::new();
        }
        let mut fates = Vec::new();
        self.inbox.recv_many(&mut fates, limit).await;
        fates
            .into_iter()
            .filter_map(|(key, fate)| {
                let (sequence, ids) = self.pending.try_remove(key)?;
                Some((sequence, ids.published(fate)))
            })
            .collect()
    }
}
