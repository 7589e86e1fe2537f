//! What a gateway with these settings would find from this machine.

use std::time::{Duration, SystemTime};

use super::{Finding, How, finding, ok, there};
use crate::{
    broker::rabbitmq::{self, ManagementProbe, Probe, Trouble},
    cli::client::Server,
    config::Config,
    store::{self, OpenError},
    text::chain,
};

/// Clocks further apart than this confuse those who read times; nothing depends on it.
const APART: Duration = Duration::from_secs(5);

pub(super) async fn broker(config: &Config) -> Vec<Finding> {
    let Some(options) = &config.rabbitmq else {
        let told = "the embedded broker, which keeps nothing when the gateway ends: RABBITMQ_HOST or RABBITMQ_URL names a RabbitMQ";
        return vec![finding("broker", How::Warning, told)];
    };
    let probe = match rabbitmq::probe(options).await {
        Ok(probe) => probe,
        Err(bad) => return vec![finding("broker", How::Wrong, bad.to_string())],
    };
    let mut findings = vec![amqp(&probe), encryption(options, &probe)];
    match probe.management {
        ManagementProbe::Off => findings.push(finding(
            "management API",
            How::Warning,
            "switched off (RABBITMQ_MANAGEMENT_PORT=0): lists, rates and alarms are missing",
        )),
        ManagementProbe::Fails(problem) => findings.push(finding(
            "management API",
            How::Wrong,
            format!(
                "{problem}. Is the plugin on (rabbitmq-plugins enable rabbitmq_management), and is RABBITMQ_MANAGEMENT_PORT or RABBITMQ_MANAGEMENT_URL right? RABBITMQ_MANAGEMENT_PORT=0 does without"
            ),
        )),
        ManagementProbe::Answers { clock } => {
            findings.push(ok("management API", "it answers this user"));
            findings.extend(clock.map(|clock| compare("broker's clock", clock)));
        }
    }
    findings
}

fn amqp(probe: &Probe) -> Finding {
    let Probe {
        address,
        user,
        virtual_host,
        ..
    } = probe;
    let problem = match &probe.amqp {
        Ok(()) => {
            let told = format!("RabbitMQ at {address} takes this user's connection");
            return ok("broker", told);
        }
        Err(problem) => problem,
    };
    let told = match problem {
        Trouble::Unreachable(_) => format!(
            "{address} cannot be reached: {problem}. Does RabbitMQ run there? RABBITMQ_HOST and RABBITMQ_PORT, or RABBITMQ_URL, say where it is"
        ),
        Trouble::Credentials => format!(
            "RabbitMQ at {address} refuses user {user:?}: RABBITMQ_USER and RABBITMQ_PASSWORD, or those in RABBITMQ_URL, are not a user and password of it (rabbitmqctl authenticate_user {user} tries them, rabbitmqctl change_password sets them)"
        ),
        Trouble::VirtualHost(words) => format!(
            "RabbitMQ at {address} knows user {user:?}, but not in virtual host {virtual_host:?} ({words}): check RABBITMQ_VHOST, or the path of RABBITMQ_URL (rabbitmqctl list_vhosts, rabbitmqctl list_permissions -p {virtual_host})"
        ),
        Trouble::IsPlain | Trouble::IsEncrypted | Trouble::Tls(_) => {
            format!("no connection to {address}: see TLS")
        }
        Trouble::Other(words) => format!(
            "{address} is no RabbitMQ that can be used: {words}. RABBITMQ_HOST and RABBITMQ_PORT, or RABBITMQ_URL, say where it is"
        ),
    };
    finding("broker", How::Wrong, told)
}

fn encryption(options: &rabbitmq::Options, probe: &Probe) -> Finding {
    let address = &probe.address;
    let wrong = |told: String| finding("TLS", How::Wrong, told);
    match &probe.amqp {
        Err(Trouble::IsPlain) => {
            return wrong(format!(
                "RABBITMQ_URL says amqps, and {address} speaks AMQP without TLS: name the port for TLS (usually 5671), or say amqp"
            ));
        }
        Err(Trouble::IsEncrypted) => {
            return wrong(format!(
                "RABBITMQ_URL says amqp, or is not set, and {address} speaks TLS: say amqps://, or name the port without (usually 5672)"
            ));
        }
        Err(Trouble::Tls(error)) => {
            return wrong(format!(
                "the handshake with {address} fails: {error}. RABBITMQ_CA_FILE names the authority of its certificate, which must be for the host that RABBITMQ_URL names"
            ));
        }
        Err(Trouble::Unreachable(_)) if options.is_encrypted() => {
            let told = "not looked at: there is no connection";
            return finding("TLS", How::Warning, told);
        }
        _ => {}
    }
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

pub(super) async fn database(config: &Config) -> Vec<Finding> {
    let what = "database";
    let status = match store::schema_status(&config.database).await {
        Ok(status) => status,
        Err(OpenError::InUse(path)) => {
            let told = format!("{} is in use by a running gateway", path.display());
            return vec![ok(what, told)];
        }
        Err(error) => {
            let told = format!(
                "{}. Check DATABASE_URL, or DB_HOST, DB_PORT, DB_DATABASE, DB_USERNAME and DB_PASSWORD; for SQLite DATA_DIR",
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
    if let Ok(Some(clock)) = store::server_clock(&config.database).await {
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

/// The gateway with this configuration, if it runs.
pub(super) async fn gateway(server: &Server) -> Finding {
    match server.connect().await {
        Ok(channel) => there::gateway(channel).await,
        Err(exit) => finding("gateway", How::Warning, exit.message),
    }
}
