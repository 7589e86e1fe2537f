//! Moving messages: each leaves its queue only after its copy is confirmed in the other one.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{Error, QueueAdmin, audit::audited, fetchable, not_fetched, own_queue};
use crate::{
    broker::{Delivery, Fate, InDoubt, Lane, Publish, Tag, admin::Fetch},
    gateway::validate::Invalid,
    message::{Message, header},
};

/// Messages under way at a time.
const BATCH: usize = 100;
/// Payloads under way at a time.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long a batch's copies may take to be confirmed.
const COPY_TIMEOUT: Duration = Duration::from_secs(10);

/// What was moved.
#[derive(Debug)]
pub struct Moved {
    pub count: u64,
    /// Why it stopped early, after something was moved.
    pub error: Option<Error>,
}

impl QueueAdmin {
    /// Moves what is ready in `source` when the call begins, at most `limit`, to `destination` and to nothing else. What is under
    /// way when the caller goes away is finished.
    pub async fn move_messages(
        &self,
        source: &str,
        destination: &str,
        limit: Option<u64>,
        deadline: Option<Instant>,
    ) -> Result<Moved, Error> {
        own_queue("source", source)?;
        own_queue("destination", destination)?;
        if source == destination {
            let problem = "must be another queue than the source";
            return Err(Invalid::field("destination", problem).into());
        }
        let admin = self.clone();
        let (source, destination) = (source.to_owned(), destination.to_owned());
        let target = format!("{source} -> {destination}");
        audited("move messages", target, async move {
            admin.move_all(&source, &destination, limit, deadline).await
        })
        .await
    }

    async fn move_all(
        &self,
        source: &str,
        destination: &str,
        limit: Option<u64>,
        deadline: Option<Instant>,
    ) -> Result<Moved, Error> {
        let admin = self.broker.admin();
        let (from, to) = tokio::join!(admin.queue(source), admin.queue(destination));
        to?;
        let from = from?;
        fetchable(&from)?;
        // What a busy publisher adds meanwhile is not meant; nor would it ever end.
        // One at least: a queue whose leader is busy says that it has none, and so does a stream.
        let there = from.ready.map_or(u64::MAX, |ready| ready.max(1));
        let mut left = limit.map_or(there, |limit| limit.min(there));
        let mut fetch = admin.fetch(source).await?;
        let lane = self.broker.lane();
        let mut count = 0;
        let error = loop {
            if left == 0 {
                break None;
            }
            let due = Instant::now() + COPY_TIMEOUT;
            let due = deadline.map_or(due, |deadline| deadline.min(due));
            let batch = match timeout_at(due, batch(&mut *fetch, left)).await {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => break Some(not_fetched(error)),
                Err(_) => break Some(Error::NotMoved(Fate::InDoubt(InDoubt::ConfirmTimeout))),
            };
            if batch.is_empty() {
                break None;
            }
            let copies = batch
                .iter()
                .map(|delivery| self.publish_copy(lane, destination, copy_of(delivery), due));
            let fates = join_all(copies).await;
            let confirmed = batch.iter().zip(&fates);
            let confirmed = confirmed.filter(|(_, fate)| **fate == Fate::Confirmed);
            let tags: Vec<Tag> = confirmed.map(|(delivery, _)| delivery.tag).collect();
            if let Err(error) = fetch.ack(&tags).await {
                break Some(error.into());
            }
            count += tags.len() as u64;
            left -= batch.len() as u64;
            if let Some(fate) = fates.into_iter().find(|fate| *fate != Fate::Confirmed) {
                break Some(Error::NotMoved(fate));
            }
        };
        // What was not acked goes back. Without an answer, what was moved last may be in both.
        let closed = fetch.close().await;
        let error = error.or(closed.err().map(Error::from));
        match error {
            Some(error) if count == 0 => Err(error),
            error => Ok(Moved { count, error }),
        }
    }

    /// Publishes a copy to one queue and to nothing else.
    pub(super) async fn publish_copy(
        &self,
        lane: Lane,
        queue: &str,
        message: Message,
        deadline: Instant,
    ) -> Fate {
        let publish = Publish::to_queue(queue, message, deadline);
        self.broker.publish_and_wait(lane, publish, None).await
    }
}

/// What is fetched next, at most `most`.
async fn batch(fetch: &mut dyn Fetch, most: u64) -> Result<Vec<Delivery>, crate::broker::Error> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let most = usize::try_from(most).unwrap_or(BATCH).min(BATCH);
    while batch.len() < most && bytes < BATCH_BYTES {
        let Some(delivery) = fetch.next().await? else {
            break;
        };
        bytes += delivery.message.payload.len();
        batch.push(delivery);
    }
    Ok(batch)
}

/// The message as it is, but for what would send it elsewhere, and for what the publish itself writes.
pub(super) fn copy_of(delivery: &Delivery) -> Message {
    let mut copy = delivery.message.clone();
    for name in header::COPIES.iter().chain(&header::COUNTERS) {
        copy.headers.remove(*name);
    }
    // A copy has its own; a dead letter's record of the first one stays.
    if let Some(id) = copy.headers.remove(header::PUBLISH_ID) {
        let original = copy.headers.entry(header::ORIGINAL_PUBLISH_ID.to_owned());
        original.or_insert(id);
    }
    copy
}
