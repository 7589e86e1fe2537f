//! Plain HTTP on the same port: probes, and JSON twins of the rpcs for services and scripts that speak no gRPC.
//!
//! To add a route: write its handler with a `#[utoipa::path]` (which is both the route and its description in
//! `/openapi.json`), name it in its file's `routes`, and test it in `tests/it/`.

mod body;
mod deadline;
mod envelope;
mod error;
mod failed_messages;
pub mod metrics;
mod openapi;
mod probes;
mod publish;
mod publish_batch;
mod queues;
pub mod rpc;
pub mod unread;

use axum::{Router, middleware};
use tower::util::option_layer;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    gateway::Gateway,
    origins::{BadOrigin, Origins},
    store::Presence,
};

/// The routes whose failures name an outcome.
const PUBLISHES: [&str; 2] = [publish::PATH, publish_batch::PATH];

/// The routes. `service` is the name that `/api/health` answers; `origins` are those of the web pages that may call.
pub fn routes(
    service: &str,
    gateway: &Gateway,
    database: Presence,
    origins: &[String],
) -> Result<Router, BadOrigin> {
    let api = OpenApiRouter::new()
        .merge(publish::routes(&gateway.publisher))
        .merge(publish_batch::routes(&gateway.publisher))
        .merge(failed_messages::routes(&gateway.failed_messages))
        .merge(queues::routes(&gateway.queue_admin));
    let (router, description) = openapi::described()
        .merge(probes::routes(service, gateway.broker.links(), database))
        .merge(api)
        .split_for_parts();
    Ok(router
        .route("/openapi.json", openapi::serve(description))
        .fallback(error::no_such_route)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(option_layer(error::cross_site(Origins::read(origins)?)))
        .layer(middleware::from_fn(deadline::enforce)))
}
