//! What only a hostile or broken client puts on the wire, and the answer that it must get (the table in the security notes).
//! After each group a neighbour's publish works.

use std::{io::Write, time::Duration};

use bytes::Bytes;
use courtier::grpc::proto::{
    Message, Start, SubscribeRequest, message::Payload, subscribe_request::Request,
};
use prost::Message as _;
use tokio::time::Instant;
use tonic::Code;

use crate::{
    front::{On, body, from, seconds, text, to_queue},
    raw::{self, Answer, PUBLISH, SUBSCRIBE, call, frame, framed},
};

const INVALID_ARGUMENT: Answer = Answer {
    http: 200,
    grpc: Some(3),
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_and_never_sent_is_refused_at_once() {
    let front = On::Embedded.gateway().await;
    for path in [PUBLISH, SUBSCRIBE] {
        // The client stays silent; without the limit this call would wait for the rest, and hold room for it.
        let answer = call(&front, path, &[], framed(0, u32::MAX, b"x"), false).await;
        assert_eq!(answer, INVALID_ARGUMENT, "{path}");
    }
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gzip_bomb_is_refused_when_it_grows_over_the_limit() {
    let front = On::Embedded.gateway().await;
    let bomb = |mebibytes: usize| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..mebibytes {
            gzip.write_all(&[0; 1 << 20]).expect("in memory");
        }
        gzip.finish().expect("in memory")
    };
    let zipped = |bytes: &[u8]| framed(1, u32::try_from(bytes.len()).expect("small"), bytes);
    let headers = [("grpc-encoding", "gzip")];
    // Over the ratio, over the limit, and no gzip at all.
    for bytes in [bomb(1), bomb(32), b"not gzip".to_vec(), Vec::new()] {
        let answer = call(&front, PUBLISH, &headers, zipped(&bytes), true).await;
        assert_eq!(answer, INVALID_ARGUMENT);
    }
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_and_truncated_protobuf_is_refused() {
    let front = On::Embedded.gateway().await;
    let queue = front.queue("work").await;
    let whole = to_queue(&queue, text("x")).encode_to_vec();
    // Cut after the routing key it is a request without a message, and nothing else is left whole.
    for end in 1..whole.len() {
        let answer = call(&front, PUBLISH, &[], frame(&whole[..end]), true).await;
        assert_eq!(answer, INVALID_ARGUMENT, "cut at {end}");
    }
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..50 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64).collect();
        for path in [PUBLISH, SUBSCRIBE] {
            assert_eq!(
                call(&front, path, &[], frame(&bytes), true).await,
                INVALID_ARGUMENT,
                "{path} {bytes:?}"
            );
        }
    }
    // A frame that the end of the body cuts, an unknown flag, no frame at all, one too many.
    let twice = [&frame(&whole)[..], &frame(&whole)].concat();
    for body in [
        framed(0, 100, b"x"),
        framed(9, 1, b"x"),
        Bytes::new(),
        twice.into(),
    ] {
        assert_eq!(
            call(&front, PUBLISH, &[], body, true).await,
            INVALID_ARGUMENT
        );
    }
    // As gRPC's specification demands.
    let marked = call(&front, PUBLISH, &[], framed(1, 1, b"x"), true).await;
    let internal = Some(Code::Internal.into());
    assert_eq!(
        marked,
        Answer {
            http: 200,
            grpc: internal
        }
    );
    assert_eq!(front.drain_bodies(&queue).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_request_that_cannot_be_read_ends_the_subscription() {
    let front = On::Embedded.gateway().await;
    let queue = front.queue("work").await;
    // With auto_ack a half-close would keep the stream open: this is none.
    for auto_ack in [false, true] {
        let start = Request::Start(Start {
            auto_ack,
            ..from(&[&queue])
        });
        let start = SubscribeRequest {
            request: Some(start),
        };
        let mut body = frame(&start.encode_to_vec()).to_vec();
        body.extend(frame(b"\xff\xff\xff"));
        assert_eq!(
            call(&front, SUBSCRIBE, &[], body.into(), false).await,
            INVALID_ARGUMENT,
            "{auto_ack}"
        );
    }
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_that_are_over_absurd_or_malformed_do_no_harm() {
    let front = On::Embedded.gateway().await;
    let queue = front.queue("work").await;
    let body = || frame(&to_queue(&queue, text("a")).encode_to_vec());
    let over = Answer {
        http: 200,
        grpc: Some(Code::DeadlineExceeded.into()),
    };
    let fine = Answer {
        http: 200,
        grpc: Some(0),
    };
    for timeout in ["0n", "0S", "1u", "10m"] {
        let answer = call(&front, PUBLISH, &[("grpc-timeout", timeout)], body(), true).await;
        assert_eq!(answer, over, "{timeout}");
    }
    for timeout in [
        "99999999H",
        "99999999S",
        "abc",
        "",
        "-1S",
        "999999999S",
        "1.5S",
    ] {
        let answer = call(&front, PUBLISH, &[("grpc-timeout", timeout)], body(), true).await;
        assert_eq!(answer, fine, "{timeout}");
    }
    // What was refused was not published.
    assert_eq!(front.drain_bodies(&queue).await, vec!["a"; 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_comes_is_answered_at_the_callers_deadline() {
    let front = On::Embedded.gateway().await;
    let began = Instant::now();
    let answer = call(
        &front,
        PUBLISH,
        &[("grpc-timeout", "500m")],
        Bytes::new(),
        false,
    )
    .await;
    assert_eq!(
        answer,
        Answer {
            http: 200,
            grpc: Some(Code::DeadlineExceeded.into())
        }
    );
    assert!(began.elapsed() < Duration::from_millis(1_500));
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_subscribers_that_never_read_leave_others_served() {
    let front = On::Embedded.gateway().await;
    let flooded = front.queue("flooded").await;
    let payload = Some(Payload::Data(vec![0; 100_000].into()));
    for _ in 0..100 {
        let message = Message {
            payload: payload.clone(),
            ..Message::default()
        };
        front
            .publish(to_queue(&flooded, message))
            .await
            .expect("confirmed");
    }
    let mut silent = Vec::new();
    for _ in 0..100 {
        let start = Start {
            ack_deadline: seconds(1),
            ..from(&[&flooded])
        };
        silent.push(front.subscribe(start).await);
    }
    let queue = front.queue("work").await;
    let mut reader = front.subscribe(from(&[&queue])).await;
    for i in 0..100 {
        front.fill(&queue, &[&i.to_string()]).await;
        let delivery = reader.delivery().await;
        assert_eq!(body(&delivery), i.to_string());
    }
    drop(silent);
    front.neighbours_are_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_rpc_is_refused_in_http_terms() {
    let front = On::Embedded.gateway().await;
    let got = raw::http1(&front, "GET", PUBLISH, "", b"").await;
    assert!((400..500).contains(&got.status), "{}", got.head);
    let unknown_method = call(
        &front,
        "/courtier.v1.Publisher/Nothing",
        &[],
        frame(b""),
        true,
    )
    .await;
    assert_eq!(
        unknown_method,
        Answer {
            http: 200,
            grpc: Some(Code::Unimplemented.into())
        }
    );
    let unknown_service = call(
        &front,
        "/courtier.v1.Nothing/Publish",
        &[],
        frame(b""),
        true,
    )
    .await;
    assert_eq!(
        unknown_service,
        Answer {
            http: 200,
            grpc: Some(Code::Unimplemented.into())
        }
    );
    front.neighbours_are_unharmed().await;
}
