//! What is told to a caller that speaks neither gRPC nor gRPC-Web where an rpc is: tonic's own answers have no body.

use axum::{
    extract::{MatchedPath, Request},
    http::{
        HeaderValue, Method, Version,
        header::{ALLOW, CONTENT_TYPE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tonic::service::Routes;

use super::error::Error;

/// What gRPC-Web calls itself (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>).
const WEB: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

/// What does the same with JSON over plain HTTP.
const TWINS: [(&str, &str); 11] = [
    (
        "/courtier.v1.Publisher/Publish",
        "POST /api/messages/publish",
    ),
    (
        "/courtier.v1.Publisher/PublishBatch",
        "POST /api/messages/publish/batch",
    ),
    (
        "/courtier.v1.FailedMessages/ListFailedMessages",
        "GET /api/messages/failed",
    ),
    (
        "/courtier.v1.FailedMessages/GetFailedMessage",
        "GET /api/messages/failed/{id}",
    ),
    (
        "/courtier.v1.FailedMessages/RetryFailedMessage",
        "POST /api/messages/retry/{id}",
    ),
    (
        "/courtier.v1.FailedMessages/DeleteFailedMessage",
        "DELETE /api/messages/failed/{id}",
    ),
    ("/courtier.v1.QueueAdmin/ListQueues", "GET /api/queues"),
    (
        "/courtier.v1.QueueAdmin/GetQueueStats",
        "GET /api/queues/{queue}/stats",
    ),
    (
        "/courtier.v1.QueueAdmin/PurgeQueue",
        "POST /api/queues/{queue}/purge",
    ),
    ("/grpc.health.v1.Health/Check", "GET /readyz"),
    ("/grpc.health.v1.Health/List", "GET /readyz"),
];

/// The same routes; what is no call of gRPC or gRPC-Web is told what is.
pub fn explained(routes: Routes) -> Routes {
    let routes = routes.into_axum_router();
    routes.layer(middleware::from_fn(explain)).into()
}

async fn explain(request: Request, next: Next) -> Response {
    if !is_rpc(&request) || is_spoken(&request) {
        return next.run(request).await;
    }
    let path = request.uri().path();
    let twin = TWINS.iter().find(|(rpc, _)| *rpc == path);
    let twin = match twin {
        Some((_, route)) => format!("{route} does the same with JSON"),
        None => "/openapi.json has the routes that take JSON".to_owned(),
    };
    let message = format!(
        "{path} is called by POST with gRPC over HTTP/2 (application/grpc) or with gRPC-Web (application/grpc-web), not with JSON or \
         Connect; {twin}"
    );
    let is_post = request.method() == Method::POST;
    let mut error = if is_post {
        Error::media_type(message)
    } else {
        Error::method(message)
    };
    if path.starts_with("/courtier.v1.Publisher/") {
        error = error.not_published();
    }
    let mut response = error.into_response();
    if !is_post {
        let allowed = HeaderValue::from_static("POST");
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Whether a service of gRPC has this path.
fn is_rpc(request: &Request) -> bool {
    let matched = request.extensions().get::<MatchedPath>();
    matched.is_some_and(|path| path.as_str().ends_with("/{*rest}"))
}

fn is_spoken(request: &Request) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    let Some(kind) = kind.and_then(|kind| kind.to_str().ok()) else {
        return false;
    };
    if WEB.contains(&kind) {
        return request.method() == Method::POST;
    }
    request.version() == Version::HTTP_2 && kind.starts_with("application/grpc")
}
