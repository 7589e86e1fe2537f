//! The details of a message, line by line, for people.

use std::fmt::Write as _;

use prost_types::Timestamp;

use super::{moment, show::visible};
use crate::grpc::{
    convert::{duration, json_text},
    proto::Message,
};

/// The default one has an empty name.
pub(super) fn exchange(exchange: &str) -> &str {
    if exchange.is_empty() {
        "\"\""
    } else {
        exchange
    }
}

/// Empty: not set.
pub(super) fn at(time: Option<&Timestamp>) -> String {
    time.map_or_else(String::new, moment::text)
}

/// The properties that are set.
pub(super) fn properties(message: &Message, field: &mut impl FnMut(&str, &str)) {
    field("message id", &message.message_id);
    field("type", &message.r#type);
    field("app id", &message.app_id);
    field("correlation", &message.correlation_id);
    field("reply to", &message.reply_to);
    field("content type", &message.content_type);
    field("encoding", &message.content_encoding);
    field("timestamp", &at(message.timestamp.as_ref()));
    if message.priority > 0 {
        field("priority", &message.priority.to_string());
    }
    if let Some(ttl) = message.ttl.and_then(duration) {
        field("ttl", &humantime::format_duration(ttl).to_string());
    }
}

/// A line for each header, as JSON.
pub(super) fn headers(out: &mut String, message: &Message) {
    let headers = message.headers.iter().flat_map(|headers| &headers.fields);
    let lines = headers.map(|(name, value)| {
        let value = json_text(value).unwrap_or_default();
        visible(&format!("{name}: {value}"), |_| false)
    });
    section(out, "headers", lines.collect());
}

/// A headline and lines under it, if there are any.
pub(super) fn section(out: &mut String, name: &str, lines: Vec<String>) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{name}");
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}
