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

use super::proto::publisher_server;
use crate::error::Failure;

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
        let publishes = is_publish(request.uri().path());
        if deadline.answer_by <= Instant::now() {
            return Either::Right(ready(Ok(exceeded(publishes, false))).boxed());
        }
        request.extensions_mut().insert(deadline);
        // tonic's own timer for this header would answer CANCELLED; the handler's answer or the one below comes first.
        let answer = timeout_at(deadline.end - margin(timeout) / 4, self.inner.call(request));
        let late = move |_| Ok(exceeded(publishes, true));
        Either::Right(
            answer
                .map(move |answer| answer.unwrap_or_else(late))
                .boxed(),
        )
    }
}

/// Whether the call at this path publishes a message.
fn is_publish(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    service.is_some_and(|(service, _)| service == publisher_server::SERVICE_NAME)
}

fn exceeded(publishes: bool, started: bool) -> Response<Body> {
    let failure = if publishes {
        Failure::publish_deadline(started)
    } else {
        Failure::deadline()
    };
    Status::from(failure).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

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
