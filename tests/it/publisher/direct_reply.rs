//! Replies to clients that wait by direct reply-to: they arrive, and an address that the broker does not know harms nobody.

use base64::{Engine, engine::general_purpose::STANDARD};
use courtier::grpc::proto::{
    Message, Outcome, PublishBatchRequest, PublishRequest, PublishResponse, PublishResult,
    message::Payload,
};
use tonic::{Code, Status};

use crate::{
    contract::Traits,
    front::{On, fault, on_both, refusal, refused, text, timely, to_queue},
    harness::Gateway,
    native::{Native, prepare, receive},
};

const PREFIX: &str = "amq.rabbitmq.reply-to.";

async fn publish(gateway: &Gateway, request: PublishRequest) -> Result<PublishResponse, Status> {
    let mut publisher = gateway.publisher().await;
    let answer = timely(publisher.publish(request)).await;
    answer.map(tonic::Response::into_inner)
}

async fn batch(gateway: &Gateway, messages: Vec<PublishRequest>) -> Vec<PublishResult> {
    let mut publisher = gateway.publisher().await;
    let answer = timely(publisher.publish_batch(PublishBatchRequest { messages })).await;
    answer.expect("answered").into_inner().results
}

/// A native client asks and waits; `between` is done with its address before it is answered.
async fn ask<T>(
    gateway: &Gateway,
    queue: &str,
    between: impl AsyncFnOnce(String) -> T,
) -> (String, T) {
    let call = Native::Python.run("direct", queue);
    let answer = async {
        let asked = receive(gateway, queue).await.message.expect("always set");
        assert!(asked.reply_to.starts_with(PREFIX), "{}", asked.reply_to);
        let found = between(asked.reply_to.clone()).await;
        let reply = PublishRequest {
            routing_key: asked.reply_to.clone(),
            message: Some(Message {
                correlation_id: asked.correlation_id,
                payload: Some(Payload::Data("answer".into())),
                ..Message::default()
            }),
            ..PublishRequest::default()
        };
        publish(gateway, reply).await.expect("handed to the broker");
        (asked.reply_to, found)
    };
    let (said, (address, found)) = tokio::join!(call, answer);
    assert_eq!(said, "call-1 answer\n");
    (address, found)
}

/// The same, of a node that the broker never heard of.
fn stale(address: &str) -> String {
    let parts = address
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split_once('.'));
    let (process, key) = parts.expect("a process and a key");
    let mut process = STANDARD.decode(process).expect("base64");
    let at = process
        .iter()
        .position(|byte| *byte == b'@')
        .expect("a node");
    // The node's number.
    let digit = &mut process[at + 1];
    assert!(digit.is_ascii_digit());
    *digit = if *digit == b'1' { b'2' } else { b'1' };
    format!("{PREFIX}{}.{key}", STANDARD.encode(process))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_reply_reaches_a_client_that_waits_without_a_queue() {
    let (gateway, queue) = prepare().await;
    let (address, ()) = ask(&gateway, &queue, async |_| ()).await;
    // Nobody is there any more, and the broker does not say so.
    let late = publish(&gateway, to_queue(&address, text("late"))).await;
    assert_eq!(late.expect("handed over").outcome(), Outcome::Confirmed);
}

/// What others publish meanwhile is confirmed, and no connection of theirs is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn an_address_that_the_broker_does_not_know_is_invalid_and_nobody_notices() {
    let (gateway, queue) = prepare().await;
    let mut links = gateway.broker.links();
    links.mark_unchanged();
    let (_, ()) = ask(&gateway, &queue, async |address| {
        let stale = stale(&address);
        let malformed = ["", ".", "x", "x.y", "AAAA.AAAA", "g2QAAXg=.x"];
        let malformed = malformed.map(|rest| format!("{PREFIX}{rest}"));
        let bad = || std::iter::once(&stale).chain(&malformed);
        // RabbitMQ 4 drops what goes to a node that it does not know.
        let is_refused = Traits::rabbitmq().knows_reply_nodes;
        let bad = || bad().skip(usize::from(!is_refused));
        // Each beside the others' messages, in one batch with replies that have somewhere to go.
        let mut messages = Vec::new();
        for address in bad() {
            messages.push(to_queue(address, text("nobody")));
            messages.push(to_queue(&queue, text("neighbour")));
        }
        for result in batch(&gateway, messages).await {
            let is_reply = result.sequence % 2 == 0;
            let expected = [Outcome::Confirmed, Outcome::Invalid][usize::from(is_reply)];
            assert_eq!(result.outcome(), expected, "{result:?}");
        }
        for address in bad() {
            let answer = publish(&gateway, to_queue(address, text("nobody"))).await;
            let status = answer.expect_err("nobody waits there");
            let fault = fault(&status);
            let told = (fault.code, &*fault.reason, &*fault.outcome, &*fault.field);
            let invalid = (
                Code::InvalidArgument,
                "INVALID_MESSAGE",
                "INVALID",
                "routing_key",
            );
            assert_eq!(told, invalid);
        }
    })
    .await;
    assert_eq!(links.has_changed().ok(), Some(false), "no link was lost");
}

/// Many at once, to a client that is gone: each has its own outcome, and none waits for ever behind those that end the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn each_of_many_replies_gets_its_own_outcome() {
    let (gateway, queue) = prepare().await;
    let (address, ()) = ask(&gateway, &queue, async |_| ()).await;
    let (process, key) = address.rsplit_once('.').expect("a process and a key");
    let is_stale = |n: usize| n % 50 == 7;
    let is_refused = |n| is_stale(n) && Traits::rabbitmq().knows_reply_nodes;
    let messages = (0..1_000).map(|n| {
        // Another key each: what is remembered of one says nothing of the next.
        let own = format!("{process}.{key}{n}");
        let to = if is_stale(n) { stale(&own) } else { own };
        to_queue(&to, text("one of many"))
    });
    for (n, result) in batch(&gateway, messages.collect()).await.iter().enumerate() {
        let expected = [Outcome::Confirmed, Outcome::Invalid][usize::from(is_refused(n))];
        assert_eq!(result.outcome(), expected, "{result:?}");
    }
}

async fn what_stands_for_the_asking_channel_itself_is_no_address(on: On) {
    let front = on.gateway().await;
    let answer = front
        .publish(to_queue("amq.rabbitmq.reply-to", text("x")))
        .await;
    assert_eq!(
        refusal(answer),
        refused(Code::PermissionDenied, "FORBIDDEN")
    );
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_has_no_such_addresses() {
    let front = On::Embedded.gateway().await;
    let answer = front
        .publish(to_queue(&format!("{PREFIX}AAAA.AAAA"), text("x")))
        .await;
    let unroutable = refused(Code::FailedPrecondition, "UNROUTABLE");
    assert_eq!(refusal(answer), unroutable);
}

on_both! {
    what_stands_for_the_asking_channel_itself_is_no_address
}
