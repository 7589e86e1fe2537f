//! `courtier.v1.MessageLog`.

use tonic::{Request, Response, Status};

use super::{
    convert,
    fields::{page_size, read_time, some, write_time},
    proto::{
        self, GetMessageRequest, GetMessageResponse, ListMessagesRequest, ListMessagesResponse,
        LoggedMessage, MessageLogFilter,
        get_message_response::{self, event::Kind},
        logged_message::Status as ProtoStatus,
        message_log_server::MessageLog,
    },
    status::invalid,
};
use crate::{
    error::Failure,
    gateway::{Gateway, message_log},
    store::{EventKind, Happened, LogFilter, LogStatus, Logged},
};

pub(super) struct Service {
    service: message_log::MessageLog,
}

impl Service {
    pub(super) fn new(gateway: &Gateway) -> Self {
        let service = gateway.message_log.clone();
        Self { service }
    }
}

#[tonic::async_trait]
impl MessageLog for Service {
    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        let request = request.into_inner();
        let filter = read_filter(request.filter.unwrap_or_default())?;
        let size = page_size(request.page_size)?;
        let listed = self.service.list(&filter, size, &request.page_token).await;
        let listed = listed.map_err(Failure::from)?;
        Ok(Response::new(ListMessagesResponse {
            messages: listed.rows.into_iter().map(write_brief).collect(),
            next_page_token: listed.next,
        }))
    }

    async fn get_message(
        &self,
        request: Request<GetMessageRequest>,
    ) -> Result<Response<GetMessageResponse>, Status> {
        let message_id = request.into_inner().message_id;
        let got = self.service.get(&message_id).await;
        let (logged, events) = got.map_err(Failure::from)?;
        Ok(Response::new(GetMessageResponse {
            entry: Some(write_full(logged)),
            timeline: events.into_iter().map(write_event).collect(),
        }))
    }
}

fn read_filter(filter: MessageLogFilter) -> Result<LogFilter, Status> {
    let status = match ProtoStatus::try_from(filter.status) {
        Ok(ProtoStatus::Unspecified) => None,
        Ok(ProtoStatus::Published) => Some(LogStatus::Published),
        Ok(ProtoStatus::Delivered) => Some(LogStatus::Delivered),
        Ok(ProtoStatus::Failed) => Some(LogStatus::Failed),
        Err(_) => return Err(invalid("filter.status", "has a value that is not known")),
    };
    Ok(LogFilter {
        exchange: some(filter.exchange),
        routing_key: some(filter.routing_key),
        correlation_id: some(filter.correlation_id),
        status,
        published_after: read_time("filter.published_after", filter.published_after)?,
        published_before: read_time("filter.published_before", filter.published_before)?,
    })
}

fn write_full(logged: Logged) -> LoggedMessage {
    let message = logged
        .keeps_payload
        .then(|| convert::delivered(&logged.message));
    let brief = write_brief(logged);
    LoggedMessage {
        message: message.or(brief.message),
        ..brief
    }
}

fn write_brief(logged: Logged) -> LoggedMessage {
    let status = match logged.status {
        LogStatus::Published => ProtoStatus::Published,
        LogStatus::Delivered => ProtoStatus::Delivered,
        LogStatus::Failed => ProtoStatus::Failed,
    };
    let message = proto::Message {
        payload: None,
        ..convert::delivered(&logged.message)
    };
    LoggedMessage {
        message_id: logged.message_id,
        publish_id: logged.publish_id.unwrap_or_default(),
        exchange: logged.exchange,
        routing_key: logged.routing_key,
        message: Some(message),
        payload_size: logged.payload_size,
        status: status.into(),
        published_at: Some(write_time(logged.published_at)),
        delivered_at: logged.delivered_at.map(write_time),
        failed_at: logged.failed_at.map(write_time),
    }
}

fn write_event(event: Happened) -> get_message_response::Event {
    let kind = match event.kind {
        EventKind::Published => Kind::Published,
        EventKind::Delivered => Kind::Delivered,
        EventKind::Settled => Kind::Settled,
        EventKind::Failed => Kind::Failed,
        EventKind::Retried => Kind::Retried,
    };
    get_message_response::Event {
        kind: kind.into(),
        time: Some(write_time(event.at)),
        queue: event.queue,
        attempt: event.attempt,
        detail: event.detail,
    }
}
