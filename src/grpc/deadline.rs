//! The caller's deadline, from the `grpc-timeout` header: enforced here, because tonic alone answers CANCELLED.
//!
//! Handlers answer by [`Deadline::answer_by`], a little earlier, so that the reason arrives instead of the client's own timeout.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{BoxFuture, Either, FutureExt, ready};
use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::error::Failure;

/// The paths of the service whose errors name an outcome.
const PUBLISHER: &str = "/courtier.v1.Publisher/";
/// No deadline is later than this; the standard allows 99,999,999 hours.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// When a call must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// When the client gives up.
    pub end: Instant,
    /// When the gateway answers.
    pub answer_by: Instant,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        let timeout = timeout.min(LONGEST);
        Self {
            end: now + timeout,
            answer_by: now + timeout.saturating_sub(margin(timeout)),
        }
    }
}

/// 5 % of it, at least 20 ms, at most 500 ms.
fn margin(timeout: Duration) -> Duration {
    (timeout / 20).clamp(Duration::from_millis(20), Duration::from_millis(500))
}

/// Reads `grpc-timeout` (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>). Malformed is as good as absent.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Puts a [`Deadline`] among the request's extensions, and answers DEADLINE_EXCEEDED when the handler did not by then.
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
        let Some(timeout) = timeout(request.headers()) else {
            return Either::Left(self.inner.call(request));
        };
        let deadline = Deadline::after(timeout);
        let publishes = request.uri().path().starts_with(PUBLISHER);
        if deadline.answer_by <= Instant::now() {
            return Either::Right(ready(Ok(exceeded(publishes, false))).boxed());
        }
        request.extensions_mut().insert(deadline);
        // tonic's own timer for this header would answer CANCELLED; the handler's answer or the one below comes first.
        let answer = timeout_at(deadline.end - margin(timeout) / 4, self.inner.call(request));
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

    fn read(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a header value"));
        timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        assert_eq!(read("0n"), Some(Duration::ZERO));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            read("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3_600))
        );
        for malformed in ["abc", "", "1", "S", "-1S", "123456789S", "1.5S", "1s"] {
            assert_eq!(read(malformed), None, "{malformed}");
        }
    }

    /// What a call is told whose handler never answers.
    async fn answer(path: &str, grpc_timeout: &str) -> (Code, Option<String>) {
        let handler = tower::service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let request = Request::builder()
            .uri(path)
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

    #[test]
    fn the_answer_comes_a_little_early() {
        let early = |ms: u64| {
            let deadline = Deadline::after(Duration::from_millis(ms));
            (deadline.end - deadline.answer_by).as_millis()
        };
        assert_eq!(early(100), 20);
        assert_eq!(early(2_000), 100);
        assert_eq!(early(60_000), 500);
    }
}
