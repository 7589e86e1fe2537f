//! How deliveries are written: for people, and for programs.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::grpc::{
    convert::{duration, json_text},
    proto::{Delivery, Message, message::Payload},
};

/// A headline and the payload. For a terminal, what would steer it is written out instead.
pub(super) fn text(delivery: &Delivery, terminal: bool) -> String {
    let message = delivery.message.clone().unwrap_or_default();
    let payload = payload(&message);
    let mut text = format!(
        "# {} {} {}",
        delivery.queue,
        if delivery.routing_key.is_empty() {
            "\"\""
        } else {
            &delivery.routing_key
        },
        if message.message_id.is_empty() {
            "(no message id)"
        } else {
            &message.message_id
        },
    );
    if delivery.redelivered {
        text.push_str(" redelivered");
    }
    if delivery.attempt > 1 {
        let _ = write!(text, " attempt {}", delivery.attempt);
    }
    // One line, whatever the names are.
    let mut text = visible(&text, |_| false);
    match std::str::from_utf8(payload) {
        Ok(payload) if terminal => {
            let payload = visible(payload, |c| matches!(c, '\n' | '\t'));
            let _ = writeln!(text, "\n{payload}");
        }
        Ok(payload) => {
            let _ = writeln!(text, "\n{payload}");
        }
        Err(_) => {
            let _ = writeln!(text, " base64\n{}", STANDARD.encode(payload));
        }
    }
    text
}

/// Control characters as escapes, those that are `kept` apart.
pub(super) fn visible(text: &str, kept: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !kept(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// One line: what is [of a queue](of_queue), and how often it was delivered.
pub(super) fn json(delivery: &Delivery) -> String {
    let mut object = of_queue(
        delivery.message.as_ref(),
        &delivery.queue,
        (&delivery.exchange, &delivery.routing_key),
        delivery.redelivered,
    );
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("attempt", json!(delivery.attempt));
    if !delivery.failed_message_id.is_empty() {
        put("failed_message_id", json!(delivery.failed_message_id));
    }
    let mut line = Value::Object(object).to_string();
    line.push('\n');
    line
}

/// A message of a queue, whether it was delivered or looked at: the fields of the API, those that are not set left out. The payload is
/// `text`, or `data` (base64) when it is not UTF-8.
pub(super) fn of_queue(
    of: Option<&Message>,
    queue: &str,
    (exchange, routing_key): (&str, &str),
    redelivered: bool,
) -> Map<String, Value> {
    let mut object = message(of);
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("queue", json!(queue));
    put("exchange", json!(exchange));
    put("routing_key", json!(routing_key));
    put("redelivered", json!(redelivered));
    object
}

/// The fields of a message.
pub(super) fn message(message: Option<&Message>) -> Map<String, Value> {
    let mut object = Map::new();
    let Some(message) = message else {
        return object;
    };
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    let texts = [
        ("message_id", &message.message_id),
        ("type", &message.r#type),
        ("app_id", &message.app_id),
        ("correlation_id", &message.correlation_id),
        ("reply_to", &message.reply_to),
        ("content_type", &message.content_type),
        ("content_encoding", &message.content_encoding),
    ];
    for (name, text) in texts {
        if !text.is_empty() {
            put(name, json!(text));
        }
    }
    if let Some(timestamp) = &message.timestamp {
        put("timestamp", json!(timestamp.to_string()));
    }
    if message.priority > 0 {
        put("priority", json!(message.priority));
    }
    if let Some(ttl) = message.ttl.and_then(duration) {
        put("ttl_ms", json!(ttl.as_millis()));
    }
    if let Some(headers) = &message.headers {
        // What JSON cannot say (a number that is not finite) is null.
        let headers = headers.fields.iter();
        let headers =
            headers.map(|(name, value)| (name.clone(), json_text(value).unwrap_or_default()));
        put("headers", headers.collect::<Map<_, _>>().into());
    }
    // Lists leave it out.
    if message.payload.is_some() {
        let payload = payload(message);
        match std::str::from_utf8(payload) {
            Ok(text) => put("text", json!(text)),
            Err(_) => put("data", json!(STANDARD.encode(payload))),
        };
    }
    object
}

pub(super) fn payload(message: &Message) -> &[u8] {
    match &message.payload {
        Some(Payload::Data(data)) => data,
        Some(Payload::Text(text)) => text.as_bytes(),
        // Deliveries carry data.
        Some(Payload::Json(_)) | None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(payload: &'static [u8]) -> Delivery {
        Delivery {
            queue: "orders".to_owned(),
            routing_key: "order.created".to_owned(),
            attempt: 1,
            message: Some(Message {
                message_id: "m-1\x1b[2J\nfake".to_owned(),
                payload: Some(Payload::Data(payload.into())),
                ..Message::default()
            }),
            ..Delivery::default()
        }
    }

    #[test]
    fn a_headline_is_one_line_and_cannot_steer_a_terminal() {
        let shown = text(&delivery(b"hello"), false);
        assert_eq!(
            shown,
            "# orders order.created m-1\\u{1b}[2J\\nfake\nhello\n"
        );
    }

    #[test]
    fn a_payload_is_escaped_on_a_terminal_and_left_alone_in_a_pipe() {
        assert!(text(&delivery(b"a\x1b[2Jb"), true).ends_with("a\\u{1b}[2Jb\n"));
        assert!(text(&delivery(b"a\x1b[2Jb"), false).ends_with("a\x1b[2Jb\n"));
    }

    #[test]
    fn what_is_not_text_is_base64() {
        assert!(text(&delivery(b"\xff\x00"), true).ends_with(" base64\n/wA=\n"));
        let line: serde_json::Value =
            serde_json::from_str(&json(&delivery(b"\xff\x00"))).expect("JSON");
        assert_eq!(line["data"], "/wA=");
        assert!(line.get("text").is_none());
    }
}
