//! The envelope that the platform's services put around an event:
//! `{"event": …, "timestamp": …, "data": …, "metadata": {"service": …, "version": …}}`.
//!
//! It stays in the message as it is; what AMQP has a property for is told there too, for consumers that route by it.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{failed_message::Time, names};

/// What an envelope says about its message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope {
    /// `event`.
    pub(super) kind: Option<String>,
    /// `metadata.service`.
    pub(super) app_id: Option<String>,
    /// `timestamp`, in seconds since 1970.
    pub(super) timestamp: Option<u64>,
}

// Each field on its own: one that is malformed says nothing, and takes no other one with it.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    event: &'a RawValue,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    service: &'a RawValue,
}

impl Envelope {
    /// Reads the envelope of a message; empty when it has none. A JSON object with an event's name is one.
    pub(super) fn read(message: &RawValue) -> Self {
        let Ok(fields) = serde_json::from_str::<Fields>(message.get()) else {
            return Self::default();
        };
        let Some(event) = text(fields.event) else {
            return Self::default();
        };
        let metadata = fields.metadata.map(|raw| serde_json::from_str(raw.get()));
        let app_id = metadata.and_then(|read| text(read.ok().map(|Metadata { service }| service)?));
        let timestamp = fields.timestamp.and_then(|raw| {
            let time: Time = serde_json::from_str(raw.get()).ok()?;
            u64::try_from(time.timestamp()).ok()
        });
        Self {
            kind: Some(event),
            app_id,
            timestamp,
        }
    }
}

/// A text that an AMQP property can hold.
fn text(raw: &RawValue) -> Option<String> {
    let text: String = serde_json::from_str(raw.get()).ok()?;
    (!text.is_empty() && names::short_text(&text).is_ok()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Option<String>, Option<String>, Option<u64>) {
        let message: &RawValue = serde_json::from_str(json).expect("JSON");
        let envelope = Envelope::read(message);
        (envelope.kind, envelope.app_id, envelope.timestamp)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn an_envelope_is_read() {
        let json = r#"{"event":"order.created","timestamp":"2026-11-22T05:40:46.123456Z",
            "data":{"id":1},"metadata":{"service":"orders","version":"1.0"}}"#;
        let read_as = (some("order.created"), some("orders"), Some(1_795_326_046));
        assert_eq!(read(json), read_as);
    }

    #[test]
    fn what_is_malformed_in_it_says_nothing() {
        let none = (None, None, None);
        for json in [
            "1",
            "null",
            "[]",
            r#""event""#,
            "{}",
            r#"{"event":null}"#,
            r#"{"event":7}"#,
            r#"{"event":""}"#,
            r#"{"event":"a\r\nb"}"#,
            r#"{"event":"a","event":"b"}"#,
            r#"{"event":"\ud800"}"#,
            r#"{"timestamp":"2026-11-22T05:40:46Z","metadata":{"service":"s"}}"#,
        ] {
            assert_eq!(read(json), none, "{json}");
        }
        let only_event = (some("e"), None, None);
        for json in [
            r#"{"event":"e","timestamp":1795326046,"metadata":"m"}"#,
            r#"{"event":"e","timestamp":"yesterday","metadata":{}}"#,
            r#"{"event":"e","timestamp":"1969-12-31T23:59:59Z","metadata":{"service":9}}"#,
            r#"{"event":"e","timestamp":null,"metadata":null}"#,
        ] {
            assert_eq!(read(json), only_event, "{json}");
        }
    }

    #[test]
    fn depth_is_no_matter() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let json = format!(r#"{{"event":"e","data":{deep}}}"#);
        assert_eq!(read(&json), (some("e"), None, None));
    }
}
