//! Health, for probes and people.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    broker::{LinkState, Links},
    store::{Presence, Trouble},
};

#[derive(Clone)]
struct Probes {
    service: String,
    links: watch::Receiver<Links>,
    database: Presence,
}

pub(super) fn routes(
    service: &str,
    links: watch::Receiver<Links>,
    database: Presence,
) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(live))
        .routes(routes!(ready))
        .with_state(Probes {
            service: service.to_owned(),
            links,
            database,
        })
}

/// Fields in the order of the specification.
#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
    service: String,
}

/// Whether the process lives. It says nothing of the broker: a probe that restarts the gateway would not bring the broker back.
#[utoipa::path(get, path = "/api/health", responses((status = OK, body = Health, description = "It lives.")))]
async fn health(State(probes): State<Probes>) -> Json<Health> {
    Json(Health {
        status: "healthy",
        service: probes.service,
    })
}

/// The same as `/api/health`.
#[utoipa::path(get, path = "/livez", responses((status = OK, body = Health, description = "It lives.")))]
async fn live(probes: State<Probes>) -> Json<Health> {
    health(probes).await
}

/// Whether calls can be served.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ready` or `not ready`.
    status: &'static str,
    service: String,
    broker: BrokerLinks,
    /// `up` or `down`: it is not reached, or takes no changes. Publishing and subscribing do without it. One whose file was deleted
    /// or replaced (SQLite) makes the whole not ready: what this process has of it is gone with the process.
    database: &'static str,
}

/// Each is `up`, `blocked`, `down`, or `failing`: the connection stands, but does not do its work.
#[derive(Serialize, ToSchema)]
struct BrokerLinks {
    publish: &'static str,
    consume: &'static str,
}

/// Whether calls can be served: the links to the broker stand, and the database was not taken away from under the gateway.
#[utoipa::path(get, path = "/readyz", responses(
    (status = OK, body = Ready, description = "Calls are served."),
    (status = SERVICE_UNAVAILABLE, body = Ready, description = "A link is down or fails, or the database's file was deleted or replaced."),
))]
async fn ready(State(probes): State<Probes>) -> Response {
    let links = *probes.links.borrow();
    let lost = probes.database.trouble() == Some(Trouble::Lost);
    let ready = links.publish.is_sound() && links.consume.is_sound() && !lost;
    let state = |link| match link {
        LinkState::Up => "up",
        LinkState::Blocked => "blocked",
        LinkState::Down => "down",
        LinkState::Failing => "failing",
    };
    let body = Ready {
        status: if ready { "ready" } else { "not ready" },
        service: probes.service,
        broker: BrokerLinks {
            publish: state(links.publish),
            consume: state(links.consume),
        },
        database: if probes.database.is_up() {
            "up"
        } else {
            "down"
        },
    };
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}
