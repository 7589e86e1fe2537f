//! Messages that their consumers die of: each ends in its dead-letter queue after a bounded number of tries, and takes nobody along.

use std::collections::{BTreeSet, VecDeque};

use courtier::{
    broker::{
        Delivery as Dead, Subscribe,
        topology::{QueueDefaults, QueueKind, Topology},
    },
    grpc::proto::{
        Start, nack::Action, settle_result::Result as SettleResult, subscribe_response::Response,
    },
    message::header,
};

use futures::StreamExt;

use crate::{
    front::{Front, On, ack, bodies, body, from, on_both, seconds, text, timely, to_queue},
    harness::PATIENCE,
};

on_both! {
    a_message_that_kills_its_consumers_is_moved_and_takes_nobody_along
    a_message_that_consumers_hang_on_is_moved
    a_client_that_hangs_itself_accuses_one_message_only
    a_client_that_waits_for_company_gets_it
    two_deaths_isolate_nothing
    an_orderly_end_suspects_nobody
    a_lone_message_counts_from_its_first_death
    settling_a_suspect_clears_it
    a_copy_that_cannot_be_stored_is_tried_again
    without_a_limit_nobody_is_suspected
}

/// Takes everything from a dead-letter queue as a native client would see it.
async fn dead(front: &Front, queue: &str, count: usize) -> Vec<Dead> {
    let subscribe = Subscribe::new(
        vec![format!("{queue}.dlq")],
        100,
        "looks",
        tokio::time::Instant::now() + PATIENCE,
    );
    let mut looking = front.broker.subscribe(subscribe).await.expect("it exists");
    let mut found = Vec::new();
    while found.len() < count {
        let next = timely(looking.next()).await.expect("a dead letter");
        timely(looking.ack(&[next.tag])).await.expect("acked");
        found.push(next);
    }
    found
}

fn header<'a>(dead: &'a Dead, name: &str) -> Option<&'a str> {
    dead.message.headers.get(name)?.as_str()
}

/// One at a time, so that what is given is alone.
fn one_from(queue: &str) -> Start {
    Start {
        max_outstanding: 1,
        ..from(&[queue])
    }
}

/// A consumer that works one by one, dies when it meets `poison`, and comes back. Answers how often it died, once it has worked off
/// everything else: these many messages, each of them once.
async fn crash_loop(front: &Front, queue: &str, others: usize) -> usize {
    let (mut worked_off, mut deaths) = (BTreeSet::new(), 0);
    while worked_off.len() < others {
        let mut stream = front.subscribe(from(&[queue])).await;
        let (mut ready, mut unanswered) = (VecDeque::new(), 0);
        while worked_off.len() < others || unanswered > 0 {
            match ready.pop_front() {
                // What it settled before is settled.
                Some(delivery) if unanswered == 0 && body(&delivery) == "poison" => {
                    deaths += 1;
                    assert!(deaths < 20, "there is no end to it");
                    stream.die();
                    break;
                }
                Some(delivery) if body(&delivery) != "poison" => {
                    let body = body(&delivery);
                    stream.send(ack(&[&delivery.ack_id]));
                    unanswered += 1;
                    assert!(worked_off.insert(body), "{delivery:?} comes twice");
                }
                waits => {
                    if let Some(poison) = waits {
                        ready.push_front(poison);
                    }
                    match stream.event().await {
                        Ok(Some(Response::Deliveries(more))) => ready.extend(more.deliveries),
                        Ok(Some(Response::Results(done))) => {
                            let ok = |result: &courtier::grpc::proto::SettleResult| {
                                result.result() == SettleResult::Ok
                            };
                            assert!(done.results.iter().all(ok), "{done:?}");
                            unanswered -= done.results.len();
                        }
                        other => panic!("deliveries and results are due, not {other:?}"),
                    }
                }
            }
        }
    }
    deaths
}

async fn a_message_that_kills_its_consumers_is_moved_and_takes_nobody_along(on: On) {
    let front = on.gateway().await;
    for kind in [QueueKind::Classic, QueueKind::Quorum] {
        let short = format!("work-{kind}");
        let queue = front.queue_with(&short, |queue| queue.kind = kind).await;
        front.queue(&format!("{short}.dlq")).await;
        let neighbours: Vec<_> = (0..50).map(|n| n.to_string()).collect();
        let mut texts: Vec<_> = neighbours.iter().map(String::as_str).collect();
        texts.insert(7, "poison");
        front.fill(&queue, &texts).await;

        // Three times among 43, then among 11, among 3, and alone until the limit of 5 is reached.
        let deaths = crash_loop(&front, &queue, 50).await;
        assert!((5..=7).contains(&deaths), "{deaths} deaths");

        let dead = dead(&front, &queue, 1).await.remove(0);
        assert_eq!(dead.message.payload, "poison");
        assert_eq!(header(&dead, header::REASON), Some(header::DELIVERY_LIMIT));
        assert_eq!(header(&dead, header::ERROR_TYPE), Some("PoisonMessage"));
        assert_eq!(header(&dead, header::ACTION), Some("retry"));
        assert_eq!(header(&dead, header::QUEUE), Some(&*queue));
        let told = header(&dead, header::ERROR_MESSAGE).expect("told");
        assert!(told.starts_with(&format!("{deaths} times")), "{told}");
        // Nobody else is dead, and nothing is left.
        assert_eq!(front.drain_bodies(&format!("{queue}.dlq")).await, [""; 0]);
        assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
    }
}

async fn a_message_that_consumers_hang_on_is_moved(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 3)
        .await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["1", "poison", "2"]).await;
    let start = Start {
        ack_deadline: seconds(1),
        ..from(&[&queue])
    };
    let mut stream = front.subscribe(start).await;
    // It works on many at a time, and one of them never ends.
    let mut tries = 0;
    let first = stream.deliveries(3).await;
    assert_eq!(bodies(&first), ["1", "poison", "2"]);
    stream.send(ack(&[&first[0].ack_id, &first[2].ack_id]));
    stream.results(2).await;
    tries += 1;
    while tries < 3 {
        stream.revoked().await;
        assert_eq!(body(&stream.delivery().await), "poison");
        tries += 1;
    }
    stream.revoked().await;
    front.fill(&queue, &["3"]).await;
    let next = stream.delivery().await;
    assert_eq!(body(&next), "3");
    assert_eq!(stream.ack(&[&next.ack_id]).await, [SettleResult::Ok]);
    let dead = dead(&front, &queue, 1).await.remove(0);
    assert_eq!(dead.message.payload, "poison");
    assert_eq!(header(&dead, header::REASON), Some(header::DELIVERY_LIMIT));
}

/// It settles nothing at all: that is not the messages' fault.
async fn a_client_that_hangs_itself_accuses_one_message_only(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 1)
        .await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["1"]).await;
    let one = || Start {
        ack_deadline: seconds(1),
        ..one_from(&queue)
    };
    let mut hangs = front.subscribe(one()).await;
    assert_eq!(body(&hangs.delivery().await), "1");
    hangs.revoked().await;
    assert_eq!(dead(&front, &queue, 1).await.len(), 1);
    front.fill(&queue, &["2"]).await;
    for _ in 0..3 {
        assert_eq!(body(&hangs.delivery().await), "2");
        hangs.revoked().await;
    }
    // Once it settles something, it is believed again.
    let given = hangs.delivery().await;
    assert_eq!(hangs.ack(&[&given.ack_id]).await, [SettleResult::Ok]);
    front.fill(&queue, &["3"]).await;
    assert_eq!(body(&hangs.delivery().await), "3");
    hangs.revoked().await;
    assert_eq!(dead(&front, &queue, 1).await[0].message.payload, "3");
}

/// So many clients that take so many deliveries, and die.
async fn die_with(front: &Front, queue: &str, deliveries: usize, deaths: usize) {
    for _ in 0..deaths {
        let mut stream = front.subscribe(from(&[queue])).await;
        assert_eq!(stream.deliveries(deliveries).await.len(), deliveries);
        stream.die();
    }
}

/// Somebody switched a machine off. What it held goes to others as before, and they have all of it at once.
async fn two_deaths_isolate_nothing(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let texts: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    front.fill(&queue, &texts).await;
    die_with(&front, &queue, 100, 2).await;
    let mut next = front.subscribe(from(&[&queue])).await;
    // It settles nothing until it has them.
    assert_eq!(next.deliveries(100).await.len(), 100);
    next.die();
    // The third: a quarter of them at a time.
    let mut next = front.subscribe(from(&[&queue])).await;
    let quarter = next.deliveries(25).await;
    let ids: Vec<_> = quarter.iter().map(|given| &*given.ack_id).collect();
    next.send(ack(&ids));
    next.results(25).await;
    assert_eq!(next.deliveries(25).await.len(), 25);
}

async fn a_client_that_waits_for_company_gets_it(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 2)
        .await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["1", "2", "3"]).await;
    die_with(&front, &queue, 3, 3).await;
    let mut waits = front
        .subscribe(Start {
            ack_deadline: seconds(1),
            ..from(&[&queue])
        })
        .await;
    let alone = waits.delivery().await;
    // It acks three at a time; nothing but the deadline can tell.
    assert_eq!(waits.revoked().await.ack_ids, [alone.ack_id]);
    let mut three = waits.deliveries(3).await;
    three.sort_by_key(body);
    assert_eq!(bodies(&three), ["1", "2", "3"]);
    let ids: Vec<_> = three.iter().map(|given| &*given.ack_id).collect();
    assert_eq!(waits.ack(&ids).await, [SettleResult::Ok; 3]);
    assert_eq!(front.drain_bodies(&format!("{queue}.dlq")).await, [""; 0]);
}

async fn an_orderly_end_suspects_nobody(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 1)
        .await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["1", "2", "3"]).await;
    // Workers that take one, and leave with the next one in their hands.
    for _ in 0..3 {
        let mut worker = front.subscribe(one_from(&queue)).await;
        let given = worker.delivery().await;
        assert_eq!(body(&given), "1");
        worker.half_close();
        worker.end().await.expect("it ends well");
    }
    // Or with several.
    for _ in 0..3 {
        let mut worker = front.subscribe(from(&[&queue])).await;
        assert_eq!(worker.deliveries(3).await.len(), 3);
        worker.half_close();
        worker.end().await.expect("it ends well");
    }
    // Suspects would come one by one, and at last not at all.
    let mut next = front.subscribe(from(&[&queue])).await;
    let mut three = next.deliveries(3).await;
    three.sort_by_key(body);
    assert_eq!(bodies(&three), ["1", "2", "3"]);
}

async fn a_lone_message_counts_from_its_first_death(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 2)
        .await;
    let queue = front.queue("work").await;
    front.queue("work.dlq").await;
    front.fill(&queue, &["poison"]).await;
    for _ in 0..2 {
        let mut stream = front.subscribe(one_from(&queue)).await;
        assert_eq!(body(&stream.delivery().await), "poison");
        stream.die();
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    front.fill(&queue, &["next"]).await;
    assert_eq!(body(&stream.delivery().await), "next");
    assert_eq!(dead(&front, &queue, 1).await[0].message.payload, "poison");
}

async fn settling_a_suspect_clears_it(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 2)
        .await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1"]).await;
    for _ in 0..4 {
        let mut stream = front.subscribe(from(&[&queue])).await;
        let given = stream.delivery().await;
        assert_eq!(body(&given), "1");
        assert_eq!(
            stream.nack(&given.ack_id, Action::Requeue).await,
            SettleResult::Ok
        );
        assert_eq!(body(&stream.delivery().await), "1");
        stream.die();
    }
    assert_eq!(front.drain_bodies(&queue).await, ["1"]);
}

async fn a_copy_that_cannot_be_stored_is_tried_again(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 1)
        .await;
    let queue = front.queue("work").await;
    front.full_queue("work.dlq").await;
    front.fill(&queue, &["poison"]).await;
    let mut stream = front.subscribe(one_from(&queue)).await;
    assert_eq!(body(&stream.delivery().await), "poison");
    stream.die();
    let mut stream = front.subscribe(from(&[&queue])).await;
    front.fill(&queue, &["next"]).await;
    let next = stream.delivery().await;
    assert_eq!(body(&next), "next");
    assert_eq!(stream.ack(&[&next.ack_id]).await, [SettleResult::Ok]);
    // Room in the dead-letter queue is all that it waits for.
    let dead = dead(&front, &queue, 2).await;
    assert_eq!(dead[0].message.payload, "full");
    assert_eq!(dead[1].message.payload, "poison");
    stream.half_close();
    stream.end().await.expect("it ends well");
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

async fn without_a_limit_nobody_is_suspected(on: On) {
    let front = on
        .gateway_with(|limits| limits.max_delivery_failures = 0)
        .await;
    let queue = front.queue("work").await;
    front.fill(&queue, &["1", "2"]).await;
    for _ in 0..8 {
        let mut stream = front.subscribe(from(&[&queue])).await;
        assert_eq!(stream.deliveries(2).await.len(), 2);
        stream.die();
    }
    let request = to_queue(&queue, text("3"));
    front.publish(request).await.expect("confirmed");
    assert_eq!(front.drain(&queue).await.len(), 3);
}

/// A consumer of its own, that speaks AMQP and knows nothing of the gateway: only the queue's limit stops what kills it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_native_consumer_that_dies_is_stopped_by_the_delivery_limit() {
    let front = On::RabbitMq.gateway().await;
    let queue = front.name("work");
    let file = format!("[[queues]]\nname = {queue:?}\ndelivery_limit = 3");
    let defaults = QueueDefaults {
        message_ttl: PATIENCE * 10,
        dead_letter_ttl: PATIENCE * 10,
    };
    front
        .declare(Topology::parse(&file, &defaults).expect("valid").topology)
        .await;
    front.fill(&queue, &["poison"]).await;
    let url = std::env::var("COURTIER_TEST_AMQP_URL").expect("set by make test");
    for returns in [None, Some(1), Some(2), Some(3)] {
        let connection = lapin::Connection::connect(&url, Default::default()).await;
        let connection = connection.expect("RabbitMQ runs");
        let channel = connection.create_channel().await.expect("a channel");
        let consumer = channel.basic_consume(
            queue.as_str().into(),
            "native".into(),
            Default::default(),
            Default::default(),
        );
        let mut consumer = consumer.await.expect("the queue exists");
        let given = timely(consumer.next()).await.expect("a delivery");
        let given = given.expect("a delivery");
        assert_eq!(given.data, b"poison");
        let headers = given.properties.headers().as_ref();
        let count = headers.and_then(|headers| headers.inner().get("x-delivery-count"));
        let count = count.and_then(lapin::types::AMQPValue::as_long_long_int);
        assert_eq!(count, returns);
        connection
            .close(200, "it died".into())
            .await
            .expect("closed");
    }
    let dead = dead(&front, &queue, 1).await.remove(0);
    assert_eq!(dead.message.payload, "poison");
    assert_eq!(
        header(&dead, "x-first-death-reason"),
        Some("delivery_limit")
    );
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}
