//! A topology as people write it: a file (TOML) whose gaps are filled in with defaults.
//!
//! A queue with `dead_letter = true` (the default of work queues) also gets `<queue>.dlq`, bound to the direct exchange
//! [`DEAD_LETTER_EXCHANGE`] under the queue's name.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::{
    Binding, DEAD_LETTER_EXCHANGE, DeadLetter, DeadLetterSource, Exchange, ExchangeKind, Parsed,
    Queue, QueueDefaults, QueueKind, Retries, Topology, dead_letter_queue,
};
use crate::{
    broker::Entity,
    message::{Table, Value},
    names,
};

/// Most ready messages of a work queue before it refuses more, unless the file says otherwise.
const DEFAULT_MAX_LENGTH: u64 = 10_000;

/// How often a message of a quorum queue may come back, unless the file says otherwise. It bounds what consumers that are not
/// the gateway's do to a message that kills them. Above a usual prefetch: whatever a dying consumer was sent comes back and is
/// counted, also what it never looked at.
const DEFAULT_DELIVERY_LIMIT: u32 = 200;

/// How long a temporary queue may be unused before it goes, unless the file says otherwise. Long enough for a consumer that
/// restarts, and for a broker or gateway that is upgraded meanwhile.
const DEFAULT_EXPIRY: Duration = Duration::from_secs(30 * 60);

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
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    pub exchanges: Vec<FileExchange>,
    #[serde(default)]
    pub queues: Vec<FileQueue>,
    #[serde(default)]
    pub bindings: Vec<FileBinding>,
    #[serde(default)]
    pub dead_letter_sources: Vec<FileSource>,
}

/// A queue of another platform's dead letters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    pub queue: String,
    /// Where what is in it failed, when nothing says it.
    pub failed_queue: Option<String>,
    /// Unless said otherwise: yes.
    pub retry: Option<bool>,
}

impl FileSource {
    fn complete(self, others: &[DeadLetterSource]) -> Result<DeadLetterSource, BadTopology> {
        check(Entity::Queue, &self.queue, names::queue)?;
        let bad = |problem: &str| BadTopology::Entry {
            what: Entity::Queue,
            name: self.queue.clone(),
            problem: problem.to_owned(),
        };
        if others.iter().any(|other| other.queue == self.queue) {
            return Err(bad("is twice among dead_letter_sources"));
        }
        if let Some(failed) = &self.failed_queue {
            check(Entity::Queue, failed, names::queue)?;
            if *failed == self.queue {
                return Err(bad(
                    "failed_queue names the queue where it failed, not this one",
                ));
            }
        }
        Ok(DeadLetterSource {
            retry: self.retry.unwrap_or(true),
            queue: self.queue,
            failed_queue: self.failed_queue,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileExchange {
    pub name: String,
    #[serde(rename = "type", default = "topic")]
    pub kind: ExchangeKind,
    #[serde(default)]
    pub arguments: BTreeMap<String, Argument>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileQueue {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Option<QueueKind>,
    /// `"24h"`, or milliseconds; `"none"` for no limit.
    pub message_ttl: Option<TimeText>,
    /// 0: no limit.
    pub max_length: Option<u64>,
    pub max_priority: Option<u8>,
    /// 0: no limit.
    pub delivery_limit: Option<u32>,
    /// Unless said otherwise: yes; temporary queues: no.
    pub dead_letter: Option<bool>,
    /// The broker deletes it once it was unused for so long; `"none"`: never. A queue that has this or `auto_delete` is temporary.
    pub expires: Option<TimeText>,
    /// The broker deletes it when its last consumer goes.
    #[serde(default)]
    pub auto_delete: bool,
    /// Automatic retries of what fails here; 0: none.
    pub max_retries: Option<u32>,
    /// The delay before each of them.
    pub retry_delays: Option<Vec<TimeText>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum TimeText {
    Milliseconds(u64),
    Text(String),
}

impl TimeText {
    /// No limit.
    pub const NONE: &str = "none";

    /// `None`: no limit.
    pub fn limit(&self) -> Result<Option<Duration>, String> {
        match self {
            Self::Text(text) if text == Self::NONE => Ok(None),
            time => time.read().map(Some),
        }
    }

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
pub struct FileBinding {
    pub exchange: String,
    pub queue: String,
    #[serde(default)]
    pub routing_key: String,
    #[serde(default)]
    pub arguments: BTreeMap<String, Argument>,
}

/// What a headers exchange compares with, or an exchange of a plugin is told.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Argument {
    Bool(bool),
    Integer(i64),
    Text(String),
}

impl From<Argument> for Value {
    fn from(argument: Argument) -> Self {
        match argument {
            Argument::Bool(value) => Self::Bool(value),
            Argument::Integer(value) => Self::I64(value),
            Argument::Text(text) => Self::text(text),
        }
    }
}

impl FileQueue {
    /// A work queue with all defaults.
    pub fn work(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// A queue that goes by itself when nobody uses it any more, with all defaults.
    pub fn temporary(name: &str, auto_delete: bool) -> Self {
        let expiry = u64::try_from(DEFAULT_EXPIRY.as_millis()).unwrap_or(u64::MAX);
        Self {
            expires: Some(TimeText::Milliseconds(expiry)),
            auto_delete,
            ..Self::work(name)
        }
    }

    fn is_dead_lettered(&self) -> bool {
        self.dead_letter.unwrap_or(!self.is_temporary())
    }

    fn is_temporary(&self) -> bool {
        let expires =
            !matches!(&self.expires, Some(TimeText::Text(text)) if text == TimeText::NONE);
        self.auto_delete || (self.expires.is_some() && expires)
    }

    /// When it expires, if it does.
    fn expiry(&self) -> Result<Option<Duration>, BadTopology> {
        let bad = |problem: &str| self.bad(problem);
        if self.is_temporary() && self.dead_letter == Some(true) {
            return Err(bad(
                "a temporary queue (expires, auto_delete) has no dead-letter queue, which would stay: leave dead_letter out",
            ));
        }
        if self.auto_delete && self.kind == Some(QueueKind::Quorum) {
            return Err(bad(
                "quorum queues cannot be auto_delete; use type = \"classic\", or expires",
            ));
        }
        match &self.expires {
            None if self.auto_delete => Ok(Some(DEFAULT_EXPIRY)),
            None => Ok(None),
            Some(text) => match text.limit() {
                Ok(Some(Duration::ZERO)) => Err(bad("expires must be at least 1ms, or \"none\"")),
                Ok(time) => Ok(time),
                Err(problem) => Err(bad(&format!("expires: {problem}"))),
            },
        }
    }

    fn add_to(self, topology: &mut Topology, defaults: &QueueDefaults) -> Result<(), BadTopology> {
        let bad = |problem: &str| self.bad(problem);
        let dead_lettered = self.is_dead_lettered();
        let expires = self.expiry()?;
        let kind = match (self.kind, self.max_priority) {
            (Some(QueueKind::Quorum), Some(_)) => {
                return Err(bad(
                    "quorum queues have no priorities; use type = \"classic\"",
                ));
            }
            (Some(kind), _) => kind,
            (None, Some(_)) => QueueKind::Classic,
            // What is thrown away soon need not be replicated.
            (None, None) if self.is_temporary() => QueueKind::Classic,
            (None, None) => QueueKind::Quorum,
        };
        let message_ttl = match &self.message_ttl {
            None => Some(defaults.message_ttl),
            Some(text) => text
                .limit()
                .map_err(|problem| bad(&format!("message_ttl: {problem}")))?,
        };
        let max_length = Some(self.max_length.unwrap_or(DEFAULT_MAX_LENGTH)).filter(|n| *n > 0);
        let delivery_limit = match (self.delivery_limit, kind) {
            (Some(_), QueueKind::Classic) => {
                return Err(bad(
                    "classic queues count no deliveries: delivery_limit is for quorum queues",
                ));
            }
            (Some(limit), QueueKind::Quorum) => Some(limit).filter(|limit| *limit > 0),
            // Without a dead-letter queue, what is beyond the limit would be lost.
            (None, QueueKind::Quorum) => dead_lettered.then_some(DEFAULT_DELIVERY_LIMIT),
            (None, QueueKind::Classic) => None,
        };
        let dead_letter = dead_lettered.then(|| DeadLetter {
            exchange: DEAD_LETTER_EXCHANGE.to_owned(),
            routing_key: self.name.clone(),
        });
        if dead_lettered {
            let target = dead_letter_queue(&self.name);
            check(Entity::Queue, &target, names::queue)?;
            topology.bindings.push(Binding {
                exchange: DEAD_LETTER_EXCHANGE.to_owned(),
                queue: target.clone(),
                routing_key: self.name.clone(),
                arguments: Table::new(),
            });
            topology
                .queues
                .push(Queue::dead_letters(&target, defaults.dead_letter_ttl));
        }
        topology.queues.push(Queue {
            name: self.name,
            kind,
            message_ttl,
            max_length,
            max_priority: self.max_priority,
            delivery_limit,
            dead_letter,
            expires,
            auto_delete: self.auto_delete,
            others: Table::new(),
        });
        Ok(())
    }

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

impl Topology {
    /// Reads a topology file and fills in what it leaves out.
    pub fn parse(text: &str, defaults: &QueueDefaults) -> Result<Parsed, BadTopology> {
        File::parse(text)?.complete(defaults)
    }
}

impl File {
    /// Reads it.
    pub fn parse(text: &str) -> Result<Self, BadTopology> {
        Ok(toml::from_str(text)?)
    }

    /// Checks it and fills in what it leaves out.
    pub fn complete(self, defaults: &QueueDefaults) -> Result<Parsed, BadTopology> {
        let mut topology = Topology::default();
        let mut retries = BTreeMap::new();
        for exchange in self.exchanges {
            check(Entity::Exchange, &exchange.name, names::own_exchange)?;
            topology.exchanges.push(Exchange {
                name: exchange.name,
                kind: exchange.kind,
                arguments: own_values(exchange.arguments),
            });
        }
        let dead_letters = self.queues.iter().any(FileQueue::is_dead_lettered);
        if dead_letters {
            let exchange = Exchange::new(DEAD_LETTER_EXCHANGE, ExchangeKind::Direct);
            topology.exchanges.push(exchange);
        }
        for queue in self.queues {
            check(Entity::Queue, &queue.name, names::queue)?;
            let own = queue.retries()?;
            if own != Retries::default() {
                retries.insert(queue.name.clone(), own);
            }
            queue.add_to(&mut topology, defaults)?;
        }
        for binding in self.bindings {
            check(Entity::Exchange, &binding.exchange, names::exchange)?;
            check(Entity::Queue, &binding.queue, names::queue)?;
            topology.bindings.push(Binding {
                exchange: binding.exchange,
                queue: binding.queue,
                routing_key: binding.routing_key,
                arguments: own_values(binding.arguments),
            });
        }
        let mut dead_letter_sources = Vec::new();
        for source in self.dead_letter_sources {
            let source = source.complete(&dead_letter_sources)?;
            dead_letter_sources.push(source);
        }
        Ok(Parsed {
            topology,
            retries,
            dead_letter_sources,
        })
    }
}

fn own_values(arguments: BTreeMap<String, Argument>) -> Table {
    let values = arguments.into_iter();
    values.map(|(name, value)| (name, value.into())).collect()
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
        let example = include_str!("../../../examples/topology.toml");
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
        let parsed = Topology::parse(text, &DEFAULTS).expect("valid");
        let Parsed {
            topology, retries, ..
        } = parsed;
        let own = Retries {
            max: Some(0),
            delays: Some(vec![Duration::from_secs(1), Duration::from_secs(2)]),
        };
        assert_eq!(retries, BTreeMap::from([("q".to_owned(), own)]));
        assert_eq!(topology.dead_lettered(), ["q", "p"]);
    }

    #[test]
    fn the_types_of_plugins_are_passed_on_with_their_arguments() {
        let text = "[[exchanges]]\nname = \"e\"\ntype = \"x-consistent-hash\"\narguments = { hash-header = \"id\" }";
        let parsed = Topology::parse(text, &DEFAULTS).expect("valid");
        let expected = Exchange {
            name: "e".to_owned(),
            kind: ExchangeKind::Plugin("x-consistent-hash".to_owned()),
            arguments: Table::from([("hash-header".to_owned(), Value::text("id"))]),
        };
        assert_eq!(parsed.topology.exchanges, [expected]);
    }

    #[test]
    fn a_temporary_queue_goes_by_itself_and_has_no_dead_letters() {
        let read = |settings: &str| {
            let text = format!("[[queues]]\nname = \"q\"\n{settings}");
            let parsed = Topology::parse(&text, &DEFAULTS).expect("valid");
            let [queue] = &parsed.topology.queues[..] else {
                panic!("one queue: {:?}", parsed.topology);
            };
            assert_eq!(queue.dead_letter, None);
            let minutes = queue.expires.map(|time| time.as_secs() / 60);
            (queue.kind, queue.auto_delete, minutes)
        };
        let classic = QueueKind::Classic;
        assert_eq!(read("expires = \"2m\""), (classic, false, Some(2)));
        assert_eq!(read("auto_delete = true"), (classic, true, Some(30)));
        let for_ever = "auto_delete = true\nexpires = \"none\"";
        assert_eq!(read(for_ever), (classic, true, None));
        let quorum = "expires = \"1h\"\ntype = \"quorum\"";
        assert_eq!(read(quorum), (QueueKind::Quorum, false, Some(60)));
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
            ("[[exchanges]]\nname = \"e\"\ntype = \"topci\"", "x-"),
            (
                "[[queues]]\nname = \"q\"\nexpires = \"1m\"\ndead_letter = true",
                "temporary",
            ),
            (
                "[[queues]]\nname = \"q\"\nauto_delete = true\ntype = \"quorum\"",
                "classic",
            ),
            ("[[queues]]\nname = \"q\"\nexpires = 0", "expires"),
            ("[[dead_letter_sources]]\nqueue = \"\"", "empty"),
            (
                "[[dead_letter_sources]]\nqueue = \"e\"\nfailed_queue = \"e\"",
                "failed_queue",
            ),
            (
                "[[dead_letter_sources]]\nqueue = \"e\"\n[[dead_letter_sources]]\nqueue = \"e\"",
                "twice",
            ),
        ];
        for (text, named) in cases {
            let error = Topology::parse(text, &DEFAULTS)
                .expect_err(text)
                .to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
