//! `POST /api/messages/publish`: what arrives, and what a publisher is told.

use std::sync::Arc;

use axum::body::Body;
use courtier::grpc::proto::{Delivery, Message};
use http::Method;
use prost_types::value::Kind;
use serde_json::json;

use crate::{
    front::{Front, On, body, on_both, payload, seconds},
    rest::{PUBLISH, Reply, publish, refused, request, send, to_queue},
    scripted::Scripted,
};

on_both! {
    the_three_fields_of_the_specification_are_enough
    json_arrives_byte_for_byte
    an_envelope_is_told_in_properties_too
    the_optional_fields_become_properties
    what_is_no_json_is_published_as_text_or_bytes
    every_fate_is_told_as_over_grpc
    names_that_could_be_mistaken_for_others_are_refused
}

/// The only message in a queue.
async fn only(front: &Front, queue: &str) -> (Delivery, Message) {
    let mut drained = front.drain(queue).await;
    assert_eq!(drained.len(), 1);
    let delivery = drained.remove(0);
    let message = delivery.message.clone().expect("always set");
    (delivery, message)
}

async fn the_three_fields_of_the_specification_are_enough(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let exchange = front.exchange("orders", "created", &[&queue]).await;
    let body = json!({"exchange": exchange, "routing_key": "created", "message": {"id": 1}});
    let answer = publish(&front, body.to_string()).await.ok();
    assert_eq!(answer["outcome"], "CONFIRMED");
    let (delivery, message) = only(&front, &queue).await;
    assert_eq!(
        (&*delivery.exchange, &*delivery.routing_key),
        (&*exchange, "created")
    );
    assert_eq!(message.content_type, "application/json");
    assert_eq!(answer["message_id"], message.message_id);
    assert_ne!(answer["message_id"], answer["publish_id"]);
    assert_eq!(message.headers, None);
}

async fn json_arrives_byte_for_byte(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let messages = [
        "18446744073709551615",
        "[9007199254740993, -9223372036854775808, 1.0, 1.50, 1E+2, -0, 1e999]",
        r#"{"b":1,"a":2,"b":3}"#,
        "{ \"a\" :\n\t[ 1 ,2 ] }",
        r#""\u00e9 é \/ \ud83d\ude00 \ud800""#,
        "null",
        "\"\"",
        "false",
        &deep,
    ];
    for message in messages {
        let sent = format!(r#"{{"message":  {message} ,"exchange":"","routing_key":"{queue}"}}"#);
        publish(&front, sent).await.ok();
    }
    assert_eq!(front.drain_bodies(&queue).await, messages);
}

async fn an_envelope_is_told_in_properties_too(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    // As PHP writes it.
    let envelope = r#"{"event":"order.created","timestamp":"2026-11-22T05:40:46.123456Z","data":{"total":12.50},"metadata":{"service":"orders","version":"1.0"}}"#;
    let sent = format!(r#"{{"exchange":"","routing_key":"{queue}","message":{envelope}}}"#);
    publish(&front, sent).await.ok();
    let (delivery, message) = only(&front, &queue).await;
    assert_eq!(body(&delivery), envelope);
    assert_eq!(
        (&*message.r#type, &*message.app_id),
        ("order.created", "orders")
    );
    assert_eq!(
        message.timestamp.expect("set").to_string(),
        "2026-11-22T05:40:46Z"
    );
    // Nothing that looks like one only in part.
    for not_one in [
        json!({"event": 7, "metadata": {"service": "s"}}),
        json!(["event"]),
    ] {
        publish(&front, to_queue(&queue, not_one, json!({})))
            .await
            .ok();
        let (_, message) = only(&front, &queue).await;
        assert_eq!((&*message.r#type, &*message.app_id), ("", ""));
        assert_eq!(message.timestamp, None);
    }
}

async fn the_optional_fields_become_properties(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let besides = json!({
        "message_id": "order-1",
        "correlation_id": "c-1",
        "reply_to": "answers",
        "headers": {"tenant": "a", "n": 9_007_199_254_740_993_i64, "list": [1, null, true, 0.5]},
        "priority": 3,
        "ttl": "90s",
    });
    let answer = publish(&front, to_queue(&queue, json!(1), besides))
        .await
        .ok();
    assert_eq!(answer["message_id"], "order-1");
    let (_, message) = only(&front, &queue).await;
    assert_eq!(
        (
            &*message.message_id,
            &*message.correlation_id,
            &*message.reply_to
        ),
        ("order-1", "c-1", "answers")
    );
    assert_eq!(message.priority, 3);
    assert_eq!(message.ttl, seconds(90));
    let headers = message.headers.expect("set").fields;
    let names: Vec<_> = headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["list", "n", "tenant"]);
    // Beyond 2^53 the gRPC view is text: it arrived as a 64-bit integer.
    assert_eq!(
        headers["n"].kind,
        Some(Kind::StringValue("9007199254740993".to_owned()))
    );

    // A number as text is milliseconds, as in the configuration; absent fields may be null or empty.
    let besides = json!({"ttl": "60000", "message_id": null, "reply_to": "", "headers": null});
    publish(&front, to_queue(&queue, json!(1), besides))
        .await
        .ok();
    assert_eq!(only(&front, &queue).await.1.ttl, seconds(60));
    // As PHP writes an empty array, and as it writes a number.
    let besides = json!({"ttl": 5_000, "headers": []});
    publish(&front, to_queue(&queue, json!(1), besides))
        .await
        .ok();
    let (_, message) = only(&front, &queue).await;
    assert_eq!((message.ttl, message.headers), (seconds(5), None));
}

async fn what_is_no_json_is_published_as_text_or_bytes(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let sent = json!({
        "exchange": "", "routing_key": queue, "payload_text": "order 7: \u{e9}",
        "type": "order.created", "app_id": "shop", "content_type": "text/plain", "content_encoding": "identity",
    });
    publish(&front, sent.to_string()).await.ok();
    let (delivery, message) = only(&front, &queue).await;
    assert_eq!(body(&delivery), "order 7: \u{e9}");
    assert_eq!(
        (&*message.r#type, &*message.app_id),
        ("order.created", "shop")
    );
    let kind = (&*message.content_type, &*message.content_encoding);
    assert_eq!(kind, ("text/plain", "identity"));

    let sent = json!({"exchange": "", "routing_key": queue, "payload_base64": "AP8="});
    publish(&front, sent.to_string()).await.ok();
    let (delivery, message) = only(&front, &queue).await;
    assert_eq!(
        (payload(&delivery), &*message.content_type),
        (&b"\x00\xff"[..], "")
    );

    // What is given goes before what an envelope says.
    let envelope = json!({"event": "a", "metadata": {"service": "b"}});
    let besides = json!({"type": "c", "content_type": "application/vnd.shop+json"});
    publish(&front, to_queue(&queue, envelope, besides))
        .await
        .ok();
    let (_, message) = only(&front, &queue).await;
    let said = (&*message.r#type, &*message.app_id, &*message.content_type);
    assert_eq!(said, ("c", "b", "application/vnd.shop+json"));
}

async fn every_fate_is_told_as_over_grpc(on: On) {
    let front = on.gateway().await;
    let nowhere = to_queue(&front.name("missing"), json!(1), json!({}));
    let unroutable = refused(400, "UNROUTABLE", "UNROUTABLE");
    assert_eq!(publish(&front, nowhere).await.refusal(), unroutable);
    let allowed = json!({"allow_unroutable": true});
    let allowed = to_queue(&front.name("missing"), json!(1), allowed);
    assert_eq!(publish(&front, allowed).await.ok()["outcome"], "CONFIRMED");

    let full = front
        .queue_with("full", |queue| queue.max_length = Some(1))
        .await;
    publish(&front, to_queue(&full, json!(1), json!({})))
        .await
        .ok();
    let answer = publish(&front, to_queue(&full, json!(2), json!({}))).await;
    assert_eq!(answer.refusal(), refused(429, "QUEUE_FULL", "REJECTED"));
    assert_eq!(answer.headers["retry-after"], "5");

    let missing = json!({"exchange": front.name("missing"), "routing_key": "k", "message": 1});
    let answer = publish(&front, missing.to_string()).await;
    assert_eq!(
        answer.refusal(),
        refused(404, "EXCHANGE_NOT_FOUND", "INVALID")
    );
    let forbidden = json!({"exchange": "amq.rabbitmq.log", "routing_key": "k", "message": 1});
    let answer = publish(&front, forbidden.to_string()).await;
    assert_eq!(answer.refusal(), refused(403, "FORBIDDEN", "INVALID"));

    front.broker.close().await;
    let answer = publish(&front, to_queue(&full, json!(1), json!({}))).await;
    assert_eq!(answer.refusal(), refused(503, "BROKER_DOWN", "NOT_SENT"));
    assert_eq!(answer.headers["retry-after"], "1");
}

async fn names_that_could_be_mistaken_for_others_are_refused(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let invalid = refused(400, "INVALID_MESSAGE", "INVALID");
    for mark in ["\r", "\n", "\r\n", "\0", "\u{202e}", " "] {
        let name = format!("{queue}{mark}");
        let answer = publish(&front, to_queue(&name, json!(1), json!({}))).await;
        assert_eq!(answer.refusal(), invalid, "{name:?}");
        let exchange = json!({"exchange": name, "routing_key": "k", "message": 1});
        let answer = publish(&front, exchange.to_string()).await;
        assert_eq!(answer.refusal(), invalid, "{name:?}");
    }
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn silent() -> Front {
    Front::of(Arc::new(Scripted::new(None)), None, |setup| {
        setup.without_database();
    })
    .await
}

async fn publish_within(front: &Front, timeout: &str) -> Reply {
    let request = request(Method::POST, PUBLISH)
        .header("content-type", "application/json")
        .header("grpc-timeout", timeout)
        .body(Body::from(to_queue("q", json!(1), json!({}))));
    send(front, request.expect("well-formed")).await
}

/// An answer with another shape would come from gRPC's own timers, with status 200.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_deadline_is_kept_and_the_outcome_told() {
    let front = silent().await;
    let in_doubt = refused(504, "CONFIRM_TIMEOUT", "IN_DOUBT");
    assert_eq!(publish_within(&front, "300m").await.refusal(), in_doubt);
    let not_sent = refused(504, "DEADLINE_EXCEEDED", "NOT_SENT");
    for over in ["0n", "1u", "10m"] {
        assert_eq!(
            publish_within(&front, over).await.refusal(),
            not_sent,
            "{over}"
        );
    }
    // As over gRPC, what is malformed is as good as absent; other routes have no outcome.
    let list = request(Method::GET, "/api/messages/failed").header("grpc-timeout", "0n");
    let list = send(&front, list.body(Body::empty()).expect("well-formed")).await;
    assert_eq!(list.refusal(), refused(504, "DEADLINE_EXCEEDED", ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_callers_deadline_the_gateways_own_holds_for_body_and_confirm() {
    let change = |setup: &mut crate::harness::Setup| {
        setup.without_database();
        setup.config.limits.publish_timeout = std::time::Duration::from_millis(300);
    };
    let front = Front::of(Arc::new(Scripted::new(None)), None, change).await;
    let answer = publish(&front, to_queue("q", json!(1), json!({}))).await;
    let in_doubt = refused(504, "CONFIRM_TIMEOUT", "IN_DOUBT");
    assert_eq!(answer.refusal(), in_doubt);
    // A body that never comes holds nothing for ever.
    let never = Body::from_stream(futures::stream::pending::<
        Result<bytes::Bytes, std::io::Error>,
    >());
    let answer = publish(&front, never).await;
    let not_sent = refused(504, "DEADLINE_EXCEEDED", "NOT_SENT");
    assert_eq!(answer.refusal(), not_sent);
}
