//! Failed messages over plain HTTP: listed with their payloads, retried, deleted.

use courtier::grpc::proto::{Message, failed_message::Status, message::Payload, nack::Action};
use serde_json::{Value, json};

use crate::{
    desk::{Desk, hasty, refuse, slow},
    front::{On, body, from, on_both, text},
    harness::eventually,
    rest::{FAILED, delete, get, post, publish, refused, to_queue},
};

on_both! {
    a_failed_message_is_listed_with_its_payload_retried_and_resolved
    payloads_are_shown_byte_for_byte_or_as_what_they_are
    what_a_state_forbids_is_refused
    a_deleted_message_is_gone
    pages_follow_each_other
    filters_choose
}

/// The failed messages of the desk's queue.
async fn listed(desk: &Desk, query: &str) -> Vec<Value> {
    let path = format!("{FAILED}?queue={}&{query}", desk.queue);
    let mut page = get(&desk.front, &path).await.ok();
    let Value::Array(rows) = page["failed_messages"].take() else {
        panic!("a list is due: {page}");
    };
    rows
}

async fn a_failed_message_is_listed_with_its_payload_retried_and_resolved(on: On) {
    let desk = Desk::open(on, slow).await;
    let sent = to_queue(
        &desk.queue,
        json!({"event": "order.created", "data": {"id": 1}}),
        json!({"message_id": "m-1", "correlation_id": "c-1"}),
    );
    let published = publish(&desk.front, sent).await.ok();
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    let delivery = stream.delivery().await;
    refuse(&mut stream, &delivery.ack_id, Action::Retry).await;
    desk.only().await;

    let row = listed(&desk, "").await.remove(0);
    let id = row["id"].as_str().expect("a text").to_owned();
    let known = json!({
        "id": id,
        "queue": desk.queue,
        "exchange": "",
        "routing_key": desk.queue,
        "payload": {"event": "order.created", "data": {"id": 1}},
        "error_type": "Declined",
        "error_message": "card 4711 was declined",
        "error_stack": "at pay()",
        "reason": "rejected",
        "retry_count": 0,
        "max_retries": 3,
        "status": "pending",
        "last_retry_at": null,
        "resolved_at": null,
        "resolution": null,
        "attempt": 1,
        "comment": null,
        "operation_id": null,
        "publish_id": published["publish_id"],
        "message_id": "m-1",
        "content_type": "application/json",
        "type": "order.created",
        "app_id": null,
        "correlation_id": "c-1",
    });
    for (name, value) in known.as_object().expect("an object") {
        assert_eq!(&row[name], value, "{name}");
    }
    let time = |row: &Value, name: &str| {
        let text = row[name].as_str().expect("a time").to_owned();
        assert!(text.ends_with('Z'), "{text}");
        chrono::DateTime::parse_from_rfc3339(&text).expect("RFC 3339")
    };
    assert!(time(&row, "next_retry_at") > time(&row, "failed_at"));
    assert_eq!(time(&row, "last_failed_at"), time(&row, "failed_at"));

    let retried = post(&desk.front, &format!("/api/messages/retry/{id}"))
        .await
        .ok();
    let retried = &retried["failed_message"];
    assert_eq!(
        (&retried["id"], &retried["status"], &retried["attempt"]),
        (&json!(id), &json!("retrying"), &json!(2))
    );
    assert_eq!(retried.get("payload"), None);
    assert_eq!(retried.get("attempts"), None);
    let delivery = stream.delivery().await;
    assert_eq!(delivery.attempt, 2);
    assert_eq!(
        body(&delivery),
        r#"{"data":{"id":1},"event":"order.created"}"#
    );
    stream.ack(&[&delivery.ack_id]).await;
    desk.becomes(&id, Status::Resolved).await;
    let row = listed(&desk, "").await.remove(0);
    let shown = get(&desk.front, &format!("{FAILED}/{id}")).await.ok();
    assert_eq!(shown["failed_message"], row);
    let attempt = |of: &Value| {
        assert!(of["ended_at"].is_string(), "{of}");
        (
            of["number"].clone(),
            of["manual"].clone(),
            of["outcome"].clone(),
        )
    };
    let attempts = row["attempts"].as_array().expect("a list");
    let attempts: Vec<_> = attempts.iter().map(attempt).collect();
    let expected = [
        (json!(1), json!(false), json!("died")),
        (json!(2), json!(true), json!("acked")),
    ];
    assert_eq!(attempts, expected);
    assert_eq!(
        (&row["status"], &row["resolution"], &row["next_retry_at"]),
        (&json!("resolved"), &json!("acked"), &Value::Null)
    );
    assert!(time(&row, "resolved_at") >= time(&row, "last_retry_at"));
}

async fn payloads_are_shown_byte_for_byte_or_as_what_they_are(on: On) {
    let desk = Desk::open(on, slow).await;
    let exact = r#"{"b":9007199254740993,"a":1.50,"a":[ 1e2 ]}"#;
    let deep = "[".repeat(200) + &"]".repeat(200);
    let payloads = [exact, "order 7", &deep].map(|text| Payload::Text(text.to_owned()));
    let binary = Payload::Data(vec![0xff, 0].into());
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    for payload in payloads.into_iter().chain([binary]) {
        let message = Message {
            payload: Some(payload),
            ..Message::default()
        };
        let request = crate::front::to_queue(&desk.queue, message);
        desk.front.publish(request).await.expect("published");
        let delivery = stream.delivery().await;
        refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
    }
    eventually("all are there", || async { desk.all().await.len() == 4 }).await;
    let mut rows = listed(&desk, "").await;
    rows.reverse();
    let shown = |row: &Value, name: &str| row.get(name).cloned();
    assert_eq!(shown(&rows[1], "payload_text"), Some(json!("order 7")));
    assert_eq!(shown(&rows[1], "payload"), None);
    assert_eq!(shown(&rows[2], "payload_text"), Some(json!(deep)));
    assert_eq!(shown(&rows[3], "payload_base64"), Some(json!("/wA=")));
    let page = get(&desk.front, &format!("{FAILED}?queue={}", desk.queue)).await;
    let kept = format!(r#""payload":{exact},"#);
    assert!(page.text().contains(&kept), "{}", page.text());
}

async fn what_a_state_forbids_is_refused(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::DeadLetter).await;
    let retry = format!("/api/messages/retry/{}", row.id);
    post(&desk.front, &retry).await.ok();
    let conflict = refused(400, "STATE_CONFLICT", "");
    assert_eq!(post(&desk.front, &retry).await.refusal(), conflict);
    let path = format!("{FAILED}/{}", row.id);
    assert_eq!(delete(&desk.front, &path).await.refusal(), conflict);

    // A queue that is gone: nothing is sent, and the message is kept.
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::DeadLetter).await;
    desk.front.delete_queue(&desk.queue).await;
    let answer = post(&desk.front, &format!("/api/messages/retry/{}", row.id)).await;
    assert_eq!(answer.refusal(), refused(400, "RETURNED", ""));
    assert_eq!(listed(&desk, "").await[0]["status"], "failed");
}

async fn a_deleted_message_is_gone(on: On) {
    let desk = Desk::open(on, slow).await;
    let row = desk.refused(text("x"), Action::DeadLetter).await;
    let path = format!("{FAILED}/{}", row.id);
    let answer = delete(&desk.front, &path).await.ok();
    assert_eq!(answer, json!({"id": row.id, "deleted": true}));
    assert_eq!(listed(&desk, "").await, [""; 0]);
    let missing = refused(404, "FAILED_MESSAGE_NOT_FOUND", "");
    assert_eq!(delete(&desk.front, &path).await.refusal(), missing);
}

async fn five(desk: &Desk) -> Vec<String> {
    let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
    for i in 0..5 {
        desk.front
            .fill(&desk.queue, &[&format!("{{\"n\":{i}}}")])
            .await;
        let delivery = stream.delivery().await;
        refuse(&mut stream, &delivery.ack_id, Action::DeadLetter).await;
    }
    eventually("all are there", || async { desk.all().await.len() == 5 }).await;
    desk.all().await.into_iter().map(|row| row.id).collect()
}

async fn pages_follow_each_other(on: On) {
    let desk = Desk::open(on, slow).await;
    let all = five(&desk).await;
    let mut seen = Vec::new();
    let mut token = String::new();
    let mut pages = 0;
    loop {
        let path = format!(
            "{FAILED}?queue={}&page_size=2&page_token={token}",
            desk.queue
        );
        let page = get(&desk.front, &path).await.ok();
        let rows = page["failed_messages"].as_array().expect("a list");
        assert!(rows.len() <= 2);
        seen.extend(
            rows.iter()
                .map(|row| row["id"].as_str().expect("a text").to_owned()),
        );
        pages += 1;
        token = page["next_page_token"].as_str().expect("a text").to_owned();
        if token.is_empty() {
            break;
        }
        // Bound to its filter.
        let other = format!("{FAILED}?queue=other&page_token={token}");
        let refusal = get(&desk.front, &other).await.refusal();
        assert_eq!(refusal, refused(400, "INVALID_PAGE_TOKEN", ""));
    }
    assert_eq!((seen, pages), (all, 3));
}

async fn filters_choose(on: On) {
    let desk = Desk::open(on, hasty).await;
    let all = five(&desk).await;
    post(&desk.front, &format!("/api/messages/retry/{}", all[0]))
        .await
        .ok();
    let count = async |query: &str| listed(&desk, query).await.len();
    assert_eq!(count("status=failed").await, 4);
    assert_eq!(count("status=retrying").await, 1);
    assert_eq!(count("status=retrying,failed&reason=rejected").await, 5);
    assert_eq!(count("reason=expired").await, 0);
    assert_eq!(count("error_text=4711").await, 5);
    assert_eq!(count("error_text=4712").await, 0);
    assert_eq!(count("failed_after=9999-01-01T00:00:00Z").await, 0);
    assert_eq!(count("failed_before=9999-01-01T00:00:00Z").await, 5);
    assert_eq!(count(&format!("routing_key={}", desk.queue)).await, 5);
    assert_eq!(count("routing_key=none").await, 0);
    assert_eq!(count("exchange=none").await, 0);
    assert_eq!(count("message_id=none").await, 0);
    assert_eq!(count("fingerprint=none").await, 0);
}
