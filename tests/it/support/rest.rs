//! The JSON twins of the API, as a client of plain HTTP calls them: what tests of them share.

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{front::timely, harness::Gateway};

pub const PUBLISH: &str = "/api/messages/publish";
pub const BATCH: &str = "/api/messages/publish/batch";
pub const FAILED: &str = "/api/messages/failed";

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The body of a success.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text());
        self.json()
    }

    /// The error, of the one shape that all have.
    pub fn error(&self) -> Value {
        let mut body = self.json();
        let names = |value: &Value| -> Vec<String> {
            let object = value.as_object().expect("an object");
            object.keys().cloned().collect()
        };
        assert_eq!(names(&body), ["error"], "{body}");
        let error = body["error"].take();
        assert_eq!(names(&error), ["code", "details", "message", "reason"]);
        assert_eq!(error["code"], self.status.as_u16(), "{error}");
        assert_ne!(error["message"], "", "{error}");
        let after = self.headers.get("retry-after");
        let after = after.map(|seconds| seconds.to_str().expect("digits").to_owned());
        let told = error["details"]["retry_after_seconds"].as_u64();
        assert_eq!(after, told.map(|seconds| seconds.to_string()), "{error}");
        error
    }

    /// Status, reason and publish outcome of an error.
    pub fn refusal(&self) -> (u16, String, String) {
        let error = self.error();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let outcome = text(&error["details"]["publish_outcome"]);
        (self.status.as_u16(), text(&error["reason"]), outcome)
    }
}

pub fn refused(status: u16, reason: &str, outcome: &str) -> (u16, String, String) {
    (status, reason.to_owned(), outcome.to_owned())
}

/// Sends a request over a connection of its own.
pub async fn send(gateway: &Gateway, request: Request<Body>) -> Reply {
    let socket = TcpStream::connect(&gateway.address).await;
    let socket = TokioIo::new(socket.expect("it listens"));
    let (mut client, connection) = hyper::client::conn::http1::handshake(socket)
        .await
        .expect("HTTP/1.1");
    let connection = tokio::spawn(connection);
    let answer = timely(client.send_request(request))
        .await
        .expect("answered");
    let (parts, body) = answer.into_parts();
    let body = timely(to_bytes(Body::new(body), usize::MAX)).await;
    connection.abort();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.expect("read"),
    }
}

pub fn request(method: Method, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "gateway")
}

pub async fn get(gateway: &Gateway, path: &str) -> Reply {
    let request = request(Method::GET, path).body(Body::empty());
    send(gateway, request.expect("well-formed")).await
}

pub async fn delete(gateway: &Gateway, path: &str) -> Reply {
    let request = request(Method::DELETE, path).body(Body::empty());
    send(gateway, request.expect("well-formed")).await
}

/// Without a body.
pub async fn post(gateway: &Gateway, path: &str) -> Reply {
    let request = request(Method::POST, path).body(Body::empty());
    send(gateway, request.expect("well-formed")).await
}

pub async fn post_json(gateway: &Gateway, path: &str, body: impl Into<Body>) -> Reply {
    let request = request(Method::POST, path)
        .header("content-type", "application/json")
        .body(body.into());
    send(gateway, request.expect("well-formed")).await
}

/// Publishes a body as it is written.
pub async fn publish(gateway: &Gateway, body: impl Into<Body>) -> Reply {
    post_json(gateway, PUBLISH, body).await
}

/// A publish to a queue, with these fields besides.
pub fn to_queue(queue: &str, message: Value, besides: Value) -> String {
    let mut body = json!({"exchange": "", "routing_key": queue, "message": message});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(besides.as_object().expect("an object").clone());
    body.to_string()
}
