//! Declares a topology, each thing on a channel that may be lost: an error ends an AMQP channel.
//!
//! A type of exchange that the broker does not know ends the whole connection (503, COMMAND_INVALID, RabbitMQ 3.10.8). Only the broker
//! knows which plugins it has, so that exchanges of their types are declared on a connection of their own.

use std::time::Duration;

use lapin::{
    Channel, ExchangeKind as AmqpExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
};
use tokio::time::timeout;

use super::{
    channel,
    connect::{Once, Role},
    convert,
    endpoint::Endpoint,
    error,
    link::Up,
};
use crate::broker::{
    Entity, Error,
    topology::{Binding, Difference, Exchange, ExchangeKind, Queue, Topology},
};

/// For one exchange on a connection of its own.
const APART_TIMEOUT: Duration = Duration::from_secs(10);

/// Declares what is missing, in an order in which each thing finds what it refers to.
pub(super) async fn declare(
    up: &Up,
    endpoint: &Endpoint,
    topology: &Topology,
) -> Result<Vec<Difference>, Error> {
    let mut channel = channel::open(up).await?;
    let mut differences = Vec::new();
    let mut refused = Vec::new();
    for exchange in &topology.exchanges {
        if let ExchangeKind::Plugin(kind) = &exchange.kind {
            match declare_apart(endpoint, exchange).await? {
                Apart::Declared => {}
                Apart::Differs(detail) => differences.push(difference(exchange, detail)),
                Apart::Refused(words) => {
                    let detail = format!("{words} ({})", advice(kind));
                    differences.push(difference(exchange, detail));
                    refused.push(&exchange.name);
                }
            }
            continue;
        }
        let declared = declare_exchange(&channel, exchange).await;
        tolerate(up, &mut channel, declared, &mut differences).await?;
    }
    for queue in &topology.queues {
        let declared = declare_queue(&channel, queue).await;
        tolerate(up, &mut channel, declared, &mut differences).await?;
    }
    for binding in &topology.bindings {
        // What is bound to other exchanges is bound all the same.
        if !refused.contains(&&binding.exchange) {
            bind(&channel, binding).await?;
        }
    }
    let _ = channel.close(200, "declared".into()).await;
    Ok(differences)
}

/// What became of an exchange that was declared apart.
enum Apart {
    Declared,
    /// It exists with different arguments; in the broker's words.
    Differs(String),
    /// It does not exist, and the broker does not take it; in its own words.
    Refused(String),
}

async fn declare_apart(endpoint: &Endpoint, exchange: &Exchange) -> Result<Apart, Error> {
    let declaring = async {
        let connection = Once::connect(endpoint, Role::Admin).await;
        let connection = connection.map_err(|cause| {
            tracing::debug!(%cause, "no connection to declare an exchange on");
            Error::Down
        })?;
        let channel = channel::open_on(&connection.connection).await?;
        let declared = match declare_exchange(&channel, exchange).await {
            Ok(()) => Ok(Apart::Declared),
            Err(Error::Refused(words)) => Ok(Apart::Refused(words)),
            Err(Error::Differs { detail, .. }) => {
                let channel = channel::open_on(&connection.connection).await?;
                match channel::see_exchange(&channel, &exchange.name).await {
                    Err(Error::NotFound { .. }) => Ok(Apart::Refused(detail)),
                    _ => Ok(Apart::Differs(detail)),
                }
            }
            Err(error) => Err(error),
        };
        let _ = connection.close().await;
        declared
    };
    timeout(APART_TIMEOUT, declaring)
        .await
        .unwrap_or(Err(Error::TimedOut))
}

fn difference(exchange: &Exchange, detail: String) -> Difference {
    Difference {
        what: Entity::Exchange,
        name: exchange.name.clone(),
        detail,
    }
}

/// What to do so that the broker knows this type of exchange.
fn advice(kind: &str) -> String {
    let plugin = match kind {
        "x-consistent-hash" => "rabbitmq_consistent_hash_exchange",
        "x-delayed-message" => "rabbitmq_delayed_message_exchange",
        "x-jms-topic" => "rabbitmq_jms_topic_exchange",
        "x-message-deduplication" => "rabbitmq_message_deduplication",
        "x-modulus-hash" => "rabbitmq_sharding",
        "x-random" => "rabbitmq_random_exchange",
        "x-recent-history" => "rabbitmq_recent_history_exchange",
        _ => return format!("does the broker have the plugin that brings {kind}, enabled?"),
    };
    format!("is its plugin enabled? rabbitmq-plugins enable {plugin}")
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
    let kind = match &exchange.kind {
        ExchangeKind::Direct => AmqpExchangeKind::Direct,
        ExchangeKind::Topic => AmqpExchangeKind::Topic,
        ExchangeKind::Fanout => AmqpExchangeKind::Fanout,
        ExchangeKind::Headers => AmqpExchangeKind::Headers,
        ExchangeKind::Plugin(kind) => AmqpExchangeKind::Custom(kind.clone()),
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
            convert::arguments(&exchange.arguments)?,
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
