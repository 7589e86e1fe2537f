//! Reading the body of a request, within the limits of gRPC's.

use axum::{
    RequestExt,
    extract::Request,
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use crate::{budget::intake::Interrupted, error::Failure};

/// The bytes of a publish's JSON body, if they come by `deadline`; at most `limit`, which the route's `DefaultBodyLimit` must be too.
/// `too_large`: the answer to a larger one. Every error says that nothing was published.
pub(super) async fn of_publish(
    request: Request,
    deadline: Instant,
    limit: usize,
    too_large: fn(usize) -> Error,
) -> Result<Bytes, Error> {
    timeout_at(deadline, json(request, limit, too_large))
        .await
        .map_err(|_| Error::from(Failure::publish_deadline(false)))?
        .map_err(Error::not_published)
}

async fn json(
    request: Request,
    limit: usize,
    too_large: fn(usize) -> Error,
) -> Result<Bytes, Error> {
    if !is_json(request.headers()) {
        // Also what keeps forms of web pages out.
        return Err(Error::media_type(
            "the body must be JSON, with the header Content-Type: application/json",
        ));
    }
    // Before it is read: a client that waits for 100 Continue need not send it.
    let announced = request.headers().get(CONTENT_LENGTH);
    let announced: Option<usize> = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|size| size > limit) {
        return Err(too_large(limit));
    }
    let body = request.extract::<Bytes, _>().await;
    body.map_err(|rejection| match Interrupted::find(&rejection) {
        Some(why) => Failure::interrupted(why, true).into(),
        None if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => too_large(limit),
        None => Error::invalid("body", "broke off"),
    })
}

/// `application/json`, with parameters or without, and `application/*+json`.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or("");
    let essence = essence.trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}
