//! Failed messages: twins of `courtier.v1.FailedMessages`' `ListFailedMessages`, `GetFailedMessage`, `RetryFailedMessage` and
//! `DeleteFailedMessage`.

mod filter;
mod view;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::{filter::ListQuery, view::FailedMessage};
use super::error::Error;
use crate::{
    error::Failure,
    gateway::{
        failed_messages::{self, FailedMessages},
        page,
    },
};

pub(super) fn routes(service: &FailedMessages) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, delete))
        .routes(routes!(retry))
        .with_state(service.clone())
}

/// A page of failed messages.
#[derive(Serialize, ToSchema)]
struct ListFailedMessagesResponse {
    /// The newest first.
    failed_messages: Vec<FailedMessage>,
    /// Asks for the next page. Empty: this is the last one. A short page alone does not mean that.
    next_page_token: String,
    /// Messages that belong here and cannot be read: what is stored of them was damaged. They can be deleted.
    unreadable_ids: Vec<String>,
}

/// Lists failed messages with their payloads and histories, the newest first.
///
/// A message is neither left out nor listed twice because others come or go between two pages.
#[utoipa::path(get, path = "/api/messages/failed", operation_id = "listFailedMessages", params(ListQuery), responses(
    (status = OK, body = ListFailedMessagesResponse, description = "A page."),
    (status = "default", body = Error, description = "`INVALID_REQUEST`, `INVALID_PAGE_TOKEN`, `DATABASE_DOWN`."),
))]
async fn list(
    State(service): State<FailedMessages>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<ListFailedMessagesResponse>, Error> {
    let Query(query) = query.map_err(|rejection| Error::invalid("query", rejection.body_text()))?;
    let size = page::size(query.page_size)
        .ok_or_else(|| Error::invalid("page_size", "must not be negative"))?;
    let token = query.page_token.clone();
    let filter = query.filter()?;
    let listed = service.list_full(&filter, size, &token).await;
    let listed = listed.map_err(Failure::from)?;
    Ok(Json(ListFailedMessagesResponse {
        failed_messages: listed.rows.into_iter().map(FailedMessage::full).collect(),
        next_page_token: listed.next,
        unreadable_ids: listed.unreadable,
    }))
}

/// A failed message.
#[derive(Serialize, ToSchema)]
struct GetFailedMessageResponse {
    /// With its payload and its history.
    failed_message: FailedMessage,
}

/// Shows one failed message, with its payload and its history.
#[utoipa::path(get, path = "/api/messages/failed/{id}", operation_id = "getFailedMessage", params(("id" = String, Path)), responses(
    (status = OK, body = GetFailedMessageResponse, description = "The failed message."),
    (status = "default", body = Error, description = "`FAILED_MESSAGE_NOT_FOUND`, `DATABASE_DOWN`."),
))]
async fn get(
    State(service): State<FailedMessages>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<GetFailedMessageResponse>, Error> {
    let full = service.get(read_id(id)?).await;
    let failed_message = FailedMessage::full(full.map_err(Failure::from)?);
    Ok(Json(GetFailedMessageResponse { failed_message }))
}

/// The copy is in its queue.
#[derive(Serialize, ToSchema)]
struct RetryFailedMessageResponse {
    /// The failed message now, without its payload and history. `retrying`, unless a consumer was quicker than the answer.
    failed_message: FailedMessage,
}

/// Retries one failed message now.
///
/// 200 means that the broker confirmed the copy in the queue where the message failed, not yet that it was processed: it is
/// `resolved` when a consumer acks it. Of many identical calls at once exactly one wins.
#[utoipa::path(post, path = "/api/messages/retry/{id}", operation_id = "retryFailedMessage", params(("id" = String, Path)), responses(
    (status = OK, body = RetryFailedMessageResponse, description = "The copy is in its queue."),
    (status = "default", body = Error, description = "`FAILED_MESSAGE_NOT_FOUND`, `STATE_CONFLICT` (it is `retrying` or \
        `resolved`), `RETURNED` (the queue is gone), `QUEUE_FULL`, `BROKER_DOWN`, `DATABASE_DOWN`, …"),
))]
async fn retry(
    State(service): State<FailedMessages>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<RetryFailedMessageResponse>, Error> {
    let row = service.retry(read_id(id)?).await;
    let failed_message = FailedMessage::basic(row.map_err(Failure::from)?);
    Ok(Json(RetryFailedMessageResponse { failed_message }))
}

/// The failed message is gone for good.
#[derive(Serialize, ToSchema)]
struct DeleteFailedMessageResponse {
    id: Uuid,
    /// Always `true`.
    deleted: bool,
}

/// Deletes one failed message for good, payload included.
#[utoipa::path(delete, path = "/api/messages/failed/{id}", operation_id = "deleteFailedMessage", params(("id" = String, Path)), responses(
    (status = OK, body = DeleteFailedMessageResponse, description = "It is gone."),
    (status = "default", body = Error, description = "`FAILED_MESSAGE_NOT_FOUND`, `STATE_CONFLICT` (it is `retrying`), \
        `DATABASE_DOWN`."),
))]
async fn delete(
    State(service): State<FailedMessages>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<DeleteFailedMessageResponse>, Error> {
    let id = read_id(id)?;
    service.delete(id).await.map_err(Failure::from)?;
    Ok(Json(DeleteFailedMessageResponse { id, deleted: true }))
}

/// What is no id names nothing.
fn read_id(id: Result<Path<String>, PathRejection>) -> Result<Uuid, Error> {
    let id = id.ok().and_then(|Path(id)| Uuid::parse_str(&id).ok());
    id.ok_or_else(|| Failure::from(failed_messages::Error::NotFound).into())
}
