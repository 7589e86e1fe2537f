//! What the gateway refuses to publish, and why. Everything is checked before anything is sent.

use std::borrow::Cow;

use crate::{
    broker::Entity,
    message::{Message, Table, Value, header},
    names, text,
};

/// Entries of a message's headers, nested ones included.
pub const MAX_HEADERS: usize = 64;
/// Names and values of a message's headers.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Levels of nesting; plain headers are level 1.
pub const MAX_HEADER_DEPTH: usize = 4;

/// Why a publish was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A field does not hold what it may.
    #[error("{field} {problem}")]
    Field {
        field: Cow<'static, str>,
        problem: Cow<'static, str>,
    },
    /// The payload is over the limit.
    #[error("payload of {size} bytes; at most {limit} are allowed")]
    PayloadTooLarge { size: usize, limit: usize },
    /// The broker's own limit is lower than the gateway's.
    #[error("payload of {size} bytes, which is more than the broker takes (its max_message_size)")]
    TooLargeForBroker { size: usize },
    /// A request that is larger than its payload and the rest of it may be; how much larger is not known: it is not read.
    #[error(
        "request of more than {limit} bytes, expanded; no larger one is read: send the payload in parts, or keep it elsewhere"
    )]
    RequestTooLarge { limit: usize },
    /// A batch over the limit.
    #[error(
        "batch of more than {limit} bytes, expanded; nothing of it was published: send fewer messages at a time, or a stream"
    )]
    BatchTooLarge { limit: usize },
    /// A header that the broker or the gateway would act on.
    #[error("header {0:?} is reserved: the broker or the gateway would act on it")]
    ReservedHeader(String),
    /// There is no such exchange.
    #[error("no exchange {0:?}; create it, or check its spelling")]
    ExchangeNotFound(String),
    /// Not for clients. Says the same whether the name exists or not.
    #[error("not allowed on {0} {1:?}")]
    Forbidden(Entity, String),
}

impl Invalid {
    /// A field and what is wrong with it.
    pub fn field(
        field: impl Into<Cow<'static, str>>,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Field {
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// A name and why it is refused.
    pub fn name(field: &'static str, what: Entity, name: &str, refused: names::Refused) -> Self {
        match refused {
            names::Refused::Invalid(problem) => Self::field(field, problem),
            names::Refused::Reserved => Self::Forbidden(what, name.to_owned()),
        }
    }
}

/// Checks a message, wherever it goes.
pub fn message(message: &Message, max_payload_bytes: usize) -> Result<(), Invalid> {
    properties(message)?;
    headers(&message.headers)?;
    let size = message.payload.len();
    if size > max_payload_bytes {
        return Err(Invalid::PayloadTooLarge {
            size,
            limit: max_payload_bytes,
        });
    }
    Ok(())
}

fn properties(message: &Message) -> Result<(), Invalid> {
    let texts = [
        ("message.message_id", &message.message_id),
        ("message.content_type", &message.content_type),
        ("message.content_encoding", &message.content_encoding),
        ("message.type", &message.kind),
        ("message.app_id", &message.app_id),
        ("message.correlation_id", &message.correlation_id),
        ("message.reply_to", &message.reply_to),
    ];
    for (field, text) in texts {
        let checked = text.as_deref().map_or(Ok(()), names::short_text);
        checked.map_err(|refused| Invalid::field(field, refused.to_string()))?;
    }
    // The broker would close the channel that it comes on, and with it lose the confirms of whoever shares the channel
    // (https://www.rabbitmq.com/docs/direct-reply-to).
    if message.reply_to.as_deref() == Some("amq.rabbitmq.reply-to") {
        let problem =
            "must name a queue: direct replies work only on the channel that waits for them";
        return Err(Invalid::field("message.reply_to", problem));
    }
    Ok(())
}

fn headers(headers: &Table) -> Result<(), Invalid> {
    let field = "message.headers";
    if let Some(name) = headers.keys().find(|name| is_reserved(name)) {
        return Err(Invalid::ReservedHeader(text::shown(name)));
    }
    let mut size = Size::default();
    size.table(headers, 1)
        .map_err(|problem| Invalid::field(field, problem))?;
    Ok(())
}

/// Headers that route copies, are the broker's record of a
/// message's past, ask a plugin to delay it, or are the gateway's own.
pub fn is_reserved(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    header::COPIES.contains(&name)
        || matches!(lower.as_str(), "x-death" | "x-delay")
        || header::COUNTERS.contains(&lower.as_str())
        || ["x-first-death-", "x-last-death-", "x-opt-", header::PREFIX]
            .iter()
            .any(|prefix| lower.starts_with(prefix))
}

#[derive(Default)]
struct Size {
    entries: usize,
    bytes: usize,
}

impl Size {
    fn table(&mut self, table: &Table, depth: usize) -> Result<(), &'static str> {
        for (name, value) in table {
            names::short_text(name)
                .map_err(|_| "has a name over 255 bytes or with control characters")?;
            self.add(name.len())?;
            self.value(value, depth)?;
        }
        Ok(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), &'static str> {
        if depth > MAX_HEADER_DEPTH {
            return Err("is nested deeper than 4 levels");
        }
        match value {
            Value::Table(table) => self.table(table, depth + 1),
            Value::Array(values) => values.iter().try_for_each(|value| {
                self.add(0)?;
                self.value(value, depth + 1)
            }),
            Value::Text(bytes) | Value::Blob(bytes) => self.grow(bytes.len()),
            Value::F64(number) if !number.is_finite() => Err("has a number that is not finite"),
            _ => self.grow(8),
        }
    }

    fn add(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.entries += 1;
        if self.entries > MAX_HEADERS {
            return Err("has more than 64 entries");
        }
        self.grow(bytes)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.bytes += bytes;
        if self.bytes > MAX_HEADER_BYTES {
            return Err("is larger than 16 KiB");
        }
        Ok(())
    }
}
