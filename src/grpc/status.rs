//! The one table from a failure to a gRPC status.

use std::{collections::HashMap, sync::Arc};

use prost::Message as _;
use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    budget::intake::Interrupted,
    error::{Code, Failure},
    gateway::validate::Invalid,
};

/// `google.rpc.ErrorInfo.domain`.
pub const DOMAIN: &str = "courtier";
/// The key of `google.rpc.ErrorInfo.metadata` that holds a publish's outcome.
pub const PUBLISH_OUTCOME: &str = "publish_outcome";

/// The code of a failure.
pub fn code(code: Code) -> GrpcCode {
    match code {
        Code::InvalidArgument => GrpcCode::InvalidArgument,
        Code::NotFound => GrpcCode::NotFound,
        Code::PermissionDenied => GrpcCode::PermissionDenied,
        Code::FailedPrecondition => GrpcCode::FailedPrecondition,
        Code::ResourceExhausted => GrpcCode::ResourceExhausted,
        Code::Unavailable => GrpcCode::Unavailable,
        Code::DeadlineExceeded => GrpcCode::DeadlineExceeded,
        Code::Internal => GrpcCode::Internal,
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let metadata: HashMap<_, _> = failure
            .publish_outcome
            .map(|outcome| (PUBLISH_OUTCOME.to_owned(), outcome.to_owned()))
            .into_iter()
            .collect();
        let mut details =
            ErrorDetails::with_error_info(<&str>::from(failure.reason), DOMAIN, metadata);
        if let Some(after) = failure.retry_after {
            details.set_retry_info(Some(after));
        }
        if let Some((field, problem)) = failure.violation {
            details.add_bad_request_violation(field, problem);
        }
        for (subject, problem) in failure.unmet {
            let kind = <&str>::from(failure.reason);
            details.add_precondition_failure_violation(kind, subject, problem);
        }
        Self::with_error_details(code(failure.code), failure.message, details)
    }
}

/// How a call ends whose rest is not read. Whoever reads on finds the reason in it ([`Interrupted::find`]).
pub fn interrupted(why: Interrupted, publishes: bool) -> Status {
    let mut status = Status::from(Failure::interrupted(why, publishes));
    status.set_source(Arc::new(why));
    status
}

/// A failure inside a message: what the rpc would have answered.
pub fn embedded(failure: Failure) -> tonic_types::Status {
    let status = Status::from(failure);
    // tonic keeps the details as an encoded google.rpc.Status; it was encoded above, so it decodes.
    tonic_types::Status::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// INVALID_ARGUMENT for a request.
pub fn invalid_request(invalid: Invalid) -> Status {
    Failure::invalid_request(invalid).into()
}

/// INVALID_ARGUMENT for a field of a request.
pub fn invalid(field: &'static str, problem: impl Into<String>) -> Status {
    invalid_request(Invalid::field(field, problem.into()))
}
