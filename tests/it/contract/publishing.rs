//! Publishing: what arrives, where it goes, and what becomes of it.

use super::*;

pub async fn a_message_arrives_with_every_property_and_every_type_of_header(f: Fixture) {
    let nested = table([("deep", Value::Array(vec![Value::Table(Table::new())]))]);
    let mut message = Message {
        message_id: Some("id-1".to_owned()),
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("gzip".to_owned()),
        kind: Some("order.created".to_owned()),
        app_id: Some("shop".to_owned()),
        correlation_id: Some("correlation-1".to_owned()),
        reply_to: Some("answers".to_owned()),
        timestamp: Some(1_700_000_000),
        priority: Some(7),
        ttl_ms: Some(600_000),
        headers: table([
            ("void", Value::Void),
            ("bool", Value::Bool(true)),
            ("i8", Value::I8(i8::MIN)),
            ("u8", Value::U8(u8::MAX)),
            ("i16", Value::I16(i16::MIN)),
            ("u16", Value::U16(u16::MAX)),
            ("i32", Value::I32(i32::MIN)),
            ("u32", Value::U32(u32::MAX)),
            ("i64", Value::I64(i64::MIN)),
            ("f32", Value::F32(-0.15625)),
            ("f64", Value::F64(1e300)),
            (
                "decimal",
                Value::Decimal {
                    scale: 2,
                    value: 12_345,
                },
            ),
            ("text", Value::text("Grüße")),
            ("text of bytes", Value::Text(Bytes::from_static(b"\0\xff"))),
            ("blob", Value::Blob(Bytes::from_static(b"\xfe\0"))),
            ("timestamp", Value::Timestamp(1_700_000_001)),
            ("array", Value::Array(vec![Value::I8(1), Value::text("b")])),
            ("table", Value::Table(nested)),
        ]),
        payload: Bytes::from_static(b"\0\xff\xfe{}\r\n"),
    };
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        bindings: vec![f.binding("orders", "work", "created", &[])],
    })
    .await;
    let (reply, answer) = PublishReply::single();
    let to = Address::new("orders", "created");
    let publish_id = f.hand_over(f.broker.lane(), to, message.clone(), reply);
    assert_eq!(timely(answer).await, Ok(Fate::Confirmed));

    let mut consumer = f.subscribe(&["work"], 1).await;
    let delivery = receive(&mut *consumer).await;
    let publish_id = Value::text(publish_id.to_string());
    message
        .headers
        .insert(header::PUBLISH_ID.to_owned(), publish_id);
    assert_eq!(delivery.message, message);
    assert_eq!(delivery.exchange, f.name("orders"));
    assert_eq!(delivery.routing_key, "created");
    assert_eq!(delivery.queue, 0);
    assert!(!delivery.redelivered);
}

pub async fn payloads_arrive_byte_for_byte(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let mebibyte: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    let payloads = [
        Bytes::new(),
        Bytes::from(mebibyte),
        Bytes::from_static(b"\0"),
    ];
    for payload in &payloads {
        let message = Message {
            payload: payload.clone(),
            ..Message::default()
        };
        assert_eq!(f.publish("", "work", message).await, Fate::Confirmed);
    }
    let drained = f.drain("work").await;
    let arrived: Vec<_> = drained.iter().map(|d| d.message.payload.clone()).collect();
    assert!(arrived == payloads, "the payloads differ");
}

pub async fn a_mandatory_message_that_no_queue_takes_is_unroutable(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        bindings: vec![f.binding("orders", "work", "created", &[])],
    })
    .await;
    let fate = f.publish("orders", "deleted", text("a")).await;
    assert_eq!(fate, Fate::Unroutable);
    let fate = f.publish("", "no such queue", text("b")).await;
    assert_eq!(fate, Fate::Unroutable);
    assert_eq!(f.drain_bodies("work").await, [""; 0]);
}

pub async fn a_message_that_may_be_dropped_is_confirmed_without_a_queue(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Topic)],
        ..Topology::default()
    })
    .await;
    let (reply, answer) = PublishReply::single();
    let to = Address {
        mandatory: false,
        ..Address::new("orders", "created")
    };
    f.hand_over(f.broker.lane(), to, text("a"), reply);
    assert_eq!(timely(answer).await, Ok(Fate::Confirmed));
}

pub async fn the_default_exchange_routes_to_the_queue_of_that_name(f: Fixture) {
    f.declare_queues([f.queue("a"), f.queue("b")]).await;
    f.fill("a", &["to a"]).await;
    assert_eq!(f.drain_bodies("b").await, [""; 0]);
    let drained = f.drain("a").await;
    assert_eq!(bodies(&drained), ["to a"]);
    assert_eq!(drained[0].exchange, "");
    assert_eq!(drained[0].routing_key, f.name("a"));
}

/// A binding of the only exchange: queue, key and arguments.
type Bound<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// Declares an exchange with these bindings, publishes, and tells which bodies each queue got.
async fn routed(
    f: &Fixture,
    kind: ExchangeKind,
    bindings: &[Bound<'_>],
    publishes: Vec<(&str, Message)>,
) -> BTreeMap<String, Vec<String>> {
    let queues: BTreeSet<&str> = bindings.iter().map(|(queue, ..)| *queue).collect();
    let bindings = bindings
        .iter()
        .map(|(queue, key, arguments)| f.binding("exchange", queue, key, arguments));
    f.declare(Topology {
        exchanges: vec![f.exchange("exchange", kind)],
        queues: queues.iter().map(|queue| f.queue(queue)).collect(),
        bindings: bindings.collect(),
    })
    .await;
    for (key, message) in publishes {
        let fate = f.publish("exchange", key, message).await;
        assert_eq!(fate, Fate::Confirmed, "to {key:?}");
    }
    let mut routed = BTreeMap::new();
    for queue in queues {
        routed.insert(queue.to_owned(), f.drain_bodies(queue).await);
    }
    routed
}

/// Publishes each key as its own body.
fn keys<'a>(keys: &[&'a str]) -> Vec<(&'a str, Message)> {
    keys.iter().map(|key| (*key, text(key))).collect()
}

pub async fn a_direct_exchange_routes_by_the_whole_key(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        ("both", "x", &[]),
        ("both", "x.y", &[]),
        ("one", "x.y", &[]),
    ];
    let routed = routed(&f, ExchangeKind::Direct, bindings, keys(&["x", "x.y"])).await;
    assert_eq!(routed["both"], ["x", "x.y"]);
    assert_eq!(routed["one"], ["x.y"]);
}

pub async fn a_topic_exchange_routes_by_words(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        ("star", "order.*", &[]),
        ("hash", "order.#", &[]),
        ("middle", "#.eu.#", &[]),
        ("all", "#", &[]),
        ("all", "order.*", &[]),
    ];
    let sent = ["order", "order.created", "order.eu.created", "eu"];
    let routed = routed(&f, ExchangeKind::Topic, bindings, keys(&sent)).await;
    assert_eq!(routed["star"], ["order.created"]);
    assert_eq!(
        routed["hash"],
        ["order", "order.created", "order.eu.created"]
    );
    assert_eq!(routed["middle"], ["order.eu.created", "eu"]);
    assert_eq!(routed["all"], sent);
}

pub async fn a_fanout_exchange_routes_to_all_its_queues(f: Fixture) {
    let bindings: &[Bound<'_>] = &[("a", "", &[]), ("b", "key", &[])];
    let routed = routed(&f, ExchangeKind::Fanout, bindings, keys(&["", "other"])).await;
    assert_eq!(routed["a"], ["", "other"]);
    assert_eq!(routed["b"], ["", "other"]);
}

pub async fn a_headers_exchange_routes_by_headers(f: Fixture) {
    let bindings: &[Bound<'_>] = &[
        (
            "all",
            "",
            &[("x-match", "all"), ("colour", "red"), ("size", "5")],
        ),
        (
            "any",
            "",
            &[("x-match", "any"), ("colour", "red"), ("size", "5")],
        ),
        ("rest", "", &[("x-match", "all")]),
    ];
    let with = |body: &str, headers| {
        let message = text(body);
        ("", Message { headers, ..message })
    };
    let (red, five) = (Value::text("red"), Value::text("5"));
    let publishes = vec![
        with("both", table([("colour", red.clone()), ("size", five)])),
        with("number", table([("size", Value::I32(5))])),
        with("colour", table([("colour", red)])),
    ];
    let routed = routed(&f, ExchangeKind::Headers, bindings, publishes).await;
    assert_eq!(routed["all"], ["both"]);
    assert_eq!(routed["any"], ["both", "colour"]);
    assert_eq!(routed["rest"], ["both", "number", "colour"]);
}

/// A fanout exchange `both` and a direct one `one` over the queues `roomy` and `small`; `small` holds one message at
/// most.
async fn declare_roomy_and_small(f: &Fixture) {
    let small = Queue {
        max_length: Some(1),
        ..f.queue("small")
    };
    f.declare(Topology {
        exchanges: vec![
            f.exchange("both", ExchangeKind::Fanout),
            f.exchange("one", ExchangeKind::Direct),
        ],
        queues: vec![f.queue("roomy"), small],
        bindings: vec![
            f.binding("both", "roomy", "", &[]),
            f.binding("both", "small", "", &[]),
            f.binding("one", "roomy", "roomy", &[]),
            f.binding("one", "small", "small", &[]),
        ],
    })
    .await;
}

pub async fn a_full_queue_refuses_while_its_neighbour_stores(f: Fixture) {
    declare_roomy_and_small(&f).await;
    assert_eq!(f.publish("both", "", text("a")).await, Fate::Confirmed);
    assert_eq!(f.publish("both", "", text("b")).await, Fate::Rejected);
    assert_eq!(f.drain_bodies("small").await, ["a"]);
    assert_eq!(f.drain_bodies("roomy").await, ["a", "b"]);
    // It takes messages again, once there is room.
    assert_eq!(f.publish("both", "", text("c")).await, Fate::Confirmed);
}

pub async fn a_full_quorum_queue_refuses_in_the_end(f: Fixture) {
    let limit = 5;
    f.declare_queues([Queue {
        kind: QueueKind::Quorum,
        max_length: Some(limit as u64),
        ..f.queue("work")
    }])
    .await;
    let mut stored = 0;
    loop {
        match f.publish("", "work", text("a")).await {
            Fate::Confirmed => stored += 1,
            Fate::Rejected => break,
            fate => panic!("{fate:?}"),
        }
        let most = limit + f.traits.quorum_overshoot;
        assert!(stored <= most, "{stored} stored and none refused");
    }
    assert!(stored >= limit, "refused after {stored}");
    // A refused message is not stored.
    assert_eq!(f.drain("work").await.len(), stored);
}

pub async fn every_one_of_many_concurrent_publishes_gets_its_own_fate(f: Fixture) {
    const KINDS: [(&str, &str, Fate); 4] = [
        ("one", "roomy", Fate::Confirmed),
        ("one", "nobody", Fate::Unroutable),
        ("one", "small", Fate::Rejected),
        ("both", "", Fate::Rejected),
    ];
    declare_roomy_and_small(&f).await;
    f.fill("small", &["first"]).await;
    let mut publishes = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let f = f.clone();
        publishes.spawn(async move {
            let (exchange, key, expected) = KINDS[number % KINDS.len()];
            let fate = f.publish(exchange, key, text(&number.to_string())).await;
            (number, fate, expected)
        });
    }
    let mut wrong = publishes.join_all().await;
    wrong.retain(|(_, fate, expected)| fate != expected);
    assert_eq!(wrong, [], "number, fate, expected fate");

    let stored: BTreeSet<String> = f.drain_bodies("roomy").await.into_iter().collect();
    let expected = (0..1000).filter(|number| [0, 3].contains(&(number % KINDS.len())));
    assert_eq!(stored, expected.map(|number| number.to_string()).collect());
    assert_eq!(f.drain_bodies("small").await, ["first"]);
}

pub async fn a_missing_exchange_is_not_found(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        ..Topology::default()
    })
    .await;
    let check = async |exchange: &str| {
        let deadline = Instant::now() + PATIENCE;
        let target = Target {
            exchange,
            routing_key: "any",
            size: 1,
        };
        timely(f.broker.check(target, deadline)).await
    };
    check("").await.expect("the default exchange is there");
    check(&f.name("orders")).await.expect("it was declared");
    let missing = f.name("missing");
    match check(&missing).await {
        Err(Error::NotFound { what, name }) => {
            assert_eq!((what, name), (Entity::Exchange, missing));
        }
        other => panic!("{other:?}"),
    }
}

pub async fn a_missing_queue_is_not_found(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    f.fill("work", &["a"]).await;
    match f.try_subscribe(&["work", "missing"], 1).await {
        Err(Error::NotFound { what, name }) => {
            assert_eq!((what, name), (Entity::Queue, f.name("missing")));
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("subscribed to a missing queue"),
    }
    // What the other queue may have handed out meanwhile is back.
    let mut consumer = f.subscribe(&["work"], 1).await;
    assert_eq!(body(&receive(&mut *consumer).await), "a");
}

pub async fn a_binding_to_something_missing_is_not_found(f: Fixture) {
    f.declare(Topology {
        exchanges: vec![f.exchange("orders", ExchangeKind::Direct)],
        queues: vec![f.queue("work")],
        ..Topology::default()
    })
    .await;
    for (exchange, queue) in [("orders", "missing"), ("missing", "work")] {
        let bindings = vec![f.binding(exchange, queue, "key", &[])];
        let topology = Topology {
            bindings,
            ..Topology::default()
        };
        let answer = f.try_declare(topology).await;
        assert!(matches!(answer, Err(Error::NotFound { .. })), "{answer:?}");
    }
}

pub async fn messages_of_one_lane_keep_their_order(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    let (answers, mut inbox) = mpsc::unbounded_channel();
    let lanes = [f.broker.lane(), f.broker.lane()];
    for number in 0..200 {
        let lane = lanes[number % 2];
        let reply = PublishReply::keyed(number, &answers);
        let message = text(&number.to_string());
        f.hand_over(lane, Address::new("", "work"), message, reply);
    }
    for _ in 0..200 {
        let (number, fate) = timely(inbox.recv()).await.expect("every reply answers");
        assert_eq!(fate, Fate::Confirmed, "{number}");
    }
    let drained = f.drain_bodies("work").await;
    let numbers = drained.iter().map(|body| body.parse().expect("a number"));
    // The two lanes may overtake each other.
    let (even, odd): (Vec<u32>, Vec<u32>) =
        numbers.partition(|number: &u32| number.is_multiple_of(2));
    assert_eq!(even, (0..200).step_by(2).collect::<Vec<_>>());
    assert_eq!(odd, (1..200).step_by(2).collect::<Vec<_>>());
}

pub async fn a_publish_that_is_late_already_is_not_sent(f: Fixture) {
    f.declare_queues([f.queue("work")]).await;
    // The same one for all, and open when the late ones come.
    let lane = f.broker.lane();
    let publish = |body, deadline| {
        let (reply, answer) = PublishReply::single();
        let publish = Publish {
            publish_id: Uuid::now_v7(),
            exchange: String::new(),
            routing_key: f.name("work"),
            mandatory: true,
            message: text(body),
            deadline,
            admission: None,
            checked: Checked::default(),
        };
        f.broker.publish(lane, publish, reply);
        answer
    };
    let now = Instant::now();
    let first = publish("first", now + PATIENCE);
    assert_eq!(timely(first).await, Ok(Fate::Confirmed));
    let late: Vec<_> = (0..20).map(|_| publish("late", now)).collect();
    let last = publish("last", now + PATIENCE);
    for answer in late {
        let fate = timely(answer).await.expect("a reply always answers");
        assert_eq!(fate, Fate::NotSent(NotSent::Overloaded));
    }
    assert_eq!(timely(last).await, Ok(Fate::Confirmed));
    assert_eq!(f.drain_bodies("work").await, ["first", "last"]);
}
