//! `POST /api/messages/publish/batch`: each message has its own fate, in its place.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

use crate::{
    front::{Front, On, on_both},
    rest::{BATCH, Reply, post_json, publish, refused, request, send},
    scripted::Scripted,
};

on_both! {
    each_message_of_a_batch_is_answered_as_if_it_were_alone
    a_batch_over_http_holds_one_to_a_thousand_messages
    a_batch_over_http_may_be_larger_than_one_message
}

async fn batch(front: &Front, messages: &Value) -> Reply {
    post_json(front, BATCH, json!({"messages": messages}).to_string()).await
}

async fn results(front: &Front, messages: &Value) -> Vec<Value> {
    let mut answer = batch(front, messages).await.ok();
    let Value::Array(results) = answer["results"].take() else {
        panic!("results are due: {answer}");
    };
    results
}

async fn each_message_of_a_batch_is_answered_as_if_it_were_alone(on: On) {
    let front = on.gateway().await;
    let work = front.queue("work").await;
    let full = front.full_queue("full").await;
    let (missing, n) = (front.name("missing"), json!(1));
    let messages = json!([
        {"exchange": "", "routing_key": work, "message": {"n": 0}, "message_id": "m-0"},
        {"exchange": "", "routing_key": missing, "message": n, "message_id": "m-1"},
        7,
        {"exchange": "", "routing_key": full, "message": n, "message_id": "m-3"},
        {"exchange": "", "routing_key": "a\u{0}", "message": n, "message_id": "m-4"},
        {"exchange": missing, "routing_key": "k", "message": n, "message_id": "m-5"},
        {"exchange": "amq.rabbitmq.log", "routing_key": "k", "message": n, "message_id": "m-6"},
        {"exchange": "", "routing_key": missing, "message": n, "message_id": "m-7", "allow_unroutable": true},
        {"exchange": "", "routing_key": work},
        {"exchange": "", "routing_key": work, "message": n, "more": 1},
        {"exchange": "", "routing_key": work, "payload_base64": "?"},
        {"exchange": "", "routing_key": work, "message": n, "ttl": "soon"},
        {"exchange": "", "routing_key": work, "message": n, "headers": [1]},
        {"exchange": "", "routing_key": work, "payload_text": "last", "headers": [], "message_id": "m-13"},
    ]);
    let results = results(&front, &messages).await;
    assert_eq!(front.drain_bodies(&work).await, [r#"{"n":0}"#, "last"]);
    let outcomes: Vec<_> = results
        .iter()
        .map(|result| result["outcome"].as_str().expect("a text"))
        .collect();
    let (confirmed, invalid) = ("CONFIRMED", "INVALID");
    let expected = [
        confirmed,
        "UNROUTABLE",
        invalid,
        "REJECTED",
        invalid,
        invalid,
        invalid,
        confirmed,
        invalid,
        invalid,
        invalid,
        invalid,
        invalid,
        confirmed,
    ];
    assert_eq!(outcomes, expected);
    let messages = messages.as_array().expect("a list").iter();
    for (message, result) in messages.zip(&results) {
        if let Some(id) = message.get("message_id") {
            assert_eq!(&result["message_id"], id);
        }
        if result["outcome"] == confirmed {
            assert_eq!(result.get("error"), None);
            assert_ne!(result["publish_id"], "");
        } else {
            let alone = publish(&front, message.to_string()).await;
            assert_eq!(result["error"], alone.error(), "{message}");
        }
    }
}

async fn a_batch_over_http_holds_one_to_a_thousand_messages(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let message = |n: usize| json!({"exchange": "", "routing_key": queue, "message": n});
    let messages = |count| (0..count).map(message).collect::<Value>();
    let answers = results(&front, &messages(1_000)).await;
    assert_eq!(answers.len(), 1_000);
    assert!(answers.iter().all(|one| one["outcome"] == "CONFIRMED"));
    let sent: Vec<_> = (0..1_000).map(|n| n.to_string()).collect();
    assert_eq!(front.drain_bodies(&queue).await, sent);

    let invalid = refused(400, "INVALID_REQUEST", "INVALID");
    let short: Value = std::iter::repeat_n(json!(1), 1_000_000).collect();
    for (messages, count) in [(json!([]), 0), (messages(1_001), 1_001), (short, 1_000_000)] {
        let answer = batch(&front, &messages).await;
        assert_eq!(answer.refusal(), invalid);
        let told = answer.error()["message"].to_string();
        assert!(
            told.contains(&format!("1 to 1000 messages, not {count}")),
            "{told}"
        );
    }
    for body in ["", "[]", "{}", r#"{"messages":7}"#, r#"{"messages":[1]"#] {
        let answer = post_json(&front, BATCH, body).await;
        assert_eq!(answer.refusal(), invalid, "{body}");
    }
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_batch_over_http_may_be_larger_than_one_message(on: On) {
    const MIB: usize = 1024 * 1024;
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let sized = |bytes: usize| {
        let text = "x".repeat(bytes);
        json!({"exchange": "", "routing_key": queue, "payload_text": text})
    };
    let messages = json!([sized(4 * MIB), sized(4 * MIB + 1), sized(4 * MIB)]);
    let results = results(&front, &messages).await;
    assert_eq!(results[0]["outcome"], "CONFIRMED");
    assert_eq!(results[1]["error"]["reason"], "PAYLOAD_TOO_LARGE");
    assert_eq!(results[1]["error"]["code"], 413);
    assert_eq!(results[2]["outcome"], "CONFIRMED");
    let large = json!([
        sized(4 * MIB),
        sized(4 * MIB),
        sized(4 * MIB),
        sized(4 * MIB)
    ]);
    let too_large = refused(413, "BATCH_TOO_LARGE", "INVALID");
    assert_eq!(batch(&front, &large).await.refusal(), too_large);
    assert_eq!(front.drain(&queue).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_over_http_that_is_not_confirmed_in_time_is_told_what_became_of_each() {
    let front = Front::of(Arc::new(Scripted::new(None)), None, |setup| {
        setup.without_database();
        setup.config.limits.publish_timeout = Duration::from_millis(300);
    })
    .await;
    let messages = json!([{"exchange": "", "routing_key": "q", "message": 1}, 7]);
    let told = results(&front, &messages).await;
    assert_eq!(told[0]["outcome"], "IN_DOUBT");
    assert_eq!(told[0]["error"]["reason"], "CONFIRM_TIMEOUT");
    assert_eq!(told[1]["outcome"], "INVALID");

    let within = async |timeout: &str| {
        let call = request(Method::POST, BATCH)
            .header("content-type", "application/json")
            .header("grpc-timeout", timeout)
            .body(Body::from(json!({"messages": messages}).to_string()));
        send(&front, call.expect("well-formed")).await
    };
    // On a machine that has no time for the handler, the answer is about all of them.
    let answer = within("250m").await.json();
    let all = &answer["error"]["details"]["publish_outcome"];
    let first = &answer["results"][0]["outcome"];
    assert!(all == "IN_DOUBT" || first == "IN_DOUBT", "{answer}");
    let not_sent = refused(504, "DEADLINE_EXCEEDED", "NOT_SENT");
    assert_eq!(within("0n").await.refusal(), not_sent);
}
