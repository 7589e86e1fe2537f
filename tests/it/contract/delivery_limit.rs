//! How often a message of a quorum queue may come back.

use super::*;

/// A quorum queue `work` with a delivery limit, whose dead letters go to the queue `dead`.
async fn declare_limited(f: &Fixture, limit: u32) {
    let dead_letter = DeadLetter {
        exchange: String::new(),
        routing_key: f.name("dead"),
    };
    let work = Queue {
        delivery_limit: Some(limit),
        dead_letter: Some(dead_letter),
        ..Queue::bare(&f.name("work"), QueueKind::Quorum)
    };
    f.declare_queues([work, f.queue("dead")]).await;
}

fn returns(delivery: &Delivery) -> Option<i64> {
    delivery
        .message
        .headers
        .get("x-delivery-count")?
        .as_integer()
}

pub async fn a_message_beyond_its_delivery_limit_is_dead_lettered(f: Fixture) {
    declare_limited(&f, 2).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    f.fill("work", &["a", "b"]).await;
    for expected in [None, Some(1), Some(2)] {
        let delivery = receive(&mut *consumer).await;
        assert_eq!(body(&delivery), "a");
        assert_eq!(returns(&delivery), expected);
        assert_eq!(delivery.redelivered, expected.is_some());
        assert_eq!(timely(consumer.requeue(&[delivery.tag])).await, Ok(()));
    }
    let delivery = receive(&mut *dead).await;
    assert_eq!(body(&delivery), "a");
    let headers = &delivery.message.headers;
    assert_eq!(
        headers["x-first-death-reason"],
        Value::text("delivery_limit")
    );
    assert_eq!(headers["x-first-death-queue"], Value::text(f.name("work")));
    let death = latest_death(&delivery);
    assert_eq!(death["reason"], Value::text("delivery_limit"));
    assert_eq!(death["queue"], Value::text(f.name("work")));
    // It starts anew where it is now, and the next one is served.
    assert_eq!(returns(&delivery), None);
    let next = receive(&mut *consumer).await;
    assert_eq!((body(&next), returns(&next)), ("b".to_owned(), None));
}

/// Those of a consumer that went, on every version. That is why a limit must be well above a consumer's prefetch.
pub async fn every_return_counts_also_of_a_neighbour(f: Fixture) {
    declare_limited(&f, 100).await;
    f.fill("work", &["a", "b"]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    assert_eq!(body(&receive(&mut *consumer).await), "a");
    // The second is sent right after the first; nothing tells when it is here but that it can be taken.
    let mut second = None;
    eventually("it was sent too", async || {
        second = consumer.try_next();
        second.is_some()
    })
    .await;
    timely(consumer.close()).await;
    let drained = f.drain("work").await;
    assert_eq!(bodies(&drained), ["a", "b"]);
    assert_eq!(
        drained.iter().map(returns).collect::<Vec<_>>(),
        [Some(1); 2]
    );
}

/// RabbitMQ before 4.3 counts this too; from 4.3 on it may go on for ever.
pub async fn what_no_consumer_had_is_given_back_and_counts_only_where_it_must(f: Fixture) {
    declare_limited(&f, 3).await;
    let mut dead = f.subscribe(&["dead"], 1).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    f.fill("work", &["a"]).await;
    let counts = f.traits.counts_what_is_given_back;
    for given_back in 0..=3 {
        let delivery = receive(&mut *consumer).await;
        let counted = Some(given_back).filter(|count| counts && *count > 0);
        assert_eq!(returns(&delivery), counted);
        assert_eq!(delivery.redelivered, given_back > 0);
        assert_eq!(timely(consumer.give_back(&[delivery.tag])).await, Ok(()));
    }
    let last = receive(if counts { &mut *dead } else { &mut *consumer }).await;
    assert_eq!((body(&last), returns(&last)), ("a".to_owned(), None));
}
