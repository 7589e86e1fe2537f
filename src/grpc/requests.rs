//! Counts calls by how they end, and says in the log what failed. It sits inside of gRPC-Web, whose frames would hide the status.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use percent_encoding::percent_decode;
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tonic::{body::Body, server::NamedService};
use tower::Service;

use super::DESCRIPTORS;
use crate::{deadline::Deadline, metrics::Metrics};

/// The names of gRPC's status codes, by their numbers (<https://grpc.io/docs/guides/status-codes/>).
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const CANCELLED: &str = CODES[1];
const UNKNOWN: &str = CODES[2];
const DEADLINE_EXCEEDED: &str = CODES[4];
const OK: &str = CODES[0];
const INTERNAL: &str = CODES[13];
const DATA_LOSS: &str = CODES[15];

/// Counts calls of the methods that there are; others make no figures.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    metrics: Metrics,
    methods: Arc<HashMap<String, Method>>,
}

#[derive(Clone, Debug)]
struct Method {
    service: Arc<str>,
    name: Arc<str>,
}

impl Requests {
    pub(super) fn new(metrics: Metrics) -> Self {
        let described = [
            DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let mut methods = HashMap::new();
        for set in described {
            // They were made by this build or by the crate that has them.
            for file in FileDescriptorSet::decode(set).unwrap_or_default().file {
                for service in &file.service {
                    let of = Arc::<str>::from(format!("{}.{}", file.package(), service.name()));
                    for method in &service.method {
                        let name = Arc::from(method.name());
                        let service = of.clone();
                        methods.insert(format!("/{of}/{name}"), Method { service, name });
                    }
                }
            }
        }
        Self {
            metrics,
            methods: Arc::new(methods),
        }
    }

    /// `inner`, its calls counted.
    pub(super) fn counted<S>(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            requests: self.clone(),
        }
    }

    fn begin<B>(&self, request: &Request<B>) -> Option<Call> {
        Some(Call {
            method: self.methods.get(request.uri().path())?.clone(),
            metrics: self.metrics.clone(),
            since: Instant::now(),
            deadline: request.extensions().get::<Deadline>().copied(),
            code: None,
            told: String::new(),
        })
    }
}

/// A call that is counted when it is dropped.
struct Call {
    method: Method,
    metrics: Metrics,
    since: Instant,
    deadline: Option<Deadline>,
    /// How it ended; `None`: nobody waited for that.
    code: Option<&'static str>,
    /// What the caller is told, if it failed.
    told: String,
}

impl Call {
    /// Reads how it ended in headers or trailers.
    fn read(&mut self, headers: &HeaderMap) {
        self.code = code(headers);
        if self.code.is_some_and(|code| code != OK) {
            let told = headers.get("grpc-message").map(HeaderValue::as_bytes);
            let told = percent_decode(told.unwrap_or_default());
            self.told = told.decode_utf8_lossy().into_owned();
        }
    }

    /// One line for each failure. Callers' mistakes, and what they may try again, are no errors of the gateway.
    fn say(&self, code: &'static str) {
        let Method { service, name } = &self.method;
        let (service, method, told) = (&**service, &**name, self.told.as_str());
        match code {
            OK => {}
            UNKNOWN | INTERNAL | DATA_LOSS => {
                tracing::error!(service, method, code, told, "a call failed");
            }
            _ => tracing::debug!(service, method, code, told, "a call failed"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let now = Instant::now();
        let code = self.code.unwrap_or(match self.deadline {
            // The layer that keeps the deadlines has answered.
            Some(deadline) if deadline.answer_by <= now => DEADLINE_EXCEEDED,
            _ => CANCELLED,
        });
        let Method { service, name } = &self.method;
        self.metrics.called(service, name, code, now - self.since);
        self.say(code);
    }
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Option<&'static str> {
    let number = headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    Some(
        number
            .and_then(|number: usize| CODES.get(number))
            .map_or(UNKNOWN, |name| name),
    )
}

/// See [`Requests::counted`].
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    inner: S,
    requests: Requests,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Answer {
            call: self.requests.begin(&request),
            inner: self.inner.call(request),
        }
    }
}

/// The answer to a call.
pub(super) struct Answer<F> {
    inner: F,
    call: Option<Call>,
}

impl<F, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.inner).poll(context))?;
        let Some(mut call) = self.call.take() else {
            return Poll::Ready(Ok(response));
        };
        call.read(response.headers());
        Poll::Ready(Ok(match call.code {
            Some(_) => response,
            None => response.map(|inner| {
                let call = Some(call);
                Body::new(Watched { inner, call })
            }),
        }))
    }
}

/// A response's body, whose trailers say how the call ended.
struct Watched {
    inner: Body,
    call: Option<Call>,
}

impl HttpBody for Watched {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref()
                    && let Some(mut call) = self.call.take()
                {
                    call.read(trailers);
                }
            }
            Some(Err(_)) | None => {
                if let Some(mut call) = self.call.take() {
                    call.code = Some(UNKNOWN);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
