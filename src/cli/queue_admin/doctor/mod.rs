//! `courtier doctor`: looks at everything that a gateway needs, one after the other, and says what to do about what is wrong. With
//! these settings and from this machine ([`here`]), or at a gateway elsewhere, by what that one tells ([`there`]).

mod here;
mod there;

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::{
    cli::{
        Exit, block_on,
        client::{Output, Server},
        print, print_json, report,
        serve::Flags,
        show::visible,
    },
    config::Config,
};

/// Find out what is wrong: configuration, broker, management API, database, TLS, clocks, gateway
///
/// Reads the same settings as `serve`, asks each of the servers once, and changes nothing. With --server, or COURTIER_SERVER, at a
/// gateway elsewhere: then that gateway is asked how it sees its broker, database and queues, and the settings of this shell do not
/// count.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier doctor
  RABBITMQ_URL=amqp://user:password@rabbitmq/ courtier doctor
  courtier doctor --server http://gateway-2:8011

Exit codes:
  0  nothing is wrong; there may be warnings
  1  something is wrong: each line that says so says what to do
  2  the configuration is not usable")]
pub(in crate::cli) struct Doctor {
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    flags: Flags,
}

/// What was found out about one thing.
struct Finding {
    what: &'static str,
    how: How,
    told: String,
}

#[derive(Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
enum How {
    Ok,
    Warning,
    Wrong,
}

fn ok(what: &'static str, told: impl Into<String>) -> Finding {
    finding(what, How::Ok, told)
}

fn finding(what: &'static str, how: How, told: impl Into<String>) -> Finding {
    Finding {
        what,
        how,
        told: told.into(),
    }
}

pub(in crate::cli) fn run(doctor: &Doctor) -> ExitCode {
    match doctor.server.elsewhere() {
        Ok(Some(url)) => return block_on(elsewhere(&url, doctor)),
        Ok(None) => {}
        Err(exit) => return report(Err(exit)),
    }
    match Config::read(doctor.flags.reader()) {
        Ok(config) => block_on(examine(config, doctor)),
        Err(problems) => report(Err(Exit::new(Exit::USAGE, problems.to_string()))),
    }
}

async fn examine(config: Config, doctor: &Doctor) -> Result<(), Exit> {
    let mut findings = vec![ok("configuration", "every setting can be used")];
    let (broker, database) = tokio::join!(here::broker(&config), here::database(&config));
    findings.extend(broker);
    findings.extend(database);
    findings.push(here::gateway(&doctor.server).await);
    tell(&findings, doctor.output)
}

async fn elsewhere(url: &str, doctor: &Doctor) -> Result<(), Exit> {
    tell(&there::look(url, &doctor.server).await, doctor.output)
}

fn tell(findings: &[Finding], output: Output) -> Result<(), Exit> {
    let width = findings.iter().map(|one| one.what.len()).max();
    let width = width.unwrap_or_default();
    for Finding { what, how, told } in findings {
        match output {
            Output::Json => {
                print_json(json!({"what": what, "state": how.to_string(), "told": told}))?;
            }
            Output::Text => {
                let told = visible(told, |_| false);
                print(&format!("{:<8} {what:<width$}  {told}\n", how.to_string()))?;
            }
        }
    }
    match findings.iter().filter(|one| one.how == How::Wrong).count() {
        0 => Ok(()),
        wrong => Err(Exit::new(
            Exit::FAILED,
            format!("{wrong} of {} are wrong", findings.len()),
        )),
    }
}
