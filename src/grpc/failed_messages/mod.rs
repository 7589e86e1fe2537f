//! `courtier.v1.FailedMessages`.

mod convert;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use self::convert::{read_filter, write_basic, write_change, write_full, write_operation};
use super::{
    fields::{page_size, some, write_time},
    proto::{
        DeleteFailedMessageRequest, DeleteFailedMessageResponse, DeleteFailedMessagesRequest,
        DeleteFailedMessagesResponse, EditAndRetryFailedMessageRequest,
        EditAndRetryFailedMessageResponse, FailedMessageGroup, GetFailedMessageRequest,
        GetFailedMessageResponse, GetFailedMessageStatsRequest, GetFailedMessageStatsResponse,
        ListFailedMessageGroupsRequest, ListFailedMessageGroupsResponse, ListFailedMessagesRequest,
        ListFailedMessagesResponse, ResolveFailedMessageRequest, ResolveFailedMessageResponse,
        RetryFailedMessageRequest, RetryFailedMessageResponse, RetryFailedMessagesRequest,
        RetryFailedMessagesResponse, WatchFailedMessagesRequest, WatchFailedMessagesResponse,
        failed_messages_server::FailedMessages, get_failed_message_stats_response::QueueStats,
        list_failed_messages_request::View, retry_failed_messages_response::State as ProtoState,
    },
    status::{invalid, invalid_request},
};
use crate::{
    error::Failure,
    gateway::{
        Gateway, Limits, Streams,
        failed_messages::{self, DEFAULT_RATE, MAX_RATE},
    },
    store::{Filter, Operation, OperationState},
};

/// How often the progress of a bulk retry is told, while it changes.
const PROGRESS: Duration = Duration::from_secs(1);

pub(super) struct Service {
    service: failed_messages::FailedMessages,
    limits: Arc<Limits>,
    streams: Streams,
}

impl Service {
    pub(super) fn new(gateway: &Gateway) -> Self {
        Self {
            service: gateway.failed_messages.clone(),
            limits: gateway.limits.clone(),
            streams: gateway.streams.clone(),
        }
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
        let size = page_size(request.page_size)?;
        let token = &request.page_token;
        let (failed_messages, next_page_token, unreadable_ids) = if full {
            let listed = self
                .service
                .list_full(&filter, size, token)
                .await
                .map_err(status)?;
            let rows = listed.rows.into_iter().map(write_full).collect();
            (rows, listed.next, listed.unreadable)
        } else {
            let listed = self
                .service
                .list(&filter, size, token)
                .await
                .map_err(status)?;
            let rows = listed.rows.into_iter().map(write_basic).collect();
            (rows, listed.next, listed.unreadable)
        };
        Ok(Response::new(ListFailedMessagesResponse {
            failed_messages,
            next_page_token,
            unreadable_ids,
        }))
    }

    async fn get_failed_message(
        &self,
        request: Request<GetFailedMessageRequest>,
    ) -> Result<Response<GetFailedMessageResponse>, Status> {
        let id = read_id(&request.into_inner().id)?;
        let full = self.service.get(id).await.map_err(status)?;
        Ok(Response::new(GetFailedMessageResponse {
            failed_message: Some(write_full(full)),
        }))
    }

    async fn retry_failed_message(
        &self,
        request: Request<RetryFailedMessageRequest>,
    ) -> Result<Response<RetryFailedMessageResponse>, Status> {
        let id = read_id(&request.into_inner().id)?;
        let row = self.service.retry(id).await.map_err(status)?;
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
        let failed = self.service.clone();
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
                let id =
                    Uuid::parse_str(id).map_err(|_| status(failed_messages::Error::NoOperation))?;
                if stop {
                    failed.stop_operation(id).await
                } else {
                    failed.operation(id).await
                }
            }
        }
        .map_err(status)?;
        let (sender, responses) = mpsc::channel(1);
        let stopping = self.streams.stopping.clone();
        self.streams
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
        let message = super::convert::incoming(message).map_err(invalid_request)?;
        let limit = self.limits.max_payload_bytes;
        let replaced = self
            .service
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
            .service
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
        self.service.delete(id).await.map_err(status)?;
        Ok(Response::new(DeleteFailedMessageResponse {}))
    }

    async fn delete_failed_messages(
        &self,
        request: Request<DeleteFailedMessagesRequest>,
    ) -> Result<Response<DeleteFailedMessagesResponse>, Status> {
        let request = request.into_inner();
        let filter = read_filter(request.filter)?;
        check_all(&filter, request.all)?;
        let failed = &self.service;
        let (matched, deleted, before) = if request.dry_run {
            let (matched, before) = failed.count_deletable(&filter).await.map_err(status)?;
            (matched, 0, before)
        } else {
            let (deleted, before) = failed.delete_many(&filter).await.map_err(status)?;
            (deleted, deleted, before)
        };
        Ok(Response::new(DeleteFailedMessagesResponse {
            matched,
            deleted,
            failed_before: Some(write_time(before)),
        }))
    }

    async fn list_failed_message_groups(
        &self,
        request: Request<ListFailedMessageGroupsRequest>,
    ) -> Result<Response<ListFailedMessageGroupsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let queue = some(request.queue);
        let listed = self
            .service
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
        let stats = self.service.stats(queue.as_deref()).await.map_err(status)?;
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
        let mut watch = self.service.watch(filter).await.map_err(status)?;
        let (sender, responses) = mpsc::channel(1);
        let stopping = self.streams.stopping.clone();
        self.streams.tasks.spawn(async move {
            loop {
                let changes = tokio::select! {
                    () = sender.closed() => return,
                    () = stopping.cancelled() => Err(Failure::stopping().into()),
                    changes = watch.next() => changes.map_err(|error| Status::from(Failure::from(error))),
                };
                let over = changes.is_err();
                let response = changes.map(|news| WatchFailedMessagesResponse {
                    changes: news.changes.into_iter().map(write_change).collect(),
                    missed_changes: news.missed,
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
    failed: failed_messages::FailedMessages,
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
            failed.follow_operation(operation.id).await.map_err(status)
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

fn status(error: failed_messages::Error) -> Status {
    match error {
        failed_messages::Error::Invalid(invalid) => invalid_request(invalid),
        error => Failure::from(error).into(),
    }
}

/// What is no id names nothing.
fn read_id(id: &str) -> Result<Uuid, Status> {
    Uuid::parse_str(id).map_err(|_| status(failed_messages::Error::NotFound))
}

fn check_all(filter: &Filter, all: bool) -> Result<(), Status> {
    if filter.is_empty() && !all {
        let problem =
            "is empty, which means every failed message: set all as well if that is meant";
        return Err(invalid("filter", problem));
    }
    Ok(())
}
