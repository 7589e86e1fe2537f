//! Administration: over AMQP, each question on a channel that may be lost, and by the management API where AMQP does not tell.

use std::time::Duration;

use async_trait::async_trait;
use lapin::{
    Channel,
    options::{ExchangeDeleteOptions, QueueDeleteOptions, QueuePurgeOptions},
};
use tokio::time::{Instant, timeout};

use super::{
    LINK_PATIENCE, RabbitMq, channel, convert, error, fetch::Fetching, management::Management,
};
use crate::broker::{
    Entity, Error,
    admin::{
        Admin, BindingInfo, BrokerStatus, ExchangeInfo, Fetch, Management as State, OnlyIf,
        QueueInfo,
    },
    topology::{Binding, QueueKind},
};

/// For one question over AMQP.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long after the first look a queue that says that it is empty is asked again, before it is deleted for that.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the broker tells of a queue over AMQP.
struct Counts {
    ready: u32,
    consumers: u32,
}

impl RabbitMq {
    fn management(&self) -> Result<&Management, Error> {
        self.management.as_ref().ok_or(Error::ManagementOff)
    }

    /// Does one thing to what has this name, on a channel of its own.
    async fn on_channel<T, F>(
        &self,
        name: &str,
        work: impl FnOnce(Channel, String) -> F + Send + 'static,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let up = self.admin.ready(LINK_PATIENCE).await.ok_or(Error::Down)?;
        let name = name.to_owned();
        let asking = channel::to_the_end(async move {
            let asking = async {
                let channel = channel::open(&up).await?;
                let done = work(channel.clone(), name).await?;
                let _ = channel.close(200, "done".into()).await;
                Ok(done)
            };
            up.while_up(asking).await
        });
        timeout(TIMEOUT, asking)
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    /// What the management API tells of a queue, if it does.
    async fn told(&self, name: &str) -> Option<QueueInfo> {
        self.management().ok()?.queue(name).await.ok().flatten()
    }

    /// Looks whether all of these queues are there, in their order.
    pub(super) async fn see_queues(&self, names: &[String]) -> Result<(), Error> {
        let names = names.to_vec();
        self.on_channel("", async move |channel, _| {
            for name in &names {
                channel::see_queue(&channel, name).await?;
            }
            Ok(())
        })
        .await
    }

    async fn counts(&self, name: &str) -> Result<Counts, Error> {
        let seen = self.on_channel(name, async move |channel, name| {
            channel::see_queue(&channel, &name).await
        });
        let queue = seen.await?;
        Ok(Counts {
            ready: queue.message_count(),
            consumers: queue.consumer_count(),
        })
    }
}

#[async_trait]
impl Admin for RabbitMq {
    async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        self.management()?.queues().await
    }

    async fn queue(&self, name: &str) -> Result<QueueInfo, Error> {
        let (counts, told) = tokio::join!(self.counts(name), self.told(name));
        let counts = counts?;
        Ok(QueueInfo {
            name: name.to_owned(),
            ready: Some(counts.ready.into()),
            consumers: Some(counts.consumers.into()),
            ..told.unwrap_or_default()
        })
    }

    async fn exchanges(&self) -> Result<Vec<ExchangeInfo>, Error> {
        self.management()?.exchanges().await
    }

    async fn exchange(&self, name: &str) -> Result<ExchangeInfo, Error> {
        let exists = self.on_channel(name, async move |channel, name| {
            channel::see_exchange(&channel, &name).await
        });
        let more = async { self.management()?.exchange(name).await };
        let (exists, more) = tokio::join!(exists, more);
        exists?;
        Ok(more.ok().flatten().unwrap_or_else(|| ExchangeInfo {
            name: name.to_owned(),
            kind: None,
            durable: None,
            internal: None,
            arguments: None,
        }))
    }

    async fn bindings(&self) -> Result<Vec<BindingInfo>, Error> {
        self.management()?.bindings().await
    }

    async fn status(&self) -> BrokerStatus {
        let mut status = BrokerStatus {
            product: "RabbitMQ",
            version: None,
            cluster: None,
            virtual_host: self.endpoint.virtual_host(),
            nodes: Vec::new(),
            connections: None,
            management: State::Off,
        };
        let Ok(management) = self.management() else {
            return status;
        };
        let (overview, nodes) = tokio::join!(management.overview(), management.nodes());
        status.management = match overview {
            Ok(overview) => {
                status.connections = overview.connections();
                status.version = overview.rabbitmq_version;
                status.cluster = overview.cluster_name;
                State::Up
            }
            Err(Error::ManagementDown(reason)) => State::Down(reason),
            Err(error) => State::Down(error.to_string()),
        };
        status.nodes = nodes.unwrap_or_default();
        status
    }

    async fn delete_queue(&self, name: &str, only: OnlyIf) -> Result<u64, Error> {
        // Quorum queues know no conditions: with one, the broker would close the whole connection (540, NOT_IMPLEMENTED:
        // `delete/4` in <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_quorum_queue.erl>).
        let mut options = QueueDeleteOptions::default();
        if only.unused || only.empty {
            let told = self.told(name).await;
            let classic = QueueKind::Classic.to_string();
            let is_classic = told.as_ref().and_then(|queue| queue.kind.as_ref()) == Some(&classic);
            (options.if_unused, options.if_empty) =
                (is_classic && only.unused, is_classic && only.empty);
            let told = told.unwrap_or_default();
            let now = self.counts(name).await?;
            only.check(name, told.consumers, told.ready)?;
            only.check(name, Some(now.consumers.into()), Some(now.ready.into()))?;
            if !is_classic {
                // A quorum queue whose leader is busy or being elected says that it has nothing
                // (`stat/2` in <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_quorum_queue.erl>).
                tokio::time::sleep(LOOK_AGAIN).await;
                let now = self.counts(name).await?;
                only.check(name, Some(now.consumers.into()), Some(now.ready.into()))?;
            }
        } else {
            // Deleting what does not exist is no error in AMQP.
            self.counts(name).await?;
        }
        let deleted = self.on_channel(name, async move |channel, name| {
            let deleted = channel.queue_delete(name.as_str().into(), options).await;
            deleted.map_err(|cause| error::classify(&cause, Entity::Queue, &name))
        });
        match deleted.await {
            // What was looked at before has changed since.
            Err(Error::Differs { what, name, .. }) => Err(Error::InUse { what, name }),
            deleted => Ok(deleted?.into()),
        }
    }

    async fn purge_queue(&self, name: &str) -> Result<u64, Error> {
        let purged = self.on_channel(name, async move |channel, name| {
            let purged = channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default());
            let purged = purged.await;
            purged.map_err(|cause| error::classify(&cause, Entity::Queue, &name))
        });
        Ok(purged.await?.into())
    }

    async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), Error> {
        self.exchange(name).await?;
        let deleted = self.on_channel(name, async move |channel, name| {
            let options = ExchangeDeleteOptions {
                if_unused,
                ..ExchangeDeleteOptions::default()
            };
            let deleted = channel.exchange_delete(name.as_str().into(), options);
            let deleted = deleted.await;
            deleted.map_err(|cause| error::classify(&cause, Entity::Exchange, &name))
        });
        let deleted = deleted.await;
        self.checks.forget(name).await;
        match deleted {
            Err(Error::Differs { what, name, .. }) => Err(Error::InUse { what, name }),
            deleted => deleted,
        }
    }

    async fn unbind(&self, binding: &Binding) -> Result<(), Error> {
        let arguments = convert::arguments(&binding.arguments)?;
        let (name, binding) = (binding.to_string(), binding.clone());
        self.on_channel(&name, async move |channel, name| {
            let unbound = channel.queue_unbind(
                binding.queue.as_str().into(),
                binding.exchange.as_str().into(),
                binding.routing_key.as_str().into(),
                arguments,
            );
            let unbound = unbound.await;
            unbound.map_err(|cause| error::classify(&cause, Entity::Binding, &name))
        })
        .await
    }

    async fn fetch(&self, queue: &str) -> Result<Box<dyn Fetch>, Error> {
        // It says at once what a connection of its own would find out by waiting.
        self.admin.up().ok_or(Error::Down)?;
        let seat = self.fetches.clone().try_acquire_owned();
        let seat = seat.map_err(|_| Error::TooManySubscriptions)?;
        let fetching = Fetching::begin(
            seat,
            &self.endpoint,
            &self.metrics,
            queue,
            Instant::now() + TIMEOUT,
        );
        Ok(Box::new(fetching.await?))
    }
}
