//! `courtier health`.

use std::time::Duration;

use clap::Args;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Exit,
    client::{self, Server, time},
    say,
};

/// Ask a gateway whether it can serve
///
/// Prints SERVING and exits with 0 when it can: that is, when it reaches its broker. The container image uses it as its health
/// check.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier health
  courtier health --service courtier.v1.Publisher

Exit codes:
  0  serving
  1  failed
  2  wrong usage
  3  no such service
  4  not serving, or not reached")]
pub(super) struct Health {
    /// One service, such as courtier.v1.Publisher or courtier.v1.Subscriber, instead of the whole
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    service: String,
    /// How long the answer may take
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = time)]
    timeout: Duration,
    #[command(flatten)]
    server: Server,
}

pub(super) async fn run(health: Health) -> Result<(), Exit> {
    let asking = ask(&health);
    let status = tokio::time::timeout(health.timeout, asking)
        .await
        .unwrap_or_else(|_| Err(Exit::new(Exit::NOT_DONE, "no answer in time")))?;
    let name = status.as_str_name();
    say(name);
    match status {
        ServingStatus::Serving => Ok(()),
        _ => Err(Exit::new(
            Exit::NOT_DONE,
            format!(
                "{name}: the gateway runs, but its broker is down or takes nothing, or it is stopping; /readyz says more"
            ),
        )),
    }
}

async fn ask(health: &Health) -> Result<ServingStatus, Exit> {
    let mut client = HealthClient::new(health.server.connect().await?);
    let service = health.service.clone();
    let answer = client
        .check(Request::new(HealthCheckRequest { service }))
        .await
        .map_err(|status| match status.code() {
            Code::NotFound => Exit::new(
                Exit::REFUSED,
                format!("the gateway has no service {:?}", health.service),
            ),
            _ => client::failed(&status),
        })?;
    Ok(answer.into_inner().status())
}
