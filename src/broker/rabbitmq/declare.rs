//! Declares a topology, each thing on a channel that may be lost: an error ends an AMQP channel.

use lapin::{
    Channel, ExchangeKind as AmqpExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::{channel, convert, error, link::Up};
use crate::broker::{
    Entity, Error,
    topology::{Binding, Difference, Exchange, ExchangeKind, Queue, Topology},
};

/// Declares what is missing, in an order in which each thing finds what it refers to.
pub(super) async fn declare(up: &Up, topology: &Topology) -> Result<Vec<Difference>, Error> {
    let mut channel = channel::open(up).await?;
    let mut differences = Vec::new();
    for exchange in &topology.exchanges {
        let declared = declare_exchange(&channel, exchange).await;
        tolerate(up, &mut channel, declared, &mut differences).await?;
    }
    for queue in &topology.queues {
        let declared = declare_queue(&channel, queue).await;
        tolerate(up, &mut channel, declared, &mut differences).await?;
    }
    for binding in &topology.bindings {
        bind(&channel, binding).await?;
    }
    let _ = channel.close(200, "declared".into()).await;
    Ok(differences)
}

/// Notes a difference and goes on, on a fresh channel.
async fn tolerate(
    up: &Up,
    channel: &mut Channel,
    declared: Result<(), Error>,
    differences: &mut Vec<Difference>,
) -> Result<(), Error> {
    match declared {
        Err(Error::Differs { what, name, detail }) => {
            differences.push(Difference { what, name, detail });
            *channel = channel::open(up).await?;
            Ok(())
        }
        other => other,
    }
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<(), Error> {
    let kind = match exchange.kind {
        ExchangeKind::Direct => AmqpExchangeKind::Direct,
        ExchangeKind::Topic => AmqpExchangeKind::Topic,
        ExchangeKind::Fanout => AmqpExchangeKind::Fanout,
        ExchangeKind::Headers => AmqpExchangeKind::Headers,
    };
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(
            exchange.name.as_str().into(),
            kind,
            durable,
            FieldTable::default(),
        )
        .await
        .map_err(|cause| error::classify(&cause, Entity::Exchange, &exchange.name))
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Error> {
    let durable = QueueDeclareOptions {
        durable: true,
        auto_delete: queue.auto_delete,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(
            queue.name.as_str().into(),
            durable,
            convert::arguments(&queue.arguments())?,
        )
        .await
        .map(drop)
        .map_err(|cause| error::classify(&cause, Entity::Queue, &queue.name))
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<(), Error> {
    channel
        .queue_bind(
            binding.queue.as_str().into(),
            binding.exchange.as_str().into(),
            binding.routing_key.as_str().into(),
            QueueBindOptions::default(),
            convert::arguments(&binding.arguments)?,
        )
        .await
        .map_err(|cause| error::classify(&cause, Entity::Binding, &binding.to_string()))
}
