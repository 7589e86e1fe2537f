//! The part of a failing load that knows nothing of the gateway: a publisher and a consumer that speak AMQP themselves.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        BasicRejectOptions, ConfirmSelectOptions,
    },
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable},
};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    failed_books::payload,
    failed_load::{CONFIRMED, NATIVE, Shared, WORK, in_time, pause},
};

/// The `app_id` of what is published here.
pub const APP: &str = "native";

/// Headers of types that the gateway's own API does not have, nested.
fn headers(id: Uuid) -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut deep = FieldTable::default();
    deep.insert("id".into(), text(&id.to_string()));
    deep.insert("void".into(), AMQPValue::Void);
    deep.insert("bytes".into(), AMQPValue::ByteArray(vec![0, 0xff].into()));
    let list = vec![
        AMQPValue::ShortShortUInt(200),
        AMQPValue::FieldTable(deep.clone()),
        AMQPValue::Timestamp(1_700_000_000),
    ];
    let decimal = DecimalValue {
        scale: 2,
        value: 1_234,
    };
    let mut headers = FieldTable::default();
    headers.insert("small".into(), AMQPValue::ShortInt(-300));
    headers.insert("decimal".into(), AMQPValue::DecimalValue(decimal));
    headers.insert("list".into(), AMQPValue::FieldArray(FieldArray::from(list)));
    headers.insert("nested".into(), AMQPValue::FieldTable(deep));
    headers
}

/// The same, as the gateway shows them to its consumers.
pub fn headers_as_struct(id: Uuid) -> Struct {
    let table = |fields: BTreeMap<&str, Kind>| Struct {
        fields: fields
            .into_iter()
            .map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }))
            .collect(),
    };
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let deep = table(BTreeMap::from([
        ("id", text(&id.to_string())),
        ("void", Kind::NullValue(0)),
        ("bytes", text("AP8=")),
    ]));
    let list = [
        Kind::NumberValue(200.0),
        Kind::StructValue(deep.clone()),
        text("2023-11-14T22:13:20Z"),
    ];
    let values = list.map(|kind| Value { kind: Some(kind) }).to_vec();
    table(BTreeMap::from([
        ("small", Kind::NumberValue(-300.0)),
        ("decimal", Kind::NumberValue(12.34)),
        ("list", Kind::ListValue(ListValue { values })),
        ("nested", Kind::StructValue(deep)),
    ]))
}

async fn open(url: &str) -> Option<(Connection, Channel)> {
    let connection = in_time(Connection::connect(url, Default::default()))
        .await?
        .ok()?;
    let channel = in_time(connection.create_channel()).await?.ok()?;
    Some((connection, channel))
}

/// Publishes to queues of both sorts, one after the other; again after each loss of the connection.
pub async fn publish(shared: Arc<Shared>, url: String, stop: CancellationToken) {
    while pause(200, &stop).await {
        if let Some((_connection, channel)) = open(&url).await {
            publish_on(&shared, &channel, &stop).await;
        }
    }
}

async fn publish_on(shared: &Shared, channel: &Channel, stop: &CancellationToken) -> Option<()> {
    let select = channel.confirm_select(ConfirmSelectOptions::default());
    in_time(select).await?.ok()?;
    while pause(100, stop).await {
        let (id, queue) = (Uuid::new_v4(), [NATIVE, WORK[0]][fastrand::usize(..2)]);
        shared.books().sending(id, queue, true);
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.to_string().into())
            .with_app_id(APP.into())
            .with_headers(headers(id));
        let body = payload(id);
        let publish = async {
            let options = BasicPublishOptions::default();
            let published =
                channel.basic_publish("".into(), queue.into(), options, &body, properties);
            published.await?.await
        };
        let confirmed = in_time(publish).await?.ok()?;
        if matches!(confirmed, Confirmation::Ack(None)) {
            shared.books().published(id, CONFIRMED, "");
        }
    }
    Some(())
}

/// Rejects most of what comes for the first time, and half of the retries; again after each loss of the connection.
pub async fn consume(shared: Arc<Shared>, url: String, stop: CancellationToken) {
    while pause(200, &stop).await {
        if let Some((_connection, channel)) = open(&url).await {
            stop.run_until_cancelled(consume_on(&shared, &channel))
                .await;
        }
    }
}

async fn consume_on(shared: &Shared, channel: &Channel) -> Option<()> {
    let prefetch = channel.basic_qos(50, BasicQosOptions::default());
    in_time(prefetch).await?.ok()?;
    let consumer = channel.basic_consume(
        NATIVE.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut consumer = in_time(consumer).await?.ok()?;
    // A connection that died in a kill may never say so: after a while without deliveries it is opened anew.
    while let Some(Ok(delivery)) = in_time(consumer.next()).await? {
        in_time(settle(shared, delivery)).await??;
    }
    None
}

async fn settle(shared: &Shared, delivery: Delivery) -> Option<()> {
    let properties = &delivery.properties;
    let id = properties.message_id().as_ref().expect("each has one");
    let id = Uuid::parse_str(id.as_str()).expect("one of ours");
    assert!(delivery.data == payload(id), "{id}: other bytes");
    let given = properties.headers().clone().unwrap_or_default();
    let (mut own, mut added) = (FieldTable::default(), BTreeMap::new());
    for (name, value) in given.inner() {
        if name.as_str().starts_with("x-courtier-")
            || courtier::message::header::COUNTERS.contains(&name.as_str())
        {
            added.insert(name.as_str().to_owned(), value.clone());
        } else {
            own.insert(name.clone(), value.clone());
        }
    }
    if properties
        .app_id()
        .as_ref()
        .is_some_and(|app| app.as_str() == APP)
    {
        assert_eq!(own, headers(id), "{id}: other headers");
    }
    let text = |name: &str| match added.get(name) {
        Some(AMQPValue::LongString(text)) => Uuid::parse_str(&text.to_string()).ok(),
        _ => None,
    };
    let attempt = added.get("x-courtier-attempt");
    let attempt = attempt.and_then(AMQPValue::as_long_long_int).unwrap_or(1);
    let attempt = u32::try_from(attempt).expect("a small number");
    let retry = text("x-courtier-failed-id").map(|row| (row, attempt));
    shared
        .books()
        .delivered(id, NATIVE, retry, delivery.redelivered);
    let ack = shared.is_calm() || fastrand::u32(..100) < if retry.is_some() { 50 } else { 35 };
    if ack {
        shared.books().acked(id, attempt);
        delivery.ack(BasicAckOptions::default()).await.ok()?;
    } else {
        let reject = BasicRejectOptions { requeue: false };
        delivery.reject(reject).await.ok()?;
    }
    Some(())
}
