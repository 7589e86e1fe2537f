//! Channels that may be lost, and what is looked at on them: an error ends an AMQP channel.

use lapin::{
    Channel, Connection, ExchangeKind, Queue,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::error;
use crate::broker::{Entity, Error};

pub(super) async fn open(connection: &Connection) -> Result<Channel, Error> {
    error::open(connection.create_channel().await)
}

/// Looks at an exchange.
pub(super) async fn see_exchange(channel: &Channel, name: &str) -> Result<(), Error> {
    let passive = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    // The kind is ignored by a passive declare.
    let kind = ExchangeKind::Direct;
    let declared = channel.exchange_declare(name.into(), kind, passive, FieldTable::default());
    declared
        .await
        .map_err(|cause| error::classify(&cause, Entity::Exchange, name))
}

/// Looks at a queue.
pub(super) async fn see_queue(channel: &Channel, name: &str) -> Result<Queue, Error> {
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(name.into(), passive, FieldTable::default());
    declared
        .await
        .map_err(|cause| error::classify(&cause, Entity::Queue, name))
}
