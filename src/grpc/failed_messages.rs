//! `courtier.v1.FailedMessages`.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    convert,
    proto::{
        self, DeleteFailedMessageRequest, DeleteFailedMessageResponse, DeleteFailedMessagesRequest,
        DeleteFailedMessagesResponse, EditAndRetryFailedMessageRequest,
        EditAndRetryFailedMessageResponse, FailedMessageFilter, FailedMessageGroup,
        GetFailedMessageRequest, GetFailedMessageResponse, GetFailedMessageStatsRequest,
        GetFailedMessageStatsResponse, ListFailedMessageGroupsRequest,
        ListFailedMessageGroupsResponse, ListFailedMessagesRequest, ListFailedMessagesResponse,
        ResolveFailedMessageRequest, ResolveFailedMessageResponse, RetryFailedMessageRequest,
        RetryFailedMessageResponse, RetryFailedMessagesRequest, RetryFailedMessagesResponse,
        WatchFailedMessagesRequest, WatchFailedMessagesResponse,
        failed_messages_server::FailedMessages,
        get_failed_message_stats_response::QueueStats,
        list_failed_messages_request::View,
        retry_failed_messages_response::State as ProtoState,
        watch_failed_messages_response::{Change as ProtoChange, change::Kind},
    },
    status::invalid_request,
};
use crate::{
    error::Failure,
    failure::{self, Reason, Resolution, Time},
    gateway::{
        Gateway,
        failed::{self, DEFAULT_RATE, Full, MAX_RATE},
        page,
        validate::Invalid,
    },
    store::{Change, Filter, Operation, OperationState},
};

/// How often the progress of a bulk retry is told, while it changes.
const PROGRESS: Duration = Duration::from_secs(1);

pub(super) struct Service {
    gateway: Gateway,
}

impl Service {
    pub(super) fn new(gateway: Gateway) -> Self {
        Self { gateway }
    }

    fn failed(&self) -> &failed::FailedMessages {
        &self.gateway.failed
    }
}

#[tonic::async_trait]
impl FailedMessages for Service {
    async fn list_failed_messages(
        &self,
        request: Request<ListFailedMessagesRequest>,
    ) -> Result<Response<ListFailedMessagesResponse>, Status> {
        let request = request.into_inner();
        let full = request.view() == View::Full;
        let filter = read_filter(request.filter)?;
        let size = read_size(request.page_size)?;
        let token = &request.page_token;
        let (failed_messages, next_page_token) = if full {
            let listed = self
                .failed()
                .list_full(&filter, size, token)
                .await
                .map_err(status)?;
            let rows = listed.rows.into_iter().map(write_full).collect();
            (rows, listed.next)
        } else {
            let listed = self
                .failed()
                .list(&filter, size, token)
                .await
                .map_err(status)?;
            let rows = listed.rows.into_iter().map(write_basic).collect();
            (rows, listed.next)
        };
        Ok(Response::new(ListFailedMessagesResponse {
            failed_messages,
            next_page_token,
        }))
    }

    async fn get_failed_message(
        &self,
        request: Request<GetFailedMessageRequest>,
    ) -> Result<Response<GetFailedMessageResponse>, Status> {
        let id = read_id(&request.into_inner().id)?;
        let full = self.failed().get(id).await.map_err(status)?;
        Ok(Response::new(GetFailedMessageResponse {
            failed_message: Some(write_full(full)),
        }))
    }

    async fn retry_failed_message(
        &self,
        request: Request<RetryFailedMessageRequest>,
    ) -> Result<Response<RetryFailedMessageResponse>, Status> {
        let id = read_id(&request.into_inner().id)?;
        let row = self.failed().retry(id).await.map_err(status)?;
        Ok(Response::new(RetryFailedMessageResponse {
            failed_message: Some(write_basic(row)),
        }))
    }

    type RetryFailedMessagesStream =
        BoxStream<'static, Result<RetryFailedMessagesResponse, Status>>;

    async fn retry_failed_messages(
        &self,
        request: Request<RetryFailedMessagesRequest>,
    ) -> Result<Response<Self::RetryFailedMessagesStream>, Status> {
        let request = request.into_inner();
        let failed = self.failed().clone();
        let operation = match (request.operation_id.as_str(), request.stop) {
            ("", true) => return Err(invalid("operation_id", "must be set to stop one")),
            ("", false) => {
                let filter = read_filter(request.filter)?;
                check_all(&filter, request.all)?;
                let rate = match request.rate {
                    0 => DEFAULT_RATE,
                    rate if rate <= MAX_RATE => rate,
                    _ => return Err(invalid("rate", format!("must be at most {MAX_RATE}"))),
                };
                let limit = (request.limit > 0).then_some(request.limit);
                if request.dry_run {
                    let matched = failed.count_retriable(&filter).await.map_err(status)?;
                    let response = RetryFailedMessagesResponse {
                        state: ProtoState::Done.into(),
                        matched,
                        ..Default::default()
                    };
                    let once = futures::stream::once(std::future::ready(Ok(response)));
                    return Ok(Response::new(once.boxed()));
                }
                failed.begin_operation(&filter, rate, limit).await
            }
            (id, stop) => {
                let id = Uuid::parse_str(id).map_err(|_| status(failed::Error::NoOperation))?;
                if stop {
                    failed.stop_operation(id).await
                } else {
                    failed.operation(id).await
                }
            }
        }
        .map_err(status)?;
        let (sender, responses) = mpsc::channel(1);
        let stopping = self.gateway.stopping.clone();
        self.gateway
            .tasks
            .spawn(progress(failed, operation, sender, stopping));
        Ok(Response::new(ReceiverStream::new(responses).boxed()))
    }

    async fn edit_and_retry_failed_message(
        &self,
        request: Request<EditAndRetryFailedMessageRequest>,
    ) -> Result<Response<EditAndRetryFailedMessageResponse>, Status> {
        let request = request.into_inner();
        let id = read_id(&request.id)?;
        let Some(message) = request.message else {
            return Err(invalid("message", "must be set"));
        };
        let message = convert::incoming(message).map_err(invalid_request)?;
        let limit = self.gateway.limits.max_payload_bytes;
        let replaced = self
            .failed()
            .edit_and_retry(id, message, limit)
            .await
            .map_err(status)?;
        Ok(Response::new(EditAndRetryFailedMessageResponse {
            failed_message: Some(write_basic(replaced.original)),
            message_id: replaced.message_id,
            publish_id: replaced.publish_id.to_string(),
        }))
    }

    async fn resolve_failed_message(
        &self,
        request: Request<ResolveFailedMessageRequest>,
    ) -> Result<Response<ResolveFailedMessageResponse>, Status> {
        let request = request.into_inner();
        let id = read_id(&request.id)?;
        let row = self
            .failed()
            .resolve(id, &request.comment)
            .await
            .map_err(status)?;
        Ok(Response::new(ResolveFailedMessageResponse {
            failed_message: Some(write_basic(row)),
        }))
    }

    async fn delete_failed_message(
        &self,
        request: Request<DeleteFailedMessageRequest>,
    ) -> Result<Response<DeleteFailedMessageResponse>, Status> {
        let id = read_id(&request.into_inner().id)?;
        self.failed().delete(id).await.map_err(status)?;
        Ok(Response::new(DeleteFailedMessageResponse {}))
    }

    async fn delete_failed_messages(
        &self,
        request: Request<DeleteFailedMessagesRequest>,
    ) -> Result<Response<DeleteFailedMessagesResponse>, Status> {
        let request = request.into_inner();
        let filter = read_filter(request.filter)?;
        check_all(&filter, request.all)?;
        let (matched, deleted) = if request.dry_run {
            (
                self.failed()
                    .count_deletable(&filter)
                    .await
                    .map_err(status)?,
                0,
            )
        } else {
            let deleted = self.failed().delete_many(&filter).await.map_err(status)?;
            (deleted, deleted)
        };
        Ok(Response::new(DeleteFailedMessagesResponse {
            matched,
            deleted,
        }))
    }

    async fn list_failed_message_groups(
        &self,
        request: Request<ListFailedMessageGroupsRequest>,
    ) -> Result<Response<ListFailedMessageGroupsResponse>, Status> {
        let request = request.into_inner();
        let size = read_size(request.page_size)?;
        let queue = some(request.queue);
        let listed = self
            .failed()
            .groups(queue.as_deref(), size, &request.page_token);
        let listed = listed.await.map_err(status)?;
        let groups = listed.rows.into_iter().map(|group| FailedMessageGroup {
            fingerprint: group.fingerprint,
            queue: group.queue,
            error_type: group.error_type,
            error_message: group.error_message,
            count: group.counts.all(),
            pending: group.counts.pending,
            retrying: group.counts.retrying,
            failed: group.counts.failed,
            resolved: group.counts.resolved,
            first_seen: Some(write_time(group.first_seen)),
            last_seen: Some(write_time(group.last_seen)),
        });
        Ok(Response::new(ListFailedMessageGroupsResponse {
            groups: groups.collect(),
            next_page_token: listed.next,
        }))
    }

    async fn get_failed_message_stats(
        &self,
        request: Request<GetFailedMessageStatsRequest>,
    ) -> Result<Response<GetFailedMessageStatsResponse>, Status> {
        let queue = some(request.into_inner().queue);
        let stats = self
            .failed()
            .stats(queue.as_deref())
            .await
            .map_err(status)?;
        let queues = stats.queues.into_iter().map(|of| QueueStats {
            queue: of.queue,
            pending: of.counts.pending,
            retrying: of.counts.retrying,
            failed: of.counts.failed,
            resolved: of.counts.resolved,
        });
        Ok(Response::new(GetFailedMessageStatsResponse {
            queues: queues.collect(),
            oldest_failed_at: stats.oldest.map(write_time),
        }))
    }

    type WatchFailedMessagesStream =
        BoxStream<'static, Result<WatchFailedMessagesResponse, Status>>;

    async fn watch_failed_messages(
        &self,
        request: Request<WatchFailedMessagesRequest>,
    ) -> Result<Response<Self::WatchFailedMessagesStream>, Status> {
        let filter = read_filter(request.into_inner().filter)?;
        let mut watch = self.failed().watch(filter).await.map_err(status)?;
        let (sender, responses) = mpsc::channel(1);
        let stopping = self.gateway.stopping.clone();
        self.gateway.tasks.spawn(async move {
            loop {
                let changes = tokio::select! {
                    () = sender.closed() => return,
                    () = stopping.cancelled() => Err(Failure::stopping().into()),
                    changes = watch.next() => changes.map_err(|error| Status::from(Failure::from(error))),
                };
                let over = changes.is_err();
                let response = changes.map(|changes| WatchFailedMessagesResponse {
                    changes: changes.into_iter().map(write_change).collect(),
                });
                if sender.send(response).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses).boxed()))
    }
}

/// Tells how far a bulk retry is, until it ends.
async fn progress(
    failed: failed::FailedMessages,
    mut operation: Operation,
    sender: mpsc::Sender<Result<RetryFailedMessagesResponse, Status>>,
    stopping: CancellationToken,
) {
    let mut told = None;
    loop {
        let over = operation.state != OperationState::Running;
        if told.as_ref() != Some(&operation) {
            if sender.send(Ok(write_operation(&operation))).await.is_err() {
                return;
            }
            told = Some(operation.clone());
        }
        if over {
            return;
        }
        let next = async {
            tokio::time::sleep(PROGRESS).await;
            failed.operation(operation.id).await.map_err(status)
        };
        let next = tokio::select! {
            () = sender.closed() => return,
            () = stopping.cancelled() => Err(Failure::stopping().into()),
            next = next => next,
        };
        match next {
            Ok(next) => operation = next,
            Err(status) => {
                let _ = sender.send(Err(status)).await;
                return;
            }
        }
    }
}

fn status(error: failed::Error) -> Status {
    match error {
        failed::Error::Invalid(invalid) => invalid_request(invalid),
        error => Failure::from(error).into(),
    }
}

fn invalid(field: &'static str, problem: impl Into<String>) -> Status {
    invalid_request(Invalid::field(field, problem.into()))
}

/// What is no id names nothing.
fn read_id(id: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(id).map_err(|_| status(failed::Error::NotFound))
}

fn read_size(size: i32) -> Result<u32, Status> {
    page::size(size).ok_or_else(|| invalid("page_size", "must not be negative"))
}

fn check_all(filter: &Filter, all: bool) -> Result<(), Status> {
    if filter.is_empty() && !all {
        let problem =
            "is empty, which means every failed message: set all as well if that is meant";
        return Err(invalid("filter", problem));
    }
    Ok(())
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn read_filter(filter: Option<FailedMessageFilter>) -> Result<Filter, Status> {
    let Some(filter) = filter else {
        return Ok(Filter::default());
    };
    let statuses = filter.statuses().map(|status| {
        use proto::failed_message::Status;
        match status {
            Status::Pending => Some(failure::Status::Pending),
            Status::Retrying => Some(failure::Status::Retrying),
            Status::Failed => Some(failure::Status::Failed),
            Status::Resolved => Some(failure::Status::Resolved),
            Status::Unspecified => None,
        }
    });
    let statuses: Option<_> = statuses.collect();
    let reasons = filter.reasons().map(|reason| {
        use proto::DeathReason;
        match reason {
            DeathReason::Rejected => Some(Reason::Rejected),
            DeathReason::Expired => Some(Reason::Expired),
            DeathReason::MaxLength => Some(Reason::MaxLength),
            DeathReason::DeliveryLimit => Some(Reason::DeliveryLimit),
            DeathReason::Returned => Some(Reason::Returned),
            DeathReason::Unspecified => None,
        }
    });
    let reasons: Option<_> = reasons.collect();
    let unknown = "has a value that is not known";
    let operation = some(filter.operation_id)
        .map(|id| Uuid::parse_str(&id))
        .transpose();
    Ok(Filter {
        statuses: statuses.ok_or_else(|| invalid("filter.statuses", unknown))?,
        reasons: reasons.ok_or_else(|| invalid("filter.reasons", unknown))?,
        operation_id: operation
            .map_err(|_| invalid("filter.operation_id", "is not the id of an operation"))?,
        queue: some(filter.queue),
        exchange: some(filter.exchange),
        routing_key: some(filter.routing_key),
        error_text: some(filter.error_text),
        failed_after: read_time("filter.failed_after", filter.failed_after)?,
        failed_before: read_time("filter.failed_before", filter.failed_before)?,
        fingerprint: some(filter.fingerprint),
        message_id: some(filter.message_id),
    })
}

fn read_time(
    field: &'static str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Time>, Status> {
    let Some(time) = time else {
        return Ok(None);
    };
    let nanos = u32::try_from(time.nanos).ok();
    let read = nanos.and_then(|nanos| Time::from_timestamp(time.seconds, nanos));
    let years = Time::from_timestamp(0, 0)..Time::from_timestamp(253_402_300_800, 0);
    let read = read.filter(|_| years.contains(&read));
    Ok(Some(read.ok_or_else(|| {
        invalid(field, "must be from 1970 to 9999")
    })?))
}

pub(super) fn write_time(time: Time) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default(),
    }
}

fn write_full(full: Full) -> proto::FailedMessage {
    let message = convert::delivered(&full.message.message);
    let stack = full.message.error.stack.clone();
    proto::FailedMessage {
        message: Some(message),
        error_stack: stack,
        attempts: full.attempts.into_iter().map(write_attempt).collect(),
        ..write_basic(full.message)
    }
}

fn write_basic(row: failure::FailedMessage) -> proto::FailedMessage {
    use proto::failed_message as view;
    let message = proto::Message {
        payload: None,
        ..convert::delivered(&row.message)
    };
    let state = row.state;
    let status = match state.status {
        failure::Status::Pending => view::Status::Pending,
        failure::Status::Retrying => view::Status::Retrying,
        failure::Status::Failed => view::Status::Failed,
        failure::Status::Resolved => view::Status::Resolved,
    };
    let resolution = match state.resolution {
        None => view::Resolution::Unspecified,
        Some(Resolution::Acked) => view::Resolution::Acked,
        Some(Resolution::Assumed) => view::Resolution::Assumed,
        Some(Resolution::Manual) => view::Resolution::Manual,
    };
    let pending = state.status == failure::Status::Pending;
    proto::FailedMessage {
        id: row.id.to_string(),
        queue: row.queue,
        exchange: row.exchange,
        routing_key: row.routing_key,
        message: Some(message),
        error_type: row.error.kind,
        error_message: row.error.message,
        error_stack: String::new(),
        reason: write_reason(row.reason).into(),
        retry_count: state.retry_count,
        max_retries: state.max_retries,
        status: status.into(),
        failed_at: Some(write_time(row.failed_at)),
        last_retry_at: state.last_retry_at.map(write_time),
        next_retry_at: state.next_retry_at.filter(|_| pending).map(write_time),
        resolved_at: state.resolved_at.map(write_time),
        resolution: resolution.into(),
        attempts: Vec::new(),
        fingerprint: row.fingerprint,
        attempt: state.attempt,
        last_failed_at: Some(write_time(row.last_failed_at)),
        comment: row.comment.unwrap_or_default(),
        operation_id: row
            .operation_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        publish_id: row.publish_id.unwrap_or_default(),
    }
}

fn write_reason(reason: Reason) -> proto::DeathReason {
    match reason {
        Reason::Rejected => proto::DeathReason::Rejected,
        Reason::Expired => proto::DeathReason::Expired,
        Reason::MaxLength => proto::DeathReason::MaxLength,
        Reason::DeliveryLimit => proto::DeathReason::DeliveryLimit,
        Reason::Returned => proto::DeathReason::Returned,
    }
}

fn write_attempt(attempt: failure::Attempt) -> proto::Attempt {
    use proto::attempt::Outcome;
    let outcome = match attempt.outcome {
        None => Outcome::Unspecified,
        Some(failure::Outcome::Died) => Outcome::Died,
        Some(failure::Outcome::Acked) => Outcome::Acked,
        Some(failure::Outcome::Assumed) => Outcome::Assumed,
        Some(failure::Outcome::Discarded) => Outcome::Discarded,
    };
    proto::Attempt {
        number: attempt.number,
        manual: attempt.manual,
        started_at: attempt.started_at.map(write_time),
        ended_at: attempt.ended_at.map(write_time),
        outcome: outcome.into(),
        error_type: attempt.error.kind,
        error_message: attempt.error.message,
    }
}

fn write_change(change: Change) -> ProtoChange {
    let (kind, failed_message) = match change {
        Change::Changed(row) => (Kind::Changed, write_basic(*row)),
        Change::Deleted(id) => {
            let only_id = proto::FailedMessage {
                id: id.to_string(),
                ..Default::default()
            };
            (Kind::Deleted, only_id)
        }
    };
    ProtoChange {
        kind: kind.into(),
        failed_message: Some(failed_message),
    }
}

fn write_operation(operation: &Operation) -> RetryFailedMessagesResponse {
    let state = match operation.state {
        OperationState::Running => ProtoState::Running,
        OperationState::Done => ProtoState::Done,
        OperationState::Stopped => ProtoState::Stopped,
    };
    RetryFailedMessagesResponse {
        operation_id: operation.id.to_string(),
        state: state.into(),
        matched: operation.matched,
        started: operation.started,
        succeeded: operation.succeeded,
        failed_again: operation.failed_again,
        skipped: operation.skipped,
        waiting: operation.waiting(),
        stop_reason: operation.stop_reason.clone().unwrap_or_default(),
    }
}
