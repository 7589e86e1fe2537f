//! `courtier doctor`: looks at everything that a gateway needs, one after the other, and says what to do about what is wrong.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::json;

use super::word;
use crate::{
    broker::rabbitmq::{self, Probe},
    cli::{
        Exit, block_on,
        client::{Output, Server},
        print, print_json, report,
        serve::Flags,
        show::visible,
    },
    config::Config,
    store::{self, OpenError},
    text::chain,
};

/// Clocks further apart than this confuse those who read times; nothing depends on it.
const APART: Duration = Duration::from_secs(5);

/// Find out what is wrong: configuration, broker, management API, database, TLS, clocks, gateway
///
/// Reads the same settings as `serve`, asks each of the servers once, and changes nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  courtier doctor
  RABBITMQ_URL=amqp://user:password@rabbitmq/ courtier doctor

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
    match Config::read(doctor.flags.reader()) {
        Ok(config) => block_on(examine(config, doctor)),
        Err(problems) => report(Err(Exit::new(Exit::USAGE, problems.to_string()))),
    }
}

async fn examine(config: Config, doctor: &Doctor) -> Result<(), Exit> {
    let mut findings = vec![ok("configuration", "every setting can be used")];
    let (broker, database) = tokio::join!(broker(&config), database(&config));
    findings.extend(broker);
    findings.extend(database);
    findings.push(gateway(doctor).await);
    let width = findings.iter().map(|one| one.what.len()).max();
    let width = width.unwrap_or_default();
    for Finding { what, how, told } in &findings {
        match doctor.output {
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

async fn broker(config: &Config) -> Vec<Finding> {
    let Some(options) = &config.rabbitmq else {
        let told = "the embedded broker, which keeps nothing when the gateway ends: RABBITMQ_HOST or RABBITMQ_URL names a RabbitMQ";
        return vec![finding("broker", How::Warning, told)];
    };
    let Probe { amqp, management } = match rabbitmq::probe(options).await {
        Ok(probe) => probe,
        Err(bad) => return vec![finding("broker", How::Wrong, bad.to_string())],
    };
    let mut findings = vec![match amqp {
        Ok(()) => ok("broker", "RabbitMQ takes this user's connection"),
        Err(problem) => finding(
            "broker",
            How::Wrong,
            format!(
                "{problem}. Does RabbitMQ run at RABBITMQ_HOST:RABBITMQ_PORT, and may RABBITMQ_USER use RABBITMQ_VHOST (rabbitmqctl list_permissions -p VHOST)?"
            ),
        ),
    }];
    findings.push(encryption(options));
    match management {
        None => findings.push(finding(
            "management API",
            How::Warning,
            "switched off (RABBITMQ_MANAGEMENT_PORT=0): lists, rates and alarms are missing",
        )),
        Some(Err(problem)) => findings.push(finding(
            "management API",
            How::Wrong,
            format!(
                "{problem}. Is the plugin on (rabbitmq-plugins enable rabbitmq_management), and is RABBITMQ_MANAGEMENT_PORT or RABBITMQ_MANAGEMENT_URL right? RABBITMQ_MANAGEMENT_PORT=0 does without"
            ),
        )),
        Some(Ok(clock)) => {
            findings.push(ok("management API", "it answers this user"));
            findings.extend(clock.map(|clock| compare("broker's clock", clock)));
        }
    }
    findings
}

fn encryption(options: &rabbitmq::Options) -> Finding {
    match (options.is_encrypted(), options.is_local()) {
        (true, _) => ok("TLS", "the link to the broker is encrypted (amqps)"),
        (false, true) => ok("TLS", "not needed: the broker is on this machine"),
        (false, false) => finding(
            "TLS",
            How::Warning,
            "passwords and messages travel unencrypted to another machine: RABBITMQ_URL=amqps://…, and RABBITMQ_CA_FILE for an own authority",
        ),
    }
}

async fn database(config: &Config) -> Vec<Finding> {
    let what = "database";
    let status = match store::schema_status(&config.database).await {
        Ok(status) => status,
        Err(OpenError::InUse(path)) => {
            let told = format!("{} is in use by a running gateway", path.display());
            return vec![ok(what, told)];
        }
        Err(error) => {
            let told = format!(
                "{}. Check DATABASE_URL or DB_HOST, DB_PORT, DB_DATABASE, DB_USERNAME and DB_PASSWORD; for SQLite DATA_DIR",
                chain(&error)
            );
            return vec![finding(what, How::Wrong, told)];
        }
    };
    let (how, told) = match (status.pending.len(), status.unknown.len()) {
        (0, 0) => (
            How::Ok,
            "it is there, and its schema is up to date".to_owned(),
        ),
        (_, 1..) => (
            How::Wrong,
            "its schema is of a newer version of courtier: use that version".to_owned(),
        ),
        (missing, 0) if config.database.migrate => (
            How::Ok,
            format!("it is there; {missing} steps of its schema are made when a gateway starts"),
        ),
        (missing, 0) => (
            How::Wrong,
            format!(
                "{missing} steps of its schema are missing, and DB_MIGRATE is off: courtier migrate up"
            ),
        ),
    };
    let mut findings = vec![finding(what, how, told)];
    if let Ok(Some(clock)) = store::clock(&config.database).await {
        findings.push(compare("database's clock", clock.into()));
    }
    findings
}

fn compare(what: &'static str, clock: SystemTime) -> Finding {
    let now = SystemTime::now();
    let apart = now
        .duration_since(clock)
        .or_else(|_| clock.duration_since(now))
        .unwrap_or_default();
    let seconds = apart.as_secs();
    if apart <= APART {
        ok(what, "agrees with this machine's")
    } else {
        let told = format!("is {seconds} s away from this machine's: set both by NTP");
        finding(what, How::Warning, told)
    }
}

async fn gateway(doctor: &Doctor) -> Finding {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let what = "gateway";
    let channel = match doctor.server.connect().await {
        Ok(channel) => channel,
        Err(exit) => return finding(what, How::Warning, exit.message),
    };
    match HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
    {
        Ok(answer) => {
            let status = answer.into_inner().status();
            let told = word(status.as_str_name(), "");
            match told.as_str() {
                "serving" => ok(what, told),
                _ => finding(
                    what,
                    How::Wrong,
                    format!("{told}: courtier status says more"),
                ),
            }
        }
        Err(status) => finding(what, How::Wrong, status.message().to_owned()),
    }
}
