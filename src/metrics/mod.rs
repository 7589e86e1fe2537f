//! Figures for those who watch the gateway: counted where things happen, read at `GET /metrics`.
//!
//! What there is stands in [`figures`]. Each gateway has its own, so that many can run in one process. Whoever counts often
//! keeps the counters in hand ([`Exchange`], [`Queue`], [`Lane`]), so that a message costs a lookup at most.

pub mod classic;
mod figures;
mod process;
mod series;
mod table;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prometheus_client::{encoding::text, registry::Registry};
use tokio::time::Instant;

pub use self::series::{Exchange, Lane, Publishing, Queue, Stream};
use self::{
    figures::{
        AlertLabels, CallLabels, DeathLabels, FailedLabels, Figures, LaneLabels, LinkLabels,
        MethodLabels, Name, QueueLabels, ReasonLabels, RetryLabels, RoleLabels, ShareLabels,
        StateLabels,
    },
    process::Process,
    series::Named,
    table::Table,
};

/// What the text of [`Metrics::exposition`] is
/// (<https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What became of a publish or a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    Confirmed,
    Unroutable,
    Rejected,
    NotSent,
    InDoubt,
    Invalid,
}

/// How a delivery was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Action {
    Ack,
    AutoAck,
    Retry,
    Requeue,
    DeadLetter,
    Discard,
    Expired,
}

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Link {
    Up,
    Blocked,
    Down,
    Failing,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ConnectionRefused {
    /// There are as many as there may be.
    Limit,
    /// There are as many of its address as there may be.
    AddressLimit,
    /// The process has no descriptor left.
    Descriptors,
}

/// What is known of a queue; what is not has no series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueSample {
    pub queue: String,
    pub messages_ready: Option<u64>,
    pub messages_unacked: Option<u64>,
    pub consumers: Option<u64>,
    /// 1 is full.
    pub capacity_ratio: Option<f64>,
    /// Messages a second.
    pub publish_rate: Option<f64>,
    pub deliver_rate: Option<f64>,
    pub ack_rate: Option<f64>,
}

/// An alert that is active: its name, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveAlert {
    pub alert: String,
    pub subject: String,
}

/// The figures of one gateway.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    figures: Figures,
    exchanges: Named<Exchange>,
    queues: Named<Queue>,
}

impl Default for Metrics {
    fn default() -> Self {
        let (mut registry, figures) = figures::registered();
        registry.register_collector(Box::new(Process::new()));
        Self(Arc::new(Inner {
            exchanges: Named::new(Exchange::new(&figures, "")),
            queues: Named::new(Queue::new(&figures, "")),
            figures,
            registry,
        }))
    }
}

impl Metrics {
    fn figures(&self) -> &Figures {
        &self.0.figures
    }

    /// All of it as text. See [`CONTENT_TYPE`].
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut text, &self.0.registry);
        text
    }

    /// The figures of an exchange that exists.
    pub fn exchange(&self, name: &str) -> Arc<Exchange> {
        let make = |name: &str| Exchange::new(self.figures(), name);
        self.0.exchanges.get_or_make(name, make)
    }

    /// The figures of a queue that exists.
    pub fn queue(&self, name: &str) -> Arc<Queue> {
        let make = |name: &str| Queue::new(self.figures(), name);
        self.0.queues.get_or_make(name, make)
    }

    /// A publish, begun at this time, that was refused before its exchange was found.
    pub fn refused(&self, outcome: Outcome, since: Instant) {
        self.published(self.0.exchanges.nameless(), outcome, since);
    }

    /// What became of a publish that was begun at this time.
    pub fn published(&self, exchange: &Exchange, outcome: Outcome, since: Instant) {
        exchange.count(outcome);
        let took = since.elapsed().as_secs_f64();
        self.figures().publish_seconds.observe(took);
    }

    /// A publish that is handed to the broker; it was begun at this time.
    pub fn publishing(&self, exchange: Arc<Exchange>, bytes: usize, since: Instant) -> Publishing {
        Publishing::new(self.clone(), exchange, bytes, since)
    }

    /// The figures of a publish lane.
    pub fn lane(&self, lane: usize) -> Lane {
        let labels = LaneLabels { lane };
        let figures = self.figures();
        Lane {
            backlog: figures.lane_backlog_messages.get_or_create_owned(&labels),
            unconfirmed: figures
                .lane_unconfirmed_messages
                .get_or_create_owned(&labels),
        }
    }

    /// How the link of a role is.
    pub fn link(&self, role: &'static str, state: Link) {
        use strum::VariantArray;
        for other in Link::VARIANTS {
            let labels = LinkLabels {
                role,
                state: other.into(),
            };
            let gauge = self.figures().broker_link_state.get_or_create(&labels);
            gauge.set((*other == state).into());
        }
    }

    /// A link of this role stands, for the first time (which makes the series) or again.
    pub fn connected(&self, role: &'static str, again: bool) {
        let counter = self
            .figures()
            .broker_reconnects
            .get_or_create(&RoleLabels { role });
        counter.inc_by(again.into());
    }

    /// The shares of the memory: what is held of each, and what it is at the most.
    pub fn memory(&self, shares: [(&'static str, usize, usize); 3]) {
        let rows = |value: fn(&(&'static str, usize, usize)) -> usize| {
            let row = |share: &(&'static str, usize, usize)| {
                let labels = ShareLabels { share: share.0 };
                (
                    labels,
                    float(u64::try_from(value(share)).unwrap_or(u64::MAX)),
                )
            };
            shares.iter().map(row).collect()
        };
        let figures = self.figures();
        figures.memory_held_bytes.replace(rows(|share| share.1));
        figures.memory_share_bytes.replace(rows(|share| share.2));
    }

    /// Clients have so many connections now.
    pub fn connections(&self, now: usize) {
        let gauge = &self.figures().connections;
        gauge.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// A connection of a client was refused.
    pub fn connection_refused(&self, reason: ConnectionRefused) {
        let reason = reason.into();
        let figures = self.figures();
        let counter = figures
            .connections_refused
            .get_or_create(&ReasonLabels { reason });
        counter.inc();
    }

    /// How many connections were refused so far, for whatever reason.
    pub fn connections_refused(&self) -> u64 {
        use strum::VariantArray;
        let count = |reason: &ConnectionRefused| {
            let reason = (*reason).into();
            let counters = &self.figures().connections_refused;
            counters.get_or_create(&ReasonLabels { reason }).get()
        };
        ConnectionRefused::VARIANTS.iter().map(count).sum()
    }

    /// A subscription, as long as it lasts, whose client may have so many deliveries unsettled.
    pub fn stream(&self, credit: u32) -> Stream {
        Stream::new(self.clone(), credit)
    }

    /// A dead letter of this queue, which exists, became a failed message.
    pub fn collected(&self, queue: &str, reason: &'static str) {
        let queue = self.queue(queue).name.clone();
        let labels = DeathLabels { queue, reason };
        self.figures()
            .dead_letters_collected
            .get_or_create(&labels)
            .inc();
    }

    /// A message of this queue, which exists, had properties that could not be read as they are. How many did so far.
    pub fn repaired(&self, queue: &str) -> u64 {
        let queue = self.queue(queue).name.clone();
        let counter = &self.figures().messages_repaired;
        counter.get_or_create(&QueueLabels { queue }).inc() + 1
    }

    /// A failed message was sent back to its queue.
    pub fn retried(&self, queue: &str, result: Outcome) {
        // Only these answers come from a queue.
        let queue = match result {
            Outcome::Confirmed | Outcome::Rejected => self.queue(queue),
            _ => self.0.queues.get(queue),
        };
        let labels = RetryLabels {
            queue: queue.name.clone(),
            result: result.into(),
        };
        self.figures().retries.get_or_create(&labels).inc();
    }

    /// How many failed messages there are, by queue and status, and since when the oldest one waits. `None`: not known.
    pub fn failed<'a>(
        &self,
        counts: Option<impl IntoIterator<Item = (&'a str, &'static str, u64)>>,
        oldest: Option<Duration>,
    ) {
        let row = |(queue, status, count): (&str, _, _)| {
            let queue = Name::from(queue);
            (FailedLabels { queue, status }, float(count))
        };
        let rows = counts.map(|counts| counts.into_iter().map(row).collect());
        let figures = self.figures();
        figures.failed_messages.replace(rows.unwrap_or_default());
        let oldest = oldest.map(|age| age.as_secs_f64());
        figures.failed_message_oldest_seconds.set(oldest);
    }

    /// How many events of the message log were dropped so far.
    pub fn dropped(&self, count: u64) {
        let counter = self.figures().message_log_dropped_events.inner();
        counter.fetch_max(count, Ordering::Relaxed);
    }

    /// A call of a method that exists ended with this code.
    pub fn called(&self, service: &Name, method: &Name, code: &'static str, took: Duration) {
        let (service, method) = (service.clone(), method.clone());
        let of_method = MethodLabels {
            service: service.clone(),
            method: method.clone(),
        };
        let labels = CallLabels {
            service,
            method,
            code,
        };
        let figures = self.figures();
        figures.grpc_requests.get_or_create(&labels).inc();
        let seconds = figures.grpc_request_seconds.get_or_create(&of_method);
        seconds.observe(took.as_secs_f64());
    }

    /// Whether the database takes changes, and the connections to it: all, and those that are idle. `None`: it is away.
    pub fn database(&self, up: bool, connections: Option<(u64, u64)>) {
        let figures = self.figures();
        figures.database_up.set(up.into());
        let rows = connections.map(|(all, idle)| {
            let states = [("idle", idle), ("in_use", all.saturating_sub(idle))];
            let row = |(state, count)| (StateLabels { state }, float(count));
            states.into_iter().map(row).collect()
        });
        figures
            .database_connections
            .replace(rows.unwrap_or_default());
    }

    /// What is known of all queues now, in the place of what was known before.
    pub fn queues(&self, samples: &[QueueSample]) {
        let put = |table: &Table<QueueLabels>, value: fn(&QueueSample) -> Option<f64>| {
            let rows = samples.iter().filter_map(|sample| {
                let queue = Name::from(sample.queue.as_str());
                Some((QueueLabels { queue }, value(sample)?))
            });
            table.replace(rows.collect());
        };
        let figures = self.figures();
        put(&figures.queue_messages_ready, |s| {
            s.messages_ready.map(float)
        });
        put(&figures.queue_messages_unacked, |s| {
            s.messages_unacked.map(float)
        });
        put(&figures.queue_consumers, |s| s.consumers.map(float));
        put(&figures.queue_capacity_ratio, |s| s.capacity_ratio);
        put(&figures.queue_publish_rate, |s| s.publish_rate);
        put(&figures.queue_deliver_rate, |s| s.deliver_rate);
        put(&figures.queue_ack_rate, |s| s.ack_rate);
    }

    /// All alerts that are active now, in the place of those before.
    pub fn alerts(&self, active: &[ActiveAlert]) {
        let rows = active.iter().map(|active| {
            let labels = AlertLabels {
                alert: Name::from(active.alert.as_str()),
                subject: Name::from(active.subject.as_str()),
            };
            (labels, 1.0)
        });
        self.figures().alert_active.replace(rows.collect());
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the format has nothing else; exact up to 2^53"
)]
fn float(count: u64) -> f64 {
    count as f64
}
