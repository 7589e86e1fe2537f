//! `POST /api/messages/publish`: the twin of `courtier.v1.Publisher/Publish`.

use std::time::Duration;

use axum::{
    Json,
    extract::{DefaultBodyLimit, Request, State},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{
    ToSchema,
    openapi::{
        Schema,
        schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{body, deadline, envelope::Envelope, error::Error};
use crate::{
    error::Failure,
    gateway::{
        publisher::{Outgoing, Published, Publisher},
        validate::{Invalid, MAX_HEADERS},
    },
    message::{Message, Table, Value},
    traces::Origin,
};

pub(super) const PATH: &str = "/api/messages/publish";

pub(super) fn routes(publisher: &Publisher) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(publish))
        .layer(DefaultBodyLimit::max(publisher.limits.request_bytes()))
        .with_state(publisher.clone())
}

/// One message and where it goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishRequest<'a> {
    /// The exchange's name. Empty: AMQP's default exchange, where the routing key names a queue.
    exchange: String,
    /// What the exchange routes by.
    routing_key: String,
    /// The message, when it is JSON, whatever JSON. Consumers get it byte for byte as it is written here, with content type
    /// `application/json`. From an envelope `{"event", "timestamp", "data", "metadata": {"service"}}` the AMQP properties `type`,
    /// `timestamp` and `app_id` are set too, unless they are given. One of `message`, `payload_text` and `payload_base64` is set.
    #[serde(default, borrow, deserialize_with = "present")]
    #[schema(value_type = Option<serde_json::Value>)]
    message: Option<&'a RawValue>,
    /// The message, when it is another text.
    payload_text: Option<String>,
    /// The message, when it is bytes: in base64.
    payload_base64: Option<String>,
    /// What the payload is. Absent: `application/json` of a `message`, else none.
    content_type: Option<String>,
    /// How the payload is encoded, such as `gzip`.
    content_encoding: Option<String>,
    /// What kind of message it is, such as `order.created`.
    r#type: Option<String>,
    /// Who published it.
    app_id: Option<String>,
    /// Names the message. Absent: the gateway makes a UUIDv7. Keep it when you publish the same message again.
    message_id: Option<String>,
    /// Ties a reply or a workflow together.
    correlation_id: Option<String>,
    /// Where an answer is wanted: a queue's name.
    reply_to: Option<String>,
    /// Application headers: at most 64 entries, 16 KiB and 4 levels. An empty list, as PHP writes an empty array, is none.
    #[serde(borrow)]
    #[schema(schema_with = described_headers, required = false)]
    headers: Option<&'a RawValue>,
    /// 0 to 9 by convention.
    #[schema(maximum = 255)]
    priority: Option<u8>,
    /// How long the message may wait in a queue: `"90s"`, `"5m"`; a number, as such or as a text, is milliseconds.
    #[serde(borrow)]
    #[schema(value_type = Option<Ttl>)]
    ttl: Option<&'a RawValue>,
    /// Set: a message that no queue takes counts as confirmed.
    #[serde(default)]
    allow_unroutable: bool,
}

/// An object, an empty list, or nothing.
fn described_headers() -> Schema {
    let null = ObjectBuilder::new().schema_type(Type::Null);
    let empty = ArrayBuilder::new().max_items(Some(0));
    let fields = ObjectBuilder::new().schema_type(Type::Object);
    OneOfBuilder::new()
        .item(null)
        .item(empty)
        .item(fields)
        .into()
}

/// A time, or milliseconds.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum Ttl {
    Milliseconds(u64),
    Text(String),
}

/// A field that is there, also when it is `null`.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

/// The broker has the message.
#[derive(Serialize, ToSchema)]
struct PublishResponse {
    /// The message's id: yours, or the one that the gateway made.
    message_id: String,
    /// This publish's own id.
    publish_id: String,
    /// Always `CONFIRMED` here.
    outcome: &'static str,
}

/// Publishes one message.
///
/// 200 only after the broker confirmed it and it was routed to at least one queue. Any other answer says in
/// `error.details.publish_outcome` what became of it; without that, such as after a broken connection, nobody knows, and it is to
/// be published again with the same `message_id`.
#[utoipa::path(post, path = PATH, request_body = PublishRequest, responses(
    (status = OK, body = PublishResponse, description = "Confirmed."),
    (status = "default", body = Error, description = "Not confirmed; see `publish_outcome`."),
))]
async fn publish(
    State(publisher): State<Publisher>,
    request: Request,
) -> Result<Json<PublishResponse>, Error> {
    let deadline = deadline::of_publish(&request, &publisher.limits);
    let origin = Origin::of_call(request.headers());
    let limit = publisher.limits.request_bytes();
    let body = body::of_publish(request, deadline, limit, Error::too_large).await?;
    let published = match read(&body, origin) {
        Ok(outgoing) => publisher.publish(outgoing, deadline).await,
        Err(invalid) => publisher.refuse(Published::refused(None, invalid)),
    };
    match Failure::of_publish(published.outcome) {
        Some(failure) => Err(flat(failure).into()),
        None => Ok(Json(PublishResponse {
            message_id: published.message_id,
            publish_id: publish_id(published.publish_id),
            outcome: "CONFIRMED",
        })),
    }
}

/// Empty: it was refused before it got one.
pub(super) fn publish_id(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

/// Reads one publish.
pub(super) fn read(body: &Bytes, origin: Option<Origin>) -> Result<Outgoing, Invalid> {
    let mut request: PublishRequest = serde_json::from_slice(body).map_err(unfit)?;
    let envelope = request.message.map(Envelope::read).unwrap_or_default();
    let json = request.message.map(|_| "application/json".to_owned());
    let message = Message {
        payload: payload(body, &mut request)?,
        message_id: some(request.message_id),
        content_type: some(request.content_type).or(json),
        content_encoding: some(request.content_encoding),
        kind: some(request.r#type).or(envelope.kind),
        app_id: some(request.app_id).or(envelope.app_id),
        correlation_id: some(request.correlation_id),
        reply_to: some(request.reply_to),
        timestamp: envelope.timestamp,
        // 0 is AMQP's default and not sent.
        priority: request.priority.filter(|priority| *priority > 0),
        ttl_ms: request.ttl.map(ttl_ms).transpose()?.flatten(),
        headers: request
            .headers
            .map(headers)
            .transpose()?
            .unwrap_or_default(),
    };
    Ok(Outgoing {
        exchange: request.exchange,
        routing_key: request.routing_key,
        message,
        allow_unroutable: request.allow_unroutable,
        origin,
    })
}

fn payload(body: &Bytes, request: &mut PublishRequest<'_>) -> Result<Bytes, Invalid> {
    match (
        request.message,
        request.payload_text.take(),
        request.payload_base64.take(),
    ) {
        (Some(json), None, None) => Ok(body.slice_ref(json.get().as_bytes())),
        (None, Some(text), None) => Ok(text.into()),
        (None, None, Some(text)) => match STANDARD.decode(text) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => {
                let problem = format!("is not base64: {error}");
                Err(Invalid::field("payload_base64", problem))
            }
        },
        _ => {
            let problem = "must have exactly one of message, payload_text and payload_base64";
            Err(Invalid::field("body", problem))
        }
    }
}

pub(super) fn unfit(error: serde_json::Error) -> Invalid {
    let problem = match error.classify() {
        serde_json::error::Category::Data => "does not fit",
        _ => "is not JSON",
    };
    Invalid::field("body", format!("{problem}: {error}"))
}

/// Counted before it is parsed: an entry takes two bytes here, and many times that when it is parsed.
fn headers(raw: &RawValue) -> Result<Table, Invalid> {
    // Each entry is the first of its list or object, or has a comma before it; and each may be an empty list itself.
    if separators(raw.get()) > 2 * MAX_HEADERS + 1 {
        let problem = format!("has more than {MAX_HEADERS} entries");
        return Err(Invalid::field("message.headers", problem));
    }
    match serde_json::from_str(raw.get()).map_err(unfit)? {
        serde_json::Value::Object(fields) => Ok(table(fields)),
        serde_json::Value::Array(none) if none.is_empty() => Ok(Table::new()),
        _ => Err(Invalid::field("message.headers", "must be an object")),
    }
}

/// Commas and opening brackets of well-formed JSON, outside of texts.
fn separators(json: &str) -> usize {
    let (mut count, mut in_text, mut escaped) = (0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => count += 1,
            _ => {}
        }
    }
    count
}

fn some(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// `None`: the text is empty.
fn ttl_ms(raw: &RawValue) -> Result<Option<u32>, Invalid> {
    let ttl = match serde_json::from_str(raw.get()) {
        Ok(Ttl::Milliseconds(ms)) => Some(Duration::from_millis(ms)),
        Ok(Ttl::Text(text)) if text.is_empty() => return Ok(None),
        Ok(Ttl::Text(text)) => match text.parse() {
            Ok(ms) => Some(Duration::from_millis(ms)),
            Err(_) => humantime::parse_duration(&text).ok(),
        },
        Err(_) => None,
    };
    let ms = ttl.and_then(|ttl| u32::try_from(ttl.as_nanos().div_ceil(1_000_000)).ok());
    ms.map(Some).ok_or_else(|| {
        let problem = "must be milliseconds or a time such as 90s, up to 4294967295 ms";
        Invalid::field("ttl", problem)
    })
}

fn table(fields: serde_json::Map<String, serde_json::Value>) -> Table {
    fields
        .into_iter()
        .map(|(name, json)| (name, header_value(json)))
        .collect()
}

fn header_value(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::Void,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::I64(integer),
            None => Value::number(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::text(text),
        Json::Array(values) => Value::Array(values.into_iter().map(header_value).collect()),
        Json::Object(fields) => Value::Table(table(fields)),
    }
}

/// Names fields as they are here: the message's properties stand beside the message.
pub(super) fn flat(mut failure: Failure) -> Failure {
    if let Some((field, _)) = &mut failure.violation
        && let Some(own) = field.strip_prefix("message.")
    {
        let own = if own == "payload" { "message" } else { own }.to_owned();
        if let Some(problem) = failure.message.strip_prefix(field.as_str()) {
            failure.message = format!("{own}{problem}");
        }
        *field = own;
    }
    failure
}
