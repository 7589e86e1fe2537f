//! Which failed messages: the query of the list.

use std::str::FromStr;

use chrono::DateTime;
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::super::error::Error;
use crate::{
    failed_message::{Reason, Status, Time, is_known_to_databases},
    store::Filter,
};

/// A message is listed when it meets every condition; an empty parameter is none.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The queue in which it failed.
    #[param(required = false)]
    queue: String,
    /// The exchange that it was first published to.
    #[param(required = false)]
    exchange: String,
    /// The routing key that it was first published with.
    #[param(required = false)]
    routing_key: String,
    /// One of these, separated by commas: `pending`, `retrying`, `failed`, `resolved`.
    #[param(required = false, example = "pending,failed")]
    status: String,
    /// It died last in one of these ways, separated by commas: `rejected`, `expired`, `max_length`, `delivery_limit`, `returned`.
    #[param(required = false)]
    reason: String,
    /// Part of the error's type or message. No index helps: a page may be short or empty and still have a next one.
    #[param(required = false)]
    error_text: String,
    /// First died then or later; RFC 3339.
    #[param(required = false, example = "2026-01-31T08:00:00Z")]
    failed_after: String,
    /// First died before that; RFC 3339.
    #[param(required = false)]
    failed_before: String,
    /// The group of failures that are alike.
    #[param(required = false)]
    fingerprint: String,
    /// The message's own id.
    #[param(required = false)]
    message_id: String,
    /// The bulk retry that it belongs to.
    #[param(required = false)]
    operation_id: String,
    /// How many at most: default 50, at most 100; larger values count as 100. A page is short when its payloads come to more
    /// than 3 MiB.
    #[param(required = false, minimum = 0)]
    pub(super) page_size: i32,
    /// Empty for the first page, then `next_page_token` of the page before, with the same conditions.
    #[param(required = false)]
    pub(super) page_token: String,
}

impl ListQuery {
    pub(super) fn filter(self) -> Result<Filter, Error> {
        let operation = some(self.operation_id).map(|id| Uuid::parse_str(&id));
        let operation = operation.transpose();
        Ok(Filter {
            statuses: several::<Status>("status", &self.status)?,
            reasons: several::<Reason>("reason", &self.reason)?,
            operation_id: operation
                .map_err(|_| Error::invalid("operation_id", "is not the id of an operation"))?,
            queue: some(self.queue),
            exchange: some(self.exchange),
            routing_key: some(self.routing_key),
            error_text: some(self.error_text),
            failed_after: time("failed_after", &self.failed_after)?,
            failed_before: time("failed_before", &self.failed_before)?,
            fingerprint: some(self.fingerprint),
            message_id: some(self.message_id),
        })
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn several<T: FromStr>(field: &'static str, text: &str) -> Result<Vec<T>, Error> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| {
            let unknown =
                |_| Error::invalid(field, format!("has a value that is not known: {name:?}"));
            name.parse().map_err(unknown)
        })
        .collect()
}

fn time(field: &'static str, text: &str) -> Result<Option<Time>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let time = DateTime::parse_from_rfc3339(text)
        .ok()
        .map(|time| time.to_utc());
    match time.filter(is_known_to_databases) {
        Some(time) => Ok(Some(time)),
        None => {
            let problem = "must be a time such as 2026-01-31T08:00:00Z, from 1970 to 9999";
            Err(Error::invalid(field, problem))
        }
    }
}
