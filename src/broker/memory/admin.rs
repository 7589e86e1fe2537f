//! Administration: everything is known, exactly.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{MemoryBroker, fetch::MemoryFetch, queue::Queue, state::State};
use crate::{
    broker::{
        Entity, Error,
        admin::{
            Admin, BindingInfo, BrokerStatus, Destination, ExchangeInfo, Fetch, Flow, Management,
            OnlyIf, QueueInfo, Source,
        },
        topology::{Binding, ExchangeKind},
    },
    message::Table,
};

impl State {
    fn info(&self, name: &str, queue: &Queue) -> QueueInfo {
        let feeds = self.subscribers.values().flat_map(|subscriber| {
            let live = !subscriber.stopped;
            let feeds = subscriber.feeds.iter().filter(|feed| *feed.queue == *name);
            feeds.map(move |feed| (u64::from(live), feed.unsettled() as u64))
        });
        let (consumers, unacked) = feeds.fold((0, queue.fetched), |sum, feed| {
            (sum.0 + feed.0, sum.1 + feed.1)
        });
        let flow = |total| Flow {
            total: Some(total),
            per_second: None,
        };
        let declared = &queue.declared;
        let ready = queue.depth() as u64;
        QueueInfo {
            name: name.to_owned(),
            kind: Some(declared.kind.to_string()),
            durable: Some(true),
            auto_delete: Some(declared.auto_delete),
            arguments: Some(declared.arguments()),
            ready: Some(ready),
            unacked: Some(unacked),
            consumers: Some(consumers),
            publish: flow(queue.arrivals()),
            deliver: flow(queue.handed),
            ack: flow(queue.acked),
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            capacity_ratio: declared.max_length.map(|most| ready as f64 / most as f64),
            delivery_limit: declared.delivery_limit,
            source: Source::Embedded,
        }
    }

    fn open(&self) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Down);
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<&Queue, Error> {
        self.open()?;
        self.queues
            .get(name)
            .ok_or_else(|| missing(Entity::Queue, name))
    }
}

fn missing(what: Entity, name: &str) -> Error {
    Error::NotFound {
        what,
        name: name.to_owned(),
    }
}

fn exchange(name: &str, kind: &ExchangeKind) -> ExchangeInfo {
    ExchangeInfo {
        name: name.to_owned(),
        kind: Some(kind.to_string()),
        durable: Some(true),
        internal: Some(false),
        arguments: Some(Table::new()),
    }
}

#[async_trait]
impl Admin for MemoryBroker {
    async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        let mut state = self.shared.lock();
        state.open()?;
        state.expire(Instant::now());
        let queues = state.queues.iter();
        Ok(queues
            .map(|(name, queue)| state.info(name, queue))
            .collect())
    }

    async fn queue(&self, name: &str) -> Result<QueueInfo, Error> {
        let mut state = self.shared.lock();
        state.expire(Instant::now());
        Ok(state.info(name, state.find(name)?))
    }

    async fn exchanges(&self) -> Result<Vec<ExchangeInfo>, Error> {
        let state = self.shared.lock();
        state.open()?;
        let declared = state.exchanges.iter();
        let declared = declared.map(|(name, declared)| exchange(name, &declared.kind));
        let default = exchange("", &ExchangeKind::Direct);
        Ok(std::iter::once(default).chain(declared).collect())
    }

    async fn exchange(&self, name: &str) -> Result<ExchangeInfo, Error> {
        let state = self.shared.lock();
        state.open()?;
        match state.exchanges.get(name) {
            Some(declared) => Ok(exchange(name, &declared.kind)),
            None if name.is_empty() => Ok(exchange("", &ExchangeKind::Direct)),
            None => Err(missing(Entity::Exchange, name)),
        }
    }

    async fn bindings(&self) -> Result<Vec<BindingInfo>, Error> {
        let state = self.shared.lock();
        state.open()?;
        let bindings = state.exchanges.iter().flat_map(|(name, exchange)| {
            exchange
                .bindings()
                .map(|(queue, key, arguments)| BindingInfo {
                    exchange: name.clone(),
                    destination: Destination::Queue(queue.to_owned()),
                    routing_key: key.to_owned(),
                    arguments: arguments.clone(),
                })
        });
        Ok(bindings.collect())
    }

    async fn status(&self) -> BrokerStatus {
        BrokerStatus {
            product: "embedded",
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            cluster: None,
            virtual_host: "/".to_owned(),
            nodes: Vec::new(),
            connections: None,
            management: Management::NotNeeded,
        }
    }

    async fn delete_queue(&self, name: &str, only: OnlyIf) -> Result<u64, Error> {
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.expire(now);
        let info = state.info(name, state.find(name)?);
        only.check(name, info.consumers, info.ready)?;
        state.delete_queue(name, now);
        Ok(info.ready.unwrap_or_default())
    }

    async fn purge_queue(&self, name: &str) -> Result<u64, Error> {
        let mut state = self.shared.lock();
        state.expire(Instant::now());
        state.find(name)?;
        let queue = state.queues.get_mut(name);
        Ok(queue.map(Queue::purge).unwrap_or_default())
    }

    async fn delete_exchange(&self, name: &str, only_if_unused: bool) -> Result<(), Error> {
        let mut state = self.shared.lock();
        state.open()?;
        let Some(exchange) = state.exchanges.get(name) else {
            return Err(missing(Entity::Exchange, name));
        };
        if only_if_unused && exchange.bindings().next().is_some() {
            let (what, name) = (Entity::Exchange, name.to_owned());
            return Err(Error::InUse { what, name });
        }
        state.exchanges.remove(name);
        Ok(())
    }

    async fn unbind(&self, binding: &Binding) -> Result<(), Error> {
        let mut state = self.shared.lock();
        state.find(&binding.queue)?;
        let Some(exchange) = state.exchanges.get_mut(&binding.exchange) else {
            return Err(missing(Entity::Exchange, &binding.exchange));
        };
        exchange.unbind_one(&binding.queue, &binding.routing_key, &binding.arguments);
        Ok(())
    }

    async fn fetch(&self, queue: &str) -> Result<Box<dyn Fetch>, Error> {
        self.shared.lock().find(queue)?;
        Ok(Box::new(MemoryFetch::new(&self.shared, queue)))
    }
}
