//! `GET /metrics`: the figures, for Prometheus and whatever reads its format.

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    response::IntoResponse,
    routing::get,
};

use crate::{
    gateway::exposition::Exposition,
    metrics::{self, classic},
};

/// The route.
pub fn route(exposition: Exposition) -> Router {
    Router::new()
        .route("/metrics", get(expose))
        .with_state(exposition)
}

async fn expose(State(exposition): State<Exposition>, headers: HeaderMap) -> impl IntoResponse {
    let text = exposition.text();
    let (kind, text) = if knows_only_the_classic_format(&headers) {
        (classic::CONTENT_TYPE, classic::of(&text))
    } else {
        (metrics::CONTENT_TYPE, text)
    };
    ([(CONTENT_TYPE, kind), (VARY, "accept")], text)
}

/// Prometheus accepts both, and prefers OpenMetrics.
fn knows_only_the_classic_format(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter();
    let accepted: Vec<_> = accepted.filter_map(|accept| accept.to_str().ok()).collect();
    let lists = |kind| accepted.iter().any(|accept| accept.contains(kind));
    lists("text/plain") && !lists("application/openmetrics-text")
}
