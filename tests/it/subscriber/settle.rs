//! Settling through the front door: acks, the four kinds of nack, deadlines, and ids that are none.

use courtier::grpc::proto::{
    Delivery, ErrorDetail, Nack, Settle, Start, nack::Action,
    settle_result::Result as SettleResult, subscribe_request::Request,
};

use crate::front::{
    Front, On, Stream, bodies, body, fault, from, nack, nack_as, on_both, seconds, text, to_queue,
};

on_both! {
    an_ack_lets_the_message_leave_its_queue
    settling_twice_alike_is_ok_and_otherwise_already_settled
    a_lapsed_delivery_is_revoked_and_comes_again
    an_extension_keeps_a_delivery
    requeue_gives_the_message_again_at_once
    discard_drops_without_dead_lettering
    retry_and_dead_letter_move_a_copy_with_the_error
    a_missing_dead_letter_queue_is_made
    a_copy_that_cannot_be_stored_leaves_the_original
    ids_that_are_none_get_a_result_each_and_the_stream_lives_on
    as_many_results_as_ids_however_many_they_are
    a_nack_that_asks_for_nothing_allowed_is_invalid
    an_extension_out_of_range_ends_the_stream
}

/// A gateway with messages in a queue, and a subscription that has them.
async fn given(
    on: On,
    texts: &[&str],
    change: impl FnOnce(&mut Start),
) -> (Front, String, Stream, Vec<Delivery>) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, texts).await;
    let mut start = from(&[&queue]);
    change(&mut start);
    let mut stream = front.subscribe(start).await;
    let deliveries = stream.deliveries(texts.len()).await;
    assert_eq!(bodies(&deliveries), texts);
    (front, queue, stream, deliveries)
}

async fn an_ack_lets_the_message_leave_its_queue(on: On) {
    let (front, queue, mut stream, given) = given(on, &["1", "2", "3"], |_| {}).await;
    for delivery in &given {
        assert!(
            !delivery.redelivered && delivery.attempt == 1 && delivery.failed_message_id.is_empty()
        );
        assert!(delivery.ack_deadline_time.is_some());
    }
    // Out of order, and two at once.
    assert_eq!(
        stream.ack(&[&given[2].ack_id, &given[0].ack_id]).await,
        [SettleResult::Ok; 2]
    );
    stream.half_close();
    stream.end().await.expect("it ends well");
    assert_eq!(front.drain_bodies(&queue).await, ["2"]);
}

async fn settling_twice_alike_is_ok_and_otherwise_already_settled(on: On) {
    let (front, queue, mut stream, given) = given(on, &["1", "2"], |_| {}).await;
    let (first, second) = (&*given[0].ack_id, &*given[1].ack_id);
    assert_eq!(stream.ack(&[first, first]).await, [SettleResult::Ok; 2]);
    assert_eq!(stream.ack(&[first]).await, [SettleResult::Ok]);
    for action in [
        Action::Requeue,
        Action::Retry,
        Action::DeadLetter,
        Action::Discard,
    ] {
        assert_eq!(
            stream.nack(first, action).await,
            SettleResult::AlreadySettled,
            "{action:?}"
        );
    }
    assert_eq!(
        stream.extend(&[first], None).await,
        [SettleResult::AlreadySettled]
    );
    assert_eq!(
        stream.nack(second, Action::DeadLetter).await,
        SettleResult::Ok
    );
    assert_eq!(
        stream.nack(second, Action::DeadLetter).await,
        SettleResult::Ok
    );
    assert_eq!(stream.ack(&[second]).await, [SettleResult::AlreadySettled]);
    drop(stream);
    // Once, however often it was asked for.
    assert_eq!(front.drain_bodies(&format!("{queue}.dlq")).await, ["2"]);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_lapsed_delivery_is_revoked_and_comes_again(on: On) {
    let (_front, _, mut stream, given) =
        given(on, &["1"], |start| start.ack_deadline = seconds(1)).await;
    let revoked = stream.revoked().await;
    assert_eq!(revoked.ack_ids, [given[0].ack_id.clone()]);
    assert_eq!(revoked.reason, "ACK_DEADLINE_EXCEEDED");
    let again = stream.delivery().await;
    assert_eq!(
        (body(&again), again.redelivered, again.attempt),
        ("1".to_owned(), true, 1)
    );
    let late = &*given[0].ack_id;
    assert_eq!(
        stream.ack(&[late, &again.ack_id]).await,
        [SettleResult::Stale, SettleResult::Ok]
    );
    assert_eq!(stream.extend(&[late], None).await, [SettleResult::Stale]);
    assert_eq!(
        stream.nack(late, Action::DeadLetter).await,
        SettleResult::Stale
    );
}

async fn an_extension_keeps_a_delivery(on: On) {
    let (_front, _, mut stream, given) = given(on, &["kept", "lapses"], |start| {
        start.ack_deadline = seconds(1)
    })
    .await;
    assert_eq!(
        stream.extend(&[&given[0].ack_id], seconds(60)).await,
        [SettleResult::Ok]
    );
    // The other one's deadline comes and takes only that one.
    assert_eq!(stream.revoked().await.ack_ids, [given[1].ack_id.clone()]);
    assert_eq!(body(&stream.delivery().await), "lapses");
    assert_eq!(stream.ack(&[&given[0].ack_id]).await, [SettleResult::Ok]);
}

async fn requeue_gives_the_message_again_at_once(on: On) {
    let (_front, _, mut stream, given) = given(on, &["1"], |start| start.max_outstanding = 1).await;
    assert_eq!(
        stream.nack(&given[0].ack_id, Action::Requeue).await,
        SettleResult::Ok
    );
    let again = stream.delivery().await;
    assert_eq!(
        (body(&again), again.redelivered, again.attempt),
        ("1".to_owned(), true, 1)
    );
    assert_ne!(again.ack_id, given[0].ack_id);
}

async fn discard_drops_without_dead_lettering(on: On) {
    use courtier::broker::topology::DeadLetter;
    let front = on.gateway().await;
    let dead = front.queue("work.dlq").await;
    let to = DeadLetter {
        exchange: String::new(),
        routing_key: dead.clone(),
    };
    let queue = front
        .queue_with("work", |queue| queue.dead_letter = Some(to))
        .await;
    front.fill(&queue, &["1"]).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    let delivery = stream.delivery().await;
    assert_eq!(
        stream.nack(&delivery.ack_id, Action::Discard).await,
        SettleResult::Ok
    );
    drop(stream);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
    assert_eq!(front.drain_bodies(&dead).await, [""; 0]);
}

/// Checks what a native AMQP client would see in the dead-letter queue. Through the API the gateway's own headers are not shown.
async fn dead(front: &Front, queue: &str) -> Vec<courtier::broker::Delivery> {
    use courtier::broker::Subscribe;
    let subscribe = Subscribe::new(
        vec![format!("{queue}.dlq")],
        10,
        "looks",
        tokio::time::Instant::now() + crate::harness::PATIENCE,
    );
    let mut looking = front.broker.subscribe(subscribe).await.expect("it exists");
    let mut found = Vec::new();
    while found.len() < 2 {
        found.push(
            crate::front::timely(looking.next())
                .await
                .expect("a dead letter"),
        );
    }
    found
}

async fn retry_and_dead_letter_move_a_copy_with_the_error(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    let exchange = front.exchange("orders", "created", &[&queue]).await;
    let mut published = Vec::new();
    for body in ["retried", "parked"] {
        let mut message = text(body);
        message.ttl = seconds(3_600);
        let mut request = to_queue("created", message);
        request.exchange = exchange.clone();
        published.push(front.publish(request).await.expect("confirmed"));
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    let given = stream.deliveries(2).await;
    let error = ErrorDetail {
        r#type: "PaymentDeclined".into(),
        message: "x".repeat(5_000),
        stack: "line 1\nline 2".into(),
    };
    let failed = |ack_id: &str, action: Action, delay| {
        nack_as(Nack {
            ack_id: ack_id.to_owned(),
            action: action.into(),
            delay,
            error: Some(error.clone()),
        })
    };
    stream.send(failed(&given[0].ack_id, Action::Retry, seconds(30)));
    assert_eq!(stream.results(1).await, [SettleResult::Ok]);
    stream.send(failed(&given[1].ack_id, Action::DeadLetter, None));
    assert_eq!(stream.results(1).await, [SettleResult::Ok]);

    let dead = dead(&front, &queue).await;
    for (i, (action, delay)) in [("retry", Some(30_000)), ("dead_letter", None)]
        .into_iter()
        .enumerate()
    {
        let message = &dead[i].message;
        let header = |name: &str| {
            message
                .headers
                .get(&format!("x-courtier-{name}"))
                .and_then(|value| value.as_str())
        };
        assert_eq!(message.payload, crate::front::payload(&given[i]));
        assert_eq!(
            message.message_id.as_deref(),
            Some(&*published[i].message_id)
        );
        assert_eq!(message.ttl_ms, None);
        assert_eq!(header("action"), Some(action));
        assert_eq!(header("queue"), Some(&*queue));
        assert_eq!(header("exchange"), Some(&*exchange));
        assert_eq!(header("routing-key"), Some("created"));
        assert_eq!(header("error-type"), Some("PaymentDeclined"));
        assert_eq!(header("error-message").map(str::len), Some(4_096));
        assert_eq!(header("error-stack"), Some("line 1\nline 2"));
        assert_eq!(
            header("original-publish-id"),
            Some(&*published[i].publish_id)
        );
        assert!(header("publish-id").is_some_and(|id| id != published[i].publish_id));
        let delay_header = message.headers.get("x-courtier-delay-ms");
        assert_eq!(delay_header.and_then(|value| value.as_integer()), delay);
    }
    drop(stream);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_missing_dead_letter_queue_is_made(on: On) {
    let (front, queue, mut stream, given) = given(on, &["1", "2"], |_| {}).await;
    // Both at once: one of them makes the queue.
    for delivery in &given {
        stream.send(nack(&delivery.ack_id, Action::DeadLetter));
    }
    assert_eq!(stream.results(2).await, [SettleResult::Ok; 2]);
    let mut dead = bodies(&front.drain(&format!("{queue}.dlq")).await);
    dead.sort();
    assert_eq!(dead, ["1", "2"]);
    drop(stream);
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_copy_that_cannot_be_stored_leaves_the_original(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.full_queue("work.dlq").await;
    front.fill(&queue, &["1"]).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    let delivery = stream.delivery().await;
    assert_eq!(
        stream.nack(&delivery.ack_id, Action::Retry).await,
        SettleResult::NotSettled
    );
    // Still the client's, to settle in any way.
    assert_eq!(
        stream.nack(&delivery.ack_id, Action::Requeue).await,
        SettleResult::Ok
    );
    assert_eq!(body(&stream.delivery().await), "1");
}

async fn ids_that_are_none_get_a_result_each_and_the_stream_lives_on(on: On) {
    let (front, _, mut stream, given) = given(on, &["1"], |_| {}).await;
    let other_queue = front.queue("other").await;
    front.fill(&other_queue, &["theirs"]).await;
    let mut other = front.subscribe(from(&[&other_queue])).await;
    let foreign = other.delivery().await.ack_id;
    let ours = &*given[0].ack_id;
    // One that this stream never gave: the digits after its own last.
    let forged = format!("{}ffff", &ours[..ours.len() - 4]);
    let huge = "f".repeat(1 << 20);
    let ids = [&*foreign, &*forged, "", "x", "é\0\r\n", &*huge];
    let expected = [
        SettleResult::Stale,
        SettleResult::Invalid,
        SettleResult::Invalid,
        SettleResult::Invalid,
        SettleResult::Invalid,
        SettleResult::Invalid,
    ];
    assert_eq!(stream.ack(&ids).await, expected);
    assert_eq!(stream.extend(&ids, None).await, expected);
    for action in [
        Action::Retry,
        Action::Requeue,
        Action::DeadLetter,
        Action::Discard,
    ] {
        assert_eq!(
            stream.nack(&foreign, action).await,
            SettleResult::Stale,
            "{action:?}"
        );
        assert_eq!(
            stream.nack(&huge, action).await,
            SettleResult::Invalid,
            "{action:?}"
        );
    }
    // Neither stream lost anything.
    assert_eq!(stream.ack(&[ours]).await, [SettleResult::Ok]);
    assert_eq!(other.ack(&[&foreign]).await, [SettleResult::Ok]);
}

/// The answers would not fit one response that a client takes.
async fn as_many_results_as_ids_however_many_they_are(on: On) {
    let (_front, _, mut stream, given) = given(on, &["1"], |_| {}).await;
    let id = "x".repeat(256);
    let ids = vec![&*id; 16_000];
    assert_eq!(stream.ack(&ids).await, vec![SettleResult::Invalid; 16_000]);
    assert_eq!(stream.ack(&[&given[0].ack_id]).await, [SettleResult::Ok]);
}

async fn a_nack_that_asks_for_nothing_allowed_is_invalid(on: On) {
    let (_front, _, mut stream, given) = given(on, &["1"], |_| {}).await;
    let ack_id = given[0].ack_id.clone();
    let bad = [
        (0, None),
        (99, None),
        (Action::Requeue.into(), seconds(1)),
        (Action::Discard.into(), seconds(1)),
        (Action::DeadLetter.into(), seconds(1)),
        (Action::Retry.into(), seconds(-1)),
        (Action::Retry.into(), seconds(86_401)),
    ];
    let nacks = bad.map(|(action, delay)| Nack {
        ack_id: ack_id.clone(),
        action,
        delay,
        error: None,
    });
    stream.send(Request::Settle(Settle {
        ack_ids: vec![],
        nacks: nacks.to_vec(),
    }));
    assert_eq!(stream.results(bad.len()).await, [SettleResult::Invalid; 7]);
    assert_eq!(stream.ack(&[&ack_id]).await, [SettleResult::Ok]);
}

async fn an_extension_out_of_range_ends_the_stream(on: On) {
    for wrong in [seconds(-1), seconds(0), seconds(901), seconds(i64::MAX)] {
        let (_front, _, mut stream, given) = given(on, &["1"], |_| {}).await;
        stream.send(Request::Extend(courtier::grpc::proto::ExtendDeadline {
            ack_ids: vec![given[0].ack_id.clone()],
            ack_deadline: wrong,
        }));
        let told = fault(&stream.end().await.expect_err("refused"));
        assert_eq!(
            (&*told.reason, &*told.field),
            ("INVALID_REQUEST", "extend.ack_deadline")
        );
    }
}
