//! What is noted of every publish, whether or not anybody waits for its outcome: the figures, its trace, the message log,
//! and a line of the log for those who read such (RUST_LOG=courtier=debug).

use tokio::time::Instant;
use tracing::Level;
use uuid::Uuid;

use super::{Outcome, Outgoing, Publisher};
use crate::{
    broker::{Fate, OutcomeObserver, Publish},
    metrics,
    traces::{self, Origin, Place, Span, Step},
};

impl Publisher {
    /// Begins the trace of a publish, and lets the message carry on what its next steps follow: this publish if it is told anywhere,
    /// else the caller's own step. What the client put into the message itself stays, unless the call brings a context.
    pub(super) fn trace(&self, outgoing: &mut Outgoing) -> Option<Span> {
        let exported = self.traces.are_exported();
        if !exported && outgoing.origin.is_none() {
            return None;
        }
        let own = match outgoing.origin {
            Some(_) => None,
            None => Origin::of_message(&outgoing.message.headers),
        };
        let place = Place {
            exchange: &outgoing.exchange,
            routing_key: &outgoing.routing_key,
            queue: "",
        };
        let parent = outgoing.origin.as_ref().or(own.as_ref());
        let span = self
            .traces
            .begin(Step::Publish, place, &outgoing.message, parent);
        let carried = span.as_ref().and_then(Span::origin);
        if own.is_none()
            && let Some(carried) = carried.or_else(|| outgoing.origin.take())
        {
            carried.put(&mut outgoing.message.headers);
        }
        span
    }

    /// Whoever notes what becomes of a publish, begun at this time, that is about to be handed over.
    pub(super) fn observer(
        &self,
        publish: &Publish,
        named: bool,
        since: Instant,
        span: Option<Span>,
    ) -> OutcomeObserver {
        let exchange = self.metrics.exchange(&publish.exchange);
        let bytes = publish.message.payload.len();
        let publishing = self.metrics.publishing(exchange, bytes, since);
        let log = self.log.observer(publish, named);
        let line = tracing::enabled!(Level::DEBUG).then(|| Line::of(publish));
        OutcomeObserver::new(move |fate| {
            publishing.ended(fate.into());
            if let Some(span) = span {
                end(span, fate);
            }
            if let Some(line) = line {
                line.write(fate);
            }
            if let Some(log) = log {
                log(fate);
            }
        })
    }

    /// Notes a publish, begun at this time, that was refused before its exchange was found.
    pub(super) fn note_refused(&self, outcome: &Outcome, since: Instant) {
        self.metrics.refused(outcome.into(), since);
        match outcome {
            Outcome::Invalid(why) => tracing::debug!(%why, "refused a publish"),
            Outcome::Fate(fate) => tracing::debug!(?fate, "refused a publish"),
        }
    }

    /// Notes a publish to this exchange, begun at this time, for which there is no room.
    pub(super) fn note_overloaded(&self, exchange: &str, since: Instant) {
        let exchange = self.metrics.exchange(exchange);
        let outcome = metrics::Outcome::NotSent;
        self.metrics.published(&exchange, outcome, since);
    }
}

/// What is said in the log of a publish. Never its payload.
struct Line {
    message_id: Option<String>,
    publish_id: Uuid,
    exchange: String,
    routing_key: String,
    trace_id: Option<String>,
}

impl Line {
    fn of(publish: &Publish) -> Self {
        Self {
            message_id: publish.message.message_id.clone(),
            publish_id: publish.publish_id,
            exchange: publish.exchange.clone(),
            routing_key: publish.routing_key.clone(),
            trace_id: traces::id_of(&publish.message),
        }
    }

    fn write(self, fate: Fate) {
        tracing::debug!(
            message_id = self.message_id,
            publish_id = %self.publish_id,
            exchange = self.exchange,
            routing_key = self.routing_key,
            outcome = ?fate,
            trace_id = self.trace_id,
            "published"
        );
    }
}

/// The broker has answered, or will not.
pub(in crate::gateway) fn end(mut span: Span, fate: Fate) {
    let outcome = <&str>::from(metrics::Outcome::from(fate));
    match fate {
        Fate::Confirmed => span.event("confirm"),
        _ => span.fail(outcome),
    }
    span.set("courtier.outcome", outcome);
}

impl From<Fate> for metrics::Outcome {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Confirmed => Self::Confirmed,
            Fate::Unroutable => Self::Unroutable,
            Fate::Rejected => Self::Rejected,
            Fate::NotSent(_) => Self::NotSent,
            Fate::InDoubt(_) => Self::InDoubt,
            Fate::Refused(_) => Self::Invalid,
        }
    }
}

impl From<&Outcome> for metrics::Outcome {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Fate(fate) => (*fate).into(),
            Outcome::Invalid(_) => Self::Invalid,
        }
    }
}
