//! Every figure there is: its name, its help, its type, its labels, its buckets. `docs/metrics.md` has the same list, and a
//! test holds the two together.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::table::{Maybe, Table};

/// What all names start with.
const PREFIX: &str = "courtier";

/// Seconds, from what an idle broker needs to what callers wait at the most.
const LATENCY: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

fn latency() -> Histogram {
    Histogram::new(LATENCY)
}

/// Declares figures: the field's name is the metric's, its comment is the help.
macro_rules! figures {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty $(= $make:expr)?,)+) => {
        #[derive(Debug)]
        pub(super) struct Figures {
            $($(#[doc = $help])+ pub(super) $name: $kind,)+
        }

        impl Figures {
            /// All of them, made known to `registry`.
            fn registered(registry: &mut Registry) -> Self {
                $(
                    let $name: $kind = figures!(@make $($make)?);
                    let help = concat!($($help),+).trim();
                    registry.register(stringify!($name), help, $name.clone());
                )+
                Self { $($name),+ }
            }
        }
    };
    (@make) => { Default::default() };
    (@make $make:expr) => { $make };
}

figures! {
    /// Publishes of clients by what became of them; exchange is empty for the default exchange, and where the publish was refused before its exchange was found
    publishes: Family<PublishLabels, Counter>,
    /// From when the gateway has a publish until its outcome is known
    publish_seconds: Histogram = latency(),
    /// Publishes handed to the broker whose outcome is not known yet
    publishes_in_flight: Gauge,
    /// Payload bytes of those publishes
    publishes_in_flight_bytes: Gauge,
    /// Publishes that wait for their turn on a publish lane (RabbitMQ)
    lane_backlog_messages: Family<LaneLabels, Gauge>,
    /// Publishes of a lane that RabbitMQ has not confirmed yet
    lane_unconfirmed_messages: Family<LaneLabels, Gauge>,

    /// 1 for the state that the link is in: up, blocked (the broker takes no messages), down, or failing (it stands and does not do its work)
    broker_link_state: Family<LinkLabels, Gauge>,
    /// Connections to the broker that were made anew after one was lost
    broker_reconnects: Family<RoleLabels, Counter>,

    /// Subscriptions under way
    subscriptions: Gauge,
    /// Deliveries that subscribers may have unsettled in all
    subscription_credit_messages: Gauge,
    /// Deliveries that subscribers have and have not settled
    deliveries_outstanding: Gauge,
    /// Deliveries to subscribers
    deliveries: Family<DeliveryLabels, Counter>,
    /// Deliveries that were settled: by the subscriber, by auto_ack, or because their deadline came (expired)
    settles: Family<SettleLabels, Counter>,

    /// Messages from a queue whose properties or headers could not be read as they are: bytes that are no UTF-8, or tables nested too deep, were replaced
    messages_repaired: Family<QueueLabels, Counter>,

    /// Dead letters that became failed messages, by the queue they died in
    dead_letters_collected: Family<DeathLabels, Counter>,
    /// Attempts to send a failed message back to its queue, by what the broker said
    retries: Family<RetryLabels, Counter>,
    /// Failed messages in the database; none while it is away
    failed_messages: Table<FailedLabels>,
    /// Since when the oldest failed message that is not resolved waits; 0 when there is none
    failed_message_oldest_seconds: Maybe,
    /// Events that are missing in the message log, because the database did not keep up or refused them
    message_log_dropped_events: Counter,

    /// Memory that is held of requests being read, publishes in flight and deliveries
    memory_held_bytes: Table<ShareLabels>,
    /// Memory that may be held of each
    memory_share_bytes: Table<ShareLabels>,
    /// Connections of clients
    connections: Gauge,
    /// Connections of clients that were refused: limit (of all), address_limit, or descriptors (none was left)
    connections_refused: Family<ReasonLabels, Counter>,

    /// Calls by how they ended
    grpc_requests: Family<CallLabels, Counter>,
    /// From a call's headers until its end; of a stream its whole life
    grpc_request_seconds: Family<MethodLabels, Histogram, fn() -> Histogram> = Family::new_with_constructor(latency),

    /// 1 while the database is reached and takes changes
    database_up: Gauge,
    /// Connections to the database: idle, or in_use
    database_connections: Table<StateLabels>,

    /// Messages that are ready in a queue
    queue_messages_ready: Table<QueueLabels>,
    /// Messages of a queue that consumers have
    queue_messages_unacked: Table<QueueLabels>,
    /// Consumers of a queue
    queue_consumers: Table<QueueLabels>,
    /// How full a queue is, where it has a limit: 1 is full
    queue_capacity_ratio: Table<QueueLabels>,
    /// Messages a second that come into a queue
    queue_publish_rate: Table<QueueLabels>,
    /// Messages a second that a queue gives to consumers
    queue_deliver_rate: Table<QueueLabels>,
    /// Messages a second that consumers of a queue ack
    queue_ack_rate: Table<QueueLabels>,
    /// 1 for each alert that is active
    alert_active: Table<AlertLabels>,
}

/// A registry with all figures in it but those of the [`process`].
pub(super) fn registered() -> (Registry, Figures) {
    let mut registry = Registry::with_prefix(PREFIX);
    let figures = Figures::registered(&mut registry);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "The version that runs", Info::new(version));
    (registry, figures)
}

/// What is read of the process: name, help.
pub(super) mod process {
    pub const MEMORY: (&str, &str) = (
        "process_resident_memory_bytes",
        "Memory of the gateway's process",
    );
    pub const CPU: (&str, &str) = (
        "process_cpu_seconds",
        "Processor time of the gateway's process",
    );
    pub const FILES: (&str, &str) = (
        "process_open_fds",
        "Files and sockets that the gateway's process has open",
    );
    pub const TASKS: (&str, &str) = (
        "process_tasks",
        "Tasks of the gateway that have not ended: one or more for each connection, call, subscription and link",
    );
    pub const START: (&str, &str) = (
        "process_start_time_seconds",
        "When the gateway started, in seconds since 1970",
    );
}

/// A name that many series share.
pub(super) type Name = Arc<str>;

macro_rules! labels {
    ($($labels:ident { $($label:ident: $kind:ty),+ })+) => {
        $(#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        pub(super) struct $labels { $(pub(super) $label: $kind),+ })+
    };
}

// Names of queues and exchanges are labels only where they exist at the broker; ids and routing keys never are.
labels! {
    PublishLabels { exchange: Name, outcome: &'static str }
    LaneLabels { lane: usize }
    LinkLabels { role: &'static str, state: &'static str }
    RoleLabels { role: &'static str }
    DeliveryLabels { queue: Name, redelivered: bool }
    SettleLabels { queue: Name, action: &'static str }
    DeathLabels { queue: Name, reason: &'static str }
    RetryLabels { queue: Name, result: &'static str }
    FailedLabels { queue: Name, status: &'static str }
    MethodLabels { service: Name, method: Name }
    CallLabels { service: Name, method: Name, code: &'static str }
    ReasonLabels { reason: &'static str }
    ShareLabels { share: &'static str }
    StateLabels { state: &'static str }
    QueueLabels { queue: Name }
    AlertLabels { alert: Name, subject: Name }
}
