//! Nothing that clients do takes more memory than the gateway was given, and nobody else waits for them.

use std::time::Duration;

use bytes::Bytes;
use courtier::{
    budget::SMALLEST,
    grpc::proto::{
        Message, PublishRequest, Start, message::Payload, publisher_client::PublisherClient,
    },
};
use futures::future::join_all;
use h2::client::ResponseFuture;
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tonic::{Code, Status};

use crate::{
    front::{Front, On, Stream, ack, fault, from, on_both, text, timely, to_queue},
    harness::{PATIENCE, Setup, connect_to, eventually},
    instance::Instance,
    process::Process,
    raw::{PUBLISH, frame},
};

const MIB: usize = 1024 * 1024;
/// What the processes are told, and must stay below.
const BUDGET: (&str, &str) = ("MAX_MEMORY_BYTES", "512MiB");
const BUDGET_KB: u64 = 512 * 1024;

on_both! {
    what_there_is_no_room_for_is_delivered_later_each_once
    who_settles_nothing_keeps_nobody_from_small_messages
    a_message_larger_than_all_that_one_may_hold_is_delivered
}

/// Each begins with its number.
fn numbered(number: usize, bytes: usize) -> Message {
    let mut payload = vec![0; bytes];
    payload[..8].copy_from_slice(&(number as u64).to_be_bytes());
    let payload = Some(Payload::Data(payload.into()));
    Message {
        payload,
        ..Message::default()
    }
}

fn number(delivery: &courtier::grpc::proto::Delivery) -> u64 {
    let message = delivery.message.as_ref().expect("set");
    let Some(Payload::Data(payload)) = &message.payload else {
        panic!("not what was published");
    };
    u64::from_be_bytes(payload[..8].try_into().expect("eight bytes"))
}

async fn fill(front: &Front, queue: &str, count: usize, bytes: usize) {
    for i in 0..count {
        let request = to_queue(queue, numbered(i, bytes));
        front.publish(request).await.expect("confirmed");
    }
}

/// The least budget: of deliveries 16 MiB, of which one subscription holds a third.
async fn smallest(on: On) -> Front {
    on.gateway_with(|limits| limits.max_memory_bytes = SMALLEST)
        .await
}

/// Reads and acks until so many have come; each is as large.
async fn read_all(stream: &mut Stream, count: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let delivery = stream.delivery().await;
        numbers.push(number(&delivery));
        stream.send(ack(&[&delivery.ack_id]));
    }
    numbers
}

async fn what_there_is_no_room_for_is_delivered_later_each_once(on: On) {
    let front = smallest(on).await;
    let queue = front.queue("large").await;
    fill(&front, &queue, 30, 2 * MIB).await;
    let mut stream = front.subscribe(from(&[&queue])).await;
    let mut numbers = read_all(&mut stream, 30).await;
    // RabbitMQ puts back what is returned while it sends what comes after.
    if on != On::Embedded {
        numbers.sort_unstable();
    }
    assert_eq!(numbers, (0..30).collect::<Vec<u64>>());
    stream.half_close();
    front.neighbours_are_unharmed().await;
}

async fn who_settles_nothing_keeps_nobody_from_small_messages(on: On) {
    let front = smallest(on).await;
    let (large, small) = (front.queue("large").await, front.queue("small").await);
    fill(&front, &large, 30, 2 * MIB).await;
    let mut hoarders = Vec::new();
    for _ in 0..4 {
        hoarders.push(front.subscribe(from(&[&large])).await);
    }
    hoarders[0].delivery().await;
    fill(&front, &small, 200, 1_000).await;
    let mut reader = front.subscribe(from(&[&small])).await;
    let numbers = read_all(&mut reader, 200).await;
    assert_eq!(numbers, (0..200).collect::<Vec<u64>>());
}

async fn a_message_larger_than_all_that_one_may_hold_is_delivered(on: On) {
    let front = on
        .gateway_with(|limits| {
            limits.max_memory_bytes = SMALLEST;
            limits.max_payload_bytes = 16 * MIB;
        })
        .await;
    let queue = front.queue("large").await;
    let mut publisher = front.publisher.clone().max_encoding_message_size(64 * MIB);
    for i in 0..3 {
        let request = to_queue(&queue, numbered(i, 12 * MIB));
        timely(publisher.publish(request)).await.expect("confirmed");
    }
    let mut stream = front.subscribe(from(&[&queue])).await;
    assert_eq!(read_all(&mut stream, 3).await, [0, 1, 2]);
}

/// A call of `Publish` of which all has come but the last byte.
async fn all_but_the_last_byte(client: &h2::client::SendRequest<Bytes>, body: Bytes) -> Unended {
    let mut client = timely(client.clone().ready()).await.expect("open");
    let request = http::Request::post(format!("http://gateway{PUBLISH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = request.body(()).expect("well-formed");
    let (answer, mut sending) = client.send_request(request, false).expect("sent");
    let _ = sending.send_data(body, false);
    Unended {
        answer,
        _sending: sending,
    }
}

struct Unended {
    answer: ResponseFuture,
    _sending: h2::SendStream<Bytes>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_whose_last_byte_never_comes_take_no_more_than_their_share() {
    const CALLS: usize = 250;
    let dir = TempDir::new().expect("a folder");
    let gateway = Process::start_in(dir.path(), &[BUDGET]).await;
    let socket = TcpStream::connect(gateway.address())
        .await
        .expect("it listens");
    let (client, connection) = timely(h2::client::handshake(socket)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let whole = frame(&to_queue("q", numbered(0, 4 * MIB - 100)).encode_to_vec());
    let body = whole.slice(..whole.len() - 1);
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        calls.push(all_but_the_last_byte(&client, body.clone()).await);
    }
    // Those for which there is no room are told so; the others wait for their last byte.
    let answers = calls.iter_mut().map(async |call| {
        let answer = timeout(Duration::from_secs(15), &mut call.answer)
            .await
            .ok()?;
        let status = Status::from_header_map(answer.expect("answered").headers());
        Some(status.expect("refused"))
    });
    let refused: Vec<Status> = join_all(answers).await.into_iter().flatten().collect();
    let peak = gateway.status("VmHWM");
    eprintln!("the process took {} MiB at the most", peak / 1024);
    assert!(refused.len() >= CALLS - 16, "{} refused", refused.len());
    for status in refused {
        let fault = fault(&status);
        assert_eq!(fault.code, Code::ResourceExhausted);
        assert_eq!(
            (&*fault.reason, &*fault.outcome),
            ("OVERLOADED", "NOT_SENT")
        );
        assert!(fault.retry);
    }
    // Who comes meanwhile with something small is heard.
    let mut neighbour = PublisherClient::new(gateway.channel());
    let small = PublishRequest {
        allow_unroutable: true,
        ..to_queue("nowhere", text("x"))
    };
    timely(neighbour.publish(small)).await.expect("confirmed");
    assert!(peak < BUDGET_KB, "{peak} kB");
    connection.abort();
}

/// How many bytes a broker has sent on all of its connections.
async fn sent(instance: &Instance) -> usize {
    let each = instance.ctl(&["-q", "list_connections", "send_oct"]).await;
    let numbers = each
        .lines()
        .filter_map(|line| line.trim().parse::<usize>().ok());
    numbers.sum()
}

/// On a gateway of its own, with a queue of large messages: a subscriber does not read, and then does.
async fn a_subscriber_that_does_not_read(start: Start) {
    const COUNT: usize = 200;
    const BYTES: usize = 4 * MIB;
    let instance = Instance::start().await;
    // Published past the gateway whose peak is measured.
    let broker = connect_to(&instance.url);
    assert!(broker.connected(PATIENCE).await);
    let filler = Front::of(broker, None, Setup::without_database).await;
    let queue = filler.queue("large").await;
    fill(&filler, &queue, COUNT, BYTES).await;
    let neighbour = filler.queue("neighbour").await;
    let gateway = Process::start(&instance, &[BUDGET]).await;
    gateway.health([true; 3]).await;
    let start = Start {
        queues: vec![queue],
        ..start
    };
    let mut stream = Stream::at(&gateway.address(), start).await;
    eventually("all has come to the gateway", async || {
        sent(&instance).await >= COUNT * BYTES
    })
    .await;
    // Neighbours are served meanwhile, on the same connection.
    let mut beside = Stream::at(&gateway.address(), from(&[&neighbour])).await;
    let mut publisher = PublisherClient::new(gateway.channel());
    let request = to_queue(&neighbour, text("x"));
    timely(publisher.publish(request)).await.expect("confirmed");
    beside.delivery().await;
    let unread = gateway.status("VmHWM");
    let mut numbers = read_all(&mut stream, COUNT).await;
    // Each once; RabbitMQ puts back what is returned while it sends what comes after.
    numbers.sort_unstable();
    let peak = gateway.status("VmHWM");
    eprintln!(
        "unread: {} MiB, read: {} MiB at the most",
        unread / 1024,
        peak / 1024
    );
    assert_eq!(numbers, (0..COUNT as u64).collect::<Vec<u64>>());
    assert!(peak < BUDGET_KB, "{unread} kB, then {peak} kB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_subscriber_that_does_not_read_takes_no_more_than_its_share() {
    let start = Start {
        max_outstanding: 10_000,
        ..Start::default()
    };
    a_subscriber_that_does_not_read(start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn a_subscribers_own_limit_of_bytes_holds_for_what_waits_too() {
    let start = Start {
        max_outstanding: 10_000,
        max_outstanding_bytes: 8 * MIB as u64,
        ..Start::default()
    };
    a_subscriber_that_does_not_read(start).await;
}
