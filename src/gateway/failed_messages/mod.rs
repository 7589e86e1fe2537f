//! Failed messages: what people and programs may do with them. What happens by itself is in [`collector`], [`scheduler`] and
//! [`acks`].

pub mod acks;
mod collector;
pub mod dead_letter;
mod death;
mod foreign;
mod scheduler;
mod sender;
mod watch;

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use moka::future::Cache;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::collector::{Collectors, Source};
pub use self::watch::{News, Watch};
use self::{acks::Acks, sender::Sender, watch::Watchers};
use super::{
    message_log::{self, MessageLog},
    page::{self, BadToken, Listed},
    validate::{self, Invalid},
};
use crate::{
    broker::{Broker, Fate, OutcomeObserver},
    failed_message::{Attempt, FailedMessage, Status, Time, schedule::Policy},
    finish::{RuntimeEnded, to_the_end},
    message::{Message, Value, header},
    metrics::Metrics,
    store::{self, Filter, Group, Operation, QueueCounts, Sent, Stats, Store},
    traces::Traces,
};

/// Rows of a page that carries payloads.
const MAX_FULL: u32 = 100;
/// Payloads of such a page, unless its first row alone is larger: what clients receive by custom is 4 MiB.
const FULL_BYTES: usize = 3 * 1024 * 1024;
/// Bytes of a comment.
pub const MAX_COMMENT: usize = 4 * 1024;
/// Retries a second that a bulk retry may ask for.
pub const MAX_RATE: u32 = 1_000;
pub const DEFAULT_RATE: u32 = 10;
/// How old the progress of a bulk retry may be that one more who follows it is told.
const FRESH: Duration = Duration::from_millis(500);

/// Why a call about failed messages was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no such failed message")]
    NotFound,
    #[error("there is no such operation")]
    NoOperation,
    #[error("the failed message is {0}")]
    Conflict(Status),
    #[error("the page token is not one of this list")]
    PageToken,
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The copy is with the broker, or may be, and the database did not take that. The failed message is RETRYING until its lease ends.
    #[error("what became of the copy is not stored: {0:?}, {1}")]
    NotWritten(Fate, store::Error),
    /// The copy is not confirmed. The failed message is what it was; FAILED where sending it again cannot help (no queue takes
    /// it, or its headers do not fit).
    #[error("the copy is not confirmed: {0:?}")]
    NotSent(Fate),
    #[error(transparent)]
    Store(store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => Self::NotFound,
            store::Error::Conflict(status) => Self::Conflict(status),
            store::Error::PageToken => Self::PageToken,
            error => Self::Store(error),
        }
    }
}

impl From<RuntimeEnded> for Error {
    fn from(_: RuntimeEnded) -> Self {
        Self::Store(store::Error::Down)
    }
}

impl From<BadToken> for Error {
    fn from(_: BadToken) -> Self {
        Self::PageToken
    }
}

/// A failed message with its history.
#[derive(Clone, Debug)]
pub struct Full {
    pub message: FailedMessage,
    pub attempts: Vec<Attempt>,
}

/// How failed messages stand.
#[derive(Clone, Debug)]
pub struct Standing {
    pub queues: Vec<QueueCounts>,
    /// Messages that failed for the first time.
    pub last_minute: u64,
    /// Of the oldest one that is not resolved; `None`: there is none.
    pub oldest_age: Option<Duration>,
}

/// An edited copy that is confirmed.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The failed message, RESOLVED.
    pub original: FailedMessage,
    pub message_id: String,
    pub publish_id: Uuid,
}

/// The service.
#[derive(Clone)]
pub struct FailedMessages {
    store: Store,
    sender: Sender,
    log: MessageLog,
    pub(super) collectors: Collectors,
    pub(super) acks: Acks,
    watchers: Watchers,
    /// Bulk retries that are followed, as they were a moment ago.
    operations: Cache<Uuid, Operation>,
}

/// What runs behind the calls.
pub struct Background {
    collectors: Collectors,
    stop: CancellationToken,
    tasks: TaskTracker,
    recorder: tokio::task::JoinHandle<()>,
}

impl Background {
    /// Stops collecting and sending; what is under way is finished. Acks of retries are still taken.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.collectors.stopped().await;
    }

    /// Waits until all acks are written; the gateway must be dropped before.
    pub async fn flushed(self) {
        let _ = self.recorder.await;
    }
}

impl FailedMessages {
    /// The service, and what runs behind it: dead letters of the `managed` sources are collected, due retries sent.
    pub fn start(
        broker: Arc<dyn Broker>,
        store: Store,
        policy: Arc<Policy>,
        log: MessageLog,
        metrics: Metrics,
        traces: Traces,
        managed: impl IntoIterator<Item = Source>,
    ) -> (Self, Background) {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let collectors = Collectors::new(
            broker.clone(),
            store.clone(),
            policy.clone(),
            log.clone(),
            metrics.clone(),
            traces.clone(),
            stop.clone(),
        );
        collectors.start(managed);
        let sender = Sender::new(broker, store.clone(), policy, log.clone(), metrics, traces);
        scheduler::start(sender.clone(), stop.clone(), &tasks);
        let (acks, recording) = acks::recorder(store.clone());
        let recorder = tokio::spawn(recording);
        let service = Self {
            watchers: Watchers::new(store.clone()),
            operations: Cache::builder()
                .time_to_live(FRESH)
                .max_capacity(1_000)
                .build(),
            store,
            sender,
            log,
            collectors: collectors.clone(),
            acks,
        };
        let background = Background {
            collectors,
            stop,
            tasks,
            recorder,
        };
        (service, background)
    }

    /// Failed messages, newest first.
    pub async fn list(
        &self,
        filter: &Filter,
        size: u32,
        token: &str,
    ) -> Result<Listed<FailedMessage>, Error> {
        let list = page::list("failed_messages", filter);
        let cursor = page::cursor(token, &list)?;
        let found = self
            .store
            .failed_messages(filter, cursor.as_ref(), size.into())
            .await?;
        Ok(Listed {
            rows: found.rows,
            next: page::token(found.next, &list),
            unreadable: found.unreadable,
        })
    }

    /// The same with payloads and histories: fewer a page.
    pub async fn list_full(
        &self,
        filter: &Filter,
        size: u32,
        token: &str,
    ) -> Result<Listed<Full>, Error> {
        let list = page::list("failed_messages", filter);
        let cursor = page::cursor(token, &list)?;
        let size = size.min(MAX_FULL);
        let found = self
            .store
            .failed_messages(filter, cursor.as_ref(), size.into())
            .await?;
        let (mut rows, mut bytes, mut next) = (Vec::new(), 0, found.next);
        let mut unreadable = found.unreadable;
        let mut last = None;
        for row in found.rows {
            let here = store::Cursor {
                at: row.failed_at,
                name: row.id.to_string(),
            };
            let full = match self.get(row.id).await {
                // Deleted meanwhile.
                Err(Error::NotFound) => continue,
                // Its history.
                Err(Error::Store(store::Error::Damaged { .. })) => {
                    unreadable.push(row.id.to_string());
                    continue;
                }
                full => full?,
            };
            bytes += full.message.message.payload.len();
            if bytes > FULL_BYTES && !rows.is_empty() {
                next = last;
                break;
            }
            rows.push(full);
            last = Some(here);
        }
        Ok(Listed {
            rows,
            next: page::token(next, &list),
            unreadable,
        })
    }

    /// One failed message.
    pub async fn get(&self, id: Uuid) -> Result<Full, Error> {
        let message = self.store.failed_message(id).await?;
        let attempts = self.store.attempts(id).await?;
        Ok(Full { message, attempts })
    }

    /// Sends one back to its queue now; the row once the broker confirmed it. Goes on when the caller goes away.
    pub async fn retry(&self, id: Uuid) -> Result<FailedMessage, Error> {
        let service = self.clone();
        to_the_end(async move {
            let (at, lease) = (Instant::now(), service.sender.policy.lease);
            let claimed = service.store.claim_one(id, lease).await?;
            let (fate, written) = service.sender.send(&claimed, at).await;
            let row = written.map_err(|error| not_written(fate, error))?;
            match fate {
                Fate::Confirmed => Ok(row),
                fate => Err(Error::NotSent(fate)),
            }
        })
        .await
    }

    /// Publishes `message` to the queue where the failed message `id` failed, and resolves that one once the broker confirmed
    /// it. The original stays as it was. Goes on when the caller goes away.
    pub async fn edit_and_retry(
        &self,
        id: Uuid,
        mut message: Message,
        max_payload_bytes: usize,
    ) -> Result<Replaced, Error> {
        validate::message(&message, max_payload_bytes)?;
        let named = message.message_id.is_some();
        let message_id = message
            .message_id
            .get_or_insert_with(|| Uuid::now_v7().to_string())
            .clone();
        let original = Value::text(id.to_string());
        message
            .headers
            .insert(header::EDITED_ID.to_owned(), original);
        let service = self.clone();
        to_the_end(async move {
            let (at, lease) = (Instant::now(), service.sender.policy.lease);
            let claimed = service.store.claim_to_edit(id, lease).await?;
            let row = &claimed.message;
            sender::note_origin(row, &mut message);
            let publish = service.sender.publish_to(&row.queue, message, at);
            let publish_id = publish.publish_id;
            let observer = service
                .log
                .observer(&publish, named)
                .map(OutcomeObserver::new);
            let sent_at = message_log::now();
            let fate = service.sender.publish(publish, observer).await;
            let token = claimed.token;
            let sent = match fate {
                Fate::Confirmed => {
                    let comment =
                        format!("edited and published again as {message_id} ({publish_id})");
                    service.log.edited(row, sent_at, &comment);
                    let store = &service.store;
                    let replaced = service
                        .sender
                        .insist(|| store.replaced(id, token, &comment));
                    let original = replaced.await.map_err(|error| not_written(fate, error))?;
                    return Ok(Replaced {
                        original,
                        message_id,
                        publish_id,
                    });
                }
                Fate::Unroutable => Sent::Returned,
                Fate::InDoubt(_) => Sent::EditedInDoubt,
                _ => Sent::NotSent { again_after: None },
            };
            let written = service.sender.write(id, token, sent).await;
            written.map_err(|error| not_written(fate, error))?;
            Err(Error::NotSent(fate))
        })
        .await
    }

    /// Marks one as done.
    pub async fn resolve(&self, id: Uuid, comment: &str) -> Result<FailedMessage, Error> {
        if comment.len() > MAX_COMMENT {
            let problem = format!("must be at most {MAX_COMMENT} bytes");
            return Err(Invalid::field("comment", problem).into());
        }
        Ok(self.store.resolve(id, comment).await?)
    }

    /// Deletes one.
    pub async fn delete(&self, id: Uuid) -> Result<(), Error> {
        Ok(self.store.delete(id).await?)
    }

    /// How many a bulk delete would delete: those that failed before the moment of the answer.
    pub async fn count_deletable(&self, filter: &Filter) -> Result<(u64, Time), Error> {
        let (mut filter, before) = self.until_now(filter).await?;
        if filter.statuses.is_empty() {
            filter.statuses = vec![Status::Pending, Status::Failed, Status::Resolved];
        }
        filter.statuses.retain(|status| *status != Status::Retrying);
        if filter.statuses.is_empty() {
            return Ok((0, before));
        }
        Ok((self.store.count(&filter).await?, before))
    }

    /// Deletes what the filter lets through now, but for RETRYING ones: how many, of those that failed before which moment.
    pub async fn delete_many(&self, filter: &Filter) -> Result<(u64, Time), Error> {
        let (filter, before) = self.until_now(filter).await?;
        let mut deleted = 0;
        loop {
            match self.store.delete_some(&filter).await? {
                0 => return Ok((deleted, before)),
                some => deleted += some,
            }
        }
    }

    /// The same, without what fails from now on: that is not meant; nor would it ever end.
    async fn until_now(&self, filter: &Filter) -> Result<(Filter, Time), Error> {
        let now = self.store.now().await?;
        let before = filter.failed_before.map_or(now, |before| before.min(now));
        let filter = Filter {
            failed_before: Some(before),
            ..filter.clone()
        };
        Ok((filter, before))
    }

    /// Kinds of failures, the one seen last first.
    pub async fn groups(
        &self,
        queue: Option<&str>,
        size: u32,
        token: &str,
    ) -> Result<Listed<Group>, Error> {
        let list = page::list("failed_message_groups", &queue);
        let cursor = page::cursor(token, &list)?;
        let found = self
            .store
            .groups(queue, cursor.as_ref(), size.into())
            .await?;
        Ok(Listed {
            rows: found.rows,
            next: page::token(found.next, &list),
            unreadable: found.unreadable,
        })
    }

    /// How many there are.
    pub async fn stats(&self, queue: Option<&str>) -> Result<Stats, Error> {
        Ok(self.store.stats(queue).await?)
    }

    /// How they stand, by the database's clock.
    pub async fn standing(&self) -> Result<Standing, Error> {
        let now = self.store.now().await?;
        let filter = Filter {
            failed_after: Some(now - TimeDelta::minutes(1)),
            ..Filter::default()
        };
        let stats = self.store.stats(None).await?;
        let age = |at: Time| (now - at).to_std().unwrap_or_default();
        Ok(Standing {
            queues: stats.queues,
            last_minute: self.store.count(&filter).await?,
            oldest_age: stats.oldest.map(age),
        })
    }

    /// How many a bulk retry would retry.
    pub async fn count_retriable(&self, filter: &Filter) -> Result<u64, Error> {
        Ok(self.store.count_retriable(filter).await?)
    }

    /// Begins a bulk retry. It goes on by itself, on any replica.
    pub async fn begin_operation(
        &self,
        filter: &Filter,
        rate: u32,
        limit: Option<u64>,
    ) -> Result<Operation, Error> {
        Ok(self.store.begin_operation(filter, rate, limit).await?)
    }

    /// A bulk retry as it stands.
    pub async fn operation(&self, id: Uuid) -> Result<Operation, Error> {
        self.store.operation(id).await.map_err(of_operation)
    }

    /// The same, or as it was a moment ago: for those who ask again and again.
    pub async fn follow_operation(&self, id: Uuid) -> Result<Operation, Error> {
        let found = self.operations.try_get_with(id, self.operation(id)).await;
        found.map_err(Arc::unwrap_or_clone)
    }

    /// Stops a bulk retry.
    pub async fn stop_operation(&self, id: Uuid) -> Result<Operation, Error> {
        self.store.stop_operation(id).await.map_err(of_operation)
    }

    /// Changes from now on.
    pub async fn watch(&self, filter: Filter) -> Result<Watch, Error> {
        Ok(self.watchers.begin(filter).await?)
    }
}

/// A copy that is certainly not with the broker is none that anybody must know of.
fn not_written(fate: Fate, error: store::Error) -> Error {
    match fate {
        Fate::Confirmed | Fate::InDoubt(_) => Error::NotWritten(fate, error),
        _ => error.into(),
    }
}

fn of_operation(error: store::Error) -> Error {
    match error {
        store::Error::NotFound => Error::NoOperation,
        error => error.into(),
    }
}
