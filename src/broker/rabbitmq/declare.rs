//! Declares a topology, each thing on a channel that may be lost: an error ends an AMQP channel.

use lapin::{
    Channel, Connection, ExchangeKind as AmqpExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::error;
use crate::broker::{
    Entity, Error,
    topology::{Binding, Difference, Exchange, ExchangeKind, Queue, QueueKind, Topology},
};

/// Declares what is missing, in an order in which each thing finds what it refers to.
pub(super) async fn declare(
    connection: &Connection,
    topology: &Topology,
) -> Result<Vec<Difference>, Error> {
    let mut channel = open(connection).await?;
    let mut differences = Vec::new();
    for exchange in &topology.exchanges {
        let declared = declare_exchange(&channel, exchange).await;
        tolerate(connection, &mut channel, declared, &mut differences).await?;
    }
    for queue in &topology.queues {
        let declared = declare_queue(&channel, queue).await;
        tolerate(connection, &mut channel, declared, &mut differences).await?;
    }
    for binding in &topology.bindings {
        bind(&channel, binding).await?;
    }
    let _ = channel.close(200, "declared".into()).await;
    Ok(differences)
}

async fn open(connection: &Connection) -> Result<Channel, Error> {
    error::open(connection.create_channel().await)
}

/// Notes a difference and goes on, on a fresh channel.
async fn tolerate(
    connection: &Connection,
    channel: &mut Channel,
    declared: Result<(), Error>,
    differences: &mut Vec<Difference>,
) -> Result<(), Error> {
    match declared {
        Err(Error::Differs { what, name, detail }) => {
            differences.push(Difference { what, name, detail });
            *channel = open(connection).await?;
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
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare(queue.name.as_str().into(), durable, arguments(queue))
        .await
        .map(drop)
        .map_err(|cause| error::classify(&cause, Entity::Queue, &queue.name))
}

/// The queue's arguments (<https://www.rabbitmq.com/docs/queues#optional-arguments>).
fn arguments(queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut set = |name: &str, value| {
        arguments.insert(name.into(), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    let number = |n: u64| AMQPValue::LongLongInt(i64::try_from(n).unwrap_or(i64::MAX));

    set("x-queue-type", text(&queue.kind.to_string()));
    if let Some(ttl) = queue.message_ttl {
        let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        set("x-message-ttl", number(ms));
    }
    if let Some(length) = queue.max_length {
        set("x-max-length", number(length));
        // The publisher is told (REJECTED); the alternative drops the oldest message in silence.
        set("x-overflow", text("reject-publish"));
    }
    if let Some(priority) = queue.max_priority {
        set("x-max-priority", number(priority.into()));
    }
    if let Some(limit) = queue.delivery_limit {
        set("x-delivery-limit", number(limit.into()));
    }
    if let Some(to) = &queue.dead_letter {
        set("x-dead-letter-exchange", text(&to.exchange));
        set("x-dead-letter-routing-key", text(&to.routing_key));
        // Without it a dead letter is lost when its target is away for a moment; the broker allows it only together with
        // reject-publish (https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering).
        if queue.kind == QueueKind::Quorum && queue.max_length.is_some() {
            set("x-dead-letter-strategy", text("at-least-once"));
        }
    }
    arguments
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<(), Error> {
    let mut arguments = FieldTable::default();
    for (name, value) in &binding.arguments {
        arguments.insert(
            name.as_str().into(),
            AMQPValue::LongString(value.as_str().into()),
        );
    }
    let name = format!("{} -> {}", binding.exchange, binding.queue);
    channel
        .queue_bind(
            binding.queue.as_str().into(),
            binding.exchange.as_str().into(),
            binding.routing_key.as_str().into(),
            QueueBindOptions::default(),
            arguments,
        )
        .await
        .map_err(|cause| error::classify(&cause, Entity::Binding, &name))
}
