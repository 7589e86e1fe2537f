//! Publishing through the front door: every outcome, over each of the three ways to publish, and what arrives.
//! Batches and streams as such are in `many.rs`.

use std::{sync::Arc, time::Duration};

use courtier::{
    broker::{Fate, InDoubt, NotSent},
    grpc::proto::{Message, Outcome, PublishRequest, message::Payload},
};
use prost_types::{ListValue, Struct, Timestamp, Value, value::Kind};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::front::{Fault, Front, On, body, fault, from, on_both, payload, text, to_queue};
use crate::{
    fates::{batch, fate_of, of, stream},
    scripted::Scripted,
};

on_both! {
    a_confirmed_message_is_in_its_queue
    a_message_that_no_queue_takes_is_unroutable
    with_allow_unroutable_a_message_that_no_queue_takes_is_confirmed
    a_full_queue_rejects
    a_missing_exchange_is_invalid_and_not_found
    what_the_gateway_refuses_is_invalid_and_names_its_field
    without_the_broker_nothing_is_sent
    beyond_the_bytes_in_flight_nothing_is_sent
    an_id_is_made_or_kept_and_each_publish_has_its_own
    every_property_and_payload_arrives
}

/// The fate of a request: the same whether it comes alone, in a batch or on a stream.
async fn fate(front: &Front, request: PublishRequest) -> (Outcome, Option<Fault>) {
    let alone = match front.publish(request.clone()).await {
        Ok(response) => (response.outcome(), None),
        Err(status) => {
            let fault = fault(&status);
            let name = format!("OUTCOME_{}", fault.outcome);
            let outcome = Outcome::from_str_name(&name).expect("an outcome of the API");
            (outcome, Some(fault))
        }
    };
    let batched = batch(front, vec![request.clone()]).await;
    let streamed = stream(front, vec![request]).await;
    for (way, results) in [("batch", batched), ("stream", streamed)] {
        assert_eq!(results.len(), 1, "{way}");
        assert_eq!(fate_of(&results[0]), alone, "{way}");
    }
    alone
}

async fn a_confirmed_message_is_in_its_queue(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let exchange = front.exchange("orders", "created", &[&queue]).await;
    let request = PublishRequest {
        exchange: exchange.clone(),
        routing_key: "created".into(),
        ..to_queue("", text("a"))
    };
    assert_eq!(fate(&front, request).await, (Outcome::Confirmed, None));
    let stored = front.drain(&queue).await;
    let origin: Vec<_> = stored
        .iter()
        .map(|d| (body(d), &*d.exchange, &*d.routing_key))
        .collect();
    assert_eq!(origin, vec![("a".to_owned(), &*exchange, "created"); 3]);
}

async fn a_message_that_no_queue_takes_is_unroutable(on: On) {
    let front = on.gateway().await;
    let exchange = front.exchange("orders", "", &[]).await;
    let unroutable = of(
        Code::FailedPrecondition,
        "UNROUTABLE",
        "UNROUTABLE",
        "",
        false,
    );
    let bound_to_nothing = PublishRequest {
        exchange,
        ..to_queue("k", text("a"))
    };
    let no_such_queue = to_queue(&front.name("missing"), text("a"));
    for request in [bound_to_nothing, no_such_queue] {
        assert_eq!(
            fate(&front, request).await,
            (Outcome::Unroutable, unroutable.clone())
        );
    }
}

async fn with_allow_unroutable_a_message_that_no_queue_takes_is_confirmed(on: On) {
    let front = on.gateway().await;
    let request = PublishRequest {
        allow_unroutable: true,
        ..to_queue(&front.name("missing"), text("a"))
    };
    assert_eq!(fate(&front, request).await, (Outcome::Confirmed, None));
}

async fn a_full_queue_rejects(on: On) {
    let front = on.gateway().await;
    let queue = front
        .queue_with("work", |queue| queue.max_length = Some(1))
        .await;
    front.fill(&queue, &["a"]).await;
    let full = of(Code::ResourceExhausted, "QUEUE_FULL", "REJECTED", "", true);
    let answer = fate(&front, to_queue(&queue, text("b"))).await;
    assert_eq!(answer, (Outcome::Rejected, full));
}

async fn a_missing_exchange_is_invalid_and_not_found(on: On) {
    let front = on.gateway().await;
    let request = PublishRequest {
        exchange: front.name("missing"),
        ..to_queue("k", text("a"))
    };
    let missing = of(Code::NotFound, "EXCHANGE_NOT_FOUND", "INVALID", "", false);
    assert_eq!(fate(&front, request).await, (Outcome::Invalid, missing));
}

async fn what_the_gateway_refuses_is_invalid_and_names_its_field(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_payload_bytes = 40)
        .await;
    let queue = front.queue("work").await;
    let message = |change: fn(&mut Message)| {
        let mut message = text("a");
        change(&mut message);
        to_queue(&queue, message)
    };
    let invalid = "INVALID_MESSAGE";
    let cases = [
        (
            PublishRequest {
                message: None,
                ..to_queue(&queue, text("a"))
            },
            invalid,
            "message",
        ),
        (
            PublishRequest {
                exchange: "a\n".into(),
                ..to_queue(&queue, text("a"))
            },
            invalid,
            "exchange",
        ),
        (to_queue("", text("a")), invalid, "routing_key"),
        (
            message(|m| m.message_id = "x".repeat(256)),
            invalid,
            "message.message_id",
        ),
        (message(|m| m.priority = 256), invalid, "message.priority"),
        (
            message(|m| m.ttl = crate::front::seconds(-1)),
            invalid,
            "message.ttl",
        ),
        (
            message(|m| {
                m.timestamp = Some(Timestamp {
                    seconds: -1,
                    nanos: 0,
                })
            }),
            invalid,
            "message.timestamp",
        ),
        (
            message(|m| m.payload = Some(Payload::Json(number(f64::NAN)))),
            invalid,
            "message.json",
        ),
        (
            message(|m| m.payload = Some(Payload::Text("x".repeat(41)))),
            "PAYLOAD_TOO_LARGE",
            "message.payload",
        ),
        (
            message(|m| m.headers = headers([("CC", number(1.0))])),
            "RESERVED_HEADER",
            "message.headers",
        ),
    ];
    for (request, reason, field) in cases {
        let expected = of(Code::InvalidArgument, reason, "INVALID", field, false);
        assert_eq!(
            fate(&front, request).await,
            (Outcome::Invalid, expected),
            "{field}"
        );
    }
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn without_the_broker_nothing_is_sent(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.broker.close().await;
    let down = of(Code::Unavailable, "BROKER_DOWN", "NOT_SENT", "", true);
    let answer = fate(&front, to_queue(&queue, text("a"))).await;
    assert_eq!(answer, (Outcome::NotSent, down));
}

async fn beyond_the_bytes_in_flight_nothing_is_sent(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_in_flight_bytes = 1_000)
        .await;
    let queue = front.queue("work").await;
    let overloaded = of(Code::ResourceExhausted, "OVERLOADED", "NOT_SENT", "", true);
    let answer = fate(&front, to_queue(&queue, text(&"x".repeat(1_001)))).await;
    assert_eq!(answer, (Outcome::NotSent, overloaded));
    // What was refused holds nothing back.
    front.fill(&queue, &["123", "456"]).await;
    assert_eq!(front.drain_bodies(&queue).await, ["123", "456"]);
}

async fn an_id_is_made_or_kept_and_each_publish_has_its_own(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let version = |id: &str| uuid::Uuid::parse_str(id).map(|id| id.get_version_num());
    let kept = to_queue(
        &queue,
        Message {
            message_id: "mine".into(),
            ..text("a")
        },
    );
    let first = front.publish(kept.clone()).await.expect("confirmed");
    let second = front.publish(kept).await.expect("confirmed");
    assert_eq!([&*first.message_id, &*second.message_id], ["mine"; 2]);
    assert_ne!(first.publish_id, second.publish_id);
    let made = front
        .publish(to_queue(&queue, text("a")))
        .await
        .expect("confirmed");
    for id in [
        &first.publish_id,
        &second.publish_id,
        &made.publish_id,
        &made.message_id,
    ] {
        assert_eq!(version(id), Ok(7), "{id}");
    }
    let ids = front
        .drain(&queue)
        .await
        .into_iter()
        .map(|d| d.message.unwrap_or_default().message_id);
    assert_eq!(ids.collect::<Vec<_>>(), ["mine", "mine", &made.message_id]);
}

async fn every_property_and_payload_arrives(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let nested = Struct {
        fields: [("deep".to_owned(), text_value("x"))].into(),
    };
    let list = ListValue {
        values: vec![
            number(1.0),
            Value {
                kind: Some(Kind::NullValue(0)),
            },
        ],
    };
    let message = Message {
        message_id: "id".into(),
        payload: Some(Payload::Data(vec![0, 255, 13, 10].into())),
        content_type: "application/x".into(),
        content_encoding: "gzip".into(),
        headers: headers([
            ("integer", number(9_007_199_254_740_992.0)),
            ("double", number(0.5)),
            ("text", text_value("é")),
            (
                "flag",
                Value {
                    kind: Some(Kind::BoolValue(true)),
                },
            ),
            (
                "list",
                Value {
                    kind: Some(Kind::ListValue(list)),
                },
            ),
            (
                "nested",
                Value {
                    kind: Some(Kind::StructValue(nested)),
                },
            ),
        ]),
        r#type: "order.created".into(),
        app_id: "orders".into(),
        correlation_id: "c".into(),
        reply_to: "answers".into(),
        timestamp: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        priority: 7,
        ttl: crate::front::seconds(3_600),
    };
    let json = Struct {
        fields: [
            ("n".to_owned(), number(5.0)),
            ("t".to_owned(), text_value("\"é")),
        ]
        .into(),
    };
    let json = Message {
        payload: Some(Payload::Json(Value {
            kind: Some(Kind::StructValue(json)),
        })),
        ..Message::default()
    };
    for message in [message.clone(), json, text("grüße\0"), Message::default()] {
        front
            .publish(to_queue(&queue, message))
            .await
            .expect("confirmed");
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    let arrived = stream.deliveries(4).await;
    assert_eq!(arrived[0].message, Some(message));
    assert_eq!(body(&arrived[1]), r#"{"n":5,"t":"\"é"}"#);
    let json_type = arrived[1].message.as_ref().map(|m| &*m.content_type);
    assert_eq!(json_type, Some("application/json"));
    assert_eq!(payload(&arrived[2]), "grüße\0".as_bytes());
    assert_eq!(payload(&arrived[3]), b"");
}

fn number(number: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(number)),
    }
}

fn text_value(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

fn headers<const N: usize>(fields: [(&str, Value); N]) -> Option<Struct> {
    let fields = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Some(Struct {
        fields: fields.collect(),
    })
}

async fn scripted(fate: Option<Fate>) -> Front {
    Front::of(Arc::new(Scripted::new(fate)), None, |_| {}).await
}

#[tokio::test]
async fn what_a_blocked_or_broken_broker_leaves_open_is_said() {
    let cases = [
        (
            Fate::NotSent(NotSent::BrokerBlocked),
            Outcome::NotSent,
            Code::Unavailable,
            "BROKER_BLOCKED",
        ),
        (
            Fate::NotSent(NotSent::Overloaded),
            Outcome::NotSent,
            Code::ResourceExhausted,
            "OVERLOADED",
        ),
        (
            Fate::InDoubt(InDoubt::ConfirmLost),
            Outcome::InDoubt,
            Code::Unavailable,
            "CONFIRM_LOST",
        ),
        (
            Fate::InDoubt(InDoubt::ConfirmTimeout),
            Outcome::InDoubt,
            Code::DeadlineExceeded,
            "CONFIRM_TIMEOUT",
        ),
    ];
    for (broker, outcome, code, reason) in cases {
        let front = scripted(Some(broker)).await;
        let name = outcome.as_str_name().trim_start_matches("OUTCOME_");
        let expected = of(code, reason, name, "", true);
        let answer = fate(&front, to_queue("q", text("a"))).await;
        assert_eq!(answer, (outcome, expected));
    }
}

#[tokio::test]
async fn the_answer_comes_before_the_callers_deadline_and_says_what_is_known() {
    let front = scripted(None).await;
    let began = Instant::now();
    let mut request = Request::new(to_queue("q", text("a")));
    request.set_timeout(Duration::from_secs(1));
    let status = front
        .publisher
        .clone()
        .publish(request)
        .await
        .expect_err("no confirm");
    let expected = of(
        Code::DeadlineExceeded,
        "CONFIRM_TIMEOUT",
        "IN_DOUBT",
        "",
        true,
    );
    assert_eq!(Some(fault(&status)), expected);
    assert!(began.elapsed() < Duration::from_secs(2));
}
