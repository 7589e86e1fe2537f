//! What the client library's errors mean, by reply code (<https://www.rabbitmq.com/amqp-0-9-1-reference#constants>), never by text.

use lapin::{
    ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
};

use crate::broker::{Ended, Entity, Error, Refusal};

/// The meaning of an error that came while `what` named `name` was asked for.
pub(super) fn classify(error: &lapin::Error, what: Entity, name: &str) -> Error {
    let name = name.to_owned();
    match soft(error) {
        Some(AMQPSoftError::NOTFOUND) => Error::NotFound { what, name },
        Some(AMQPSoftError::ACCESSREFUSED) => Error::Forbidden { what, name },
        Some(AMQPSoftError::RESOURCELOCKED) => Error::Locked { name },
        Some(AMQPSoftError::PRECONDITIONFAILED) => Error::Differs {
            what,
            name,
            detail: reply_text(error),
        },
        Some(_) => Error::Refused(reply_text(error)),
        None => match error.kind() {
            ErrorKind::ChannelsLimitReached => Error::TooManySubscriptions,
            ErrorKind::ProtocolError(error) if is_passing(error.kind()) => Error::Down,
            ErrorKind::ProtocolError(_) => Error::Refused(reply_text(error)),
            _ => Error::Down,
        },
    }
}

/// Whether the broker closed the connection for reasons of its own, not for what it was asked.
fn is_passing(kind: &AMQPErrorKind) -> bool {
    use AMQPHardError::{CONNECTIONFORCED, INTERNALERROR, RESOURCEERROR};
    matches!(
        kind,
        AMQPErrorKind::Hard(CONNECTIONFORCED | INTERNALERROR | RESOURCEERROR)
    )
}

/// Why a subscription is over whose channel ended.
pub(super) fn ended(error: &lapin::Error) -> Ended {
    match soft(error) {
        // The other thing that RabbitMQ says with this code on a channel that only consumes is that it knows no such delivery tag. Ours
        // are those that it gave (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>).
        Some(AMQPSoftError::PRECONDITIONFAILED) => Ended::ConsumerTimeout(None),
        _ => Ended::BrokerDown,
    }
}

/// For steps that fail only with the link.
pub(super) fn open<T>(result: lapin::Result<T>) -> Result<T, Error> {
    result.map_err(|error| classify(&error, Entity::Queue, ""))
}

/// Why the broker refused a publish, where it did.
pub(super) fn refusal(error: &lapin::Error) -> Option<Refusal> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => refused(error.get_id()),
        _ => None,
    }
}

/// What the code means with which the broker ended a channel that was published on. It has one code (406) for the size, `expiration`
/// and `user_id` of a publish; ours have no user id, and an expiration that is a number.
pub(super) fn refused(code: u16) -> Option<Refusal> {
    match code {
        404 => Some(Refusal::NoExchange),
        403 => Some(Refusal::Forbidden),
        406 => Some(Refusal::TooLarge),
        _ => None,
    }
}

/// What the broker ended a channel or connection with, if it did.
pub(super) fn protocol(error: &lapin::Error) -> Option<&AMQPErrorKind> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.kind()),
        _ => None,
    }
}

fn soft(error: &lapin::Error) -> Option<AMQPSoftError> {
    match protocol(error)? {
        AMQPErrorKind::Soft(soft) => Some(soft.clone()),
        AMQPErrorKind::Hard(_) => None,
    }
}

/// The broker's own words, for people.
fn reply_text(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().to_string(),
        _ => error.to_string(),
    }
}
