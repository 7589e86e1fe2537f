//! Every setting there is: its name in the environment, its default, and what it means. From this table come the flags of
//! `courtier serve` and what `courtier config print` shows.

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable. As a flag, `APP_PORT` is `--app-port`; in the file, `app_port`.
    pub name: &'static str,
    /// Empty: not set.
    pub default: &'static str,
    /// Never shown, and may come from the file named in `NAME_FILE`.
    pub secret: bool,
    /// Not in the flags' help: hardly anybody needs it. `courtier config print` shows it.
    pub expert: bool,
    pub help: &'static str,
}

const fn setting(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        default,
        secret: false,
        expert: false,
        help,
    }
}

const fn secret(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        default,
        secret: true,
        expert: false,
        help,
    }
}

const fn expert(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        default,
        secret: false,
        expert: true,
        help,
    }
}

/// All settings, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    setting(
        "APP_NAME",
        "messages-broker",
        "Name of this service, in /api/health and logs",
    ),
    setting("APP_ENV", "local", "Name of the environment, for logs"),
    setting(
        "APP_HOST",
        "127.0.0.1",
        "IP address to listen on; other than loopback only with AUTH=none",
    ),
    setting(
        "APP_PORT",
        "8011",
        "Port to listen on: gRPC, gRPC-Web and HTTP; 0 picks a free one",
    ),
    setting(
        "AUTH",
        "",
        "\"none\": anybody who reaches the port may call. Unset: loopback only",
    ),
    secret(
        "RABBITMQ_URL",
        "",
        "amqp://user:password@host:port/vhost or amqps://…; takes precedence over the other RABBITMQ_ names",
    ),
    setting(
        "RABBITMQ_HOST",
        "",
        "RabbitMQ's host; unset, and no RABBITMQ_URL: the embedded broker",
    ),
    setting("RABBITMQ_PORT", "5672", "RabbitMQ's AMQP port"),
    setting("RABBITMQ_USER", "guest", "User; guest only on loopback"),
    secret("RABBITMQ_PASSWORD", "guest", "Password"),
    setting("RABBITMQ_VHOST", "/", "Virtual host"),
    setting(
        "RABBITMQ_CA_FILE",
        "",
        "Certificates (PEM) to trust for amqps and https besides the public ones",
    ),
    setting(
        "RABBITMQ_MANAGEMENT_PORT",
        "",
        "Port of RabbitMQ's management API, which knows lists, rates and alarms; default 15672, or 15671 (https) with amqps; 0: it is not used",
    ),
    secret(
        "RABBITMQ_MANAGEMENT_URL",
        "",
        "Its URL, where it is not on RABBITMQ_HOST, such as https://rabbitmq:15671; with management.path_prefix: https://rabbitmq:15671/prefix; with another user than AMQP's: https://user:password@…",
    ),
    setting(
        "TOPOLOGY_FILE",
        "",
        "Exchanges, queues and bindings to declare at start (TOML; see examples/topology.toml)",
    ),
    setting(
        "MESSAGE_TTL",
        "86400000",
        "How long messages wait in declared work queues",
    ),
    setting(
        "DLQ_TTL",
        "604800000",
        "How long messages wait in declared dead-letter queues",
    ),
    setting(
        "MESSAGE_MAX_RETRIES",
        "3",
        "Automatic retries of a failed message; a queue of the topology file may have its own",
    ),
    setting(
        "MESSAGE_RETRY_DELAYS",
        "60000,300000,1800000",
        "Delay before each retry, varied by a fifth; the last one repeats",
    ),
    setting(
        "MESSAGE_RETRY_DELAY",
        "",
        "Instead of MESSAGE_RETRY_DELAYS: the first delay; each further one is five times as long, at most 30m",
    ),
    setting(
        "MESSAGE_RETRY_RATE",
        "10",
        "Automatic retries a second to one queue, from each replica",
    ),
    setting(
        "MESSAGE_QUIET_PERIOD",
        "15m",
        "A retry that did not fail again for so long counts as done (for consumers that ack past the gateway)",
    ),
    expert(
        "MESSAGE_RETRY_LEASE",
        "60s",
        "How long a replica has a failed message to itself while it sends a retry; if it dies meanwhile, another one sends it after so long. At least 1s",
    ),
    setting(
        "DB_CONNECTION",
        "sqlite",
        "Where failed messages are kept: \"sqlite\" (a file in DATA_DIR), \"mysql\", \"mariadb\" or \"pgsql\"",
    ),
    secret(
        "DATABASE_URL",
        "",
        "sqlite:FILE, mysql://user:password@host:port/database or postgres://…; takes precedence over the DB_ names",
    ),
    setting("DB_HOST", "127.0.0.1", "Database server's host"),
    setting(
        "DB_PORT",
        "",
        "Its port; default 3306 (mysql, mariadb) or 5432 (pgsql)",
    ),
    setting(
        "DB_DATABASE",
        "messages_broker_db",
        "Database; with sqlite the file's name, where it ends in .db or .sqlite",
    ),
    setting("DB_USERNAME", "root", "Database user"),
    secret("DB_PASSWORD", "", "Password"),
    setting(
        "DB_MAX_CONNECTIONS",
        "10",
        "Connections to a database server",
    ),
    setting(
        "DB_MIGRATE",
        "auto",
        "\"auto\": bring the schema up to date at start; \"off\": `courtier migrate up` does",
    ),
    setting("DATA_DIR", "./data", "Folder of the SQLite file"),
    setting(
        "AUDIT_LOG",
        "on",
        "\"on\": what was published, and what became of it, is logged in the database (MessageLog); \"off\": it is not",
    ),
    setting(
        "AUDIT_RETENTION",
        "7d",
        "How long the message log keeps a message; at least 1m",
    ),
    setting(
        "AUDIT_MAX_BYTES",
        "1GiB",
        "About how much of the database the message log may take, indexes included; the oldest messages go first; at least 1MiB, 0: no limit",
    ),
    setting(
        "AUDIT_MAX_PAYLOAD",
        "16KiB",
        "Payloads up to this size are kept in the message log",
    ),
    setting(
        "PUBLISH_TIMEOUT",
        "30s",
        "How long a publish may take when its caller sets no deadline",
    ),
    setting(
        "PUBLISH_STREAM_WINDOW",
        "1024",
        "Unanswered publishes of one PublishStream",
    ),
    setting("MAX_PAYLOAD", "4MiB", "Size of one payload"),
    setting(
        "MAX_BATCH",
        "16MiB",
        "Size of one PublishBatch, all of its messages together",
    ),
    setting(
        "MAX_IN_FLIGHT",
        "256MiB",
        "Messages that wait for their outcome, over all callers; at most an eighth of MAX_MEMORY_BYTES",
    ),
    setting(
        "MAX_MEMORY_BYTES",
        "",
        "Memory that the process may take, such as 512MiB; requests being read, publishes and deliveries have shares of it. Unset: three quarters of the control group's limit, at most a quarter of the machine's memory",
    ),
    setting(
        "MAX_OUTSTANDING",
        "10000",
        "Unsettled deliveries that one subscription may ask for; at most 65535",
    ),
    setting(
        "MAX_DELIVERY_FAILURES",
        "5",
        "Consumers of one replica that may die, or let the ack deadline pass, with the same message in their hands before it goes to <queue>.dlq (a few more when it was among many); 0: any number",
    ),
    setting("MAX_SUBSCRIPTIONS", "10000", "Subscriptions at a time"),
    setting(
        "SHUTDOWN_GRACE",
        "20s",
        "How long settling goes on after SIGTERM, SIGINT or SIGHUP; a second SIGTERM or SIGINT cuts it short",
    ),
    setting(
        "CORS_ORIGINS",
        "",
        "Origins whose web pages may call, separated by commas; \"*\" for all",
    ),
    setting(
        "MAX_CONNECTIONS",
        "5000",
        "Connections of clients at a time; fewer where the limit of open files (ulimit -n, raised to the hard limit at start) leaves no room, less a reserve",
    ),
    setting(
        "MAX_CONNECTIONS_PER_ADDRESS",
        "",
        "Those of one IP address, loopback included; unset: half of all. A proxy in front is one address: set it to MAX_CONNECTIONS there",
    ),
    expert(
        "FIRST_REQUEST_TIMEOUT",
        "10s",
        "How long a new connection may take to begin its first request",
    ),
    expert(
        "REQUEST_IDLE_TIMEOUT",
        "30s",
        "How long the rest of a request that has begun may take to go on; a stream may rest between its messages",
    ),
    setting(
        "MAX_STREAMS_PER_CONNECTION",
        "256",
        "Calls at a time on one connection",
    ),
    setting(
        "MAX_CONNECTION_AGE",
        "0",
        "After so long a connection is asked to reconnect, so that load spreads; its streams go on; 0: never. A client that opens no other connection for its next calls (tonic's) fails until its streams end",
    ),
    setting(
        "KEEPALIVE_INTERVAL",
        "20s",
        "How often an idle connection is pinged",
    ),
    setting(
        "KEEPALIVE_TIMEOUT",
        "10s",
        "How long an answer to a ping may take",
    ),
    setting(
        "ALERT_QUEUE_DEPTH",
        "80",
        "Alert when a queue holds more than so many percent of its most messages",
    ),
    setting(
        "ALERT_CONSUMER_LAG",
        "5m",
        "Alert when a message that arrives would wait longer than this for its consumers",
    ),
    setting(
        "ALERT_FAILED_SPIKE",
        "20",
        "Alert when so many messages fail within a minute; 0: never",
    ),
    setting(
        "ALERT_OLDEST_FAILED",
        "24h",
        "Alert when a failed message is not resolved for so long",
    ),
    setting(
        "ALERT_HOLD",
        "10s",
        "How long something must be wrong before an alert is raised, and right before it is cleared",
    ),
    setting(
        "ALERT_IGNORE_QUEUES",
        "",
        "Queues without alerts, separated by commas; * at an end stands for anything, as in \"parked.*\"",
    ),
    secret(
        "ALERT_WEBHOOK_URL",
        "",
        "Gets each alert that is raised or cleared, as JSON by POST",
    ),
    expert(
        "ALERT_INTERVAL",
        "5s",
        "How often queues, links and the database are checked; at least 1s",
    ),
    setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "Collector to tell traces to (OTLP over gRPC), such as http://127.0.0.1:4317; unset: none",
    ),
    setting(
        "OTEL_SERVICE_NAME",
        "",
        "Name of this service in traces; unset: APP_NAME",
    ),
    setting("LOG_FORMAT", "text", "\"text\" or \"json\""),
    setting(
        "RUST_LOG",
        "info",
        "Log filter, such as courtier=debug (https://docs.rs/tracing-subscriber, EnvFilter)",
    ),
];
