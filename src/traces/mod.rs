//! Traces: each step of a message is told to an OpenTelemetry collector, if one is named; and the context that ties the steps
//! together ([`Origin`]) travels with the message, collector or not.
//!
//! Each gateway has its own tracer, so that many can run in one process. Names are those of the semantic conventions
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>).

mod export;
mod origin;

use std::sync::Arc;

use opentelemetry::{
    KeyValue,
    trace::{Span as _, SpanBuilder, SpanKind, Status, Tracer as _},
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};

pub use self::{
    export::{BadEndpoint, Options},
    origin::Origin,
};
use crate::message::Message;

/// The id of the trace that a message belongs to, for log lines.
pub fn id_of(message: &Message) -> Option<String> {
    Origin::of_message(&message.headers).map(|origin| origin.trace_id())
}

/// Where steps are told. Without a collector nothing is done.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Exporting>>);

#[derive(Debug)]
struct Exporting {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

/// What happens to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// A client publishes it.
    Publish,
    /// A subscriber gets it.
    Deliver,
    /// A subscriber says what became of it.
    Settle,
    /// It becomes a failed message.
    Collect,
    /// It is sent back to its queue.
    Retry,
}

impl Step {
    fn kind(self) -> SpanKind {
        match self {
            Self::Publish | Self::Retry => SpanKind::Producer,
            Self::Deliver | Self::Collect => SpanKind::Consumer,
            Self::Settle => SpanKind::Client,
        }
    }

    /// `messaging.operation.type`
    fn operation(self) -> &'static str {
        match self {
            Self::Publish | Self::Retry => "send",
            Self::Deliver | Self::Collect => "receive",
            Self::Settle => "settle",
        }
    }
}

/// Where a message is, or goes to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    pub exchange: &'a str,
    pub routing_key: &'a str,
    /// Empty: on its way to the exchange.
    pub queue: &'a str,
}

impl Place<'_> {
    /// `messaging.destination.name`: the parts that there are, each once.
    fn destination(&self) -> String {
        let mut parts = vec![self.exchange, self.routing_key, self.queue];
        parts.retain(|part| !part.is_empty());
        parts.dedup();
        match parts.as_slice() {
            [] => "amq.default".to_owned(),
            parts => parts.join(":"),
        }
    }

    /// For the name of a span: what there are few of.
    fn few(&self) -> &str {
        match (self.queue, self.exchange) {
            ("", "") => "amq.default",
            ("", exchange) => exchange,
            (queue, _) => queue,
        }
    }
}

impl Traces {
    /// Whether steps are told anywhere.
    pub fn are_exported(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a step. `None`: nobody is told.
    pub fn begin(
        &self,
        step: Step,
        place: Place<'_>,
        message: &Message,
        origin: Option<&Origin>,
    ) -> Option<Span> {
        let exporting = self.0.as_ref()?;
        let name: &'static str = step.into();
        let mut attributes = vec![
            KeyValue::new("messaging.system", "rabbitmq"),
            KeyValue::new("messaging.operation.name", name),
            KeyValue::new("messaging.operation.type", step.operation()),
            KeyValue::new("messaging.destination.name", place.destination()),
        ];
        let mut put = |name: &'static str, text: &str| {
            if !text.is_empty() {
                attributes.push(KeyValue::new(name, text.to_owned()));
            }
        };
        put(
            "messaging.rabbitmq.destination.routing_key",
            place.routing_key,
        );
        put(
            "messaging.message.id",
            message.message_id.as_deref().unwrap_or_default(),
        );
        put(
            "messaging.message.conversation_id",
            message.correlation_id.as_deref().unwrap_or_default(),
        );
        let size = i64::try_from(message.payload.len()).unwrap_or(i64::MAX);
        attributes.push(KeyValue::new("messaging.message.body.size", size));
        let builder = SpanBuilder::from_name(format!("{name} {}", place.few()))
            .with_kind(step.kind())
            .with_attributes(attributes);
        let parent = origin.map(Origin::context).unwrap_or_default();
        let span = exporting.tracer.build_with_context(builder, &parent);
        Some(Span(span))
    }

    /// Tells what is not told yet, waiting for the collector at most so long.
    pub async fn close(&self) {
        let Some(exporting) = self.0.clone() else {
            return;
        };
        // It waits for a thread of its own.
        let closing = tokio::task::spawn_blocking(move || {
            exporting
                .provider
                .shutdown_with_timeout(export::SHUTDOWN_TIMEOUT)
        });
        if let Ok(Err(error)) = closing.await {
            tracing::debug!(%error, "the last traces are lost");
        }
    }
}

/// A step under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Span(SdkSpan);

impl Span {
    /// What a message has to carry so that its next steps follow this one.
    pub fn origin(&self) -> Option<Origin> {
        Origin::of_span(self.0.span_context())
    }

    /// Notes something that there is one of.
    pub fn set(&mut self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Notes a moment.
    pub fn event(&mut self, name: &'static str) {
        self.0.add_event(name, Vec::new());
    }

    /// It did not do what it should; `kind` is one of few.
    pub fn fail(&mut self, kind: &'static str) {
        self.set("error.type", kind);
        self.0.set_status(Status::error(kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_named_by_the_parts_that_there_are() {
        let place = |exchange, routing_key, queue| Place {
            exchange,
            routing_key,
            queue,
        };
        assert_eq!(place("e", "k", "q").destination(), "e:k:q");
        assert_eq!(place("", "q", "q").destination(), "q");
        assert_eq!(place("e", "", "").destination(), "e");
        assert_eq!(place("", "", "").destination(), "amq.default");
        assert_eq!(place("", "k", "").few(), "amq.default");
    }
}
