//! Every way in which a subscription ends, and what becomes of what was unsettled then.

use std::time::Duration;

use courtier::{
    broker::topology::QueueKind,
    grpc::proto::{
        Start, SubscribeRequest, nack::Action, settle_result::Result as SettleResult,
        subscribe_request::Request, subscribe_response::Response,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    contract::Traits,
    front::{
        Front, On, Stream, ack, bodies, body, fault, from, nack, on_both, refusal, refused,
        seconds, timely,
    },
    harness::{PATIENCE, Setup, connect_to},
    instance::Instance,
};

on_both! {
    half_close_with_auto_ack_keeps_streaming
    half_close_carries_out_settles_and_returns_the_rest
    after_its_most_messages_the_stream_ends_well
    a_client_that_disconnects_returns_everything
    a_deleted_queue_ends_the_stream
    a_lost_broker_ends_the_stream
    a_subscriber_without_credit_is_told_the_end_too
    the_streams_own_deadline_ends_it
    a_stop_drains_and_then_sends_elsewhere
    half_close_during_a_stop_ends_the_stream_at_once
}

async fn half_close_with_auto_ack_keeps_streaming(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let mut stream = front
        .subscribe(Start {
            auto_ack: true,
            ..from(&[&queue])
        })
        .await;
    stream.half_close();
    front.fill(&queue, &["1"]).await;
    assert_eq!(body(&stream.delivery().await), "1");
    front.fill(&queue, &["2"]).await;
    assert_eq!(body(&stream.delivery().await), "2");
}

async fn half_close_carries_out_settles_and_returns_the_rest(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["1", "2", "3", "4"]).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    let four = stream.deliveries(4).await;
    stream.send(ack(&[&four[0].ack_id]));
    stream.send(nack(&four[1].ack_id, Action::DeadLetter));
    stream.half_close();
    assert_eq!(stream.results(2).await, [SettleResult::Ok; 2]);
    stream.end().await.expect("it ends well");
    let left = front.drain(&queue).await;
    assert_eq!(bodies(&left), ["3", "4"]);
    assert!(left.iter().all(|delivery| delivery.redelivered));
    assert_eq!(front.drain_bodies(&format!("{queue}.dlq")).await, ["2"]);
}

async fn after_its_most_messages_the_stream_ends_well(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1", "2", "3"]).await;
    let mut stream = front
        .subscribe(Start {
            max_messages: 2,
            ..from(&[&queue])
        })
        .await;
    let two = stream.deliveries(2).await;
    let ids: Vec<_> = two.iter().map(|delivery| &*delivery.ack_id).collect();
    assert_eq!(stream.ack(&ids[..1]).await, [SettleResult::Ok]);
    assert_eq!(stream.ack(&ids[1..]).await, [SettleResult::Ok]);
    stream.end().await.expect("it ends well");
    let mut stream = front
        .subscribe(Start {
            max_messages: 1,
            auto_ack: true,
            ..from(&[&queue])
        })
        .await;
    assert_eq!(body(&stream.delivery().await), "3");
    stream.end().await.expect("it ends well");
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn a_client_that_disconnects_returns_everything(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1", "2"]).await;
    let mut gone = front.subscribe(from(&[&queue])).await;
    assert_eq!(bodies(&gone.deliveries(2).await), ["1", "2"]);
    let mut next = front.subscribe(from(&[&queue])).await;
    gone.die();
    let returned = next.deliveries(2).await;
    assert_eq!(bodies(&returned), ["1", "2"]);
    for returned in returned {
        assert!(returned.redelivered && returned.attempt == 1);
        assert_eq!(next.ack(&[&returned.ack_id]).await, [SettleResult::Ok]);
    }
}

async fn a_deleted_queue_ends_the_stream(on: On) {
    let front = on.gateway().await;
    let (queue, other) = (front.queue("work").await, front.queue("other").await);
    front.fill(&queue, &["1"]).await;
    let mut idle = front.subscribe(from(&[&other, &queue])).await;
    front.delete_queue(&other).await;
    let mut status = idle.event().await;
    while let Ok(Some(Response::Deliveries(_))) = status {
        status = idle.event().await;
    }
    assert_eq!(refusal(status), refused(Code::NotFound, "QUEUE_DELETED"));
    assert_eq!(front.drain_bodies(&queue).await, ["1"]);

    let mut holding = front
        .subscribe(Start {
            max_outstanding: 1,
            ..from(&[&queue])
        })
        .await;
    front.fill(&queue, &["2"]).await;
    let held = holding.delivery().await;
    front.delete_queue(&queue).await;
    holding.send(ack(&[&held.ack_id]));
    let mut status = holding.event().await;
    while let Ok(Some(Response::Results(_))) = status {
        status = holding.event().await;
    }
    assert_eq!(refusal(status), refused(Code::NotFound, "QUEUE_DELETED"));
}

async fn a_lost_broker_ends_the_stream(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let mut idle = front.subscribe(from(&[&queue])).await;
    front.broker.close().await;
    let told = fault(&idle.end().await.expect_err("the broker is gone"));
    assert_eq!(
        (told.code, &*told.reason, told.retry),
        (Code::Unavailable, "BROKER_DOWN", true)
    );
    assert_eq!(
        refusal(Stream::open(&front, from(&[&queue])).await),
        refused(Code::Unavailable, "BROKER_DOWN")
    );
}

async fn a_subscriber_without_credit_is_told_the_end_too(on: On) {
    let front = on.gateway().await;
    for (short, code, reason) in [
        ("deleted", Code::NotFound, "QUEUE_DELETED"),
        ("lost", Code::Unavailable, "BROKER_DOWN"),
    ] {
        let queue = front.queue(short).await;
        front.fill(&queue, &["1", "2"]).await;
        let one = Start {
            max_outstanding: 1,
            ..from(&[&queue])
        };
        let mut stream = front.subscribe(one).await;
        assert_eq!(body(&stream.delivery().await), "1");
        match short {
            "deleted" => front.delete_queue(&queue).await,
            _ => front.broker.close().await,
        }
        assert_eq!(refusal(stream.end().await), refused(code, reason));
    }
}

async fn the_streams_own_deadline_ends_it(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1"]).await;
    let began = Instant::now();
    let (requests, receiver) = mpsc::channel(1);
    let request = Some(Request::Start(from(&[&queue])));
    requests
        .send(SubscribeRequest { request })
        .await
        .expect("open");
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.set_timeout(Duration::from_secs(1));
    let opened = front.subscriber().await.subscribe(request).await;
    let mut responses = opened.expect("it opens").into_inner();
    let end: Status = loop {
        match timely(responses.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the deadline ends it"),
            Err(status) => break status,
        }
    };
    assert_eq!(fault(&end).reason, "DEADLINE_EXCEEDED");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(front.drain_bodies(&queue).await, ["1"]);
}

async fn a_stop_drains_and_then_sends_elsewhere(on: On) {
    let front = on
        .gateway_with(|limits| limits.shutdown_grace = Duration::from_secs(2))
        .await;
    let queue = front
        .queue_with("work", |queue| {
            queue.message_ttl = Some(Duration::from_secs(60))
        })
        .await;
    front.fill(&queue, &["1", "2"]).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    let mut settled = front.subscribe(from(&[&queue])).await;
    let two = stream.deliveries(2).await;
    front.begin_stop();
    for stream in [&mut stream, &mut settled] {
        let Ok(Some(Response::Draining(draining))) = stream.event().await else {
            panic!("Draining is due");
        };
        assert_eq!(
            (&*draining.reason, draining.grace),
            ("GATEWAY_STOPPING", seconds(2))
        );
    }
    assert_eq!(
        refusal(settled.end().await),
        refused(Code::Unavailable, "GATEWAY_STOPPING")
    );
    assert_eq!(stream.ack(&[&two[0].ack_id]).await, [SettleResult::Ok]);
    let told = fault(&stream.end().await.expect_err("the grace is over"));
    assert_eq!(
        (told.code, &*told.reason, told.retry),
        (Code::Unavailable, "GATEWAY_STOPPING", true)
    );
    drop((stream, settled));
    let name = queue.clone();
    front.stopped().await.expect("a graceful stop");
    // Only RabbitMQ outlives the gateway.
    if let On::RabbitMq = on {
        assert_eq!(
            On::RabbitMq.gateway().await.drain_bodies(&name).await,
            ["2"]
        );
    }
}

async fn half_close_during_a_stop_ends_the_stream_at_once(on: On) {
    let grace = PATIENCE * 10;
    let front = on
        .gateway_with(|limits| limits.shutdown_grace = grace)
        .await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1"]).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    stream.delivery().await;
    front.begin_stop();
    assert!(matches!(
        stream.event().await,
        Ok(Some(Response::Draining(_)))
    ));
    stream.half_close();
    stream.end().await.expect("as the client wished");
    front.stopped().await.expect("a graceful stop");
}

/// A gateway of a broker that takes back what is unsettled for so long.
async fn impatient(timeout: Duration) -> (Instance, Front) {
    let setting = format!("consumer_timeout = {}\n", timeout.as_millis());
    let instance = Instance::start_with(|_| setting).await;
    // How often it looks; a minute otherwise.
    let often = "ok = application:set_env(rabbit, channel_tick_interval, 500).";
    instance.ctl(&["eval", often]).await;
    let broker = connect_to(&instance.url);
    assert!(broker.connected(PATIENCE).await);
    let front = Front::of(broker, None, Setup::without_database).await;
    (instance, front)
}

/// RabbitMQ 4.3 cancels the consumer; before, it ended the channel. Of consumers that are cancelled while their queue stays, the gateway
/// takes those for timed out that held something for most of a minute, which is the shortest timeout that RabbitMQ supports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker of its own: run make test"]
async fn a_quorum_queue_that_takes_a_delivery_back_is_no_broker_that_is_down() {
    let (_instance, front) = impatient(Duration::from_secs(50)).await;
    let quorum = front.queue_with("quorum", |queue| queue.kind = QueueKind::Quorum);
    let queue = quorum.await;
    front.fill(&queue, &["long"]).await;
    let patient = Start {
        ack_deadline: seconds(900),
        ..from(&[&queue])
    };
    let mut stream = front.subscribe(patient.clone()).await;
    assert_eq!(stream.delivery().await.attempt, 1);
    let ended = stream.end_within(Duration::from_secs(180)).await;
    let code = Code::FailedPrecondition;
    assert_eq!(refusal(ended), refused(code, "CONSUMER_TIMEOUT"));
    let again = front.subscribe(patient).await.delivery().await;
    assert_eq!((&*body(&again), again.attempt), ("long", 2));
}

/// RabbitMQ before 4.3; the newer one lets a classic queue's consumer keep what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "starts a broker of its own: run make test"]
async fn a_delivery_kept_for_longer_than_the_broker_allows_ends_the_stream_and_counts() {
    let (_instance, front) = impatient(Duration::from_secs(1)).await;
    let queue = front.queue("work").await;
    let dead_letters = front.queue("work.dlq").await;
    front.fill(&queue, &["long", "next"]).await;
    if !Traits::rabbitmq().has_consumer_timeout {
        let mut stream = front.subscribe(from(&[&queue])).await;
        let held = stream.deliveries(2).await;
        assert_eq!(stream.ack(&[&held[0].ack_id]).await, [SettleResult::Ok]);
        return;
    }
    for attempt in 1..=5 {
        let mut stream = front.subscribe(from(&[&queue])).await;
        let held = stream.deliveries(if attempt <= 3 { 2 } else { 1 }).await;
        assert_eq!((&*body(&held[0]), held[0].attempt), ("long", attempt));
        let extended = stream.extend(&[&held[0].ack_id], seconds(60)).await;
        assert_eq!(extended, [SettleResult::Ok]);
        let ended = stream.end().await;
        let code = Code::FailedPrecondition;
        assert_eq!(refusal(ended), refused(code, "CONSUMER_TIMEOUT"));
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    assert_eq!(body(&stream.delivery().await), "next");
    assert_eq!(front.drain_bodies(&dead_letters).await, ["long"]);
}
