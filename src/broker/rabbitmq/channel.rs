//! Channels that may be lost, and what is looked at on them: an error ends an AMQP channel.
//!
//! A channel must not be let go of while the broker may be ending it. The client library would close it at the same time, take the
//! broker's answer to that for one on a channel that never was, and end the whole connection, with all that others have on it. So
//! what may be refused is done [`to_the_end`], however soon whoever asked gives up.

use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind, Queue,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::FieldTable,
};

use super::{error, link::Up};
use crate::broker::{Entity, Error};

/// What needs a connection ends with it ([`Up::while_up`]).
pub(super) use crate::finish::to_the_end;

pub(super) async fn open(up: &Up) -> Result<Channel, Error> {
    open_on(up.connection()).await
}

/// Opens a channel. A number whose last channel was ended by an error cannot be used again: the client library fails it at once,
/// with the old error, and does not offer it a second time (see [`super::link`]). The next number is tried then.
pub(super) async fn open_on(connection: &Connection) -> Result<Channel, Error> {
    let mut tries = connection.configuration().channel_max();
    loop {
        let error = match connection.create_channel().await {
            Ok(channel) => return Ok(channel),
            Err(error) => error,
        };
        // The broker itself refuses a channel only by ending the connection.
        let spoilt = connection.status().connected()
            && matches!(
                error.kind(),
                ErrorKind::ProtocolError(_) | ErrorKind::InvalidChannelState(..)
            );
        if !spoilt || tries == 0 {
            return error::open(Err(error));
        }
        tries -= 1;
    }
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
