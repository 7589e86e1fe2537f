//! What goes in comes out: any message, through the real broker and back, is the same.

use std::sync::Arc;

use bytes::Bytes;
use courtier::{
    broker::{
        Broker, Checked, Fate, NotSent, Publish, PublishReply, Subscribe, Subscription,
        topology::{Queue, QueueKind, Topology},
    },
    message::{Message, Table, Value, header},
};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::harness::{PATIENCE, connect};

/// Any bytes of an AMQP short string: UTF-8 up to 255 bytes, which the gateway gives native types as text.
fn short_text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ".{0,20}",
        1 => "[a-z]{255}",
        1 => Just(String::new()),
    ]
}

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

/// A value of any type. Erlang has no number that is not finite, and RabbitMQ closes the connection on one.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Void),
        any::<bool>().prop_map(Value::Bool),
        any::<i8>().prop_map(Value::I8),
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u16>().prop_map(Value::U16),
        any::<i32>().prop_map(Value::I32),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        (any::<u8>(), any::<i32>()).prop_map(|(scale, value)| Value::Decimal { scale, value }),
        ".{0,20}".prop_map(Value::text),
        bytes(20).prop_map(Value::Text),
        bytes(20).prop_map(Value::Blob),
        any::<u64>().prop_map(Value::Timestamp),
    ];
    leaf.prop_recursive(4, 48, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            table(inner).prop_map(Value::Table),
        ]
    })
}

fn table(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Table> {
    // Two names that the broker itself looks into.
    let name = short_text().prop_filter("routes copies", |name| name != "CC" && name != "BCC");
    prop::collection::btree_map(name, value, 0..8)
}

prop_compose! {
    fn message()(
        texts in prop::collection::vec(prop::option::of(short_text()), 7),
        timestamp in any::<Option<u64>>(),
        priority in any::<Option<u8>>(),
        // Long enough to be delivered before.
        ttl_ms in prop::option::of(600_000..=u32::MAX),
        headers in table(value()),
        payload in prop_oneof![4 => bytes(200), 1 => bytes(300_000)],
    ) -> Message {
        let mut texts = texts.into_iter();
        let mut text = || texts.next().flatten();
        Message {
            message_id: text(),
            content_type: text(),
            content_encoding: text(),
            kind: text(),
            app_id: text(),
            correlation_id: text(),
            reply_to: text(),
            timestamp,
            priority,
            ttl_ms,
            headers,
            payload,
        }
    }
}

async fn publish(broker: &dyn Broker, publish_id: Uuid, queue: &str, message: Message) -> Fate {
    let (reply, fate) = PublishReply::single();
    let publish = Publish {
        publish_id,
        exchange: String::new(),
        routing_key: queue.to_owned(),
        mandatory: true,
        message,
        deadline: Instant::now() + PATIENCE,
        admission: None,
        checked: Checked::default(),
    };
    broker.publish(broker.lane(), publish, reply);
    fate.await.expect("answered")
}

async fn there_and_back(
    broker: &dyn Broker,
    back: &mut dyn Subscription,
    queue: &str,
    message: Message,
) -> Message {
    let publish_id = Uuid::now_v7();
    let fate = publish(broker, publish_id, queue, message).await;
    assert_eq!(fate, Fate::Confirmed);
    let delivery = timeout(PATIENCE, back.next())
        .await
        .expect("it comes")
        .expect("the subscription goes on");
    back.ack(&[delivery.tag]).await.expect("acked");
    let mut message = delivery.message;
    let extra = message.headers.remove(header::PUBLISH_ID);
    assert_eq!(extra, Some(Value::text(publish_id.to_string())));
    message
}

async fn queue() -> (Arc<dyn Broker>, String, Box<dyn Subscription>) {
    let broker: Arc<dyn Broker> = connect().await;
    let queue = format!("it-{}-conversions", Uuid::now_v7());
    let topology = Topology {
        queues: vec![Queue::bare(&queue, QueueKind::Classic)],
        ..Topology::default()
    };
    assert_eq!(broker.declare(&topology).await.expect("declared"), []);
    let subscribe = Subscribe::new(vec![queue.clone()], 1, &queue, Instant::now() + PATIENCE);
    let back = broker.subscribe(subscribe).await.expect("the queue exists");
    (broker, queue, back)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn any_message_comes_back_as_it_was_sent() {
    let (broker, queue, mut back) = queue().await;
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let back = std::cell::RefCell::new(&mut back);
        let law = |message: Message| {
            let mut back = back.borrow_mut();
            let returned = runtime.block_on(there_and_back(
                &*broker,
                &mut ***back,
                &queue,
                message.clone(),
            ));
            prop_assert_eq!(returned, message);
            Ok(())
        };
        let config = ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(100)
        };
        TestRunner::new(config)
            .run(&message(), law)
            .unwrap_or_else(|failure| panic!("{failure}"));
    });
    back.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs RabbitMQ: run make test"]
async fn headers_up_to_a_frame_pass_and_larger_ones_are_not_sent_and_harm_nobody() {
    let (broker, queue, mut back) = queue().await;
    let with_header = |bytes: usize| Message {
        headers: Table::from([("native".to_owned(), Value::Blob(vec![7; bytes].into()))]),
        ..Message::default()
    };
    let large = with_header(119 * 1024);
    let returned = there_and_back(&*broker, &mut *back, &queue, large.clone()).await;
    assert_eq!(returned, large);
    let mut links = broker.links();
    links.mark_unchanged();
    for bytes in [121 * 1024, 200 * 1024] {
        let fate = publish(&*broker, Uuid::now_v7(), &queue, with_header(bytes)).await;
        assert_eq!(fate, Fate::NotSent(NotSent::HeadersTooLarge));
    }
    let returned = there_and_back(&*broker, &mut *back, &queue, Message::default()).await;
    assert_eq!(returned, Message::default());
    assert!(!links.has_changed().expect("open"), "a link broke");
    back.close().await;
}
