//! Declares a topology: adds what is missing, and tells what exists otherwise.

use std::{collections::hash_map, fmt::Display, sync::Arc, time::Duration};

use super::{exchange::Exchange, queue::Queue, state::State};
use crate::broker::{
    Entity, Error,
    topology::{self, Binding, Difference, Topology},
};

impl State {
    pub(super) fn declare(&mut self, topology: &Topology) -> Result<Vec<Difference>, Error> {
        if self.closed {
            return Err(Error::Down);
        }
        let mut differences = Vec::new();
        for exchange in &topology.exchanges {
            differences.extend(self.declare_exchange(exchange)?);
        }
        for queue in &topology.queues {
            differences.extend(self.declare_queue(queue));
        }
        for binding in &topology.bindings {
            self.bind(binding)?;
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
                vacant.insert(Exchange::new(wanted.kind));
                Ok(None)
            }
            hash_map::Entry::Occupied(existing) => {
                let detail = inequivalent("type", Some(wanted.kind), Some(existing.get().kind));
                Ok(detail.map(|detail| Difference {
                    what: Entity::Exchange,
                    name: wanted.name.clone(),
                    detail,
                }))
            }
        }
    }

    fn declare_queue(&mut self, wanted: &topology::Queue) -> Option<Difference> {
        let Some(existing) = self.queues.get(wanted.name.as_str()) else {
            let name = Arc::from(wanted.name.as_str());
            self.queues.insert(name, Queue::new(wanted.clone()));
            return None;
        };
        let details = queue_differences(wanted, &existing.declared);
        (!details.is_empty()).then(|| Difference {
            what: Entity::Queue,
            name: wanted.name.clone(),
            detail: details.join("; "),
        })
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

fn queue_differences(wanted: &topology::Queue, existing: &topology::Queue) -> Vec<String> {
    let ttl = |queue: &topology::Queue| queue.message_ttl.as_ref().map(Duration::as_millis);
    let (wanted_letter, letter) = (wanted.dead_letter.as_ref(), existing.dead_letter.as_ref());
    [
        inequivalent("x-queue-type", Some(wanted.kind), Some(existing.kind)),
        inequivalent("x-message-ttl", ttl(wanted), ttl(existing)),
        inequivalent("x-max-length", wanted.max_length, existing.max_length),
        inequivalent("x-max-priority", wanted.max_priority, existing.max_priority),
        inequivalent(
            "x-delivery-limit",
            wanted.delivery_limit,
            existing.delivery_limit,
        ),
        inequivalent(
            "x-dead-letter-exchange",
            wanted_letter.map(|to| &to.exchange),
            letter.map(|to| &to.exchange),
        ),
        inequivalent(
            "x-dead-letter-routing-key",
            wanted_letter.map(|to| &to.routing_key),
            letter.map(|to| &to.routing_key),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// In RabbitMQ's words, so that both brokers read alike.
fn inequivalent<T: Display + PartialEq>(
    argument: &str,
    received: Option<T>,
    current: Option<T>,
) -> Option<String> {
    let show = |value: &Option<T>| match value {
        Some(value) => format!("'{value}'"),
        None => "none".to_owned(),
    };
    (received != current).then(|| {
        let (received, current) = (show(&received), show(&current));
        format!("inequivalent arg '{argument}': received {received} but current is {current}")
    })
}
