//! Between a row of `failed_messages` and the failed message that it holds.

use std::str::FromStr;

use sea_orm::{ActiveValue::Set, DbBackend, Unchanged, Value};
use uuid::Uuid;

use super::{Error, entity::failed_message, properties};
use crate::failed_message::{
    ErrorDetail, FailedMessage, Resolution, State, Status, Time, fingerprint, machine::Lease,
};

impl failed_message::Model {
    /// What the row holds.
    pub(super) fn read(self) -> Result<FailedMessage, Error> {
        let state = self.state()?;
        let message = properties::decode(&self.properties, self.payload, &self.id)?;
        Ok(FailedMessage {
            id: uuid(&self.id, &self.id, "id")?,
            operation_id: option(self.operation_id.as_deref(), |text| {
                uuid(text, &self.id, "operation_id")
            })?,
            reason: parse(&self.reason, &self.id, "reason")?,
            queue: self.queue,
            exchange: self.exchange,
            routing_key: self.routing_key,
            message,
            publish_id: self.publish_id,
            error: ErrorDetail {
                kind: self.error_type,
                message: self.error_message,
                stack: self.error_stack,
            },
            fingerprint: self.fingerprint,
            state,
            comment: self.comment,
            failed_at: self.failed_at,
            last_failed_at: self.last_failed_at,
            updated_at: self.updated_at,
        })
    }

    /// The part that changes.
    pub(super) fn state(&self) -> Result<State, Error> {
        let id = &self.id;
        let lease = match (&self.lease_token, self.lease_until, &self.lease_status) {
            (Some(token), Some(until), Some(before)) => Some(Lease {
                token: uuid(token, id, "lease_token")?,
                until,
                before: parse(before, id, "lease_status")?,
            }),
            _ => None,
        };
        Ok(State {
            status: parse(&self.status, id, "status")?,
            attempt: unsigned(self.attempt),
            retry_count: unsigned(self.retry_count),
            max_retries: unsigned(self.max_retries),
            manual: self.manual,
            next_retry_at: self.next_retry_at,
            last_retry_at: self.last_retry_at,
            lease,
            assume_at: self.assume_at,
            resolution: option(self.resolution.as_deref(), |text| {
                parse::<Resolution>(text, id, "resolution")
            })?,
            resolved_at: self.resolved_at,
        })
    }
}

/// The columns of a state, for the row `id`.
pub(super) fn columns(id: &str, state: &State) -> failed_message::ActiveModel {
    let lease = state.lease.as_ref();
    failed_message::ActiveModel {
        id: Unchanged(id.to_owned()),
        status: Set(text(state.status)),
        attempt: Set(signed(state.attempt)),
        retry_count: Set(signed(state.retry_count)),
        max_retries: Set(signed(state.max_retries)),
        manual: Set(state.manual),
        next_retry_at: Set(state.next_retry_at),
        last_retry_at: Set(state.last_retry_at),
        lease_token: Set(lease.map(|lease| lease.token.to_string())),
        lease_until: Set(lease.map(|lease| lease.until)),
        lease_status: Set(lease.map(|lease| lease.before.to_string())),
        assume_at: Set(state.assume_at),
        resolution: Set(state.resolution.map(|resolution| resolution.to_string())),
        resolved_at: Set(state.resolved_at),
        ..Default::default()
    }
}

pub(super) fn text(status: Status) -> String {
    status.to_string()
}

/// Text that every engine stores: PostgreSQL refuses NUL. The exact text is in the message.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The same, for columns that take so many characters. AMQP's names all fit; what foreign publishers write into a header need
/// not.
pub(super) fn short(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => storable(&text[..end]),
        None => storable(text),
    }
}

/// A moment that somebody names, as a parameter. MariaDB reads what sqlx sends for one with a time zone as a TIMESTAMP: outside
/// 1970 to 2038 that is NULL, which nothing compares with.
pub(super) fn moment(at: Time, backend: DbBackend) -> Value {
    match backend {
        DbBackend::MySql => at.naive_utc().into(),
        _ => at.into(),
    }
}

/// What is stored once for each publish and queue: two deaths of one delivery make one row.
pub(super) fn death_key(publish_id: &str, queue: &str) -> String {
    fingerprint::digest(&["death", publish_id, queue])
}

pub(super) fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or_default()
}

pub(super) fn parse<T: FromStr>(text: &str, id: &str, what: &'static str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Damaged {
        id: id.to_owned(),
        what,
    })
}

pub(super) fn uuid(text: &str, id: &str, what: &'static str) -> Result<Uuid, Error> {
    parse(text, id, what)
}

fn option<T, U>(
    value: Option<T>,
    read: impl FnOnce(T) -> Result<U, Error>,
) -> Result<Option<U>, Error> {
    value.map(read).transpose()
}
