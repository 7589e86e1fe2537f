//! Declares a topology: adds what is missing, and tells what exists with different arguments.

use std::{collections::hash_map, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{exchange::Exchange, queue::Queue, state::State};
use crate::{
    broker::{
        Entity, Error,
        topology::{
            self, Binding, DeadLetter, Difference, ExchangeKind, Mismatch, QueueKind, Topology,
            argument, mismatches,
        },
    },
    message::Table,
};

impl State {
    pub(super) fn declare(
        &mut self,
        topology: &Topology,
        now: Instant,
    ) -> Result<Vec<Difference>, Error> {
        if self.closed {
            return Err(Error::Down);
        }
        let mut differences = Vec::new();
        let mut refused = Vec::new();
        for exchange in &topology.exchanges {
            if let Err(detail) = takes(exchange) {
                differences.push(Difference {
                    what: Entity::Exchange,
                    name: exchange.name.clone(),
                    detail,
                });
                refused.push(&exchange.name);
                continue;
            }
            differences.extend(self.declare_exchange(exchange)?);
        }
        for queue in &topology.queues {
            differences.extend(self.declare_queue(queue, now)?);
            self.watch_end(&queue.name);
        }
        for binding in &topology.bindings {
            // What is bound to other exchanges is bound all the same.
            if !refused.contains(&&binding.exchange) {
                self.bind(binding)?;
            }
        }
        Ok(differences)
    }

    fn declare_exchange(
        &mut self,
        wanted: &topology::Exchange,
    ) -> Result<Option<Difference>, Error> {
        refuse_default_exchange(&wanted.name)?;
        match self.exchanges.entry(wanted.name.clone()) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Exchange::new(wanted.kind.clone()));
                Ok(None)
            }
            hash_map::Entry::Occupied(existing) => {
                let current = &existing.get().kind;
                Ok((wanted.kind != *current).then(|| Difference {
                    what: Entity::Exchange,
                    name: wanted.name.clone(),
                    detail: inequivalent(
                        "type",
                        Some(wanted.kind.to_string()),
                        Some(current.to_string()),
                    ),
                }))
            }
        }
    }

    fn declare_queue(
        &mut self,
        wanted: &topology::Queue,
        now: Instant,
    ) -> Result<Option<Difference>, Error> {
        let wanted = understood(wanted).map_err(Error::Refused)?;
        let Some(existing) = self.queues.get_mut(wanted.name.as_str()) else {
            let name = Arc::from(wanted.name.as_str());
            self.queues.insert(name, Queue::new(wanted, now));
            return Ok(None);
        };
        let mut mismatches = mismatches(&wanted.arguments(), &existing.declared.arguments());
        let (is, was) = (wanted.auto_delete, existing.declared.auto_delete);
        mismatches.extend((is != was).then(|| Mismatch {
            argument: "auto_delete".to_owned(),
            wanted: Some(is.to_string()),
            actual: Some(was.to_string()),
        }));
        if mismatches.is_empty() {
            existing.used(now);
        }
        let details = mismatches.into_iter().map(
            |Mismatch {
                 argument,
                 wanted,
                 actual,
             }| inequivalent(&argument, wanted, actual),
        );
        let details: Vec<String> = details.collect();
        Ok((!details.is_empty()).then(|| Difference {
            what: Entity::Queue,
            name: wanted.name,
            detail: details.join("; "),
        }))
    }

    fn bind(&mut self, binding: &Binding) -> Result<(), Error> {
        refuse_default_exchange(&binding.exchange)?;
        let missing = |what, name: &str| Error::NotFound {
            what,
            name: name.to_owned(),
        };
        let Some((queue, _)) = self.queues.get_key_value(binding.queue.as_str()) else {
            return Err(missing(Entity::Queue, &binding.queue));
        };
        let Some(exchange) = self.exchanges.get_mut(&binding.exchange) else {
            return Err(missing(Entity::Exchange, &binding.exchange));
        };
        exchange.bind(queue.clone(), &binding.routing_key, &binding.arguments)
    }
}

/// Whether this broker has such exchanges; the error is for people.
fn takes(wanted: &topology::Exchange) -> Result<(), String> {
    if let ExchangeKind::Plugin(kind) = &wanted.kind {
        return Err(format!(
            "the embedded broker has no exchanges of type {kind:?}"
        ));
    }
    match wanted.arguments.keys().next() {
        Some(argument) => Err(format!(
            "the embedded broker does not know {argument:?} of an exchange"
        )),
        None => Ok(()),
    }
}

/// The default exchange is always there and cannot be changed.
fn refuse_default_exchange(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::Forbidden {
            what: Entity::Exchange,
            name: String::new(),
        });
    }
    Ok(())
}

/// A queue with its further arguments as this broker understands them; the error is for people.
fn understood(wanted: &topology::Queue) -> Result<topology::Queue, String> {
    let arguments = wanted.arguments();
    let text = |name: &str| match arguments.get(name) {
        None => Ok(None),
        Some(value) => match value.as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(format!("{name} must be a text")),
        },
    };
    fn number<T: TryFrom<i64>>(arguments: &Table, name: &str) -> Result<Option<T>, String> {
        let value = arguments.get(name).map(|value| {
            let number = value.as_integer().and_then(|number| number.try_into().ok());
            number.ok_or_else(|| format!("{name} must be a number within bounds"))
        });
        value.transpose()
    }
    let kind = match text(argument::TYPE)?.as_deref() {
        None | Some("classic") => QueueKind::Classic,
        Some("quorum") => QueueKind::Quorum,
        Some(other) => {
            return Err(format!(
                "the embedded broker has no queues of type {other:?}"
            ));
        }
    };
    if kind == QueueKind::Quorum && wanted.auto_delete {
        return Err("a quorum queue cannot be auto-delete".to_owned());
    }
    let expires = number(&arguments, argument::EXPIRES)?;
    if expires == Some(0) {
        return Err(format!("{} must be at least 1", argument::EXPIRES));
    }
    let max_length = number(&arguments, argument::MAX_LENGTH)?;
    let overflow = text(argument::OVERFLOW)?;
    if max_length.is_some() && overflow.as_deref() != Some(argument::REJECT_PUBLISH) {
        let (name, only) = (argument::OVERFLOW, argument::REJECT_PUBLISH);
        return Err(format!("{name}: the embedded broker only does {only:?}"));
    }
    let dead_letter = match (
        text(argument::DEAD_LETTER_EXCHANGE)?,
        text(argument::DEAD_LETTER_KEY)?,
    ) {
        (None, _) => None,
        (Some(exchange), Some(routing_key)) => Some(DeadLetter {
            exchange,
            routing_key,
        }),
        (Some(_), None) => {
            let name = argument::DEAD_LETTER_KEY;
            return Err(format!("the embedded broker needs {name} as well"));
        }
    };
    let known = [
        argument::TYPE,
        argument::MESSAGE_TTL,
        argument::EXPIRES,
        argument::MAX_LENGTH,
        argument::OVERFLOW,
        argument::MAX_PRIORITY,
        argument::DELIVERY_LIMIT,
        argument::DEAD_LETTER_EXCHANGE,
        argument::DEAD_LETTER_KEY,
        argument::DEAD_LETTER_STRATEGY,
    ];
    if let Some(name) = arguments
        .keys()
        .find(|name| !known.contains(&name.as_str()))
    {
        return Err(format!("the embedded broker does not know {name:?}"));
    }
    Ok(topology::Queue {
        name: wanted.name.clone(),
        kind,
        message_ttl: number(&arguments, argument::MESSAGE_TTL)?.map(Duration::from_millis),
        max_length,
        max_priority: number(&arguments, argument::MAX_PRIORITY)?,
        delivery_limit: number(&arguments, argument::DELIVERY_LIMIT)?,
        dead_letter,
        expires: expires.map(Duration::from_millis),
        auto_delete: wanted.auto_delete,
        others: wanted.others.clone(),
    })
}

/// In RabbitMQ's words, so that both brokers read alike.
fn inequivalent(argument: &str, received: Option<String>, current: Option<String>) -> String {
    let show = |value: Option<String>| match value {
        Some(value) => format!("'{value}'"),
        None => "none".to_owned(),
    };
    let (received, current) = (show(received), show(current));
    format!("inequivalent arg '{argument}': received {received} but current is {current}")
}
