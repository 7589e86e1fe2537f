//! The caller's [`Deadline`] in gRPC: enforced here, because tonic alone answers CANCELLED.

use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either, FutureExt, ready};
use http::{Request, Response};
use tokio::time::timeout_at;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::is_grpc;
use crate::{deadline::Deadline, error::Failure};

/// The paths of the service whose errors name an outcome.
const PUBLISHER: &str = "/courtier.v1.Publisher/";

/// Puts a [`Deadline`] among a call's extensions, and answers DEADLINE_EXCEEDED when the handler did not by then.
/// Plain HTTP has a layer of its own, which answers otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Enforced<S>;

    fn layer(&self, inner: S) -> Enforced<S> {
        Enforced { inner }
    }
}

/// See [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Enforced<S> {
    inner: S,
}

type Answer<F, E> = Either<F, BoxFuture<'static, Result<Response<Body>, E>>>;

impl<S, B> Service<Request<B>> for Enforced<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let deadline = is_grpc(request.headers()).then(|| Deadline::read(request.headers()));
        let Some(deadline) = deadline.flatten() else {
            return Either::Left(self.inner.call(request));
        };
        let publishes = request.uri().path().starts_with(PUBLISHER);
        if deadline.is_over() {
            return Either::Right(ready(Ok(exceeded(publishes, false))).boxed());
        }
        request.extensions_mut().insert(deadline);
        // tonic's own timer for this header would answer CANCELLED; the handler's answer or the one below comes first.
        let answer = timeout_at(deadline.cut_at, self.inner.call(request));
        Either::Right(
            answer
                .map(move |answer| answer.unwrap_or_else(|_| Ok(exceeded(publishes, true))))
                .boxed(),
        )
    }
}

/// A publish that was begun may be stored: on a machine that has no time for the handler, this is the answer.
fn exceeded(publishes: bool, begun: bool) -> Response<Body> {
    let failure = if publishes {
        Failure::publish_deadline(begun)
    } else {
        Failure::deadline()
    };
    Status::from(failure).into_http()
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;
    use crate::grpc::status::PUBLISH_OUTCOME;

    /// What a call is told whose handler never answers.
    async fn answer(path: &str, grpc_timeout: &str) -> (Code, Option<String>) {
        let handler = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let request = Request::builder()
            .uri(path)
            .header("content-type", "application/grpc")
            .header("grpc-timeout", grpc_timeout)
            .body(())
            .expect("a valid request");
        let response = DeadlineLayer.layer(handler).call(request).await;
        let response = response.expect("it does not fail");
        let status = Status::from_header_map(response.headers()).expect("a status");
        let info = status.get_details_error_info().expect("details");
        (status.code(), info.metadata.get(PUBLISH_OUTCOME).cloned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_publish_that_nobody_answers_in_time_is_told_its_outcome() {
        let publish = "/courtier.v1.Publisher/Publish";
        let outcome = |name: &str| (Code::DeadlineExceeded, Some(name.to_owned()));
        assert_eq!(answer(publish, "2S").await, outcome("IN_DOUBT"));
        assert_eq!(answer(publish, "1n").await, outcome("NOT_SENT"));
        let subscribe = "/courtier.v1.Subscriber/Subscribe";
        assert_eq!(
            answer(subscribe, "2S").await,
            (Code::DeadlineExceeded, None)
        );
    }
}
