//! Messages fetched one by one (`basic.get`), on a connection of their own: when it ends, what is not acked is back in its queue.
//!
//! Not on a connection that others use: to a fetch from a stream the broker answers by closing the whole connection (540,
//! NOT_IMPLEMENTED), and over AMQP nobody can tell beforehand that a queue is one.

use std::time::Duration;

use async_trait::async_trait;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicGetOptions},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout, timeout_at},
};

use super::{
    channel,
    connect::{Once, Role},
    convert,
    endpoint::Endpoint,
    error, wire,
};
use crate::{
    broker::{Delivery, Entity, Error, Tag, admin::Fetch},
    metrics::Metrics,
};

const STEP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Fetching {
    queue: String,
    metrics: Metrics,
    channel: Channel,
    connection: Once,
    /// One of those that there may be at a time.
    _seat: OwnedSemaphorePermit,
}

impl Fetching {
    pub(super) async fn begin(
        seat: OwnedSemaphorePermit,
        endpoint: &Endpoint,
        metrics: &Metrics,
        queue: &str,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let begin = async {
            let connection = Once::connect(endpoint, Role::Fetch).await;
            let connection = connection.map_err(|cause| {
                tracing::debug!(%cause, "no connection to fetch with");
                Error::Down
            })?;
            let channel = channel::open_on(&connection.connection).await?;
            Ok(Self {
                queue: queue.to_owned(),
                metrics: metrics.clone(),
                channel,
                connection,
                _seat: seat,
            })
        };
        timeout_at(deadline, begin)
            .await
            .unwrap_or(Err(Error::TimedOut))
    }

    async fn step<T>(&self, work: impl Future<Output = lapin::Result<T>>) -> Result<T, Error> {
        // The client library may wait for ever on a connection that ends.
        let done = timeout(STEP_TIMEOUT, work).await;
        let done = done.map_err(|_| Error::TimedOut)?;
        done.map_err(|cause| error::classify(&cause, Entity::Queue, &self.queue))
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let queue = self.queue.as_str().into();
        let getting = self.channel.basic_get(queue, BasicGetOptions::default());
        let got = self.step(getting).await?;
        let Some(got) = got else {
            return Ok(None);
        };
        let delivery = convert::delivery(0, got.delivery);
        if self
            .connection
            .notes
            .take_repaired(self.channel.id(), delivery.tag)
        {
            wire::note_repaired(&self.metrics, &self.queue, &delivery.message);
        }
        Ok(Some(delivery))
    }

    async fn ack(&mut self, tags: &[Tag]) -> Result<(), Error> {
        for tag in tags {
            let ack = self.channel.basic_ack(*tag, BasicAckOptions::default());
            self.step(ack).await?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        // In order: the broker has carried out the acks when it answers.
        self.connection.close().await.map_err(|_| Error::Down)
    }
}
