//! What is held for clients that do not go on: deliveries that nobody reads, and requests that never end.

use courtier::grpc::proto::{
    Message, PublishRequest, Start, message::Payload, subscribe_response::Response,
};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use prost::Message as _;
use tonic::transport::Channel;

use super::{Target, attacker::Attacker};
use crate::{
    books::Consumer,
    instance::Instance,
    raw::{PUBLISH, frame},
};

/// As large as a payload may be; what waits in the queues is more than the process may have.
const LARGE: usize = 4 * 1024 * 1024;

/// Puts large messages into queues, past the gateway.
async fn fill(url: &str, queues: &[String], each: usize) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await;
    let connection = connection.expect("RabbitMQ runs");
    let channel = connection.create_channel().await.expect("a channel");
    let confirms = channel
        .confirm_select(ConfirmSelectOptions::default())
        .await;
    confirms.expect("it confirms");
    let payload = vec![b'x'; LARGE];
    for queue in queues {
        // On disk, so that the broker itself does not need the memory.
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-mode".into(), AMQPValue::LongString("lazy".into()));
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel
            .queue_declare(queue.as_str().into(), options, arguments)
            .await;
        declared.expect("declared");
        for _ in 0..each {
            let published = channel.basic_publish(
                "".into(),
                queue.as_str().into(),
                BasicPublishOptions::default(),
                &payload,
                BasicProperties::default().with_delivery_mode(2),
            );
            published.await.expect("sent").await.expect("confirmed");
        }
    }
    connection.close(200, "done".into()).await.expect("closed");
}

/// Subscribes and does not read; when the gateway holds all that it will, reads on: everything must still come.
async fn unread(name: &'static str, queues: usize, each: usize, max_outstanding_bytes: u64) {
    let instance = Instance::start_managed().await;
    let queues: Vec<_> = (0..queues)
        .map(|number| format!("large-{number}"))
        .collect();
    fill(&instance.url, &queues, each).await;
    let target = Target::apart(name, &instance).await;
    let url = format!("http://{}", target.gateway.address());
    let channel = Channel::from_shared(url)
        .expect("a valid URL")
        .connect()
        .await;
    let start = Start {
        queues: queues.clone(),
        max_outstanding: 10_000,
        max_outstanding_bytes,
        ..Start::default()
    };
    let consumer = Consumer::open(channel.expect("it listens"), start).await;
    let mut consumer = consumer.expect("the queues exist");
    target.saturated().await;
    target.beside().await;
    let mut received = 0;
    while received < queues.len() * each {
        let said = consumer
            .next()
            .await
            .expect("it goes on")
            .expect("it goes on");
        if let Some(Response::Deliveries(deliveries)) = said.response {
            received += deliveries.deliveries.len();
            let ids = deliveries
                .deliveries
                .into_iter()
                .map(|delivery| delivery.ack_id);
            consumer.ack(ids.collect());
        }
    }
    consumer.finish().await;
    target.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_subscriber_that_does_not_read() {
    unread("160 × 4 MiB unread", 1, 160, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_subscriber_of_many_queues_that_does_not_read() {
    unread("32 queues of 10 × 4 MiB unread", 32, 10, 8 * 1024 * 1024).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn publishes_whose_last_byte_never_comes() {
    let target = Target::start("250 unfinished publishes").await;
    let request = PublishRequest {
        routing_key: "bombs-nobody".to_owned(),
        message: Some(Message {
            payload: Some(Payload::Data(vec![b'x'; LARGE - 1_024].into())),
            ..Message::default()
        }),
        ..PublishRequest::default()
    };
    let whole = frame(&request.encode_to_vec());
    let attacker = Attacker::connect(&target.gateway.address()).await;
    let mut calls = Vec::new();
    for _ in 0..250 {
        let mut call = attacker.begin(PUBLISH, "identity").await;
        // The gateway may have refused it already.
        let _ = call.body.send_data(whole.slice(..whole.len() - 1), false);
        calls.push(call);
    }
    target.saturated().await;
    target.beside().await;
    drop(calls);
    target.survived().await;
}
