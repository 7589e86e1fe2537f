//! What the client commands share: reaching a gateway, and turning its answers into texts and exit codes.

use std::{error::Error, net::Ipv4Addr, time::Duration};

use clap::{Args, ValueEnum};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::{ErrorInfo, StatusExt};

use super::Exit;
use crate::grpc::{
    proto::Outcome,
    status::{DOMAIN, PUBLISH_OUTCOME},
};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the gateway is.
#[derive(Args)]
pub(super) struct Server {
    /// The gateway's address [default: http://127.0.0.1:$APP_PORT, and 8011 for the port]
    #[arg(long = "server", value_name = "URL", env = "COURTIER_SERVER")]
    url: Option<String>,
}

/// Where the gateway is, and how long it may take.
#[derive(Args)]
pub(super) struct Gateway {
    #[command(flatten)]
    server: Server,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    timeout: Duration,
}

impl Gateway {
    /// Connects.
    pub(super) async fn connect(&self) -> Result<Channel, Exit> {
        self.server.connect().await
    }

    /// A request that is answered in time.
    pub(super) fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}

impl Server {
    /// The URL in force.
    fn url(&self) -> Result<String, Exit> {
        match self.url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) if url.starts_with("https://") => Err(Exit::new(
                Exit::USAGE,
                format!("{url}: TLS is not supported yet; use http://"),
            )),
            Some(url) if url.contains("://") => Ok(url.to_owned()),
            Some(address) => Ok(format!("http://{address}")),
            None => Ok(format!("http://{}:{}", Ipv4Addr::LOCALHOST, own_port()?)),
        }
    }

    /// The URL, unless it is that of the gateway that these settings start on this machine.
    pub(super) fn elsewhere(&self) -> Result<Option<String>, Exit> {
        if self.url.as_deref().unwrap_or_default().is_empty() {
            return Ok(None);
        }
        let url = self.url()?;
        let Ok(port) = own_port() else {
            return Ok(Some(url));
        };
        let own = ["127.0.0.1", "localhost", "[::1]"];
        let mut own = own.map(|host| format!("http://{host}:{port}")).into_iter();
        let is_own = own.any(|own| url.trim_end_matches('/') == own);
        Ok((!is_own).then_some(url))
    }

    /// Connects.
    pub(super) async fn connect(&self) -> Result<Channel, Exit> {
        let url = self.url()?;
        let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| {
            let problem = format!("{url:?} is not a URL such as http://127.0.0.1:8011: {error}");
            Exit::new(Exit::USAGE, problem)
        })?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        endpoint.connect().await.map_err(|error| {
            let cause = root(&error);
            Exit::new(
                Exit::NOT_DONE,
                format!("cannot reach {url} ({cause}): is the gateway running? `courtier serve` starts one, --server names another"),
            )
        })
    }
}

/// The port of a gateway with the same environment: so the container's health check finds the container's gateway.
fn own_port() -> Result<u16, Exit> {
    let set = std::env::var("APP_PORT").unwrap_or_default();
    match set.trim() {
        "" => Ok(8011),
        text => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
            let problem = format!(
                "APP_PORT is {text:?}, which leads nowhere: name the gateway with --server"
            );
            Exit::new(Exit::USAGE, problem)
        }),
    }
}

/// The first cause of an error.
pub(super) fn root(error: &dyn Error) -> &dyn Error {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

/// A time on the command line: as in the configuration, plain numbers are milliseconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    match text.trim().parse() {
        Ok(ms) => Ok(Duration::from_millis(ms)),
        Err(_) => humantime::parse_duration(text.trim())
            .map_err(|_| "not a time such as 500ms, 30s or 5m".to_owned()),
    }
}

/// What a failed publish came to. Where the gateway's word is missing, it is in doubt: nobody can say that it was not stored.
pub(super) fn publish_outcome(status: &Status) -> Outcome {
    let told = info(status).and_then(|info| {
        let outcome = info.metadata.get(PUBLISH_OUTCOME)?;
        Outcome::from_str_name(&format!("OUTCOME_{outcome}"))
    });
    told.unwrap_or_else(|| {
        if exit_code(status) == Exit::REFUSED {
            Outcome::Invalid
        } else {
            Outcome::InDoubt
        }
    })
}

/// The exit code of a publish's outcome.
pub(super) fn outcome_exit_code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Confirmed => Exit::DONE,
        Outcome::Unroutable | Outcome::Invalid => Exit::REFUSED,
        Outcome::Rejected | Outcome::NotSent => Exit::NOT_DONE,
        Outcome::InDoubt | Outcome::Unspecified => Exit::IN_DOUBT,
    }
}

/// The exit code of a failed call that publishes nothing.
fn exit_code(status: &Status) -> u8 {
    // The connection broke; its code depends on where it did.
    if status.source().is_some() {
        return Exit::NOT_DONE;
    }
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => Exit::REFUSED,
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Aborted => {
            Exit::NOT_DONE
        }
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            Exit::FAILED
        }
    }
}

/// A failed call that publishes nothing.
pub(super) fn failed(status: &Status) -> Exit {
    Exit::new(exit_code(status), describe(status))
}

/// A failed call that changes something. Where nobody says that it was not done, it is in doubt.
pub(super) fn not_done(status: &Status) -> Exit {
    let doubtful = match info(status) {
        Some(info) => {
            ["CONFIRM_LOST", "CONFIRM_TIMEOUT", "DEADLINE_EXCEEDED"].contains(&info.reason.as_str())
                || matches!(
                    info.metadata.get(PUBLISH_OUTCOME).map(String::as_str),
                    // The broker has it, and nobody could write that down.
                    Some("CONFIRMED" | "IN_DOUBT")
                )
        }
        None => exit_code(status) != Exit::REFUSED,
    };
    let code = match doubtful {
        true => Exit::IN_DOUBT,
        false => exit_code(status),
    };
    Exit::new(code, describe(status))
}

/// Whether the gateway itself said it, and not the transport.
pub(super) fn is_the_gateways(status: &Status) -> bool {
    info(status).is_some()
}

/// The gateway's reason, if the gateway said it.
pub(super) fn reason(status: &Status) -> Option<String> {
    info(status).map(|info| info.reason)
}

/// `REASON: message`; the code stands in where the gateway gave no reason.
pub(super) fn describe(status: &Status) -> String {
    let reason = reason(status).unwrap_or_else(|| match status.code() {
        Code::Unimplemented => "UNIMPLEMENTED (is this a Courtier gateway?)".to_owned(),
        code => format!("{code:?}"),
    });
    let message = match status.source() {
        Some(error) if !is_the_gateways(status) => {
            format!("the connection failed: {}", root(error))
        }
        _ => status.message().to_owned(),
    };
    format!("{reason}: {message}")
}

fn info(status: &Status) -> Option<ErrorInfo> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then_some(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        broker::{Fate, InDoubt, NotSent},
        error::Failure,
        gateway::{publisher::Outcome as Published, validate::Invalid},
    };

    fn publish_exit(outcome: Published) -> u8 {
        let failure = Failure::of_publish(outcome).expect("not confirmed");
        outcome_exit_code(publish_outcome(&failure.into()))
    }

    #[test]
    fn each_outcome_has_the_exit_code_that_says_what_to_do() {
        for (outcome, code) in [
            (Fate::Unroutable.into(), 3),
            (Fate::Rejected.into(), 4),
            (Fate::NotSent(NotSent::BrokerDown).into(), 4),
            (Fate::NotSent(NotSent::BrokerBlocked).into(), 4),
            (Fate::NotSent(NotSent::Overloaded).into(), 4),
            (Fate::InDoubt(InDoubt::ConfirmLost).into(), 5),
            (Fate::InDoubt(InDoubt::ConfirmTimeout).into(), 5),
            (Invalid::ExchangeNotFound("x".to_owned()).into(), 3),
            (Invalid::field("message", "must be set").into(), 3),
        ] {
            assert_eq!(publish_exit(outcome), code);
        }
    }

    #[test]
    fn a_publish_that_nobody_answered_is_in_doubt() {
        for status in [
            Status::unavailable("connection reset"),
            Status::unknown("transport error"),
            Status::cancelled("timeout"),
            Failure::deadline().into(),
        ] {
            assert_eq!(publish_outcome(&status), Outcome::InDoubt, "{status:?}");
        }
    }

    #[test]
    fn other_calls_are_refused_or_worth_another_try() {
        assert_eq!(exit_code(&Status::not_found("queue")), 3);
        assert_eq!(exit_code(&Failure::stopping().into()), 4);
        assert_eq!(exit_code(&Status::internal("bug")), 1);
    }

    #[test]
    fn a_change_that_nobody_denies_is_in_doubt() {
        let lost = Failure::of_publish(Fate::InDoubt(InDoubt::ConfirmLost).into());
        for (status, code) in [
            (lost.expect("not confirmed").into(), 5),
            (Failure::deadline().into(), 5),
            (Status::cancelled("timeout"), 5),
            (Failure::stopping().into(), 4),
            (Status::unimplemented("another server"), 3),
        ] {
            assert_eq!(not_done(&status).code, code, "{status:?}");
        }
    }

    #[test]
    fn the_reason_goes_first() {
        let status = Status::from(Failure::stopping());
        assert!(describe(&status).starts_with("GATEWAY_STOPPING: "));
    }

    #[test]
    fn times_are_read_as_in_the_configuration() {
        assert_eq!(time("250"), Ok(Duration::from_millis(250)));
        assert_eq!(time("30s"), Ok(Duration::from_secs(30)));
        assert!(time("soon").is_err());
    }
}
