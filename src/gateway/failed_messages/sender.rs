//! Sends a claimed message back to the queue that it failed in, and writes down what became of it.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use uuid::Uuid;

use crate::{
    broker::{Broker, Fate, NotSent, OutcomeObserver, Publish, Refusal},
    failed_message::{FailedMessage, Time, schedule::Policy},
    gateway::{
        failed_messages::dead_letter,
        message_log::{self, MessageLog},
        publisher::records,
    },
    message::{Message, Value, header},
    metrics::Metrics,
    store::{Claimed, Error, Sent, Store},
    traces::{self, Origin, Place, Span, Step, Traces},
};

/// How long a queue that was full is left alone.
const FULL_AGAIN: Duration = Duration::from_secs(30);
/// How soon a retry that could not be sent is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How soon an answer that the database did not take is offered again.
const WRITE_AGAIN: Duration = Duration::from_millis(500);

/// Publishes retries.
#[derive(Clone)]
pub struct Sender {
    broker: Arc<dyn Broker>,
    pub(super) store: Store,
    pub(super) policy: Arc<Policy>,
    log: MessageLog,
    metrics: Metrics,
    traces: Traces,
}

impl Sender {
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Store,
        policy: Arc<Policy>,
        log: MessageLog,
        metrics: Metrics,
        traces: Traces,
    ) -> Self {
        Self {
            broker,
            store,
            policy,
            log,
            metrics,
            traces,
        }
    }

    /// Whether retries can be sent now.
    pub fn broker_is_up(&self) -> bool {
        self.broker.links().borrow().publish == crate::broker::LinkState::Up
    }

    /// A publish of `message` to `queue` and to nothing else. `claimed_at`: when its row was claimed; what is not sent while half
    /// of the lease is left is not sent at all, so that nobody else sends it at the same time.
    pub fn publish_to(&self, queue: &str, message: Message, claimed_at: Instant) -> Publish {
        // Never to the original exchange: a fan-out would reach services that did not fail it.
        Publish::to_queue(queue, message, claimed_at + self.policy.lease / 2)
    }

    /// Publishes it.
    pub async fn publish(&self, publish: Publish, observer: Option<OutcomeObserver>) -> Fate {
        let lane = self.broker.lane();
        self.broker.publish_and_wait(lane, publish, observer).await
    }

    /// Sends a claimed row's message, and writes down what became of it. The fate, and the row as it is then.
    pub async fn send(
        &self,
        claimed: &Claimed,
        claimed_at: Instant,
    ) -> (Fate, Result<FailedMessage, Error>) {
        let fate = self.publish_claimed(claimed, claimed_at).await;
        let written = self.write(claimed.message.id, claimed.token, self.sent(fate));
        (fate, written.await)
    }

    /// The same of many, at once. What became of those that are confirmed at about the same time is written in one transaction: a
    /// commit for each would be all that a disk does. `room` is given back as they are done.
    pub async fn send_many(
        self,
        claimed: Vec<Claimed>,
        claimed_at: Instant,
        mut room: OwnedSemaphorePermit,
    ) {
        let sends = claimed.into_iter().map(|claimed| {
            let sender = &self;
            async move {
                let fate = sender.publish_claimed(&claimed, claimed_at).await;
                (claimed.message.id, claimed.token, sender.sent(fate))
            }
        });
        let sends: FuturesUnordered<_> = sends.collect();
        let most = sends.len().max(1);
        let mut sent = sends.ready_chunks(most);
        while let Some(sent) = sent.next().await {
            let written = self.insist(|| self.store.sent_many(&sent)).await;
            if let Err(error) = written {
                let ids: Vec<_> = sent.iter().map(|(id, ..)| id.to_string()).collect();
                tracing::warn!(?ids, %error, "cannot store what became of retries; they are due again when their leases end");
            }
            drop(room.split(sent.len()));
        }
    }

    /// Publishes a claimed row's message.
    async fn publish_claimed(&self, claimed: &Claimed, claimed_at: Instant) -> Fate {
        let row = &claimed.message;
        let at = message_log::now();
        let span = self.trace(row);
        let publish = self.publish_to(&row.queue, retry_of(row), claimed_at);
        let fate = self.publish(publish, None).await;
        self.note(row, at, fate);
        self.metrics.retried(&row.queue, fate.into());
        if let Some(span) = span {
            records::end(span, fate);
        }
        tracing::info!(
            id = %row.id,
            queue = row.queue,
            attempt = row.state.attempt,
            manual = row.state.manual,
            ?fate,
            trace_id = traces::id_of(&row.message),
            "retried a failed message"
        );
        fate
    }

    fn trace(&self, row: &FailedMessage) -> Option<Span> {
        if !self.traces.are_exported() {
            return None;
        }
        let place = Place {
            queue: &row.queue,
            ..Place::default()
        };
        let origin = Origin::of_message(&row.message.headers);
        let span = self
            .traces
            .begin(Step::Retry, place, &row.message, origin.as_ref());
        span.map(|mut span| {
            span.set("courtier.failed_message.id", row.id.to_string());
            span.set("courtier.attempt", i64::from(row.state.attempt));
            span
        })
    }

    /// Lets the message log know of what may have come to a consumer, and of what never can.
    fn note(&self, row: &FailedMessage, at: Time, fate: Fate) {
        let by = if row.state.manual {
            "by a person"
        } else {
            "by schedule"
        };
        match fate {
            Fate::Confirmed => self.log.retried(row, at, by),
            Fate::InDoubt(_) => self.log.retried(row, at, &format!("{by}, not confirmed")),
            Fate::Unroutable => self.log.returned(row, at),
            Fate::Rejected | Fate::NotSent(_) | Fate::Refused(_) => {}
        }
    }

    fn sent(&self, fate: Fate) -> Sent {
        let again_after = match fate {
            Fate::Confirmed => {
                return Sent::Confirmed {
                    quiet_period: self.policy.quiet_period,
                };
            }
            fate if is_hopeless(fate) => return Sent::Returned,
            Fate::Rejected => FULL_AGAIN,
            _ => AGAIN,
        };
        Sent::NotSent {
            again_after: Some(again_after.min(self.policy.longest_pause)),
        }
    }

    /// Writes what became of it.
    pub(super) async fn write(
        &self,
        id: Uuid,
        token: Uuid,
        sent: Sent,
    ) -> Result<FailedMessage, Error> {
        let store = &self.store;
        self.insist(|| store.sent(id, token, sent)).await
    }

    /// Writes something; while the database is away, as long as a lease is held.
    pub(super) async fn insist<T, F: Future<Output = Result<T, Error>>>(
        &self,
        write: impl Fn() -> F,
    ) -> Result<T, Error> {
        let end = Instant::now() + self.policy.lease;
        loop {
            match write().await {
                Err(error) if error.passes() && Instant::now() < end => {
                    tokio::time::sleep(WRITE_AGAIN).await;
                }
                written => return written,
            }
        }
    }
}

/// The copy that goes to the consumer: the message as it was published, with its row's id and the number of the attempt, by
/// which whatever becomes of it is recognised.
fn retry_of(row: &FailedMessage) -> Message {
    let mut copy = row.message.clone();
    let id = Value::text(row.id.to_string());
    copy.headers.insert(header::FAILED_ID.to_owned(), id);
    let attempt = Value::I64(row.state.attempt.into());
    copy.headers.insert(header::ATTEMPT.to_owned(), attempt);
    if let Some(publish_id) = &row.publish_id {
        let original = Value::text(publish_id.clone());
        copy.headers
            .insert(header::ORIGINAL_PUBLISH_ID.to_owned(), original);
    }
    note_origin(row, &mut copy);
    copy
}

/// Lets a copy say where a failed message was first published to.
pub(super) fn note_origin(row: &FailedMessage, copy: &mut Message) {
    let origin = dead_letter::Origin {
        exchange: &row.exchange,
        routing_key: &row.routing_key,
    };
    origin.note_on(copy, &row.queue);
}

/// Whether trying again by itself makes no sense.
fn is_hopeless(fate: Fate) -> bool {
    matches!(
        fate,
        Fate::Unroutable
            | Fate::NotSent(NotSent::HeadersTooLarge)
            | Fate::Refused(Refusal::TooLarge | Refusal::NoReplyAddress)
    )
}
