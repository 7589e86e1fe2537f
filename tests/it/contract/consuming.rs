//! Consuming: credit, settling, order, and the end of a subscription.

use super::*;

pub async fn prefetch_limits_what_is_held_and_an_ack_frees_credit(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut first = f.subscribe(&["work"], 2).await;
    let a = receive(&mut *first).await;
    let b = receive(&mut *first).await;
    assert_eq!(bodies(&[a, b]), ["a", "b"]);
    // Had the first got a third message, the second would wait in vain.
    let mut second = f.subscribe(&["work"], 1).await;
    assert_eq!(body(&receive(&mut *second).await), "c");
    assert!(first.try_next().is_none());

    f.fill("work", &["d"]).await;
    ack(&mut *first, &[1]).await;
    assert_eq!(body(&receive(&mut *first).await), "d");
    assert!(second.try_next().is_none());
}

pub async fn a_higher_priority_gets_messages_first_while_it_has_room(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let with = async |priority: i32, prefetch: u16| {
        let subscribe = Subscribe {
            priority,
            ..f.to_subscribe(&["work"], prefetch)
        };
        let subscription = timely(f.broker.subscribe(subscribe)).await;
        subscription.expect("the queue exists")
    };
    let mut usual = with(0, 10).await;
    let mut high = with(7, 2).await;
    let mut low = with(-1, 10).await;
    f.fill("work", &["a", "b", "c", "d"]).await;
    assert_eq!(body(&receive(&mut *high).await), "a");
    assert_eq!(body(&receive(&mut *high).await), "b");
    assert_eq!(body(&receive(&mut *usual).await), "c");
    assert_eq!(body(&receive(&mut *usual).await), "d");
    // Others go without while there is room above them.
    timely(usual.close()).await;
    assert_eq!(body(&receive(&mut *low).await), "c");
    assert_eq!(body(&receive(&mut *low).await), "d");
}

pub async fn acks_in_any_order_and_in_bulk_settle_just_those(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c", "d", "e"]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut tags = Vec::new();
    for _ in 0..5 {
        tags.push(receive(&mut *consumer).await.tag);
    }
    assert_eq!(tags, [1, 2, 3, 4, 5]);
    ack(&mut *consumer, &[4]).await;
    ack(&mut *consumer, &[1, 5, 2]).await;
    timely(consumer.close()).await;
    assert_eq!(f.drain_bodies("work").await, ["c"]);
}

pub async fn a_requeued_message_comes_back_first_and_redelivered(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b"]).await;
    let mut consumer = f.subscribe(&["work"], 1).await;
    let first = receive(&mut *consumer).await;
    assert!(!first.redelivered);
    assert_eq!(timely(consumer.requeue(&[first.tag])).await, Ok(()));
    let again = receive(&mut *consumer).await;
    assert_eq!(again.message, first.message);
    assert!(again.redelivered);
    ack(&mut *consumer, &[again.tag]).await;
    let other = receive(&mut *consumer).await;
    assert_eq!(body(&other), "b");
    assert!(!other.redelivered);
}

pub async fn closing_a_subscription_returns_everything_unsettled(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    assert_eq!(body(&receive(&mut *consumer).await), "a");
    timely(consumer.close()).await;
    // At once, with what the subscription had not taken yet.
    let drained = f.drain("work").await;
    assert_eq!(bodies(&drained), ["a", "b", "c"]);
    assert!(drained[0].redelivered);
}

pub async fn dropping_a_subscription_returns_everything_unsettled(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b", "c"]).await;
    let mut dropped = f.subscribe(&["work"], 10).await;
    assert_eq!(body(&receive(&mut *dropped).await), "a");
    drop(dropped);
    // When it is not said; what comes back first is not either.
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut received = receive_bodies(&mut *consumer, 3).await;
    received.sort_unstable();
    assert_eq!(received, ["a", "b", "c"]);
}

pub async fn a_stopped_subscription_takes_no_more_and_still_settles(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a", "b"]).await;
    let mut stopped = f.subscribe(&["work"], 10).await;
    let taken = receive(&mut *stopped).await;
    timely(stopped.stop()).await;
    f.fill("work", &["c"]).await;
    ack(&mut *stopped, &[taken.tag]).await;

    // The new message goes past the stopped one. "b" was handed to it and may be back before or after.
    let mut consumer = f.subscribe(&["work"], 10).await;
    let mut received = Vec::new();
    while received.last().map(String::as_str) != Some("c") {
        received.push(body(&receive(&mut *consumer).await));
    }
    timely(stopped.close()).await;
    if received.len() == 1 {
        received.push(body(&receive(&mut *consumer).await));
    }
    received.sort_unstable();
    assert_eq!(received, ["b", "c"]);
    timely(consumer.close()).await;
    let mut left = f.drain_bodies("work").await;
    left.sort_unstable();
    assert_eq!(left, ["b", "c"], "and not the one that was settled");
}

pub async fn an_abandoned_next_loses_nothing(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mut consumer = f.subscribe(&["work"], 10).await;
    for number in 0..50 {
        assert!(consumer.next().now_or_never().is_none());
        f.fill("work", &[&number.to_string()]).await;
        let mut received = None;
        eventually("the delivery", async || {
            received = consumer.next().now_or_never();
            received.is_some()
        })
        .await;
        let delivery = received
            .expect("just seen")
            .expect("the subscription goes on");
        assert_eq!(body(&delivery), number.to_string());
        ack(&mut *consumer, &[delivery.tag]).await;
    }
}

pub async fn two_consumers_share_a_queue(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mut first = f.subscribe(&["work"], 1).await;
    let mut second = f.subscribe(&["work"], 1).await;
    for round in 0..5 {
        let pair = [format!("{round} a"), format!("{round} b")];
        f.fill("work", &[&pair[0], &pair[1]]).await;
        let one = receive(&mut *first).await;
        let other = receive(&mut *second).await;
        let received = BTreeSet::from([body(&one), body(&other)]);
        assert_eq!(received, BTreeSet::from(pair));
        ack(&mut *first, &[one.tag]).await;
        ack(&mut *second, &[other.tag]).await;
    }
}

/// Preference is among deliveries that have arrived, and when they have cannot be seen from outside. So this
/// publishes to the later queue first and looks again until both had arrived; without preference, that order never
/// comes.
pub async fn an_earlier_queue_goes_before_a_later_one(f: Fixture) {
    f.declare_queues([f.queue("early"), f.queue("late")]).await;
    let mut consumer = f.subscribe(&["early", "late"], 10).await;
    let mut pause = Duration::ZERO;
    eventually("the earlier queue goes first", async || {
        f.fill("late", &["1", "2", "3"]).await;
        f.fill("early", &["4", "5", "6"]).await;
        sleep(pause).await;
        pause += Duration::from_millis(20);
        let mut order = Vec::new();
        for _ in 0..6 {
            let delivery = receive(&mut *consumer).await;
            ack(&mut *consumer, &[delivery.tag]).await;
            order.push((delivery.queue, body(&delivery)));
        }
        let expected = [(0, "4"), (0, "5"), (0, "6"), (1, "1"), (1, "2"), (1, "3")];
        order == expected.map(|(queue, body)| (queue, body.to_owned()))
    })
    .await;
}

pub async fn a_higher_priority_goes_first(f: Fixture) {
    f.declare_queues([Queue {
        max_priority: Some(5),
        ..f.queue("work")
    }])
    .await;
    let priorities = [
        ("none", None),
        ("one", Some(1)),
        ("five", Some(5)),
        ("zero", Some(0)),
        ("above the highest", Some(9)),
        ("one again", Some(1)),
    ];
    for (body, priority) in priorities {
        let message = text(body);
        let message = Message {
            priority,
            ..message
        };
        assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    }
    assert_eq!(
        f.drain_bodies("work").await,
        [
            "five",
            "above the highest",
            "one",
            "one again",
            "none",
            "zero"
        ]
    );
}
