//! `/openapi.json`: made from the routes themselves, so that it says what they do.

use axum::{
    Json,
    routing::{MethodRouter, get},
};
use utoipa::{OpenApi, openapi};
use utoipa_axum::router::OpenApiRouter;

const ABOUT: &str = "\
JSON twins of the gRPC API, for services and scripts that speak no gRPC: the same checks, limits, deadlines and errors. \
Each takes a `grpc-timeout` header (`500m`, `10S`) and answers a little before it is over.\n\n\
Subscribing, and what people do with many failed messages at once, is gRPC only: see `courtier.v1.Subscriber` and \
`courtier.v1.FailedMessages`.";

#[derive(OpenApi)]
#[openapi(info(title = "Courtier", description = ABOUT))]
struct Description;

/// A router whose routes are described.
pub(super) fn described() -> OpenApiRouter {
    OpenApiRouter::with_openapi(Description::openapi())
}

pub(super) fn serve(description: openapi::OpenApi) -> MethodRouter {
    get(async move || Json(description.clone()))
}
