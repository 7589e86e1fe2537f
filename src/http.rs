//! Plain HTTP on the same port: health for probes and people.

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    broker::{LinkState, Links},
    store::Presence,
};

#[derive(Clone)]
struct Probes {
    service: String,
    links: watch::Receiver<Links>,
    database: Presence,
}

/// The routes. `service` is the name that `/api/health` answers.
pub fn routes(service: &str, links: watch::Receiver<Links>, database: Presence) -> Router {
    Router::new()
        .route("/api/health", get(health))
        .route("/livez", get(health))
        .route("/readyz", get(ready))
        .fallback(not_found)
        .with_state(Probes {
            service: service.to_owned(),
            links,
            database,
        })
}

/// Whether the process lives. It says nothing of the broker: a probe that restarts the gateway would not bring the broker back.
async fn health(State(probes): State<Probes>) -> Json<Health> {
    Json(Health {
        status: "healthy",
        service: probes.service,
    })
}

/// Fields in the order of the specification.
#[derive(serde::Serialize)]
struct Health {
    status: &'static str,
    service: String,
}

/// Whether calls can be served: 200 when the links to the broker stand, else 503, with the state of each.
async fn ready(State(probes): State<Probes>) -> Response {
    let links = *probes.links.borrow();
    let ready = links.publish != LinkState::Down && links.consume != LinkState::Down;
    let state = |link| match link {
        LinkState::Up => "up",
        LinkState::Blocked => "blocked",
        LinkState::Down => "down",
    };
    let body = json!({
        "status": if ready { "ready" } else { "not ready" },
        "service": probes.service,
        "broker": {"publish": state(links.publish), "consume": state(links.consume)},
        // Publishing and subscribing do without it.
        "database": if probes.database.is_up() { "up" } else { "down" },
    });
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    if let Some(grpc) = headers
        .get(CONTENT_TYPE)
        .filter(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    {
        return no_such_service(grpc);
    }
    let message = format!(
        "nothing at {}; gRPC clients find the services by reflection",
        uri.path()
    );
    let error = json!({"code": 404, "reason": "NOT_FOUND", "message": message, "details": []});
    (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response()
}

/// UNIMPLEMENTED, as gRPC says it: in headers alone, with the caller's content type (gRPC or gRPC-Web).
fn no_such_service(kind: &HeaderValue) -> Response {
    let message = HeaderValue::from_static("no such service; reflection lists those there are");
    let headers = [
        (CONTENT_TYPE, kind.clone()),
        (
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("12"),
        ),
        (HeaderName::from_static("grpc-message"), message),
    ];
    headers.into_response()
}
