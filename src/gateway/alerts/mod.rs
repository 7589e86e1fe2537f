//! Alerts: what is wrong with queues, links and the database, as this gateway sees it.
//!
//! Every few seconds the gateway looks around ([`observe`]); [`rules`] say what is wrong with what it sees; the [`book`] raises what
//! stays wrong and clears what stays right. To add an alert: a [`Kind`], its rule, and its section in `docs/runbook.md`.

mod book;
mod observe;
mod rules;
mod webhook;

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::observe::{Observation, Probes};
use self::{book::Book, webhook::Webhook};
use crate::{
    broker::admin::QueueInfo,
    failed_message::{Status, Time},
    metrics::{ActiveAlert, Metrics, QueueSample},
    store::QueueCounts,
};

/// Changes that a slow watcher may be behind.
const CHANGES: usize = 1_024;

/// Queues that have figures at /metrics.
const MAX_QUEUES: usize = 1_000;
/// Between two looks at a broker with very many queues.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What can be wrong.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display, strum::EnumIter,
)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    LinkDown,
    BrokerAlarm,
    DatabaseDown,
    NoConsumer,
    QueueDepth,
    ConsumerLag,
    FailedSpike,
    OldestFailed,
    ConnectionsRefused,
}

impl Kind {
    pub fn severity(self) -> Severity {
        match self {
            Self::LinkDown | Self::BrokerAlarm | Self::DatabaseDown | Self::NoConsumer => {
                Severity::Critical
            }
            Self::QueueDepth
            | Self::ConsumerLag
            | Self::FailedSpike
            | Self::OldestFailed
            | Self::ConnectionsRefused => Severity::Warning,
        }
    }

    /// Where to read what to do.
    pub fn runbook(self) -> String {
        format!("docs/runbook.md#{}", self.to_string().replace('_', "-"))
    }
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Severity {
    Critical,
    Warning,
}

/// Something is wrong, or was.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub kind: Kind,
    /// A queue, a link or a node; empty: the gateway as a whole.
    pub subject: String,
    /// With figures, for people.
    pub summary: String,
    pub raised_at: Time,
    /// `None`: it stands.
    pub cleared_at: Option<Time>,
}

/// When something counts as wrong.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often the gateway looks.
    pub every: Duration,
    /// How long something must be wrong, or right again, before that is said.
    pub hold: Duration,
    /// Ready messages over capacity.
    pub queue_depth: f64,
    pub consumer_lag: Duration,
    /// Messages that fail for the first time within a minute; 0: any number.
    pub failed_spike: u64,
    pub oldest_failed: Duration,
    /// Queues that nobody is told about; a `*` at either end stands for anything.
    pub ignored_queues: Vec<String>,
    /// Gets each alert that is raised or cleared, as JSON.
    pub webhook: Option<SecretString>,
}

/// What is wrong now, and whatever changes.
#[derive(Clone)]
pub struct Alerts {
    standing: watch::Receiver<Arc<Vec<Alert>>>,
    changes: broadcast::Sender<Alert>,
}

impl Alerts {
    /// Starts looking.
    pub fn start(
        probes: Probes,
        options: Options,
        service: &str,
        metrics: Metrics,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (told, standing) = watch::channel(Arc::default());
        let (changes, _) = broadcast::channel(CHANGES);
        let webhook = options.webhook.clone();
        if let Some(url) = webhook {
            let webhook = Webhook::new(url, service);
            tasks.spawn(webhook.follow(changes.subscribe(), stop.clone()));
        }
        let looking = look(probes, options, told, changes.clone(), metrics);
        tasks.spawn(async move { stop.run_until_cancelled(looking).await });
        Self { standing, changes }
    }

    /// What stands, the most severe first, then the oldest.
    pub fn list(&self) -> Arc<Vec<Alert>> {
        self.standing.borrow().clone()
    }

    /// What stands now, and each change from then on.
    pub fn watch(&self) -> (Arc<Vec<Alert>>, broadcast::Receiver<Alert>) {
        // In this order: a change in between is in both.
        let changes = self.changes.subscribe();
        (self.list(), changes)
    }
}

async fn look(
    probes: Probes,
    options: Options,
    told: watch::Sender<Arc<Vec<Alert>>>,
    changes: broadcast::Sender<Alert>,
    metrics: Metrics,
) {
    let mut probes = probes;
    let mut book = Book::new(options.hold);
    let mut ticks = interval(options.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let seen = probes.look().await;
        let findings = rules::findings(&seen, &options);
        let changed = book.note(findings, Instant::now(), seen.now);
        let standing = book.standing();
        expose(&metrics, &seen, &standing);
        // First what stands, so that who begins to watch in between is told twice, and never not.
        told.send_replace(Arc::new(standing));
        for alert in changed {
            say(&alert);
            // Nobody may be watching.
            let _ = changes.send(alert);
        }
        // A broker with so many queues that listing them takes long is not to do only that.
        if let Some(took) = seen.listing.filter(|took| *took > options.every / 4) {
            tokio::time::sleep((took * 4).min(LONGEST_PAUSE)).await;
        }
    }
}

/// What was seen, and what stands, as figures. What could not be seen has none.
fn expose(metrics: &Metrics, seen: &Observation, standing: &[Alert]) {
    let queues = seen.queues.iter().flatten().take(MAX_QUEUES);
    let samples: Vec<QueueSample> = queues.map(sample).collect();
    metrics.queues(&samples);
    let failed = seen.failed.as_ref();
    let counts = failed.map(|failed| failed.queues.iter().take(MAX_QUEUES).flat_map(by_status));
    let oldest = failed.map(|failed| failed.oldest_age.unwrap_or_default());
    metrics.failed(counts, oldest);
    let active: Vec<ActiveAlert> = standing
        .iter()
        .map(|alert| ActiveAlert {
            alert: alert.kind.to_string(),
            subject: alert.subject.clone(),
        })
        .collect();
    metrics.alerts(&active);
}

fn by_status(of: &QueueCounts) -> [(&str, &'static str, u64); 4] {
    let counts = &of.counts;
    [
        (Status::Pending, counts.pending),
        (Status::Retrying, counts.retrying),
        (Status::Failed, counts.failed),
        (Status::Resolved, counts.resolved),
    ]
    .map(|(status, count)| (of.queue.as_str(), status.into(), count))
}

fn sample(queue: &QueueInfo) -> QueueSample {
    QueueSample {
        queue: queue.name.clone(),
        messages_ready: queue.ready,
        messages_unacked: queue.unacked,
        consumers: queue.consumers,
        capacity_ratio: queue.capacity_ratio,
        publish_rate: queue.publish.per_second,
        deliver_rate: queue.deliver.per_second,
        ack_rate: queue.ack.per_second,
    }
}

fn say(alert: &Alert) {
    let Alert {
        kind,
        subject,
        summary,
        ..
    } = alert;
    let (severity, runbook) = (kind.severity(), kind.runbook());
    match alert.cleared_at {
        None => tracing::warn!(%kind, subject, summary, %severity, runbook, "alert raised"),
        Some(_) => tracing::info!(%kind, subject, "alert cleared"),
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn each_kind_has_its_section_in_the_runbook() {
        let runbook = include_str!("../../../docs/runbook.md").to_lowercase();
        for kind in Kind::iter() {
            let heading = format!("## {}", kind.to_string().replace('_', " "));
            assert!(runbook.lines().any(|line| line == heading), "{kind}");
        }
    }
}
