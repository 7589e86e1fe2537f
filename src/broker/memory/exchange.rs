//! Exchanges: which queues a message goes to.

use std::{collections::HashMap, sync::Arc};

use super::{
    headers::HeadersMatch,
    topic::{self, Pattern},
};
use crate::{
    broker::{Error, topology::ExchangeKind},
    message::Table,
};

/// A declared exchange and its bindings, by routing key, so that a direct exchange is one look-up.
pub(super) struct Exchange {
    pub(super) kind: ExchangeKind,
    routes: HashMap<String, Route>,
}

/// All bindings of one routing key. The key is read as a topic pattern once, here.
struct Route {
    pattern: Pattern,
    bound: Vec<Bound>,
}

struct Bound {
    queue: Arc<str>,
    /// As they were declared.
    arguments: Table,
    matching: HeadersMatch,
}

impl Exchange {
    pub(super) fn new(kind: ExchangeKind) -> Self {
        Self {
            kind,
            routes: HashMap::new(),
        }
    }

    /// Binds a queue; binding it twice alike is one binding.
    pub(super) fn bind(
        &mut self,
        queue: Arc<str>,
        routing_key: &str,
        arguments: &Table,
    ) -> Result<(), Error> {
        let matching = HeadersMatch::parse(arguments)?;
        let route = self
            .routes
            .entry(routing_key.to_owned())
            .or_insert_with(|| Route {
                pattern: Pattern::parse(routing_key),
                bound: Vec::new(),
            });
        let known = |bound: &Bound| bound.queue == queue && bound.arguments == *arguments;
        if !route.bound.iter().any(known) {
            route.bound.push(Bound {
                queue,
                arguments: arguments.clone(),
                matching,
            });
        }
        Ok(())
    }

    /// Removes one binding, if it is there.
    pub(super) fn unbind_one(&mut self, queue: &str, routing_key: &str, arguments: &Table) {
        if let Some(route) = self.routes.get_mut(routing_key) {
            let other = |bound: &Bound| *bound.queue != *queue || bound.arguments != *arguments;
            route.bound.retain(other);
            if route.bound.is_empty() {
                self.routes.remove(routing_key);
            }
        }
    }

    /// Every binding: queue, routing key and arguments.
    pub(super) fn bindings(&self) -> impl Iterator<Item = (&str, &str, &Table)> {
        self.routes.iter().flat_map(|(key, route)| {
            let bound = route.bound.iter();
            bound.map(move |bound| (&*bound.queue, key.as_str(), &bound.arguments))
        })
    }

    /// Removes every binding of a queue.
    pub(super) fn unbind(&mut self, queue: &str) {
        for route in self.routes.values_mut() {
            route.bound.retain(|bound| *bound.queue != *queue);
        }
        self.routes.retain(|_, route| !route.bound.is_empty());
    }

    /// The queues that a message goes to: each once, however many bindings match.
    pub(super) fn route(&self, routing_key: &str, headers: &Table) -> Vec<Arc<str>> {
        let mut queues: Vec<Arc<str>> = match &self.kind {
            ExchangeKind::Direct => match self.routes.get(routing_key) {
                Some(route) => route.queues().collect(),
                None => Vec::new(),
            },
            ExchangeKind::Topic => {
                let words = topic::words(routing_key);
                let matching = |route: &&Route| route.pattern.matches(&words);
                let routes = self.routes.values().filter(matching);
                routes.flat_map(Route::queues).collect()
            }
            ExchangeKind::Fanout => self.routes.values().flat_map(Route::queues).collect(),
            ExchangeKind::Headers => {
                let bound = self.routes.values().flat_map(|route| &route.bound);
                let matching = bound.filter(|bound| bound.matching.matches(headers));
                matching.map(|bound| bound.queue.clone()).collect()
            }
            // None is ever declared.
            ExchangeKind::Plugin(_) => Vec::new(),
        };
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

impl Route {
    fn queues(&self) -> impl Iterator<Item = Arc<str>> {
        self.bound.iter().map(|bound| bound.queue.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(kind: ExchangeKind, bindings: &[(&str, &str)]) -> Exchange {
        let mut exchange = Exchange::new(kind);
        for (queue, key) in bindings {
            let bind = exchange.bind((*queue).into(), key, &Table::new());
            bind.expect("no arguments");
        }
        exchange
    }

    fn routed(exchange: &Exchange, routing_key: &str) -> Vec<String> {
        let queues = exchange.route(routing_key, &Table::new());
        queues.iter().map(|queue| queue.to_string()).collect()
    }

    #[test]
    fn a_direct_exchange_takes_the_key_literally() {
        let exchange = bound(ExchangeKind::Direct, &[("a", "x.#"), ("b", "x.y")]);
        assert_eq!(routed(&exchange, "x.y"), ["b"]);
    }

    #[test]
    fn a_queue_with_two_matching_bindings_gets_a_message_once() {
        let exchange = bound(ExchangeKind::Topic, &[("a", "x.*"), ("a", "#"), ("b", "#")]);
        assert_eq!(routed(&exchange, "x.y"), ["a", "b"]);
    }

    #[test]
    fn an_unbound_queue_gets_nothing_more() {
        let mut exchange = bound(ExchangeKind::Fanout, &[("a", ""), ("b", "")]);
        exchange.unbind("a");
        assert_eq!(routed(&exchange, "anything"), ["b"]);
    }
}
