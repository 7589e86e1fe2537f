//! A message as the gateway holds it: AMQP's properties with AMQP's types, free of any client library.
//!
//! Headers keep their native type through every copy, so that a message that is stored and republished is the same,
//! byte for byte. The gRPC view of a message (JSON-like headers) is made at the edge, in `grpc::convert`.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Names of the headers that the gateway itself writes. Clients may not send any `x-courtier-*` header.
pub mod header {
    /// What all of the gateway's own headers start with.
    pub const PREFIX: &str = "x-courtier-";
    /// The id of one publish (UUIDv7 text): how a returned message is recognised.
    pub const PUBLISH_ID: &str = "x-courtier-publish-id";
    /// On a dead-letter copy: the publish-id that the original came with; the copy's own is [`PUBLISH_ID`].
    pub const ORIGINAL_PUBLISH_ID: &str = "x-courtier-original-publish-id";
    /// Which attempt of the retry schedule this delivery is, from 1.
    pub const ATTEMPT: &str = "x-courtier-attempt";
    /// The failed message that this is a retry of.
    pub const FAILED_ID: &str = "x-courtier-failed-id";
    /// On a dead-letter copy: `retry` or `dead_letter`, as the consumer asked.
    pub const ACTION: &str = "x-courtier-action";
    /// On a dead-letter copy: the delay that the consumer asked for, in milliseconds.
    pub const DELAY_MS: &str = "x-courtier-delay-ms";
    /// On a dead-letter copy and on a retry: the queue that the consumer had it from.
    pub const QUEUE: &str = "x-courtier-queue";
    /// On a dead-letter copy and on a retry: the exchange that it was first published to.
    pub const EXCHANGE: &str = "x-courtier-exchange";
    /// On a dead-letter copy and on a retry: the routing key that it was first published with.
    pub const ROUTING_KEY: &str = "x-courtier-routing-key";
    /// On a dead-letter copy that no consumer asked for: why the gateway made it, in RabbitMQ's words: [`DELIVERY_LIMIT`].
    pub const REASON: &str = "x-courtier-reason";
    /// A [`REASON`]: consumer after consumer died with the message.
    pub const DELIVERY_LIMIT: &str = "delivery_limit";
    /// On an edited copy of a failed message: that failed message.
    pub const EDITED_ID: &str = "x-courtier-edited-id";
    /// On a dead-letter copy: the error's class.
    pub const ERROR_TYPE: &str = "x-courtier-error-type";
    /// On a dead-letter copy: the error's text.
    pub const ERROR_MESSAGE: &str = "x-courtier-error-message";
    /// On a dead-letter copy: where the error arose.
    pub const ERROR_STACK: &str = "x-courtier-error-stack";
    /// RabbitMQ's own: keys to which it sends copies (<https://www.rabbitmq.com/docs/sender-selected>).
    pub const COPIES: [&str; 2] = ["CC", "BCC"];
    /// RabbitMQ's own: where in its stream queue a message is (<https://www.rabbitmq.com/docs/streams#consuming>).
    pub const STREAM_OFFSET: &str = "x-stream-offset";
    /// RabbitMQ's own, on what comes from a quorum queue not for the first time: how often it came back, and (from RabbitMQ 4 on)
    /// how often a consumer had it. On a copy they would be untrue
    /// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
    pub const COUNTERS: [&str; 2] = [DELIVERY_COUNT, "x-acquired-count"];
    /// The first of [`COUNTERS`], to which a queue's delivery limit applies.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
}

/// Integers up to here are exact in a double.
pub const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53

/// Headers, ordered by name.
pub type Table = BTreeMap<String, Value>;

/// A header value with its AMQP 0-9-1 type, as RabbitMQ encodes it
/// (<https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Value {
    Void,
    Bool(bool),
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    /// `value` divided by 10 to the power of `scale`. Signed, as the specification's text and client libraries have it;
    /// its grammar says unsigned.
    Decimal {
        scale: u8,
        value: i32,
    },
    /// A long string: bytes, by custom UTF-8.
    Text(Bytes),
    /// A byte array.
    Blob(Bytes),
    /// Seconds since 1970.
    Timestamp(u64),
    Array(Vec<Value>),
    Table(Table),
}

impl Value {
    /// A long string.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Bytes::from(text.into()))
    }

    /// A number as JSON has it: an integer where that is exact, else a double.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be an integer within ±2^53"
    )]
    pub fn number(number: f64) -> Self {
        if number.fract() == 0.0 && number.abs() <= EXACT {
            Self::I64(number as i64)
        } else {
            Self::F64(number)
        }
    }

    /// The text of a long string that is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value of any integer type.
    pub fn as_integer(&self) -> Option<i64> {
        Some(match self {
            Self::I8(n) => (*n).into(),
            Self::U8(n) => (*n).into(),
            Self::I16(n) => (*n).into(),
            Self::U16(n) => (*n).into(),
            Self::I32(n) => (*n).into(),
            Self::U32(n) => (*n).into(),
            Self::I64(n) => *n,
            _ => return None,
        })
    }
}

/// A message: AMQP's basic properties and the payload. An absent property is `None`, not an empty text.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Message {
    pub message_id: Option<String>,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub kind: Option<String>,
    pub app_id: Option<String>,
    pub correlation_id: Option<String>,
    pub reply_to: Option<String>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    pub priority: Option<u8>,
    /// AMQP's `expiration`, in milliseconds.
    pub ttl_ms: Option<u32>,
    pub headers: Table,
    /// Stored apart from the rest.
    #[serde(skip)]
    pub payload: Bytes,
}

impl Message {
    /// Whether it was delivered from a stream queue, which takes nothing back. A client that sets the header on a message of another
    /// queue only makes it come again to the same subscriber instead of to any.
    pub fn is_of_stream(&self) -> bool {
        let offset = self.headers.get(header::STREAM_OFFSET);
        offset.and_then(Value::as_integer).is_some()
    }
}
