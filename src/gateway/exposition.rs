//! The figures as they are read: what is not counted when it happens is looked up when somebody asks.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use super::message_log::MessageLog;
use crate::{
    broker::{LinkState, Links},
    failure::{Status, Time},
    metrics::{Link, Metrics},
    store::{Stats, Store},
};

/// How old the counts of failed messages may be.
const FRESH: Duration = Duration::from_secs(10);
/// How long whoever asks waits for newer ones.
const PATIENCE: Duration = Duration::from_secs(1);
/// Queues whose failed messages are told apart.
const MAX_QUEUES: usize = 1_000;

/// Reads the figures.
#[derive(Clone)]
pub struct Exposition {
    metrics: Metrics,
    links: watch::Receiver<Links>,
    store: Store,
    log: MessageLog,
    asked: Arc<Mutex<Option<Asked>>>,
}

/// What the database said last.
struct Asked {
    at: Instant,
    /// Whether it was there.
    up: bool,
    /// `None`: it is away, or did not answer.
    stats: Option<Stats>,
}

impl Exposition {
    pub fn new(
        metrics: Metrics,
        links: watch::Receiver<Links>,
        store: Store,
        log: MessageLog,
    ) -> Self {
        Self {
            metrics,
            links,
            store,
            log,
            asked: Arc::default(),
        }
    }

    /// All figures as text.
    pub async fn text(&self) -> String {
        let links = *self.links.borrow();
        self.metrics.link("publish", links.publish.into());
        self.metrics.link("consume", links.consume.into());
        self.metrics.dropped(self.log.dropped());
        self.metrics.database(self.store.connections());
        // A slow answer is for the next one who asks; meanwhile the figures are those of the last answer.
        let asking = tokio::spawn(self.clone().ask());
        let _ = timeout(PATIENCE, asking).await;
        self.metrics.exposition()
    }

    /// Counts the failed messages, unless somebody else is at it or was lately.
    async fn ask(self) {
        let Ok(mut asked) = self.asked.try_lock() else {
            return;
        };
        let up = self.store.is_up();
        let is_fresh = |asked: &Asked| asked.at.elapsed() < FRESH && asked.up == up;
        if !asked.as_ref().is_some_and(is_fresh) {
            let stats = if up {
                self.store.stats(None).await.ok()
            } else {
                None
            };
            *asked = Some(Asked {
                at: Instant::now(),
                up,
                stats,
            });
        }
        if let Some(asked) = &*asked {
            self.put(asked.stats.as_ref());
        }
    }

    fn put(&self, stats: Option<&Stats>) {
        let age = |oldest: Option<Time>| match oldest {
            Some(oldest) => (chrono::Utc::now() - oldest).to_std().unwrap_or_default(),
            None => Duration::ZERO,
        };
        let counts = stats.map(|stats| {
            stats.queues.iter().take(MAX_QUEUES).flat_map(|one| {
                let counts = &one.counts;
                let by_status = [
                    (Status::Pending, counts.pending),
                    (Status::Retrying, counts.retrying),
                    (Status::Failed, counts.failed),
                    (Status::Resolved, counts.resolved),
                ];
                by_status.map(|(status, count)| (one.queue.as_str(), status.into(), count))
            })
        });
        let oldest = stats.map(|stats| age(stats.oldest));
        self.metrics.failed(counts, oldest);
    }
}

impl From<LinkState> for Link {
    fn from(state: LinkState) -> Self {
        match state {
            LinkState::Up => Self::Up,
            LinkState::Blocked => Self::Blocked,
            LinkState::Down => Self::Down,
        }
    }
}
