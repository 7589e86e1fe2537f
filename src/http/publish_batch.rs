//! `POST /api/messages/publish/batch`: the twin of `courtier.v1.Publisher/PublishBatch`.

use std::fmt;

use axum::{
    Json,
    extract::{DefaultBodyLimit, Request, State},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body, deadline,
    error::{Error, ErrorBody},
    publish::{self, PublishRequest},
};
use crate::{
    error::Failure,
    gateway::{
        publisher::{MAX_BATCH, Published, Publisher, check_batch},
        validate::Invalid,
    },
    traces::Origin,
};

pub(super) const PATH: &str = "/api/messages/publish/batch";

pub(super) fn routes(publisher: &Publisher) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(publish_batch))
        .layer(DefaultBodyLimit::max(publisher.limits.batch_bytes()))
        .with_state(publisher.clone())
}

/// Messages, and where each goes.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PublishBatchRequest<'a> {
    /// Each as in `POST /api/messages/publish`. They are stored in their order, as far as they go to the same queue.
    #[serde(borrow)]
    #[schema(value_type = Vec<PublishRequest>, min_items = 1, max_items = 1000)]
    messages: Messages<'a>,
}

/// Each is read by itself: one that cannot be read fails alone.
struct Messages<'a> {
    /// The first of them, as many as a batch may hold.
    first: Vec<&'a RawValue>,
    /// All of them. Those beyond take no memory.
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Messages<'a> {
    fn deserialize<D: Deserializer<'de>>(list: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Messages<'de>;

            fn expecting(&self, text: &mut fmt::Formatter) -> fmt::Result {
                text.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut first = Vec::new();
                while first.len() < MAX_BATCH {
                    match list.next_element()? {
                        Some(message) => first.push(message),
                        None => break,
                    }
                }
                let mut count = first.len();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Messages { first, count })
            }
        }
        list.deserialize_seq(List)
    }
}

/// What became of each message.
#[derive(Serialize, ToSchema)]
struct PublishBatchResponse {
    /// As many as messages, in their order.
    results: Vec<PublishResult>,
}

/// What became of one message.
#[derive(Serialize, ToSchema)]
struct PublishResult {
    /// The message's id: yours, or the one that the gateway made. Empty: it could not be read.
    message_id: String,
    /// This publish's own id. Empty: it was refused before it got one.
    publish_id: String,
    /// `CONFIRMED`, `UNROUTABLE`, `REJECTED`, `NOT_SENT`, `IN_DOUBT` or `INVALID`.
    outcome: &'static str,
    /// Set unless it is `CONFIRMED`: what publishing it alone would have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
}

impl From<Published> for PublishResult {
    fn from(published: Published) -> Self {
        let failure = Failure::of_publish(published.outcome).map(publish::flat);
        let outcome = failure.as_ref().and_then(|failure| failure.publish_outcome);
        Self {
            message_id: published.message_id,
            publish_id: publish::publish_id(published.publish_id),
            outcome: outcome.unwrap_or("CONFIRMED"),
            error: failure.map(Error::from).map(ErrorBody::from),
        }
    }
}

/// Publishes 1 to 1,000 messages.
///
/// It is not all or nothing: 200 means that each message has a result of its own, and one that fails harms no other. Any other
/// answer is about all of them; without an `error.details.publish_outcome`, such as after a broken connection, nobody knows, and
/// they are to be published again with the same `message_id`s. A body holds at most `MAX_BATCH` bytes (16 MiB).
#[utoipa::path(post, path = PATH, operation_id = "publishBatch", request_body = PublishBatchRequest, responses(
    (status = OK, body = PublishBatchResponse, description = "Each message has its result."),
    (status = "default", body = Error, description = "`INVALID_REQUEST`, `BATCH_TOO_LARGE`, `DEADLINE_EXCEEDED`."),
))]
async fn publish_batch(
    State(publisher): State<Publisher>,
    request: Request,
) -> Result<Json<PublishBatchResponse>, Error> {
    let deadline = deadline::of_publish(&request, &publisher.limits);
    let origin = Origin::of_call(request.headers());
    let limit = publisher.limits.batch_bytes();
    let body = body::of_publish(request, deadline, limit, Error::batch_too_large).await?;
    let messages = messages(&body).map_err(Failure::invalid_publish)?;
    let batch = messages.into_iter().map(|message| {
        let message = publish::read(&message, origin.clone());
        message.map_err(|invalid| Published::refused(None, invalid))
    });
    let fates = publisher.publish_batch(batch, deadline).await;
    Ok(Json(PublishBatchResponse {
        results: fates.into_iter().map(PublishResult::from).collect(),
    }))
}

fn messages(body: &Bytes) -> Result<Vec<Bytes>, Invalid> {
    let request: PublishBatchRequest = serde_json::from_slice(body).map_err(publish::unfit)?;
    check_batch(request.messages.count)?;
    let messages = request.messages.first.into_iter();
    Ok(messages
        .map(|message| body.slice_ref(message.get().as_bytes()))
        .collect())
}
