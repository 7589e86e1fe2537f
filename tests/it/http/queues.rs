//! Queues over plain HTTP: listed, looked at, purged.

use std::cell::RefCell;

use courtier::grpc::proto::nack::Action;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::{
    desk::{Desk, slow},
    front::{Front, On, on_all, text, timely},
    harness::eventually,
    rest::{Reply, get, post, post_json, refused},
};

on_all! {
    queues_are_listed_as_a_bare_array
    a_queues_figures_are_told_and_its_failed_messages
    a_purge_empties_the_queue_that_its_path_names
    any_name_fits_into_a_path
    what_is_not_there_or_not_for_clients_is_refused
    without_the_broker_the_answer_says_so
}

fn path(queue: &str, rest: &str) -> String {
    let name = utf8_percent_encode(queue, NON_ALPHANUMERIC);
    format!("/api/queues/{name}/{rest}")
}

/// A queue that the gateway has heard of, with two messages.
async fn two(front: &Front, short: &str) -> String {
    let queue = front.queue(short).await;
    front.drain(&queue).await;
    front.fill(&queue, &["a", "b"]).await;
    queue
}

/// The queue in the list, once it is listed with so many ready messages.
async fn listed(front: &Front, queue: &str, ready: u64) -> (Reply, Value) {
    // The management API may be behind what AMQP told a moment before: the answer that is waited for is the one that is looked at.
    let found = RefCell::new(None);
    eventually("it is listed", || async {
        let reply = get(front, "/api/queues").await;
        let all = reply.ok();
        let mut rows = all.as_array().expect("a bare array").iter();
        let row = rows.find(|row| row["name"] == queue).cloned();
        let row = row.filter(|row| row["ready_count"] == ready);
        let is_listed = row.is_some();
        found.replace(row.map(|row| (reply, row)));
        is_listed
    })
    .await;
    found.into_inner().expect("it is listed")
}

async fn queues_are_listed_as_a_bare_array(on: On) {
    let front = on.gateway().await;
    let (b, a) = (two(&front, "b").await, two(&front, "a").await);
    listed(&front, &b, 2).await;
    // Who tells the unacked messages besides the management API?
    let (unacked, source) = match on {
        On::Embedded => (json!(0), "embedded"),
        On::RabbitMq => (Value::Null, "amqp"),
        On::Managed => (json!(0), "management"),
    };
    // AMQP tells what is ready at once, the management API the rest some seconds later.
    let (reply, row) = timely(async {
        loop {
            let (reply, row) = listed(&front, &a, 2).await;
            // A number from the first moment on.
            assert_eq!(row["message_count"], 2);
            if row["unacked_count"] == unacked {
                return (reply, row);
            }
        }
    })
    .await;
    // The subscription that made it known has ended.
    let known = json!({"consumer_count": 0, "type": "classic", "durable": true});
    for (name, value) in known.as_object().expect("an object") {
        let tells = on != On::RabbitMq || name == "consumer_count";
        let expected = if tells { value } else { &Value::Null };
        assert_eq!(&row[name], expected, "{name}");
    }
    assert_eq!(
        (&row["unacked_count"], &row["source"]),
        (&unacked, &json!(source))
    );
    let noted = reply.headers.contains_key("x-courtier-note");
    assert_eq!(noted, on == On::RabbitMq);
    let all = reply.ok();
    let names = all.as_array().expect("an array").iter();
    assert!(names.map(|row| row["name"].as_str()).is_sorted());
}

async fn a_queues_figures_are_told_and_its_failed_messages(on: On) {
    let desk = Desk::open(on, slow).await;
    desk.refused(text("x"), Action::DeadLetter).await;
    desk.front.fill(&desk.queue, &["a", "b"]).await;
    let ask = async || get(&desk.front, &path(&desk.queue, "stats")).await.ok();
    eventually("they are counted", || async {
        let stats = ask().await;
        stats["ready_count"] == 2 && stats["dead_letter_count"] == 0
    })
    .await;
    let stats = ask().await;
    assert_eq!(stats["name"], desk.queue);
    assert_eq!(stats["failed_count"], 1);
    assert_eq!(stats["time_to_drain_seconds"], Value::Null);
}

async fn a_purge_empties_the_queue_that_its_path_names(on: On) {
    let front = on.gateway().await;
    let (queue, other) = (two(&front, "work").await, two(&front, "other").await);
    let purge = path(&queue, "purge");
    let purged = post(&front, &purge).await.ok();
    assert_eq!(purged, json!({"name": queue, "purged_count": 2}));
    // A body is not looked at, and GET does nothing.
    front.fill(&queue, &["c"]).await;
    assert_eq!(get(&front, &purge).await.status, 405);
    let purged = post_json(&front, &purge, "not JSON").await.ok();
    assert_eq!(purged["purged_count"], 1);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
    assert_eq!(front.drain_bodies(&other).await, ["a", "b"]);
}

async fn any_name_fits_into_a_path(on: On) {
    let front = on.gateway().await;
    for short in ["a/b", "a b", "100%", "é?#&+", "..", "{queue}"] {
        let queue = two(&front, short).await;
        let stats = get(&front, &path(&queue, "stats")).await.ok();
        assert_eq!(stats["name"], queue);
        let purged = post(&front, &path(&queue, "purge")).await.ok();
        assert_eq!(purged, json!({"name": queue, "purged_count": 2}));
    }
}

async fn what_is_not_there_or_not_for_clients_is_refused(on: On) {
    let front = on.gateway().await;
    let missing = front.name("missing");
    let expected = refused(404, "QUEUE_NOT_FOUND", "");
    assert_eq!(
        get(&front, &path(&missing, "stats")).await.refusal(),
        expected
    );
    assert_eq!(
        post(&front, &path(&missing, "purge")).await.refusal(),
        expected
    );
    let forbidden = refused(403, "FORBIDDEN", "");
    let answer = post(&front, &path("amq.gen-1", "purge")).await;
    assert_eq!(answer.refusal(), forbidden);

    let queue = two(&front, "work").await;
    let invalid = refused(400, "INVALID_REQUEST", "");
    for mark in ["%0d%0a", "%0a", "%00", "%20", "%e2%80%8b", "%ff"] {
        for rest in ["stats", "purge"] {
            let path = format!("/api/queues/{queue}{mark}/{rest}");
            let answer = match rest {
                "stats" => get(&front, &path).await,
                _ => post(&front, &path).await,
            };
            assert_eq!(answer.refusal(), invalid, "{path}");
        }
    }
    let nowhere = refused(404, "NOT_FOUND", "");
    let nameless = post(&front, "/api/queues//purge").await;
    assert_eq!(nameless.refusal(), invalid);
    for path in ["/api/queues/a/b/purge", "/api/queues/"] {
        assert_eq!(post(&front, path).await.refusal(), nowhere, "{path}");
    }
    assert_eq!(front.drain_bodies(&queue).await, ["a", "b"]);
}

async fn without_the_broker_the_answer_says_so(on: On) {
    let front = on.gateway().await;
    let queue = two(&front, "work").await;
    front.broker.close().await;
    let answer = post(&front, &path(&queue, "purge")).await;
    assert_eq!(answer.refusal(), refused(503, "BROKER_DOWN", ""));
    assert_eq!(answer.headers["retry-after"], "1");
}
