//! `courtier.v1.QueueAdmin`.

mod convert;
mod watch;

use std::sync::Arc;

use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use self::convert::{
    read_binding, read_exchange_kind, read_profile, read_table, read_topology, write_alert,
    write_binding, write_change, write_deleted, write_exchange, write_queue, write_stats,
    write_status, write_struct,
};
use super::{
    convert::delivered,
    fields::{page_size, some},
    proto::{
        ApplyTopologyRequest, ApplyTopologyResponse, CreateBindingRequest, CreateBindingResponse,
        CreateExchangeRequest, CreateExchangeResponse, CreateQueueRequest, CreateQueueResponse,
        DeleteBindingRequest, DeleteBindingResponse, DeleteExchangeRequest, DeleteExchangeResponse,
        DeleteQueueRequest, DeleteQueueResponse, GetBrokerStatusRequest, GetBrokerStatusResponse,
        GetQueueRequest, GetQueueResponse, GetQueueStatsRequest, GetQueueStatsResponse,
        GetTopologyDriftRequest, GetTopologyDriftResponse, ListAlertsRequest, ListAlertsResponse,
        ListBindingsRequest, ListBindingsResponse, ListExchangesRequest, ListExchangesResponse,
        ListQueuesRequest, ListQueuesResponse, MoveMessagesRequest, MoveMessagesResponse,
        PeekMessagesRequest, PeekMessagesResponse, PeekedMessage, PurgeQueueRequest,
        PurgeQueueResponse, WatchAlertsRequest, WatchAlertsResponse, WatchQueueStatsRequest,
        WatchQueueStatsResponse, queue_admin_server::QueueAdmin,
    },
    status::{embedded, invalid},
};
use crate::{
    broker::{Broker, admin::OnlyIf, topology::Exchange},
    deadline::Deadline,
    error::Failure,
    gateway::{
        Gateway, Streams,
        alerts::Alerts,
        queue_admin::{self, Error, NewQueue},
    },
};

/// Messages of one look, when the caller says nothing.
const DEFAULT_PEEKED: usize = 10;

pub(super) struct Service {
    service: queue_admin::QueueAdmin,
    alerts: Alerts,
    broker: Arc<dyn Broker>,
    streams: Streams,
}

impl Service {
    pub(super) fn new(gateway: &Gateway) -> Self {
        Self {
            service: gateway.queue_admin.clone(),
            alerts: gateway.alerts.clone(),
            broker: gateway.broker.clone(),
            streams: gateway.streams.clone(),
        }
    }
}

fn status(error: Error) -> Status {
    Failure::from(error).into()
}

#[tonic::async_trait]
impl QueueAdmin for Service {
    async fn list_queues(
        &self,
        request: Request<ListQueuesRequest>,
    ) -> Result<Response<ListQueuesResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let token = &request.page_token;
        let listed = self.service.queues(&request.name_contains, size, token);
        let answer = listed.await.map_err(status)?;
        Ok(Response::new(ListQueuesResponse {
            partial: answer.is_partial(),
            queues: answer.found.rows.into_iter().map(write_queue).collect(),
            next_page_token: answer.found.next,
            note: answer.note,
        }))
    }

    async fn get_queue(
        &self,
        request: Request<GetQueueRequest>,
    ) -> Result<Response<GetQueueResponse>, Status> {
        let name = request.into_inner().name;
        let answer = self.service.queue(&name).await.map_err(status)?;
        Ok(Response::new(GetQueueResponse {
            queue: Some(write_queue(answer.found)),
            note: answer.note,
        }))
    }

    async fn get_queue_stats(
        &self,
        request: Request<GetQueueStatsRequest>,
    ) -> Result<Response<GetQueueStatsResponse>, Status> {
        let name = request.into_inner().name;
        let answer = self.service.stats(&name).await.map_err(status)?;
        Ok(Response::new(GetQueueStatsResponse {
            stats: Some(write_stats(answer.found)),
            note: answer.note,
        }))
    }

    type WatchQueueStatsStream = BoxStream<'static, Result<WatchQueueStatsResponse, Status>>;

    async fn watch_queue_stats(
        &self,
        request: Request<WatchQueueStatsRequest>,
    ) -> Result<Response<Self::WatchQueueStatsStream>, Status> {
        watch::queue_stats(&self.service, &self.streams, request.into_inner()).await
    }

    async fn create_queue(
        &self,
        request: Request<CreateQueueRequest>,
    ) -> Result<Response<CreateQueueResponse>, Status> {
        let request = request.into_inner();
        let profile = read_profile(request.profile)?;
        let wanted = NewQueue {
            name: request.name,
            profile,
            auto_delete: request.auto_delete,
            arguments: read_table(request.arguments),
        };
        let created = self
            .service
            .create_queue(wanted, request.validate_only)
            .await
            .map_err(status)?;
        Ok(Response::new(CreateQueueResponse {
            created: created.created,
            arguments: Some(write_struct(&created.arguments)),
            changes: created.changes.into_iter().map(write_change).collect(),
        }))
    }

    async fn delete_queue(
        &self,
        request: Request<DeleteQueueRequest>,
    ) -> Result<Response<DeleteQueueResponse>, Status> {
        let request = request.into_inner();
        let only = OnlyIf {
            unused: request.if_unused,
            empty: request.if_empty,
        };
        let deleted = self
            .service
            .delete_queue(&request.name, only, request.with_dead_letter_queue)
            .await;
        Ok(Response::new(write_deleted(deleted.map_err(status)?)))
    }

    async fn purge_queue(
        &self,
        request: Request<PurgeQueueRequest>,
    ) -> Result<Response<PurgeQueueResponse>, Status> {
        let request = request.into_inner();
        let purged = self
            .service
            .purge_queue(&request.name, &request.confirm_name);
        Ok(Response::new(PurgeQueueResponse {
            purged_count: purged.await.map_err(status)?,
        }))
    }

    async fn peek_messages(
        &self,
        request: Request<PeekMessagesRequest>,
    ) -> Result<Response<PeekMessagesResponse>, Status> {
        let request = request.into_inner();
        let limit = match usize::try_from(request.limit) {
            Ok(0) => DEFAULT_PEEKED,
            Ok(limit) => limit,
            Err(_) => return Err(invalid("limit", "must not be negative")),
        };
        let peeked = self.service.peek(&request.queue, limit).await;
        let messages = peeked.map_err(status)?.into_iter();
        let messages = messages.map(|delivery| PeekedMessage {
            message: Some(delivered(&delivery.message)),
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
            redelivered: delivery.redelivered,
        });
        Ok(Response::new(PeekMessagesResponse {
            messages: messages.collect(),
        }))
    }

    async fn move_messages(
        &self,
        request: Request<MoveMessagesRequest>,
    ) -> Result<Response<MoveMessagesResponse>, Status> {
        let deadline = request.extensions().get::<Deadline>();
        let deadline = deadline.map(|deadline| deadline.answer_by);
        let request = request.into_inner();
        let limit = (request.limit > 0).then_some(request.limit);
        let moved = self
            .service
            .move_messages(&request.source, &request.destination, limit, deadline)
            .await
            .map_err(status)?;
        Ok(Response::new(MoveMessagesResponse {
            moved_count: moved.count,
            error: moved.error.map(|error| embedded(Failure::from(error))),
        }))
    }

    async fn list_exchanges(
        &self,
        request: Request<ListExchangesRequest>,
    ) -> Result<Response<ListExchangesResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let token = &request.page_token;
        let listed = self.service.exchanges(&request.name_contains, size, token);
        let answer = listed.await.map_err(status)?;
        Ok(Response::new(ListExchangesResponse {
            partial: answer.is_partial(),
            exchanges: answer.found.rows.into_iter().map(write_exchange).collect(),
            next_page_token: answer.found.next,
            note: answer.note,
        }))
    }

    async fn create_exchange(
        &self,
        request: Request<CreateExchangeRequest>,
    ) -> Result<Response<CreateExchangeResponse>, Status> {
        let request = request.into_inner();
        let exchange = Exchange {
            kind: read_exchange_kind("type", &request.r#type)?,
            name: request.name,
            arguments: read_table(request.arguments),
        };
        let created = self.service.create_exchange(exchange).await;
        Ok(Response::new(CreateExchangeResponse {
            created: created.map_err(status)?,
        }))
    }

    async fn delete_exchange(
        &self,
        request: Request<DeleteExchangeRequest>,
    ) -> Result<Response<DeleteExchangeResponse>, Status> {
        let request = request.into_inner();
        let deleted = self
            .service
            .delete_exchange(&request.name, request.if_unused);
        deleted.await.map_err(status)?;
        Ok(Response::new(DeleteExchangeResponse {}))
    }

    async fn list_bindings(
        &self,
        request: Request<ListBindingsRequest>,
    ) -> Result<Response<ListBindingsResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        let (exchange, queue) = (some(request.exchange), some(request.queue));
        let listed = self
            .service
            .bindings(
                exchange.as_deref(),
                queue.as_deref(),
                size,
                &request.page_token,
            )
            .await
            .map_err(status)?;
        Ok(Response::new(ListBindingsResponse {
            bindings: listed.rows.into_iter().map(write_binding).collect(),
            next_page_token: listed.next,
        }))
    }

    async fn create_binding(
        &self,
        request: Request<CreateBindingRequest>,
    ) -> Result<Response<CreateBindingResponse>, Status> {
        let binding = read_binding(request.into_inner().binding)?;
        self.service.bind(binding).await.map_err(status)?;
        Ok(Response::new(CreateBindingResponse {}))
    }

    async fn delete_binding(
        &self,
        request: Request<DeleteBindingRequest>,
    ) -> Result<Response<DeleteBindingResponse>, Status> {
        let binding = read_binding(request.into_inner().binding)?;
        self.service.unbind(binding).await.map_err(status)?;
        Ok(Response::new(DeleteBindingResponse {}))
    }

    async fn apply_topology(
        &self,
        request: Request<ApplyTopologyRequest>,
    ) -> Result<Response<ApplyTopologyResponse>, Status> {
        let request = request.into_inner();
        let file = read_topology(request.topology)?;
        let plan = self.service.apply(file, request.validate_only).await;
        let plan = plan.map_err(status)?;
        Ok(Response::new(ApplyTopologyResponse {
            changes: plan.changes.into_iter().map(write_change).collect(),
            note: plan.note,
        }))
    }

    async fn get_topology_drift(
        &self,
        _: Request<GetTopologyDriftRequest>,
    ) -> Result<Response<GetTopologyDriftResponse>, Status> {
        let plan = self.service.drift().await.map_err(status)?;
        Ok(Response::new(GetTopologyDriftResponse {
            changes: plan.changes.into_iter().map(write_change).collect(),
            note: plan.note,
        }))
    }

    async fn get_broker_status(
        &self,
        _: Request<GetBrokerStatusRequest>,
    ) -> Result<Response<GetBrokerStatusResponse>, Status> {
        let now = self.broker.admin().status().await;
        let links = *self.broker.links().borrow();
        Ok(Response::new(write_status(now, links)))
    }

    async fn list_alerts(
        &self,
        _: Request<ListAlertsRequest>,
    ) -> Result<Response<ListAlertsResponse>, Status> {
        let alerts = self.alerts.list();
        Ok(Response::new(ListAlertsResponse {
            alerts: alerts.iter().map(write_alert).collect(),
        }))
    }

    type WatchAlertsStream = BoxStream<'static, Result<WatchAlertsResponse, Status>>;

    async fn watch_alerts(
        &self,
        _: Request<WatchAlertsRequest>,
    ) -> Result<Response<Self::WatchAlertsStream>, Status> {
        Ok(watch::alerts(&self.alerts, &self.streams))
    }
}
