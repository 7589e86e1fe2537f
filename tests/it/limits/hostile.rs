//! Hostile messages, names and limits, and the answer that each must get (the table in the security notes). After each group a
//! neighbour's publish works. What the API has no field for (user_id, delivery mode) no client can set.
//! Hostile starts and ack ids are in `subscribe.rs` and `settle.rs`, bytes that are no protobuf in `wire.rs`.

use courtier::grpc::proto::{Message, PublishRequest, message::Payload};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::Code;

use crate::fates::of;
use crate::front::{Front, On, Stream, fault, from, on_both, refusal, refused, text, to_queue};

on_both! {
    names_that_could_be_mistaken_for_others_are_refused
    names_of_255_bytes_work_and_longer_ones_are_refused
    the_brokers_own_names_are_forbidden
    headers_that_the_broker_would_act_on_are_refused_and_reach_no_other_queue
    properties_out_of_range_are_refused
    a_direct_reply_is_refused_and_disturbs_nobody
    headers_without_measure_are_refused
    payloads_up_to_the_limit_pass_and_larger_ones_do_not
}

async fn publish(front: &Front, exchange: &str, routing_key: &str) -> (Code, String) {
    let exchange = exchange.to_owned();
    refusal(
        front
            .publish(PublishRequest {
                exchange,
                ..to_queue(routing_key, text("x"))
            })
            .await,
    )
}

async fn names_that_could_be_mistaken_for_others_are_refused(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("q\u{e9}").await;
    // RabbitMQ would strip CR and LF, and take the empty name for the queue declared last; the others only look alike.
    let twin = queue.replace('\u{e9}', "e\u{301}");
    let lookalikes = [
        "\r", "\n", "\0", "\u{7f}", "\u{202e}", "\u{200b}", "\u{feff}", " ", "\u{a0}",
    ]
    .map(|mark| format!("{queue}{mark}"));
    let leading = format!(" {queue}");
    let names = lookalikes
        .iter()
        .map(String::as_str)
        .chain(["", &*twin, &*leading]);
    for name in names {
        let expected = refused(Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(
            refusal(Stream::open(&front, from(&[name])).await),
            expected,
            "{name:?}"
        );
        let expected = refused(Code::InvalidArgument, "INVALID_MESSAGE");
        assert_eq!(publish(&front, "", name).await, expected, "{name:?}");
        if !name.is_empty() {
            assert_eq!(publish(&front, name, "k").await, expected, "{name:?}");
        }
    }
    let exchange = front.exchange("e", "k", &[&queue]).await;
    assert_eq!(
        publish(&front, &exchange, "k\r\n").await,
        refused(Code::InvalidArgument, "INVALID_MESSAGE")
    );
    front.neighbours_are_unharmed().await;
}

async fn names_of_255_bytes_work_and_longer_ones_are_refused(on: On) {
    let front = on.gateway().await;
    let long = |bytes: usize| "n".repeat(bytes - front.name("").len());
    let queue = front.queue(&long(255)).await;
    assert_eq!(queue.len(), 255);
    front.fill(&queue, &["a"]).await;
    assert_eq!(front.drain_bodies(&queue).await, ["a"]);
    let exchange = front
        .exchange(&long(254), &"k".repeat(255), &[&queue])
        .await;
    let request = PublishRequest {
        exchange: exchange.clone(),
        ..to_queue(&"k".repeat(255), text("b"))
    };
    front.publish(request).await.expect("confirmed");
    for bytes in [256, 65_536] {
        let name = "n".repeat(bytes);
        let expected = refused(Code::InvalidArgument, "INVALID_MESSAGE");
        assert_eq!(publish(&front, &name, "k").await, expected);
        assert_eq!(publish(&front, &exchange, &name).await, expected);
        let opened = Stream::open(&front, from(&[&name])).await;
        assert_eq!(
            refusal(opened),
            refused(Code::InvalidArgument, "INVALID_REQUEST")
        );
    }
    front.neighbours_are_unharmed().await;
}

async fn the_brokers_own_names_are_forbidden(on: On) {
    let front = on.gateway().await;
    let forbidden = refused(Code::PermissionDenied, "FORBIDDEN");
    // The same for what exists on RabbitMQ and for what does not.
    for name in ["amq.rabbitmq.log", "amq.rabbitmq.trace", "amq.nothing"] {
        assert_eq!(publish(&front, name, "k").await, forbidden, "{name}");
    }
    // An address is published to, for replies; nobody else's is waited at.
    let address =
        "amq.rabbitmq.reply-to.g1h2AAtyZXBseUAxMjM0NQAAArEAAAAAAAAAAQ==.y06hL4AQXszB5Cjg7m5rVQ==";
    let here = "amq.rabbitmq.reply-to";
    assert_eq!(publish(&front, "", here).await, forbidden);
    for name in [here, "amq.rabbitmq.reply-to.g2dkAA==", address] {
        assert_eq!(
            refusal(Stream::open(&front, from(&[name])).await),
            forbidden,
            "{name}"
        );
    }
    let of_another_client = refusal(Stream::open(&front, from(&["amq.gen-1"])).await);
    assert_eq!(of_another_client, forbidden);
    front.neighbours_are_unharmed().await;
}

fn string(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

fn number(number: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(number)),
    }
}

fn list(values: Vec<Value>) -> Value {
    Value {
        kind: Some(Kind::ListValue(ListValue { values })),
    }
}

fn with_headers(fields: impl IntoIterator<Item = (String, Value)>) -> Message {
    Message {
        headers: Some(Struct {
            fields: fields.into_iter().collect(),
        }),
        ..text("x")
    }
}

async fn headers_that_the_broker_would_act_on_are_refused_and_reach_no_other_queue(on: On) {
    let front = on.gateway().await;
    let (queue, victim) = (front.queue("work").await, front.queue("victim").await);
    let names = [
        "CC",
        "BCC",
        "x-death",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-delivery-count",
        "x-acquired-count",
        "x-courtier-publish-id",
        "x-courtier-attempt",
        "X-Courtier-Failed-Id",
        "x-delay",
        "x-opt-deliver-by",
    ];
    for name in names {
        for value in [string(&victim), list(vec![string(&victim)]), number(1.0)] {
            let message = with_headers([(name.to_owned(), value)]);
            let answer = refusal(front.publish(to_queue(&queue, message)).await);
            assert_eq!(
                answer,
                refused(Code::InvalidArgument, "RESERVED_HEADER"),
                "{name}"
            );
        }
    }
    // Not names that RabbitMQ acts on.
    front
        .publish(to_queue(
            &queue,
            with_headers([("cc".to_owned(), list(vec![string(&victim)]))]),
        ))
        .await
        .expect("confirmed");
    assert_eq!(front.drain_bodies(&victim).await, [""; 0]);
    assert_eq!(front.drain_bodies(&queue).await, ["x"]);
}

async fn properties_out_of_range_are_refused(on: On) {
    use prost_types::{Duration as Ttl, Timestamp};
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let ttls = [
        (-1, 0),
        (0, -1),
        (1_000_000_000_000, 0),
        (i64::MAX, i32::MAX),
        (i64::MIN, i32::MIN),
    ];
    let ttls = ttls.map(|(seconds, nanos)| Message {
        ttl: Some(Ttl { seconds, nanos }),
        ..text("x")
    });
    let times = [-1, 253_402_300_800, i64::MAX, i64::MIN];
    let times = times.map(|seconds| Message {
        timestamp: Some(Timestamp { seconds, nanos: 0 }),
        ..text("x")
    });
    let priorities = [256, u32::MAX].map(|priority| Message {
        priority,
        ..text("x")
    });
    let texts = ["x".repeat(256), "a\r\nb".to_owned(), "a\0".to_owned()];
    let texts = texts.map(|bad| Message {
        correlation_id: bad,
        ..text("x")
    });
    for message in ttls.into_iter().chain(times).chain(priorities).chain(texts) {
        let answer = refusal(front.publish(to_queue(&queue, message.clone())).await);
        assert_eq!(
            answer,
            refused(Code::InvalidArgument, "INVALID_MESSAGE"),
            "{message:?}"
        );
    }
    front.neighbours_are_unharmed().await;
}

/// RabbitMQ closes the channel that such a message comes on.
async fn a_direct_reply_is_refused_and_disturbs_nobody(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let direct = Message {
        reply_to: "amq.rabbitmq.reply-to".into(),
        ..text("x")
    };
    let status = front
        .publish(to_queue(&queue, direct))
        .await
        .expect_err("refused");
    assert_eq!(
        (status.code(), fault(&status).field),
        (Code::InvalidArgument, "message.reply_to".to_owned())
    );
    front.neighbours_are_unharmed().await;
}

async fn headers_without_measure_are_refused(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let nested = |levels: usize| (0..levels).fold(string("x"), |inner, _| list(vec![inner]));
    let deep = |levels| [("h".to_owned(), nested(levels))];
    let many = |count: i32| (0..count).map(|i| (i.to_string(), number(i.into())));
    let allowed = [
        with_headers(many(64)),
        with_headers(deep(3)),
        with_headers([("h".into(), string(&"x".repeat(16_000)))]),
    ];
    for message in allowed {
        front
            .publish(to_queue(&queue, message))
            .await
            .expect("confirmed");
    }
    let refused_ones = [
        with_headers(many(65)),
        with_headers(many(10_000)),
        with_headers([("h".to_owned(), list(vec![number(1.0); 10_000]))]),
        with_headers([("h".to_owned(), string(&"x".repeat(1 << 20)))]),
        with_headers([("h".repeat(256), number(1.0))]),
        with_headers([("a\0".to_owned(), number(1.0))]),
        with_headers(deep(4)),
        with_headers(deep(40)),
        with_headers([("h".to_owned(), number(f64::NAN))]),
        with_headers([("h".to_owned(), list(vec![number(f64::INFINITY)]))]),
    ];
    for (i, message) in refused_ones.into_iter().enumerate() {
        let answer = refusal(front.publish(to_queue(&queue, message)).await);
        assert_eq!(
            answer,
            refused(Code::InvalidArgument, "INVALID_MESSAGE"),
            "{i}"
        );
    }
    // The generated decoder gives up long before.
    let answer = refusal(
        front
            .publish(to_queue(&queue, with_headers(deep(1_000))))
            .await,
    );
    assert_eq!(answer, refused(Code::InvalidArgument, "INVALID_REQUEST"));
    front.neighbours_are_unharmed().await;
}

async fn payloads_up_to_the_limit_pass_and_larger_ones_do_not(on: On) {
    const LIMIT: usize = 4 * 1024 * 1024;
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let sized = |bytes| {
        let payload = Some(Payload::Data(vec![7; bytes].into()));
        to_queue(
            &queue,
            Message {
                payload,
                ..Message::default()
            },
        )
    };
    front.publish(sized(LIMIT)).await.expect("confirmed");
    let answer = refusal(front.publish(sized(LIMIT + 1)).await);
    assert_eq!(answer, refused(Code::InvalidArgument, "PAYLOAD_TOO_LARGE"));
    // Refused by its announced length, before it is read.
    for bytes in [LIMIT + 100_000, 100 * 1024 * 1024] {
        let refused = front.publish(sized(bytes)).await.expect_err("refused");
        let expected = of(
            Code::InvalidArgument,
            "PAYLOAD_TOO_LARGE",
            "INVALID",
            "request",
            false,
        );
        assert_eq!(Some(fault(&refused)), expected, "{bytes}");
    }
    front.neighbours_are_unharmed().await;
}
