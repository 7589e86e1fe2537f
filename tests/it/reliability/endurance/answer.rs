//! Whether an answer is the one that it must be.

use std::fmt::Debug;

use courtier::grpc::proto::{Outcome, PublishResponse};
use tonic::{Code, Response, Status};

use crate::books::{outcome_of, reason_of};

/// What is wrong, in words.
pub type Verdict = Result<(), String>;

pub fn ok<T>(answer: Result<Response<T>, Status>) -> Result<T, String> {
    answer
        .map(Response::into_inner)
        .map_err(|status| described(&status))
}

pub fn refused<T: Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Verdict {
    match answer {
        Err(status) if status.code() == code && reason_of(&status) == reason => Ok(()),
        Err(status) => Err(format!("{}, not {reason}", described(&status))),
        Ok(response) => Err(format!("{response:?}, not {reason}")),
    }
}

pub fn confirmed(answer: Result<Response<PublishResponse>, Status>) -> Verdict {
    ok(answer).map(drop)
}

/// Refused for good: as it is, it can never be published.
pub fn invalid(
    answer: Result<Response<PublishResponse>, Status>,
    code: Code,
    reason: &str,
) -> Verdict {
    let outcome = outcome_of(&answer);
    refused(answer, code, reason)?;
    if outcome != Some(Outcome::Invalid) {
        return Err(format!("{reason}, but {outcome:?}"));
    }
    Ok(())
}

pub fn described(status: &Status) -> String {
    format!(
        "{:?} {}: {}",
        status.code(),
        reason_of(status),
        status.message()
    )
}
