//! Subscribing through the front door: how a stream opens, and what flows. How deliveries are settled is in `settle.rs`,
//! how a stream ends in `subscribe_end.rs`.

use std::time::Duration;

use courtier::grpc::proto::{
    Message, Start, SubscribeRequest, message::Payload, settle_result::Result as SettleResult,
    subscribe_request::Request,
};
use tonic::Code;

use crate::front::{
    On, Stream, ack, bodies, body, fault, from, on_both, payload, refusal, refused, seconds,
    timely, to_queue,
};

on_both! {
    start_comes_first_and_once
    a_missing_queue_is_not_found
    what_a_start_may_not_hold_is_refused
    the_limits_in_force_are_told
    beyond_the_most_subscriptions_none_is_opened
    an_earlier_queue_goes_before_a_later_one
    credit_by_count_holds_back_and_an_ack_frees_it
    credit_by_bytes_holds_back_but_one_large_message_goes_out
    messages_that_are_ready_together_fit_what_clients_receive
    auto_ack_acks_what_was_delivered
    a_subscriber_that_never_reads_does_not_stop_its_deadlines
}

async fn start_comes_first_and_once(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let start = || Request::Start(from(&[&queue]));
    let answer = refusal(Stream::say(&front, [ack(&["x"]), start()]).await);
    assert_eq!(answer, refused(Code::InvalidArgument, "INVALID_REQUEST"));

    let mut stream = front.subscribe(from(&[&queue])).await;
    stream.send(start());
    let status = stream.end().await.expect_err("Start comes once");
    assert_eq!(
        (fault(&status).code, fault(&status).field),
        (Code::InvalidArgument, "start".to_owned())
    );

    let nothing = tokio_stream::empty::<SubscribeRequest>();
    let answer = timely(front.subscriber().await.subscribe(nothing)).await;
    assert_eq!(
        refusal(answer),
        refused(Code::InvalidArgument, "INVALID_REQUEST")
    );
}

async fn a_missing_queue_is_not_found(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let opened = Stream::open(&front, from(&[&queue, &front.name("missing")])).await;
    assert_eq!(refusal(opened), refused(Code::NotFound, "QUEUE_NOT_FOUND"));
}

async fn what_a_start_may_not_hold_is_refused(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let start = || from(&[&queue]);
    let many: Vec<_> = (0..33).map(|i| format!("q{i}")).collect();
    let cases = [
        (from(&[]), "start.queues"),
        (from(&[""]), "start.queues"),
        (from(&[&queue, &queue]), "start.queues"),
        (
            Start {
                queues: many,
                ..start()
            },
            "start.queues",
        ),
        (
            Start {
                max_outstanding: 10_001,
                ..start()
            },
            "start.max_outstanding",
        ),
        (
            Start {
                max_outstanding: 65_536,
                ..start()
            },
            "start.max_outstanding",
        ),
        (
            Start {
                max_outstanding: 1 << 31,
                ..start()
            },
            "start.max_outstanding",
        ),
        (
            Start {
                ack_deadline: seconds(0),
                ..start()
            },
            "start.ack_deadline",
        ),
        (
            Start {
                ack_deadline: seconds(-1),
                ..start()
            },
            "start.ack_deadline",
        ),
        (
            Start {
                ack_deadline: seconds(901),
                ..start()
            },
            "start.ack_deadline",
        ),
        (
            Start {
                ack_deadline: seconds(1_000_000_000),
                ..start()
            },
            "start.ack_deadline",
        ),
        (
            Start {
                client_id: "x".repeat(129),
                ..start()
            },
            "start.client_id",
        ),
        (
            Start {
                client_id: "a\nb".into(),
                ..start()
            },
            "start.client_id",
        ),
    ];
    for (start, field) in cases {
        let Err(status) = Stream::open(&front, start).await else {
            panic!("{field} is refused");
        };
        assert_eq!(
            (fault(&status).code, &*fault(&status).field),
            (Code::InvalidArgument, field)
        );
    }
}

async fn the_limits_in_force_are_told(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let defaults = front.subscribe(from(&[&queue])).await.started;
    assert_eq!(
        (defaults.max_outstanding, defaults.ack_deadline),
        (100, seconds(60))
    );
    let asked = Start {
        max_outstanding: 10_000,
        ack_deadline: seconds(900),
        client_id: "x".repeat(128),
        ..from(&[&queue])
    };
    let told = front.subscribe(asked).await.started;
    assert_eq!(
        (told.max_outstanding, told.ack_deadline),
        (10_000, seconds(900))
    );
}

async fn beyond_the_most_subscriptions_none_is_opened(on: On) {
    let front = on.gateway_with(|limits| limits.max_subscriptions = 1).await;
    let queue = front.queue("work").await;
    let first = front.subscribe(from(&[&queue])).await;
    let Err(status) = Stream::open(&front, from(&[&queue])).await else {
        panic!("one is all there may be");
    };
    let told = fault(&status);
    assert_eq!(
        (told.code, &*told.reason, told.retry),
        (Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", true)
    );
    drop(first);
    crate::harness::eventually("the place is free", async || {
        Stream::open(&front, from(&[&queue])).await.is_ok()
    })
    .await;
}

async fn an_earlier_queue_goes_before_a_later_one(on: On) {
    let front = on.gateway().await;
    let (urgent, bulk) = (front.queue("urgent").await, front.queue("bulk").await);
    front.fill(&bulk, &["b1", "b2", "b3", "b4"]).await;
    let two = Start {
        max_outstanding: 2,
        ..from(&[&urgent, &bulk])
    };
    let mut stream = front.subscribe(two).await;
    let first = stream.deliveries(2).await;
    assert_eq!(bodies(&first), ["b1", "b2"]);
    assert_eq!(first[0].queue, bulk);
    front.fill(&urgent, &["u1", "u2"]).await;
    // RabbitMQ hands a message to the gateway a moment after its confirm; until then it is not ready.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stream.ack(&[&first[0].ack_id, &first[1].ack_id]).await;
    let second = stream.deliveries(2).await;
    assert_eq!(bodies(&second), ["u1", "u2"]);
    assert_eq!(second[0].queue, urgent);
    stream.ack(&[&second[0].ack_id, &second[1].ack_id]).await;
    assert_eq!(bodies(&stream.deliveries(2).await), ["b3", "b4"]);
}

async fn credit_by_count_holds_back_and_an_ack_frees_it(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1", "2", "3"]).await;
    let mut stream = front
        .subscribe(Start {
            max_outstanding: 2,
            ..from(&[&queue])
        })
        .await;
    let two = stream.deliveries(2).await;
    assert_eq!(bodies(&two), ["1", "2"]);
    // The third comes only after the result.
    assert_eq!(stream.ack(&[&two[1].ack_id]).await, [SettleResult::Ok]);
    assert_eq!(body(&stream.delivery().await), "3");
}

async fn credit_by_bytes_holds_back_but_one_large_message_goes_out(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let large = "x".repeat(1_000);
    front.fill(&queue, &["1234", "5678", &large, "9"]).await;
    let mut stream = front
        .subscribe(Start {
            max_outstanding_bytes: 10,
            ..from(&[&queue])
        })
        .await;
    let two = stream.deliveries(2).await;
    assert_eq!(bodies(&two), ["1234", "5678"]);
    assert_eq!(stream.ack(&[&two[0].ack_id]).await, [SettleResult::Ok]);
    // The large one needs the whole credit.
    assert_eq!(stream.ack(&[&two[1].ack_id]).await, [SettleResult::Ok]);
    let alone = stream.delivery().await;
    assert_eq!(payload(&alone).len(), 1_000);
    assert_eq!(stream.ack(&[&alone.ack_id]).await, [SettleResult::Ok]);
    assert_eq!(body(&stream.delivery().await), "9");
}

/// Clients receive 4 MiB at a time unless they ask for more.
async fn messages_that_are_ready_together_fit_what_clients_receive(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let sizes = [900_000, 3_900_000, 100_000, 1_000_000, 1];
    for size in sizes {
        front.fill(&queue, &[&"x".repeat(size)]).await;
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    let received = stream.deliveries(sizes.len()).await;
    assert_eq!(
        received
            .iter()
            .map(|d| payload(d).len())
            .collect::<Vec<_>>(),
        sizes
    );
}

async fn auto_ack_acks_what_was_delivered(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1", "2"]).await;
    let start = Start {
        auto_ack: true,
        max_outstanding: 1,
        max_messages: 3,
        ..from(&[&queue])
    };
    let mut stream = front.subscribe(start).await;
    // More than the credit: each was acked to make room for the next.
    let two = stream.deliveries(2).await;
    assert_eq!(bodies(&two), ["1", "2"]);
    assert_eq!(two[0].ack_deadline_time, None);
    assert_eq!(
        stream.ack(&[&two[0].ack_id]).await,
        [SettleResult::AlreadySettled]
    );
    front.fill(&queue, &["3"]).await;
    assert_eq!(body(&stream.delivery().await), "3");
    stream.end().await.expect("it ends well");
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_subscriber_that_never_reads_does_not_stop_its_deadlines(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    // More than the transport takes from one who does not read.
    let count = 20;
    let large = Message {
        payload: Some(Payload::Data(vec![0; 200_000].into())),
        ..Message::default()
    };
    for _ in 0..count {
        front
            .publish(to_queue(&queue, large.clone()))
            .await
            .expect("confirmed");
    }
    let silent = front
        .subscribe(Start {
            ack_deadline: seconds(1),
            ..from(&[&queue])
        })
        .await;
    let mut reader = front.subscribe(from(&[&queue])).await;
    // RabbitMQ gives what comes back to either; the silent one loses it again, until all is the reader's.
    for _ in 0..count {
        let delivery = reader.delivery().await;
        reader.send(ack(&[&delivery.ack_id]));
    }
    drop(silent);
}
