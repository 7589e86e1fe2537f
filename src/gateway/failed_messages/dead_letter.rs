//! What a refused delivery's copy in the dead-letter queue says of it. [`death`](super::death) reads that.

use crate::{
    broker::Delivery,
    failed_message::{ErrorDetail, MAX_ERROR_TEXT, Next},
    message::{Message, Value, header},
};

/// What [`header::ACTION`] says; [`super::death`] reads it.
const RETRY: &str = "retry";
pub(super) const PARK: &str = "dead_letter";

/// The copy: the message as it was, with what happened to it in headers of the gateway's own.
pub fn copy(delivery: &Delivery, queue: &str, next: Next, error: &ErrorDetail) -> Message {
    let mut copy = delivery.message.clone();
    // The time to live was for waiting in the work queue; here it would lose the message.
    copy.ttl_ms = None;
    // The broker would route further copies by these.
    for name in header::COPIES {
        copy.headers.remove(name);
    }
    // Of a death before this one.
    copy.headers.remove(header::REASON);
    copy.headers.remove(header::DELAY_MS);
    if let Some(id) = copy.headers.remove(header::PUBLISH_ID) {
        // A retry has it already, from the first publish.
        let original = copy.headers.entry(header::ORIGINAL_PUBLISH_ID.to_owned());
        original.or_insert(id);
    }
    origin(delivery).note_on(&mut copy, queue);
    let mut note = |name: &str, value: String| {
        copy.headers.insert(name.to_owned(), Value::text(value));
    };
    note(header::ERROR_TYPE, cut(&error.kind));
    note(header::ERROR_MESSAGE, cut(&error.message));
    note(header::ERROR_STACK, cut(&error.stack));
    let action = match next {
        Next::Retry(_) => RETRY,
        Next::Park => PARK,
    };
    note(header::ACTION, action.to_owned());
    if let Next::Retry(Some(delay)) = next {
        let ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let name = header::DELAY_MS.to_owned();
        copy.headers.insert(name, Value::I64(ms));
    }
    copy
}

/// Where a message was first published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    pub exchange: &'a str,
    pub routing_key: &'a str,
}

impl Origin<'_> {
    /// Writes it into the headers of a copy of what failed in `queue`.
    pub fn note_on(self, copy: &mut Message, queue: &str) {
        for (name, value) in [
            (header::QUEUE, queue),
            (header::EXCHANGE, self.exchange),
            (header::ROUTING_KEY, self.routing_key),
        ] {
            let value = Value::text(value.to_owned());
            copy.headers.insert(name.to_owned(), value);
        }
    }
}

/// Where a delivery was first published to: consumers dispatch by that. A retry comes through the default exchange.
pub fn origin(delivery: &Delivery) -> Origin<'_> {
    noted_origin(&delivery.message, &delivery.routing_key)
        .filter(|_| delivery.exchange.is_empty())
        .unwrap_or(Origin {
            exchange: &delivery.exchange,
            routing_key: &delivery.routing_key,
        })
}

/// Where a message that came back to `queue` was first published to. In another queue, its headers are somebody's copy.
pub fn noted_origin<'a>(message: &'a Message, queue: &str) -> Option<Origin<'a>> {
    let noted = |name: &str| message.headers.get(name)?.as_str();
    (noted(header::QUEUE)? == queue).then_some(Origin {
        exchange: noted(header::EXCHANGE)?,
        routing_key: noted(header::ROUTING_KEY)?,
    })
}

/// What a copy's error is called when its consumers never said what went wrong.
pub const POISON: &str = "PoisonMessage";

/// The copy of a message that so many consumers died with. It may be retried: perhaps they were ill, not the message.
pub fn poisoned(delivery: &Delivery, queue: &str, failures: u32) -> Message {
    let error = ErrorDetail {
        kind: POISON.to_owned(),
        message: format!(
            "{failures} times in a row a consumer vanished, or kept it for too long, while it held this message"
        ),
        stack: String::new(),
    };
    let mut copy = copy(delivery, queue, Next::Retry(None), &error);
    let reason = Value::text(header::DELIVERY_LIMIT);
    copy.headers.insert(header::REASON.to_owned(), reason);
    copy
}

/// The beginning of a text, as much as is kept.
pub(super) fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_ERROR_TEXT)].to_owned()
}

/// Which attempt of the retry schedule a delivery is.
pub fn attempt(message: &Message) -> u32 {
    let attempt = message.headers.get(header::ATTEMPT);
    let attempt = attempt.and_then(Value::as_integer).unwrap_or(1);
    u32::try_from(attempt).unwrap_or(1).max(1)
}

/// The failed message that a delivery is a retry of.
pub fn failed_id(message: &Message) -> Option<&str> {
    message.headers.get(header::FAILED_ID)?.as_str()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_copy_keeps_the_message_and_says_what_happened() {
        let mut message = Message {
            ttl_ms: Some(1),
            payload: vec![0, 255].into(),
            ..Message::default()
        };
        message.headers.insert("CC".into(), Value::Array(vec![]));
        message.headers.insert("mine".into(), Value::I32(5));
        let delivery = Delivery {
            tag: 1,
            queue: 0,
            exchange: "e".into(),
            routing_key: "k".into(),
            redelivered: false,
            message,
        };
        let error = ErrorDetail {
            kind: "Declined".into(),
            message: "é".repeat(MAX_ERROR_TEXT),
            stack: String::new(),
        };
        let copy = copy(
            &delivery,
            "q",
            Next::Retry(Some(Duration::from_secs(2))),
            &error,
        );
        assert_eq!(copy.payload, delivery.message.payload);
        assert_eq!(copy.ttl_ms, None);
        assert_eq!(copy.headers.get("CC"), None);
        assert_eq!(copy.headers.get("mine"), Some(&Value::I32(5)));
        assert_eq!(copy.headers.get(header::DELAY_MS), Some(&Value::I64(2_000)));
        let text = copy.headers[header::ERROR_MESSAGE].as_str().map(str::len);
        assert_eq!(text, Some(MAX_ERROR_TEXT));
    }
}
