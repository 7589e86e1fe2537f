//! Between the API's messages and the gateway's.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost_types::{ListValue, Struct, Timestamp, Value as Json, value::Kind};

use super::proto::{self, PublishRequest, message::Payload};
use crate::{
    gateway::{
        publisher::{Outgoing, Published},
        validate::{self, Invalid},
    },
    message::{Message, Table, Value, header},
};

/// The last second that `google.protobuf.Timestamp` may hold. Others are refused by clients that print it as JSON.
const YEAR_9999: i64 = 253_402_300_799;
/// RabbitMQ's longest time to live, in milliseconds (<https://www.rabbitmq.com/docs/ttl>).
const MAX_TTL_MS: u128 = u32::MAX as u128;

/// A publish as the gateway takes it. The error is the publish's fate.
pub fn outgoing(request: PublishRequest) -> Result<Outgoing, Published> {
    let Some(message) = request.message else {
        let missing = Invalid::field("message", "must be set");
        return Err(Published::refused(None, missing));
    };
    let message_id = message.message_id.clone();
    let message =
        incoming(message).map_err(|invalid| Published::refused(Some(message_id), invalid))?;
    Ok(Outgoing {
        exchange: request.exchange,
        routing_key: request.routing_key,
        message,
        allow_unroutable: request.allow_unroutable,
        origin: None,
    })
}

/// The publish-id as text; empty when there is none.
pub fn publish_id(published: &Published) -> String {
    let id = published.publish_id.map(|id| id.hyphenated().to_string());
    id.unwrap_or_default()
}

/// A message as the gateway takes it.
pub fn incoming(message: proto::Message) -> Result<Message, Invalid> {
    let some = |text: String| (!text.is_empty()).then_some(text);
    let mut content_type = some(message.content_type);
    let payload = match message.payload {
        None => Bytes::new(),
        Some(Payload::Data(data)) => data,
        Some(Payload::Text(text)) => text.into(),
        Some(Payload::Json(json)) => {
            content_type.get_or_insert_with(|| "application/json".to_owned());
            let json =
                json_text(&json).map_err(|problem| Invalid::field("message.json", problem))?;
            json.to_string().into()
        }
    };
    Ok(Message {
        message_id: some(message.message_id),
        content_type,
        content_encoding: some(message.content_encoding),
        kind: some(message.r#type),
        app_id: some(message.app_id),
        correlation_id: some(message.correlation_id),
        reply_to: some(message.reply_to),
        timestamp: message.timestamp.map(seconds).transpose()?,
        priority: priority(message.priority)?,
        ttl_ms: message.ttl.map(ttl_ms).transpose()?,
        headers: message.headers.map(table).transpose()?.unwrap_or_default(),
        payload,
    })
}

fn seconds(timestamp: Timestamp) -> Result<u64, Invalid> {
    u64::try_from(timestamp.seconds)
        .ok()
        .filter(|_| timestamp.seconds <= YEAR_9999)
        .ok_or_else(|| Invalid::field("message.timestamp", "must be from 1970 to 9999"))
}

/// 0 is AMQP's default and not sent.
fn priority(priority: u32) -> Result<Option<u8>, Invalid> {
    match u8::try_from(priority) {
        Ok(0) => Ok(None),
        Ok(priority) => Ok(Some(priority)),
        Err(_) => Err(Invalid::field("message.priority", "must be at most 255")),
    }
}

fn ttl_ms(ttl: prost_types::Duration) -> Result<u32, Invalid> {
    let ms = duration(ttl).map(|ttl| ttl.as_nanos().div_ceil(1_000_000));
    ms.filter(|ms| *ms <= MAX_TTL_MS)
        .and_then(|ms| u32::try_from(ms).ok())
        .ok_or_else(|| Invalid::field("message.ttl", "must be from 0 to 4294967.295 s"))
}

/// `None`: negative or malformed.
pub fn duration(duration: prost_types::Duration) -> Option<Duration> {
    // Not prost's own conversion: it panics on the smallest nanos.
    let nanos = u32::try_from(duration.nanos).ok()?;
    let seconds = u64::try_from(duration.seconds).ok()?;
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

fn table(fields: Struct) -> Result<Table, Invalid> {
    // Counted before it is converted: what is refused is not copied first.
    if fields.fields.len() > validate::MAX_HEADERS {
        return Err(Invalid::field(
            "message.headers",
            "has more than 64 entries",
        ));
    }
    let entries = fields.fields.into_iter();
    Ok(entries
        .map(|(name, json)| (name, header_value(json)))
        .collect())
}

/// A value as AMQP has it.
pub fn header_value(json: Json) -> Value {
    match json.kind {
        None | Some(Kind::NullValue(_)) => Value::Void,
        Some(Kind::BoolValue(value)) => Value::Bool(value),
        Some(Kind::NumberValue(number)) => Value::number(number),
        Some(Kind::StringValue(text)) => Value::text(text),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(header_value).collect())
        }
        Some(Kind::StructValue(nested)) => {
            let entries = nested.fields.into_iter();
            Value::Table(
                entries
                    .map(|(name, json)| (name, header_value(json)))
                    .collect(),
            )
        }
    }
}

/// A delivered message as clients see it.
pub fn delivered(message: &Message) -> proto::Message {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let headers: BTreeMap<String, Json> = message
        .headers
        .iter()
        .filter(|(name, _)| is_shown(name))
        .map(|(name, value)| (name.clone(), header_json(value)))
        .collect();
    proto::Message {
        message_id: text(&message.message_id),
        payload: Some(Payload::Data(message.payload.clone())),
        content_type: text(&message.content_type),
        content_encoding: text(&message.content_encoding),
        headers: (!headers.is_empty()).then_some(Struct { fields: headers }),
        r#type: text(&message.kind),
        app_id: text(&message.app_id),
        correlation_id: text(&message.correlation_id),
        reply_to: text(&message.reply_to),
        timestamp: message.timestamp.and_then(|seconds| {
            let seconds = i64::try_from(seconds).ok()?;
            (seconds <= YEAR_9999).then_some(Timestamp { seconds, nanos: 0 })
        }),
        priority: message.priority.unwrap_or_default().into(),
        ttl: message.ttl_ms.map(|ms| prost_types::Duration {
            seconds: (ms / 1_000).into(),
            nanos: i32::try_from(ms % 1_000).unwrap_or_default() * 1_000_000,
        }),
    }
}

/// The gateway's own headers and the broker's counts of deliveries are no business of a consumer, who could not publish them again.
fn is_shown(name: &str) -> bool {
    !name.starts_with(header::PREFIX) && !header::COUNTERS.contains(&name)
}

/// A value as JSON has it.
pub fn header_json(value: &Value) -> Json {
    Json {
        kind: Some(match value {
            Value::Void => Kind::NullValue(0),
            Value::Bool(value) => Kind::BoolValue(*value),
            Value::I8(n) => Kind::NumberValue((*n).into()),
            Value::U8(n) => Kind::NumberValue((*n).into()),
            Value::I16(n) => Kind::NumberValue((*n).into()),
            Value::U16(n) => Kind::NumberValue((*n).into()),
            Value::I32(n) => Kind::NumberValue((*n).into()),
            Value::U32(n) => Kind::NumberValue((*n).into()),
            Value::I64(n) => integer(*n),
            Value::F32(n) => Kind::NumberValue((*n).into()),
            Value::F64(n) => Kind::NumberValue(*n),
            Value::Decimal { scale, value } => {
                Kind::NumberValue(f64::from(*value) / 10_f64.powi((*scale).into()))
            }
            Value::Text(bytes) => Kind::StringValue(match std::str::from_utf8(bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => base64(bytes),
            }),
            Value::Blob(bytes) => Kind::StringValue(base64(bytes)),
            Value::Timestamp(seconds) => match i64::try_from(*seconds) {
                Ok(seconds) if seconds <= YEAR_9999 => {
                    Kind::StringValue(Timestamp { seconds, nanos: 0 }.to_string())
                }
                _ => Kind::StringValue(seconds.to_string()),
            },
            Value::Array(values) => Kind::ListValue(ListValue {
                values: values.iter().map(header_json).collect(),
            }),
            Value::Table(table) => Kind::StructValue(Struct {
                fields: table
                    .iter()
                    .map(|(name, value)| (name.clone(), header_json(value)))
                    .collect(),
            }),
        }),
    }
}

#[expect(clippy::cast_precision_loss, reason = "checked to be within ±2^53")]
fn integer(n: i64) -> Kind {
    if n.unsigned_abs() <= 1 << 53 {
        Kind::NumberValue(n as f64)
    } else {
        Kind::StringValue(n.to_string())
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// `google.protobuf.Value` as JSON.
pub fn json_text(json: &Json) -> Result<serde_json::Value, &'static str> {
    Ok(match &json.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(number)) => json_number(*number)?,
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::ListValue(list)) => list
            .values
            .iter()
            .map(json_text)
            .collect::<Result<_, _>>()?,
        Some(Kind::StructValue(nested)) => {
            let fields = nested.fields.iter();
            let fields = fields.map(|(name, value)| Ok((name.clone(), json_text(value)?)));
            serde_json::Value::Object(fields.collect::<Result<_, &str>>()?)
        }
    })
}

/// Integers are written without a fraction: 5, not 5.0.
fn json_number(number: f64) -> Result<serde_json::Value, &'static str> {
    match Value::number(number) {
        Value::I64(integer) => Ok(integer.into()),
        _ => serde_json::Number::from_f64(number)
            .map(serde_json::Value::Number)
            .ok_or("has a number that is not finite"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::EXACT;

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Kind::NullValue(0)),
            any::<bool>().prop_map(Kind::BoolValue),
            (-(1_i64 << 53)..=1 << 53).prop_map(integer),
            any::<f64>()
                .prop_filter("JSON", |n| n.is_finite())
                .prop_map(Kind::NumberValue),
            ".{0,12}".prop_map(Kind::StringValue),
        ];
        leaf.prop_map(|kind| Json { kind: Some(kind) })
            .prop_recursive(3, 24, 6, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..5)
                        .prop_map(|values| Kind::ListValue(ListValue { values })),
                    prop::collection::btree_map("[a-z]{1,6}", inner, 0..5)
                        .prop_map(|fields| Kind::StructValue(Struct { fields })),
                ]
                .prop_map(|kind| Json { kind: Some(kind) })
            })
    }

    proptest! {
        #[test]
        fn headers_come_back_as_they_were_sent(value in json()) {
            prop_assert_eq!(header_json(&header_value(value.clone())), value);
        }
    }

    #[test]
    fn integers_become_amqp_integers_and_others_doubles() {
        assert_eq!(Value::number(EXACT), Value::I64(1 << 53));
        assert_eq!(Value::number(0.5), Value::F64(0.5));
        assert_eq!(Value::number(EXACT * 2.0), Value::F64(EXACT * 2.0));
    }

    #[test]
    fn a_json_payload_keeps_integers_and_refuses_what_json_cannot_say() {
        let number = |n| Json {
            kind: Some(Kind::NumberValue(n)),
        };
        assert_eq!(
            json_text(&number(5.0)).map(|json| json.to_string()),
            Ok("5".into())
        );
        assert!(json_text(&number(f64::NAN)).is_err());
    }

    #[test]
    fn times_to_live_are_whole_milliseconds_within_the_brokers_range() {
        let ttl = |seconds, nanos| ttl_ms(prost_types::Duration { seconds, nanos });
        assert_eq!(ttl(1, 1), Ok(1_001));
        assert_eq!(ttl(4_294_967, 295_000_000), Ok(u32::MAX));
        for (seconds, nanos) in [
            (-1, 0),
            (4_294_967, 295_000_001),
            (1_000_000_000_000, 0),
            (i64::MAX, i32::MAX),
            (i64::MIN, i32::MIN),
            (0, 1_000_000_000),
        ] {
            assert!(ttl(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }
}
