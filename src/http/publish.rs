//! `POST /api/messages/publish`: the twin of `courtier.v1.Publisher/Publish`, for messages that are JSON.

use std::time::Duration;

use axum::{
    Json,
    extract::{DefaultBodyLimit, Request, State},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout_at;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{body, deadline, envelope::Envelope, error::Error};
use crate::{
    error::Failure,
    gateway::{
        Gateway, Limits,
        publish::{Outgoing, Published},
        validate::{Invalid, MAX_HEADERS},
    },
    message::{Message, Table, Value},
    traces::Origin,
};

pub(super) const PATH: &str = "/api/messages/publish";

pub(super) fn routes(limits: &Limits) -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(publish))
        .layer(DefaultBodyLimit::max(limits.request_bytes()))
}

/// One message and where it goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PublishRequest<'a> {
    /// The exchange's name. Empty: AMQP's default exchange, where the routing key names a queue.
    exchange: String,
    /// What the exchange routes by.
    routing_key: String,
    /// The message: any JSON. Consumers get it byte for byte as it is written here, with content type `application/json`.
    /// From an envelope `{"event", "timestamp", "data", "metadata": {"service"}}` the AMQP properties `type`, `timestamp`
    /// and `app_id` are set too.
    #[serde(borrow)]
    #[schema(value_type = serde_json::Value)]
    message: &'a RawValue,
    /// Names the message. Absent: the gateway makes a UUIDv7. Keep it when you publish the same message again.
    message_id: Option<String>,
    /// Ties a reply or a workflow together.
    correlation_id: Option<String>,
    /// Where an answer is wanted: a queue's name.
    reply_to: Option<String>,
    /// Application headers: at most 64 entries, 16 KiB and 4 levels.
    #[serde(borrow)]
    #[schema(value_type = Option<serde_json::Map<String, serde_json::Value>>)]
    headers: Option<&'a RawValue>,
    /// 0 to 9 by convention.
    #[schema(maximum = 255)]
    priority: Option<u8>,
    /// How long the message may wait in a queue: `90s`, `5m`; a plain number is milliseconds.
    #[schema(example = "90s")]
    ttl: Option<String>,
    /// Set: a message that no queue takes counts as confirmed.
    #[serde(default)]
    allow_unroutable: bool,
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
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Json<PublishResponse>, Error> {
    let deadline = deadline::of_publish(&request, &gateway.limits);
    let origin = Origin::of_call(request.headers());
    let body = body::json(request, gateway.limits.request_bytes());
    let body = timeout_at(deadline, body)
        .await
        .map_err(|_| Error::from(Failure::publish_deadline(false)))?
        .map_err(Error::not_published)?;
    let published = match read(&body, origin) {
        Ok(outgoing) => gateway.publish(outgoing, deadline).await,
        Err(invalid) => gateway.refuse(Published::refused(None, invalid)),
    };
    match Failure::of_publish(published.outcome) {
        Some(failure) => Err(flat(failure).into()),
        None => Ok(Json(PublishResponse {
            message_id: published.message_id,
            publish_id: published
                .publish_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            outcome: "CONFIRMED",
        })),
    }
}

fn read(body: &Bytes, origin: Option<Origin>) -> Result<Outgoing, Invalid> {
    let request: PublishRequest = serde_json::from_slice(body).map_err(unfit)?;
    let envelope = Envelope::read(request.message);
    let message = Message {
        message_id: some(request.message_id),
        content_type: Some("application/json".to_owned()),
        content_encoding: None,
        kind: envelope.kind,
        app_id: envelope.app_id,
        correlation_id: some(request.correlation_id),
        reply_to: some(request.reply_to),
        timestamp: envelope.timestamp,
        // 0 is AMQP's default and not sent.
        priority: request.priority.filter(|priority| *priority > 0),
        ttl_ms: some(request.ttl).map(|ttl| ttl_ms(&ttl)).transpose()?,
        headers: request
            .headers
            .map(headers)
            .transpose()?
            .unwrap_or_default(),
        payload: body.slice_ref(request.message.get().as_bytes()),
    };
    Ok(Outgoing {
        exchange: request.exchange,
        routing_key: request.routing_key,
        message,
        allow_unroutable: request.allow_unroutable,
        origin,
    })
}

fn unfit(error: serde_json::Error) -> Invalid {
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
    let fields: serde_json::Map<_, _> = serde_json::from_str(raw.get()).map_err(unfit)?;
    Ok(table(fields))
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

fn ttl_ms(text: &str) -> Result<u32, Invalid> {
    let ttl = match text.parse() {
        Ok(ms) => Some(Duration::from_millis(ms)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    ttl.and_then(|ttl| u32::try_from(ttl.as_nanos().div_ceil(1_000_000)).ok())
        .ok_or_else(|| {
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
fn flat(mut failure: Failure) -> Failure {
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
