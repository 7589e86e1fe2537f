//! Configuration: what can be set ([`settings`]), where from ([`reader`]), and what it means (here).
//!
//! Everything is read and checked before any socket opens, and all that is wrong is reported at once.

pub mod reader;
pub mod settings;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use secrecy::SecretString;

use self::reader::{Problems, Reader};
use crate::{
    broker::{
        rabbitmq::{self, ManagementAt},
        topology::{self, Parsed, QueueDefaults, Topology},
    },
    budget,
    failed_message::schedule::{Policy, Schedule},
    gateway::{
        Limits, alerts,
        message_log::{self, Room},
    },
    origins::Origins,
    store::{self, Place},
    telemetry, traces, url,
};

/// How often due retries are looked for.
const RETRY_POLL: Duration = Duration::from_millis(500);
/// A shorter lease would end before a slow broker has confirmed the retry, again and again.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
/// The longest pause after a retry could not be sent.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// The shortest AUDIT_RETENTION: a smaller number was meant in another unit.
const SHORTEST_RETENTION: Duration = Duration::from_secs(60);
/// The smallest AUDIT_MAX_BYTES: with less, it would forget what it has just written.
const SMALLEST_LOG: usize = 1024 * 1024;
/// Events of the message log that may wait for the database.
const LOG_ROOM: Room = Room {
    events: 50_000,
    bytes: 64 * 1024 * 1024,
};
/// How long the message log gathers events for one transaction.
const LOG_PACE: Duration = Duration::from_millis(200);
/// About how often old entries of the message log are looked for.
const LOG_SWEEP: Duration = Duration::from_secs(60);

/// Looking costs the broker something.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// All of it.
#[derive(Debug)]
pub struct Config {
    pub app: App,
    /// `None`: the embedded broker.
    pub rabbitmq: Option<rabbitmq::Options>,
    pub topology: Option<TopologyFile>,
    pub limits: Limits,
    pub retries: Policy,
    pub database: store::Options,
    /// `None`: no message log is kept.
    pub message_log: Option<message_log::Options>,
    pub alerts: alerts::Options,
    pub http: Http,
    pub log: telemetry::Options,
    /// `None`: nobody is told of traces.
    pub traces: Option<traces::Options>,
}

/// What the process is called and where it listens.
#[derive(Debug)]
pub struct App {
    pub name: String,
    pub environment: String,
    pub address: SocketAddr,
}

/// What is declared at start.
#[derive(Debug)]
pub struct TopologyFile {
    pub path: PathBuf,
    pub topology: Topology,
    /// By queue, for queues that are not retried as all others.
    pub retries: BTreeMap<String, topology::Retries>,
    /// Other people's dead letters.
    pub dead_letter_sources: Vec<topology::DeadLetterSource>,
}

/// Limits of connections.
#[derive(Clone, Debug)]
pub struct Http {
    /// Origins whose pages may call; empty: none.
    pub cors_origins: Vec<String>,
    /// Connections at a time, where the descriptors allow so many.
    pub max_connections: usize,
    /// Those of one address; `None`: half of all.
    pub max_connections_per_address: Option<usize>,
    /// How long a new connection may take to begin its first request.
    pub first_request_timeout: Duration,
    /// How long a request that has begun may take to go on.
    pub request_idle_timeout: Duration,
    pub max_streams_per_connection: u32,
    /// `None`: connections may grow as old as they like.
    pub max_connection_age: Option<Duration>,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

impl Config {
    /// Reads and checks everything.
    pub fn read(reader: Reader) -> Result<Self, Problems> {
        let mut reader = reader;
        let app = App::read(&mut reader);
        let rabbitmq = rabbitmq(&mut reader);
        let defaults = QueueDefaults {
            message_ttl: reader.duration("MESSAGE_TTL"),
            dead_letter_ttl: reader.duration("DLQ_TTL"),
        };
        let topology = topology(&mut reader, &defaults);
        let mut config = Self {
            retries: retries(&mut reader, topology.as_ref()),
            database: database(&mut reader),
            message_log: message_log(&mut reader),
            alerts: alerts(&mut reader),
            topology,
            limits: limits(&mut reader, &defaults),
            http: http(&mut reader),
            log: telemetry::Options {
                json: reader.one_of("LOG_FORMAT", &["text", "json"]) == "json",
                filter: log_filter(&mut reader),
            },
            traces: traces(&mut reader, &app.name),
            app,
            rabbitmq,
        };
        // Of a small budget the message log's events are not to take most.
        let least = config.limits.max_memory_bytes / 8;
        if let Some(log) = &mut config.message_log {
            log.room.bytes = log.room.bytes.min(least);
        }
        reader.finish(config)
    }
}

impl App {
    fn read(reader: &mut Reader) -> Self {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let host = match reader.text("APP_HOST").as_str() {
            "localhost" => loopback,
            text => {
                let expected = "an IP address, such as 127.0.0.1 or 0.0.0.0";
                reader.parsed("APP_HOST", text, expected, loopback)
            }
        };
        let auth = reader.one_of("AUTH", &["", "none", "required"]);
        if auth == "required" {
            reader.problem(
                "AUTH",
                "this version holds no credentials, so nobody could call; only \"none\" works",
            );
        } else if auth.is_empty() && !host.is_loopback() {
            reader.problem(
                "APP_HOST",
                &format!("{host} is reachable from outside, and nothing asks callers who they are; say AUTH=none to allow that, or stay on 127.0.0.1"),
            );
        }
        Self {
            name: reader.text("APP_NAME"),
            environment: reader.text("APP_ENV"),
            address: SocketAddr::new(host, reader.number("APP_PORT")),
        }
    }
}

fn cors_origins(reader: &mut Reader) -> Vec<String> {
    let origins = reader.list("CORS_ORIGINS");
    if let Err(bad) = Origins::read(&origins) {
        reader.problem("CORS_ORIGINS", &bad.to_string());
    }
    origins
}

fn log_filter(reader: &mut Reader) -> String {
    let filter = reader.text("RUST_LOG");
    if let Err(error) = telemetry::filter(&filter) {
        reader.problem("RUST_LOG", &error.to_string());
    }
    filter
}

/// A port, as Kubernetes may inject it: tcp://10.0.0.1:5672.
fn port(reader: &mut Reader, name: &str, text: &str) -> u16 {
    let digits = text.rsplit(':').next().unwrap_or(text);
    let port = reader.parsed(name, digits, "a port", 0);
    if port == 0 && digits.trim() == "0" {
        reader.problem(name, "0 is not a port that leads anywhere");
    }
    port
}

/// RabbitMQ, when any of its variables is set.
fn rabbitmq(reader: &mut Reader) -> Option<rabbitmq::Options> {
    let ca_pem = reader.file("RABBITMQ_CA_FILE");
    let is_empty = |pem: &String| !rabbitmq::holds_certificates(pem);
    if ca_pem.as_ref().is_some_and(is_empty) {
        reader.problem("RABBITMQ_CA_FILE", "holds no certificates (PEM)");
        return None;
    }
    let (name, url) = match reader.optional("RABBITMQ_URL") {
        Some(url) => ("RABBITMQ_URL", url),
        None => ("RABBITMQ_HOST", rabbitmq_url(reader)?),
    };
    let options = rabbitmq::Options {
        url: SecretString::from(url),
        ca_pem,
        management: management(reader),
    };
    match options.check() {
        Ok(()) => Some(options),
        Err(problem) => {
            reader.problem(name, &problem.to_string());
            None
        }
    }
}

/// Where its management API is; port 0 switches it off.
fn management(reader: &mut Reader) -> ManagementAt {
    if let Some(url) = reader.optional("RABBITMQ_MANAGEMENT_URL") {
        return match url::of_server(&url, "http:// or https://") {
            Ok(url) => ManagementAt::Url(url),
            Err(bad) => {
                reader.problem("RABBITMQ_MANAGEMENT_URL", &bad.to_string());
                ManagementAt::Off
            }
        };
    }
    let Some(text) = reader.optional("RABBITMQ_MANAGEMENT_PORT") else {
        return ManagementAt::Port(None);
    };
    // Kubernetes: tcp://10.0.0.1:15672
    let digits = text.rsplit(':').next().unwrap_or(&text);
    match reader.parsed("RABBITMQ_MANAGEMENT_PORT", digits, "a port, or 0", 0) {
        0 => ManagementAt::Off,
        port => ManagementAt::Port(Some(port)),
    }
}

fn rabbitmq_url(reader: &mut Reader) -> Option<String> {
    let Some(host) = reader.optional("RABBITMQ_HOST") else {
        // RABBITMQ_PORT alone may come from Kubernetes, which sets it for a service named rabbitmq.
        let meant = ["RABBITMQ_USER", "RABBITMQ_PASSWORD", "RABBITMQ_VHOST"];
        if let Some(name) = meant.into_iter().find(|name| reader.is_set(name)) {
            let problem = "is not set, although another of its variables is; without it the embedded broker would run, which keeps nothing";
            reader.problem("RABBITMQ_HOST", &format!("{problem} ({name} is set)"));
        }
        return None;
    };
    let port = port(reader, "RABBITMQ_PORT", &reader.text("RABBITMQ_PORT"));
    if port == 0 {
        // Said already.
        return None;
    }
    let (user, password) = (
        reader.text("RABBITMQ_USER"),
        reader.text("RABBITMQ_PASSWORD"),
    );
    let vhost = reader.text("RABBITMQ_VHOST");
    let [user, password, vhost] = [user, password, vhost].map(|text| escape(&text));
    Some(format!("amqp://{user}:{password}@{host}:{port}/{vhost}"))
}

/// Percent-encodes a part of a URL.
fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn topology(reader: &mut Reader, defaults: &QueueDefaults) -> Option<TopologyFile> {
    let path = PathBuf::from(reader.optional("TOPOLOGY_FILE")?);
    let text = reader.file("TOPOLOGY_FILE")?;
    match Topology::parse(&text, defaults) {
        Ok(Parsed {
            topology,
            retries,
            dead_letter_sources,
        }) => Some(TopologyFile {
            path,
            topology,
            retries,
            dead_letter_sources,
        }),
        Err(error) => {
            reader.problem("TOPOLOGY_FILE", &error.to_string());
            None
        }
    }
}

fn http(reader: &mut Reader) -> Http {
    let max_connections = reader.number("MAX_CONNECTIONS");
    let by_address = reader.is_set("MAX_CONNECTIONS_PER_ADDRESS");
    let by_address = by_address.then(|| reader.number("MAX_CONNECTIONS_PER_ADDRESS"));
    if max_connections == 0 {
        reader.problem("MAX_CONNECTIONS", "must be at least 1");
    }
    if by_address == Some(0) {
        reader.problem("MAX_CONNECTIONS_PER_ADDRESS", "must be at least 1");
    }
    Http {
        cors_origins: cors_origins(reader),
        max_connections,
        max_connections_per_address: by_address,
        first_request_timeout: reader.duration("FIRST_REQUEST_TIMEOUT"),
        request_idle_timeout: reader.duration("REQUEST_IDLE_TIMEOUT"),
        max_streams_per_connection: reader.number("MAX_STREAMS_PER_CONNECTION"),
        max_connection_age: Some(reader.duration("MAX_CONNECTION_AGE"))
            .filter(|age| !age.is_zero()),
        keepalive_interval: reader.duration("KEEPALIVE_INTERVAL"),
        keepalive_timeout: reader.duration("KEEPALIVE_TIMEOUT"),
    }
}

fn limits(reader: &mut Reader, defaults: &QueueDefaults) -> Limits {
    Limits {
        max_payload_bytes: reader.bytes("MAX_PAYLOAD"),
        max_batch_bytes: reader.bytes("MAX_BATCH"),
        max_in_flight_bytes: reader.bytes("MAX_IN_FLIGHT"),
        max_memory_bytes: memory(reader),
        publish_timeout: reader.duration("PUBLISH_TIMEOUT"),
        publish_window: reader.number("PUBLISH_STREAM_WINDOW"),
        max_outstanding: reader.number("MAX_OUTSTANDING"),
        max_subscriptions: reader.number("MAX_SUBSCRIPTIONS"),
        shutdown_grace: reader.duration("SHUTDOWN_GRACE"),
        max_delivery_failures: reader.number("MAX_DELIVERY_FAILURES"),
        queues: *defaults,
    }
}

fn memory(reader: &mut Reader) -> usize {
    if !reader.is_set("MAX_MEMORY_BYTES") {
        return budget::default_budget().max(budget::SMALLEST);
    }
    let bytes = reader.bytes("MAX_MEMORY_BYTES");
    if bytes < budget::SMALLEST {
        reader.problem("MAX_MEMORY_BYTES", "must be at least 64MiB");
    }
    bytes
}

fn retries(reader: &mut Reader, topology: Option<&TopologyFile>) -> Policy {
    let max_retries = reader.number("MESSAGE_MAX_RETRIES");
    let delays = reader.durations("MESSAGE_RETRY_DELAYS");
    let lease = reader.duration("MESSAGE_RETRY_LEASE");
    if lease < SHORTEST_LEASE {
        reader.problem("MESSAGE_RETRY_LEASE", "must be at least 1s");
    }
    let single = reader.is_set("MESSAGE_RETRY_DELAY") && !reader.is_set("MESSAGE_RETRY_DELAYS");
    let default = if single {
        Schedule::growing(reader.duration("MESSAGE_RETRY_DELAY"), max_retries)
    } else {
        Schedule::new(delays, max_retries)
    };
    let own = topology.map(|file| &file.retries);
    let queues = own
        .into_iter()
        .flatten()
        .map(|(queue, own)| (queue.clone(), default.but(own.max, own.delays.clone())))
        .collect();
    let rate = reader.number("MESSAGE_RETRY_RATE");
    if rate == 0 {
        reader.problem(
            "MESSAGE_RETRY_RATE",
            "must be at least 1; MESSAGE_MAX_RETRIES=0 means no automatic retries",
        );
    }
    Policy {
        default,
        queues,
        rate,
        quiet_period: reader.duration("MESSAGE_QUIET_PERIOD"),
        poll: RETRY_POLL,
        lease,
        longest_pause: RETRY_PAUSE,
    }
}

fn message_log(reader: &mut Reader) -> Option<message_log::Options> {
    let retention = reader.duration("AUDIT_RETENTION");
    if retention < SHORTEST_RETENTION {
        reader.problem("AUDIT_RETENTION", "must be at least 1m");
    }
    let max_bytes = reader.bytes("AUDIT_MAX_BYTES");
    if max_bytes > 0 && max_bytes < SMALLEST_LOG {
        reader.problem("AUDIT_MAX_BYTES", "must be at least 1MiB, or 0");
    }
    let options = message_log::Options {
        retention,
        max_bytes: u64::try_from(max_bytes).ok().filter(|bytes| *bytes > 0),
        max_payload_bytes: reader.bytes("AUDIT_MAX_PAYLOAD"),
        room: LOG_ROOM,
        pace: LOG_PACE,
        sweep: LOG_SWEEP,
    };
    let on = reader.one_of("AUDIT_LOG", &["on", "off"]) == "on";
    on.then_some(options)
}

fn alerts(reader: &mut Reader) -> alerts::Options {
    let every = reader.duration("ALERT_INTERVAL");
    if every < SHORTEST_LOOK {
        reader.problem("ALERT_INTERVAL", "must be at least 1s");
    }
    let percent: u32 = reader.number("ALERT_QUEUE_DEPTH");
    if !(1..=100).contains(&percent) {
        reader.problem("ALERT_QUEUE_DEPTH", "must be a percentage from 1 to 100");
    }
    let webhook = reader.optional("ALERT_WEBHOOK_URL");
    let read = webhook
        .as_deref()
        .map(|text| url::of_place(text, "http:// or https://"));
    if let Some(Err(bad)) = read {
        reader.problem("ALERT_WEBHOOK_URL", &bad.to_string());
    }
    alerts::Options {
        every: every.max(SHORTEST_LOOK),
        hold: reader.duration("ALERT_HOLD"),
        queue_depth: f64::from(percent) / 100.0,
        consumer_lag: reader.duration("ALERT_CONSUMER_LAG"),
        failed_spike: reader.number("ALERT_FAILED_SPIKE"),
        oldest_failed: reader.duration("ALERT_OLDEST_FAILED"),
        ignored_queues: reader.list("ALERT_IGNORE_QUEUES"),
        webhook: webhook.map(SecretString::from),
    }
}

fn traces(reader: &mut Reader, app: &str) -> Option<traces::Options> {
    let endpoint = reader.optional("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let service = reader.optional("OTEL_SERVICE_NAME");
    let options = traces::Options::new(&endpoint, service.as_deref().unwrap_or(app));
    options
        .map_err(|bad| reader.problem("OTEL_EXPORTER_OTLP_ENDPOINT", &bad.to_string()))
        .ok()
}

fn database(reader: &mut Reader) -> store::Options {
    store::Options {
        place: database_place(reader),
        max_connections: reader.number("DB_MAX_CONNECTIONS"),
        migrate: reader.one_of("DB_MIGRATE", &["auto", "off"]) == "auto",
    }
}

fn database_place(reader: &mut Reader) -> Place {
    if let Some(url) = reader.optional("DATABASE_URL") {
        return Place::parse(&url).unwrap_or_else(|problem| {
            reader.problem("DATABASE_URL", &problem.to_string());
            Place::File(PathBuf::new())
        });
    }
    let kinds = [
        "sqlite",
        "mysql",
        "mariadb",
        "pgsql",
        "postgres",
        "postgresql",
    ];
    let kind = reader.one_of("DB_CONNECTION", &kinds);
    let database = reader.text("DB_DATABASE");
    let (scheme, port) = match kind.as_str() {
        "mysql" | "mariadb" => ("mysql", "3306"),
        "pgsql" | "postgres" | "postgresql" => ("postgres", "5432"),
        _ => {
            // A server's variables without the word that there is one: their author means the server.
            if let Some(name) = ["DB_HOST", "DB_USERNAME", "DB_PASSWORD"]
                .into_iter()
                .find(|name| reader.is_set(name))
            {
                let problem = format!(
                    "{name} is set, which SQLite does not use; say mysql, mariadb or pgsql"
                );
                reader.problem("DB_CONNECTION", &problem);
            }
            let folder = PathBuf::from(reader.text("DATA_DIR"));
            let is_file = [".db", ".sqlite"].iter().any(|end| database.ends_with(end));
            let file = if is_file {
                database.as_str()
            } else {
                "courtier.db"
            };
            return Place::File(folder.join(file));
        }
    };
    let set = reader.optional("DB_PORT");
    let port = self::port(reader, "DB_PORT", &set.unwrap_or_else(|| port.to_owned()));
    if port == 0 {
        // Said already.
        return Place::File(PathBuf::new());
    }
    let host = reader.text("DB_HOST");
    let names = ["DB_USERNAME", "DB_PASSWORD"].map(|name| escape(&reader.text(name)));
    let [user, password] = names;
    let database = escape(&database);
    let url = format!("{scheme}://{user}:{password}@{host}:{port}/{database}");
    Place::parse(&url).unwrap_or_else(|problem| {
        reader.problem("DB_HOST", &problem.to_string());
        Place::File(PathBuf::new())
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(Reader::fixed(set)).map_err(|problems| problems.to_string())
    }

    #[test]
    fn nothing_set_means_the_embedded_broker_on_loopback() {
        let config = read(&[]).expect("defaults are valid");
        assert!(config.rabbitmq.is_none());
        assert_eq!(config.app.address.to_string(), "127.0.0.1:8011");
        assert_eq!(config.app.name, "messages-broker");
    }

    /// Clients of tonic's do not survive being asked while a stream of theirs is open.
    #[test]
    fn no_connection_is_asked_to_reconnect_unless_that_is_set() {
        let age = |set: &[(&str, &str)]| read(set).expect("valid").http.max_connection_age;
        assert_eq!(age(&[]), None);
        let five_minutes = Duration::from_secs(300);
        assert_eq!(age(&[("MAX_CONNECTION_AGE", "5m")]), Some(five_minutes));
        assert_eq!(age(&[("MAX_CONNECTION_AGE", "0")]), None);
    }

    #[test]
    fn the_specifications_variables_work_as_they_are() {
        let config = read(&[
            ("APP_PORT", "9000"),
            ("RABBITMQ_HOST", "127.0.0.1"),
            ("RABBITMQ_PORT", "5672"),
            ("RABBITMQ_USER", "a@b"),
            ("RABBITMQ_PASSWORD", "p/w:?"),
            ("RABBITMQ_VHOST", "/"),
            ("MESSAGE_TTL", "86400000"),
            ("DLQ_TTL", "7d"),
        ])
        .expect("valid");
        assert!(config.rabbitmq.is_some());
        assert_eq!(
            config.limits.queues.dead_letter_ttl,
            Duration::from_secs(7 * 86_400)
        );
    }

    #[test]
    fn the_retry_schedule_is_a_list_or_grows_from_one_delay() {
        let schedule = |set: &[(&str, &str)]| read(set).expect("valid").retries.default;
        let minutes = |list: &[u64]| {
            let delays = list.iter().map(|n| Duration::from_secs(60 * n));
            Schedule::new(delays.collect(), 3)
        };
        assert_eq!(schedule(&[]), minutes(&[1, 5, 30]));
        let list = ("MESSAGE_RETRY_DELAYS", "2m, 180000");
        assert_eq!(schedule(&[list]), minutes(&[2, 3]));
        let single = ("MESSAGE_RETRY_DELAY", "60000");
        let growing = Schedule::growing(Duration::from_secs(60), 3);
        assert_eq!(schedule(&[single]), growing);
        assert_eq!(schedule(&[single, list]), minutes(&[2, 3]));
    }

    #[test]
    fn the_database_is_sqlite_unless_named_otherwise() {
        let place = |set: &[(&str, &str)]| match read(set).map(|config| config.database.place) {
            Ok(Place::File(path)) => path.display().to_string(),
            Ok(Place::Server(url)) => url.expose_secret().to_owned(),
            Err(problem) => problem,
        };
        assert_eq!(place(&[]), "./data/courtier.db");
        assert_eq!(
            place(&[("DATA_DIR", "/x"), ("DB_DATABASE", "own.sqlite")]),
            "/x/own.sqlite"
        );
        let server = [
            ("DB_CONNECTION", "mysql"),
            ("DB_HOST", "db"),
            ("DB_PORT", "tcp://10.0.0.1:3307"),
            ("DB_USERNAME", "shop"),
            ("DB_PASSWORD", "p/w"),
        ];
        assert_eq!(
            place(&server),
            "mysql://shop:p%2Fw@db:3307/messages%5Fbroker%5Fdb"
        );
        assert!(place(&server[1..]).contains("DB_CONNECTION"));
        assert_eq!(
            place(&[("DATABASE_URL", "pgsql://u@h/d")]),
            "postgres://u@h/d"
        );
        for bad in ["redis://h", "sqlite::memory:", "mysql:x", "x"] {
            assert!(
                place(&[("DATABASE_URL", bad)]).contains("DATABASE_URL"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_port_that_kubernetes_injected_is_understood() {
        let set = [
            ("RABBITMQ_HOST", "localhost"),
            ("RABBITMQ_PORT", "tcp://10.0.0.7:5671"),
        ];
        read(&set).expect("valid");
        assert!(read(&set[1..]).expect("valid").rabbitmq.is_none());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let problems = read(&[
            ("APP_PORT", "http"),
            ("MESSAGE_TTL", "soon"),
            ("LOG_FORMAT", "xml"),
            ("APP_HOST", "0.0.0.0"),
            ("RABBITMQ_USER", "u"),
        ])
        .expect_err("wrong");
        for name in [
            "APP_PORT",
            "MESSAGE_TTL",
            "LOG_FORMAT",
            "APP_HOST",
            "RABBITMQ_HOST",
        ] {
            assert!(problems.contains(name), "{name} in {problems}");
        }
    }

    #[test]
    fn the_message_log_is_on_unless_it_is_off() {
        let log = read(&[]).expect("valid").message_log.expect("on");
        assert_eq!(log.retention, Duration::from_secs(7 * 86_400));
        assert_eq!(log.max_payload_bytes, 16 * 1024);
        let off = read(&[("AUDIT_LOG", "off")]).expect("valid");
        assert!(off.message_log.is_none());
        assert!(read(&[("AUDIT_RETENTION", "7")]).is_err());
        assert!(read(&[("AUDIT_LOG", "maybe")]).is_err());
    }

    #[test]
    fn the_memory_is_a_part_of_the_machines_unless_it_is_set() {
        let memory = |set: &[(&str, &str)]| read(set).map(|config| config.limits.max_memory_bytes);
        assert!(memory(&[]).expect("valid") >= budget::SMALLEST);
        let set = [("MAX_MEMORY_BYTES", "512MiB")];
        assert_eq!(memory(&set), Ok(512 * 1024 * 1024));
        assert!(memory(&[("MAX_MEMORY_BYTES", "63MiB")]).is_err());
        let log = read(&[("MAX_MEMORY_BYTES", "64MiB")]).expect("valid");
        let room = log.message_log.expect("on").room;
        assert_eq!(room.bytes, 8 * 1024 * 1024);
    }

    #[test]
    fn connections_must_be_allowed() {
        assert_eq!(read(&[]).expect("valid").http.max_connections, 5_000);
        assert!(read(&[("MAX_CONNECTIONS", "0")]).is_err());
        assert!(read(&[("MAX_CONNECTIONS_PER_ADDRESS", "0")]).is_err());
        let set = [("MAX_CONNECTIONS_PER_ADDRESS", "7")];
        let most = read(&set).expect("valid").http.max_connections_per_address;
        assert_eq!(most, Some(7));
    }

    #[test]
    fn an_open_port_must_be_asked_for() {
        assert!(read(&[("APP_HOST", "0.0.0.0")]).is_err());
        assert!(read(&[("APP_HOST", "0.0.0.0"), ("AUTH", "none")]).is_ok());
    }

    #[test]
    fn a_lease_leaves_time_to_send() {
        let lease = |text| read(&[("MESSAGE_RETRY_LEASE", text)]);
        assert!(lease("999ms").is_err());
        let config = lease("1s").expect("valid");
        assert_eq!(config.retries.lease, Duration::from_secs(1));
    }

    #[test]
    fn what_serve_refuses_the_configuration_does() {
        for (name, bad) in [
            ("CORS_ORIGINS", "127.0.0.1:8080"),
            ("CORS_ORIGINS", "https://app.example.org/path"),
            ("RUST_LOG", "courtier=loud"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel:4317"),
            ("ALERT_WEBHOOK_URL", "https://"),
            ("RABBITMQ_MANAGEMENT_URL", "rabbitmq:15672"),
            ("RABBITMQ_URL", "amqp://h:99999/"),
            ("RABBITMQ_URL", "amqp://h/?heartbeat=often"),
            ("RABBITMQ_URL", "amqp://h/%2e%2E?heartbeat=5"),
            ("DATABASE_URL", "mysql://h:99999/db"),
            ("DATABASE_URL", "postgres://h/db?sslmode=perhaps"),
        ] {
            // The management API is that of a broker.
            let host = ("RABBITMQ_HOST", "127.0.0.1");
            let problem = read(&[host, (name, bad)]).map(drop).expect_err(bad);
            assert!(problem.contains(name), "{problem}");
        }
        for port in ["0", "70000", "none"] {
            let host = ("RABBITMQ_HOST", "127.0.0.1");
            let problem = read(&[host, ("RABBITMQ_PORT", port)]).expect_err(port);
            assert!(problem.contains("RABBITMQ_PORT"), "{problem}");
            let kind = ("DB_CONNECTION", "mysql");
            let problem = read(&[kind, ("DB_PORT", port)]).expect_err(port);
            assert!(problem.contains("DB_PORT"), "{problem}");
        }
    }

    #[test]
    fn no_password_is_in_what_is_wrong_nor_in_what_is_printed() {
        let hostile = [
            "amqp://u:secret/w@h/",
            "mysql://u:secret#w@h/db",
            "postgres://u:1/secret@h/db",
            "http://u:secret@h:port/",
            "http://u:secret/w@h",
            "u:secret@h",
            "secret",
            "amqp:u:secret@h",
        ];
        for setting in settings::SETTINGS {
            for text in hostile {
                if !setting.secret && text == "secret" {
                    continue;
                }
                let set = [(setting.name, text)];
                if setting.secret || text.contains("://") || setting.name.ends_with("_ENDPOINT") {
                    let problem = read(&set).map_or_else(|problem| problem, |_| String::new());
                    assert!(!problem.contains("secret"), "{}: {problem}", setting.name);
                    let printed = Reader::fixed(&set).print();
                    let value = |entry: &(_, String, _)| entry.1.contains("secret");
                    assert!(!printed.iter().any(value), "{} of {text}", setting.name);
                }
            }
        }
    }

    #[test]
    fn a_secret_in_the_place_of_its_files_name_is_not_told() {
        let problem = read(&[("DB_PASSWORD_FILE", "secret")]).expect_err("no such file");
        assert!(problem.contains("DB_PASSWORD_FILE"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_by_its_line_alone() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = "app_port = 1\nrabbitmq_password = secret\n";
        std::fs::write(file.path(), text).expect("writable");
        let path = file.path().to_str().expect("a plain path");
        let problem = read(&[("COURTIER_CONFIG", path)]).expect_err("not TOML");
        assert!(problem.contains("line 2"), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }

    #[test]
    fn guest_is_for_loopback_only() {
        assert!(read(&[("RABBITMQ_HOST", "rabbitmq")]).is_err());
        assert!(read(&[("RABBITMQ_HOST", "localhost")]).is_ok());
        assert!(read(&[("RABBITMQ_URL", "amqp://guest:guest@10.0.0.1/")]).is_err());
    }
}
