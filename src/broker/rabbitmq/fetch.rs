//! Messages fetched one by one (`basic.get`), on a connection of their own: when it ends, what is not acked is back in its queue.
//!
//! Not on a connection that others use: to a fetch from a stream the broker answers by closing the whole connection (540,
//! NOT_IMPLEMENTED), and over AMQP nobody can tell beforehand that a queue is one.
//!
//! A quorum queue with a single active consumer refuses `basic.get` (405, RESOURCE_LOCKED: `basic_get/6` in
//! <https://github.com/rabbitmq/rabbitmq-server/blob/v3.10.8/deps/rabbit/src/rabbit_channel.erl>). While nobody consumes it is
//! consumed from instead, as that consumer; one that comes meanwhile has its turn when this ends.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use lapin::{
    Channel, Consumer,
    message::Delivery as Received,
    options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions},
    types::FieldTable,
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
/// How long a queue that is consumed from may give nothing before it counts as empty: no message of AMQP says that.
const NOTHING_COMES: Duration = Duration::from_secs(1);
/// Messages of such a queue that are held at a time: they come unasked for, of whatever size.
const HELD: u16 = 10;

pub(super) struct Fetching {
    queue: String,
    metrics: Metrics,
    channel: Channel,
    /// Set where messages cannot be fetched one by one.
    consumer: Option<Consumer>,
    /// What came and is not acked.
    held: usize,
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
                consumer: None,
                held: 0,
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

    async fn get(&self) -> Result<Option<Received>, Error> {
        let queue = self.queue.as_str().into();
        let getting = self.channel.basic_get(queue, BasicGetOptions::default());
        let got = self.step(getting).await?;
        Ok(got.map(|got| got.delivery))
    }

    /// Consumes from a queue that is not fetched from: the channel is gone that was told so.
    async fn consume(&mut self) -> Result<Consumer, Error> {
        self.channel = channel::open_on(&self.connection.connection).await?;
        let queue = channel::see_queue(&self.channel, &self.queue).await?;
        if queue.consumer_count() > 0 {
            let words = "it has a single active consumer, which is at work: RabbitMQ gives its messages to nobody else meanwhile";
            return Err(Error::Refused(words.to_owned()));
        }
        let qos = self.channel.basic_qos(HELD, BasicQosOptions::default());
        self.step(qos).await?;
        let (queue, options) = (self.queue.as_str().into(), BasicConsumeOptions::default());
        let tag = "courtier-fetch".into();
        let consuming = self
            .channel
            .basic_consume(queue, tag, options, FieldTable::default());
        self.step(consuming).await
    }

    async fn receive(&mut self) -> Result<Option<Received>, Error> {
        let Some(consumer) = self.consumer.as_mut() else {
            return Ok(None);
        };
        if self.held >= HELD.into() {
            return Ok(None);
        }
        match timeout(NOTHING_COMES, consumer.next()).await {
            Err(_) => Ok(None),
            Ok(Some(received)) => received
                .map(Some)
                .map_err(|cause| error::classify(&cause, Entity::Queue, &self.queue)),
            Ok(None) => Err(Error::Down),
        }
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn next(&mut self) -> Result<Option<Delivery>, Error> {
        let got = match self.consumer {
            Some(_) => self.receive().await?,
            None => match self.get().await {
                // Nobody holds the queue itself, or looking at it would have failed.
                Err(Error::Locked { .. }) => {
                    self.consumer = Some(self.consume().await?);
                    self.receive().await?
                }
                got => got?,
            },
        };
        let Some(got) = got else {
            return Ok(None);
        };
        self.held += 1;
        let delivery = convert::delivery(0, got);
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
            self.held = self.held.saturating_sub(1);
        }
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        // In order: the broker has carried out the acks when it answers.
        self.connection.close().await.map_err(|_| Error::Down)
    }
}
