//! Exchanges, queues and bindings: what is to exist on a broker, and how that is said in AMQP's words. How people write it is in
//! [`file`].

pub mod file;

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::Entity;
use crate::{
    message::{Table, Value},
    names,
};

/// The direct exchange that dead letters of managed queues go to.
pub const DEAD_LETTER_EXCHANGE: &str = "courtier.dlx";

/// The queue that takes the dead letters of `queue`.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dlq")
}

/// Stands for all queues that go by themselves where their dead letters are concerned: they have one dead-letter queue together, which
/// is used again and again, instead of one each, which would stay.
pub const TEMPORARY: &str = "courtier.temporary";

/// What is to exist on the broker: complete, every default filled in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    pub exchanges: Vec<Exchange>,
    pub queues: Vec<Queue>,
    pub bindings: Vec<Binding>,
}

/// What a topology file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    pub topology: Topology,
    /// By queue, for queues that are not retried as all others.
    pub retries: BTreeMap<String, Retries>,
    pub dead_letter_sources: Vec<DeadLetterSource>,
}

/// A queue in which somebody else's platform sets aside what failed. It is not declared, only collected from.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetterSource {
    pub queue: String,
    /// The queue that its messages failed in, where they do not say it.
    pub failed_queue: Option<String>,
    /// They are retried by schedule, as what fails elsewhere.
    pub retry: bool,
}

/// How what fails in a queue is retried; what is `None` is as everywhere. The broker knows nothing of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retries {
    pub max: Option<u32>,
    /// Not empty.
    pub delays: Option<Vec<Duration>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    pub name: String,
    pub kind: ExchangeKind,
    /// In AMQP's words; most types have none.
    pub arguments: Table,
}

impl Exchange {
    pub fn new(name: impl Into<String>, kind: ExchangeKind) -> Self {
        Self {
            name: name.into(),
            kind,
            arguments: Table::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExchangeKind {
    Direct,
    Topic,
    Fanout,
    Headers,
    /// Of a plugin, such as `x-consistent-hash`. Whether there is one, only the broker knows.
    Plugin(String),
}

/// A type of exchange that no broker has.
#[derive(Debug, thiserror::Error)]
#[error(
    "must be direct, topic, fanout, headers, or the type of a plugin, which begins with \"x-\""
)]
pub struct NoExchangeKind;

impl FromStr for ExchangeKind {
    type Err = NoExchangeKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "direct" => Self::Direct,
            "topic" => Self::Topic,
            "fanout" => Self::Fanout,
            "headers" => Self::Headers,
            // AMQP keeps this prefix for types of a broker's own (https://www.rabbitmq.com/docs/exchanges#plugins).
            plugin if plugin.starts_with("x-") && names::short_text(plugin).is_ok() => {
                Self::Plugin(plugin.to_owned())
            }
            _ => return Err(NoExchangeKind),
        })
    }
}

impl TryFrom<String> for ExchangeKind {
    type Error = NoExchangeKind;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ExchangeKind> for String {
    fn from(kind: ExchangeKind) -> Self {
        kind.to_string()
    }
}

impl fmt::Display for ExchangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
            Self::Plugin(kind) => kind,
        })
    }
}

/// A durable queue. Limits that are `None` do not apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    pub name: String,
    pub kind: QueueKind,
    pub message_ttl: Option<Duration>,
    pub max_length: Option<u64>,
    /// Classic queues only; 1 to 255.
    pub max_priority: Option<u8>,
    /// Quorum queues only: a message that came back more often is dead-lettered, or dropped without a `dead_letter`.
    pub delivery_limit: Option<u32>,
    /// Exchange and routing key for rejected and expired messages. A queue with a `max_length` refuses
    /// publishes when full (`reject-publish`), so that the publisher is told.
    pub dead_letter: Option<DeadLetter>,
    /// The broker deletes it, with what is in it, once it was unused for so long: it has no consumers, nobody fetched from it and
    /// nobody declared it again (<https://www.rabbitmq.com/docs/ttl#queue-ttl>).
    pub expires: Option<Duration>,
    /// Classic queues only: the broker deletes it, with what is in it, when its last consumer goes. One that never had any stays.
    pub auto_delete: bool,
    /// Further arguments in AMQP's words, in place of those above where they name the same; [`Value::Void`] takes one away.
    pub others: Table,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, strum::Display, strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum QueueKind {
    Quorum,
    Classic,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    pub exchange: String,
    pub routing_key: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub exchange: String,
    pub queue: String,
    pub routing_key: String,
    /// What a headers exchange matches; else empty.
    pub arguments: Table,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            exchange,
            queue,
            routing_key,
            ..
        } = self;
        write!(f, "{exchange} -> {queue} ({routing_key})")
    }
}

/// Something that exists with other arguments than the topology says, and is used as it is; or that the broker does not take.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub what: Entity,
    pub name: String,
    /// In the broker's words.
    pub detail: String,
}

/// Durations that the environment sets and the file's queues default to.
#[derive(Clone, Copy, Debug)]
pub struct QueueDefaults {
    /// `MESSAGE_TTL`
    pub message_ttl: Duration,
    /// `DLQ_TTL`
    pub dead_letter_ttl: Duration,
}

impl Queue {
    /// The queue that takes dead letters, under this name.
    pub fn dead_letters(name: &str, ttl: Duration) -> Self {
        Self {
            message_ttl: Some(ttl),
            delivery_limit: Some(DEAD_LETTER_RETURNS),
            ..Self::bare(name, QueueKind::Quorum)
        }
    }

    /// A queue without limits.
    pub fn bare(name: &str, kind: QueueKind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            message_ttl: None,
            max_length: None,
            max_priority: None,
            delivery_limit: None,
            dead_letter: None,
            expires: None,
            auto_delete: false,
            others: Table::new(),
        }
    }

    /// Whether the broker deletes it by itself.
    pub fn is_temporary(&self) -> bool {
        self.auto_delete || self.arguments().contains_key(argument::EXPIRES)
    }

    /// What it is declared with (<https://www.rabbitmq.com/docs/queues#optional-arguments>).
    pub fn arguments(&self) -> Table {
        let mut arguments = Table::new();
        let mut set = |name: &str, value| {
            arguments.insert(name.to_owned(), value);
        };
        let number = |n: u64| Value::I64(i64::try_from(n).unwrap_or(i64::MAX));
        set(argument::TYPE, Value::text(self.kind.to_string()));
        let ms = |time: Duration| number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        if let Some(ttl) = self.message_ttl {
            set(argument::MESSAGE_TTL, ms(ttl));
        }
        if let Some(time) = self.expires {
            set(argument::EXPIRES, ms(time));
        }
        if let Some(length) = self.max_length {
            set(argument::MAX_LENGTH, number(length));
            // The publisher is told (REJECTED); the alternative drops the oldest message in silence.
            set(argument::OVERFLOW, Value::text(argument::REJECT_PUBLISH));
        }
        if let Some(priority) = self.max_priority {
            set(argument::MAX_PRIORITY, number(priority.into()));
        }
        if let Some(limit) = self.delivery_limit {
            set(argument::DELIVERY_LIMIT, number(limit.into()));
        }
        if let Some(to) = &self.dead_letter {
            set(argument::DEAD_LETTER_EXCHANGE, Value::text(&to.exchange));
            set(argument::DEAD_LETTER_KEY, Value::text(&to.routing_key));
            // Without it a dead letter is lost when its target is away for a moment; the broker allows it only together with
            // reject-publish (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
            if self.kind == QueueKind::Quorum && self.max_length.is_some() {
                set(
                    argument::DEAD_LETTER_STRATEGY,
                    Value::text(argument::AT_LEAST_ONCE),
                );
            }
        }
        arguments.extend(self.others.clone());
        arguments.retain(|_, value| *value != Value::Void);
        arguments
    }
}

/// Names of the arguments that are used here, and some of their values.
pub mod argument {
    pub const TYPE: &str = "x-queue-type";
    pub const MESSAGE_TTL: &str = "x-message-ttl";
    pub const EXPIRES: &str = "x-expires";
    pub const MAX_LENGTH: &str = "x-max-length";
    pub const MAX_LENGTH_BYTES: &str = "x-max-length-bytes";
    pub const OVERFLOW: &str = "x-overflow";
    pub const REJECT_PUBLISH: &str = "reject-publish";
    pub const MAX_PRIORITY: &str = "x-max-priority";
    pub const DELIVERY_LIMIT: &str = "x-delivery-limit";
    pub const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";
    pub const DEAD_LETTER_KEY: &str = "x-dead-letter-routing-key";
    pub const DEAD_LETTER_STRATEGY: &str = "x-dead-letter-strategy";
    pub const AT_LEAST_ONCE: &str = "at-least-once";
}

/// An argument that is not as wanted. `None`: not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    pub argument: String,
    pub wanted: Option<String>,
    pub actual: Option<String>,
}

/// In what two tables of arguments differ, as the broker compares them: integers by value, whatever their width. A queue
/// without [`argument::TYPE`] is classic.
pub fn mismatches(wanted: &Table, actual: &Table) -> Vec<Mismatch> {
    let show = |table: &Table, name: &str| match table.get(name) {
        None if name == argument::TYPE => Some(QueueKind::Classic.to_string()),
        value => value.map(shown),
    };
    let names: std::collections::BTreeSet<&String> = wanted.keys().chain(actual.keys()).collect();
    let each = names.into_iter().map(|name| Mismatch {
        argument: name.clone(),
        wanted: show(wanted, name),
        actual: show(actual, name),
    });
    each.filter(|one| one.wanted != one.actual).collect()
}

/// An argument's value for people.
fn shown(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        value => match (value.as_integer(), value.as_str()) {
            (Some(integer), _) => integer.to_string(),
            (None, Some(text)) => text.to_owned(),
            (None, None) => format!("{value:?}"),
        },
    }
}

impl Topology {
    /// Queues whose dead letters go to a dead-letter queue of this topology.
    pub fn dead_lettered(&self) -> Vec<String> {
        let with = self
            .queues
            .iter()
            .filter(|queue| queue.dead_letter.is_some());
        with.map(|queue| queue.name.clone()).collect()
    }
}

/// RabbitMQ 4 drops from a quorum queue, unless it says otherwise, what was returned 20 times
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>). Dead letters are returned whenever the database is
/// away. "Without limit" is written differently from version to version; so many is understood by all.
const DEAD_LETTER_RETURNS: u32 = 1_000_000_000;
