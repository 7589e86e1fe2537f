//! The alternative: the AMQP client itself.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use crate::{PAYLOAD, QUEUE, Result};

/// As many deliveries ahead as the gateway's subscriber asks for.
pub const PREFETCH: u16 = 1_000;

pub struct Direct {
    connection: Connection,
    admin: Channel,
}

impl Direct {
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let admin = connection.create_channel().await?;
        Ok(Self { connection, admin })
    }

    /// An empty queue: what earlier runs left must not slow this one.
    pub async fn fresh_queue(&mut self) -> Result<()> {
        let delete = QueueDeleteOptions::default();
        self.admin.queue_delete(QUEUE.into(), delete).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(
            "x-queue-type".into(),
            AMQPValue::LongString("quorum".into()),
        );
        let durable = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.admin
            .queue_declare(QUEUE.into(), durable, arguments)
            .await?;
        Ok(())
    }

    async fn confirming(&self) -> Result<Channel> {
        let channel = self.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }

    pub async fn publish(&self, count: usize, channels: usize, in_flight: usize) -> Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..channels {
            let channel = self.confirming().await?;
            tasks.spawn(async move {
                let mut confirms = FuturesUnordered::new();
                for _ in 0..count / channels {
                    if confirms.len() >= in_flight
                        && let Some(confirm) = confirms.next().await
                    {
                        check(confirm?)?;
                    }
                    confirms.push(publish(&channel).await?);
                }
                while let Some(confirm) = confirms.next().await {
                    check(confirm?)?;
                }
                channel.close(200, "done".into()).await?;
                Result::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }

    pub async fn one_at_a_time(&self, count: usize) -> Result<Vec<Duration>> {
        let channel = self.confirming().await?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let start = Instant::now();
            check(publish(&channel).await?.await?)?;
            times.push(start.elapsed());
        }
        channel.close(200, "done".into()).await?;
        Ok(times)
    }

    pub async fn consume(&self, count: usize, ack_every: usize) -> Result<()> {
        let channel = self.connection.create_channel().await?;
        channel
            .basic_qos(PREFETCH, BasicQosOptions::default())
            .await?;
        let options = BasicConsumeOptions::default();
        let arguments = FieldTable::default();
        let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, arguments);
        let mut consumer = consumer.await?;
        for index in 1..=count {
            let delivery = consumer.next().await.ok_or("the consumer ended")??;
            if index % ack_every == 0 || index == count {
                let multiple = ack_every > 1;
                delivery.ack(BasicAckOptions { multiple }).await?;
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(())
    }

    pub async fn connect_publish_close(url: &str) -> Result<()> {
        let direct = Self::connect(url).await?;
        let channel = direct.confirming().await?;
        check(publish(&channel).await?.await?)?;
        direct.connection.close(200, "done".into()).await?;
        Ok(())
    }
}

async fn publish(channel: &Channel) -> lapin::Result<lapin::PublisherConfirm> {
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let persistent = BasicProperties::default().with_delivery_mode(2);
    channel
        .basic_publish(
            "".into(),
            QUEUE.into(),
            options,
            &[b'x'; PAYLOAD],
            persistent,
        )
        .await
}

fn check(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("not confirmed: {other:?}").into()),
    }
}
