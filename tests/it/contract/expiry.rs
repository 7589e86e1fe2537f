//! Times to live and dead-lettering.

use super::*;

/// A queue `work` whose dead letters go to the queue `dead` through a direct exchange `dlx`.
async fn declare_dead_lettering(f: &Fixture, ttl: Duration) {
    let dead_letter = DeadLetter {
        exchange: f.name("dlx"),
        routing_key: "buried".to_owned(),
    };
    let work = Queue {
        message_ttl: Some(ttl),
        dead_letter: Some(dead_letter),
        ..f.queue("work")
    };
    f.declare(Topology {
        exchanges: vec![f.exchange("dlx", ExchangeKind::Direct)],
        queues: vec![work, f.queue("dead")],
        bindings: vec![f.binding("dlx", "dead", "buried", &[])],
    })
    .await;
}

/// The latest entry of a dead letter's history.
pub fn latest_death(delivery: &Delivery) -> &Table {
    match delivery.message.headers.get("x-death") {
        Some(Value::Array(deaths)) => match deaths.first() {
            Some(Value::Table(death)) => death,
            other => panic!("no death: {other:?}"),
        },
        other => panic!("no deaths: {other:?}"),
    }
}

pub async fn an_expired_message_is_dead_lettered_with_its_history(f: Fixture) {
    declare_dead_lettering(&f, Duration::from_millis(300)).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let message = Message {
        headers: table([("mine", Value::U16(7))]),
        ..text("a")
    };
    assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);

    let delivery = receive(&mut *dead).await;
    assert_eq!(body(&delivery), "a");
    assert_eq!(delivery.exchange, f.name("dlx"));
    assert_eq!(delivery.routing_key, "buried");
    let headers = &delivery.message.headers;
    assert_eq!(headers["mine"], Value::U16(7));
    assert_eq!(headers["x-first-death-reason"], Value::text("expired"));
    assert_eq!(headers["x-first-death-queue"], Value::text(f.name("work")));
    assert_eq!(headers["x-first-death-exchange"], Value::text(""));
    let death = latest_death(&delivery);
    assert_eq!(death["reason"], Value::text("expired"));
    assert_eq!(death["queue"], Value::text(f.name("work")));
    assert_eq!(death["exchange"], Value::text(""));
    assert_eq!(death["count"].as_integer(), Some(1));
    let routing_keys = Value::Array(vec![Value::text(f.name("work"))]);
    assert_eq!(death["routing-keys"], routing_keys);
    assert!(matches!(death["time"], Value::Timestamp(_)), "{death:?}");
    assert_eq!(death.get("original-expiration"), None);
    // It was moved, not copied.
    assert_eq!(f.drain_bodies("work").await, [""; 0]);
}

pub async fn the_time_to_live_of_a_message_counts_when_it_is_the_shorter(f: Fixture) {
    declare_dead_lettering(&f, Duration::from_secs(3600)).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let message = Message {
        ttl_ms: Some(250),
        ..text("a")
    };
    assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    let delivery = receive(&mut *dead).await;
    assert_eq!(body(&delivery), "a");
    let death = latest_death(&delivery);
    assert_eq!(death["original-expiration"], Value::text("250"));
    // Else it would expire in the queue of the dead as well.
    assert_eq!(delivery.message.ttl_ms, None);
}

pub async fn a_message_that_expires_without_dead_lettering_makes_room(f: Fixture) {
    f.declare_queues([Queue {
        message_ttl: Some(Duration::from_millis(300)),
        max_length: Some(1),
        ..f.queue("work")
    }])
    .await;
    f.fill("work", &["a"]).await;
    eventually("the first message is gone", async || {
        f.publish("", "work", text("b")).await == Fate::Confirmed
    })
    .await;
    let left = f.drain_bodies("work").await;
    assert!(!left.contains(&"a".to_owned()), "{left:?}");
}
