//! Messages between the gateway and services that speak AMQP themselves, in both directions: with pika (Python) and with
//! php-amqplib. Neither shares a line of code with the gateway's own client library. The programs are in `tests/native`.

use std::process::Command;

use courtier::{
    broker::topology::{Queue, QueueKind, Topology},
    grpc::proto::{
        Delivery, Message, PublishRequest, message::Payload, subscribe_response::Response,
    },
};
use prost_types::{Duration, ListValue, Struct, Timestamp, Value, value::Kind};
use serde_json::{Value as Json, json};
use tokio::time::timeout;

use crate::{
    books::Consumer,
    harness::{Gateway, PATIENCE},
};

/// A service with a library of its own.
#[derive(Clone, Copy)]
pub enum Native {
    Python,
    Php,
}

fn python() -> String {
    std::env::var("COURTIER_TEST_PYTHON").expect("set by make test")
}

/// Publishes messages, or declares a queue, as `tests/native/odd.py` says.
pub async fn odd(verb: &str, queue: &str) {
    run(python(), "odd.py", verb, queue).await;
}

/// Runs a program; the answer is what it prints.
async fn run(program: String, script: &str, verb: &str, queue: &str) -> String {
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    let script = format!("{}/tests/native/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(program);
    command.args([&script, verb, &url, queue]);
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("it does not panic").expect("it is installed");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{script} {verb}: {out}{err}");
    out.into_owned()
}

impl Native {
    pub async fn run(self, verb: &str, queue: &str) -> String {
        match self {
            Self::Python => run(python(), "client.py", verb, queue).await,
            Self::Php => run("php".to_owned(), "client.php", verb, queue).await,
        }
    }
}

/// A gateway, and a queue without limits.
pub async fn prepare() -> (Gateway, String) {
    let gateway = Gateway::rabbitmq().await;
    let queue = gateway.name("native");
    let topology = Topology {
        queues: vec![Queue::bare(&queue, QueueKind::Classic)],
        ..Topology::default()
    };
    assert_eq!(
        gateway.broker.declare(&topology).await.expect("declared"),
        []
    );
    (gateway, queue)
}

/// The first delivery of a queue.
pub async fn receive(gateway: &Gateway, queue: &str) -> Delivery {
    let consumer = Consumer::start(gateway.channel().await, queue, 1).await;
    let mut consumer = consumer.expect("the queue exists");
    loop {
        let next = timeout(PATIENCE, consumer.next())
            .await
            .expect("something comes");
        let response = next
            .expect("the subscription goes on")
            .and_then(|said| said.response);
        if let Some(Response::Deliveries(mut deliveries)) = response {
            let delivery = deliveries.deliveries.remove(0);
            consumer.ack(vec![delivery.ack_id.clone()]);
            consumer.finish().await;
            return delivery;
        }
    }
}

/// A native client asks, and a service behind the gateway answers where it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_reply_reaches_the_queue_that_the_broker_named() {
    let (gateway, queue) = prepare().await;
    let call = Native::Python.run("call", &queue);
    let answer = async {
        let asked = receive(&gateway, &queue).await.message.expect("always set");
        let reply = PublishRequest {
            routing_key: asked.reply_to,
            message: Some(Message {
                correlation_id: asked.correlation_id,
                payload: Some(Payload::Data("answer".into())),
                ..Message::default()
            }),
            ..PublishRequest::default()
        };
        let published = gateway.publisher().await.publish(reply).await;
        published.expect("routed and confirmed");
    };
    let (said, ()) = tokio::join!(call, answer);
    assert_eq!(said, "call-1 answer\n");
}

/// What the gateway delivers of a message that a native service published.
async fn sent_by(native: Native) -> (Delivery, Json) {
    let (gateway, queue) = prepare().await;
    native.run("send", &queue).await;
    let mut delivery = receive(&gateway, &queue).await;
    assert_eq!(
        (delivery.queue.as_str(), delivery.exchange.as_str()),
        (queue.as_str(), "")
    );
    assert_eq!(delivery.routing_key, queue);
    assert!(!delivery.redelivered);
    let message = delivery.message.as_mut().expect("there is a message");
    let headers = message.headers.take().expect("there are headers");
    (delivery, to_json(Kind::StructValue(headers)))
}

/// The properties that both services set alike.
fn expected(name: &str, payload: &'static [u8]) -> Message {
    Message {
        message_id: format!("from-{name}"),
        payload: Some(Payload::Data(payload.into())),
        content_type: "application/octet-stream".to_owned(),
        content_encoding: "identity".to_owned(),
        headers: None,
        r#type: "order.created".to_owned(),
        app_id: name.to_owned(),
        correlation_id: "correlation".to_owned(),
        reply_to: "answers".to_owned(),
        timestamp: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        priority: 7,
        ttl: Some(Duration {
            seconds: 600,
            nanos: 0,
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn what_python_publishes_is_delivered_with_all_its_properties() {
    let (delivery, headers) = sent_by(Native::Python).await;
    assert_eq!(
        delivery.message,
        Some(expected("python", b"\x00\xffpython\r\n"))
    );
    let expected = json!({
        "none": null,
        "bool": true,
        "int": -5.0,
        "large": "1152921504606846976",
        "decimal": 12.34,
        "negative": -1.5,
        "text": "Grüße",
        "bytes": "AP8=",
        "time": "2026-02-03T04:05:06Z",
        "list": [1.0, "two", [false]],
        "table": {"deep": {"deeper": null}},
    });
    assert_eq!(headers, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn what_php_publishes_is_delivered_with_all_its_properties() {
    let (delivery, headers) = sent_by(Native::Php).await;
    assert_eq!(delivery.message, Some(expected("php", b"\x00\xffphp\r\n")));
    let expected = json!({
        "void": null,
        "bool": true,
        "i8": -5.0,
        "u8": 200.0,
        "i16": -300.0,
        "u16": 60_000.0,
        "i32": -70_000.0,
        "u32": 4_000_000_000.0,
        "i64": "1152921504606846976",
        "decimal": -12.34,
        "text": "Grüße",
        "bytes": "AP8=",
        "time": "2026-02-03T04:05:06Z",
        "list": [1.0, "two", [false]],
        "table": {"deep": {"deeper": null}},
    });
    assert_eq!(headers, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn python_reads_what_the_gateway_publishes() {
    read_by(Native::Python).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn php_reads_what_the_gateway_publishes() {
    read_by(Native::Php).await;
}

async fn read_by(native: Native) {
    let (gateway, queue) = prepare().await;
    let headers = json!({
        "null": null,
        "bool": true,
        "integer": -5,
        "large": 1_i64 << 40,
        "fraction": 0.5,
        "text": "Grüße",
        "list": [1, "two", [false]],
        "table": {"deep": {"deeper": "x"}},
    });
    let Kind::StructValue(fields) = from_json(&headers) else {
        unreachable!("an object")
    };
    let request = PublishRequest {
        routing_key: queue.clone(),
        message: Some(Message {
            headers: Some(fields),
            ..expected("gateway", b"\x00\xffgateway\r\n")
        }),
        ..PublishRequest::default()
    };
    let answer = gateway
        .publisher()
        .await
        .publish(request)
        .await
        .expect("confirmed")
        .into_inner();

    let mut received: Json =
        serde_json::from_str(&native.run("receive", &queue).await).expect("JSON");
    let publish_id = received["headers"]
        .as_object_mut()
        .and_then(|headers| headers.remove("x-courtier-publish-id"));
    assert_eq!(publish_id, Some(answer.publish_id.into()));
    let mut headers = headers;
    if matches!(native, Native::Python) {
        // pika cuts doubles that it reads.
        headers["fraction"] = 0.into();
    }
    let expected = json!({
        "payload": "00ff676174657761790d0a",
        "content_type": "application/octet-stream",
        "content_encoding": "identity",
        "headers": headers,
        "delivery_mode": 2,
        "priority": 7,
        "correlation_id": "correlation",
        "reply_to": "answers",
        "expiration": "600000",
        "message_id": "from-gateway",
        "timestamp": 1_700_000_000,
        "type": "order.created",
        "app_id": "gateway",
    });
    assert_eq!(received, expected);
}

fn to_json(kind: Kind) -> Json {
    let nested = |value: Value| value.kind.map_or(Json::Null, to_json);
    match kind {
        Kind::NullValue(_) => Json::Null,
        Kind::BoolValue(value) => value.into(),
        Kind::NumberValue(number) => number.into(),
        Kind::StringValue(text) => text.into(),
        Kind::ListValue(list) => list.values.into_iter().map(nested).collect(),
        Kind::StructValue(fields) => Json::Object(
            fields
                .fields
                .into_iter()
                .map(|(name, value)| (name, nested(value)))
                .collect(),
        ),
    }
}

fn from_json(json: &Json) -> Kind {
    let nested = |json: &Json| Value {
        kind: Some(from_json(json)),
    };
    match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().expect("a double")),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(nested).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), nested(value)))
                .collect(),
        }),
    }
}
