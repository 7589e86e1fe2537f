//! A failed message as JSON.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    failed_message::{self, Status},
    gateway::failed_messages::Full,
};

/// A message that died in a queue, and what became of it since.
#[derive(Serialize, ToSchema)]
pub(super) struct FailedMessage {
    id: Uuid,
    /// The queue in which it failed, and to which retries go.
    queue: String,
    /// The exchange that it was first published to; empty: the default exchange.
    exchange: String,
    routing_key: String,
    #[serde(flatten)]
    payload: Payload,
    error_type: String,
    error_message: String,
    error_stack: String,
    /// How it died last.
    #[schema(pattern = "^(rejected|expired|max_length|delivery_limit|returned)$")]
    reason: &'static str,
    /// Automatic retries so far.
    retry_count: u32,
    max_retries: u32,
    #[schema(pattern = "^(pending|retrying|failed|resolved)$")]
    status: &'static str,
    /// When it first died.
    failed_at: DateTime<Utc>,
    last_failed_at: DateTime<Utc>,
    #[schema(required = true)]
    last_retry_at: Option<DateTime<Utc>>,
    /// Set while `pending`.
    #[schema(required = true)]
    next_retry_at: Option<DateTime<Utc>>,
    #[schema(required = true)]
    resolved_at: Option<DateTime<Utc>>,
    /// Set while `resolved`.
    #[schema(required = true, pattern = "^(acked|assumed|manual)$")]
    resolution: Option<&'static str>,
    updated_at: DateTime<Utc>,
    /// The number of the last delivery attempt; 1 is the first delivery, before it failed.
    attempt: u32,
    /// Names the group of messages that failed alike.
    fingerprint: String,
    #[schema(required = true)]
    comment: Option<String>,
    /// The bulk retry that it belongs to.
    #[schema(required = true)]
    operation_id: Option<Uuid>,
    /// The id of the publish that failed. Null: it was not published through the gateway.
    #[schema(required = true)]
    publish_id: Option<String>,
    /// The message's own id.
    #[schema(required = true)]
    message_id: Option<String>,
    #[schema(required = true)]
    content_type: Option<String>,
    /// The event's name.
    #[schema(required = true, rename = "type")]
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The service that made the message.
    #[schema(required = true)]
    app_id: Option<String>,
    #[schema(required = true)]
    correlation_id: Option<String>,
    /// Its delivery attempts, the first one first; absent where payloads are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<Attempt>>,
}

/// One delivery attempt of a failed message.
#[derive(Serialize, ToSchema)]
struct Attempt {
    /// 1 is the first delivery, 2 the first retry.
    number: u32,
    /// A person asked for it.
    manual: bool,
    /// When it was published. Null: not known, as of the first delivery.
    #[schema(required = true)]
    started_at: Option<DateTime<Utc>>,
    /// Null: under way.
    #[schema(required = true)]
    ended_at: Option<DateTime<Utc>>,
    /// How it ended. Null: under way.
    #[schema(required = true, pattern = "^(died|acked|assumed|discarded)$")]
    outcome: Option<&'static str>,
    error_type: String,
    error_message: String,
}

impl From<failed_message::Attempt> for Attempt {
    fn from(attempt: failed_message::Attempt) -> Self {
        Self {
            number: attempt.number,
            manual: attempt.manual,
            started_at: attempt.started_at,
            ended_at: attempt.ended_at,
            outcome: attempt.outcome.map(Into::into),
            error_type: attempt.error.kind,
            error_message: attempt.error.message,
        }
    }
}

/// One of these; none where payloads are left out.
#[derive(Default, Serialize, ToSchema)]
struct Payload {
    /// The payload, byte for byte (without blanks around), when it is JSON that any parser takes: up to 127 levels deep,
    /// numbers within a double's range, no half surrogate pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Option<Box<RawValue>>,
    /// Else, when it is text: the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_text: Option<String>,
    /// Else: the bytes, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl Payload {
    fn of(bytes: &Bytes) -> Self {
        if let Some(json) = harmless_json(bytes) {
            return Self {
                payload: Some(json),
                ..Self::default()
            };
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                payload_text: Some(text.to_owned()),
                ..Self::default()
            },
            Err(_) => Self {
                payload_base64: Some(STANDARD.encode(bytes)),
                ..Self::default()
            },
        }
    }
}

/// JSON that may stand in an answer: one message that a reader's parser chokes on would hide all others of its page.
fn harmless_json(bytes: &[u8]) -> Option<Box<RawValue>> {
    // This parser has the bounds that are meant; the other one looks for the end of the value only.
    serde_json::from_slice::<serde_json::Value>(bytes).ok()?;
    serde_json::from_slice(bytes).ok()
}

impl FailedMessage {
    pub(super) fn full(full: Full) -> Self {
        let payload = Payload::of(&full.message.message.payload);
        let attempts = full.attempts.into_iter().map(Attempt::from).collect();
        Self {
            payload,
            attempts: Some(attempts),
            ..Self::basic(full.message)
        }
    }

    /// Without payload and history.
    pub(super) fn basic(row: failed_message::FailedMessage) -> Self {
        let (message, state) = (row.message, row.state);
        let pending = state.status == Status::Pending;
        Self {
            id: row.id,
            queue: row.queue,
            exchange: row.exchange,
            routing_key: row.routing_key,
            payload: Payload::default(),
            error_type: row.error.kind,
            error_message: row.error.message,
            error_stack: row.error.stack,
            reason: row.reason.into(),
            retry_count: state.retry_count,
            max_retries: state.max_retries,
            status: state.status.into(),
            failed_at: row.failed_at,
            last_failed_at: row.last_failed_at,
            last_retry_at: state.last_retry_at,
            next_retry_at: state.next_retry_at.filter(|_| pending),
            resolved_at: state.resolved_at,
            resolution: state.resolution.map(Into::into),
            updated_at: row.updated_at,
            attempt: state.attempt,
            fingerprint: row.fingerprint,
            comment: row.comment,
            operation_id: row.operation_id,
            publish_id: row.publish_id,
            message_id: message.message_id,
            content_type: message.content_type,
            kind: message.kind,
            app_id: message.app_id,
            correlation_id: message.correlation_id,
            attempts: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> String {
        let payload = Payload::of(&Bytes::copy_from_slice(bytes));
        serde_json::to_string(&payload).expect("it serialises")
    }

    #[test]
    fn json_is_shown_as_it_is_and_what_parsers_choke_on_as_text() {
        let kept = r#"{"b":1.50,"a":9007199254740993,"a":[ 1e2 ],"é":"\u00e9"}"#;
        assert_eq!(shown(kept.as_bytes()), format!(r#"{{"payload":{kept}}}"#));
        assert_eq!(shown(b" null\n"), r#"{"payload":null}"#);
        assert_eq!(shown(b"order 7"), r#"{"payload_text":"order 7"}"#);
        assert_eq!(shown(b""), r#"{"payload_text":""}"#);
        assert_eq!(shown(b"\xff\x00"), r#"{"payload_base64":"/wA="}"#);
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [r#""\ud800""#, "1e999", &deep] {
            assert!(
                shown(text.as_bytes()).starts_with(r#"{"payload_text":"#),
                "{text}"
            );
        }
    }
}
