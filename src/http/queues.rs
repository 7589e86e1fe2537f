//! Queues: twins of `courtier.v1.QueueAdmin`'s `ListQueues`, `GetQueueStats` and `PurgeQueue`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue},
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::error::Error;
use crate::{
    broker::admin::QueueInfo,
    error::Failure,
    gateway::queue_admin::{self, QueueAdmin},
};

/// Says why a list may be short: the list itself is bare.
const NOTE: HeaderName = HeaderName::from_static("x-courtier-note");

pub(super) fn routes(service: &QueueAdmin) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(stats))
        .routes(routes!(purge))
        .with_state(service.clone())
}

/// A queue and how it does. A figure that is not known is null, never 0.
#[derive(Serialize, ToSchema)]
struct Queue {
    name: String,
    /// Ready and unacked messages. Where nobody tells the unacked ones (`unacked_count` is null: RabbitMQ's management API alone
    /// knows them, and of a new queue after some seconds), the ready ones alone: there are at least so many.
    #[schema(required = true)]
    message_count: Option<u64>,
    /// Consumers, wherever they are connected.
    #[schema(required = true)]
    consumer_count: Option<u64>,
    /// Messages that wait for a consumer.
    #[schema(required = true)]
    ready_count: Option<u64>,
    /// Messages that consumers hold.
    #[schema(required = true)]
    unacked_count: Option<u64>,
    /// Messages that enter, per second.
    #[schema(required = true)]
    publish_rate: Option<f64>,
    /// Messages handed to consumers, per second, redeliveries included.
    #[schema(required = true)]
    deliver_rate: Option<f64>,
    /// Messages that consumers acked, per second.
    #[schema(required = true)]
    ack_rate: Option<f64>,
    /// Ready messages over the most that the queue holds: 1 is full. Null also where there is no limit.
    #[schema(required = true)]
    capacity_ratio: Option<f64>,
    /// `quorum`, `classic` or `stream`.
    #[schema(required = true, rename = "type")]
    #[serde(rename = "type")]
    kind: Option<String>,
    #[schema(required = true)]
    durable: Option<bool>,
    /// Who was asked: `amqp`, `management` (both), or `embedded`.
    #[schema(pattern = "^(amqp|management|embedded)$")]
    source: &'static str,
    /// When, by the gateway's clock. Figures of the management API may be some seconds older.
    sampled_at: DateTime<Utc>,
}

impl From<QueueInfo> for Queue {
    fn from(queue: QueueInfo) -> Self {
        let unacked = queue.unacked.unwrap_or(0);
        Self {
            name: queue.name,
            message_count: queue.ready.map(|ready| ready + unacked),
            consumer_count: queue.consumers,
            ready_count: queue.ready,
            unacked_count: queue.unacked,
            publish_rate: queue.publish.per_second,
            deliver_rate: queue.deliver.per_second,
            ack_rate: queue.ack.per_second,
            capacity_ratio: queue.capacity_ratio,
            kind: queue.kind,
            durable: queue.durable,
            source: queue.source.into(),
            sampled_at: Utc::now(),
        }
    }
}

/// Lists all queues by name.
///
/// Without RabbitMQ's management API: those that the gateway knows of. Where the list may be short for that reason, the header
/// `X-Courtier-Note` says so; where the gateway knows of none, it is an error.
#[utoipa::path(get, path = "/api/queues", operation_id = "listQueues", responses(
    (status = OK, body = Vec<Queue>, description = "All of them.", headers(
        ("X-Courtier-Note" = Option<String>, description = "Why queues or figures may be missing.")
    )),
    (status = "default", body = Error, description = "`BROKER_DOWN`, `FORBIDDEN`; nobody tells what queues there are: \
        `MANAGEMENT_DOWN` (also when it refuses the gateway's user), `MANAGEMENT_OFF`."),
))]
async fn list(State(service): State<QueueAdmin>) -> Result<(HeaderMap, Json<Vec<Queue>>), Error> {
    let answer = service.all_queues().await;
    let answer = answer.and_then(queue_admin::Answer::told);
    let answer = answer.map_err(Failure::from)?;
    let mut queues: Vec<Queue> = answer.found.into_iter().map(Queue::from).collect();
    queues.sort_by(|one, other| one.name.cmp(&other.name));
    let mut headers = HeaderMap::new();
    if let Some(note) = note(&answer.note) {
        headers.insert(NOTE, note);
    }
    Ok((headers, Json(queues)))
}

/// `None`: there is nothing to note.
fn note(note: &str) -> Option<HeaderValue> {
    // It may hold words of somebody else's; a header holds visible ASCII.
    let plain = note.replace(|c: char| !(' '..='~').contains(&c), "?");
    HeaderValue::from_str(&plain)
        .ok()
        .filter(|_| !note.is_empty())
}

/// A queue, how long it takes to drain, and its failed messages.
#[derive(Serialize, ToSchema)]
struct QueueStats {
    #[serde(flatten)]
    queue: Queue,
    /// How long a message that arrives now waits until its consumers have acked all before it, at the pace of now.
    #[schema(required = true)]
    time_to_drain_seconds: Option<f64>,
    /// Failed messages of this queue that are not resolved. Null: the database is away.
    #[schema(required = true)]
    failed_count: Option<u64>,
    /// Messages in `<name>.dlq`, on their way to the failed messages. Null: there is no such queue, or it is not known.
    #[schema(required = true)]
    dead_letter_count: Option<u64>,
    /// Why figures are missing, for people; empty: it is a full answer.
    note: String,
}

/// How one queue does.
#[utoipa::path(get, path = "/api/queues/{queue}/stats", operation_id = "getQueueStats",
    params(("queue" = String, Path, description = "Its name, percent-encoded: `%2F` for `/`.")), responses(
    (status = OK, body = QueueStats, description = "The queue."),
    (status = "default", body = Error, description = "`QUEUE_NOT_FOUND`, `QUEUE_LOCKED`, `BROKER_DOWN`, `FORBIDDEN`."),
))]
async fn stats(
    State(service): State<QueueAdmin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<QueueStats>, Error> {
    let answer = service.stats(&read_name(name)?).await;
    let answer = answer.map_err(Failure::from)?;
    let queue_admin::QueueStats {
        queue,
        time_to_drain,
        failed,
        dead_letters,
    } = answer.found;
    Ok(Json(QueueStats {
        queue: queue.into(),
        time_to_drain_seconds: time_to_drain.map(|time| time.as_secs_f64()),
        failed_count: failed,
        dead_letter_count: dead_letters,
        note: answer.note,
    }))
}

/// The queue holds no ready messages any more.
#[derive(Serialize, ToSchema)]
struct PurgeQueueResponse {
    name: String,
    /// Messages that were deleted.
    purged_count: u64,
}

/// Deletes all ready messages of a queue, for good. A body is not looked at.
#[utoipa::path(post, path = "/api/queues/{queue}/purge", operation_id = "purgeQueue",
    params(("queue" = String, Path, description = "Its name, percent-encoded: `%2F` for `/`.")), responses(
    (status = OK, body = PurgeQueueResponse, description = "They are gone."),
    (status = "default", body = Error, description = "`QUEUE_NOT_FOUND`, `QUEUE_LOCKED`, `BROKER_DOWN`, `FORBIDDEN`."),
))]
async fn purge(
    State(service): State<QueueAdmin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<PurgeQueueResponse>, Error> {
    let name = read_name(name)?;
    // The path names it: that is the confirmation.
    let purged = service.purge_queue(&name, &name).await;
    let purged_count = purged.map_err(Failure::from)?;
    Ok(Json(PurgeQueueResponse { name, purged_count }))
}

fn read_name(name: Result<Path<String>, PathRejection>) -> Result<String, Error> {
    let name = name.map(|Path(name)| name);
    name.map_err(|rejection| Error::invalid("queue", rejection.body_text()))
}
