//! The caller's [`Deadline`] over plain HTTP. It must be kept: tonic cuts what is later, with an answer that is not HTTP's.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, timeout_at};

use super::{PUBLISHES, error::Error};
use crate::{deadline::Deadline, error::Failure, gateway::Limits};

/// Puts the [`Deadline`] among the request's extensions, and answers when the handler did not by then.
pub(super) async fn enforce(mut request: Request, next: Next) -> Response {
    let Some(deadline) = Deadline::read(request.headers()) else {
        return next.run(request).await;
    };
    let publishes = PUBLISHES.contains(&request.uri().path());
    if deadline.is_over() {
        return exceeded(publishes, false);
    }
    request.extensions_mut().insert(deadline);
    let answer = timeout_at(deadline.cut_at, next.run(request)).await;
    answer.unwrap_or_else(|_| exceeded(publishes, true))
}

/// `begun`: a publish may have been sent meanwhile.
fn exceeded(publishes: bool, begun: bool) -> Response {
    let failure = if publishes {
        Failure::publish_deadline(begun)
    } else {
        Failure::deadline()
    };
    Error::from(failure).into_response()
}

/// When a publish of this request is answered.
pub(super) fn of_publish(request: &Request, limits: &Limits) -> Instant {
    let own = Instant::now() + limits.publish_timeout;
    match request.extensions().get::<Deadline>() {
        Some(callers) => callers.answer_by.min(own),
        None => own,
    }
}
