//! `courtier.v1.Publisher`.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream::BoxStream};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    incoming::Refusals,
    proto::{
        Outcome as ProtoOutcome, PublishBatchRequest, PublishBatchResponse, PublishRequest,
        PublishResponse, PublishResult, PublishStreamRequest, PublishStreamResponse,
        publisher_server::Publisher,
    },
    status,
};
use crate::{
    broker::Fate,
    deadline::Deadline,
    error::Failure,
    gateway::{
        Gateway, Limits, Streams,
        publisher::{self, Outcome, Outgoing, Published, Publishes, check_batch},
        validate::Invalid,
    },
    timer::until,
    traces::Origin,
};

/// Results of one response.
const RESULTS: usize = 256;
/// Responses on their way to a client that does not read.
const RESPONSES: usize = 4;

pub(super) struct Service {
    service: publisher::Publisher,
    streams: Streams,
}

impl Service {
    pub(super) fn new(gateway: &Gateway) -> Self {
        Self {
            service: gateway.publisher.clone(),
            streams: gateway.streams.clone(),
        }
    }

    /// When a publish of this request is answered.
    fn deadline<T>(&self, request: &Request<T>) -> Instant {
        let own = Instant::now() + self.service.limits.publish_timeout;
        match request.extensions().get::<Deadline>() {
            Some(callers) => callers.answer_by.min(own),
            None => own,
        }
    }
}

#[tonic::async_trait]
impl Publisher for Service {
    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let deadline = self.deadline(&request);
        let origin = origin(&request);
        let published = match outgoing(Some(request.into_inner()), &origin) {
            Ok(outgoing) => self.service.publish(outgoing, deadline).await,
            Err(refused) => self.service.refuse(refused),
        };
        let publish_id = convert::publish_id(&published);
        match Failure::of_publish(published.outcome) {
            Some(failure) => Err(failure.into()),
            None => Ok(Response::new(PublishResponse {
                message_id: published.message_id,
                publish_id,
                outcome: ProtoOutcome::Confirmed.into(),
            })),
        }
    }

    async fn publish_batch(
        &self,
        request: Request<PublishBatchRequest>,
    ) -> Result<Response<PublishBatchResponse>, Status> {
        let deadline = self.deadline(&request);
        let origin = origin(&request);
        let messages = request.into_inner().messages;
        check_batch(messages.len()).map_err(Failure::invalid_publish)?;
        let batch = messages.into_iter();
        let batch = batch.map(|message| outgoing(Some(message), &origin));
        let fates = self.service.publish_batch(batch, deadline).await;
        let results = fates.into_iter().zip(0..);
        let results = results.map(|(published, sequence)| result(sequence, published));
        let results = results.collect();
        Ok(Response::new(PublishBatchResponse { results }))
    }

    type PublishStreamStream = BoxStream<'static, Result<PublishStreamResponse, Status>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().copied();
        let refusals = request.extensions().get::<Refusals>().cloned();
        let origin = origin(&request);
        let (responses, receiver) = mpsc::channel(RESPONSES);
        let run = PublishRun {
            limits: self.service.limits.clone(),
            stopping: self.streams.stopping.clone(),
            publishes: self.service.publishes(),
            deadline,
            origin,
            refusals: refusals.unwrap_or_default(),
            taken: 0,
            responses,
        };
        self.streams.tasks.spawn(run.serve(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

/// One `PublishStream`.
struct PublishRun {
    limits: Arc<Limits>,
    stopping: CancellationToken,
    publishes: Publishes,
    deadline: Option<Deadline>,
    origin: Option<Origin>,
    /// What was refused of the requests before they were decoded.
    refusals: Refusals,
    /// Requests that were taken.
    taken: u64,
    responses: mpsc::Sender<Result<PublishStreamResponse, Status>>,
}

impl PublishRun {
    async fn serve(mut self, mut requests: Streaming<PublishStreamRequest>) {
        let window = self.limits.publish_window;
        let stopping = self.stopping.clone();
        let end = self.deadline.map(|deadline| deadline.answer_by);
        let mut last = Ok(());
        let mut reading = true;
        while reading || self.publishes.pending() > 0 {
            let results = tokio::select! {
                // The client is gone; what was handed over goes on without it.
                () = self.responses.closed() => return,
                () = stopping.cancelled(), if reading => {
                    reading = false;
                    last = Err(Failure::stopping().into());
                    continue;
                }
                () = until(end), if reading && end.is_some() => {
                    reading = false;
                    last = Err(Failure::deadline().into());
                    continue;
                }
                results = self.publishes.results(RESULTS), if self.publishes.pending() > 0 => results,
                request = requests.next(), if reading && self.publishes.pending() < window => {
                    let mut next = Some(request);
                    let mut at_once = Vec::new();
                    // Take what has arrived with it, as far as the window goes.
                    while let Some(request) = next.take() {
                        match request {
                            Some(Ok(request)) => at_once.extend(self.take(request).await),
                            Some(Err(status)) => {
                                reading = false;
                                last = Err(status);
                            }
                            None => reading = false,
                        }
                        if reading && self.publishes.pending() < window && at_once.len() < RESULTS {
                            next = requests.next().now_or_never();
                        }
                    }
                    at_once
                }
            };
            if results.is_empty() {
                continue;
            }
            let results = results
                .into_iter()
                .map(|(sequence, published)| result(sequence, published))
                .collect();
            if self
                .responses
                .send(Ok(PublishStreamResponse { results }))
                .await
                .is_err()
            {
                return;
            }
        }
        if let Err(status) = last {
            let _ = self.responses.send(Err(status)).await;
        }
    }

    async fn take(&mut self, request: PublishStreamRequest) -> Option<(u64, Published)> {
        let own = Instant::now() + self.limits.publish_timeout;
        let deadline = self
            .deadline
            .map_or(own, |callers| callers.answer_by.min(own));
        let sequence = request.sequence;
        let index = self.taken;
        self.taken += 1;
        if let Some(invalid) = self.refusals.take(index) {
            let refused = self.publishes.refuse(Published::refused(None, invalid));
            return Some((sequence, refused));
        }
        let at_once = match outgoing(request.publish, &self.origin) {
            Ok(outgoing) => self.publishes.submit(sequence, outgoing, deadline).await,
            Err(refused) => Some(self.publishes.refuse(refused)),
        };
        at_once.map(|published| (sequence, published))
    }
}

/// The caller's trace context.
fn origin<T>(request: &Request<T>) -> Option<Origin> {
    Origin::of_call(request.metadata().as_ref())
}

/// A request as the gateway takes it. The error is its fate already.
fn outgoing(
    request: Option<PublishRequest>,
    origin: &Option<Origin>,
) -> Result<Outgoing, Published> {
    let Some(request) = request else {
        let missing = Invalid::field("publish", "must be set");
        return Err(Published::refused(None, missing));
    };
    let outgoing = convert::outgoing(request)?;
    let origin = origin.clone();
    Ok(Outgoing { origin, ..outgoing })
}

fn result(sequence: u64, published: Published) -> PublishResult {
    let publish_id = convert::publish_id(&published);
    let outcome = match &published.outcome {
        Outcome::Fate(Fate::Confirmed) => ProtoOutcome::Confirmed,
        Outcome::Fate(Fate::Unroutable) => ProtoOutcome::Unroutable,
        Outcome::Fate(Fate::Rejected) => ProtoOutcome::Rejected,
        Outcome::Fate(Fate::NotSent(_)) => ProtoOutcome::NotSent,
        Outcome::Fate(Fate::InDoubt(_)) => ProtoOutcome::InDoubt,
        Outcome::Fate(Fate::Refused(_)) | Outcome::Invalid(_) => ProtoOutcome::Invalid,
    };
    PublishResult {
        sequence,
        message_id: published.message_id,
        publish_id,
        outcome: outcome.into(),
        error: Failure::of_publish(published.outcome).map(status::embedded),
    }
}
