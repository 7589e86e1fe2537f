//! What a request may be at most: in bytes, in elements, and in what it expands to. A message that is too large is refused for
//! itself, and a small one that would become large is refused before it does.

use bytes::Bytes;
use courtier::grpc::proto::{
    ExtendDeadline, Message, Outcome, PublishBatchRequest, PublishRequest, PublishResult,
    PublishStreamRequest, PublishStreamResponse, SubscribeRequest, message::Payload,
    subscribe_request::Request,
};
use futures::future::join_all;
use prost::Message as _;
use tempfile::TempDir;
use tonic::Code;

use crate::{
    fates::{batch, fate_of, of},
    front::{Front, On, fault, from, on_both, text, timely, to_queue},
    process::Process,
    raw::{self, SUBSCRIBE, frame, framed, told, zipped},
};

on_both! {
    a_stream_goes_on_after_messages_that_are_too_large_or_no_messages
    a_batch_may_be_larger_than_a_message_and_has_a_limit_of_its_own
}

const PUBLISH_STREAM: &str = "/courtier.v1.Publisher/PublishStream";
const MIB: usize = 1024 * 1024;
const GZIP: [(&str, &str); 1] = [("grpc-encoding", "gzip")];

/// Bytes that do not compress.
fn noise(bytes: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| random.u8(..))
        .take(bytes)
        .collect()
}

fn sized(queue: &str, bytes: usize) -> PublishRequest {
    let payload = Some(Payload::Data(noise(bytes)));
    to_queue(
        queue,
        Message {
            payload,
            ..Message::default()
        },
    )
}

fn request(sequence: u64, publish: PublishRequest) -> Vec<u8> {
    let publish = Some(publish);
    PublishStreamRequest { sequence, publish }.encode_to_vec()
}

/// A field of this number that holds these bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend(bytes);
    field
}

/// Sequence, outcome and reason of each result, and how the stream ended.
async fn results(front: &Front, body: Vec<u8>) -> (Vec<(u64, Outcome, String)>, Code, String) {
    let told = told(&front.address, PUBLISH_STREAM, &GZIP, body.into(), true).await;
    let responses = told.messages.into_iter().map(PublishStreamResponse::decode);
    let results = responses.flat_map(|response| response.expect("a response").results);
    let read = |result: PublishResult| {
        let (outcome, fault) = fate_of(&result);
        (
            result.sequence,
            outcome,
            fault.map(|fault| fault.reason).unwrap_or_default(),
        )
    };
    let mut results: Vec<_> = results.map(read).collect();
    results.sort_by_key(|(sequence, ..)| *sequence);
    let reason = match told.status.code() {
        Code::Ok => String::new(),
        _ => fault(&told.status).reason,
    };
    (results, told.status.code(), reason)
}

async fn a_stream_goes_on_after_messages_that_are_too_large_or_no_messages(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let good = |sequence, body: &str| frame(&request(sequence, to_queue(&queue, text(body))));
    let large = |sequence| request(sequence, sized(&queue, 5 * MIB));
    // The sequence need not come first.
    let late = [
        field(2, &sized(&queue, 5 * MIB).encode_to_vec()),
        vec![8, 6],
    ]
    .concat();
    let zeros = Payload::Data(vec![0; MIB].into());
    let bomb = Message {
        payload: Some(zeros),
        ..Message::default()
    };
    let values = prost_types::ListValue {
        values: vec![prost_types::Value::default(); 20_000],
    };
    let values = prost_types::value::Kind::ListValue(values);
    let json = prost_types::Value { kind: Some(values) };
    let many = Message {
        payload: Some(Payload::Json(json)),
        ..Message::default()
    };
    let no_text = [vec![8, 8], field(2, &field(1, b"\xff"))].concat();
    let body = [
        // The first one is not there when it is 0.
        frame(&large(0)),
        good(1, "a"),
        zipped(&large(2)),
        zipped(&request(3, to_queue(&queue, text("b")))),
        zipped(&request(4, to_queue(&queue, bomb))),
        frame(&request(5, to_queue(&queue, many))),
        frame(&late),
        good(7, "c"),
        frame(&no_text),
        frame(&request(9, sized(&queue, 4 * MIB + 1))),
        good(10, "d"),
    ];
    let told = results(&front, body.concat()).await;
    let ok = |sequence| (sequence, Outcome::Confirmed, String::new());
    let refused = |sequence, reason: &str| (sequence, Outcome::Invalid, reason.to_owned());
    let too_large = "PAYLOAD_TOO_LARGE";
    let expected = vec![
        refused(0, too_large),
        ok(1),
        refused(2, too_large),
        ok(3),
        refused(4, "INVALID_MESSAGE"),
        refused(5, "INVALID_MESSAGE"),
        refused(6, too_large),
        ok(7),
        refused(8, "INVALID_MESSAGE"),
        refused(9, too_large),
        ok(10),
    ];
    assert_eq!(told, (expected, Code::Ok, String::new()));
    assert_eq!(front.drain_bodies(&queue).await, ["a", "b", "c", "d"]);

    // What nobody sends in earnest, and what cannot be told from others, ends the stream; what was sent before is answered.
    let endless = framed(0, 65 * 1024 * 1024, b"\x08\x02");
    let nameless = framed(1, 4, b"none");
    for (end, reason) in [(endless, too_large), (nameless, "INVALID_REQUEST")] {
        let told = results(&front, [good(1, "e"), end].concat()).await;
        assert_eq!(
            told,
            (vec![ok(1)], Code::InvalidArgument, reason.to_owned())
        );
    }
    front.neighbours_are_unharmed().await;
}

async fn a_batch_may_be_larger_than_a_message_and_has_a_limit_of_its_own(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let confirmed = batch(&front, vec![sized(&queue, 8 * 1024); 1_000]).await;
    assert_eq!(confirmed.len(), 1_000);
    assert!(
        confirmed
            .iter()
            .all(|result| result.outcome() == Outcome::Confirmed)
    );

    let mixed = vec![
        sized(&queue, 10),
        sized(&queue, 4 * MIB + 1),
        sized(&queue, 4 * MIB),
    ];
    let mixed = batch(&front, mixed).await;
    let invalid = of(
        Code::InvalidArgument,
        "PAYLOAD_TOO_LARGE",
        "INVALID",
        "message.payload",
        false,
    );
    let mixed: Vec<_> = mixed.iter().map(fate_of).collect();
    let confirmed = (Outcome::Confirmed, None);
    assert_eq!(
        mixed,
        [confirmed.clone(), (Outcome::Invalid, invalid), confirmed]
    );

    let messages = vec![sized(&queue, 4 * MIB); 4];
    let mut publisher = front.publisher.clone();
    let answer = timely(publisher.publish_batch(PublishBatchRequest { messages })).await;
    let refused = answer.expect_err("over 16 MiB");
    let expected = of(
        Code::InvalidArgument,
        "BATCH_TOO_LARGE",
        "INVALID",
        "messages",
        false,
    );
    assert_eq!(Some(fault(&refused)), expected);
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_says_too_much_is_told_so() {
    let front = On::Embedded.gateway().await;
    let queue = front.queue("work").await;
    let say = |request| {
        SubscribeRequest {
            request: Some(request),
        }
        .encode_to_vec()
    };
    let start = say(Request::Start(from(&[&queue])));
    let extend = ExtendDeadline {
        ack_ids: vec!["x".repeat(5 * MIB)],
        ack_deadline: None,
    };
    let too_long = frame(&say(Request::Extend(extend)));
    for body in [too_long.to_vec(), [&frame(&start)[..], &too_long].concat()] {
        let told = told(&front.address, SUBSCRIBE, &[], body.into(), false).await;
        let expected = of(
            Code::InvalidArgument,
            "PAYLOAD_TOO_LARGE",
            "",
            "request",
            false,
        );
        assert_eq!(Some(fault(&told.status)), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_that_sends_too_much_is_told_so() {
    let front = On::Embedded.gateway().await;
    let kind = "content-type: application/grpc-web+proto\r\n";
    let body = frame(&sized("work", 8 * MIB).encode_to_vec());
    // Over HTTP/1.1, where a client reads nothing before it has sent all.
    let answer = raw::http1(&front, "POST", raw::PUBLISH, kind, &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("grpc-status: 3"), "{}", answer.head);
}

/// Requests that are small where they come from, or no larger than they may be, and would be many times that when decoded.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let empty = |number: u8, bytes: usize| [number << 3 | 2, 0].repeat(bytes / 2);
    let list = |bytes: usize| field(6, &empty(1, bytes));
    let message = |message: Vec<u8>| field(3, &message);
    let most = 4_000_000;
    let members: Vec<u8> = (0..400_000_u32)
        .flat_map(|i| field(1, &field(1, &i.to_be_bytes().map(|byte| byte & 0x7f))))
        .collect();
    vec![
        ("Publisher/PublishBatch", empty(1, most)),
        ("Publisher/Publish", message(field(4, &list(most)))),
        ("Publisher/Publish", message(field(7, &members))),
        (
            "Publisher/PublishStream",
            [vec![8, 1], field(2, &message(field(4, &list(most))))].concat(),
        ),
        ("Subscriber/Subscribe", field(2, &empty(2, most))),
        ("Subscriber/Subscribe", field(1, &empty(1, most))),
        ("QueueAdmin/ApplyTopology", field(1, &empty(2, most))),
        ("QueueAdmin/WatchQueueStats", empty(1, most)),
        (
            "FailedMessages/WatchFailedMessages",
            field(1, &field(5, &vec![1; most])),
        ),
        (
            "FailedMessages/EditAndRetryFailedMessage",
            field(2, &field(4, &list(most))),
        ),
    ]
}

/// Fifteen of each at once, compressed and not. What they would cost is shown by their effect on the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_would_grow_are_refused_while_they_are_small() {
    const MOST: u64 = 256 * 1024;
    let json = |headers: &str| {
        let rest = r#""exchange":"","routing_key":"q","message":1"#;
        format!("{{{rest},\"headers\":{headers}}}").into_bytes()
    };
    let flat = json(&format!("{{\"h\":[{}0]}}", "0,".repeat(2_000_000)));
    let deep = json(&format!(
        "{{\"h\":{}{}}}",
        "[".repeat(2_000_000),
        "]".repeat(2_000_000)
    ));
    let mut over = Vec::new();
    for (path, request) in bombs() {
        for (kind, body) in [("plain", frame(&request)), ("gzip", zipped(&request))] {
            let (_dir, gateway) = alone().await;
            let path = format!("/courtier.v1.{path}");
            let address = gateway.address();
            let calls = (0..15).map(|_| told(&address, &path, &GZIP, body.clone(), true));
            let (answers, alive) = tokio::join!(join_all(calls), gateway.get("/livez"));
            assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
            for told in answers {
                if path == PUBLISH_STREAM {
                    assert_eq!(told.status.code(), Code::Ok, "{path} {kind}");
                    continue;
                }
                let fault = fault(&told.status);
                assert_eq!(fault.code, Code::InvalidArgument, "{path} {kind}");
                let publishes = path.contains("Publisher");
                assert_eq!(fault.outcome == "INVALID", publishes, "{path} {kind}");
            }
            let peak = gateway.status("VmHWM");
            println!("{path} {kind}: {} bytes, {} MiB", body.len(), peak / 1024);
            if peak > MOST {
                over.push((path, kind, peak));
            }
        }
    }
    for (kind, body) in [("flat", flat), ("deep", deep)] {
        let (_dir, gateway) = alone().await;
        let address = gateway.address();
        let kind_of = "content-type: application/json\r\n";
        let calls =
            (0..15).map(|_| raw::http1_at(&address, "POST", crate::rest::PUBLISH, kind_of, &body));
        let (answers, alive) = tokio::join!(join_all(calls), gateway.get("/livez"));
        assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
        for answer in answers {
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(
                answer.text().contains("has more than 64 entries"),
                "{}",
                answer.text()
            );
        }
        let peak = gateway.status("VmHWM");
        println!(
            "{} {kind}: {} bytes, {} MiB",
            crate::rest::PUBLISH,
            body.len(),
            peak / 1024
        );
        if peak > MOST {
            over.push((crate::rest::PUBLISH.to_owned(), kind, peak));
        }
    }
    assert!(over.is_empty(), "peaks in kB over {MOST}: {over:#?}");
}

/// A gateway on its own embedded broker, and the folder that it keeps things in.
async fn alone() -> (TempDir, Process) {
    let dir = TempDir::new().expect("a temporary folder");
    let gateway = Process::start_in(dir.path(), &[("AUDIT_LOG", "off")]).await;
    (dir, gateway)
}
