//! `GET /metrics`: the figures, for Prometheus and whatever reads its format.

use axum::{
    Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};

use crate::{gateway::exposition::Exposition, metrics};

/// The route.
pub fn route(exposition: Exposition) -> Router {
    Router::new()
        .route("/metrics", get(expose))
        .with_state(exposition)
}

async fn expose(State(exposition): State<Exposition>) -> impl IntoResponse {
    let kind = [(CONTENT_TYPE, metrics::CONTENT_TYPE)];
    (kind, exposition.text())
}
