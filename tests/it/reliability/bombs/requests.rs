//! Small requests that grow, and large ones.

use courtier::grpc::proto::{
    Message, Outcome, PublishBatchRequest, PublishRequest, PublishStreamRequest, Start,
    SubscribeRequest, message::Payload, publisher_client::PublisherClient,
    subscribe_request::Request,
};
use futures::{future::join_all, stream};
use prost::Message as _;
use tonic::{Code, Status, transport::Channel};

use super::{
    Target,
    attacker::{Attacker, field, zipped},
};
use crate::{
    books::reason_of,
    harness::eventually,
    raw::{SUBSCRIBE, frame},
};

/// Empty messages of a repeated field, two bytes each: just below what every service reads.
const ELEMENTS: usize = 2 * 1024 * 1024 - 1024;
/// Above what the gateway takes of one message.
const TOO_LARGE: usize = 8 * 1024 * 1024;
/// Attackers at once.
const AT_ONCE: usize = 15;
const BATCH: &str = "/courtier.v1.Publisher/PublishBatch";
const TOPOLOGY: &str = "/courtier.v1.QueueAdmin/ApplyTopology";

/// Refused as it is, or because the gateway is full.
fn assert_refused(status: Option<i32>) {
    let refused = [Code::InvalidArgument, Code::ResourceExhausted].map(|code| Some(code.into()));
    assert!(refused.contains(&status), "{status:?}");
}

fn elements(tag: u8) -> Vec<u8> {
    [tag, 0].repeat(ELEMENTS)
}

async fn throw(target: &Target, path: &str, body: bytes::Bytes) {
    println!("{path}: {} bytes, {AT_ONCE} at once", body.len());
    let attacker = Attacker::connect(&target.gateway.address()).await;
    let calls = (0..AT_ONCE).map(|_| attacker.call(path, "gzip", body.clone()));
    for status in join_all(calls).await {
        assert_refused(status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn batches_of_millions_of_empty_messages() {
    let target = Target::start("millions in a batch").await;
    throw(&target, BATCH, zipped(&elements(0x0a))).await;
    target.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn topologies_of_millions_of_queues() {
    let target = Target::start("millions in a topology").await;
    throw(&target, TOPOLOGY, zipped(&field(1, &elements(0x12)))).await;
    target.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn settles_of_millions_of_deliveries() {
    let target = Target::start("millions in a settle").await;
    let start = Start {
        queues: vec!["bombs-nobody".to_owned()],
        ..Start::default()
    };
    let request = Some(Request::Start(start));
    let mut body = frame(&SubscribeRequest { request }.encode_to_vec()).to_vec();
    // Its queue is missing: what matters is what is read while that is found out. And what comes first is no Start at all.
    let nacks = zipped(&field(2, &elements(0x12)));
    body.extend(&nacks);
    let attacker = Attacker::connect(&target.gateway.address()).await;
    let calls = (0..AT_ONCE).map(|number| {
        let body = if number % 2 == 0 {
            body.clone().into()
        } else {
            nacks.clone()
        };
        attacker.call(SUBSCRIBE, "gzip", body)
    });
    for status in join_all(calls).await {
        assert_ne!(status, Some(0), "it is refused, whatever for");
    }
    target.survived().await;
}

fn message(queue: &str, size: usize) -> PublishRequest {
    PublishRequest {
        routing_key: queue.to_owned(),
        message: Some(Message {
            payload: Some(Payload::Data(vec![b'x'; size].into())),
            ..Message::default()
        }),
        // To no queue: it is the way there that is looked at.
        allow_unroutable: true,
        ..PublishRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn messages_that_are_too_large() {
    let target = Target::start("too large").await;
    let url = format!("http://{}", target.gateway.address());
    let clients = (0..8).map(|_| async {
        let channel = Channel::from_shared(url.clone()).expect("a valid URL");
        let channel = channel.connect().await.expect("it listens");
        let publisher = PublisherClient::new(channel);
        correct(async || alone(publisher.clone()).await).await;
        correct(async || in_stream(publisher.clone()).await).await;
        correct(async || in_batch(publisher.clone()).await).await;
    });
    join_all(clients).await;
    target.survived().await;
}

/// A correct client: told that the gateway has no room, it tries again, and in the end is told what is true.
async fn correct(call: impl AsyncFn() -> Result<(), Status>) {
    eventually("there is room", async || match call().await {
        Ok(()) => true,
        Err(status) => {
            assert_eq!(reason_of(&status), "OVERLOADED", "{status:?}");
            false
        }
    })
    .await;
}

async fn alone(mut publisher: PublisherClient<Channel>) -> Result<(), Status> {
    let answer = publisher.publish(message("bombs-nobody", TOO_LARGE)).await;
    let status = answer.expect_err("it is too large");
    if reason_of(&status) == "PAYLOAD_TOO_LARGE" {
        return Ok(());
    }
    Err(status)
}

/// One in ten is too large; the others are published.
async fn in_stream(mut publisher: PublisherClient<Channel>) -> Result<(), Status> {
    let is_bad = |sequence: u64| sequence % 10 == 5;
    let requests = (0..30).map(move |sequence| PublishStreamRequest {
        sequence,
        publish: Some(message(
            "bombs-nobody",
            if is_bad(sequence) { TOO_LARGE } else { 8 },
        )),
    });
    let answer = publisher.publish_stream(stream::iter(requests)).await;
    let mut responses = answer?.into_inner();
    let mut answered = 0;
    while let Some(response) = responses.message().await? {
        for result in response.results {
            answered += 1;
            let expected = if is_bad(result.sequence) {
                Outcome::Invalid
            } else {
                Outcome::Confirmed
            };
            assert_eq!(result.outcome(), expected, "{result:?}");
        }
    }
    assert_eq!(
        answered, 30,
        "each once, and a bad one does not end the stream"
    );
    Ok(())
}

/// Far more in all than one message may have.
async fn in_batch(mut publisher: PublisherClient<Channel>) -> Result<(), Status> {
    let messages = vec![message("bombs-nobody", 8 * 1024); 1_000];
    let request = PublishBatchRequest { messages };
    let results = publisher.publish_batch(request).await?.into_inner().results;
    assert_eq!(results.len(), 1_000);
    for result in results {
        // There may be no room for all of them at once.
        let fine = [Outcome::Confirmed, Outcome::NotSent].contains(&result.outcome());
        assert!(fine, "{result:?}");
    }
    Ok(())
}
