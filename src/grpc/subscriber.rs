//! `courtier.v1.Subscriber`.

use std::{
    task::{Poll, ready},
    time::{Duration, SystemTime},
};

use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    hangup::Hangup,
    incoming::Refusals,
    proto::{
        self, Deliveries, Delivery, Draining, Revoked, SettleResults, Started, SubscribeRequest,
        SubscribeResponse,
        nack::Action as ProtoAction,
        settle_result::Result as ProtoResult,
        stream_offset::{From as Begin, Position},
        subscribe_request::Request as ProtoRequest,
        subscribe_response::Response as ProtoResponse,
        subscriber_server::Subscriber,
    },
    status,
};
use crate::{
    broker::StreamOffset,
    budget::intake::Interrupted,
    deadline::Deadline,
    error::Failure,
    failed_message::ErrorDetail,
    gateway::{
        Gateway,
        failed_messages::dead_letter,
        subscriber::{
            self, check_ack_deadline,
            protocol::{
                self, Action, End, Event, Given, MAX_ACK_IDS, MAX_RETRY_DELAY, Nack, SettleResult,
                Start,
            },
        },
        validate::Invalid,
    },
};

/// A stream whose first request does not come by then is ended.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// What is repeated of an ack id.
const ECHO_BYTES: usize = 256;

pub(super) struct Service {
    service: subscriber::Subscriber,
}

impl Service {
    pub(super) fn new(gateway: &Gateway) -> Self {
        let service = gateway.subscriber.clone();
        Self { service }
    }
}

#[tonic::async_trait]
impl Subscriber for Service {
    type SubscribeStream = BoxStream<'static, Result<SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let hangup = request.extensions().get::<Hangup>().cloned();
        let hung_up = move || hangup.as_ref().is_some_and(Hangup::happened);
        let refusals = request.extensions().get::<Refusals>().cloned();
        let refusals = refusals.unwrap_or_default();
        let mut requests = request.into_inner();
        let patience = Instant::now() + START_TIMEOUT;
        let first = tokio::select! {
            first = timeout_at(patience, requests.next()) => first,
            () = self.service.streams.stopping.cancelled() => return Err(Failure::stopping().into()),
        };
        let first = match first {
            Ok(Some(Ok(first))) => first.request,
            Ok(Some(Err(status))) => return Err(status),
            Ok(None) | Err(_) => None,
        };
        let Some(ProtoRequest::Start(start)) = first else {
            let problem = "must be a Start: it comes first";
            return Err(status::invalid_request(Invalid::field("request", problem)));
        };
        let start = read_start(start).map_err(status::invalid_request)?;
        let cut = hung_up.clone();
        let requests = requests.map(move |request| match request {
            Err(_) if cut() => protocol::Request::Gone,
            Err(status) => unreadable(&status, &refusals),
            Ok(request) => read_request(request),
        });
        // However often it is asked: a caller that is gone stays gone.
        let end =
            stream::poll_fn(move |_| Poll::Ready(hung_up().then_some(protocol::Request::Gone)));
        let requests = requests.chain(end).boxed();
        let end = deadline.map(|deadline| deadline.answer_by);
        let events = self.service.subscribe(start, requests, end).await;
        let mut events = events.map_err(|refused| Status::from(Failure::of_refusal(refused)))?;
        // The transport encodes an event into a copy, and asks for the next one when it has sent that.
        let mut copied = None;
        let responses = stream::poll_fn(move |context| {
            drop(copied.take());
            let event = ready!(events.poll_recv(context));
            copied = event.as_ref().and_then(Event::copied);
            Poll::Ready(event)
        });
        let responses = responses.filter_map(|event| future::ready(write(event)));
        Ok(Response::new(responses.boxed()))
    }
}

fn read_start(start: proto::Start) -> Result<Start, Invalid> {
    let ack_deadline = start.ack_deadline.map(|deadline| {
        let field = "start.ack_deadline";
        let deadline = convert::duration(deadline);
        deadline.ok_or_else(|| Invalid::field(field, "must be from 1 s to 15 min"))
    });
    Ok(Start {
        queues: start.queues,
        max_outstanding: start.max_outstanding,
        max_outstanding_bytes: start.max_outstanding_bytes,
        auto_ack: start.auto_ack,
        ack_deadline: ack_deadline.transpose()?,
        client_id: start.client_id,
        max_messages: start.max_messages,
        stream_offset: start.stream_offset.map(read_offset).transpose()?,
        consumer_priority: start.consumer_priority,
    })
}

fn read_offset(offset: proto::StreamOffset) -> Result<StreamOffset, Invalid> {
    let invalid = |problem| Invalid::field("start.stream_offset", problem);
    match offset.from {
        Some(Begin::Position(position)) => match Position::try_from(position) {
            Ok(Position::First) => Ok(StreamOffset::First),
            Ok(Position::Last) => Ok(StreamOffset::Last),
            Ok(Position::Next) => Ok(StreamOffset::Next),
            Ok(Position::Unspecified) | Err(_) => {
                Err(invalid("has no position: first, last or next"))
            }
        },
        Some(Begin::Offset(offset)) => i64::try_from(offset)
            .map(StreamOffset::At)
            .map_err(|_| invalid("is an offset that no stream reaches")),
        Some(Begin::Time(time)) => u64::try_from(time.seconds)
            .map(StreamOffset::Time)
            .map_err(|_| invalid("is a time before 1970")),
        None => Err(invalid("must be a position, an offset or a time")),
    }
}

/// Why there is no request where one was expected.
fn unreadable(status: &Status, refusals: &Refusals) -> protocol::Request {
    if let Some(why) = Interrupted::find(status) {
        return protocol::Request::Interrupted(why);
    }
    protocol::Request::Invalid(refusals.last().unwrap_or_else(|| {
        let problem = format!("cannot be read: {}", status.message());
        Invalid::field("request", problem)
    }))
}

fn read_request(request: SubscribeRequest) -> protocol::Request {
    match request.request {
        None => protocol::Request::Invalid(Invalid::field("request", "must be set")),
        Some(ProtoRequest::Start(_)) => {
            protocol::Request::Invalid(Invalid::field("start", "must be sent only once"))
        }
        Some(ProtoRequest::Settle(settle))
            if settle.ack_ids.len() + settle.nacks.len() > MAX_ACK_IDS =>
        {
            too_many("settle.ack_ids")
        }
        Some(ProtoRequest::Settle(settle)) => protocol::Request::Settle {
            acks: settle.ack_ids,
            nacks: settle.nacks.into_iter().map(read_nack).collect(),
        },
        Some(ProtoRequest::Extend(extend)) if extend.ack_ids.len() > MAX_ACK_IDS => {
            too_many("extend.ack_ids")
        }
        Some(ProtoRequest::Extend(extend)) => match read_extension(extend.ack_deadline) {
            Ok(ack_deadline) => protocol::Request::Extend {
                ack_ids: extend.ack_ids,
                ack_deadline,
            },
            Err(invalid) => protocol::Request::Invalid(invalid),
        },
    }
}

fn too_many(field: &'static str) -> protocol::Request {
    let problem = format!("must hold at most {MAX_ACK_IDS} ids");
    protocol::Request::Invalid(Invalid::field(field, problem))
}

fn read_extension(deadline: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let field = "extend.ack_deadline";
    let Some(deadline) = deadline else {
        return Ok(None);
    };
    let deadline = convert::duration(deadline).unwrap_or_default();
    check_ack_deadline(field, deadline)?;
    Ok(Some(deadline))
}

fn read_nack(nack: proto::Nack) -> Nack {
    let error = nack.error.unwrap_or_default();
    Nack {
        action: read_action(nack.action, nack.delay),
        ack_id: nack.ack_id,
        error: ErrorDetail {
            kind: error.r#type,
            message: error.message,
            stack: error.stack,
        },
    }
}

/// `None`: not an action that is allowed.
fn read_action(action: i32, delay: Option<prost_types::Duration>) -> Option<Action> {
    match (ProtoAction::try_from(action).ok()?, delay) {
        (ProtoAction::Retry, None) => Some(Action::Retry(None)),
        (ProtoAction::Retry, Some(delay)) => {
            let delay = convert::duration(delay).filter(|delay| *delay <= MAX_RETRY_DELAY)?;
            Some(Action::Retry(Some(delay)))
        }
        (_, Some(_)) | (ProtoAction::Unspecified, None) => None,
        (ProtoAction::Requeue, None) => Some(Action::Requeue),
        (ProtoAction::DeadLetter, None) => Some(Action::DeadLetter),
        (ProtoAction::Discard, None) => Some(Action::Discard),
    }
}

fn write(event: Event) -> Option<Result<SubscribeResponse, Status>> {
    let response = match event {
        Event::Started {
            max_outstanding,
            ack_deadline,
        } => ProtoResponse::Started(Started {
            max_outstanding,
            ack_deadline: write_duration(ack_deadline),
        }),
        Event::Deliveries(given) => ProtoResponse::Deliveries(Deliveries {
            deliveries: given.into_iter().map(write_delivery).collect(),
        }),
        Event::Results(results) => ProtoResponse::Results(SettleResults {
            results: results.into_iter().map(write_result).collect(),
        }),
        Event::Revoked(ack_ids) => ProtoResponse::Revoked(Revoked {
            ack_ids,
            reason: "ACK_DEADLINE_EXCEEDED".to_owned(),
        }),
        Event::Draining { grace } => ProtoResponse::Draining(Draining {
            reason: "GATEWAY_STOPPING".to_owned(),
            grace: write_duration(grace),
        }),
        Event::End(End::Done) => return None,
        Event::End(end) => return Failure::of_end(end).map(|failure| Err(failure.into())),
    };
    Some(Ok(SubscribeResponse {
        response: Some(response),
    }))
}

fn write_delivery(given: Given) -> Delivery {
    let delivery = given.delivery;
    let failed_id = dead_letter::failed_id(&delivery.message);
    let origin = dead_letter::origin(&delivery);
    Delivery {
        ack_id: given.ack_id,
        queue: given.queue,
        exchange: origin.exchange.to_owned(),
        routing_key: origin.routing_key.to_owned(),
        attempt: given.attempt,
        redelivered: delivery.redelivered,
        ack_deadline_time: given
            .ack_deadline
            .map(|deadline| (SystemTime::now() + deadline).into()),
        failed_message_id: failed_id.unwrap_or_default().to_owned(),
        message: Some(convert::delivered(&delivery.message)),
    }
}

fn write_result((mut ack_id, result): (String, SettleResult)) -> proto::SettleResult {
    ack_id.truncate(ack_id.floor_char_boundary(ECHO_BYTES));
    let result = match result {
        SettleResult::Ok => ProtoResult::Ok,
        SettleResult::Stale => ProtoResult::Stale,
        SettleResult::Invalid => ProtoResult::Invalid,
        SettleResult::AlreadySettled => ProtoResult::AlreadySettled,
        SettleResult::NotSettled => ProtoResult::NotSettled,
    };
    proto::SettleResult {
        ack_id,
        result: result.into(),
    }
}

fn write_duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
