//! The one table from a failure to an HTTP answer, and what HTTP itself refuses. Every error has the same body.

use std::time::Duration;

use axum::{
    Json,
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tower_http::csrf::{CsrfLayer, ProtectionError};
use utoipa::ToSchema;

use crate::{
    error::{Code, Failure, Reason},
    gateway::validate::Invalid,
    origins::Origins,
};

/// How much of an error text is told: parts of a request may be in it.
const TOLD_BYTES: usize = 1024;

/// The status of a failure: the standard map of gRPC's codes
/// (<https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto>), and HTTP's own for what is too large.
fn status(failure: &Failure) -> StatusCode {
    if matches!(
        failure.reason,
        Reason::PayloadTooLarge | Reason::BatchTooLarge
    ) {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    match failure.code {
        Code::InvalidArgument | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Error {
    error: Box<ErrorBody>,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// The status of the answer; of a message of a batch: the one that it would be answered with alone.
    code: u16,
    /// Why, for programs: the reasons of the gRPC API (`UNROUTABLE`, `STATE_CONFLICT`), and for what HTTP itself refuses
    /// `NOT_FOUND`, `METHOD_NOT_ALLOWED`, `UNSUPPORTED_MEDIA_TYPE` and `CROSS_SITE`.
    reason: &'static str,
    /// What happened and what to do, for people.
    message: String,
    details: ErrorDetails,
}

/// What is known besides. What is not known is absent.
#[derive(Debug, Default, Serialize, ToSchema)]
struct ErrorDetails {
    /// The fields at fault.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    field_violations: Vec<FieldViolation>,
    /// What is not as it must be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    precondition_violations: Vec<PreconditionViolation>,
    /// Of a publish: what became of the message. `NOT_SENT`, `UNROUTABLE`, `REJECTED`, `IN_DOUBT` or `INVALID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_outcome: Option<&'static str>,
    /// Where trying again helps: when. Also in the header `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
}

/// A field of the request, and its fault.
#[derive(Debug, Serialize, ToSchema)]
struct FieldViolation {
    field: String,
    description: String,
}

/// A thing that is not as it must be.
#[derive(Debug, Serialize, ToSchema)]
struct PreconditionViolation {
    subject: String,
    description: String,
}

impl Error {
    fn new(status: StatusCode, reason: &'static str, mut message: String) -> Self {
        message.truncate(message.floor_char_boundary(TOLD_BYTES));
        Self {
            error: Box::new(ErrorBody {
                code: status.as_u16(),
                reason,
                message,
                details: ErrorDetails::default(),
            }),
        }
    }

    /// A request that cannot be carried out as it is.
    pub(super) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Failure::invalid_request(Invalid::field(field, problem.into())).into()
    }

    /// A body over the limit.
    pub(super) fn too_large(limit: usize) -> Self {
        let reason = Reason::PayloadTooLarge.into();
        let message = format!("the body is too large: at most {limit} bytes are read");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, reason, message)
    }

    /// A batch over the limit.
    pub(super) fn batch_too_large(limit: usize) -> Self {
        Failure::invalid_publish(Invalid::BatchTooLarge { limit }).into()
    }

    /// A body of another kind than is taken.
    pub(super) fn media_type(message: impl Into<String>) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, "UNSUPPORTED_MEDIA_TYPE", message.into())
    }

    /// Another method than is taken.
    pub(super) fn method(message: String) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::new(status, "METHOD_NOT_ALLOWED", message)
    }

    /// The message of this publish was refused as it is.
    pub(super) fn not_published(mut self) -> Self {
        self.error.details.publish_outcome.get_or_insert("INVALID");
        self
    }
}

impl From<Error> for ErrorBody {
    fn from(error: Error) -> Self {
        *error.error
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let mut error = Self::new(status(&failure), failure.reason.into(), failure.message);
        let violation = failure.violation.map(|(field, mut description)| {
            description.truncate(description.floor_char_boundary(TOLD_BYTES));
            FieldViolation { field, description }
        });
        let unmet = failure.unmet.into_iter();
        let unmet = unmet.map(|(subject, description)| PreconditionViolation {
            subject,
            description,
        });
        error.error.details = ErrorDetails {
            field_violations: violation.into_iter().collect(),
            precondition_violations: unmet.collect(),
            publish_outcome: failure.publish_outcome,
            retry_after_seconds: failure.retry_after.map(whole_seconds),
        };
        error
    }
}

fn whole_seconds(after: Duration) -> u64 {
    after.as_secs() + u64::from(after.subsec_nanos() > 0)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.error.code);
        let after = self.error.details.retry_after_seconds;
        let mut response = (
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            Json(self),
        )
            .into_response();
        if let Some(seconds) = after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Nothing has this path.
pub(super) async fn no_such_route(request: Request) -> Response {
    if let Some(kind) = grpc(request.headers()) {
        return no_such_service(kind);
    }
    let path = request.uri().path();
    let message =
        format!("nothing at {path}; /openapi.json has the routes, gRPC's reflection the services");
    Error::new(StatusCode::NOT_FOUND, "NOT_FOUND", message).into_response()
}

/// The path is there, but not for this method. The header `Allow` is axum's.
pub(super) async fn no_such_method(request: Request) -> Error {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{method} is not for {path}; the header Allow says what is");
    Error::method(message)
}

/// The content type of a call of gRPC or gRPC-Web.
fn grpc(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers
        .get(CONTENT_TYPE)
        .filter(|kind| kind.as_bytes().starts_with(b"application/grpc"))
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

type Refusal = fn(ProtectionError) -> Response;

/// Refuses what a web page of another origin asks a visitor's browser to send: a plain form could purge a queue of a gateway
/// that listens on that visitor's machine. Other clients send no such headers. `None`: pages of all origins may call.
pub(super) fn cross_site(origins: Origins) -> Option<CsrfLayer<Refusal>> {
    let Origins::These(_, layer) = origins else {
        return None;
    };
    let refusal: Refusal = |_| {
        let message = "sent by a web page of another origin; CORS_ORIGINS says which may call";
        Error::new(StatusCode::FORBIDDEN, "CROSS_SITE", message.to_owned()).into_response()
    };
    Some(layer.with_rejection_response(refusal))
}
