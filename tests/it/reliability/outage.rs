//! What callers are told while the broker hangs, is blocked, is gone or goes away: the truth, in time. And that all works again
//! afterwards without a restart of the gateway.

use std::time::Duration;

use courtier::{
    broker::{
        Broker,
        topology::{QueueDefaults, Topology},
    },
    grpc::proto::{
        Delivery, Outcome, PublishBatchRequest, PublishResponse, PublishStreamRequest,
        subscribe_response::Response as Said,
    },
};
use futures::stream;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::{
    books::{Books, Consumer, outcome_of, reason_of},
    harness::{PATIENCE, connect_to, eventually},
    instance::Instance,
    load::{DEADLINE, LATE, Load, QUEUES, TOPOLOGY, assert_broker_down, request, to_queue},
    process::Process,
};

/// What health says of the whole, the publisher and the subscriber.
const UP: [bool; 3] = [true; 3];
const DOWN: [bool; 3] = [false; 3];
const BLOCKED: [bool; 3] = [true, false, true];

/// One call, with a deadline, and how long its answer took.
async fn publish(
    gateway: &Process,
    queue: &str,
) -> (Result<Response<PublishResponse>, Status>, Duration) {
    let mut request = Request::new(to_queue(queue));
    request.set_timeout(DEADLINE);
    let begin = Instant::now();
    let answer = gateway.patient().publisher().publish(request).await;
    (answer, begin.elapsed())
}

/// That a message was refused at once and for a passing reason.
async fn assert_refused(gateway: &Process, reason: &str) {
    let (answer, took) = publish(gateway, QUEUES[0]).await;
    assert_eq!(outcome_of(&answer), Some(Outcome::NotSent), "{answer:?}");
    let status = answer.expect_err("it was not sent");
    assert_eq!(
        (status.code(), reason_of(&status).as_str()),
        (Code::Unavailable, reason)
    );
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

async fn assert_confirmed(gateway: &Process, queue: &str) {
    let (answer, _) = publish(gateway, queue).await;
    assert_eq!(outcome_of(&answer), Some(Outcome::Confirmed), "{answer:?}");
}

/// Ends a load: the queues are emptied, the books are right, and every single message had an answer.
async fn check(load: Load, instance: &Instance) -> Books {
    let books = load.check(instance).await;
    assert_eq!(books.cut_off(), 0, "calls without an answer");
    books
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_broker_that_hangs_leaves_nobody_waiting() {
    let instance = Instance::start().await;
    // A hanging broker is found out after two of these.
    let url = format!("{}?heartbeat=3", instance.url);
    let gateway = Process::with_load(&instance, &[("RABBITMQ_URL", &url)]).await;
    let load = Load::start(&gateway);
    load.progress(100).await;
    instance.pause().await;
    let (answer, took) = publish(&gateway, QUEUES[0]).await;
    let status = answer.as_ref().expect_err("nobody can confirm");
    match outcome_of(&answer) {
        Some(Outcome::InDoubt) => {
            assert_eq!(
                (status.code(), reason_of(status).as_str()),
                (Code::DeadlineExceeded, "CONFIRM_TIMEOUT")
            );
        }
        outcome => assert_eq!(outcome, Some(Outcome::NotSent), "{status:?}"),
    }
    assert!(took < DEADLINE + LATE, "{took:?}");
    // What the broker said before it hung has arrived by now.
    let hung = load.books().progress();
    gateway.health(DOWN).await;
    load.outcomes(Outcome::NotSent, 10).await;
    assert_eq!(
        load.books().progress(),
        hung,
        "a hanging broker confirms and delivers nothing"
    );
    let refused = Consumer::start(gateway.channel(), QUEUES[0], 1).await;
    assert_broker_down(&refused.map(drop).expect_err("no broker to subscribe at"));

    instance.resume().await;
    gateway.health(UP).await;
    load.progress(500).await;
    let books = check(load, &instance).await;
    assert!(books.count(Outcome::InDoubt) > 0, "nothing was in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn nothing_piles_up_while_the_broker_hangs() {
    let instance = Instance::start().await;
    let url = format!("{}?heartbeat=1", instance.url);
    let gateway = Process::with_load(&instance, &[("RABBITMQ_URL", &url)]).await;
    let load = Load::start(&gateway);
    load.progress(500).await;
    let threads = gateway.status("Threads");
    instance.pause().await;
    // Three attempts to connect of each link, and some: an attempt is given up after ten seconds.
    let (end, mut most) = (Instant::now() + Duration::from_secs(35), 0);
    let mut memory = 0;
    while Instant::now() < end {
        most = most.max(gateway.status("Threads"));
        memory = memory.max(gateway.status("VmRSS"));
        sleep(Duration::from_millis(200)).await;
    }
    instance.resume().await;
    gateway.health(UP).await;
    load.progress(500).await;
    let after = gateway.status("Threads");
    println!(
        "{threads} threads before, at most {most} meanwhile, {after} after; at most {memory} kB"
    );
    check(load, &instance).await;
    assert!(most <= threads + 8, "{most} threads, before it {threads}");
    assert!(memory < 200_000, "{memory} kB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_blocked_broker_refuses_publishes_and_takes_acks() {
    let instance = Instance::start().await;
    let gateway = Process::with_load(&instance, &[]).await;
    for _ in 0..10 {
        assert_confirmed(&gateway, QUEUES[0]).await;
    }
    let mut consumer = Consumer::start(gateway.channel(), QUEUES[0], 0)
        .await
        .expect("the queue exists");
    let held = receive(&mut consumer, 10).await;

    instance.block().await;
    // The broker tells those who publish, so one message has to meet the alarm; it may end at its deadline.
    let (met, took) = publish(&gateway, QUEUES[1]).await;
    assert!(took < DEADLINE + LATE, "{took:?}");
    gateway.health(BLOCKED).await;
    let ready = gateway.readyz().await;
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains(r#""publish":"blocked""#),
        "{ready}"
    );
    for _ in 0..20 {
        assert_refused(&gateway, "BROKER_BLOCKED").await;
    }
    let begin = Instant::now();
    let mut publisher = gateway.patient().publisher();
    let messages: Vec<_> = (0..10).map(|_| request()).collect();
    let batch = publisher
        .publish_batch(PublishBatchRequest { messages })
        .await;
    for result in batch.expect("a batch is answered").into_inner().results {
        assert_eq!(result.outcome(), Outcome::NotSent);
    }
    let requests = (0..10).map(|sequence| PublishStreamRequest {
        sequence,
        publish: Some(request()),
    });
    let responses = publisher.publish_stream(stream::iter(requests)).await;
    let mut responses = responses.expect("a stream begins").into_inner();
    let mut answered = 0;
    while let Some(response) = responses.message().await.expect("it ends well") {
        answered += response.results.len();
        for result in response.results {
            assert_eq!(result.outcome(), Outcome::NotSent);
        }
    }
    assert_eq!(answered, 10);
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );

    // The broker really takes the acks, alarm or not.
    consumer.ack(held.into_iter().map(|delivery| delivery.ack_id).collect());
    instance.emptied(&[QUEUES[0]]).await;
    consumer.finish().await;

    instance.unblock().await;
    gateway.health(UP).await;
    let stored = instance.messages(QUEUES[1]).await;
    match outcome_of(&met) {
        Some(Outcome::Confirmed) => assert_eq!(stored, 1),
        Some(Outcome::InDoubt) => assert!(stored <= 1),
        outcome => assert_eq!((outcome, stored), (Some(Outcome::NotSent), 0)),
    }
    assert_confirmed(&gateway, QUEUES[1]).await;
    assert_eq!(
        instance.messages(QUEUES[1]).await,
        stored + 1,
        "what was NOT_SENT is not there"
    );
    assert_eq!(
        instance.messages(QUEUES[0]).await,
        0,
        "what was NOT_SENT is not there"
    );
}

/// The next deliveries.
async fn receive(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut received = Vec::new();
    while received.len() < count {
        let next = timeout(PATIENCE, consumer.next())
            .await
            .expect("something comes");
        let response = next
            .expect("the subscription goes on")
            .and_then(|said| said.response);
        if let Some(Said::Deliveries(deliveries)) = response {
            received.extend(deliveries.deliveries);
        }
    }
    received
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_broker_that_restarts_is_found_again() {
    let instance = Instance::start().await;
    let gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    load.progress(500).await;
    instance.stop().await;
    gateway.health(DOWN).await;
    assert_refused(&gateway, "BROKER_DOWN").await;
    let ready = gateway.readyz().await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    instance.restart().await;
    gateway.health(UP).await;
    load.progress(500).await;
    assert_ends(&load);
    let books = check(load, &instance).await;
    assert!(books.count(Outcome::NotSent) > 0, "nothing was refused");
}

/// That subscriptions ended, and each because of the broker.
fn assert_ends(load: &Load) {
    let ends = load.ends();
    assert!(
        ends.len() >= 2 * QUEUES.len(),
        "every subscription ended, not {}",
        ends.len()
    );
    ends.iter().for_each(assert_broker_down);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_gateway_without_a_broker_starts_and_finds_it_later() {
    let instance = Instance::start().await;
    instance.stop().await;
    let gateway = Process::with_topology(&instance, &[]).await;
    gateway.health(DOWN).await;
    let ready = gateway.readyz().await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert_refused(&gateway, "BROKER_DOWN").await;
    let refused = Consumer::start(gateway.channel(), QUEUES[0], 1).await;
    assert_broker_down(&refused.map(drop).expect_err("no broker to subscribe at"));

    instance.restart().await;
    gateway.health(UP).await;
    // The topology follows a little later; until then there is no such exchange.
    eventually("the topology is declared", || async {
        let (answer, _) = publish(&gateway, QUEUES[0]).await;
        match outcome_of(&answer) {
            Some(Outcome::Invalid) => false,
            // Declared, and its queue not bound yet.
            Some(Outcome::Unroutable) => false,
            outcome => {
                assert_eq!(outcome, Some(Outcome::Confirmed), "{answer:?}");
                true
            }
        }
    })
    .await;
    let load = Load::start(&gateway);
    load.progress(100).await;
    check(load, &instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn connections_that_the_broker_closes_are_made_anew() {
    let instance = Instance::start().await;
    let gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    for _ in 0..3 {
        load.progress(300).await;
        instance
            .ctl(&["-q", "close_all_connections", "maintenance"])
            .await;
    }
    load.progress(300).await;
    gateway.health(UP).await;
    assert_ends(&load);
    check(load, &instance).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn an_exchange_that_is_deleted_in_use_is_missed_and_found_again() {
    let instance = Instance::start().await;
    let gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    load.progress(300).await;
    delete_exchange(&instance).await;
    load.outcomes(Outcome::Invalid, 20).await;
    let (answer, _) = publish(&gateway, QUEUES[0]).await;
    let status = answer.expect_err("there is no such exchange");
    assert_eq!(
        (status.code(), reason_of(&status).as_str()),
        (Code::NotFound, "EXCHANGE_NOT_FOUND")
    );
    // Its neighbours go on, and so do the subscribers.
    assert!(load.ends().is_empty());
    gateway.health(UP).await;

    declare_again(&instance).await;
    load.progress(300).await;
    assert!(load.ends().is_empty());
    check(load, &instance).await;
}

/// Deletes the load's exchange behind everybody's back.
async fn delete_exchange(instance: &Instance) {
    let delete = r#"rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, <<"work">>), false, <<"test">>)."#;
    assert_eq!(instance.ctl(&["-q", "eval", delete]).await.trim(), "ok");
}

/// Declares what the load needs.
async fn declare_again(instance: &Instance) {
    let broker = connect_to(&instance.url);
    assert!(broker.connected(PATIENCE).await);
    let defaults = QueueDefaults {
        message_ttl: Duration::from_secs(3_600),
        dead_letter_ttl: Duration::from_secs(3_600),
    };
    let parsed = Topology::parse(TOPOLOGY, &defaults).expect("valid");
    let topology = parsed.topology;
    assert_eq!(broker.declare(&topology).await.expect("declared"), []);
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn connections_that_wear_out_are_renewed_and_nobody_notices() {
    // So few channel numbers are soon used up.
    let instance = Instance::start_with(|_| "channel_max = 24\n".to_owned()).await;
    let gateway = Process::with_load(&instance, &[]).await;
    let load = Load::start(&gateway);
    for _ in 0..6 {
        load.progress(200).await;
        delete_exchange(&instance).await;
        load.outcomes(Outcome::Invalid, 20).await;
        declare_again(&instance).await;
    }
    load.progress(200).await;
    assert!(load.ends().is_empty(), "{:?}", load.ends());
    gateway.health(UP).await;
    let log = gateway.log();
    let renewed = |link: &str| {
        log.lines()
            .any(|line| line.contains("renewed the connection") && line.contains(link))
    };
    assert!(renewed("link=publish") && renewed("link=check"));
    assert!(!log.contains("lost the connection to the broker"));
    check(load, &instance).await;
}
