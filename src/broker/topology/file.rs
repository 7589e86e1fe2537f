//! Exchanges, queues and bindings, as they are written in a topology file (TOML) and declared on a broker.
//!
//! A queue with `dead_letter = true` (the default of work queues) also gets `<queue>.dlq`, bound to the direct exchange
//! [`DEAD_LETTER_EXCHANGE`] under the queue's name.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::Entity;
use crate::names;

/// The direct exchange that dead letters of managed queues go to.
pub const DEAD_LETTER_EXCHANGE: &str = "courtier.dlx";

/// The queue that takes the dead letters of `queue`.
pub fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dlq")
}

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum ExchangeKind {
    Direct,
    Topic,
    Fanout,
    Headers,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, strum::Display)]
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
    pub arguments: BTreeMap<String, String>,
}

/// Something that exists otherwise than the topology says. It is used as it is.
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
        }
    }
}

/// RabbitMQ 4 drops from a quorum queue, unless it says otherwise, what was returned 20 times
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>). Dead letters are returned whenever the database is
/// away. "Without limit" is written differently from version to version; so many is understood by all.
const DEAD_LETTER_RETURNS: u32 = 1_000_000_000;

/// Most ready messages of a work queue before it refuses more, unless the file says otherwise.
const DEFAULT_MAX_LENGTH: u64 = 10_000;

/// How often a message of a quorum queue may come back, unless the file says otherwise. It bounds what consumers that are not
/// the gateway's do to a message that kills them. Above a usual prefetch: whatever a dying consumer was sent comes back and is
/// counted, also what it never looked at.
const DEFAULT_DELIVERY_LIMIT: u32 = 200;

/// Why a topology file is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadTopology {
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    #[error("{what} {name:?}: {problem}")]
    Entry {
        what: Entity,
        name: String,
        problem: String,
    },
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    exchanges: Vec<FileExchange>,
    #[serde(default)]
    queues: Vec<FileQueue>,
    #[serde(default)]
    bindings: Vec<FileBinding>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileExchange {
    name: String,
    #[serde(rename = "type", default = "topic")]
    kind: ExchangeKind,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQueue {
    name: String,
    #[serde(rename = "type")]
    kind: Option<QueueKind>,
    /// `"24h"`, or milliseconds; `"none"` for no limit.
    message_ttl: Option<TimeText>,
    /// 0: no limit.
    max_length: Option<u64>,
    max_priority: Option<u8>,
    /// 0: no limit.
    delivery_limit: Option<u32>,
    #[serde(default = "yes")]
    dead_letter: bool,
    /// Automatic retries of what fails here; 0: none.
    max_retries: Option<u32>,
    /// The delay before each of them.
    retry_delays: Option<Vec<TimeText>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TimeText {
    Milliseconds(u64),
    Text(String),
}

impl TimeText {
    fn read(&self) -> Result<Duration, String> {
        match self {
            Self::Milliseconds(ms) => Ok(Duration::from_millis(*ms)),
            Self::Text(text) => humantime::parse_duration(text)
                .map_err(|error| format!("{text:?} is not a time such as \"30s\": {error}")),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileBinding {
    exchange: String,
    queue: String,
    #[serde(default)]
    routing_key: String,
    #[serde(default)]
    arguments: BTreeMap<String, String>,
}

impl FileQueue {
    fn retries(&self) -> Result<Retries, BadTopology> {
        let delays = self.retry_delays.as_ref();
        let delays: Option<Result<Vec<_>, _>> =
            delays.map(|delays| delays.iter().map(TimeText::read).collect());
        let delays = match delays.transpose() {
            Ok(Some(delays)) if delays.is_empty() => {
                return Err(self.bad("retry_delays is empty; max_retries = 0 means no retries"));
            }
            Ok(delays) => delays,
            Err(problem) => return Err(self.bad(&format!("retry_delays: {problem}"))),
        };
        Ok(Retries {
            max: self.max_retries,
            delays,
        })
    }

    fn bad(&self, problem: &str) -> BadTopology {
        BadTopology::Entry {
            what: Entity::Queue,
            name: self.name.clone(),
            problem: problem.to_owned(),
        }
    }
}

fn topic() -> ExchangeKind {
    ExchangeKind::Topic
}

fn yes() -> bool {
    true
}

impl Topology {
    /// Reads a topology file and fills in what it leaves out.
    pub fn parse(text: &str, defaults: &QueueDefaults) -> Result<Parsed, BadTopology> {
        let file: File = toml::from_str(text)?;
        let mut topology = Self::default();
        let mut retries = BTreeMap::new();
        for exchange in file.exchanges {
            check(Entity::Exchange, &exchange.name, names::exchange)?;
            topology.exchanges.push(Exchange {
                name: exchange.name,
                kind: exchange.kind,
            });
        }
        let dead_letters = file.queues.iter().any(|queue| queue.dead_letter);
        if dead_letters {
            topology.exchanges.push(Exchange {
                name: DEAD_LETTER_EXCHANGE.to_owned(),
                kind: ExchangeKind::Direct,
            });
        }
        for queue in file.queues {
            check(Entity::Queue, &queue.name, names::queue)?;
            let own = queue.retries()?;
            if own != Retries::default() {
                retries.insert(queue.name.clone(), own);
            }
            topology.add_queue(queue, defaults)?;
        }
        for binding in file.bindings {
            check(Entity::Exchange, &binding.exchange, names::exchange)?;
            check(Entity::Queue, &binding.queue, names::queue)?;
            topology.bindings.push(Binding {
                exchange: binding.exchange,
                queue: binding.queue,
                routing_key: binding.routing_key,
                arguments: binding.arguments,
            });
        }
        Ok(Parsed { topology, retries })
    }

    /// Queues whose dead letters go to a dead-letter queue of this topology.
    pub fn dead_lettered(&self) -> Vec<String> {
        let with = self
            .queues
            .iter()
            .filter(|queue| queue.dead_letter.is_some());
        with.map(|queue| queue.name.clone()).collect()
    }

    fn add_queue(&mut self, queue: FileQueue, defaults: &QueueDefaults) -> Result<(), BadTopology> {
        let bad = |problem: &str| queue.bad(problem);
        let kind = match (queue.kind, queue.max_priority) {
            (Some(QueueKind::Quorum), Some(_)) => {
                return Err(bad(
                    "quorum queues have no priorities; use type = \"classic\"",
                ));
            }
            (Some(kind), _) => kind,
            (None, Some(_)) => QueueKind::Classic,
            (None, None) => QueueKind::Quorum,
        };
        let message_ttl = match &queue.message_ttl {
            None => Some(defaults.message_ttl),
            Some(TimeText::Text(text)) if text == "none" => None,
            Some(text) => {
                let ttl = text.read();
                Some(ttl.map_err(|problem| bad(&format!("message_ttl: {problem}")))?)
            }
        };
        let max_length = Some(queue.max_length.unwrap_or(DEFAULT_MAX_LENGTH)).filter(|n| *n > 0);
        let delivery_limit = match (queue.delivery_limit, kind) {
            (Some(_), QueueKind::Classic) => {
                return Err(bad(
                    "classic queues count no deliveries: delivery_limit is for quorum queues",
                ));
            }
            (Some(limit), QueueKind::Quorum) => Some(limit).filter(|limit| *limit > 0),
            // Without a dead-letter queue, what is beyond the limit would be lost.
            (None, QueueKind::Quorum) => queue.dead_letter.then_some(DEFAULT_DELIVERY_LIMIT),
            (None, QueueKind::Classic) => None,
        };
        let dead_letter = queue.dead_letter.then(|| DeadLetter {
            exchange: DEAD_LETTER_EXCHANGE.to_owned(),
            routing_key: queue.name.clone(),
        });
        if queue.dead_letter {
            let target = dead_letter_queue(&queue.name);
            check(Entity::Queue, &target, names::queue)?;
            self.bindings.push(Binding {
                exchange: DEAD_LETTER_EXCHANGE.to_owned(),
                queue: target.clone(),
                routing_key: queue.name.clone(),
                arguments: BTreeMap::new(),
            });
            self.queues
                .push(Queue::dead_letters(&target, defaults.dead_letter_ttl));
        }
        self.queues.push(Queue {
            name: queue.name,
            kind,
            message_ttl,
            max_length,
            max_priority: queue.max_priority,
            delivery_limit,
            dead_letter,
        });
        Ok(())
    }
}

fn check(
    what: Entity,
    name: &str,
    rule: fn(&str) -> Result<(), names::Refused>,
) -> Result<(), BadTopology> {
    rule(name).map_err(|refused| BadTopology::Entry {
        what,
        name: name.to_owned(),
        problem: refused.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: QueueDefaults = QueueDefaults {
        message_ttl: Duration::from_secs(86_400),
        dead_letter_ttl: Duration::from_secs(604_800),
    };

    #[test]
    fn the_shipped_example_has_the_eleven_pairs_and_their_dead_letter_queues() {
        let example = include_str!("../../examples/topology.toml");
        let parsed = Topology::parse(example, &DEFAULTS).expect("the example is valid");
        let topology = parsed.topology;
        for service in [
            "auth",
            "products",
            "baskets",
            "orders",
            "addresses",
            "deliveries",
            "newsletters",
            "sav",
            "contacts",
            "questions",
            "websites",
        ] {
            let (exchange, queue) = (format!("{service}_exchange"), format!("{service}_queue"));
            let pair = |b: &Binding| b.exchange == exchange && b.queue == queue;
            assert!(topology.bindings.iter().any(pair), "{service}");
            let find = |name: &str| topology.queues.iter().find(|q| q.name == name).cloned();
            let work = find(&queue).expect("declared");
            assert_eq!(work.message_ttl, Some(DEFAULTS.message_ttl));
            assert_eq!(work.max_length, Some(10_000));
            let dead = find(&dead_letter_queue(&queue)).expect("declared");
            assert_eq!(dead.message_ttl, Some(DEFAULTS.dead_letter_ttl));
            assert_eq!(dead.dead_letter, None);
        }
        assert_eq!(topology.queues.len(), 22);
    }

    #[test]
    fn deliveries_are_limited_where_the_dead_letter_is_kept() {
        let limit = |settings: &str| {
            let text = format!("[[queues]]\nname = \"q\"\n{settings}");
            let parsed = Topology::parse(&text, &DEFAULTS).expect("valid");
            let topology = parsed.topology;
            let queue = topology.queues.iter().find(|queue| queue.name == "q");
            queue.and_then(|queue| queue.delivery_limit)
        };
        assert_eq!(limit(""), Some(200));
        assert_eq!(limit("delivery_limit = 7"), Some(7));
        assert_eq!(limit("delivery_limit = 0"), None);
        assert_eq!(limit("dead_letter = false"), None);
        assert_eq!(limit("dead_letter = false\ndelivery_limit = 7"), Some(7));
        assert_eq!(limit("type = \"classic\""), None);
        assert_eq!(limit("max_priority = 5"), None);
    }

    #[test]
    fn a_queue_may_have_a_retry_schedule_of_its_own() {
        let text = "[[queues]]\nname = \"q\"\nmax_retries = 0\nretry_delays = [\"1s\", 2000]\n[[queues]]\nname = \"p\"";
        let Parsed { topology, retries } = Topology::parse(text, &DEFAULTS).expect("valid");
        let own = Retries {
            max: Some(0),
            delays: Some(vec![Duration::from_secs(1), Duration::from_secs(2)]),
        };
        assert_eq!(retries, BTreeMap::from([("q".to_owned(), own)]));
        assert_eq!(topology.dead_lettered(), ["q", "p"]);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            (
                "[[queues]]\nname = \"q\"\nretry_delays = []",
                "max_retries = 0",
            ),
            (
                "[[queues]]\nname = \"q\"\nretry_delays = [\"soon\"]",
                "soon",
            ),
            ("[[queues]]\nname = \"amq.q\"", "amq."),
            (
                "[[queues]]\nname = \"q\"\ntype = \"quorum\"\nmax_priority = 5",
                "priorities",
            ),
            (
                "[[queues]]\nname = \"q\"\ntype = \"classic\"\ndelivery_limit = 5",
                "delivery_limit",
            ),
            ("[[queues]]\nname = \"q\"\nmessage_ttl = \"soon\"", "soon"),
            ("[[queue]]\nname = \"q\"", "unknown field"),
        ];
        for (text, named) in cases {
            let error = Topology::parse(text, &DEFAULTS)
                .expect_err(text)
                .to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
