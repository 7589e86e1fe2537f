//! How a failed message is written: for programs, and in a few words for people.

use serde_json::{Map, Value, json};

use crate::{
    cli::show,
    grpc::proto::{
        Attempt, DeathReason, FailedMessage, attempt::Outcome, failed_message::Resolution,
    },
};

/// The fields of the API, those that are not set left out; names of states without their prefix.
pub(super) fn json(of: &FailedMessage) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("id", json!(of.id));
    put("queue", json!(of.queue));
    put("exchange", json!(of.exchange));
    put("routing_key", json!(of.routing_key));
    put("message", show::message(of.message.as_ref()).into());
    put("error_type", json!(of.error_type));
    put("error_message", json!(of.error_message));
    put("reason", json!(reason(of)));
    put("retry_count", json!(of.retry_count));
    put("max_retries", json!(of.max_retries));
    put("status", json!(status(of)));
    put("fingerprint", json!(of.fingerprint));
    put("attempt", json!(of.attempt));
    let times = [
        ("failed_at", &of.failed_at),
        ("last_failed_at", &of.last_failed_at),
        ("last_retry_at", &of.last_retry_at),
        ("next_retry_at", &of.next_retry_at),
        ("resolved_at", &of.resolved_at),
    ];
    for (name, time) in times {
        if let Some(time) = time {
            put(name, json!(time.to_string()));
        }
    }
    let texts = [
        ("error_stack", &of.error_stack),
        ("comment", &of.comment),
        ("operation_id", &of.operation_id),
        ("publish_id", &of.publish_id),
    ];
    for (name, text) in texts {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    if of.resolution() != Resolution::Unspecified {
        let name = of.resolution().as_str_name();
        put("resolution", json!(name.trim_start_matches("RESOLUTION_")));
    }
    if !of.attempts.is_empty() {
        put("attempts", of.attempts.iter().map(attempt).collect());
    }
    object.into()
}

fn attempt(attempt: &Attempt) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("number", json!(attempt.number));
    put("manual", json!(attempt.manual));
    for (name, time) in [
        ("started_at", &attempt.started_at),
        ("ended_at", &attempt.ended_at),
    ] {
        if let Some(time) = time {
            put(name, json!(time.to_string()));
        }
    }
    if attempt.outcome() != Outcome::Unspecified {
        let name = attempt.outcome().as_str_name();
        put("outcome", json!(name.trim_start_matches("OUTCOME_")));
    }
    for (name, text) in [
        ("error_type", &attempt.error_type),
        ("error_message", &attempt.error_message),
    ] {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    object.into()
}

/// Without its prefix.
pub(super) fn status(of: &FailedMessage) -> &'static str {
    of.status().as_str_name().trim_start_matches("STATUS_")
}

/// Without its prefix.
pub(super) fn reason(of: &FailedMessage) -> &'static str {
    let name = of.reason().as_str_name();
    name.trim_start_matches("DEATH_REASON_")
}

/// `Type: message`, or how it died where nobody told an error.
pub(super) fn error(of: &FailedMessage) -> String {
    match (of.error_type.as_str(), of.error_message.as_str()) {
        ("", "") => how(of.reason()).to_owned(),
        (kind, message) => in_one(kind, message),
    }
}

/// `Type: message`, as far as there is one.
pub(super) fn in_one(kind: &str, message: &str) -> String {
    match (kind, message) {
        (text, "") | ("", text) => text.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    }
}

fn how(reason: DeathReason) -> &'static str {
    match reason {
        DeathReason::Unspecified => "died",
        DeathReason::Rejected => "refused by a consumer",
        DeathReason::Expired => "waited in its queue for too long",
        DeathReason::MaxLength => "dropped by its full queue",
        DeathReason::DeliveryLimit => "delivered too often",
        DeathReason::Returned => "its queue is gone",
    }
}
