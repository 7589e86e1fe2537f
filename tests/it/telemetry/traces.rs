//! Traces: the context that travels with a message, and what a collector is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use courtier::{
    broker::memory::MemoryBroker,
    grpc::proto::{
        Delivery, PublishBatchRequest, PublishRequest, PublishStreamRequest, failed_message,
        nack::Action,
    },
    traces::{Options, Traces},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost_types::value::Kind;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::{
    desk::{Desk, slow},
    front::{Front, On, from, on_both, text, timely, to_queue},
    harness::{Gateway, Setup, eventually},
};

on_both! {
    a_callers_context_reaches_the_subscriber_without_a_collector
    a_message_keeps_its_trace_through_failure_and_retry
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector that remembers.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().expect("nobody panics with it");
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attribute(&attributes, "service.name").expect("it has a name");
            let told = resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans);
            spans.extend(told.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        (collector, address)
    }

    /// What a gateway of this name told, once there are spans of all these names.
    async fn told(&self, service: &str, names: &[String]) -> Vec<Span> {
        let told = || -> Vec<Span> {
            let spans = self.0.lock().expect("nobody panics with it");
            let of = spans.iter().filter(|(name, _)| name == service);
            of.map(|(_, span)| span.clone()).collect()
        };
        eventually(&format!("the collector knows {names:?}"), || async {
            let told = told();
            names
                .iter()
                .all(|name| told.iter().any(|span| span.name == *name))
        })
        .await;
        told()
    }
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let (Some(span), None) = (found.next(), found.next()) else {
        panic!(
            "one {name} among {:?}",
            spans.iter().map(|span| &span.name).collect::<Vec<_>>()
        );
    };
    span
}

/// Tells traces to this collector.
fn telling(setup: &mut Setup, address: SocketAddr, service: &str) {
    let options = Options::new(&address.to_string(), service).expect("a loopback address");
    setup.traces = Traces::start(&options).expect("it starts");
}

/// A call with metadata.
fn called<T>(request: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(request);
    for (name, value) in metadata {
        let value = value.parse().expect("a metadata value");
        request.metadata_mut().append(*name, value);
    }
    request
}

/// A header of a delivery.
fn header(delivery: &Delivery, name: &str) -> Option<String> {
    let headers = delivery.message.as_ref()?.headers.as_ref()?;
    match headers.fields.get(name)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text.clone()),
        other => panic!("{name} is {other:?}"),
    }
}

fn with_header(queue: &str, name: &str, value: &str) -> PublishRequest {
    let kind = Some(Kind::StringValue(value.to_owned()));
    let fields = [(name.to_owned(), prost_types::Value { kind })].into();
    let mut message = text("x");
    message.headers = Some(prost_types::Struct { fields });
    to_queue(queue, message)
}

/// Publishes with this metadata, and answers the context that arrives.
async fn carried(
    front: &Front,
    request: PublishRequest,
    metadata: &[(&'static str, &str)],
) -> (Option<String>, Option<String>) {
    let queue = request.routing_key.clone();
    let mut publisher = front.publisher.clone();
    let answer = timely(publisher.publish(called(request, metadata))).await;
    answer.expect("confirmed");
    let drained = front.drain(&queue).await;
    let [delivery] = &*drained else {
        panic!("one message is there, not {drained:?}");
    };
    (
        header(delivery, "traceparent"),
        header(delivery, "tracestate"),
    )
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

async fn a_callers_context_reaches_the_subscriber_without_a_collector(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let plain = || to_queue(&queue, text("x"));
    let given = [("traceparent", PARENT), ("tracestate", "a=1")];
    assert_eq!(
        carried(&front, plain(), &given).await,
        (some(PARENT), some("a=1"))
    );
    assert_eq!(carried(&front, plain(), &[]).await, (None, None));
    // The message's own stays, unless the call brings one.
    let own = "00-11111111111111111111111111111111-2222222222222222-01";
    let request = with_header(&queue, "traceparent", own);
    assert_eq!(carried(&front, request.clone(), &[]).await.0, some(own));
    assert_eq!(
        carried(&front, request, &given).await,
        (some(PARENT), some("a=1"))
    );

    // Over plain HTTP as well.
    let body = format!(r#"{{"exchange":"","routing_key":"{queue}","message":1}}"#);
    let post = crate::rest::request(http::Method::POST, "/api/messages/publish")
        .header("content-type", "application/json")
        .header("traceparent", PARENT)
        .body(axum::body::Body::from(body));
    let answer = crate::rest::send(&front, post.expect("a valid request")).await;
    assert_eq!(answer.status, 200);
    let drained = front.drain(&queue).await;
    assert_eq!(header(&drained[0], "traceparent"), some(PARENT));

    // What is no context is as good as none.
    let huge = "0".repeat(100 * 1024);
    for malformed in ["x", &huge] {
        let given = [("traceparent", malformed)];
        assert_eq!(
            carried(&front, plain(), &given).await,
            (None, None),
            "{malformed:.10}"
        );
    }

    let batch = PublishBatchRequest {
        messages: vec![plain()],
    };
    let mut publisher = front.publisher.clone();
    timely(publisher.publish_batch(called(batch, &given)))
        .await
        .expect("answered");
    let stream = tokio_stream::iter([PublishStreamRequest {
        sequence: 1,
        publish: Some(plain()),
    }]);
    let answers = timely(publisher.publish_stream(called(stream, &given))).await;
    let mut answers = answers.expect("it opens").into_inner();
    while timely(answers.message())
        .await
        .expect("it ends well")
        .is_some()
    {}
    let drained = front.drain(&queue).await;
    let parents: Vec<_> = drained
        .iter()
        .map(|one| header(one, "traceparent"))
        .collect();
    assert_eq!(parents, [some(PARENT), some(PARENT)]);
}

async fn a_message_keeps_its_trace_through_failure_and_retry(on: On) {
    let (collector, address) = Collector::start().await;
    let service = format!("it-{}", uuid::Uuid::now_v7());
    let desk = Desk::open(on, |setup| {
        slow(setup);
        telling(setup, address, &service);
    })
    .await;
    let (front, queue) = (&desk.front, &desk.queue);
    let exchange = front.exchange("events", "order.created", &[queue]).await;
    let mut message = text("hello");
    message.message_id = "order-1".to_owned();
    let request = PublishRequest {
        exchange: exchange.clone(),
        routing_key: "order.created".to_owned(),
        message: Some(message),
        ..PublishRequest::default()
    };
    let given = [("traceparent", PARENT), ("tracestate", "a=1")];
    timely(front.publisher.clone().publish(called(request, &given)))
        .await
        .expect("confirmed");

    let mut stream = front.subscribe(from(&[queue])).await;
    let first = stream.delivery().await;
    stream.nack(&first.ack_id, Action::Retry).await;
    let failed = desk.only().await;
    desk.retry(&failed.id).await.expect("it may be retried");
    let second = stream.delivery().await;
    assert_eq!(
        (second.attempt, header(&second, "tracestate")),
        (2, some("a=1"))
    );
    stream.ack(&[&second.ack_id]).await;
    desk.becomes(&failed.id, failed_message::Status::Resolved)
        .await;

    let publish = format!("publish {exchange}");
    let [deliver, settle, collect, retry] =
        ["deliver", "settle", "collect", "retry"].map(|step| format!("{step} {queue}"));
    let expected = [&publish, &deliver, &settle, &collect, &retry].map(String::clone);
    let told = collector.told(&service, &expected).await;
    for span in &told {
        assert_eq!(hex(&span.trace_id), TRACE, "{}", span.name);
        assert_eq!(
            attribute(&span.attributes, "messaging.system"),
            some("rabbitmq")
        );
        assert_eq!(
            attribute(&span.attributes, "messaging.message.id"),
            some("order-1")
        );
    }
    let span = named(&told, &publish);
    assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(span.kind(), SpanKind::Producer);
    let told_of = |name: &str| attribute(&span.attributes, name);
    assert_eq!(told_of("messaging.operation.name"), some("publish"));
    assert_eq!(told_of("messaging.operation.type"), some("send"));
    let destination = format!("{exchange}:order.created");
    assert_eq!(told_of("messaging.destination.name"), Some(destination));
    assert_eq!(
        told_of("messaging.rabbitmq.destination.routing_key"),
        some("order.created")
    );
    assert_eq!(told_of("courtier.outcome"), some("confirmed"));
    assert_eq!(
        span.events
            .iter()
            .map(|event| &*event.name)
            .collect::<Vec<_>>(),
        ["confirm"]
    );
    // All that follows, follows the publish; the message names it.
    let carried = format!("00-{TRACE}-{}-01", hex(&span.span_id));
    assert_eq!(header(&first, "traceparent").as_deref(), Some(&*carried));
    assert_eq!(header(&second, "traceparent").as_deref(), Some(&*carried));
    let after = |name: &str| {
        told.iter()
            .filter(move |span| span.name == *name)
            .collect::<Vec<_>>()
    };
    for (name, kind, count) in [
        (&deliver, SpanKind::Consumer, 2),
        (&settle, SpanKind::Client, 2),
        (&collect, SpanKind::Consumer, 1),
        (&retry, SpanKind::Producer, 1),
    ] {
        let spans = after(name);
        assert_eq!(spans.len(), count, "{name}");
        for one in spans {
            assert_eq!(
                (one.kind(), &one.parent_span_id),
                (kind, &span.span_id),
                "{name}"
            );
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_without_a_context_begins_a_trace_and_a_failed_one_says_why() {
    let (collector, address) = Collector::start().await;
    let front = Front::of(MemoryBroker::new(), None, |setup| {
        setup.without_database();
        telling(setup, address, "beginner");
    })
    .await;
    let queue = front.queue("work").await;
    let (parent, _) = carried(&front, to_queue(&queue, text("x")), &[]).await;
    let parent = parent.expect("the gateway began a trace");
    let begun = carried(
        &front,
        to_queue(&queue, text("x")),
        &[("traceparent", "00-x-y-z")],
    )
    .await;
    assert!(begun.0.is_some_and(|begun| begun != parent));
    front
        .publish(to_queue(&front.name("nobody"), text("x")))
        .await
        .expect_err("no queue");
    front.stopped().await.expect("it stops well");
    // Stopping told all of it: nothing is waited for.
    let told: Vec<Span> = collector
        .0
        .lock()
        .expect("whole")
        .iter()
        .map(|(_, span)| span.clone())
        .collect();
    let publishes = told
        .iter()
        .filter(|span| span.name == "publish amq.default");
    let first = publishes
        .clone()
        .find(|span| parent.contains(&hex(&span.span_id)));
    assert!(first.expect("it is told").parent_span_id.is_empty());
    let failed = publishes.clone().find(|span| {
        span.status
            .as_ref()
            .is_some_and(|s| s.code() == StatusCode::Error)
    });
    let failed = failed.expect("it is told");
    assert_eq!(
        attribute(&failed.attributes, "error.type"),
        some("unroutable")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_harms_nobody() {
    // Takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("bound");
    let gateway = Gateway::start_with(MemoryBroker::new(), |setup| {
        setup.without_database();
        telling(setup, address, "ignored");
    })
    .await;
    let mut publisher = gateway.publisher().await;
    // More than waits for a collector.
    for _ in 0..5 {
        let mut request = to_queue("nobody", text("x"));
        request.allow_unroutable = true;
        let batch = PublishBatchRequest {
            messages: vec![request; 1_000],
        };
        let answer = timely(publisher.publish_batch(batch))
            .await
            .expect("answered");
        let results = answer.into_inner().results;
        assert!(results.iter().all(|result| result.error.is_none()));
    }
    drop(publisher);
    timely(gateway.stopped()).await.expect("it stops well");
}
