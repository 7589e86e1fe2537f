//! Between the gateway's message and AMQP's properties, type by type: what goes in comes out.

use lapin::{
    BasicProperties,
    types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString},
};

use crate::{
    broker::{Delivery, Error},
    message::{Message, Table, Value},
};

/// AMQP's delivery mode 2: the message survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// The properties of a message, with one more header.
pub(super) fn properties(message: &Message, extra: (&str, String)) -> BasicProperties {
    let mut headers = table(&message.headers);
    headers.insert(extra.0.into(), AMQPValue::LongString(extra.1.into()));
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    macro_rules! set {
        ($($field:expr => $with:ident),* $(,)?) => {
            $(if let Some(text) = &$field { properties = properties.$with(short(text)); })*
        };
    }
    set! {
        message.message_id => with_message_id,
        message.content_type => with_content_type,
        message.content_encoding => with_content_encoding,
        message.kind => with_type,
        message.app_id => with_app_id,
        message.correlation_id => with_correlation_id,
        message.reply_to => with_reply_to,
    }
    if let Some(seconds) = message.timestamp {
        properties = properties.with_timestamp(seconds);
    }
    if let Some(priority) = message.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(ttl_ms) = message.ttl_ms {
        properties = properties.with_expiration(short(&ttl_ms.to_string()));
    }
    properties
}

/// What was delivered from the queue of this index.
pub(super) fn delivery(queue: usize, received: lapin::message::Delivery) -> Delivery {
    Delivery {
        tag: received.delivery_tag,
        queue,
        exchange: received.exchange.to_string(),
        routing_key: received.routing_key.to_string(),
        redelivered: received.redelivered,
        message: message(&received.properties, received.data),
    }
}

/// The message that was delivered.
fn message(properties: &BasicProperties, payload: Vec<u8>) -> Message {
    let text = |field: &Option<ShortString>| field.as_ref().map(|text| text.to_string());
    Message {
        message_id: text(properties.message_id()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        kind: text(properties.kind()),
        app_id: text(properties.app_id()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        timestamp: *properties.timestamp(),
        priority: *properties.priority(),
        // The broker has checked that it is a number of milliseconds below 2^32.
        ttl_ms: text(properties.expiration()).and_then(|text| text.parse().ok()),
        headers: properties
            .headers()
            .as_ref()
            .map(from_table)
            .unwrap_or_default(),
        payload: payload.into(),
    }
}

/// How large the headers are on the wire, at most.
pub(super) fn header_bytes(headers: &Table) -> usize {
    // A name's length, a type and a length go with each.
    let entry = |(name, value): (&String, &Value)| name.len() + 1 + value_bytes(value);
    headers.iter().map(entry).sum()
}

fn value_bytes(value: &Value) -> usize {
    const TYPE_AND_LENGTH: usize = 5;
    TYPE_AND_LENGTH
        + match value {
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Table(table) => header_bytes(table),
            _ => 8,
        }
}

/// Names were checked at the edge; the cut keeps the client library from panicking should one slip through.
fn short(text: &str) -> ShortString {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    ShortString::from(&text[..end])
}

/// What the arguments of a queue or binding may take: the link for administration has small frames, and a method must fit into one.
const MAX_ARGUMENT_BYTES: usize = 4 * 1024;

/// The arguments of a queue or binding. Larger ones would end the connection, longer names be cut.
pub(super) fn arguments(arguments: &Table) -> Result<FieldTable, Error> {
    if header_bytes(arguments) > MAX_ARGUMENT_BYTES {
        let problem = format!("the arguments are larger than {MAX_ARGUMENT_BYTES} bytes");
        return Err(Error::Refused(problem));
    }
    if let Some(name) = arguments.keys().find(|name| name.len() > 255) {
        let problem = format!(
            "an argument's name has {} bytes; at most 255 fit",
            name.len()
        );
        return Err(Error::Refused(problem));
    }
    Ok(table(arguments))
}

/// A table as it is sent.
fn table(table: &Table) -> FieldTable {
    let mut fields = FieldTable::default();
    for (name, value) in table {
        fields.insert(short(name), to_amqp(value));
    }
    fields
}

fn to_amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Void => AMQPValue::Void,
        Value::Bool(v) => AMQPValue::Boolean(*v),
        Value::I8(v) => AMQPValue::ShortShortInt(*v),
        Value::U8(v) => AMQPValue::ShortShortUInt(*v),
        Value::I16(v) => AMQPValue::ShortInt(*v),
        Value::U16(v) => AMQPValue::ShortUInt(*v),
        Value::I32(v) => AMQPValue::LongInt(*v),
        Value::U32(v) => AMQPValue::LongUInt(*v),
        Value::I64(v) => AMQPValue::LongLongInt(*v),
        Value::F32(v) => AMQPValue::Float(*v),
        Value::F64(v) => AMQPValue::Double(*v),
        Value::Decimal { scale, value } => AMQPValue::DecimalValue(DecimalValue {
            scale: *scale,
            value: value.cast_unsigned(),
        }),
        Value::Text(bytes) => AMQPValue::LongString(LongString::from(bytes.to_vec())),
        Value::Blob(bytes) => AMQPValue::ByteArray(ByteArray::from(bytes.to_vec())),
        Value::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Value::Array(values) => AMQPValue::FieldArray(FieldArray::from(
            values.iter().map(to_amqp).collect::<Vec<_>>(),
        )),
        Value::Table(values) => AMQPValue::FieldTable(table(values)),
    }
}

fn from_table(fields: &FieldTable) -> Table {
    fields
        .inner()
        .iter()
        .map(|(name, value)| (name.to_string(), from_amqp(value)))
        .collect()
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Void => Value::Void,
        AMQPValue::Boolean(v) => Value::Bool(*v),
        AMQPValue::ShortShortInt(v) => Value::I8(*v),
        AMQPValue::ShortShortUInt(v) => Value::U8(*v),
        AMQPValue::ShortInt(v) => Value::I16(*v),
        AMQPValue::ShortUInt(v) => Value::U16(*v),
        AMQPValue::LongInt(v) => Value::I32(*v),
        AMQPValue::LongUInt(v) => Value::U32(*v),
        AMQPValue::LongLongInt(v) => Value::I64(*v),
        AMQPValue::Float(v) => Value::F32(*v),
        AMQPValue::Double(v) => Value::F64(*v),
        AMQPValue::DecimalValue(DecimalValue { scale, value }) => Value::Decimal {
            scale: *scale,
            value: value.cast_signed(),
        },
        // RabbitMQ itself never sends this type; it means the same as a long string.
        AMQPValue::ShortString(text) => Value::text(text.as_str()),
        AMQPValue::LongString(bytes) => Value::Text(bytes.as_bytes().to_vec().into()),
        AMQPValue::ByteArray(bytes) => Value::Blob(bytes.as_slice().to_vec().into()),
        AMQPValue::Timestamp(seconds) => Value::Timestamp(*seconds),
        AMQPValue::FieldArray(values) => {
            Value::Array(values.as_slice().iter().map(from_amqp).collect())
        }
        AMQPValue::FieldTable(fields) => Value::Table(from_table(fields)),
    }
}
