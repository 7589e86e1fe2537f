//! Collects dead letters: one task for each dead-letter queue. A dead letter is acked after its row is committed; as long as
//! the database is away, it stays in its queue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::death;
use crate::{
    broker::{
        Broker, Delivery, Ended, Error as BrokerError, Subscribe, Subscription, Tag,
        topology::{DeadLetterSource, dead_letter_queue},
    },
    failed_message::{Death, Next, schedule::Policy},
    gateway::message_log::{self, MessageLog},
    metrics::Metrics,
    store::{Collected, Error, Store},
    traces::{self, Origin, Place, Step, Traces},
};

/// Dead letters of one queue that are in memory at a time, and go into one transaction.
const BATCH: u16 = 32;
/// Their payloads together, unless one alone is larger.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long until a queue that could not be consumed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often queues that other replicas added are looked for.
const LOOK: Duration = Duration::from_secs(10);

/// A queue that dead letters are collected from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Where they are.
    letters: String,
    /// Where they failed, unless they say otherwise; for a source of others `None`: nobody knows.
    queue: Option<String>,
    /// What makes it one of others.
    foreign: Option<Foreign>,
}

/// A dead-letter queue that another platform made.
#[derive(Clone, Debug, PartialEq)]
struct Foreign {
    /// What failed is retried by schedule.
    retry: bool,
}

impl Source {
    /// The dead-letter queue of `queue`.
    pub fn of(queue: String) -> Self {
        Self {
            letters: dead_letter_queue(&queue),
            queue: Some(queue),
            foreign: None,
        }
    }

    /// What the gateway's list in the database calls it; other people's are in no list.
    fn queue(&self) -> &str {
        self.queue.as_deref().unwrap_or(&self.letters)
    }

    fn death(&self, delivery: &Delivery) -> Death {
        match &self.foreign {
            None => death::read(delivery, self.queue()),
            Some(foreign) => {
                let mut death = death::read_foreign(delivery, &self.letters, self.queue.as_deref());
                if !foreign.retry {
                    death.next = Next::Park;
                }
                death
            }
        }
    }
}

impl From<DeadLetterSource> for Source {
    fn from(source: DeadLetterSource) -> Self {
        Self {
            letters: source.queue,
            queue: source.failed_queue,
            foreign: Some(Foreign {
                retry: source.retry,
            }),
        }
    }
}

/// The collectors of all dead-letter queues.
#[derive(Clone)]
pub struct Collectors {
    broker: Arc<dyn Broker>,
    store: Store,
    policy: Arc<Policy>,
    log: MessageLog,
    metrics: Metrics,
    traces: Traces,
    /// By the queue that dead letters are collected from.
    queues: Arc<Mutex<HashMap<String, Running>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A collector at work.
#[derive(Clone)]
struct Running {
    source: Source,
    /// The topology has the queue.
    managed: bool,
    stop: CancellationToken,
    /// Cancelled once it holds nothing any more.
    stopped: CancellationToken,
}

/// A collector that was stopped, and goes on when this is dropped.
#[must_use]
pub struct Paused {
    of: Collectors,
    /// `None`: it does not go on.
    source: Option<Source>,
    managed: bool,
}

impl Paused {
    /// It is not needed any more: its dead-letter queue is gone. The topology's are waited for.
    pub async fn end(mut self) {
        if self.managed {
            return;
        }
        if let Some(source) = &self.source {
            self.of.forget(source).await;
        }
        self.source = None;
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let Some(source) = self.source.take() else {
            return;
        };
        let mut queues = self.of.lock();
        // Of two that stopped it, one lets it go on; and what one has ended does not go on.
        let stopped = queues.get_mut(&source.letters);
        if let Some(running) = stopped.filter(|running| running.stop.is_cancelled()) {
            *running = self.of.spawn(source, self.managed);
        }
    }
}

impl Collectors {
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Store,
        policy: Arc<Policy>,
        log: MessageLog,
        metrics: Metrics,
        traces: Traces,
        stop: CancellationToken,
    ) -> Self {
        Self {
            broker,
            store,
            policy,
            log,
            metrics,
            traces,
            queues: Arc::default(),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Collects the dead letters of `managed` sources, and of the queues that any replica added.
    pub fn start(&self, managed: impl IntoIterator<Item = Source>) {
        for source in managed {
            self.collect(source, true);
        }
        let collectors = self.clone();
        self.tasks.spawn(async move {
            let stop = collectors.stop.clone();
            stop.run_until_cancelled(collectors.look()).await
        });
    }

    /// Sees to it that the dead letters of `queue`, to which the gateway has added one, are collected: by this replica at once, by
    /// others and after a restart because the database knows.
    pub fn ensure(&self, queue: &str) {
        if !self.collect(Source::of(queue.to_owned()), false) {
            return;
        }
        let (store, queue) = (self.store.clone(), queue.to_owned());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let adding = async {
                let mut presence = store.watch();
                while presence.up().await {
                    match store.add_dead_letter_queue(&queue).await {
                        Err(error) if error.passes() => tokio::time::sleep(AGAIN).await,
                        _ => return,
                    }
                }
            };
            stop.run_until_cancelled(adding).await
        });
    }

    /// Waits until nothing is collected any more.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn look(&self) {
        let mut presence = self.store.watch();
        while presence.up().await {
            for queue in self.store.dead_letter_queues().await.unwrap_or_default() {
                self.collect(Source::of(queue), false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stops the collector of `queue`, if there is one: what it held is stored, or back in its dead-letter queue.
    pub async fn pause(&self, queue: &str) -> Option<Paused> {
        let running = self.lock().get(&dead_letter_queue(queue)).cloned()?;
        running.stop.cancel();
        let paused = Paused {
            of: self.clone(),
            source: Some(running.source.clone()),
            managed: running.managed,
        };
        running.stopped.cancelled().await;
        Some(paused)
    }

    /// Starts a collector; `false`: there is one.
    fn collect(&self, source: Source, managed: bool) -> bool {
        let mut queues = self.lock();
        if queues.contains_key(&source.letters) {
            return false;
        }
        queues.insert(source.letters.clone(), self.spawn(source, managed));
        true
    }

    fn spawn(&self, source: Source, managed: bool) -> Running {
        let running = Running {
            source: source.clone(),
            managed,
            stop: self.stop.child_token(),
            stopped: CancellationToken::new(),
        };
        let collector = Collector {
            of: self.clone(),
            source,
            managed,
            stop: running.stop.clone(),
            _stopped: running.stopped.clone().drop_guard(),
        };
        self.tasks.spawn(collector.run());
        running
    }

    async fn forget(&self, source: &Source) {
        let queue = source.queue();
        tracing::debug!(queue, "its dead-letter queue is gone");
        if let Err(error) = self.store.remove_dead_letter_queue(queue).await {
            tracing::debug!(queue, %error, "it stays in the database's list");
        }
        self.lock().remove(&source.letters);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects one queue's dead letters.
struct Collector {
    of: Collectors,
    source: Source,
    /// The topology has it: it is waited for when it does not exist.
    managed: bool,
    stop: CancellationToken,
    _stopped: DropGuard,
}

/// Why collecting paused.
enum Pause {
    /// The queue does not exist.
    Missing,
    /// The broker or the database is away.
    Away,
    Stop,
}

impl Collector {
    async fn run(self) {
        let mut presence = self.of.store.watch();
        loop {
            let up = presence.up();
            if self.stop.run_until_cancelled(up).await != Some(true) {
                return;
            }
            match self.collect().await {
                Pause::Stop => return,
                Pause::Missing if !self.managed => return self.of.forget(&self.source).await,
                Pause::Missing | Pause::Away => {}
            }
            let pause = tokio::time::sleep(AGAIN);
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn collect(&self) -> Pause {
        let subscribe = Subscribe::new(
            vec![self.source.letters.clone()],
            BATCH,
            "courtier-collector",
            Instant::now() + SUBSCRIBE_TIMEOUT,
        );
        let mut subscription = match self.of.broker.subscribe(subscribe).await {
            Ok(subscription) => subscription,
            Err(BrokerError::NotFound { .. }) => return Pause::Missing,
            Err(error) => {
                tracing::debug!(queue = self.source.letters, %error, "cannot collect dead letters");
                return Pause::Away;
            }
        };
        let pause = self.consume(&mut *subscription).await;
        // What was not acked goes back.
        subscription.close().await;
        pause
    }

    async fn consume(&self, subscription: &mut dyn Subscription) -> Pause {
        // Dead letters that the database refuses are kept out of the way: they go back when this subscription ends.
        let mut refused = 0;
        loop {
            let first = tokio::select! {
                () = self.stop.cancelled() => return Pause::Stop,
                first = subscription.next() => first,
            };
            let (batch, ended) = batch(subscription, first);
            let deaths: Vec<Death> = batch
                .iter()
                .map(|delivery| self.source.death(delivery))
                .collect();
            let tags: Vec<Tag> = batch.iter().map(|delivery| delivery.tag).collect();
            drop(batch);
            let stored = match self.store(&deaths).await {
                Ok(()) => tags,
                Err(error) if error.passes() => return Pause::Away,
                Err(_) => match self.one_by_one(&deaths, &tags).await {
                    Some(stored) => stored,
                    None => return Pause::Away,
                },
            };
            refused += deaths.len() - stored.len();
            if !stored.is_empty() && subscription.ack(&stored).await.is_err() {
                // They come again, and are recognised.
                return Pause::Away;
            }
            match ended {
                Some(Ended::QueueDeleted(_)) => return Pause::Missing,
                Some(Ended::BrokerDown | Ended::ConsumerTimeout(_)) => return Pause::Away,
                None if refused >= usize::from(BATCH) => return Pause::Away,
                None => {}
            }
        }
    }

    async fn store(&self, deaths: &[Death]) -> Result<(), Error> {
        if deaths.is_empty() {
            return Ok(());
        }
        let policy = &self.of.policy;
        // Before it is committed: what follows from that comes later.
        let at = message_log::now();
        let collected = self
            .of
            .store
            .collect(deaths, |queue| policy.of(queue).clone())
            .await?;
        self.of.log.failed(deaths, &collected, at);
        let mut duplicates = 0;
        for (death, collected) in deaths.iter().zip(&collected) {
            if *collected == Collected::Duplicate {
                duplicates += 1;
            } else {
                let queue = self.source.queue();
                self.of.metrics.collected(queue, death.reason.into());
                self.trace(death);
                tracing::debug!(
                    queue = death.queue,
                    message_id = death.message.message_id,
                    attempt = death.attempt,
                    reason = <&str>::from(death.reason),
                    trace_id = traces::id_of(&death.message),
                    "a message failed"
                );
            }
        }
        tracing::info!(
            queue = self.source.queue(),
            failed = collected.len() - duplicates,
            duplicates,
            "collected dead letters"
        );
        Ok(())
    }

    fn trace(&self, death: &Death) {
        if !self.of.traces.are_exported() {
            return;
        }
        let place = Place {
            exchange: &death.exchange,
            routing_key: &death.routing_key,
            queue: &death.queue,
        };
        let message = &death.message;
        let origin = Origin::of_message(&message.headers);
        let span = self
            .of
            .traces
            .begin(Step::Collect, place, message, origin.as_ref());
        if let Some(mut span) = span {
            span.set("courtier.reason", <&str>::from(death.reason));
        }
    }

    /// Finds out which ones the database refuses; the others' tags. `None`: it is away.
    async fn one_by_one(&self, deaths: &[Death], tags: &[Tag]) -> Option<Vec<Tag>> {
        let mut stored = Vec::new();
        for (death, tag) in deaths.iter().zip(tags) {
            match self.store(std::slice::from_ref(death)).await {
                Ok(()) => stored.push(*tag),
                Err(error) if error.passes() => return None,
                Err(_) => {
                    let (queue, bytes) = (&self.source.letters, death.message.payload.len());
                    tracing::error!(
                        queue,
                        bytes,
                        "the database refuses this dead letter (is it larger than the database takes at once?); it stays in its queue"
                    );
                }
            }
        }
        Some(stored)
    }
}

/// What is ready, in one batch; and the end of the subscription, if it came.
fn batch(
    subscription: &mut dyn Subscription,
    first: Result<Delivery, Ended>,
) -> (Vec<Delivery>, Option<Ended>) {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut next = Some(first);
    while let Some(taken) = next {
        match taken {
            Ok(delivery) => {
                bytes += delivery.message.payload.len();
                batch.push(delivery);
            }
            Err(ended) => return (batch, Some(ended)),
        }
        let full = batch.len() >= usize::from(BATCH) || bytes >= BATCH_BYTES;
        next = if full { None } else { subscription.try_next() };
    }
    (batch, None)
}
